"""Tests a device from the host: link, memories, array and counters, against the golden model.

Everything goes through the commands that a model uses, too. The device and the golden model get the
same ones; what they answer must be equal.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.protocol import CommandError, Counters, LayerEntry, Mode, size, unpack
from ditto.host.device import Accelerator, Device, word_bytes
from ditto.sim.golden import Golden, items
from ditto.sim.workload import DELTAS, random_deltas, random_workload

__all__ = ["Check", "selftest"]

_ROUND_TRIPS = 16
_SECONDS = 0.5  # of traffic in one direction, at least
_NONE = unpack(LayerEntry, bytes(size(LayerEntry)))


@dataclass(frozen=True)
class Check:
    """What a test found.

    Parameters
    ----------
    name
        What was tested.
    passed
        Whether it was as it should.
    detail
        What was measured or compared, or what is wrong.
    """

    name: str
    passed: bool
    detail: str


class _Wrong(Exception):
    """What is wrong with the device."""


def selftest(device: Accelerator, *, seed: int = 0, rounds: int = 8) -> Iterator[Check]:
    """Test a device; yields each result as it is there. Afterwards the device is reset.

    Parameters
    ----------
    device
        The device. What is in its memories is lost.
    seed
        Gives the values.
    rounds
        Number of random layers.

    Raises
    ------
    DeviceError, LinkError
        If the device does not answer any more.
    """
    test = _Test(device, seed)
    tests = [
        ("link", test.link),
        ("weights", test.weights),
        ("accumulators", test.accumulators),
        ("difference buffer", test.differences),
        ("layer table", test.table),
        *([("reference buffer", test.references)] if device.config.reference_depth else []),
        *((f"array, layer {number}", test.layer) for number in range(rounds)),
        ("link, repeats", test.repeats),
    ]
    for name, check in tests:
        try:
            yield Check(name, True, check())
        except (_Wrong, CommandError) as error:
            yield Check(name, False, str(error))
    device.reset()


def _linear(
    positions: int, channels: int, *, tiles: int = 1, weights: int = 0, accumulators: int = 0
) -> dict[str, int]:
    """Return the entry of a linear layer whose positions every cluster computes."""
    ones = "in_height out_height kernel_height kernel_width stride_y stride_x dilation_y dilation_x"
    return dict.fromkeys([*ones.split(), "split"], 1) | {
        "in_width": positions,
        "out_width": positions,
        "positions": positions,
        "channels": channels,
        "tiles": tiles,
        "weight_base": weights,
        "accumulator_base": accumulators,
        **dict.fromkeys(["pad_top", "pad_left", "skew"], 0),
    }


class _Test:
    """The tests; each returns what it compared, or raises what is wrong."""

    def __init__(self, device: Accelerator, seed: int) -> None:
        self.device = device
        self.config = device.config
        self.golden = Golden(device.config)
        self.rng = np.random.default_rng(seed)

    def both(self, command: str, *arguments: Any) -> None:
        """Give a command to device and golden model."""
        for target in self.device, self.golden:
            getattr(target, command)(*arguments)

    def load(self, number: int, entry: dict[str, int], words: NDArray[Any]) -> None:
        """Write an entry, and its weights of shape (clusters, rows, columns)."""
        self.both("write_layers", number, [entry])
        for cluster, rows in enumerate(words):
            self.both("write_weights", cluster, entry["weight_base"], rows)

    def run(self, number: int, mode: Mode, deltas: NDArray[Any]) -> Counters:
        """Run an entry; counters must be equal."""
        self.both("write_deltas", number, deltas)
        return self.run_tile(number, mode)

    def run_tile(self, number: int, mode: Mode) -> Counters:
        """Run what was written; counters must be equal."""
        got, want = self.device.run(number, mode), self.golden.run(number, mode)
        for name, a, b in zip(Counters._fields, got, want, strict=True):
            if a != b and name != "stall_link":
                raise _Wrong(f"counter {name} is {a} and should be {b}")
        return got

    def compare(self, first: int, count: int, what: str, filled: Sequence[int] = ()) -> int:
        """Read accumulators, which must be equal; return how many values that were.

        ``filled`` tells for each cluster how many words count, if not all.
        """
        got = self.device.read_accumulators(first, count)
        want = self.golden.read_accumulators(first, count)
        for cluster, words in enumerate(filled):
            got[cluster, words:] = want[cluster, words:]
        wrong = np.argwhere(got != want)
        if len(wrong):
            cluster, row, column = (int(index) for index in wrong[0])
            a, b = (int(values[cluster, row, column]) for values in (got, want))
            bits = np.bitwise_or.reduce((got ^ want)[got != want])
            bits = [bit for bit in range(self.config.accumulator_bits) if bits >> bit & 1]
            columns = sorted(set(wrong[:, 2].tolist()))
            raise _Wrong(
                f"{len(wrong)} of {got.size} {what} are wrong, in columns {_ranges(columns)} and "
                f"bits {_ranges(bits)} of the accumulators; the first, of cluster {cluster}, word "
                f"{first + row}, column {column}, is {a} and should be {b}"
            )
        return got.size

    def random_weights(self, rows: int) -> NDArray[np.int64]:
        """Make weights whose complement (``-1 - w``) the device takes, too."""
        least = self.config.min_weight
        return self.rng.integers(least, -least, (self.config.clusters, rows, self.config.columns))

    def link(self) -> str:
        """Measure the time of a command, and the bytes per second each way."""
        device, config = self.device, self.config
        if not isinstance(device, Device):
            return "none: the golden model is called directly"
        times = [_seconds(device.counters) for _ in range(_ROUND_TRIPS)]
        words = self.random_weights(config.weight_rows)[0]
        written = _bytes_per_second(
            lambda rows: device.write_weights(0, 0, words[:rows]),
            config.weight_rows,
            word_bytes(config.columns, config.weight_bits),
        )
        read = _bytes_per_second(
            lambda rows: device.read_accumulators(0, rows),
            config.accumulator_rows,
            word_bytes(config.columns, config.accumulator_bits) * config.clusters,
        )
        text = (
            f"{1e3 * median(times):.2f} ms for a command, {_rate(written)} written, "
            f"{_rate(read)} read"
        )
        baud = getattr(device.transport, "baud", None)
        if baud:
            text += f" (the line carries {_rate(baud / 10)})"
        return text

    def repeats(self) -> str:
        """Count the commands that had no answer at first, in all tests."""
        resent = getattr(self.device, "resent", 0)
        if resent:
            raise _Wrong(
                f"{resent} commands had to be repeated. Results are right nevertheless, but "
                "something is wrong with the cable, the port's rate or the power supply"
            )
        return "no command had to be repeated"

    def weights(self) -> str:
        """Read every weight back, through runs whose deltas pick one row for each position."""
        config = self.config
        size = min(
            config.positions,
            config.channels,
            config.weight_rows,
            config.accumulator_rows,
            math.isqrt(config.item_depth // config.digits),
        )
        most = min(config.accumulator_rows, config.weight_rows) // size
        words = self.random_weights(config.weight_rows)
        count = 0
        for pattern in words, -1 - words:
            for cluster, rows in enumerate(pattern):
                self.both("write_weights", cluster, 0, rows)
            for first in range(0, config.weight_rows, most * size):
                # Whole tiles: the last ones may overlap with those before.
                tiles = min(most, -(-(config.weight_rows - first) // size))
                first = min(first, config.weight_rows - tiles * size)
                self.both("write_layers", 0, [_linear(size, size, tiles=tiles, weights=first)])
                self.run(0, Mode.DENSE, np.eye(size, dtype=np.int64))
                count += self.compare(0, tiles * size, "weights, read by runs,")
        return f"{count:,} values read by runs: random ones and their complements, all rows"

    def accumulators(self) -> str:
        """Fill all accumulators by runs, twice, and read them."""
        config = self.config
        positions = min(config.positions, config.accumulator_rows, 64)
        channels = min(config.channels, config.item_depth // config.digits // positions)
        channels = max(min(channels, config.weight_rows), 1)
        positions = min(positions, config.item_depth // config.digits // channels)
        most = min(config.accumulator_rows // positions, config.weight_rows // channels)
        count = 0
        for _ in range(2):
            for first in range(0, config.accumulator_rows, most * positions):
                tiles = min(most, -(-(config.accumulator_rows - first) // positions))
                first = min(first, config.accumulator_rows - tiles * positions)
                entry = _linear(positions, channels, tiles=tiles, accumulators=first)
                self.load(0, entry, self.random_weights(tiles * channels))
                for mode in (Mode.DENSE, Mode.TEMPORAL):
                    self.run(0, mode, random_deltas(self.rng, config, entry, "full"))
            # Only now, so that a word which another one overwrites is found.
            count += self.compare(0, config.accumulator_rows, "accumulators")
        return f"{count:,} values read after all were written, all words twice"

    def differences(self) -> str:
        """Fill the difference buffer with as many deltas as a layer can have there."""
        config = self.config
        values = np.arange(-config.max_delta, config.max_delta + 1)
        low, high = items(values, config)
        length = low + high
        longest = values[length == length.max()]
        room = config.item_depth // config.digits
        most = min(config.positions, config.accumulator_rows)
        shapes = [
            (min(most, room // channels), channels)
            for channels in range(1, min(config.channels, config.weight_rows, room) + 1)
        ]
        # As many positions as there are, and as many deltas.
        count = 0
        for positions, channels in shapes[0], max(shapes, key=lambda shape: shape[0] * shape[1]):
            self.load(0, _linear(positions, channels), self.random_weights(channels))
            counters = self.run(0, Mode.DENSE, self.rng.choice(longest, (positions, channels)))
            self.compare(0, positions, "sums")
            count = counters.items // config.clusters
        return f"{count:,} work items at once, and {shapes[0][0]} positions"

    def table(self) -> str:
        """Fill the layer table, and run each entry."""
        config = self.config
        entries = [
            _linear(
                1,
                1,
                weights=number % config.weight_rows,
                accumulators=number % config.accumulator_rows,
            )
            for number in range(config.layers)
        ]
        words = self.random_weights(min(config.layers, config.weight_rows))
        for cluster, rows in enumerate(words):
            self.both("write_weights", cluster, 0, rows)
        self.both("write_layers", 0, entries)
        for number in self.rng.permutation(config.layers).tolist():
            self.run(number, Mode.DENSE, np.array([[config.max_delta]]))
            self.compare(number % config.accumulator_rows, 1, "sums")
        return f"{config.layers} entries, each run"

    def references(self) -> str:
        """Fill the reference buffer, and take differences from all that it holds."""
        config = self.config
        channels = min(config.channels, config.weight_rows)
        most = min(config.positions, config.accumulator_rows)
        positions = min(most, config.item_depth // config.digits // channels)
        half = 1 << config.activation_bits - 1
        if positions * channels > config.reference_depth:
            positions, channels = 1, min(channels, config.reference_depth)
        inputs = positions * channels
        last = config.reference_depth - inputs
        bases = [min(base, last) for base in range(0, config.reference_depth, inputs)]
        self.both("write_weights", 0, 0, self.random_weights(channels)[0])
        for first in range(0, len(bases), config.layers):
            group = bases[first : first + config.layers]
            self.both(
                "write_layers",
                0,
                [_NONE | _linear(positions, channels) | {"reference_base": base} for base in group],
            )
            # Only now is what others have overwritten taken a difference from.
            for mode in (Mode.DENSE, Mode.TEMPORAL):
                for number in range(len(group)):
                    values = self.rng.integers(-half, half, (positions, channels))
                    self.both("write_inputs", number, values, mode)
                    self.run_tile(number, mode)
        return f"{config.reference_depth:,} inputs, and as many differences"

    def layer(self) -> str:
        """Run a random layer, dense and in differences of every kind."""
        config = self.config
        work = random_workload(self.rng, config)
        number = int(self.rng.integers(config.layers))
        self.load(number, work.entry, work.weights)
        count = 0
        total = Counters()
        for mode, kind in [(Mode.DENSE, "full"), *((Mode.TEMPORAL, kind) for kind in DELTAS)]:
            total += self.run(number, mode, random_deltas(self.rng, config, work.entry, kind))
            first = work.entry["accumulator_base"]
            count += self.compare(
                first, work.rows, f"sums ({mode.name.lower()}, {kind} deltas)", work.filled
            )
        sizes = "{kernel_height}x{kernel_width}, {channels} channels, {positions} positions"
        return (
            f"{sizes.format(**work.entry)}: {count:,} sums and all counters, "
            f"{total.cycles:,} cycles"
        )


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return max(time.perf_counter() - begun, 1e-9)


def _bytes_per_second(call: Callable[[int], Any], most: int, size: int) -> float:
    """Measure a call for so many rows that it takes long enough, or for all of them."""
    rows = 1
    while True:
        seconds = _seconds(partial(call, rows))
        if seconds > _SECONDS or rows == most:
            return rows * size / seconds
        rows = min(4 * rows, most)


def _rate(rate: float) -> str:
    return f"{rate / 1e3:,.1f} kB/s"


def _ranges(numbers: list[int]) -> str:
    """Write sorted numbers shortly.

    >>> _ranges([1, 2, 3, 5])
    '1-3, 5'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
