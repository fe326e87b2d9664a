"""Runs the layers of a model on a device: quantizes, takes differences, checks, counts."""

import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.protocol import Counters, Mode
from ditto.host.defo import Fixed, ModeName, Observation, Policy, costs_of, count_digits
from ditto.host.device import Accelerator
from ditto.host.model import Model, ModelError
from ditto.host.program import Band, Placement, Program
from ditto.sim.golden import Golden
from ditto.sim.memory import MEMORIES, Memory, Traffic

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
        What the steps of a sample after the first start from, where no policy chooses.
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
        self._references: list[NDArray[np.int64] | None] = []
        self._step = -1
        program.load(device)
        if self._golden is not None:
            program.load(self._golden)
        self.begin()

    def begin(self, policy: Policy | None = None) -> None:
        """Begin a new sample: its first step is dense.

        Parameters
        ----------
        policy
            Chooses the modes; :attr:`mode` in all further steps if absent.
        """
        self._policy = policy or Fixed("dense" if self.mode is Mode.DENSE else "temporal")
        self.device.reset()
        if self._golden is not None:
            self._golden.reset()
        self._references = [None] * len(self.program.layers)
        self._step = -1

    def skip(self, steps: int) -> None:
        """Count steps that the sample has behind it; the next one is dense all the same."""
        self._step += steps

    def step(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Evaluate the model for the next step of the sample.

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
        self._step += 1
        return self.model.run(inputs, self.evaluate)

    def evaluate(self, index: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Evaluate a layer on its float input."""
        if self._stop.is_set():
            raise Stopped
        placement = self.program.layers[index]
        layer = placement.layer
        if x.shape != placement.shape:
            raise ModelError(
                f"layer {layer.name} was placed for inputs of shape {placement.shape}, "
                f"and now gets {x.shape}"
            )
        q = layer.quantize(x)
        reference = self._references[index]
        choice = self._policy.choose(index, reference is not None)
        deltas: dict[ModeName, NDArray[np.int64]] = {"dense": q - layer.zero_point}
        if reference is not None and (choice.mode == "temporal" or choice.watch):
            change = q - reference
            deltas["temporal"] = np.where(np.abs(change) > self.tau, change, 0)
            if choice.mode == "temporal":
                q = reference + deltas["temporal"]
        if choice.mode not in deltas:
            raise ValueError(f"layer {layer.name} holds no state to be {choice.mode}")
        mode = Mode[choice.mode.upper()]
        self._references[index] = q if choice.keep else None

        lowered = placement.lowered
        deltas = {name: lowered.deltas(own) for name, own in deltas.items()}
        work, dense = deltas[choice.mode], deltas["dense"]
        positions = placement.bands[-1].outputs.stop
        accumulators = np.empty((positions, lowered.layer.outputs), np.int64)
        counters = Counters()
        dense_cycles = products = 0
        copies = placement.copies(self.program.config)
        for band in placement.bands:
            accumulators[band.outputs], counts = self._run(placement, band, mode, work)
            counters += counts
            products += counts.items // copies * lowered.layer.outputs
            if mode is Mode.DENSE:
                dense_cycles += counts.cycles
            else:
                dense_cycles += self._model_device.count(band.entry, dense[band.inputs]).cycles
        digits = count_digits(placement, self.program.config, deltas)
        cost = self.costs[index]
        self._policy.observe(index, Observation(choice.mode, counters.cycles, digits))
        traffic = cost.traffic(choice)
        stall = cost.stall(choice, counters.cycles)
        counted = (counters, dense_cycles, products, digits, traffic, stall)
        self.runs.append(LayerRun(self._step, index, mode, *counted))
        return layer.dequantize(lowered.outputs(accumulators), x.shape)

    def _run(
        self, placement: Placement, band: Band, mode: Mode, deltas: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Counters]:
        """Run a band, and check it; return its accumulators and counters."""
        tile = deltas[band.inputs]
        self.device.write_deltas(band.number, tile)
        counters = self.device.run(band.number, mode)
        got = placement.read(self.device, band)
        if self._golden is not None:
            self._golden.write_deltas(band.number, tile)
            expected = self._golden.run(band.number, mode)
            self._compare(placement, band, got, placement.read(self._golden, band))
            for name, a, b in zip(Counters._fields, counters, expected, strict=True):
                if a != b and name != "stall_link":
                    where = f"counter {name} of layer-table entry {band.number}"
                    raise MismatchError(self._step, placement.layer.name, where, a, b)
        return got, counters

    def _compare(
        self, placement: Placement, band: Band, got: NDArray[np.int64], want: NDArray[np.int64]
    ) -> None:
        """Raise on the first accumulator that differs."""
        different = np.argwhere(got != want)
        if not len(different):
            return
        position, channel = (int(i) for i in different[0])
        layer = placement.layer
        at = band.outputs.start + position
        if placement.lowered.scatter is not None:
            width = layer.image(placement.shape)[1]
            tap, channel = divmod(channel, layer.outputs)
            element = f"channel {channel}, tap {tap}, input row {at // width}, column {at % width}"
        elif layer.kind == "conv":
            width = layer.output_image(layer.image(placement.shape))[1]
            element = f"channel {channel}, row {at // width}, column {at % width}"
        else:
            element = f"token {at}, channel {channel}"
        raise MismatchError(
            self._step,
            layer.name,
            f"accumulator of {element}",
            int(got[position, channel]),
            int(want[position, channel]),
        )
