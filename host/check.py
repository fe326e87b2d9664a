"""What makes a model file unusable, found before anything runs: by node, tensor and remedy."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from ditto.host.model import ModelError

__all__ = ["available_memory", "check", "foreign", "label", "load"]

_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_LIMIT = 1 << 31  # of a protobuf message, which a model is
_COPIES = 4  # of a model's constants while it is read and checked
# Infinity is no number for these; elsewhere it may be a mask.
_FINITE = ("Conv", "ConvTranspose", "Gemm", "MatMul", "QuantizeLinear", "DequantizeLinear")


def available_memory() -> int | None:
    """Return the bytes of memory that programs can have; None where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text("ascii")
    except OSError:  # only Linux has it
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return None if found is None else 1024 * int(found[1])


def load(path: Path | str) -> onnx.ModelProto:
    """Read a model with all its constants, also those in files beside it.

    Raises
    ------
    ModelError
        If it is larger than memory, or than what ONNX can hold in one piece.
    OSError
        If it cannot be read.
    """
    _check_size(path, Path(path).stat().st_size, "")
    proto = onnx.load(str(path), load_external_data=False)
    outside = [t for t in proto.graph.initializer if external_data_helper.uses_external_data(t)]
    if outside:
        sizes = {
            tensor.name: math.prod(tensor.dims)
            * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            for tensor in outside
        }
        largest = max(sizes, key=lambda name: sizes[name])
        text = f"; the largest tensor is {largest} with {sizes[largest]:,}"
        _check_size(path, proto.ByteSize() + sum(sizes.values()), text)
        external_data_helper.load_external_data_for_model(proto, str(Path(path).parent))
    return proto


def _check_size(path: Path | str, size: int, more: str) -> None:
    free = available_memory()
    if size >= _LIMIT:
        raise ModelError(
            f"{path} has {size:,} bytes of constants{more}, but only models below {_LIMIT:,} bytes "
            "can be taken; export a smaller one"
        )
    if free is not None and _COPIES * size > free:
        raise ModelError(
            f"{path} has {size:,} bytes of constants{more}; it takes {_COPIES} times that to read "
            f"them, and only {free:,} bytes of memory are free: take a larger machine, or a "
            "smaller model"
        )


def label(node: onnx.NodeProto) -> str:
    """Return how messages call a node."""
    return f"{node.name or node.output[0]} ({node.op_type})"


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes, those of inner graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def foreign(proto: onnx.ModelProto) -> str:
    """Name the first node that is of no domain of ONNX; empty if there is none."""
    own = {function.name for function in proto.functions}
    for node in _nodes(proto.graph):
        if not node.domain.startswith("ai.onnx") and node.domain and node.op_type not in own:
            return (
                f"node {label(node)} is of the domain {node.domain}; export the model with ONNX's "
                "own operators"
            )
    return ""


def check(proto: onnx.ModelProto, name: str) -> None:
    """Refuse a model that nothing can evaluate, or that makes no sense.

    Parameters
    ----------
    proto
        The model.
    name
        How messages call it.

    Raises
    ------
    ModelError
        For an unknown operator, 16-bit floats, constants that are no numbers, and scales that are
        not above zero.
    """
    nodes = list(_nodes(proto.graph))
    users: dict[str, onnx.NodeProto] = {}
    constants = list(proto.graph.initializer)
    for node in nodes:
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type):
            raise ModelError(
                f"node {label(node)} of {name} is of an operator that ONNX does not have; write "
                "it with ONNX's own operators, or put it in the domain of its library"
            )
        for value in node.input:
            users.setdefault(value, node)
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            constants.append(tensor)

    def where(tensor: str) -> str:
        user = users.get(tensor)
        return f"tensor {tensor} of {name}" + (f", read by node {label(user)}," if user else "")

    kinds = [(value.name, value.type.tensor_type.elem_type) for value in proto.graph.input]
    kinds += [(tensor.name, tensor.data_type) for tensor in constants]
    for tensor, kind in kinds:
        if kind in _NARROW:
            raise ModelError(
                f"{where(tensor)} is of type {helper.tensor_dtype_to_np_dtype(kind)}; export the "
                "model in float32"
            )
    for tensor in constants:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values, user = numpy_helper.to_array(tensor), users.get(tensor.name)
        if np.isnan(values).any() or (
            user is not None and user.op_type in _FINITE and not np.isfinite(values).all()
        ):
            raise ModelError(
                f"{where(tensor.name)} contains values that are no numbers; the training has "
                "diverged, or the export is damaged"
            )
    scales: dict[str, onnx.NodeProto] = {}
    for node in nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 1:
            scales.setdefault(node.input[1], node)
    for tensor in constants:
        node = scales.get(tensor.name)
        if node is not None and tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            if not (values > 0).all():
                raise ModelError(
                    f"tensor {node.input[0]} of {name}, read by node {label(node)}, has the "
                    f"scale {values.min():g}, but scales must be above zero; quantize it again"
                )
