"""Compares policies on the same samples: cycles, waits for the memory, traffic, right choices.

A model's samples are drawn once; what each layer takes in each mode is counted with the exact cycle
model. The policies are then replayed on these counts, and see no more of them than a device shows.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.hdl.protocol import DECISION_WORDS, Counters, Decision, Mode, Rule, pack
from ditto.host.analysis import Setting
from ditto.host.bench import fitting
from ditto.host.costs import LayerCosts, ProductCosts
from ditto.host.defo import (
    POLICIES,
    Adaptive,
    Choice,
    LayerCost,
    MakePolicy,
    ModeName,
    Observation,
    Planned,
    Policy,
    Resting,
    plan,
    policy_of,
)
from ditto.host.flow import FlowGraph, traffic
from ditto.host.layers import Product
from ditto.host.model import Model, ModelError
from ditto.host.program import Placement, Program
from ditto.host.samplers import Schedule
from ditto.host.trace import Step, Traced
from ditto.sim.decisions import Decisions
from ditto.sim.memory import Memory, Traffic

__all__ = ["PLAYERS", "Recording", "Replay", "compare", "player", "record", "replay", "saved"]

OnProgress = Callable[[int, int, str], None]

MODES: tuple[ModeName, ...] = ("dense", "temporal", "spatial")

PLAYERS = ("spatial", *POLICIES, "table")
"""What is compared: every policy; all layers spatial that can be; and, as ``table``, the adaptive
rule of the device's table of decisions, which counts digits alone, where all memory is on chip."""


@dataclass
class Recording:
    """What some samples take in each mode.

    Parameters
    ----------
    placements
        The layers that were counted.
    config
        The device.
    cycles, digits
        For each mode, of shape (layers, steps, samples). A temporal first step counts as dense, and
        so does a spatial run of a layer that has none.
    """

    placements: tuple[Placement, ...]
    config: Config
    cycles: dict[ModeName, NDArray[np.int64]]
    digits: dict[ModeName, NDArray[np.int64]]


def record(
    proto: onnx.ModelProto,
    model: Model,
    config: Config,
    setting: Setting,
    *,
    samples: int = 4,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Recording:
    """Draw samples, and count what their layers take in each mode.

    Parameters
    ----------
    proto, model
        The model as read from its file, and imported.
    config
        The device; its memories grow where the model needs it.
    setting
        How samples are drawn.
    samples, seed
        Number of samples, and the seed of their noise.
    on_progress
        Called after each step.
    """
    fitted = fitting(model, config)
    traced = Traced(proto, model)
    program = Program(model.layers, model.shapes(), fitted)
    operands = {product.name: product.operands for product in traced.products}
    placements = tuple(p for p in program.layers if p.layer.name in operands)
    if not placements:
        raise ModelError(f"{model.name} has no layer whose input is quantized in its graph")
    counters = [
        ProductCosts(p, fitted) if isinstance(p.layer, Product) else LayerCosts(p, fitted)
        for p in placements
    ]
    shape = (2, len(placements), setting.steps, samples)
    found: dict[ModeName, NDArray[np.int64]] = {mode: np.zeros(shape, np.int64) for mode in MODES}
    batch = samples if traced.batch is None else 1

    for first in range(0, samples, batch):
        own = range(first, min(first + batch, samples))

        def on_step(step: Step, own: range = own) -> None:
            at = slice(own.start, own.stop)
            for index, (placement, counter) in enumerate(zip(placements, counters, strict=True)):
                now, changes = [], []
                for operand in operands[placement.layer.name]:
                    tensor = traced.tensors[operand]
                    # Where the model has no axis of samples, values have one more.
                    one = (-1, *tensor.shape[tensor.shape[0] == 1 :])
                    values = step.values[operand].astype(np.int16).reshape(one)
                    now.append(values - np.int16(tensor.zero_point))
                    if step.before is not None:
                        changes.append(values - step.before[operand].reshape(one))
                if isinstance(counter, ProductCosts):
                    dense = spatial = temporal = counter.dense(*now)
                    if changes:
                        temporal = counter.changes(*changes)
                else:
                    dense = temporal = counter.count(now[0])
                    if changes:
                        temporal = counter.count(changes[0])
                    spatial = counter.spatial(now[0]) if counter.may_be_spatial else dense
                for mode, counts in zip(MODES, (dense, temporal, spatial), strict=True):
                    found[mode][:, index, step.step, at] = counts
            if on_progress is not None:
                done = own.start * setting.steps + (step.step + 1) * len(own)
                on_progress(done, setting.steps * samples, setting.sampler)

        schedule = Schedule.from_metadata(model.metadata)
        sampler = setting.make(schedule)
        traced.run(sampler, own, seed=seed, classes=schedule.classes, on_step=on_step)
    cycles: dict[ModeName, NDArray[np.int64]] = {mode: found[mode][0] for mode in MODES}
    digits: dict[ModeName, NDArray[np.int64]] = {mode: found[mode][1] for mode in MODES}
    return Recording(placements, fitted, cycles, digits)


@dataclass
class Replay:
    """What a policy makes of a recording; arrays of shape (layers, steps, samples)."""

    modes: NDArray[np.int8]
    cycles: NDArray[np.int64]
    stalls: NDArray[np.int64]
    traffic: Traffic

    @property
    def total(self) -> int:
        """All cycles."""
        return int(self.cycles.sum() + self.stalls.sum())


def replay(recording: Recording, costs: Sequence[LayerCost], make: MakePolicy) -> Replay:
    """Let a policy choose, and count what its choices take.

    Parameters
    ----------
    recording
        What each mode takes.
    costs
        Of each layer.
    make
        Makes the policy of a sample.
    """
    shape = recording.cycles["dense"].shape
    result = Replay(
        np.zeros(shape, np.int8), np.zeros(shape, np.int64), np.zeros(shape, np.int64), Traffic()
    )
    moved: dict[tuple[int, Choice], int] = {}
    is_product = [isinstance(placement.layer, Product) for placement in recording.placements]
    for sample in range(shape[2]):
        policy = make(sample)
        for layer, cost in enumerate(costs):
            has_state = False
            for step in range(shape[1]):
                at = layer, step, sample
                choice = policy.choose(layer, has_state)
                if choice.mode == "temporal" and not has_state:
                    raise ValueError(f"layer {layer} holds no state in step {step}")
                is_counted = has_state and (choice.mode == "temporal" or choice.watch)
                cycles = int(recording.cycles[choice.mode][at])
                if is_product[layer] and cycles > recording.cycles["dense"][at]:
                    # The host has both operands, and takes what is shorter.
                    choice = choice._replace(mode="dense")
                    cycles = int(recording.cycles["dense"][at])
                digits: dict[ModeName, int] = {
                    mode: int(counts[at])
                    for mode, counts in recording.digits.items()
                    if mode != "temporal" or is_counted
                }
                policy.observe(layer, Observation(choice.mode, cycles, digits))
                result.modes[at] = MODES.index(choice.mode)
                result.cycles[at] = cycles
                result.stalls[at] = cost.stall(choice, cycles)
                moved[layer, choice] = moved.get((layer, choice), 0) + 1
                has_state = choice.keep
    for (layer, choice), count in moved.items():
        one = costs[layer].traffic(choice)
        result.traffic += Traffic(*(count * part for part in one))
    return result


class _Table:
    """The table of decisions of a device, with the adaptive rule for all layers.

    Parameters
    ----------
    costs
        Of each layer.
    products
        The host's policy for layers that the table does not know.
    """

    def __init__(self, costs: Sequence[LayerCost], products: Policy) -> None:
        self._products = products
        self._is_product = [cost.is_product for cost in costs]
        self._decisions = Decisions(len(costs))
        self._had_state: dict[int, bool] = {}
        for layer, cost in enumerate(costs):
            word = pack(Decision, rule=Rule.ADAPTIVE, spatial=int("spatial" in cost.rests))
            self._decisions.write(DECISION_WORDS * layer, [int.from_bytes(word, "little")])

    def choose(self, layer: int, has_state: bool) -> Choice:
        """Choose before a run."""
        if self._is_product[layer]:
            return self._products.choose(layer, has_state)
        self._had_state[layer] = has_state
        mode = self._decisions.mode(layer, has_state)
        # The device keeps the state in any case, and counts the digits of all modes.
        return Choice(cast(ModeName, mode.name.lower()), keep=True, watch=has_state)

    def observe(self, layer: int, seen: Observation) -> None:
        """Take note of what a run took."""
        if self._is_product[layer]:
            self._products.observe(layer, seen)
            return
        counts = {f"digits_{mode}": digits for mode, digits in seen.digits.items()}
        counters = Counters(cycles=seen.cycles, mode=Mode[seen.mode.upper()].value, **counts)
        self._decisions.learn(layer, counters, had_state=self._had_state[layer], decides=True)


def player(name: str, recording: Recording, costs: Sequence[LayerCost]) -> MakePolicy:
    """Return what makes a policy for the samples of a recording.

    Parameters
    ----------
    name
        One of :data:`PLAYERS`.
    recording, costs
        As for :func:`replay`.
    """

    def oracle(sample: int) -> Planned:
        choices: list[list[Choice]] = []
        for layer, cost in enumerate(costs):
            modes: tuple[ModeName, ...] = ("temporal", *cost.rests)
            cycles: dict[ModeName, NDArray[np.int64]] = {
                mode: recording.cycles[mode][layer, :, sample] for mode in modes
            }
            choices.append(plan(cost, cycles))
        return Planned(choices)

    if name == "oracle":
        return oracle
    if name == "table":
        return lambda sample: _Table(costs, Adaptive(costs))
    if name == "spatial":
        return lambda sample: Resting(costs)
    return policy_of(name, costs)


def saved(proto: onnx.ModelProto, model: Model, config: Config) -> dict[str, Any]:
    """Return what the static pass over a model's graph saves, as plain values for JSON.

    Parameters
    ----------
    proto, model
        The model as read from its file, and imported.
    config
        Gives the width of an accumulator.

    Returns
    -------
    dict
        ``tensors``: how many quantized tensors there are, and how many of them are shared by
        several layers, moved, recomputed or forwarded, see :mod:`ditto.host.flow`; ``unsummed``:
        layers whose sum the published scheme would not need; ``traffic``: bytes of a step without
        differences and, as ratios to them, of temporal steps.
    """
    traced, flows = Traced(proto, model), FlowGraph(proto)
    readers = Counter(index for product in traced.products for index in product.operands)
    own = [flows.tensors[t.name] for t in traced.tensors if t.name in flows.tensors]
    moved = traffic(
        flows,
        traced.products,
        traced.tensors,
        accumulator_bytes=-(-config.accumulator_bits // 8),
    )
    plain = moved.pop("plain").total
    return {
        "layers": len(traced.products),
        "tensors": {
            "all": len(traced.tensors),
            "shared": sum(count > 1 for count in readers.values()),
            "moved": sum(bool(flow.moved) for flow in own),
            "recomputed": sum(bool(flow.recomputed) for flow in own),
            "forwarded": sum(bool(flow.forwarded) for flow in own),
        },
        "unsummed": sum(product.output in flows.unsummed for product in traced.products),
        "traffic": {"plain": plain} | {k: own.total / plain for k, own in moved.items()},
    }


def compare(recording: Recording, memory: Memory) -> dict[str, dict[str, Any]]:
    """Return what each policy takes for a step of a sample.

    Parameters
    ----------
    recording
        What each mode takes.
    memory
        What is behind the device's buffers.

    Returns
    -------
    dict
        For each policy, plain values for JSON: ``cycles`` of the array and ``stall_memory``, in
        cycles for a step; ``traffic`` in bytes for a step, and its ``traffic_ratio`` to that of
        dense runs; ``agreement``, the share of runs after the first step with the mode that the
        oracle has in it; ``to_oracle`` and ``to_fixed``, the ratios of all cycles to those of the
        oracle and of the best of dense, temporal and spatial; and the shares of the modes.
    """
    costs = [LayerCost(placement, recording.config, memory) for placement in recording.placements]
    replays = {
        name: replay(recording, costs, player(name, recording, costs))
        for name in PLAYERS
        if name != "table" or not memory.holds
    }
    steps, samples = recording.cycles["dense"].shape[1:]
    count = steps * samples
    fixed = min(replays[mode].total for mode in MODES)
    oracle = replays["oracle"]
    result = {}
    for name, own in replays.items():
        later = own.modes[:, 1:] == oracle.modes[:, 1:]
        result[name] = {
            "cycles": float(own.cycles.sum() / count),
            "stall_memory": float(own.stalls.sum() / count),
            "traffic": own.traffic.total / count,
            "traffic_parts": {k: v / count for k, v in own.traffic._asdict().items()},
            "traffic_ratio": own.traffic.total / replays["dense"].traffic.total,
            "agreement": float(later.mean()) if later.size else 1.0,
            "to_oracle": own.total / max(oracle.total, 1),
            "to_fixed": own.total / max(fixed, 1),
            "modes": {
                mode: float((own.modes == i).mean())
                for i, mode in enumerate(MODES)
                if (own.modes == i).any()
            },
        }
    return result
