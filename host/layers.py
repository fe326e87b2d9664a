"""What the device computes of a model: linear layers, and products of two activations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Layer", "Linear", "ModelError", "Product", "Quantization"]


class ModelError(Exception):
    """A model file that cannot be used, or inputs that do not fit it."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How a tensor is quantized: ``q = round_half_even(x / scale) + zero_point``, clipped.

    Parameters
    ----------
    scale
        What a step stands for.
    zero_point
        What stands for zero.
    low, high
        Range of ``q``.
    """

    scale: np.float32
    zero_point: int
    low: int
    high: int

    def quantize(self, x: NDArray[np.float32], name: str) -> NDArray[np.int64]:
        """Quantize a tensor of the layer ``name``.

        Raises
        ------
        ModelError
            If a value is not a number.
        """
        q = np.rint(x / self.scale) + np.float32(self.zero_point)
        q = np.clip(q, self.low, self.high)
        if np.isnan(q).any():
            raise ModelError(f"the input of layer {name} contains values that are no numbers")
        return q.astype(np.int64)

    @property
    def largest(self) -> int:
        """Largest magnitude of ``q - zero_point``."""
        return max(self.high - self.zero_point, self.zero_point - self.low)


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """A layer with constant weights: a convolution, or a matrix product by a constant.

    ``output = (sum(weights * (q - zero_point)) + bias) * input_scale * weight_scales``, where the
    sum is over kernel taps and input channels.

    Parameters
    ----------
    name
        Name of the node in the file.
    kind
        ``"conv"`` or ``"linear"``.
    weights
        Of shape (output channels, kernel taps, input channels of a group); -255..255.
    weight_scales
        One for each output channel.
    bias
        One for each output channel, in units of ``input_scale * weight_scales``.
    input_scale, zero_point
        Quantization of the input.
    low, high
        Range of the quantized input.
    kernel, stride, dilation
        Vertical and horizontal.
    pads
        Zeros at the top, left, bottom and right.
    groups
        Groups of channels: the outputs of each depend on its inputs only.
    spacing
        Distance of the input's pixels in the image that the kernel sees, with zeros between. More
        than 1 is a transposed convolution, whose kernel is the file's turned by 180 degrees.
    tail
        Rows and columns of zeros behind the last of these pixels.
    axes
        Where a linear layer has the channels of its input and of its output: -1 or -2.
    """

    name: str
    kind: str
    weights: NDArray[np.int8] | NDArray[np.int16]
    weight_scales: NDArray[np.float32]
    bias: NDArray[np.int64]
    input_scale: np.float32
    zero_point: int
    low: int
    high: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    spacing: tuple[int, int] = (1, 1)
    tail: tuple[int, int] = (0, 0)
    axes: tuple[int, int] = (-1, -1)
    scale: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Derive the scale of an accumulator."""
        object.__setattr__(self, "scale", self.input_scale * self.weight_scales)

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return self.weights.shape[0]

    @property
    def taps(self) -> int:
        """Number of kernel taps."""
        return self.weights.shape[1]

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return self.weights.shape[2] * self.groups

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns of the image that a kernel spans."""
        height, width = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        return height, width

    @property
    def is_pointwise(self) -> bool:
        """Whether an output position depends on the same input position only."""
        return self.taps == 1 and self.stride == (1, 1) and not any(self.pads)

    @property
    def is_transposed(self) -> bool:
        """Whether it is a transposed convolution with zeros between the input's pixels."""
        return self.spacing != (1, 1) or any(self.tail)

    @property
    def largest(self) -> int:
        """Largest magnitude that an accumulator can have, for any input in the input's range."""
        weights = self.weights.astype(np.int64)
        ends = [weights * (end - self.zero_point) for end in (self.low, self.high)]
        high = np.maximum(*ends).sum(axis=(1, 2))
        low = np.minimum(*ends).sum(axis=(1, 2))
        return int(max(np.abs(high).max(), np.abs(low).max()))

    def image(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return height and width of the image that the kernel sees, for an input of a shape.

        Tokens, and sequences, are an image of height 1.

        Raises
        ------
        ModelError
            If the shape is not one that the layer can take.
        """
        if self.kind == "conv":
            if len(shape) not in (3, 4) or shape[0] != 1 or shape[1] != self.channels:
                raise ModelError(
                    f"layer {self.name} takes inputs of shape (1, {self.channels}, height, width), "
                    f"not {tuple(shape)}"
                )
            height, width = (1, *shape[2:])[-2:]
            return (
                (height - 1) * self.spacing[0] + 1 + self.tail[0],
                (width - 1) * self.spacing[1] + 1 + self.tail[1],
            )
        if len(shape) < 2 or shape[self.axes[0]] != self.channels:
            wanted = f"..., {self.channels}" + (", positions" if self.axes[0] == -2 else "")
            raise ModelError(
                f"layer {self.name} takes inputs of shape ({wanted}), not {tuple(shape)}"
            )
        return 1, math.prod(shape) // self.channels

    def output_image(self, image: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the output for those of the image that the kernel sees."""
        result = []
        for axis in (0, 1):
            room = image[axis] + self.pads[axis] + self.pads[axis + 2] - self.reach[axis]
            result.append(room // self.stride[axis] + 1)
        return result[0], result[1]

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the output tensor for that of the input tensor."""
        image = self.image(shape)
        if self.kind == "conv":
            return (1, self.outputs, *self.output_image(image)[4 - len(shape) :])
        rest = list(shape)
        del rest[self.axes[0]]
        rest.insert(len(rest) + 1 + self.axes[1], self.outputs)
        return tuple(rest)

    def quantize(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """Quantize an input tensor.

        Returns
        -------
        array of shape (positions, channels)
            ``q``, rounded half to even and clipped to ``low..high``.

        Raises
        ------
        ModelError
            If a value is not a number.
        """
        given = Quantization(
            scale=self.input_scale, zero_point=self.zero_point, low=self.low, high=self.high
        )
        q = given.quantize(x, self.name)
        return np.moveaxis(q, self._axis(0), -1).reshape(-1, self.channels)

    def dequantize(
        self, accumulators: NDArray[np.int64], shape: Sequence[int]
    ) -> NDArray[np.float32]:
        """Make the output tensor from accumulators, and the bias.

        Parameters
        ----------
        accumulators
            Of shape (output positions, output channels).
        shape
            Shape of the input tensor.
        """
        y = (accumulators + self.bias).astype(np.float32) * self.scale
        target = list(self.output_shape(shape))
        del target[self._axis(1)]
        return np.ascontiguousarray(
            np.moveaxis(y.reshape(*target, self.outputs), -1, self._axis(1))
        )

    def _axis(self, side: int) -> int:
        """Return the axis of the channels, in the input or in the output."""
        return 1 if self.kind == "conv" else self.axes[side]


@dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """A matrix product of two activations, such as the two of an attention.

    ``output = sum((q_left - zero_point) * (q_right - zero_point)) * scale``.

    Parameters
    ----------
    name
        Name of the node in the file.
    left, right
        Quantization of the operands.
    fixed
        Whether the right operand is the same in every step of a sample, such as the keys of a
        cross-attention.
    """

    name: str
    left: Quantization
    right: Quantization
    fixed: bool = False

    @property
    def scale(self) -> np.float32:
        """What a step of an accumulator stands for."""
        return self.left.scale * self.right.scale

    def sizes(self, shapes: Sequence[Sequence[int]]) -> tuple[int, int, int, int]:
        """Return the sizes for operands of two shapes: heads, rows, inner size, columns.

        Each head is a product by itself. One right operand for all heads makes them one head.

        Raises
        ------
        ModelError
            If the shapes do not fit each other.
        """
        left, right = shapes
        try:
            batch = np.broadcast_shapes(left[:-2], right[:-2])
        except ValueError:
            batch = None
        if batch is None or min(len(left), len(right)) < 2 or left[-1] != right[-2]:
            raise ModelError(
                f"layer {self.name} cannot multiply operands of shapes {tuple(left)} and "
                f"{tuple(right)}"
            )
        heads = math.prod(batch)
        if math.prod(right[:-2]) == 1:
            return 1, heads * left[-2], left[-1], right[-1]
        return heads, left[-2], left[-1], right[-1]

    def largest(self, shapes: Sequence[Sequence[int]]) -> int:
        """Largest magnitude that an element of the result can have, before it is scaled."""
        return self.sizes(shapes)[2] * self.left.largest * self.right.largest

    def output_shape(self, shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Return the shape of the output tensor for those of the operands."""
        left, right = shapes
        return (*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])

    def quantize(
        self, left: NDArray[np.float32], right: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Quantize the operands.

        Returns
        -------
        arrays of shapes (heads, rows, inner size) and (heads, inner size, columns)

        Raises
        ------
        ModelError
            If a value is not a number.
        """
        heads, rows, inner, columns = self.sizes((left.shape, right.shape))
        batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        left = np.broadcast_to(left, (*batch, *left.shape[-2:]))
        if heads > 1:
            right = np.broadcast_to(right, (*batch, inner, columns))
        return (
            self.left.quantize(left, self.name).reshape(heads, rows, inner),
            self.right.quantize(right, self.name).reshape(heads, inner, columns),
        )

    def dequantize(
        self, accumulators: NDArray[np.int64], shapes: Sequence[Sequence[int]]
    ) -> NDArray[np.float32]:
        """Make the output tensor from accumulators of shape (heads, rows, columns)."""
        return (accumulators.astype(np.float32) * self.scale).reshape(self.output_shape(shapes))


Layer = Linear | Product
"""A layer for the device."""
