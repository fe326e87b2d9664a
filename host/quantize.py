"""Quantization of a float ONNX model to int8, by onnxruntime's own tools.

Activations are symmetric with one scale per tensor, the same in every step; weights are symmetric
with one scale per output channel. Only the inputs of convolutions and matrix products are
quantized: outputs stay as the accumulators give them.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ditto.host.check import label
from ditto.host.model import ModelError, read
from ditto.host.samplers import Schedule, inputs_of, load_inputs, sampler_of
from ditto.host.trace import draw_batch, predictor
from ditto.host.windows import PROPERTY, Windows, activation_scales

__all__ = [
    "METHODS",
    "OPSET",
    "QuantizeError",
    "draw_calibration",
    "load_calibration",
    "quantize",
    "require",
]

METHODS = {"max": "max-abs", "percentile": "99.9th percentile"}
"""Where a scale's range ends: largest magnitude seen, or a percentile of the magnitudes."""

OPSET = 19
"""The operators of the int8 file; older ones lack what a scale per channel needs."""

_KINDS = ["Conv", "Gemm", "MatMul", "ConvTranspose"]
_PERCENTILE = 99.9
_STILL = 1.0  # the scale that onnxruntime gives to a tensor without a range

_log = logging.getLogger(__name__)

OnFeed = Callable[[int, int], None]
"""Called after each calibration batch with the samples done, and all of them."""


class QuantizeError(Exception):
    """A model or calibration data that cannot be used, or a missing onnxruntime."""


def require() -> None:
    """Raise :class:`QuantizeError` if what quantizing needs is not installed."""
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError:
        raise QuantizeError(
            "quantizing needs onnxruntime: pip install 'ditto-accel[quantize]'"
        ) from None


def load_calibration(path: Path | str) -> dict[str, NDArray[Any]]:
    """Read calibration data: an ``.npz`` file with one array per model input.

    Raises
    ------
    QuantizeError
        If it cannot be read.
    """
    try:
        return load_inputs(path)
    except ModelError as error:
        raise QuantizeError(f"the calibration data cannot be used: {error}") from None


def draw_calibration(
    source: Path | str,
    on_step: OnFeed | None = None,
    *,
    samples: int = 8,
    steps: int = 50,
    seed: int = 1 << 20,
    extra: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, NDArray[Any]]:
    """Draw calibration data with the float model: the inputs of all steps of some images.

    The images are drawn with DDIM, and as many with DDPM; those of a flow with Euler's method.

    Parameters
    ----------
    source
        The float file, a network that predicts the noise in a sample at a timestep.
    on_step
        Called after each step with the steps of images that are done, and all of them.
    samples
        Images for each sampler.
    steps
        Steps of an image.
    seed
        Seed of the noise; not one that images are likely to be compared with.
    extra
        Inputs beyond sample, timestep and label, see :func:`ditto.host.samplers.inputs_of`.

    Raises
    ------
    ModelError
        If it is no such network.
    """
    proto = _load(source)
    shape, make = inputs_of(_Described(str(source), _described(proto, source), proto), extra)
    evaluate = predictor(proto, str(source))
    schedule = Schedule.from_metadata({entry.key: entry.value for entry in proto.metadata_props})
    names = ("euler",) if schedule.prediction == "flow" else ("ddim", "ddpm")
    steps = min(steps, schedule.train_steps)
    batch = _batch(proto, source, samples)
    found: list[dict[str, NDArray[Any]]] = []

    def predict(feed: dict[str, NDArray[Any]], timestep: int) -> NDArray[np.float32]:
        found.append(feed)
        if on_step is not None:
            on_step(len(found) * batch, len(names) * samples * steps)
        return evaluate(feed, timestep)

    for name in names:
        sampler = sampler_of(name, schedule, steps=steps)
        for first in range(0, samples, batch):
            chunk = range(first, min(first + batch, samples))
            draw_batch(predict, make, shape, sampler, chunk, seed=seed, classes=schedule.classes)
    return {name: np.concatenate([feed[name] for feed in found]) for name in found[0]}


class _Described(NamedTuple):
    """What :func:`ditto.host.samplers.inputs_of` asks of a model."""

    name: str
    inputs: dict[str, tuple[tuple[int, ...], Any]]
    proto: onnx.ModelProto

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(output.name for output in self.proto.graph.output)


def _described(
    model: onnx.ModelProto, source: Path | str
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shape and type of every input, with a batch of 1."""
    _batch(model, source, 1)
    return {
        name: (
            tuple(dim.dim_value if i else 1 for i, dim in enumerate(tensor.shape.dim)),
            helper.tensor_dtype_to_np_dtype(tensor.elem_type),
        )
        for name, tensor in _inputs(model).items()
    }


def quantize(
    source: Path | str,
    calibration: Mapping[str, NDArray[Any]],
    *,
    method: str = "max",
    batch: int = 16,
    windows: int = 1,
    metadata: Mapping[str, str] | None = None,
    on_feed: OnFeed | None = None,
) -> onnx.ModelProto:
    """Quantize every convolution, linear layer and matrix product of a float ONNX file.

    Parameters
    ----------
    source
        The float file.
    calibration
        One array for each input of the model; the first axis counts samples. They show the range of
        every activation, so they should be the inputs of all steps of some real trajectories.
    method
        A key of :data:`METHODS`.
    batch
        Samples to evaluate at once.
    windows
        Parts of the trajectory, of as many timesteps each, with scales of their own; see
        :mod:`ditto.host.windows`.
    metadata
        Properties for the int8 file, besides those of the float file and ``ditto.scales``.
    on_feed
        Called after each batch.

    Returns
    -------
    onnx.ModelProto
        The int8 model.

    Raises
    ------
    QuantizeError
        If the model or the calibration data cannot be used.
    """
    require()
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}")
    model = _load(source)
    data = _fitting(model, source, calibration)
    batch = _batch(model, source, batch)
    kinds = sorted({node.op_type for node in model.graph.node} & set(_KINDS))
    if not kinds:
        raise QuantizeError(f"{source} has no Conv, Gemm or MatMul: there is nothing to quantize")
    parts = _split(model, data, windows) if windows > 1 else {}
    count = len(next(iter(data.values())))
    total, done = count * (1 + bool(parts)), 0

    def advance(position: int, _: int) -> None:
        if on_feed is not None:
            on_feed(done + position, total)

    with tempfile.TemporaryDirectory() as folder, _silence():
        given, prepared = str(Path(folder) / "given.onnx"), str(Path(folder) / "prepared.onnx")
        written = str(Path(folder) / "int8.onnx")
        onnx.save(model, given)

        def calibrated(part: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
            reader = _reader(quantization, _Feeds(part, batch, advance))
            quantization.quantize_static(
                prepared, written, reader, **_options(quantization, kinds, method)
            )
            return onnx.load(written)

        try:
            quant_pre_process(given, prepared, skip_symbolic_shape=True)
            result = calibrated(data)
            own = {}
            for first, part in parts.items():
                done = count + sum(len(next(iter(parts[f].values()))) for f in own)
                own[first] = activation_scales(calibrated(part))
        except QuantizeError:
            raise
        except Exception as error:  # onnxruntime has many kinds
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise QuantizeError(f"onnxruntime cannot quantize {source}: {reason}") from error
    _finish(result, source)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    properties |= {"ditto.scales": METHODS[method], **(metadata or {})}
    if own:
        # A tensor that a window does not move keeps the scale of the whole.
        scales = tuple(
            {k: v for k, v in part.items() if v not in (0.0, _STILL)} for part in own.values()
        )
        properties[PROPERTY] = Windows(tuple(own), scales).dump()
        begin = ", ".join(str(first) for first in own)
        properties["ditto.scales"] += f", {len(own)} windows from timesteps {begin}"
    helper.set_model_props(result, properties)
    return result


def _options(quantization: Any, kinds: list[str], method: str) -> dict[str, Any]:
    """Return the options of onnxruntime's tool."""
    more: dict[str, Any] = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "OpTypesToExcludeOutputQuantization": kinds,
        # One batch at a time: otherwise the tool keeps every activation of every batch.
        "CalibStridedMinMax": 1,
    }
    calibrate = quantization.CalibrationMethod.MinMax
    if method == "percentile":
        calibrate = quantization.CalibrationMethod.Percentile
        # Of the magnitudes; otherwise half of it is cut off at each end.
        more |= {"CalibPercentile": _PERCENTILE, "CalibTensorRangeSymmetric": True}
    return {
        "quant_format": quantization.QuantFormat.QDQ,
        "op_types_to_quantize": kinds,
        "per_channel": True,
        "activation_type": quantization.QuantType.QInt8,
        "weight_type": quantization.QuantType.QInt8,
        "calibrate_method": calibrate,
        "extra_options": more,
    }


def _split(
    model: onnx.ModelProto, data: Mapping[str, NDArray[Any]], windows: int
) -> dict[int, dict[str, NDArray[Any]]]:
    """Return the calibration data of each window by its lowest timestep, the noisiest first."""
    if "timestep" not in data:
        raise QuantizeError("windows need a model with the input timestep")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    total = Schedule.from_metadata(metadata).train_steps
    times = data["timestep"].reshape(len(data["timestep"]), -1)[:, 0]
    result = {}
    for i in reversed(range(windows)):
        first, end = (total * k // windows for k in (i, i + 1))
        chosen = (times >= first) & ((times < end) | (i + 1 == windows))
        if not chosen.any():
            raise QuantizeError(
                f"no calibration sample is of the timesteps {first} to {end - 1}; take fewer "
                "windows, or more trajectories"
            )
        result[first] = {name: values[chosen] for name, values in data.items()}
    return result


def _load(source: Path | str) -> onnx.ModelProto:
    """Read a float model, and bring it to the opset that the importer knows."""
    try:
        model = read(source)
    except ModelError as error:
        raise QuantizeError(str(error)) from error
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise QuantizeError(f"{source} is quantized already; quantize the float model")
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset == OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise QuantizeError(
            f"{source} is of opset {opset} and cannot be converted to {OPSET} ({reason}); export "
            f"it with opset {OPSET}"
        ) from error


def _inputs(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: value.type.tensor_type
        for value in model.graph.input
        if value.name not in constants
    }


def _batch(model: onnx.ModelProto, source: Path | str, batch: int) -> int:
    """Return how many samples the model takes at once."""
    fixed = {
        tensor.shape.dim[0].dim_value
        for tensor in _inputs(model).values()
        if tensor.shape.dim and tensor.shape.dim[0].dim_value
    }
    if fixed - {1}:
        raise QuantizeError(
            f"{source} has a batch of {max(fixed)}; export it with a batch that is open or 1"
        )
    return 1 if fixed else batch


def _fitting(
    model: onnx.ModelProto, source: Path | str, calibration: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Return the calibration data in the model's types, after a check of names and shapes."""
    inputs = _inputs(model)
    if set(inputs) != set(calibration):
        missing = [name for name in inputs if name not in calibration]
        extra = [name for name in calibration if name not in inputs]
        raise QuantizeError(
            f"the calibration data must hold one array for each input of {source} "
            f"({', '.join(inputs)}), but "
            + "; ".join(
                [f"{', '.join(missing)} is missing"] * bool(missing)
                + [f"{', '.join(extra)} is no input"] * bool(extra)
            )
        )
    result = {}
    counts = {}
    for name, tensor in inputs.items():
        values = np.asarray(calibration[name])
        sizes = [dim.dim_value for dim in tensor.shape.dim]
        wanted = ", ".join(["samples", *(str(size) if size else "?" for size in sizes[1:])])
        if values.ndim != max(len(sizes), 1) or any(
            want and want != got for want, got in zip(sizes[1:], values.shape[1:], strict=True)
        ):
            raise QuantizeError(
                f"calibration array {name} must have the shape ({wanted}), not {values.shape}"
            )
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if not np.can_cast(values.dtype, dtype, "same_kind"):
            raise QuantizeError(
                f"calibration array {name} is of type {values.dtype}, but the input is {dtype}"
            )
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise QuantizeError(f"calibration array {name} contains values that are no numbers")
        result[name] = values.astype(dtype)
        counts[name] = len(values)
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise QuantizeError(
            "the calibration arrays must have the same number of samples, at least one, not "
            + ", ".join(f"{count} of {name}" for name, count in counts.items())
        )
    return result


class _Feeds:
    """Calibration data, batch by batch."""

    def __init__(
        self, data: Mapping[str, NDArray[Any]], batch: int, on_feed: OnFeed | None
    ) -> None:
        self._data = data
        self._batch = batch
        self._total = len(next(iter(data.values())))
        self._on_feed = on_feed or (lambda done, total: None)
        self._range = iter(())

    def __len__(self) -> int:
        return -(-self._total // self._batch)

    def set_range(self, first: int, end: int) -> None:
        self._range = iter(range(first, end))

    def next(self) -> dict[str, NDArray[Any]] | None:
        at = next(self._range, None)
        if at is None:
            return None
        first = at * self._batch
        self._on_feed(min(first + self._batch, self._total), self._total)
        return {name: values[first : first + self._batch] for name, values in self._data.items()}


def _reader(quantization: Any, feeds: _Feeds) -> Any:
    """Return the feeds as the class that onnxruntime wants, which exists only with it."""

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> Any:
            return feeds.next()

        def set_range(self, start_index: int, end_index: int) -> None:
            feeds.set_range(start_index, end_index)

        def __len__(self) -> int:
            return len(feeds)

    return Reader()


def _finish(model: onnx.ModelProto, source: Path | str) -> None:
    """Check scales, and clip weights to -127, the least that packed multipliers take."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    users = {name: node for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = tensors.get(node.input[1])
        values = np.ones(0) if scale is None else numpy_helper.to_array(scale)
        user = users.get(node.output[0], node)
        if not (np.isfinite(values) & (values > 0)).all():
            raise QuantizeError(
                f"tensor {node.input[0]} of node {label(user)} in {source} got the scale "
                f"{values.min():g}; the calibration data overflows"
            )
        if node.op_type == "QuantizeLinear" and (values == _STILL).any():
            reader = users.get(user.output[0], user)
            _log.warning(
                "tensor %s, read by node %s of %s, is zero in all calibration data, and got the "
                "scale 1; calibrate with data that moves it",
                node.input[0],
                label(reader),
                source,
            )
        raw = tensors.get(node.input[0])
        if node.op_type == "DequantizeLinear" and raw is not None:
            weights = numpy_helper.to_array(raw)
            if weights.dtype == np.int8 and (weights == -128).any():
                raw.CopyFrom(numpy_helper.from_array(np.maximum(weights, -127), raw.name))


@contextlib.contextmanager
def _silence() -> Any:
    """Keep what the tools print and log away from the user."""
    root = logging.getLogger()
    disabled, level = root.manager.disable, logging.WARNING
    logging.disable(max(disabled, level))
    try:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            yield
    finally:
        logging.disable(disabled)
