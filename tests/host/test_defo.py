from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.hdl.config import Config
from ditto.host.defo import (
    POLICIES,
    Adaptive,
    Choice,
    Fixed,
    LayerCost,
    ModeName,
    Observation,
    Planned,
    Policy,
    RunTime,
    costs_of,
    plan,
    policy_of,
)
from ditto.host.model import Model
from ditto.host.program import Program, suggest
from ditto.sim.memory import MEMORIES, Memory, Traffic

CONFIG = Config(clusters=3, columns=4, positions=20, channels=8, item_depth=96)
SLOW = MEMORIES["sdram-state"].with_bandwidth(0.25)


def costs(proto: onnx.ModelProto, memory: Memory) -> tuple[LayerCost, ...]:
    model = Model(proto)
    config = suggest(model.layers, model.shapes(), CONFIG)
    return costs_of(Program(model.layers, model.shapes(), config), memory)


def play(
    policy: Policy,
    cost: LayerCost,
    cycles: Mapping[ModeName, Sequence[int]],
    digits: Mapping[ModeName, Sequence[int]] | None = None,
) -> tuple[list[Choice], int]:
    """Run layer 0 by a policy; return its choices, and what they take."""
    digits = digits or cycles  # a cycle for each digit
    choices: list[Choice] = []
    total, has_state = 0, False
    for step in range(len(cycles["dense"])):
        choice = policy.choose(0, has_state)
        assert has_state or choice.mode != "temporal"
        is_counted = has_state and (choice.mode == "temporal" or choice.watch)
        seen: dict[ModeName, int] = {
            mode: own[step] for mode, own in digits.items() if mode != "temporal" or is_counted
        }
        policy.observe(0, Observation(choice.mode, cycles[choice.mode][step], seen))
        total += cost.total(choice, cycles[choice.mode][step])
        choices.append(choice)
        has_state = choice.keep
    return choices, total


def modes(choices: Sequence[Choice]) -> str:
    return "".join(choice.mode[0] for choice in choices)


def test_traffic_of_a_run(denoiser_proto: onnx.ModelProto) -> None:
    cost = costs(denoiser_proto, SLOW)[2]  # 6x6 x 6 -> 1, 3x3
    inputs, outputs, weights = 36 * 6, 36, 54
    accumulators = 3 * outputs  # of 24 bits
    plain = Traffic(inputs=inputs, weights=weights, outputs=outputs)
    assert cost.traffic(Choice("dense", keep=False)) == plain
    assert cost.traffic(Choice("dense", keep=False, watch=True)) == plain._replace(
        previous_inputs_read=inputs
    )
    kept = plain._replace(previous_inputs_written=inputs, accumulators_written=accumulators)
    assert cost.traffic(Choice("dense")) == kept
    assert cost.traffic(Choice("temporal")) == kept._replace(
        previous_inputs_read=inputs, accumulators_read=accumulators
    )
    # What a state costs is what its transfers take beyond the run itself.
    transfers = SLOW.cycles(kept)
    assert cost.total(Choice("dense"), 10) == max(transfers, 10 + SLOW.burst_cycles)
    assert cost.total(Choice("dense", keep=False), 10) == 10
    assert 0 < cost.floor < cost.ceiling


def test_tokens_without_a_batch(make_graph: Any) -> None:
    g = make_graph()
    x = g.quantized(g.input("sample", [1, 7]))
    x = g.node("Reshape", x, g.constant([7, 1]))
    x = g.node("Mul", x, g.constant(np.ones((1, 5)), np.float32))
    weights = g.weights(np.ones((5, 3), np.int8), np.ones(3), axis=1)
    proto = g.model(g.node("MatMul", g.quantized(x), weights))
    (cost,) = costs(proto, SLOW)
    assert cost.traffic(Choice("dense", keep=False)) == Traffic(inputs=35, weights=15, outputs=21)
    # Seven rows on three clusters take more than one does.
    assert cost.ceiling > cost.floor > 2


def test_fixed(denoiser_proto: onnx.ModelProto) -> None:
    cost = costs(denoiser_proto, SLOW)[0]
    cycles: dict[ModeName, list[int]] = {"dense": [9] * 4, "temporal": [5] * 4, "spatial": [7] * 4}
    assert modes(play(Fixed("dense"), cost, cycles)[0]) == "dddd"
    assert modes(play(Fixed("temporal"), cost, cycles)[0]) == "dttt"
    assert modes(play(Fixed("spatial"), cost, cycles)[0]) == "ssss"
    assert not any(choice.keep for choice in play(Fixed("dense"), cost, cycles)[0])


def test_defo_keeps_what_took_less_in_the_first_two_steps(denoiser_proto: onnx.ModelProto) -> None:
    cost = costs(denoiser_proto, MEMORIES["chip"])[0]
    better: dict[ModeName, list[int]] = {"dense": [100] * 6, "temporal": [0, 99, 500, 500, 9, 9]}
    assert modes(play(RunTime([cost]), cost, better)[0]) == "dttttt"
    worse: dict[ModeName, list[int]] = {"dense": [100] * 6, "temporal": [0, 101, 1, 1, 1, 1]}
    choices, _ = play(RunTime([cost]), cost, worse)
    assert modes(choices) == "dtdddd" and not any(choice.keep for choice in choices[2:])
    worse["spatial"] = [90] * 6
    cost.rests = ("spatial", "dense")
    assert modes(play(RunTime([cost], plus=True), cost, worse)[0]) == "stssss"
    assert modes(play(RunTime([cost]), cost, worse)[0]) == "dtdddd"
    # The same cycles, with a memory that makes state dear.
    cost = costs(denoiser_proto, SLOW)[0]
    assert modes(play(RunTime([cost]), cost, better)[0]) == "dtdddd"


def test_adaptive_follows_what_changes(denoiser_proto: onnx.ModelProto) -> None:
    cost = costs(denoiser_proto, MEMORIES["chip"])[0]
    large = 10 * cost.floor
    cycles: dict[ModeName, list[int]] = {
        "dense": [large] * 9,
        "temporal": [0, *[large // 2] * 3, 2 * large, 2 * large, large // 2, large // 2, large],
    }
    assert modes(play(Adaptive([cost]), cost, cycles)[0]) == "dttttddtt"
    # The hysteresis: less than the margin changes nothing.
    cycles["temporal"] = [0, *[round(1.009 * large), round(0.995 * large)] * 4]
    assert modes(play(Adaptive([cost]), cost, cycles)[0]) == "dtttttttt"
    cycles["temporal"][3] = round(1.02 * large)
    cycles["temporal"][4:] = [round(0.992 * large)] * 5
    assert modes(play(Adaptive([cost]), cost, cycles)[0]) == "dtttddddd"


def test_adaptive_alternates_where_a_long_run_can_write_the_state(
    denoiser_proto: onnx.ModelProto,
) -> None:
    cost = costs(denoiser_proto, MEMORIES["sdram-state"])[0]
    bursts = -(-cost.traffic(Choice("temporal", keep=False)).accumulators_read // 64)
    cycles: dict[ModeName, list[int]] = {
        "dense": [cost.ceiling] * 8,
        "temporal": [cost.floor] * 8,
    }
    # Reading takes two thirds of a dense run; reading and writing take more than the whole.
    bandwidth = 64 * bursts / (0.6 * cost.ceiling)
    memory = Memory(name="m", holds=cost.memory.holds, bandwidth=bandwidth, latency=0)
    cost = costs(denoiser_proto, memory)[0]
    choices, total = play(Adaptive([cost]), cost, cycles)
    assert modes(choices) == "dtdtdtdt"
    assert [choice.keep for choice in choices] == [True, False] * 4
    assert total == play(Planned([plan(cost, cycles_of(cycles))]), cost, cycles)[1]
    assert total < min(play(Fixed(mode), cost, cycles)[1] for mode in cycles)


def cycles_of(cycles: Mapping[ModeName, Sequence[int]]) -> dict[ModeName, np.ndarray]:
    return {mode: np.array(own) for mode, own in cycles.items()}


def test_adaptive_looks_again_at_longer_and_longer_intervals(
    denoiser_proto: onnx.ModelProto,
) -> None:
    cost = costs(denoiser_proto, MEMORIES["sdram-state"])[0]
    large = 20 * cost.ceiling
    cycles: dict[ModeName, list[int]] = {
        "dense": [cost.ceiling] * 60,
        "temporal": [large] * 40 + [cost.floor] * 20,
    }
    # The state takes longer to move than a dense run takes, but little longer.
    bursts = -(-cost.traffic(Choice("temporal")).total // cost.memory.burst)
    bandwidth = cost.memory.burst * bursts / cost.ceiling
    cost = costs(denoiser_proto, cost.memory.with_bandwidth(bandwidth))[0]
    choices, _ = play(Adaptive([cost]), cost, cycles)
    looks = [step for step, choice in enumerate(choices) if choice.watch]
    assert 1 <= len(looks) <= 6
    assert "t" not in modes(choices[2:40])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_plan_is_the_best_of_all(denoiser_proto: onnx.ModelProto, data: st.DataObject) -> None:
    memory = data.draw(st.sampled_from([MEMORIES["chip"], MEMORIES["sdram-state"], SLOW]))
    cost = costs(denoiser_proto, memory)[data.draw(st.integers(0, 2))]
    steps = 4
    names: list[ModeName] = ["dense", "temporal", "spatial"]
    names = names[: data.draw(st.integers(2, 3))]
    runs = st.lists(st.integers(0, 3000), min_size=steps, max_size=steps)
    cycles: dict[ModeName, list[int]] = {name: data.draw(runs) for name in names}
    best = None
    options = [Choice(mode, keep) for mode in names for keep in (False, True)]
    for choices in product(options, repeat=steps):
        kept = [False, *(choice.keep for choice in choices)]
        if any(c.mode == "temporal" and not kept[i] for i, c in enumerate(choices)):
            continue
        total = sum(cost.total(c, cycles[c.mode][i]) for i, c in enumerate(choices))
        best = total if best is None else min(best, total)
    _, total = play(Planned([plan(cost, cycles_of(cycles))]), cost, cycles)
    assert total == best


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    memory=st.sampled_from([*MEMORIES.values(), SLOW]),
    level=st.floats(0.02, 2.5),
)
def test_adaptive_is_near_the_best_where_digits_change_slowly(
    denoiser_proto: onnx.ModelProto, seed: int, memory: Memory, level: float
) -> None:
    cost = costs(denoiser_proto, memory)[2]
    rng = np.random.default_rng(seed)
    steps = 100
    dense = cost.ceiling // 2
    walk = level * np.exp(np.cumsum(rng.normal(0, 0.01, steps)))
    cycles: dict[ModeName, list[int]] = {
        "dense": [dense] * steps,
        "temporal": np.maximum(dense * walk, cost.floor).astype(int).tolist(),
    }
    _, total = play(Adaptive([cost]), cost, cycles)
    _, bound = play(Planned([plan(cost, cycles_of(cycles))]), cost, cycles)
    # Besides 3 %, what one step to learn and a few to look again may take.
    most = max(cost.total(Choice("temporal"), run) for run in cycles["temporal"])
    assert bound <= total <= 1.03 * bound + 6 * most


def test_names(denoiser_proto: onnx.ModelProto) -> None:
    own = costs(denoiser_proto, MEMORIES["chip"])
    for name in POLICIES:
        if name != "oracle":
            choice = policy_of(name, own)(0).choose(0, False)
            assert choice.mode == "dense"
    with pytest.raises(ValueError, match="no policy is called best; there are dense, temporal, de"):
        policy_of("best", own)
