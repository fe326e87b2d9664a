"""Runs the layers of a model on a device: quantizes, takes differences, checks, counts."""

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.protocol import Counters, Mode
from ditto.host.costs import count_items
from ditto.host.defo import (
    Choice,
    Fixed,
    ModeName,
    Observation,
    Policy,
    Tabled,
    costs_of,
    count_digits,
)
from ditto.host.device import Accelerator, word_bytes
from ditto.host.layers import Linear, Product
from ditto.host.model import Model, ModelError
from ditto.host.narrow import narrow_activation, times
from ditto.host.program import Band, Part, Placement, Program
from ditto.sim.golden import Golden, wrap
from ditto.sim.memory import MEMORIES, Memory, Traffic
from ditto.sim.spatial import spatial

__all__ = ["Executor", "LayerRun", "MismatchError", "Stopped"]


class MismatchError(Exception):
    """A device that computes or counts something else than the golden model.

    Parameters
    ----------
    step
        Step of the sample.
    layer
        Name of the layer.
    element
        What differs: an index of the layer's output, or the name of a counter.
    got, want
        The device's value and the golden model's.
    """

    def __init__(self, step: int, layer: str, element: str, got: int, want: int) -> None:
        self.step, self.layer, self.element = step, layer, element
        self.got, self.want = got, want
        super().__init__(
            f"step {step}, layer {layer}, {element}: got {got} from the device, "
            f"want {want} (golden model)"
        )


class Stopped(Exception):
    """The run was told to stop."""


class LayerRun(NamedTuple):
    """What one layer took in one step."""

    step: int
    #: Index of the layer in the model.
    layer: int
    mode: Mode
    #: Sum over the bands of the layer.
    counters: Counters
    #: Cycles that the same activations would have taken in dense mode.
    dense_cycles: int
    #: Products of a nonzero digit with a weight of a real output channel.
    products: int
    #: Nonzero digits of the input in each mode in which they could be counted.
    digits: Mapping[ModeName, int] = MappingProxyType({})
    #: What the run moves between the buffers and what is behind them.
    traffic: Traffic = Traffic()
    #: Cycles in which the array waits for the memory, by the model of :mod:`ditto.sim.memory`.
    stall_memory: int = 0
    #: Bytes of activations that were written as weights.
    weight_bytes: int = 0


class _Taken(NamedTuple):
    """What some runs took; see :class:`LayerRun`."""

    counters: Counters = Counters()
    products: int = 0
    weight_bytes: int = 0

    def plus(self, other: "_Taken") -> "_Taken":
        """Add up."""
        return _Taken(
            self.counters + other.counters,
            self.products + other.products,
            self.weight_bytes + other.weight_bytes,
        )


class _Run(NamedTuple):
    """A run of one head of a product."""

    head: int
    #: 0 if the items are the left operand and the weights the right one, 1 the other way round.
    side: int
    mode: Mode
    #: Of shape (rows, inner size) or, of the right operand, (columns, inner size).
    deltas: NDArray[np.int64]
    #: The other operand, of shape (inner size, columns) or (inner size, rows).
    weights: NDArray[np.int64]


class _ProductState:
    """What the accumulators of a product stand for.

    The product is the sum of two: ``sums[0]``, to which differences of the left operand were
    added, and the transpose of ``sums[1]``, to which those of the right one were.

    Parameters
    ----------
    left, right
        The quantized operands, of shapes (heads, rows, inner size) and (heads, inner size,
        columns).
    """

    def __init__(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        heads, rows, _ = left.shape
        columns = right.shape[2]
        self.left, self.right = left, right
        self.sums = [
            np.zeros((heads, rows, columns), np.int64),
            np.zeros((heads, columns, rows), np.int64),
        ]
        #: Whether the device's accumulators hold the sums; otherwise the next run begins at zero.
        self.filled = np.zeros((heads, 2), bool)
        #: What the device's weights, which are narrower than the operands, leave out.
        self.rest = np.zeros((heads, rows, columns), np.int64)


@dataclass
class _State:
    """What the accumulators of every layer stand for, in one of a program's states."""

    #: The quantized input of each layer with constant weights, where the host needs it.
    references: list[NDArray[np.int64] | None]
    #: Whether the accumulators of such a layer stand for its last input.
    held: list[bool]
    products: list[_ProductState | None]
    policy: Policy
    step: int = -1


class Executor:
    """Evaluates a model with its layers on a device.

    Parameters
    ----------
    model
        The model.
    program
        Its layers, placed on the device.
    device
        The device. The program is loaded into it.
    mode
        What the steps of a sample after the first start from, where no policy chooses. A product of
        two activations takes two runs by differences; where a dense one takes fewer cycles, it is
        dense all the same.
    check
        Run the golden model beside the device, and compare all accumulators and all counters but
        ``stall_link``.
    stop
        Tells the executor to raise :class:`Stopped` at the next layer.
    tau
        Differences of at most this magnitude are not applied, and stay in the residual: the next
        difference is taken from what the accumulators stand for. 0 is exact.
    memory
        What is behind the device's buffers.

    Attributes
    ----------
    runs : list of LayerRun
        Everything that ran, in order, until the caller clears it.
    """

    def __init__(
        self,
        model: Model,
        program: Program,
        device: Accelerator,
        *,
        mode: Mode = Mode.TEMPORAL,
        check: bool = False,
        stop: threading.Event | None = None,
        tau: int = 0,
        memory: Memory = MEMORIES["chip"],
    ) -> None:
        if tau < 0:
            raise ValueError(f"tau must be at least 0, not {tau}")
        self.model = model
        self.program = program
        self.device = device
        self.mode = mode
        self.tau = tau
        self.costs = costs_of(program, memory)
        self.runs: list[LayerRun] = []
        self._stop = stop or threading.Event()
        self._model_device = Golden(program.config)
        self._golden = Golden(program.config) if check else None
        #: Weights that stay in the device from run to run, by their first row.
        self._kept: dict[int, NDArray[np.int64]] = {}
        #: Whether the device takes the differences of layers with constant weights.
        self._takes_inputs = program.config.reference_depth > 0
        for target in self._devices():
            program.load(target, tau)
        self.begin()

    def begin(self, policy: Policy | None = None) -> None:
        """Begin a new sample: its first step is dense.

        Parameters
        ----------
        policy
            Chooses the modes; :attr:`mode` in all further steps if absent.
        """
        policy = policy or Fixed("dense" if self.mode is Mode.DENSE else "temporal")
        self.device.reset()
        if self._golden is not None:
            self._golden.reset()
        count = len(self.program.layers)
        self._states = [
            _State(
                [None] * count,
                [False] * count,
                [None] * count,
                copy.deepcopy(policy) if state else policy,
            )
            for state in range(self.program.states)
        ]
        if isinstance(policy, Tabled):
            words = policy.words(self.program)
            for device in self._devices():
                device.write_decisions(0, words)
        self._select(0)

    def enter(self, model: Model, program: Program) -> None:
        """Go on with other scales. What is kept does not fit them, so the next step is dense.

        Parameters
        ----------
        model, program
            The same model and places with other scales.
        """
        self.model, self.program = model, program
        for state in self._states:
            state.references = [None] * len(state.references)
            state.held = [False] * len(state.held)
            state.products = [None] * len(state.products)
        self._select(self._state)
        if self._takes_inputs:
            for device in self._devices():
                program.write_table(device, self.tau)

    def skip(self, steps: int) -> None:
        """Count steps that the sample has behind it; the next one is dense all the same."""
        for state in self._states:
            state.step += steps

    def step(self, inputs: Mapping[str, NDArray[Any]], state: int = 0) -> list[NDArray[Any]]:
        """Evaluate the model for the next step of the sample.

        Parameters
        ----------
        inputs
            One array for each input of the model.
        state
            Which of the program's states to go on with.

        Returns
        -------
        list of arrays
            The outputs of the model.

        Raises
        ------
        MismatchError
            If the device differs from the golden model, and ``check`` is on.
        Stopped
            If the run was told to stop.
        """
        self._select(state)
        self._states[state].step += 1
        return self.model.run(inputs, self.evaluate)

    def _select(self, state: int) -> None:
        """Go on with a state."""
        self._state = state
        self._references = self._states[state].references
        self._held = self._states[state].held
        self._products = self._states[state].products
        self._policy = self._states[state].policy

    def evaluate(self, index: int, *operands: NDArray[np.float32]) -> NDArray[np.float32]:
        """Evaluate a layer on its float operands."""
        if self._stop.is_set():
            raise Stopped
        placement = self.program.layers[index]
        layer = placement.layer
        shapes: Any = tuple(x.shape for x in operands)
        shapes = shapes[0] if isinstance(layer, Linear) else shapes
        if shapes != placement.shape:
            raise ModelError(
                f"layer {layer.name} was placed for inputs of shape {placement.shape}, "
                f"and now gets {shapes}"
            )
        if isinstance(layer, Product):
            return layer.dequantize(self._product(index, layer, *operands), shapes)
        return layer.dequantize(self._linear(index, layer, *operands), shapes)

    def _linear(self, index: int, layer: Linear, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the accumulators of a layer with constant weights: (positions, outputs)."""
        placement = self.program.layers[index]
        q = layer.quantize(x)
        if self._takes_inputs:
            return self._by_inputs(index, layer, q)
        reference = self._references[index]
        choice = self._policy.choose(index, reference is not None)
        deltas: dict[ModeName, NDArray[np.int64]] = {"dense": q - layer.zero_point}
        if reference is not None and (choice.mode == "temporal" or choice.watch):
            deltas["temporal"] = self._applied(q - reference)
            if choice.mode == "temporal":
                q = reference + deltas["temporal"]
        if choice.mode == "spatial" and not placement.may_be_spatial:
            raise ValueError(f"layer {layer.name} cannot be spatial on this device")
        if choice.mode == "temporal" and "temporal" not in deltas:
            raise ValueError(f"layer {layer.name} holds no state to be {choice.mode}")
        mode = Mode[choice.mode.upper()]

        # If the link fails in the middle, nobody knows what the accumulators stand for.
        self._references[index] = None
        sums, taken, dense_cycles = self._parts(
            placement, mode, deltas.get(choice.mode, deltas["dense"]), deltas["dense"]
        )
        self._references[index] = q if choice.keep else None
        digits = count_digits(placement, self.program.config, deltas)
        self._note(index, choice, taken, dense_cycles, digits)
        if placement.rest is not None:
            sums = sums + placement.rest.sums(q - layer.zero_point)
        return sums

    def _by_inputs(self, index: int, layer: Linear, q: NDArray[np.int64]) -> NDArray[np.int64]:
        """Do the same on a device that takes differences itself, and may choose the mode."""
        placement = self.program.layers[index]
        held = self._held[index]
        choice = self._policy.choose(index, held)
        is_auto = isinstance(self._policy, Tabled)
        mode = Mode.AUTO if is_auto else Mode[choice.mode.upper()]
        dense = q - layer.zero_point

        self._held[index] = False
        sums, taken, dense_cycles = self._parts(placement, mode, dense, dense)
        counters = taken.counters
        name = cast(ModeName, Mode(counters.mode).name.lower())
        choice = Choice(name) if is_auto else choice
        self._held[index] = choice.keep
        digits: dict[ModeName, int] = {"dense": counters.digits_dense}
        if held or name == "temporal":
            digits["temporal"] = counters.digits_temporal
        if placement.may_be_spatial:
            digits["spatial"] = counters.digits_spatial
        self._note(index, choice, taken, dense_cycles, digits)
        if placement.rest is not None:
            if self.tau:
                # What the accumulators stand for, as the device has it.
                reference = self._references[index]
                if choice.mode == "temporal" and reference is not None:
                    q = reference + self._applied(q - reference)
                self._references[index] = q
            sums = sums + placement.rest.sums(q - layer.zero_point)
        return sums

    def _product(
        self, index: int, layer: Product, left: NDArray[np.float32], right: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """Return the sums of a product of two activations: (heads, rows, columns).

        With the right operand as it was, ``left @ right`` changes by ``change of left @ right``;
        then, with the left one as it is now, by ``left @ change of right``.
        """
        placement = self.program.layers[index]
        new_left, new_right = layer.quantize(left, right)
        old = self._products[index]
        choice = self._policy.choose(index, old is not None)
        is_temporal = choice.mode == "temporal"
        if choice.mode != "dense" and not (is_temporal and old is not None):
            raise ValueError(f"layer {layer.name} holds no state to be {choice.mode}")
        if old is not None and is_temporal:
            new_left = old.left + self._applied(new_left - old.left)
            new_right = old.right + self._applied(new_right - old.right)
        new = _ProductState(new_left, new_right)

        runs = self._dense_runs(placement, layer, new)
        dense_cycles = self._runs_cycles(placement, runs)
        digits: dict[ModeName, int] = {"dense": self._digits(runs)}
        choice = choice._replace(mode="dense")
        if old is not None and (is_temporal or choice.watch):
            changes = self._temporal_runs(layer, old, new)
            if changes is not None:
                digits["temporal"] = self._digits(changes)
                if is_temporal and self._runs_cycles(placement, changes) <= dense_cycles:
                    choice, runs = choice._replace(mode="temporal"), changes
                    new.sums, new.filled, new.rest = old.sums, old.filled, old.rest

        self._products[index] = None
        taken = _Taken()
        for run in runs:
            given = layer.left if run.side else layer.right
            part = placement.of_product(run.head, run.side)
            weights = narrow_activation(run.weights, given, self.program.config)
            taken = taken.plus(_Taken(weight_bytes=self._write(part, weights.T[:, None, :])))
            got, own = self._part(placement, part, run.mode, run.deltas, run)
            taken = taken.plus(own)
            new.sums[run.side][run.head] = got
            new.filled[run.head, run.side] = True
            rest = times(run.deltas, run.weights - given.zero_point - weights)
            new.rest[run.head] += rest.T if run.side else rest
        self._products[index] = new if choice.keep else None
        self._note(index, choice, taken, dense_cycles, digits)
        total = new.sums[0] + new.sums[1].transpose(0, 2, 1) + new.rest
        return wrap(total, self.program.config.accumulator_bits)

    def _dense_runs(self, placement: Placement, layer: Product, new: _ProductState) -> list[_Run]:
        """Return the runs that compute a product from zero, with the better operand as items."""
        left = new.left - layer.left.zero_point
        right = (new.right - layer.right.zero_point).transpose(0, 2, 1)
        heads = range(len(left))
        ways = [[_Run(h, 0, Mode.DENSE, left[h], new.right[h]) for h in heads]]
        if not layer.fixed:
            ways.append([_Run(h, 1, Mode.DENSE, right[h], new.left[h].T) for h in heads])
        return min(ways, key=lambda runs: self._runs_cycles(placement, runs))

    def _temporal_runs(
        self, layer: Product, old: _ProductState, new: _ProductState
    ) -> list[_Run] | None:
        """Return the runs that make the new product of the old; None if that cannot be."""
        runs = []
        for head in range(len(old.left)):
            modes = [Mode.TEMPORAL if filled else Mode.DENSE for filled in old.filled[head]]
            change = new.left[head] - old.left[head]
            if change.any():
                runs.append(_Run(head, 0, modes[0], change, old.right[head]))
            change = (new.right[head] - old.right[head]).T
            if change.any():
                if layer.fixed:
                    return None  # placed for a right operand that stays as it is
                runs.append(_Run(head, 1, modes[1], change, new.left[head].T))
        return runs

    def _runs_cycles(self, placement: Placement, runs: Sequence[_Run]) -> int:
        """Return the cycles that some runs of a product take."""
        return sum(
            self._cycles(placement.of_product(run.head, run.side), run.deltas) for run in runs
        )

    def _cycles(self, part: Part, deltas: NDArray[np.int64]) -> int:
        """Return the cycles that a part takes for the deltas of its layer."""
        work = part.lowered.deltas(deltas)
        return sum(
            self._model_device.count(band.entry, work[band.inputs]).cycles for band in part.bands
        )

    def _applied(self, deltas: NDArray[np.int64]) -> NDArray[np.int64]:
        """Leave out the deltas that stay in the residual."""
        return np.where(np.abs(deltas) > self.tau, deltas, 0) if self.tau else deltas

    def _digits(self, runs: Sequence[_Run]) -> int:
        """Return the nonzero digits of some runs' deltas."""
        return sum(count_items(run.deltas, self.program.config) for run in runs)

    def _note(
        self,
        index: int,
        choice: Choice,
        taken: _Taken,
        dense_cycles: int,
        digits: Mapping[ModeName, int],
    ) -> None:
        """Remember what a layer took, and tell the policy."""
        cycles = taken.counters.cycles
        self._policy.observe(index, Observation(choice.mode, cycles, digits))
        cost = self.costs[index]
        self.runs.append(
            LayerRun(
                self._states[self._state].step,
                index,
                Mode[choice.mode.upper()],
                taken.counters,
                dense_cycles,
                taken.products,
                digits,
                cost.traffic(choice),
                cost.stall(choice, cycles),
                taken.weight_bytes,
            )
        )

    def _devices(self) -> list[Accelerator]:
        return [self.device] if self._golden is None else [self.device, self._golden]

    def _write(self, part: Part, weights: NDArray[np.int64]) -> int:
        """Write an activation as weights, unless it is there already; return the bytes."""
        base = part.states[self._state][0].entry["weight_base"]
        if part.lowered.is_kept:
            there = self._kept.get(base)
            if there is not None and np.array_equal(there, weights):
                return 0
            self._kept[base] = weights
        for device in self._devices():
            part.write(device, self._state, weights)
        config = self.program.config
        return part.weight_words(config) * word_bytes(config.columns, config.weight_bits)

    def _parts(
        self,
        placement: Placement,
        mode: Mode,
        deltas: NDArray[np.int64],
        dense: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], _Taken, int]:
        """Run a layer; return its accumulators, and the cycles that dense runs would have taken."""
        sums: list[NDArray[np.int64]] = []
        taken, dense_cycles = _Taken(), 0
        for part in placement.parts:
            got, own = self._part(placement, part, mode, deltas)
            sums.append(part.lowered.outputs(got))
            taken = taken.plus(own)
            is_dense = own.counters.mode == Mode.DENSE.value
            dense_cycles += own.counters.cycles if is_dense else self._cycles(part, dense)
        return np.concatenate(sums, axis=1), taken, dense_cycles

    def _part(
        self,
        placement: Placement,
        part: Part,
        mode: Mode,
        deltas: NDArray[np.int64],
        run: _Run | None = None,
    ) -> tuple[NDArray[np.int64], _Taken]:
        """Run a part on the deltas of its layer; return the device's accumulators.

        Deltas of a spatial run are dense here; and of any, if the device takes them itself.
        """
        lowered, bands = part.lowered, part.states[self._state]
        work = part.inputs(deltas) if bands[0].takes_inputs else lowered.deltas(deltas)
        result = np.empty((bands[-1].outputs.stop, lowered.layer.outputs), np.int64)
        copies = part.copies(self.program.config)
        taken = _Taken()
        for band in bands:
            result[band.outputs], counts = self._run(placement, part, band, mode, work, run)
            taken = taken.plus(_Taken(counts, counts.items // copies * lowered.fan))
        return result, taken

    def _run(
        self,
        placement: Placement,
        part: Part,
        band: Band,
        mode: Mode,
        work: NDArray[np.int64],
        run: _Run | None,
    ) -> tuple[NDArray[np.int64], Counters]:
        """Run a band, and check it; return its accumulators and counters."""
        tile = work[band.inputs]

        def run_on(device: Accelerator) -> Counters:
            if band.takes_inputs:
                device.write_inputs(band.number, tile, mode)
            else:
                own = spatial(tile, band.entry) if mode is Mode.SPATIAL else tile
                device.write_deltas(band.number, own, mode)
            return device.run(band.number, mode)

        counters = run_on(self.device)
        got = part.read(self.device, band)
        if self._golden is not None:
            expected = run_on(self._golden)
            want = part.read(self._golden, band)
            step, name = self._states[self._state].step, placement.layer.name
            different = np.argwhere(got != want)
            if len(different):
                position, channel = (int(i) for i in different[0])
                element = _element(placement, part, band.outputs.start + position, channel, run)
                at = int(got[position, channel]), int(want[position, channel])
                raise MismatchError(step, name, f"accumulator of {element}", *at)
            for counter, a, b in zip(Counters._fields, counters, expected, strict=True):
                if a != b and counter != "stall_link":
                    where = f"counter {counter} of layer-table entry {band.number}"
                    raise MismatchError(step, name, where, a, b)
        return got, counters


def _element(placement: Placement, part: Part, at: int, channel: int, run: _Run | None) -> str:
    """Describe an accumulator of a part."""
    layer = placement.layer
    if run is not None:
        row, column = (at, channel) if run.side == 0 else (channel, at)
        changed = ("left", "right")[run.side]
        return f"head {run.head}, row {row}, column {column}, with changes of the {changed} operand"
    assert isinstance(layer, Linear)
    first = part.lowered.makes.start or 0
    if part.lowered.scatter is not None:
        height, width = layer.image(placement.shape)
        width = (width - 1 - layer.tail[1]) // layer.spacing[1] + 1
        tap, channel = divmod(channel, part.lowered.layer.outputs // layer.taps)
        channel += first
        return f"channel {channel}, tap {tap}, input row {at // width}, column {at % width}"
    channel += first
    if layer.kind == "conv":
        width = layer.output_image(layer.image(placement.shape))[1]
        return f"channel {channel}, row {at // width}, column {at % width}"
    return f"token {at}, channel {channel}"
