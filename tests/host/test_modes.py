"""Exactness across every change of mode: on the golden model, over a bad line, on the hardware."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ditto.hdl.config import Config, demo
from ditto.hdl.protocol import CommandError, Counters, Mode
from ditto.host.boards import open_device
from ditto.host.defo import Choice, ModeName, Observation, Policy, policy_of
from ditto.host.device import Accelerator, Device
from ditto.host.executor import Executor
from ditto.host.model import Model
from ditto.host.program import Program, suggest
from ditto.host.transport import LinkError
from ditto.sim.faults import FaultRates, FaultyTransport
from ditto.sim.golden import Golden
from ditto.sim.golden_board import GoldenBoard

CONFIG = Config(clusters=3, columns=4, positions=20, channels=8, item_depth=96)


class Random:
    """Chooses by chance, and notes what."""

    def __init__(self, rng: np.random.Generator, program: Program) -> None:
        self._rng = rng
        self._takes_inputs = program.config.reference_depth > 0
        self._may_be_spatial = [placement.may_be_spatial for placement in program.layers]
        self.chosen: list[Choice] = []

    def choose(self, layer: int, has_state: bool) -> Choice:
        is_temporal = has_state and self._rng.random() < 0.5
        is_spatial = self._may_be_spatial[layer] and self._rng.random() < 0.5
        rest: ModeName = "spatial" if is_spatial else "dense"
        keep, watch = (bool(bit) for bit in self._rng.random(2) < 0.7)
        watch |= self._takes_inputs  # Such a device counts all modes in any run.
        choice = Choice("temporal" if is_temporal else rest, keep, watch and has_state)
        self.chosen.append(choice)
        return choice

    def observe(self, layer: int, seen: Observation) -> None:
        assert seen.mode == self.chosen[-1].mode
        is_counted = self.chosen[-1].watch or seen.mode == "temporal"
        spatial = {"spatial"} if self._may_be_spatial[layer] else set()
        assert set(seen.digits) == {"dense"} | spatial | ({"temporal"} if is_counted else set())


class Seen:
    """A device that keeps the accumulators that are read, and whose link may fail anywhere."""

    def __init__(self, device: Any, rng: np.random.Generator, failures: float = 0.0) -> None:
        self._device = device
        self._rng = rng
        self._failures = failures
        self.accumulators: list[NDArray[np.int64]] = []
        self.failed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def write_deltas(self, *arguments: Any) -> None:
        self._frail("write_deltas", *arguments)

    def write_inputs(self, *arguments: Any) -> None:
        self._frail("write_inputs", *arguments)

    def run(self, *arguments: Any) -> Counters:
        return self._frail("run", *arguments)

    def _frail(self, name: str, *arguments: Any) -> Any:
        """Give a command; if the link fails, the device has carried it out or not."""
        is_lost = self._rng.random() < self._failures
        if is_lost and self._rng.random() < 0.5:
            raise self._lost(name)
        result = getattr(self._device, name)(*arguments)
        if is_lost:
            raise self._lost(name)
        return result

    def _lost(self, name: str) -> LinkError:
        self.failed.append(name)
        return LinkError("the port is lost")

    def read_accumulators(self, *arguments: Any) -> NDArray[np.int64]:
        self.accumulators.append(self._device.read_accumulators(*arguments))
        return self.accumulators[-1]


def check(
    proto: onnx.ModelProto,
    config: Config,
    device: Any,
    *,
    seed: int,
    steps: int,
    drift: float,
    failures: float = 0.0,
    table: str = "",
) -> tuple[Counter[Mode], Counter[str]]:
    """Compare random modes, resets and failures with dense runs, in every accumulator.

    A step that failed is repeated, with a device that was reset or as it is. The modes are random,
    or chosen by the device's ``table``. Returns the modes, and the commands that failed.
    """
    rng = np.random.default_rng(seed)
    model = Model(proto)
    program = Program(model.layers, model.shapes(), config)
    ours, dense = Seen(device, rng, failures), Seen(Golden(config), rng)
    # A device whose link failed may have more in its references and its table than a model has.
    is_checked = not (failures and config.reference_depth)
    executor = Executor(model, program, ours, check=is_checked)  # type: ignore[arg-type]
    reference = Executor(model, program, dense, mode=Mode.DENSE)  # type: ignore[arg-type]
    policy: Policy = Random(rng, program)
    if table:
        policy = policy_of(table, executor.costs, has_table=True)(0)
    executor.begin(policy)
    x = rng.standard_normal((1, 1, 6, 6)).astype(np.float32)
    for step in range(steps):
        feed = {"sample": x, "timestep": np.array([900 - step]), "label": np.array([3])}
        before = len(ours.accumulators)
        while True:
            try:
                got = executor.step(feed)[0]
                break
            except LinkError:
                del ours.accumulators[before:]
                if rng.random() < 0.5:
                    executor.begin(policy)
        assert got.tobytes() == reference.step(feed)[0].tobytes()
        x = x + drift * rng.standard_normal(x.shape).astype(np.float32)
        if rng.random() < 0.15:
            executor.begin(policy)
    assert len(ours.accumulators) == len(dense.accumulators) > steps
    for a, b in zip(ours.accumulators, dense.accumulators, strict=True):
        # Dense runs give W (q - zero_point), see test_executor.
        np.testing.assert_array_equal(a, b)
    return Counter(run.mode for run in executor.runs), Counter(ours.failed)


def config_of(proto: onnx.ModelProto, *, takes_inputs: bool = False) -> Config:
    """Return a device for a model, which takes the differences itself or not."""
    model = Model(proto)
    buffers = {"reference_depth": 1, "neighbour_depth": 64} if takes_inputs else {}
    return suggest(model.layers, model.shapes(), replace(CONFIG, **buffers))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.sampled_from([0.0, 0.05, 0.5, 5.0]),
    st.sampled_from([0.0, 0.03]),
    st.booleans(),
)
def test_any_sequence_of_modes_is_exact(
    denoiser_proto: onnx.ModelProto, seed: int, drift: float, failures: float, takes_inputs: bool
) -> None:
    config = config_of(denoiser_proto, takes_inputs=takes_inputs)
    check(
        denoiser_proto,
        config,
        Golden(config),
        seed=seed,
        steps=8,
        drift=drift,
        failures=failures,
    )


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.sampled_from([0.05, 5.0]),
    st.sampled_from([0.0, 0.03]),
    st.sampled_from(["defo", "defo+", "adaptive"]),
)
def test_whatever_the_table_chooses_is_exact(
    denoiser_proto: onnx.ModelProto, seed: int, drift: float, failures: float, table: str
) -> None:
    config = config_of(denoiser_proto, takes_inputs=True)
    check(
        denoiser_proto,
        config,
        Golden(config),
        seed=seed,
        steps=8,
        drift=drift,
        failures=failures,
        table=table,
    )


@pytest.mark.parametrize("takes_inputs", [False, True], ids=["deltas", "inputs"])
def test_every_mode_comes_and_every_command_fails(
    denoiser_proto: onnx.ModelProto, takes_inputs: bool
) -> None:
    config = config_of(denoiser_proto, takes_inputs=takes_inputs)
    device = Golden(config)
    modes, failed = check(
        denoiser_proto, config, device, seed=1, steps=60, drift=0.3, failures=0.03
    )
    assert min(modes[mode] for mode in (Mode.DENSE, Mode.TEMPORAL, Mode.SPATIAL)) > 20
    assert min(failed["write_inputs" if takes_inputs else "write_deltas"], failed["run"]) > 3


@pytest.mark.parametrize("takes_inputs", [False, True], ids=["deltas", "inputs"])
def test_over_a_bad_line(denoiser_proto: onnx.ModelProto, takes_inputs: bool) -> None:
    config = config_of(denoiser_proto, takes_inputs=takes_inputs)
    rates = FaultRates(drop=2e-4, flip=2e-4, duplicate=2e-4, insert=2e-4)
    board = GoldenBoard(config)
    line = FaultyTransport(board, seed=3, to_device=rates, from_device=rates)
    device = Device(line, expect=config, timeout=0.02, tries=50)
    check(denoiser_proto, config, device, seed=5, steps=12, drift=0.3)
    assert device.resent > 5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_on_the_hardware(denoiser_proto: onnx.ModelProto, seed: int) -> None:
    device: Any = open_device("sim", demo)
    try:
        modes, failed = check(
            denoiser_proto, demo, device, seed=seed, steps=12, drift=0.3, failures=0.03
        )
    finally:
        device.close()
    assert min(modes[mode] for mode in (Mode.DENSE, Mode.TEMPORAL, Mode.SPATIAL)) > 5
    assert failed


def test_a_device_that_lost_its_state_refuses(denoiser_proto: onnx.ModelProto) -> None:
    model = Model(denoiser_proto)
    config = suggest(model.layers, model.shapes(), CONFIG)
    device: Accelerator = Golden(config)
    executor = Executor(model, Program(model.layers, model.shapes(), config), device)
    feed: dict[str, NDArray[Any]] = {
        "sample": np.ones((1, 1, 6, 6), np.float32),
        "timestep": np.array([900]),
        "label": np.array([0]),
    }
    first = executor.step(feed)[0]
    device.reset()  # behind the executor's back
    with pytest.raises(CommandError, match="NO_STATE"):
        executor.step(feed)
    executor.begin()
    assert executor.step(feed)[0].tobytes() == first.tobytes()


def test_a_policy_without_state_cannot_be_temporal(denoiser_proto: onnx.ModelProto) -> None:
    class Eager(Random):
        def choose(self, layer: int, has_state: bool) -> Choice:
            return Choice("temporal")

    model = Model(denoiser_proto)
    config = suggest(model.layers, model.shapes(), CONFIG)
    program = Program(model.layers, model.shapes(), config)
    executor = Executor(model, program, Golden(config))
    executor.begin(Eager(np.random.default_rng(0), program))
    with pytest.raises(ValueError, match="layer first/Conv holds no state to be temporal"):
        executor.evaluate(0, np.zeros((1, 1, 6, 6), np.float32))
