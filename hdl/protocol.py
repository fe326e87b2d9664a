"""What crosses the link: opcodes, headers, the layer table and the counters.

Defined once and imported by the gateware, the golden model and the driver. All fields are
little-endian and every structure is a whole number of bytes.

A frame is ``COBS(body + CRC-32(body))`` between zero bytes. A command's body is a
:class:`CommandHeader` and data; a response's body is a :class:`ResponseHeader` and data.

======== ============================= ==========================================================
opcode   uses                          effect; data of the response
======== ============================= ==========================================================
IDENTIFY --                            begins a session at ``sequence``; :func:`identity`
RESET    --                            forgets which layers hold accumulators, and the deltas
WRITE    space, bank, address, count   stores the data, see :class:`Space`
RUN      address, mode                 runs a layer-table entry; :class:`Counters` of the run
READ     space, address, count, size   first ``size`` bytes of ``count`` words: of ``DECISIONS``, or
                                       in any other space of the accumulators of each cluster,
                                       cluster by cluster
COUNTERS --                            :class:`Counters` of the last run and the last tile
======== ============================= ==========================================================

Inside a session, ``sequence`` grows by one with each command, modulo 2**16. A command that repeats
the last one's header is answered again and not carried out again; any other is refused. A command
that is refused with ``NO_SESSION`` or ``BAD_SEQUENCE`` leaves the sequence as it is.
"""

# Amaranth's structures are written with shapes where a type checker expects types.
# pyright: reportGeneralTypeIssues=false

import enum as py_enum
import struct
from functools import cache
from typing import NamedTuple

from amaranth.hdl import Shape, signed, unsigned
from amaranth.lib import data, enum

from ditto.hdl.config import DECISION_WORDS

__all__ = [
    "COUNTERS",
    "COUNT_BITS",
    "DECISION_WORDS",
    "ESCAPE",
    "MAGIC",
    "MOST_LEAD",
    "NO_BUILD",
    "OF_INPUTS",
    "VERSION",
    "CommandError",
    "CommandHeader",
    "Counters",
    "Decision",
    "LayerEntry",
    "Mode",
    "Opcode",
    "ResponseHeader",
    "Rule",
    "Space",
    "Status",
    "identity",
    "item_layout",
    "pack",
    "size",
    "unpack",
]

MAGIC = b"DITT"
"""The first bytes of what IDENTIFY answers."""

VERSION = 5
"""Version of everything in this module."""

NO_BUILD = bytes(8)
"""Build of a device that was not built for a board."""

COUNT_BITS = 24
"""Width of the counts in the table of decisions; they wrap around."""

ESCAPE = 0x80
"""Byte of a delta stream that announces a delta of two bytes; see :attr:`Space.DELTAS`."""


class Opcode(enum.Enum, shape=8):
    """What a command asks for."""

    IDENTIFY = 1
    RESET = 2
    WRITE = 3
    RUN = 4
    READ = 5
    COUNTERS = 6


class Space(enum.Enum, shape=8):
    """Where WRITE puts its data, and READ takes it from."""

    #: Layer table: :class:`LayerEntry` structures from entry ``address`` on.
    LAYERS = 0
    #: Weight bank of cluster ``bank``: words of ``columns`` packed weights from row ``address`` on.
    WEIGHTS = 1
    #: Difference buffer, through the encoder: the deltas of layer-table entry ``address``, position
    #: by position, channels in order. One byte each for -127..127; the byte 0x80 announces a delta
    #: of two bytes. ``count`` is 0 for the frame that begins a tile, which empties the buffer and
    #: gives the mode of the run. Between dense and temporal, RUN may still choose.
    DELTAS = 2
    #: The same with quantized inputs, a byte each: the device takes the differences itself. Needs a
    #: reference buffer. From the tile's beginning to the end of its run, the entry holds no
    #: accumulators: a tile that is never run cannot part them from the references. Nor does the
    #: device know the inputs that deltas were taken from, so an entry gets one or the other.
    INPUTS = 3
    #: Table of decisions: words of 32 bits, :data:`DECISION_WORDS` for each decision: a
    #: :class:`Decision`, and what the current step has taken by :class:`Mode`, see :class:`Rule`.
    DECISIONS = 4


class Mode(enum.Enum, shape=8):
    """What the accumulators of a run start from."""

    DENSE = 0
    TEMPORAL = 1
    #: The accumulators of the cluster's output position before in the line: deltas are differences
    #: along lines, see :func:`ditto.sim.spatial.spatial`.
    SPATIAL = 2
    #: In a command: what the table of decisions says, for INPUTS; the tile's mode, for RUN.
    AUTO = 3


class Rule(enum.Enum, shape=2):
    """How the table of decisions chooses the mode of a decision's entries.

    An entry that holds no accumulators is at rest, whatever was chosen: spatial where the decision
    allows it, dense otherwise. The table learns from runs whose tile was begun with ``AUTO``, and
    chooses after those of entries that have ``decides``.
    """

    #: The mode that the host has written.
    FIXED = 0
    #: Run-time Defo: one step at rest, the next one temporal, then whichever took fewer cycles. The
    #: words hold the cycles.
    DEFO = 1
    #: After each step the mode with the fewest digits, if it saves at least 1/64 of those of the
    #: present one; temporal after a step in which an entry held no accumulators. The words hold the
    #: digits.
    ADAPTIVE = 2


class Status(enum.Enum, shape=8):
    """How a command ended."""

    OK = 0
    #: The opcode, space, bank or mode does not exist.
    BAD_COMMAND = 1
    #: An address lies outside its memory, or data ends within a word.
    BAD_ADDRESS = 2
    #: No IDENTIFY since the device's reset.
    NO_SESSION = 3
    #: The sequence is not the next, and the header not the last one.
    BAD_SEQUENCE = 4
    #: A temporal run, or a tile of inputs for one, of an entry that holds no accumulators.
    NO_STATE = 5
    #: The difference buffer does not hold exactly the positions of the entry, or those of another
    #: mode; or its inputs do not fit the reference buffer. A run uses the deltas up, even one that
    #: is refused; so does writing the layer table.
    NO_DELTAS = 6
    #: The layer-table entry has a zero size, does not fit the device or may not run in this mode.
    BAD_LAYER = 7


class CommandHeader(data.Struct):
    """First bytes of a command."""

    sequence: 16
    op: Opcode
    mode: Mode
    space: Space
    bank: 8
    address: 16
    count: 16
    size: 16


class ResponseHeader(data.Struct):
    """First bytes of a response: the command's sequence and opcode, and how it ended."""

    sequence: 16
    op: Opcode
    status: Status


MOST_LEAD = 240
"""Most columns of the input image by which a line of a spatial run may begin before its first
window: ``lead * split * stride_x`` of a :class:`LayerEntry`."""


class LayerEntry(data.Struct):
    """Everything that a run needs to know of a layer, or of one tile of it.

    A linear layer is a 1x1 convolution over an image of height 1. A tile of a bigger layer is an
    entry of its own, whose image is the part of the input that the tile's kernels touch.

    The output positions are split among the clusters: cluster ``c`` computes, in output row ``y``,
    those with ``x % split == (c + skew * y) % split``, for all ``tiles``. Clusters that compute the
    same positions hold the weights of other output channels.
    """

    #: Size of the input image, in positions.
    in_height: 16
    in_width: 16
    #: ``in_height * in_width``.
    positions: 16
    #: Input channels of a position.
    channels: 16
    out_height: 16
    out_width: 16
    kernel_height: 4
    kernel_width: 4
    stride_y: 4
    stride_x: 4
    dilation_y: 4
    dilation_x: 4
    #: Rows and columns of zeros before the image; what is missing behind it is zero too.
    pad_top: 4
    pad_left: 4
    #: Column tiles of a cluster.
    tiles: 16
    #: First row in the weight banks: tile-major, then tap, then channel.
    weight_base: 16
    #: First word in the accumulator buffers: tile-major, then the cluster's output positions.
    accumulator_base: 16
    #: Shares into which the output positions are split, 1..clusters.
    split: 8
    #: Columns by which the shares move from one output row to the next, less than ``split``.
    skew: 8
    #: Spatial runs: whether the entry may have them; positions behind each line of the image whose
    #: differences are from the zeros there; and rows of a line before its first output position,
    #: which are not written, see ``MOST_LEAD``.
    spatial: 1
    margin: 4
    lead: 4
    #: The entry of the decision table that chooses the mode of this entry, and whether a run of
    #: this entry is the last one before it chooses again.
    decides: 1
    reserved: 6
    decision: 8
    #: Zero point of the inputs, in two's complement.
    zero_point: 8
    #: Temporal deltas of at most this magnitude are not applied, and stay in the residual.
    threshold: 8
    #: First byte of the entry's inputs in the reference buffer.
    reference_base: 24


OF_INPUTS = frozenset({"decides", "decision", "zero_point", "threshold", "reference_base"})
"""Fields of a :class:`LayerEntry` that only a device reads which takes differences itself."""


class Decision(data.Struct):
    """What the table of decisions holds of a decision, besides counts.

    ``rule`` and ``spatial`` are the host's; with a fixed rule, ``mode`` is, too.
    """

    rule: Rule
    #: Whether its entries may be spatial: all of them, or none.
    spatial: 1
    #: Mode of the next runs of entries that hold accumulators.
    mode: 2
    #: Steps since RESET, up to 2.
    steps: 2
    #: An entry held no accumulators in the current step.
    blind: 1
    reserved: 24


class Counters(NamedTuple):
    """Exact counts of one run and of the deltas that were encoded for it, 32 bits each.

    Those of the deltas begin at zero with each tile, the others with each run.

    Stalls of the array are counted in lane cycles: ``items + stall_row + stall_item +
    stall_cluster == clusters * lanes * cycles``.
    """

    #: Clock cycles from the start of the run until its last accumulators were written.
    cycles: int = 0
    #: Work items that the lanes took.
    items: int = 0
    #: Deltas that are zero, that fit the low digit, and others.
    zero: int = 0
    narrow: int = 0
    wide: int = 0
    #: A lane waited for the other one of its cluster at the end of an output row.
    stall_row: int = 0
    #: A cluster had no row at work: filling, draining, sequencer behind the lanes.
    stall_item: int = 0
    #: A cluster had written its last accumulators and waited for the others.
    stall_cluster: int = 0
    #: Work items that a position-by-position encoding of the inputs has in each mode, whatever the
    #: tile's: 0 if deltas were sent, without accumulators to be temporal, or where spatial runs are
    #: not allowed.
    digits_dense: int = 0
    digits_temporal: int = 0
    digits_spatial: int = 0
    #: :class:`Mode` of the run.
    mode: int = 0
    #: Cycles in which the encoder waited for the link in the middle of a tile.
    stall_link: int = 0

    def __add__(self, other: "Counters") -> "Counters":  # type: ignore[override]
        """Add the counts of two runs; the mode is that of the second."""
        total = Counters(*(a + b for a, b in zip(self, other, strict=True)))
        return total._replace(mode=other.mode)

    @classmethod
    def unpack(cls, raw: bytes) -> "Counters":
        """Decode the counters of a response.

        Raises
        ------
        ValueError
            If ``raw`` has another length.
        """
        if len(raw) != 4 * len(cls._fields):
            raise ValueError(f"counters have {4 * len(cls._fields)} bytes, not {len(raw)}")
        return cls(*struct.unpack(f"<{len(cls._fields)}I", raw))


COUNTERS = data.StructLayout(dict.fromkeys(Counters._fields, 32))
"""Layout of :class:`Counters` in the gateware and on the link."""


class CommandError(Exception):
    """A command that the device refuses.

    Parameters
    ----------
    status
        What the device answers.
    detail
        What was asked of it.
    """

    def __init__(self, status: Status, detail: str = "") -> None:
        self.status = status
        super().__init__(f"{status.name}{': ' if detail else ''}{detail}")


def item_layout(*, channel_bits: int, digit_bits: int, shift_bits: int) -> data.StructLayout:
    """Lay out a work item: channel, digit, and shift in digits."""
    return data.StructLayout(
        {
            "channel": unsigned(channel_bits),
            "digit": signed(digit_bits),
            "shift": unsigned(shift_bits),
        }
    )


@cache
def _fields(shape: type[data.Struct]) -> dict[str, tuple[int, int]]:
    """Return the offset and the width of each field, in bits."""
    return {str(name): (field.offset, field.width) for name, field in data.Layout.cast(shape)}


@cache
def size(shape: type[data.Struct]) -> int:
    """Return the bytes of a structure of this module."""
    return Shape.cast(shape).width // 8


def pack(shape: type[data.Struct], /, **values: int | py_enum.Enum) -> bytes:
    """Encode a structure of this module; fields that are not given are zero.

    Raises
    ------
    ValueError
        If there is no such field, or a value does not fit it.
    """
    fields = _fields(shape)
    bits = 0
    for name, value in values.items():
        number = int(value.value if isinstance(value, py_enum.Enum) else value)
        if name not in fields:
            raise ValueError(f"{shape.__name__} has no field {name!r}")
        offset, width = fields[name]
        if not 0 <= number < 1 << width:
            raise ValueError(f"{shape.__name__}.{name} has {width} bits: {number} does not fit")
        bits |= number << offset
    return bits.to_bytes(size(shape), "little")


def unpack(shape: type[data.Struct], raw: bytes) -> dict[str, int]:
    """Decode a structure of this module into plain integers.

    Raises
    ------
    ValueError
        If ``raw`` has another length than the structure.
    """
    if len(raw) != size(shape):
        raise ValueError(f"{shape.__name__} has {size(shape)} bytes, not {len(raw)}")
    bits = int.from_bytes(raw, "little")
    return {
        name: bits >> offset & (1 << width) - 1 for name, (offset, width) in _fields(shape).items()
    }


def identity(digest: bytes, parameters: bytes, build: bytes = NO_BUILD) -> bytes:
    """Return what IDENTIFY answers: magic, version, digest of the configuration, build, parameters.

    Parameters
    ----------
    digest, parameters
        Of the configuration.
    build
        Eight bytes of a hash of what the device was made of, or :data:`NO_BUILD`.
    """
    return MAGIC + VERSION.to_bytes(4, "little") + digest + build + parameters
