"""Work over a link on which everything goes wrong, compared with the golden model.

Time is counted and not waited for, so that a million faults take minutes.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ditto.hdl.config import Config
from ditto.hdl.protocol import CommandHeader, LayerEntry, Mode, Opcode, pack, unpack
from ditto.host import device as device_module
from ditto.host.device import Device
from ditto.host.framing import encode
from ditto.host.transport import Transport
from ditto.sim import faults as faults_module
from ditto.sim import golden_board as golden_board_module
from ditto.sim.board import SimulatedBoard
from ditto.sim.faults import FaultRates, FaultyTransport
from ditto.sim.golden import Golden
from ditto.sim.golden_board import GoldenBoard
from ditto.sim.spatial import stretched
from ditto.sim.workload import DELTAS, random_deltas, random_workload

__all__ = ["CONFIG", "HARSH", "REFERENCES", "Clock", "Tally", "counted_time", "disturb"]

CONFIG = Config(
    clusters=3,
    columns=2,
    accumulator_bits=20,
    weight_rows=20,
    accumulator_rows=9,
    item_depth=768,
    positions=64,
    channels=12,
    layers=3,
    frame_bytes=128,
)
"""A device with small memories and short frames."""

REFERENCES = replace(CONFIG, reference_depth=30, neighbour_depth=16)
"""The same with a reference buffer: it takes inputs, too, and decides."""

HARSH = FaultRates(drop=2e-3, flip=2e-3, duplicate=2e-3, insert=2e-3, swap=2e-3, cut=2e-3)
"""About one fault in every frame of 80 bytes."""

_TIMEOUT = 0.05
_TRIES = 400


class Clock:
    """Stands for the module :mod:`time` where it is only counted."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Return the time; looking at it takes a microsecond."""
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


@contextmanager
def counted_time() -> Iterator[Clock]:
    """Count the time that driver, faults and golden boards wait, instead of waiting."""
    clock = Clock()
    modules: list[Any] = [device_module, faults_module, golden_board_module]
    before = [module.time for module in modules]
    for module in modules:
        module.time = clock
    try:
        yield clock
    finally:
        for module, time in zip(modules, before, strict=True):
            module.time = time


@dataclass
class Tally:
    """What was done to the link, and what came of it.

    Parameters
    ----------
    faults
        By kind; those of bytes, frames, stalls and resets.
    runs
        Runs of layers whose accumulators and counters were compared.
    wrong
        Runs that differed from the golden model's.
    commands, resent
        Commands that were answered, and how often one was sent again.
    unsynchronized
        Commands that were sent and answered without any fault, and yet had to be sent again.
    longest
        The longest command, in seconds on the clock that counts.
    """

    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    wrong: int = 0
    commands: int = 0
    resent: int = 0
    unsynchronized: int = 0
    longest: float = 0.0


class _Watch:
    """A transport that notes which attempts at a command were without faults."""

    def __init__(self, inner: FaultyTransport, tally: Tally, clock: Clock) -> None:
        self.inner = inner
        self._tally, self._clock = tally, clock
        self._last = b""
        self._before = -1
        self._start = 0.0

    def write(self, data: bytes) -> None:
        if data == self._last:
            self._tally.resent += 1
            self._tally.unsynchronized += self._before == self.inner.disturbances
        else:
            self._tally.commands += 1
            self._start = self._clock.now
        self._last, self._before = data, self.inner.disturbances
        self.inner.write(data)

    def read(self, size: int, timeout: float) -> bytes:
        data = self.inner.read(size, timeout)
        self._tally.longest = max(self._tally.longest, self._clock.now - self._start)
        return data

    def close(self) -> None:
        pass  # the board outlives a driver


class _Hurried:
    """A simulated board that does not wait for bytes that do not come."""

    def __init__(self, board: SimulatedBoard, clock: Clock) -> None:
        self._board, self._clock = board, clock

    def write(self, data: bytes) -> None:
        self._board.write(data)

    def read(self, size: int, timeout: float) -> bytes:
        data = self._board.read(size, 0)
        if not data:
            self._clock.sleep(timeout)
        return data

    def close(self) -> None:
        self._board.close()


def disturb(
    board: GoldenBoard | SimulatedBoard,
    faults: int,
    *,
    seed: int,
    config: Config = CONFIG,
    rates: FaultRates = HARSH,
    stall: float = 0.02,
    resets: float = 0.02,
) -> Tally:
    """Run random layers over a faulty link until so many faults have happened.

    Parameters
    ----------
    board
        At the other end.
    faults
        How many are enough.
    seed
        Determines the layers and the faults.
    config
        That of the board.
    rates, stall
        See :class:`ditto.sim.faults.FaultyTransport`.
    resets
        Share of the runs that are followed by a reset: of the board, or of the driver in the middle
        of a frame.

    Raises
    ------
    ditto.host.device.DeviceError
        If a command is not answered in hundreds of tries.
    """
    tally = Tally()
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    with counted_time() as clock:
        inner: Transport = board if isinstance(board, GoldenBoard) else _Hurried(board, clock)
        link = FaultyTransport(inner, seed=seed, to_device=rates, from_device=rates, stall=stall)
        watch = _Watch(link, tally, clock)
        golden = Golden(config)
        while link.faults < faults:
            device = Device(watch, expect=config, timeout=_TIMEOUT, tries=_TRIES)
            golden.reset()
            device.reset()
            _work(device, golden, tally, rng, numbers, resets, lambda: link.faults < faults)
            if link.faults >= faults:
                break
            if rng.random() < 0.5:
                link.kinds["reset of the board"] += 1
                board.power_on() if isinstance(board, GoldenBoard) else board.reset()
            else:
                link.kinds["reset of the driver"] += 1
                frame = encode(pack(CommandHeader, op=Opcode.RESET) + bytes(20))
                link.write(frame[: rng.randrange(1, len(frame))])
        tally.faults = link.kinds
    return tally


def _work(
    device: Device,
    golden: Golden,
    tally: Tally,
    rng: random.Random,
    numbers: np.random.Generator,
    resets: float,
    is_wanted: Any,
) -> None:
    """Run layers until a reset is due."""
    while is_wanted():
        work = random_workload(numbers, golden.config, rows=6)
        work = work._replace(entry=unpack(LayerEntry, pack(LayerEntry, **work.entry)))
        entry = rng.randrange(golden.config.layers)
        base = work.entry["accumulator_base"]
        for accelerator in (golden, device):
            work.load(accelerator, entry)
        shape = work.entry["positions"], work.entry["channels"]
        by_inputs = math.prod(shape) <= golden.config.reference_depth and rng.random() < 0.7
        third = Mode.SPATIAL if work.entry["spatial"] else Mode.DENSE
        for mode in (Mode.DENSE, Mode.TEMPORAL, third, Mode.TEMPORAL):
            walked = stretched(work.entry) if mode is Mode.SPATIAL else work.entry
            deltas = random_deltas(numbers, golden.config, walked, rng.choice(DELTAS))
            inputs = numbers.integers(-128, 128, shape)
            seen = []
            for accelerator in (golden, device):
                if by_inputs:
                    accelerator.write_inputs(entry, inputs, mode)
                else:
                    accelerator.write_deltas(entry, deltas, mode)
                counters = accelerator.run(entry, mode)._replace(stall_link=0)
                words = accelerator.read_accumulators(base, work.rows)
                # Words that the run does not fill hold what came before.
                values = [part[:n].tolist() for part, n in zip(words, work.filled, strict=True)]
                seen.append((counters, values))
            tally.runs += 1
            tally.wrong += seen[0] != seen[1]
            if rng.random() < resets:
                return
