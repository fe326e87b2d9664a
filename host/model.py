"""Int8 ONNX models: the layers that the device takes, and the host's evaluation of the rest.

A model is a QDQ file, as ``onnxruntime.quantization.quantize_static`` writes it. Every convolution
and matrix product with quantized operands becomes a layer for the device, see
:mod:`ditto.host.importer`; ``onnx.reference`` evaluates everything else.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ditto.host.importer import DOMAIN, import_graph
from ditto.host.layers import Linear, ModelError

__all__ = ["Accelerate", "Linear", "Model", "ModelError", "read"]

_log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 30  # of an input; more is a damaged file
_MOST_POSITIONS = 1 << 18  # of an image; more than any device could work on in useful time

Accelerate = Callable[..., NDArray[np.float32]]
"""Evaluates the layer of an index on its float operands, and returns its float output."""


def read(path: Path | str) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises
    ------
    ModelError
        If there is no such file, or it is no valid model.
    """
    from ditto.host.check import check, load

    try:
        proto = load(path)
        check(proto, str(path))
        onnx.checker.check_model(proto)
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"cannot read model {path}: {error.strerror or error}") from error
    except Exception as error:  # the parser and the checker have a family each
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{path} is not a valid ONNX file: {reason}") from error
    return proto


class Model:
    """A QDQ model, split into layers for the device and the graph around them.

    Parameters
    ----------
    proto
        The model as read from its file.
    name
        How messages call the model, e.g. its path.

    Attributes
    ----------
    layers : tuple of Linear or Product
        The layers for the device, in the order of the graph.
    on_host : dict of str to str
        Convolutions and matrix products that stay on the host, and why.
    host_seconds : dict of str to float
        Time that the host's operators took so far, by operator.
    layer_seconds : float
        Time that the layers took so far.
    metadata : dict of str to str
        Metadata properties of the file.
    inputs : dict of str to (shape, dtype)
        Inputs with a batch of 1; a size that the file leaves open is 0.
    outputs : tuple of str
        Names of the outputs.
    windows : Windows
        Parts of the trajectory with scales of their own.

    Raises
    ------
    ModelError
        If the model is not a QDQ model, or the host cannot evaluate it.
    """

    def __init__(self, proto: onnx.ModelProto, name: str = "model") -> None:
        from ditto.host.windows import Windows

        self._import(proto, name)
        self.windows = Windows.of(proto, name)
        self._in_windows: tuple[Model, ...] = ()
        if len(self.windows) > 1:
            self._in_windows = tuple(
                Model(self.windows.apply(proto, i), name) for i in range(len(self.windows))
            )
        else:
            for layer, reason in self.on_host.items():
                _log.info("%s runs on the host: %s", layer, reason)

    def _import(self, proto: onnx.ModelProto, name: str) -> None:
        self.name = name
        self.metadata = {entry.key: entry.value for entry in proto.metadata_props}
        try:
            imported = import_graph(proto, name)
        except ModelError:
            raise
        except Exception as error:  # a damaged file can be wrong in any way
            raise ModelError(
                f"{name} cannot be understood: {type(error).__name__}: {error}"
            ) from error
        self.layers = imported.layers
        self.on_host = imported.on_host
        self.inputs = imported.inputs
        self.outputs = tuple(output.name for output in proto.graph.output)
        self._open_axes = imported.open_axes
        self._proto = imported.rewritten
        self._begin()

    @property
    def in_windows(self) -> "tuple[Model, ...]":
        """The model with the scales of each window; itself, if there is one."""
        return self._in_windows or (self,)

    @classmethod
    def load(cls, path: Path | str) -> "Model":
        """Read a model from a file.

        Raises
        ------
        ModelError
            If there is no such file, or it is no usable QDQ model.
        """
        return cls(read(path), str(path))

    def clone(self) -> "Model":
        """Return an equal model that another thread can run."""
        other = object.__new__(Model)
        other.__dict__.update(self.__dict__)
        other._begin()
        other._in_windows = tuple(part.clone() for part in self._in_windows)
        return other

    def run(self, inputs: Mapping[str, NDArray[Any]], accelerate: Accelerate) -> list[NDArray[Any]]:
        """Evaluate the model.

        Parameters
        ----------
        inputs
            One array for each input, with a batch of 1.
        accelerate
            Evaluates the layers for the device.

        Returns
        -------
        list of arrays
            The outputs.

        Raises
        ------
        ModelError
            If the inputs do not fit the model, or the host cannot evaluate an operator.
        """
        if set(inputs) != set(self.inputs):
            raise ModelError(
                f"{self.name} takes the inputs {', '.join(self.inputs)}, not {', '.join(inputs)}"
            )
        for name, (shape, dtype) in self.inputs.items():
            got = np.shape(inputs[name])
            if len(got) != len(shape) or any(w and w != g for w, g in zip(shape, got, strict=True)):
                wanted = ", ".join(str(size) if size else "?" for size in shape)
                raise ModelError(f"input {name} of {self.name} has shape ({wanted}), not {got}")
            if inputs[name].dtype != dtype:
                raise ModelError(
                    f"input {name} of {self.name} is of type {dtype}, not {inputs[name].dtype}"
                )
        failure: list[BaseException] = []

        def guarded(index: int, *operands: NDArray[np.float32]) -> NDArray[np.float32]:
            begun = time.perf_counter()
            try:
                return accelerate(index, *operands)
            except BaseException as error:
                failure.append(error)
                raise
            finally:
                self.layer_seconds += time.perf_counter() - begun

        self._accelerate = guarded
        try:
            with np.errstate(all="ignore"):
                outputs: Any = self._evaluator.run(None, dict(inputs))
                return list(outputs)
        except Exception as error:
            if failure:
                raise failure[0] from None
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"the host cannot evaluate {self.name}: {error}") from error
        finally:
            self._accelerate = None

    def shapes(self, inputs: Mapping[str, NDArray[Any]] | None = None) -> tuple[Any, ...]:
        """Return the shape of the input of every layer, by a run on zeros; two of a product.

        Parameters
        ----------
        inputs
            Run on these instead.

        Raises
        ------
        ModelError
            If the model leaves more than the batch open or takes too large inputs, and none are
            given; or if a layer is not evaluated exactly once in a run.
        """
        if inputs is None:
            for name, axes in self._open_axes.items():
                for axis, label in axes.items():
                    known = f" ({label})" if label else ""
                    raise ModelError(
                        f"{self.name} leaves the size of its input {name} open at axis {axis}"
                        f"{known}; export it with fixed sizes"
                    )
            for name, (shape, dtype) in self.inputs.items():
                if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > _MOST_BYTES:
                    raise ModelError(
                        f"input {name} of {self.name} has the shape {tuple(shape)}; sizes are "
                        f"positive, and an input has at most {_MOST_BYTES} bytes"
                    )
            inputs = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.inputs.items()}
        found: dict[int, Any] = {}

        def record(index: int, *operands: NDArray[np.float32]) -> NDArray[np.float32]:
            layer = self.layers[index]
            if index in found:
                raise ModelError(f"layer {layer.name} is evaluated twice in a run")
            shapes = tuple(x.shape for x in operands)
            if isinstance(layer, Linear):
                found[index] = shapes[0]
                image = layer.image(shapes[0])
                height, width = layer.output_image(image)
                if height < 1 or width < 1:
                    raise ModelError(
                        f"layer {layer.name} has no output for an input of {shapes[0]}"
                    )
                if max(height * width, math.prod(image)) > _MOST_POSITIONS:
                    raise ModelError(
                        f"layer {layer.name} makes {height} x {width} positions of {image[0]} x "
                        f"{image[1]}; at most {_MOST_POSITIONS} are possible"
                    )
                return np.zeros(layer.output_shape(shapes[0]), np.float32)
            found[index] = shapes
            layer.sizes(shapes)
            return np.zeros(layer.output_shape(shapes), np.float32)

        self.run(inputs, record)
        self.host_seconds.clear()
        self.layer_seconds = 0.0
        missing = [layer.name for i, layer in enumerate(self.layers) if i not in found]
        if missing:
            raise ModelError(f"layer {missing[0]} of {self.name} is not evaluated in a run")
        return tuple(found[i] for i in range(len(self.layers)))

    def _begin(self) -> None:
        """Make the evaluator, and begin to measure."""
        self._accelerate: Accelerate | None = None
        self.host_seconds: defaultdict[str, float] = defaultdict(float)
        self.layer_seconds = 0.0
        model = self

        class Accelerated(OpRun):
            op_domain = DOMAIN

            def _run(self, *operands: Any, layer: int | None = None) -> tuple[Any]:
                assert layer is not None and model._accelerate is not None
                return (model._accelerate(layer, *operands),)

        try:
            self._evaluator = ReferenceEvaluator(self._proto, new_ops=[Accelerated])
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(
                f"the host cannot evaluate {self.name}: {_unknown(self._proto) or reason} "
                "(quantize at opset 19, which onnx.reference knows best)"
            ) from error
        for node in self._evaluator.rt_nodes_:
            if node.onnx_node.domain != DOMAIN:
                setattr(node, "run", self._timed(node.run, node.onnx_node))  # noqa: B010

    def _timed(self, run: Callable[..., Any], node: onnx.NodeProto) -> Callable[..., Any]:
        """Measure what a node takes, and name it if it fails."""

        def timed(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return run(*arguments, **options)
            except Exception as error:
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise ModelError(
                    f"the host cannot evaluate node {node.name or node.output[0]} "
                    f"({node.op_type}) of {self.name}: {reason}"
                ) from error
            finally:
                self.host_seconds[node.op_type] += time.perf_counter() - begun

        return timed


def _unknown(proto: onnx.ModelProto) -> str | None:
    """Say which node's operator ``onnx.reference`` does not know; None if it knows all."""
    for node in proto.graph.node:
        if node.domain == DOMAIN:
            continue
        alone = onnx.ModelProto()
        alone.opset_import.extend(proto.opset_import)
        alone.functions.extend(proto.functions)
        alone.graph.node.append(node)
        try:
            ReferenceEvaluator(alone)
        except Exception:  # each operator has its own
            operator = f"{node.domain}.{node.op_type}".lstrip(".")
            return f"node {node.name or node.output[0]} has the unknown operator {operator}"
    return None
