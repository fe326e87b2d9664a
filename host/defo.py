"""Which mode each layer runs in, in each step.

A policy chooses before a run, from what earlier runs measured; nothing else is known to it. Only
the choice differs between policies: the sums are exact in any mode.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.hdl.protocol import DECISION_WORDS, Decision, Rule, pack
from ditto.host.costs import LayerCosts, count_items
from ditto.host.layers import Linear, Product
from ditto.host.program import Placement, Program
from ditto.sim.golden import Golden
from ditto.sim.memory import Memory, Traffic
from ditto.sim.spatial import spatial

__all__ = [
    "POLICIES",
    "Adaptive",
    "Choice",
    "Fixed",
    "LayerCost",
    "MakePolicy",
    "ModeName",
    "Observation",
    "Planned",
    "Resting",
    "Policy",
    "RunTime",
    "Tabled",
    "costs_of",
    "count_digits",
    "plan",
    "policy_of",
]

ModeName = Literal["dense", "temporal", "spatial"]
"""A mode of a run."""

POLICIES = ("dense", "temporal", "defo", "defo+", "adaptive", "oracle")
"""Names of the policies, see :func:`policy_of`; ``oracle`` is made by :func:`plan`."""


class Choice(NamedTuple):
    """How a layer runs."""

    mode: ModeName
    #: Whether inputs and accumulators are kept, so that the next run can be temporal.
    keep: bool = True
    #: Whether a run in another mode counts the temporal digits, which takes the previous inputs.
    watch: bool = False


class Observation(NamedTuple):
    """What is known of a layer after a run."""

    mode: ModeName
    #: Of the array, without waiting for the memory.
    cycles: int
    #: Nonzero digits of the run's inputs in each mode in which they could be counted.
    digits: Mapping[ModeName, int]


class Policy(Protocol):
    """Chooses the modes of all layers, for one sample."""

    def choose(self, layer: int, has_state: bool) -> Choice:
        """Choose before a run.

        Parameters
        ----------
        layer
            Index of the layer.
        has_state
            Whether the run before kept its state; without it, the run must not be temporal.
        """
        ...

    def observe(self, layer: int, seen: Observation) -> None:
        """Take note of what a run took."""
        ...


MakePolicy = Callable[[int], Policy]
"""Makes the policy of a sample, from its number."""


class LayerCost:
    """What runs of a layer cost besides the array's cycles.

    Parameters
    ----------
    placement
        The layer on the device.
    config
        The device.
    memory
        What is behind its buffers.

    Attributes
    ----------
    is_product : bool
        Whether the layer is a product of two activations.
    rests : tuple of ModeName
        Modes of runs without state: first spatial, where the layer can be, then dense.
    floor, ceiling : int
        Cycles of a run without a digit, the fewest that there can be; and of one in which every
        input has a digit of each shift, which is about the most.
    """

    def __init__(self, placement: Placement, config: Config, memory: Memory) -> None:
        layer = placement.layer
        self.memory = memory
        self.is_product = isinstance(layer, Product)
        self.rests: tuple[ModeName, ...] = ("dense",)
        if placement.may_be_spatial:
            self.rests = ("spatial", "dense")
        self._transfers: dict[Choice, int] = {}
        full = sum(1 << shift * config.digit_bits for shift in range(config.shifts))
        byte, sum_bytes = -(-config.activation_bits // 8), -(-config.accumulator_bits // 8)
        if isinstance(layer, Product):
            # One operand is written as weights; the sums of both are kept.
            heads, rows, inner, columns = layer.sizes(placement.shape)
            self._inputs = heads * inner * (rows + columns) * byte
            self._weights = 0
            self._outputs = heads * rows * columns
            self._accumulators = self._outputs * sum_bytes * (1 if layer.fixed else 2)
            # Without a change there is no run.
            self.floor = 0
            self.ceiling = sum(
                Golden(config)
                .count(band.entry, np.full((band.entry["positions"], inner), full))
                .cycles
                for head in range(heads)
                for band in placement.of_product(head, 0).bands
            )
            return
        rows, columns = layer.output_image(layer.image(placement.shape))
        self._inputs = int(np.prod(placement.shape)) * byte
        self._weights = layer.weights.size * -(-config.weight_bits // 8)
        self._outputs = rows * columns * layer.outputs
        self._accumulators = self._outputs * sum_bytes
        own = placement.shape[1:] if layer.kind == "conv" else placement.shape
        extremes = np.array([0, full], np.int16).reshape(2, *(1 for _ in own))
        inputs = np.broadcast_to(extremes, (2, *own))
        self.floor, self.ceiling = LayerCosts(placement, config).cycles(inputs).tolist()

    def traffic(self, choice: Choice) -> Traffic:
        """Return what a run moves."""
        is_temporal = choice.mode == "temporal"
        return Traffic(
            inputs=self._inputs,
            weights=self._weights,
            outputs=self._outputs,
            previous_inputs_read=self._inputs * (is_temporal or choice.watch),
            previous_inputs_written=self._inputs * choice.keep,
            accumulators_read=self._accumulators * is_temporal,
            accumulators_written=self._accumulators * choice.keep,
        )

    def stall(self, choice: Choice, cycles: Any) -> Any:
        """Return the cycles in which a run, or each of an array of runs, waits for the memory."""
        transfers = self._transfers.get(choice)
        if transfers is None:
            transfers = self._transfers[choice] = self.memory.cycles(self.traffic(choice))
        return self.memory.stall(cycles, transfers)

    def total(self, choice: Choice, cycles: Any) -> Any:
        """Return the cycles of a run, or of each of an array, with the wait for the memory."""
        return cycles + self.stall(choice, cycles)


def count_digits(
    placement: Placement, config: Config, deltas: Mapping[ModeName, NDArray[np.int64]]
) -> dict[ModeName, int]:
    """Return the nonzero digits of a layer's input in each mode, as the device's encoder gets them.

    The host, which has the inputs and the references, counts them for all modes; a device that does
    not take differences itself counts those of the mode that it runs.

    Parameters
    ----------
    placement
        The layer on the device.
    config
        The device.
    deltas
        Those of dense runs and maybe of temporal ones: (positions, channels).
    """
    counts: dict[ModeName, int] = dict.fromkeys(deltas, 0)
    if placement.may_be_spatial:
        counts["spatial"] = 0
    for part in placement.parts:
        work: dict[ModeName, NDArray[Any]] = {}
        for mode, values in deltas.items():
            work[mode] = part.lowered.deltas(values)
        for band in part.bands:
            for mode, values in work.items():
                counts[mode] += count_items(values[band.inputs], config)
            if "spatial" in counts:
                own = spatial(work["dense"][band.inputs], band.entry)
                counts["spatial"] += count_items(own, config)
    return counts


def costs_of(program: Program, memory: Memory) -> tuple[LayerCost, ...]:
    """Return the costs of all layers of a program."""
    return tuple(LayerCost(placement, program.config, memory) for placement in program.layers)


class Fixed:
    """The same mode in every step.

    Parameters
    ----------
    mode
        The mode. Temporal runs begin with a dense one.
    """

    def __init__(self, mode: ModeName) -> None:
        self._choice = Choice(mode, keep=mode == "temporal")
        self._first = self._choice if mode != "temporal" else Choice("dense")

    def choose(self, layer: int, has_state: bool) -> Choice:
        """Choose before a run."""
        return self._choice if has_state else self._first

    def observe(self, layer: int, seen: Observation) -> None:
        """Do nothing."""


class Resting:
    """No run keeps its state: spatial where a layer can be, dense otherwise.

    Parameters
    ----------
    costs
        Of each layer.
    """

    def __init__(self, costs: Sequence[LayerCost]) -> None:
        self._choices = [Choice(cost.rests[0], keep=False) for cost in costs]

    def choose(self, layer: int, has_state: bool) -> Choice:
        """Choose before a run."""
        return self._choices[layer]

    def observe(self, layer: int, seen: Observation) -> None:
        """Do nothing."""


class RunTime:
    """Run-time Defo as published (Kim et al., 2025).

    A layer is dense in its first step, or spatial in Defo+, and temporal in its second. What took
    fewer measured cycles, waits for the memory included, is kept until the end of the sample.

    Parameters
    ----------
    costs
        Of each layer.
    plus
        Whether layers without state are spatial, where they can be: Defo+.
    """

    def __init__(self, costs: Sequence[LayerCost], *, plus: bool = False) -> None:
        self._costs = costs
        self._rests = [Choice(c.rests[0] if plus else "dense", keep=False) for c in costs]
        self._begun: dict[int, int] = {}
        self._decided: dict[int, Choice] = {}

    def choose(self, layer: int, has_state: bool) -> Choice:
        """Choose before a run."""
        decided = self._decided.get(layer)
        if decided is not None:
            return decided
        return Choice("temporal") if has_state else self._rests[layer]._replace(keep=True)

    def observe(self, layer: int, seen: Observation) -> None:
        """Take note of what a run took."""
        if layer in self._decided:
            return
        if layer not in self._begun:
            self._begun[layer] = seen.cycles
            return
        cost, temporal, rest = self._costs[layer], Choice("temporal"), self._rests[layer]
        pays = cost.total(temporal, seen.cycles) < cost.total(rest, self._begun[layer])
        self._decided[layer] = temporal if pays else rest


_Rhythm = Literal["temporal", "rest", "alternate"]
"""All runs temporal; none; or every second one: a long run has time to write the state that a
short one reads, and the short one leaves none."""


@dataclass
class _Adapting:
    """What :class:`Adaptive` knows of a layer."""

    #: Runs until the temporal mode is looked at again, and how many the next pause takes.
    wait: int
    pause: int
    #: The mode of runs that are not temporal.
    rest: ModeName
    rhythm: _Rhythm = "temporal"
    #: Cycles for a digit, as measured in the last run of each mode; and in any mode.
    rates: dict[ModeName, float] = field(default_factory=dict)
    rate: float = 0.0
    #: Whether the next run, if all are at rest, keeps its state and counts temporal digits.
    looks: bool = True


class Adaptive:
    """Decides again after every run, from exact counts of digits and the cost of memory.

    The cycles of a run follow its digits, at a rate that the runs themselves measure. From what the
    last inputs would have taken in each mode, waits for the memory included, follows whether the
    next runs are temporal, none of them, or every second one; a change must save at least
    ``margin``.

    The first run is spatial where it can be, which takes fewer cycles than a dense one more often
    than not. Without state there are no temporal digits to count. Where keeping it costs time, a
    layer at rest looks at them again after ``pause`` runs, then after twice as many, and so on; and
    never while even a run without a digit would take longer.

    Parameters
    ----------
    costs
        Of each layer.
    margin
        Least share of a run's cycles that a change must save.
    pause
        Runs before a layer at rest looks at temporal digits for the first time.
    """

    def __init__(
        self,
        costs: Sequence[LayerCost],
        *,
        margin: float = 0.01,
        pause: int = 4,
    ) -> None:
        self._costs = costs
        self._margin = margin
        self._layers = [_Adapting(wait=pause, pause=pause, rest=cost.rests[0]) for cost in costs]

    def choose(self, layer: int, has_state: bool) -> Choice:
        """Choose before a run."""
        known = self._layers[layer]
        if known.rhythm == "rest":
            return Choice(known.rest, keep=known.looks, watch=known.looks and has_state)
        if has_state:
            return Choice("temporal", keep=known.rhythm == "temporal")
        return Choice(known.rest, keep=bool(known.rates) or self._could_pay(self._costs[layer]))

    def _could_pay(self, cost: LayerCost) -> bool:
        """Whether temporal runs could be worth their state, for any inputs."""
        first = cost.rests[0]
        means = _means(cost, {"temporal": cost.floor, first: cost.ceiling}, first)
        return min(means, key=lambda rhythm: means[rhythm]) != "rest"

    def observe(self, layer: int, seen: Observation) -> None:
        """Take note of what a run took."""
        known, cost = self._layers[layer], self._costs[layer]
        has_looked = "temporal" in seen.digits
        is_first = not known.rates
        own = seen.digits[seen.mode]
        if own and seen.cycles > cost.floor:
            known.rate = seen.cycles / own
        known.rates[seen.mode] = known.rate

        cycles: dict[ModeName, int] = {}
        for mode in (*cost.rests, "temporal"):
            # Without a count, the best that it could be.
            guess = round(known.rates.get(mode, known.rate) * seen.digits.get(mode, 0))
            cycles[mode] = seen.cycles if mode == seen.mode else max(guess, cost.floor)
        at_rest = {mode: cost.total(Choice(mode, keep=False), cycles[mode]) for mode in cost.rests}
        rest = min(cost.rests, key=lambda mode: at_rest[mode])
        if at_rest[rest] < (1 - self._margin) * at_rest[known.rest]:
            known.rest = rest
        means = _means(cost, cycles, known.rest)
        best = min(means, key=lambda rhythm: means[rhythm])
        if has_looked or is_first:
            if means[best] < (1 - self._margin) * means[known.rhythm]:
                known.rhythm = best
        if known.rhythm != "rest":
            return
        looking = Choice(known.rest, keep=True, watch=True)
        if cost.total(looking, cycles[known.rest]) == means["rest"]:
            known.looks = True
            return
        if has_looked:
            known.wait, known.pause = known.pause, 2 * known.pause
        else:
            known.wait -= 1
        known.looks = known.wait <= 0 and best != "rest"


def _means(cost: LayerCost, cycles: Mapping[ModeName, int], rest: ModeName) -> dict[_Rhythm, float]:
    """Return the cycles of a run in each rhythm, waits included, from those of the array."""

    def total(mode: ModeName, keep: bool) -> float:
        return cost.total(Choice(mode, keep), cycles[mode])

    return {
        "temporal": total("temporal", keep=True),
        "rest": total(rest, keep=False),
        "alternate": (total(rest, keep=True) + total("temporal", keep=False)) / 2,
    }


class Planned:
    """Modes that are known beforehand.

    Parameters
    ----------
    choices
        For each layer, the choice of each of its runs.
    """

    def __init__(self, choices: Sequence[Sequence[Choice]]) -> None:
        self._left = [list(reversed(own)) for own in choices]

    def choose(self, layer: int, has_state: bool) -> Choice:
        """Choose before a run."""
        return self._left[layer].pop()

    def observe(self, layer: int, seen: Observation) -> None:
        """Do nothing."""


def plan(cost: LayerCost, cycles: Mapping[ModeName, NDArray[np.int64]]) -> list[Choice]:
    """Return the choices that take a layer through a sample in the fewest cycles: the oracle's.

    Parameters
    ----------
    cost
        Of the layer.
    cycles
        For each mode, the cycles of every run in it; those of the first run in temporal mode are
        ignored.
    """
    choices = [Choice(mode, keep) for mode in cycles for keep in (False, True)]
    totals = np.array([cost.total(c, np.asarray(cycles[c.mode], np.int64)) for c in choices])
    stateful = np.array([choice.mode == "temporal" for choice in choices])
    keeps = np.array([choice.keep for choice in choices])
    steps = totals.shape[1]
    # What the rest of the sample takes, from a run without and with state on.
    rest = np.zeros(2)
    best = np.empty((steps, 2), int)
    for step in reversed(range(steps)):
        after = totals[:, step] + np.where(keeps, rest[1], rest[0])
        for state in (0, 1):
            possible = after if state else np.where(stateful, np.inf, after)
            best[step, state] = possible.argmin()
        rest = np.array([after[best[step, 0]], after[best[step, 1]]])
    result = []
    state = 0
    for step in range(steps):
        result.append(choices[best[step, state]])
        state = int(result[-1].keep)
    return result


_RULES = {"defo": Rule.DEFO, "defo+": Rule.DEFO, "adaptive": Rule.ADAPTIVE}


class Tabled:
    """Modes that the device's table of decisions chooses, see :class:`ditto.hdl.protocol.Rule`.

    It decides for layers with constant weights; for products of two activations, the host does.

    Parameters
    ----------
    name
        A policy that the table knows: ``defo``, ``defo+`` or ``adaptive``.
    products
        The policy of the products.
    """

    def __init__(self, name: str, products: Policy) -> None:
        self._rule, self._may_be_spatial = _RULES[name], name != "defo"
        self._products = products

    def words(self, program: Program) -> list[int]:
        """Return the table at the beginning of a sample."""
        words = [0] * (DECISION_WORDS * program.decisions)
        for placement in program.layers:
            if not isinstance(placement.layer, Linear):
                continue
            may_be_spatial = self._may_be_spatial and placement.may_be_spatial
            word = pack(Decision, rule=self._rule, spatial=int(may_be_spatial))
            for bands in placement.parts[0].states:
                words[DECISION_WORDS * bands[0].entry["decision"]] = int.from_bytes(word, "little")
        return words

    def choose(self, layer: int, has_state: bool) -> Choice:
        """Choose before a run of a product."""
        return self._products.choose(layer, has_state)

    def observe(self, layer: int, seen: Observation) -> None:
        """Take note of what a run took."""
        self._products.observe(layer, seen)


def policy_of(name: str, costs: Sequence[LayerCost], *, has_table: bool = False) -> MakePolicy:
    """Return what makes a policy of :data:`POLICIES`.

    With ``has_table``, the device's table of decisions carries out those that it knows: for a
    device that has one, with all memory on the chip.

    ``oracle`` has to know the sample beforehand: see :func:`plan` and
    :func:`ditto.host.session.foresee`.

    Raises
    ------
    ValueError
        If there is no such policy.
    """
    if has_table and name in _RULES:
        products = policy_of(name, costs)
        return lambda sample: Tabled(name, products(sample))
    if name in ("dense", "temporal"):
        return lambda sample: Fixed(cast(ModeName, name))
    if name in ("defo", "defo+"):
        return lambda sample: RunTime(costs, plus=name == "defo+")
    if name == "adaptive":
        return lambda sample: Adaptive(costs)
    raise ValueError(f"no policy is called {name}; there are {', '.join(POLICIES)}")
