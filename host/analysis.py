"""What temporal differences would save on a model: statistics of its quantized tensors.

Everything is summed up while the model runs: a step's tensors and those of the step before are all
that is ever held.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.host import quality
from ditto.host.costs import LayerCosts, ProductCosts
from ditto.host.layers import Linear
from ditto.host.model import Model, ModelError
from ditto.host.program import Placement, PlacementError, Program, suggest
from ditto.host.samplers import Sampler, Schedule, inputs_of, sampler_of
from ditto.host.trace import Step, Traced, draw_batch, predictor

__all__ = ["CLASSES", "KINDS", "WIDTHS", "Analysis", "Setting", "analyze", "neighbour"]

KINDS = ("activation", "temporal", "spatial")
"""What is counted of a tensor: itself, its change since the step before, and along a row."""

CLASSES = ("zero", "narrow", "wide", "over")
"""Zero; -8..7; -128..127; beyond 8 bits."""

WIDTHS = 10
"""Values are counted by the bits that they need: 0 for zero, 1 for -1, 2 for -2..1, up to 9."""

_BITS = np.array([0.0, 0.5, 1.0, 1.5])
"""Bit operations of a value of each class with an 8-bit weight, against 8 x 8 bits."""

_REACH = 512
_MODES = ("dense", "temporal", "spatial")
_BUDGET = 256 << 20  # bytes of tensors that a batch of samples may take

OnProgress = Callable[[int, int, str], None]
"""Called with the steps of samples that are done, all of them, and what is going on."""


class Setting(NamedTuple):
    """How samples are drawn."""

    steps: int
    eta: float = 0.0
    tau: int = 0
    #: One of :data:`ditto.host.samplers.SAMPLERS`, or a scheduler of diffusers.
    kind: Any = "ddim"

    def make(self, schedule: Schedule) -> Sampler:
        """Make the sampler."""
        return sampler_of(self.kind, schedule, steps=self.steps, eta=self.eta)

    @property
    def sampler(self) -> str:
        """Name of the sampler."""
        return f"{self.make(Schedule(train_steps=self.steps)).name}, {self.steps} steps"


@dataclass
class Analysis:
    """An analysis of a model.

    Parameters
    ----------
    facts
        All figures, which can be written as JSON.
    images
        Of each setting, of shape (samples, channels, height, width).
    exact
        The same drawn by the float model, for settings without a threshold, if there is one.
    """

    facts: dict[str, Any]
    images: dict[Setting, NDArray[np.float32]] = field(default_factory=dict)
    exact: dict[Setting, NDArray[np.float32]] = field(default_factory=dict)


def neighbour(values: NDArray[np.int16], axis: int | None) -> NDArray[np.int16]:
    """Return the difference of each element from the one before along an axis.

    The first one has none, and differs from zero.

    >>> neighbour(np.array([[3, 5, 4]], np.int16), 1).tolist()
    [[3, 2, -1]]
    """
    if axis is None:
        return values
    result = values.copy()
    after = (slice(None),) * (axis % values.ndim) + (slice(1, None),)
    before = (slice(None),) * (axis % values.ndim) + (slice(None, -1),)
    result[after] -= values[before]
    return result


class _Statistics:
    """Counts of every tensor in every step."""

    def __init__(self, traced: Traced, costs: "Costs", steps: int) -> None:
        tensors, self._traced = len(traced.tensors), traced
        self.widths = np.zeros((tensors, len(KINDS), steps, WIDTHS), np.int64)
        self.ranges = np.zeros((tensors, len(KINDS), steps, 2), np.int64)
        self.histograms = np.zeros((tensors, len(KINDS), 2 * _REACH), np.int64)
        #: Sums of the cosines between neighbours: of steps, and along a row.
        self.cosines = np.zeros((tensors, 2, steps))
        #: Steps that nothing is kept for.
        self.dense = np.zeros(steps, bool)
        self.cycles = np.zeros((len(traced.products), len(_MODES), steps), np.int64)
        self._axes = _axes(traced)
        self._costs = costs
        self._readers: dict[int, list[int]] = {}
        self._pairs: list[int] = []
        for index, reader in enumerate(traced.products):
            if isinstance(costs.get(reader.name), ProductCosts):
                self._pairs.append(index)
            elif reader.name in costs:
                self._readers.setdefault(reader.operands[0], []).append(index)
        #: Operands of products, whose values are needed at once.
        self._paired = {i for index in self._pairs for i in traced.products[index].operands}
        values = np.arange(-_REACH, _REACH)
        bits = np.ceil(np.log2(np.maximum(np.where(values < 0, -values, values + 1), 1))) + 1
        self._width = np.where(values == 0, 0, bits).astype(int)

    @property
    def classes(self) -> NDArray[np.int64]:
        """Counts by class, of shape (tensors, kinds, steps, classes)."""
        return np.add.reduceat(self.widths, [0, 1, 5, 9], axis=-1)

    def add(self, step: Step) -> None:
        """Count a step of some samples."""
        self.dense[step.step] = step.before is None
        paired: dict[int, list[NDArray[np.int16] | None]] = {}
        for index, tensor in enumerate(self._traced.tensors):
            zero, axis = np.int16(tensor.zero_point), self._axes[index]
            now = step.values[index].astype(np.int16) - zero
            kinds = [now, None, neighbour(now, axis)]
            if step.before is not None:
                before = step.before[index].astype(np.int16) - zero
                kinds[1] = now - before
                self.cosines[index, 0, step.step] += _cosines(now, before).sum()
            if axis is not None:
                rows = np.moveaxis(now, axis, 1)
                self.cosines[index, 1, step.step] += _cosines(rows[:, 1:], rows[:, :-1]).sum()
            for kind, values in enumerate(kinds):
                if values is not None:
                    self._count(index, kind, step.step, values)
            if index in self._paired:
                shape = (-1, *tensor.shape[1:]) if tensor.shape[0] == 1 else (-1, *tensor.shape)
                paired[index] = [None if v is None else v.reshape(shape) for v in kinds]
            for reader in self._readers.get(index, ()):
                costs = self._costs[self._traced.products[reader].name]
                assert isinstance(costs, LayerCosts)
                dense = temporal = costs.cycles(now)
                if kinds[1] is not None:
                    temporal = costs.cycles(kinds[1])
                spatial = costs.spatial(now)[0] if costs.may_be_spatial else dense
                self._add_cycles(reader, step, dense, temporal, spatial)
        for pair in self._pairs:
            product = self._traced.products[pair]
            costs = self._costs[product.name]
            assert isinstance(costs, ProductCosts)
            (left, left_change, _), (right, right_change, _) = (paired[i] for i in product.operands)
            assert left is not None and right is not None
            dense = temporal = costs.dense(left, right)[0]
            if left_change is not None and right_change is not None:
                temporal = np.minimum(costs.changes(left_change, right_change)[0], dense)
            self._add_cycles(pair, step, dense, temporal, dense)

    def _add_cycles(self, reader: int, step: Step, *modes: NDArray[np.int64]) -> None:
        """Add up what a layer takes in each mode.

        In a mode that it cannot be in, it is dense.
        """
        self.cycles[reader, :, step.step] += [int(cycles.sum()) for cycles in modes]

    def _count(self, index: int, kind: int, step: int, values: NDArray[np.int16]) -> None:
        counts = np.bincount((values.ravel() + np.int16(_REACH)), minlength=2 * _REACH)
        self.histograms[index, kind] += counts
        widths = np.bincount(self._width, counts, minlength=WIDTHS)[:WIDTHS]
        self.widths[index, kind, step] += widths.astype(np.int64)
        present = np.flatnonzero(counts) - _REACH
        low, high = self.ranges[index, kind, step]
        self.ranges[index, kind, step] = min(low, present[0]), max(high, present[-1])


def _axes(traced: Traced) -> list[int | None]:
    """Return the axis along which each tensor has neighbours: pixels, or tokens."""
    axes: list[int | None] = [None] * len(traced.tensors)
    for reader in reversed(traced.products):
        for position, index in enumerate(reader.operands):
            shape = traced.tensors[index].shape
            if "conv" in reader.kind or position:
                axes[index] = -1  # of a second operand, the array streams columns
            elif len(shape) > 2:
                axes[index] = -2
    return axes


def _cosines(a: NDArray[np.int16], b: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return the cosine of the angle between two tensors, for each sample; 1 if both are zero."""
    x, y = (values.reshape(len(values), -1).astype(np.float32) for values in (a, b))
    dot, xx, yy = (
        np.einsum("ij,ij->i", *pair, dtype=np.float64) for pair in ((x, y), (x, x), (y, y))
    )
    length = np.sqrt(xx * yy)
    return np.where(length > 0, dot / np.where(length > 0, length, 1), (xx == yy) * 1.0)


def analyze(
    proto: onnx.ModelProto,
    settings: Sequence[Setting],
    *,
    config: Config,
    samples: int = 16,
    seed: int = 0,
    name: str = "model",
    exact: onnx.ModelProto | None = None,
    extra: Mapping[str, NDArray[Any]] | None = None,
    features: onnx.ModelProto | None = None,
    onnxruntime: bool | None = None,
    on_progress: OnProgress | None = None,
) -> Analysis:
    """Analyze a QDQ model.

    Parameters
    ----------
    proto
        The model as read from its file.
    settings
        How samples are drawn.
    config
        The device whose cycles are counted. Where the model does not fit, a device of the same
        array with larger memories stands in.
    samples
        Number of samples.
    seed
        Seed of the noise.
    name
        How messages call the model.
    exact
        The float model, to compare images with.
    extra
        Inputs beyond sample, timestep and label, see :func:`ditto.host.samplers.inputs_of`.
    features
        A network from images to features, for the Fréchet distance; by default
        :func:`ditto.host.quality.features`.
    onnxruntime
        Whether to evaluate by onnxruntime; by default where it is installed.
    on_progress
        Called after each step.

    Raises
    ------
    ModelError
        If a model cannot be used.
    """
    model = Model(proto, name)
    schedule = Schedule.from_metadata(model.metadata)
    traced = Traced(proto, model, extra=extra, onnxruntime=onnxruntime)
    costs, device = _costs(model, traced, config)
    size = 2 * sum(math.prod(tensor.shape) for tensor in traced.tensors)
    batch = max(1, min(samples, 16, _BUDGET // size)) if traced.batch is None else 1
    chunks = [range(i, min(i + batch, samples)) for i in range(0, samples, batch)]
    plain = list(dict.fromkeys(setting._replace(tau=0) for setting in settings))
    # Schedulers of second order look at the model twice in a step.
    lengths = {setting: len(setting.make(schedule).timesteps) for setting in settings}
    total = sum(lengths.values())
    if exact is not None:
        total += sum(len(setting.make(schedule).timesteps) for setting in plain)
    done = 0

    def advance(count: int, what: str) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, total * samples, what)

    result = Analysis({})
    if exact is not None:
        predict = _exact(exact, model, onnxruntime)
        shape, make = inputs_of(model, extra)
        for setting in plain:
            what = f"float, {setting.sampler}"

            def counted(
                feed: dict[str, NDArray[Any]], timestep: int, what: str = what
            ) -> NDArray[np.float32]:
                noise = predict(feed, timestep)
                advance(len(noise), what)
                return noise

            sampler = setting.make(schedule)
            parts = [
                draw_batch(
                    counted, make, shape, sampler, chunk, seed=seed, classes=schedule.classes
                )
                for chunk in chunks
            ]
            result.exact[setting] = np.concatenate(parts)

    runs = []
    for setting in settings:
        begun = time.monotonic()
        statistics = _Statistics(traced, costs, lengths[setting])
        what = setting.sampler + (f", tau {setting.tau}" if setting.tau else "")

        def on_step(step: Step, statistics: _Statistics = statistics, what: str = what) -> None:
            statistics.add(step)
            advance(len(step.values[0]), what)

        sampler = setting.make(schedule)
        parts = [
            traced.run(
                sampler,
                chunk,
                seed=seed,
                classes=schedule.classes,
                tau=setting.tau,
                on_step=on_step,
            )
            for chunk in chunks
        ]
        result.images[setting] = np.concatenate(parts)
        run = _run(setting, sampler.timesteps, statistics, traced, samples, set(costs), config)
        run["seconds"] = round(time.monotonic() - begun, 3)
        runs.append(run)
    net = quality.features if features is None else _features(features, onnxruntime)
    count = net(next(iter(result.images.values()))[:1]).shape[1]
    for setting, run in zip(settings, runs, strict=True):
        run["quality"] = _quality(result, setting, net)

    result.facts = {
        "model": name,
        "against": "float" if exact is not None else "lossless",
        "scales": model.metadata.get("ditto.scales", "not said in the file"),
        "samples": samples,
        "seed": seed,
        "frechet": {
            "features": count,
            "net": "random" if features is None else "given",
            "images_needed": quality.enough(count),
        },
        "evaluated_by": type(traced.evaluator).__name__.strip("_").lower(),
        "device": {"stands_for": device, "configuration": asdict(config)},
        "in_float": traced.in_float,
        "on_host": {k: v for k, v in model.on_host.items() if k not in traced.in_float},
        "windows": list(traced.windows.first),
        "tensors": [
            {
                "name": t.name,
                "scale": t.scale,
                "scales_by_window": traced.scales(i),
                "zero_point": t.zero_point,
                "shape": list(t.shape),
            }
            for i, t in enumerate(traced.tensors)
        ],
        "runs": runs,
    }
    return result


def _exact(
    proto: onnx.ModelProto, model: Model, onnxruntime: bool | None
) -> Callable[[Mapping[str, NDArray[Any]], int], NDArray[np.float32]]:
    """Return the float model as a function, after a check that it has the same inputs."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = {value.name for value in proto.graph.input} - constants
    if inputs != set(model.inputs):
        raise ModelError(
            f"the float model takes the inputs {', '.join(sorted(inputs))}, but {model.name} takes "
            f"{', '.join(sorted(model.inputs))}"
        )
    return predictor(proto, "the float model", onnxruntime=onnxruntime)


Costs = Mapping[str, LayerCosts | ProductCosts]
"""Costs of the layers by name."""


def _costs(model: Model, traced: Traced, config: Config) -> tuple[Costs, str]:
    """Place the layers on a device; return their costs, and what device that is."""
    operands = {reader.name: reader.operands for reader in traced.products}
    layers: list[Any] = []
    shapes: list[Any] = []
    for layer in model.layers:
        own = [traced.tensors[i].shape for i in operands.get(layer.name, ())]
        if isinstance(layer, Linear) and own:
            layers.append(layer)
            shapes.append(own[0])
        elif len(own) == 2:
            layers.append(layer)
            shapes.append(tuple(own))
    try:
        program, device = Program(layers, shapes, config), "the device as configured"
    except PlacementError:
        try:
            larger = suggest(layers, shapes, config)
            program = Program(layers, shapes, larger)
            device = "a device of the same array with the memories that the model needs"
        except PlacementError:
            return _apart(layers, shapes, config), (
                "a device of the same array for each layer: the whole model is beyond the limits "
                "of one"
            )
    return {p.layer.name: _cost(p, program.config) for p in program.layers}, device


def _cost(placement: Placement, config: Config) -> LayerCosts | ProductCosts:
    kind = LayerCosts if isinstance(placement.layer, Linear) else ProductCosts
    return kind(placement, config)


def _apart(layers: Sequence[Any], shapes: Sequence[Any], config: Config) -> Costs:
    """Place every layer on a device of its own; leave out those that no device takes."""
    result = {}
    for layer, shape in zip(layers, shapes, strict=True):
        try:
            own = suggest([layer], [shape], config)
            placement = Program([layer], [shape], own).layers[0]
        except PlacementError:
            continue
        result[layer.name] = _cost(placement, own)
    return result


def _features(proto: onnx.ModelProto, onnxruntime: bool | None) -> quality.Features:
    """Return a network as a function from images to features."""
    predict = predictor(proto, "the feature network", onnxruntime=onnxruntime)
    constants = {tensor.name for tensor in proto.graph.initializer}
    names = [value.name for value in proto.graph.input if value.name not in constants]
    if len(names) != 1:
        raise ModelError(f"the feature network must have one input, not {', '.join(names)}")

    def net(images: NDArray[np.float32]) -> NDArray[np.float64]:
        parts = [predict({names[0]: images[i : i + 16]}) for i in range(0, len(images), 16)]
        return np.concatenate(parts).reshape(len(images), -1).astype(np.float64)

    return net


def _quality(result: Analysis, setting: Setting, net: quality.Features) -> dict[str, Any]:
    """Compare a setting's images with those of the float model and those without threshold."""
    images, plain = result.images[setting], setting._replace(tau=0)
    compared = {}
    if plain in result.exact:
        compared["float"] = result.exact[plain]
    if setting.tau and plain in result.images:
        compared["lossless"] = result.images[plain]
    return {against: _compare(images, other, net) for against, other in compared.items()}


def _compare(
    images: NDArray[np.float32], other: NDArray[np.float32], net: quality.Features
) -> dict[str, Any]:
    # Pixels are -1..1; of latents, the largest difference that occurs among them counts.
    peak = 2.0 if other.shape[1] in (1, 3) else float(np.ptp(other)) or 1.0
    ratios = quality.psnr(images, other, peak)

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None  # equal images; JSON has no infinity

    return {
        "peak": peak,
        "psnr": finite(quality.decibels(ratios, peak)),
        "psnr_median": finite(float(np.median(ratios))),
        "psnr_worst": finite(float(ratios.min())),
        "ssim": float(quality.ssim(images, other, peak).mean()),
        "frechet": quality.frechet(images, other, net),
    }


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return shares of the classes, along the last axis; 0 of nothing."""
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)


def _named(values: Sequence[float] | NDArray[Any], names: Sequence[str]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _run(
    setting: Setting,
    timesteps: Sequence[int],
    statistics: _Statistics,
    traced: Traced,
    samples: int,
    placed: set[str],
    config: Config,
) -> dict[str, Any]:
    """Make the figures of a setting."""
    products = traced.products
    operands = [list(reader.operands) for reader in products]
    # The second operand of a product of two activations counts as much as the first.
    shares = _shares(statistics.classes)
    classes = np.stack([shares[own].mean(axis=0) for own in operands])
    widths = _shares(statistics.widths)
    widths = np.stack([widths[own].mean(axis=0) for own in operands])
    dense = statistics.dense
    bits = _bit_operations(shares @ _BITS, operands, dense)
    cosines = np.stack([statistics.cosines[own].mean(axis=0) for own in operands]) / samples
    macs = np.array([reader.macs for reader in products], float)
    counted = np.array([reader.depends for reader in products])
    if not counted.any():
        counted[:] = True
    weights = np.where(counted, macs, 0) / macs[counted].sum()
    # Steps that have one before them; without any, temporal figures are those of dense steps.
    later = ~dense if not dense.all() else np.ones_like(dense)
    every = {kind: later if kind == "temporal" else np.ones_like(dense) for kind in KINDS}
    mean_bits = bits[:, :, later].mean(axis=2)
    best = mean_bits.argmin(axis=1)
    whole = bits[:, 0] * dense + bits[np.arange(len(products)), best] * ~dense
    run_bits = whole.mean(axis=1)

    layers = []
    for i, reader in enumerate(products):
        ranges = statistics.ranges[operands[i]]
        low, high = ranges[..., 0].min(axis=0), ranges[..., 1].max(axis=0)
        cycles = statistics.cycles[i] / samples
        inputs = sum(math.prod(traced.tensors[j].shape) for j in operands[i])
        entry: dict[str, Any] = {
            "name": reader.name,
            "kind": reader.kind,
            "sizes": reader.sizes,
            "macs": reader.macs,
            "share": float(weights[i]),
            "counted": bool(counted[i]),
            "tensors": operands[i],
            "cosine": {
                "temporal": float(cosines[i, 0, later].mean()),
                "spatial": float(cosines[i, 1].mean()),
            },
            "bit_operations": _named(mean_bits[i], KINDS),
            "best": KINDS[best[i]],
            "cycles": _cycles(cycles) if reader.name in placed else None,
            "traffic": _traffic(inputs, reader.weights, reader.outputs),
        }
        by_step: dict[str, Any] = {}
        for k, kind in enumerate(KINDS):
            entry[kind] = _named(classes[i, k, every[kind]].mean(axis=0), CLASSES) | {
                "min": int(low[k].min()),
                "max": int(high[k].max()),
                "histogram": _histogram(statistics.histograms[operands[i], k].sum(axis=0)),
            }
            by_step[kind] = {
                name: classes[i, k, :, c].round(5).tolist() for c, name in enumerate(CLASSES)
            } | {
                "min": low[k].tolist(),
                "max": high[k].tolist(),
                "widths": widths[i, k].round(5).tolist(),
            }
        by_step["bit_operations"] = {
            kind: bits[i, k].round(5).tolist() for k, kind in enumerate(KINDS)
        }
        by_step["cosine"] = {
            kind: cosines[i, k].round(6).tolist() for k, kind in enumerate(KINDS[1:])
        }
        if reader.name in placed:
            by_step["cycles"] = {mode: cycles[m].round(1).tolist() for m, mode in enumerate(_MODES)}
        layers.append(entry | {"by_step": by_step})

    def mean(values: NDArray[np.float64]) -> Any:
        return np.tensordot(weights, values, 1)

    means: dict[str, Any] = {
        kind: _named(mean(classes[:, k, every[kind]].mean(axis=1)), CLASSES)
        for k, kind in enumerate(KINDS)
    }
    means["cosine"] = {
        "temporal": float(mean(cosines[:, 0][:, later].mean(axis=1))),
        "spatial": float(mean(cosines[:, 1].mean(axis=1))),
    }
    means["bit_operations"] = _named(mean(mean_bits), KINDS) | {
        "best": float(mean(mean_bits.min(axis=1))),
        "whole_run": float(mean(run_bits)),
    }
    cycles = statistics.cycles.sum(axis=0) / samples
    steps: list[dict[str, Any]] = [
        {"step": step, "timestep": timestep}
        | {kind: _named(mean(classes[:, k, step]), CLASSES) for k, kind in enumerate(KINDS)}
        | {
            "bit_operations": _named(mean(bits[:, :, step]), KINDS),
            "cosine": _named(mean(cosines[:, :, step]), KINDS[1:]),
            "dense": bool(dense[step]),
            "cycles": _named(cycles[:, step], _MODES),
        }
        for step, timestep in enumerate(timesteps)
    ]
    return {
        **setting._asdict(),
        "kind": setting.kind if isinstance(setting.kind, str) else type(setting.kind).__name__,
        "sampler": setting.sampler,
        "means": means,
        "cycles": _total_cycles(statistics.cycles, products, placed, samples),
        "traffic": _total_traffic(layers, config),
        "state": _state(traced, config),
        "layers": layers,
        "by_step": steps,
    }


def _bit_operations(
    bits: NDArray[np.float64], operands: Sequence[Sequence[int]], dense: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the bit operations of products from those of tensors, both (…, kinds, steps).

    As activations, a product of two of them is one run, over the operand that takes less. Its two
    differences are two runs, each through the whole product. Steps without one before are dense.
    """
    result = np.stack([bits[own].min(axis=0) for own in map(list, operands)])
    result[:, 1] = [bits[list(own), 1].sum(axis=0) for own in operands]
    result[:, 1, dense] = result[:, 0, dense]
    return result


def _histogram(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Return the counts of values from the first that occurs to the last."""
    present = np.flatnonzero(counts)
    if not len(present):
        return {"first": 0, "counts": []}
    return {
        "first": int(present[0]) - _REACH,
        "counts": counts[present[0] : present[-1] + 1].tolist(),
    }


def _cycles(cycles: NDArray[np.float64]) -> dict[str, Any]:
    """Return the cycles of a layer for a step of an image, and the mode that takes fewest."""
    total = cycles.mean(axis=1)
    return _named(total, _MODES) | {"best": _MODES[int(total.argmin())]}


def _total_cycles(
    cycles: NDArray[np.int64], products: Sequence[Any], placed: set[str], samples: int
) -> dict[str, Any] | None:
    """Return the cycles of all layers for a step of an image; None if no layer was placed."""
    if not placed:
        return None
    total = cycles.mean(axis=2) / samples
    by_mode = _named(total.sum(axis=0), _MODES)
    best = float(total.min(axis=1).sum())
    macs = sum(reader.macs for reader in products)
    return by_mode | {
        "best": best,
        "ratio": by_mode["dense"] / max(by_mode["temporal"], 1),
        "best_ratio": by_mode["dense"] / max(best, 1),
        "counted": sum(p.macs for p in products if p.name in placed) / max(macs, 1),
    }


def _traffic(inputs: int, weights: int, outputs: int) -> dict[str, int]:
    """Return the elements that a step of a layer reads and writes.

    As activations: inputs and weights once in, outputs once out. Naive differences read the
    previous input and the previous output as well, and write both back.
    """
    return {
        "inputs": inputs,
        "weights": weights,
        "outputs": outputs,
        "previous_inputs_read": inputs,
        "previous_inputs_written": inputs,
        "previous_outputs_read": outputs,
        "previous_outputs_written": outputs,
    }


def _total_traffic(layers: Sequence[Mapping[str, Any]], config: Config) -> dict[str, Any]:
    """Return the traffic of a step of an image, in elements and in bytes.

    Activations and weights are taken as bytes; previous outputs are accumulators.
    """
    result = {}
    for unit, accumulator in (("elements", 1.0), ("bytes", config.accumulator_bits / 8)):
        plain = naive = without = best = 0.0
        for layer in layers:
            part = layer["traffic"]
            own = part["inputs"] + part["outputs"]
            more = 2 * part["inputs"] + 2 * part["outputs"] * accumulator
            plain += own + part["weights"]
            naive += own + part["weights"] + more
            without += own
            best += own + part["weights"] + (more if layer["best"] == "temporal" else 0)
        result[unit] = {
            "plain": plain,
            "naive": naive,
            "naive_ratio": naive / plain,
            "naive_ratio_without_weights": (naive - plain + without) / without,
            "best": best,
            "best_ratio": best / plain,
        }
    return result


def _state(traced: Traced, config: Config) -> dict[str, float]:
    """Return what a sample keeps from step to step, in elements and in bytes."""
    inputs = sum(math.prod(tensor.shape) for tensor in traced.tensors)
    outputs = sum(reader.outputs for reader in traced.products)
    return {
        "inputs": inputs,
        "outputs": outputs,
        "bytes": inputs + outputs * config.accumulator_bits / 8,
        "weights": sum(reader.weights for reader in traced.products),
    }
