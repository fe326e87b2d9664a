"""Devices that take the differences themselves, and decide: the executor sends inputs."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.hdl.protocol import CommandError, Decision, LayerEntry, Mode, Rule, Status, pack, unpack
from ditto.host.defo import MakePolicy, policy_of
from ditto.host.device import Device
from ditto.host.executor import Executor
from ditto.host.layers import Linear
from ditto.host.model import Model
from ditto.host.program import PlacementError, Program, suggest
from ditto.sim.board import SimulatedBoard
from ditto.sim.golden import Golden
from ditto.sim.golden_board import GoldenBoard

CONFIG = Config(
    clusters=2, columns=4, positions=20, channels=8, item_depth=96, reference_depth=1, layers=8
)


class Recording(Golden):
    """Keeps what is sent."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.deltas = self.inputs = 0

    def write_deltas(self, entry: int, deltas: NDArray[Any], mode: Mode = Mode.DENSE) -> None:
        self.deltas += 1
        super().write_deltas(entry, deltas, mode)

    def write_inputs(self, entry: int, inputs: NDArray[Any], mode: Mode = Mode.AUTO) -> None:
        self.inputs += 1
        half = 1 << self.config.activation_bits - 1
        assert inputs.min() >= -half and inputs.max() < half
        super().write_inputs(entry, inputs, mode)


def executors_of(proto: onnx.ModelProto, **options: Any) -> tuple[Executor, Executor]:
    """Return one whose device takes differences, and one whose host does."""
    model = Model(proto)
    shapes = model.shapes()
    made = []
    for start in (CONFIG, replace(CONFIG, reference_depth=0)):
        config = suggest(model.layers, shapes, start, states=options.get("states", 1))
        program = Program(model.layers, shapes, config)
        made.append(Executor(model.clone(), program, Recording(config), **options))
    return made[0], made[1]


def steps(count: int, seed: int = 0, drift: float = 0.2) -> list[dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, 1, 6, 6)).astype(np.float32)
    result = []
    for i in range(count):
        result.append({"sample": x, "timestep": np.array([900 - i]), "label": np.array([3])})
        x = x + drift * rng.standard_normal(x.shape).astype(np.float32)
    return result


def swings(count: int) -> list[dict[str, NDArray[Any]]]:
    """Return inputs whose changes are larger than they are."""
    (feed,) = steps(1)
    return [feed | {"sample": feed["sample"] * (-1) ** i} for i in range(count)]


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    drift=st.floats(0, 5),
    mode=st.sampled_from([Mode.DENSE, Mode.TEMPORAL]),
    tau=st.integers(0, 3),
)
def test_inputs_give_what_deltas_give(
    denoiser_proto: onnx.ModelProto, seed: int, drift: float, mode: Mode, tau: int
) -> None:
    by_inputs, by_deltas = executors_of(denoiser_proto, mode=mode, tau=tau, check=True)
    for feed in steps(4, seed, drift):
        np.testing.assert_array_equal(by_inputs.step(feed)[0], by_deltas.step(feed)[0])
    for got, want in zip(by_inputs.runs, by_deltas.runs, strict=True):
        counted = ("digits_dense", "digits_temporal")
        counters = got.counters._replace(**dict.fromkeys(counted, 0))
        assert counters == want.counters
        assert got._replace(counters=want.counters, digits={}) == want._replace(digits={})
        # The device counts what the host would have counted.
        assert got.digits["dense"] == want.digits["dense"]
        if "temporal" in want.digits:
            assert got.digits["temporal"] == want.digits["temporal"]
    assert isinstance(by_inputs.device, Recording) and not by_inputs.device.deltas


def test_inputs_beyond_signed_ones_are_shifted(denoiser_proto: onnx.ModelProto) -> None:
    by_inputs, by_deltas = executors_of(denoiser_proto, check=True)
    for executor in (by_inputs, by_deltas):
        model = executor.model
        layers = [
            replace(layer, zero_point=100, low=0, high=255) if isinstance(layer, Linear) else layer
            for layer in model.layers
        ]
        model.layers = type(model.layers)(layers)
        shapes = [placement.shape for placement in executor.program.layers]
        executor.enter(model, Program(layers, shapes, executor.program.config))
    entries = [band.entry for place in by_inputs.program.layers for band in place.bands]
    assert {entry["zero_point"] for entry in entries} == {100 - 128 & 0xFF}
    for feed in steps(3):
        np.testing.assert_array_equal(by_inputs.step(feed)[0], by_deltas.step(feed)[0])
    assert by_inputs.runs[-1].mode is Mode.TEMPORAL


@pytest.mark.parametrize("name", ["defo", "defo+", "adaptive"])
def test_the_table_decides_as_its_rule_says(denoiser_proto: onnx.ModelProto, name: str) -> None:
    by_inputs, by_deltas = executors_of(denoiser_proto, check=True)
    make = policy_of(name, by_inputs.costs, has_table=True)
    for sample in range(2):
        by_inputs.begin(make(sample))
        by_deltas.begin()
        by_inputs.runs, by_deltas.runs = [], []
        feeds = [*steps(4, sample, 0.05), *swings(4)]
        for feed in feeds:
            np.testing.assert_array_equal(by_inputs.step(feed)[0], by_deltas.step(feed)[0])
        count = len(by_inputs.program.layers)
        for layer in range(count):
            runs = by_inputs.runs[layer::count]
            modes = [run.mode for run in runs]
            assert modes[:2] == [Mode.DENSE, Mode.TEMPORAL]
            if name == "adaptive":
                for run, after in zip(runs[1:], modes[2:], strict=False):
                    other = {"dense": "temporal", "temporal": "dense"}[run.mode.name.lower()]
                    here = run.digits[run.mode.name.lower()]  # type: ignore[index]
                    pays = run.digits[other] < here - (here >> 6)  # type: ignore[index]
                    assert (after is run.mode) is not pays
            else:
                pays = runs[1].counters.cycles < runs[0].counters.cycles
                assert set(modes[2:]) == {Mode.TEMPORAL if pays else Mode.DENSE}
        if name == "adaptive":
            assert {run.mode for run in by_inputs.runs[2 * count :]} == {Mode.DENSE, Mode.TEMPORAL}


def test_states_decide_for_themselves(denoiser_proto: onnx.ModelProto) -> None:
    model = Model(denoiser_proto)
    shapes = model.shapes()
    config = suggest(model.layers, shapes, CONFIG, states=2)
    program = Program(model.layers, shapes, config, states=2)
    executor = Executor(model, program, Golden(config), check=True)
    make: MakePolicy = policy_of("adaptive", executor.costs, has_table=True)
    executor.begin(make(0))
    still = steps(1)[0]
    for feed in swings(4):
        executor.step(still, 0)
        executor.step(feed, 1)
    count = len(program.layers)
    first, second = executor.runs[-2 * count : -count], executor.runs[-count:]
    assert {run.mode for run in first} == {Mode.TEMPORAL}
    assert Mode.DENSE in {run.mode for run in second}
    assert program.decisions == 2 * count


def test_too_few_references_are_refused_with_what_is_needed(
    denoiser_proto: onnx.ModelProto,
) -> None:
    model = Model(denoiser_proto)
    config = suggest(model.layers, model.shapes(), CONFIG)
    Program(model.layers, model.shapes(), config)
    with pytest.raises(PlacementError, match=f"--reference-depth {config.reference_depth} would"):
        Program(model.layers, model.shapes(), replace(config, reference_depth=1))


RULES = {"adaptive": Rule.ADAPTIVE, "defo": Rule.DEFO}

ENTRY = dict.fromkeys(unpack(LayerEntry, bytes(32)), 0) | dict.fromkeys(
    (
        *("in_height", "positions", "in_width", "channels", "out_height", "out_width"),
        *("kernel_height", "kernel_width", "stride_y", "stride_x", "dilation_y", "dilation_x"),
        *("tiles", "split"),
    ),
    1,
)


def device_of(config: Config) -> Device:
    return Device(GoldenBoard(config))


def test_driver_writes_and_reads_decisions() -> None:
    config = replace(CONFIG, layers=300, reference_depth=8)
    with device_of(config) as device:
        golden = Golden(config)
        words = np.random.default_rng(1).integers(0, 1 << 32, 1200).tolist()
        for target in (device, golden):
            target.write_decisions(0, words)
            assert target.read_decisions(0, 1200) == words
            assert target.read_decisions(1199, 1) == words[-1:]
            for first, count in ((1199, 2), (1200, 1)):
                with pytest.raises(CommandError) as caught:
                    target.read_decisions(first, count)
                assert caught.value.status is Status.BAD_ADDRESS
    with device_of(replace(CONFIG, reference_depth=0)) as device:
        for call in (
            lambda: device.write_decisions(0, [0]),
            lambda: device.read_decisions(0, 1),
            lambda: device.write_inputs(0, np.zeros((1, 1))),
        ):
            with pytest.raises(CommandError) as caught:
                call()
            assert caught.value.status is Status.BAD_COMMAND


def test_a_tile_that_never_ran_leaves_no_state() -> None:
    with device_of(CONFIG) as device:
        device.write_layers(0, [ENTRY])
        device.write_inputs(0, np.array([[3]]), Mode.DENSE)
        device.run(0, Mode.AUTO)
        device.write_inputs(0, np.array([[5]]), Mode.TEMPORAL)
        # Its accumulators do not stand for the reference any more.
        with pytest.raises(CommandError) as caught:
            device.write_inputs(0, np.array([[6]]), Mode.TEMPORAL)
        assert caught.value.status is Status.NO_STATE


def test_a_fixed_rule_is_the_hosts() -> None:
    with device_of(CONFIG) as device:
        device.write_layers(0, [ENTRY | {"decides": 1}])
        word = int.from_bytes(pack(Decision, rule=Rule.FIXED, mode=Mode.TEMPORAL.value), "little")
        device.write_decisions(0, [word])
        used = []
        for value in (1, 2, 3):
            device.write_inputs(0, np.array([[value]]))
            used.append(device.run(0, Mode.AUTO).mode)
        assert used == [Mode.DENSE.value, Mode.TEMPORAL.value, Mode.TEMPORAL.value]
        assert device.read_decisions(0, 4) == [word, 0, 0, 0]


def test_the_generated_hardware_decides_the_same(denoiser_proto: onnx.ModelProto) -> None:
    model = Model(denoiser_proto)
    config = suggest(model.layers, model.shapes(), CONFIG)
    program = Program(model.layers, model.shapes(), config)
    with Device(SimulatedBoard(config)) as device:
        executor = Executor(model, program, device, check=True)
        for name in ("adaptive", "defo"):
            executor.begin(policy_of(name, executor.costs, has_table=True)(0))
            for feed in [*steps(3), *swings(2)]:
                executor.step(feed)
            # Which mode each run had, and why, was compared with the golden model's counters.
            words = device.read_decisions(0, 4 * program.decisions)
            assert all(word % 4 == RULES[name].value for word in words[::4])
    assert {run.mode for run in executor.runs} == {Mode.DENSE, Mode.TEMPORAL}
