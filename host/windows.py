"""Step windows: parts of a trajectory with scales of their own.

The range of an activation drifts while an image emerges. A QDQ file has one scale for each tensor,
which holds for all timesteps; the property ``ditto.windows`` may add sets of scales for parts of
the trajectory, as JSON::

    [{"from": 500, "scales": {"x_scale": 0.021, ...}}, {"from": 0, "scales": {...}}]

A timestep belongs to the first window that begins at or below it. Weights are the same in all
windows. Where the window changes, nothing that is kept fits any more: that step is dense.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from ditto.host.model import ModelError

__all__ = ["PROPERTY", "Windows", "activation_scales"]

PROPERTY = "ditto.windows"


def activation_scales(proto: onnx.ModelProto) -> dict[str, float]:
    """Return the scales of all quantized activations: value by name of the constant."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    result = {}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in constants:
            values = numpy_helper.to_array(constants[node.input[1]])
            if values.size == 1:
                result[node.input[1]] = float(values.reshape(()))
    return result


@dataclass(frozen=True)
class Windows:
    """The windows of a model.

    Parameters
    ----------
    first
        The lowest timestep of each, falling; the last is 0.
    scales
        Of each, the scale of every tensor that has one of its own: value by name.
    """

    first: tuple[int, ...] = (0,)
    scales: tuple[Mapping[str, float], ...] = ({},)

    @classmethod
    def of(cls, proto: onnx.ModelProto, name: str) -> "Windows":
        """Read the windows of a model; one, if it says nothing.

        Parameters
        ----------
        proto
            The model as read from its file.
        name
            How messages call it.

        Raises
        ------
        ModelError
            If they cannot be understood, or name scales that the model does not have.
        """
        text = {entry.key: entry.value for entry in proto.metadata_props}.get(PROPERTY)
        if text is None:
            return cls()
        try:
            parts = json.loads(text)
            first = tuple(int(part["from"]) for part in parts)
            scales = tuple({k: float(v) for k, v in part["scales"].items()} for part in parts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{name} has a property {PROPERTY} that is none: {error!r}") from error
        if not first or first[-1] != 0 or list(first) != sorted(set(first), reverse=True):
            raise ModelError(f"the windows of {name} must begin at falling timesteps, down to 0")
        known = activation_scales(proto)
        for own in scales:
            for tensor, value in own.items():
                if tensor not in known:
                    raise ModelError(f"{name} has windows for {tensor}, which is no scale of it")
                if not (np.isfinite(value) and value > 0):
                    raise ModelError(
                        f"{name} has a window with the scale {value:g} for {tensor}; quantize it "
                        "again"
                    )
        return cls(first, scales)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.first)

    def at(self, timestep: float) -> int:
        """Return the number of the window that a timestep belongs to."""
        return next((i for i, first in enumerate(self.first) if timestep >= first), len(self) - 1)

    @property
    def names(self) -> tuple[str, ...]:
        """Scales that differ between windows."""
        return tuple(sorted({name for own in self.scales for name in own}))

    def apply(self, proto: onnx.ModelProto, window: int) -> onnx.ModelProto:
        """Return a model with the scales of a window, and without windows."""
        result = onnx.ModelProto()
        result.CopyFrom(proto)
        for tensor in result.graph.initializer:
            if tensor.name in self.scales[window]:
                value = np.float32(self.scales[window][tensor.name])
                shape = tuple(tensor.dims)
                tensor.CopyFrom(numpy_helper.from_array(np.full(shape, value), tensor.name))
        kept = [entry for entry in proto.metadata_props if entry.key != PROPERTY]
        del result.metadata_props[:]
        result.metadata_props.extend(kept)
        return result

    def dump(self) -> str:
        """Return the property's text."""
        parts = zip(self.first, self.scales, strict=True)
        return json.dumps([{"from": first, "scales": dict(own)} for first, own in parts])
