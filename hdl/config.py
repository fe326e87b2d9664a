"""The one description of a device: every number that gateware, models and driver share."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, NamedTuple, Self

__all__ = ["DECISION_WORDS", "Config", "ConfigError", "MemoryUse", "Multiplier", "demo"]

DECISION_WORDS = 4
"""Words of 32 bits that the table of decisions has for each of them: a
:class:`ditto.hdl.protocol.Decision`, and a count by mode."""


class ConfigError(ValueError):
    """A configuration that cannot be built, with the bound it breaks and by how much."""


class Multiplier(StrEnum):
    """What the multipliers are made for."""

    #: Lookup tables: two radix-4 Booth rows for four bits of a digit.
    LUT = "lut"
    #: Multiplier blocks. Two columns share a block of 18 x 18 bits where the widths allow.
    DSP = "dsp"


class MemoryUse(NamedTuple):
    """One kind of memory of a device: ``count`` memories of ``depth`` words of ``width`` bits."""

    name: str
    count: int  # type: ignore[override]
    depth: int
    width: int

    @property
    def bits(self) -> int:
        """Size of all of them together, in bits."""
        return self.count * self.depth * self.width


_RANGES = {
    "clusters": (1, 16, "clusters"),
    "lanes": (1, 2, "lanes"),
    "columns": (1, 128, "columns"),
    "digit_bits": (2, 9, "bits"),
    "activation_bits": (2, 8, "bits"),
    "weight_bits": (2, 8, "bits"),
    "accumulator_bits": (8, 48, "bits"),
    "weight_rows": (2, 1 << 16, "words"),
    "accumulator_rows": (2, 1 << 16, "words"),
    "item_depth": (2, 1 << 16, "items"),
    "positions": (2, 1 << 15, "positions"),
    "channels": (1, 1 << 12, "channels"),
    "list_depth": (2, 225, "entries"),
    "layers": (2, 1 << 12, "entries"),
    "frame_bytes": (64, 1 << 14, "bytes"),
    "skip": (0, 1, ""),
    "reference_depth": (0, 1 << 20, "inputs"),
    "neighbour_depth": (0, 1 << 16, "inputs"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Parameters of a device; immutable, and valid once it exists.

    One configuration gives one Verilog file, one golden model and one driver's view of the device.

    Parameters
    ----------
    clusters
        Clusters of the array, 1..16. Each has its own weight bank, accumulator buffer and copy of
        the work items, and computes other output positions or other output channels.
    lanes
        Lanes of a cluster, 1 or 2: work items that it takes in a cycle, each with a read port of
        the weight bank.
    columns
        Columns of a cluster: output channels computed side by side, 1..128.
    digit_bits
        Width of a signed digit, 2..9 and at most ``activation_bits + 1``.
    activation_bits
        Width of a signed quantized activation, 2..8. A delta has one bit more.
    weight_bits
        Width of a signed weight, 2..8.
    accumulator_bits
        Width of a signed accumulator, 8..48.
    weight_rows
        Words in each weight bank; a word holds one weight for every column.
    accumulator_rows
        Words in each accumulator buffer; a word holds one accumulator for every
        column.
    item_depth
        Work items that the difference buffer holds.
    positions
        Positions (pixels, tokens) that the difference buffer holds.
    channels
        Most input channels of a layer.
    list_depth
        Kernel taps that the sequencer prepares ahead; the largest kernel has this many taps.
    layers
        Entries of the layer table.
    frame_bytes
        Longest frame that the device takes, header and check included, before stuffing.
    multiplier
        What the multipliers are made for, see :class:`Multiplier`.
    skip
        Whether zero digits are skipped, 0 or 1. Without, the array is a dense one to compare with:
        it multiplies every value as a whole, and ``digit_bits`` is ``activation_bits + 1``.
    reference_depth
        Inputs that the reference buffer holds: of all layers, for a device that takes differences
        itself. 0 if the host sends differences.
    neighbour_depth
        Latest inputs that are held for spatial differences: those of ``split * stride_x`` positions
        of a layer. 0 if the device takes none.

    Raises
    ------
    TypeError
        If a parameter is not an integer.
    ConfigError
        If a parameter or a combination is out of bounds.
    """

    clusters: int = 4
    lanes: int = 2
    columns: int = 16
    digit_bits: int = 4
    activation_bits: int = 8
    weight_bits: int = 8
    accumulator_bits: int = 32
    weight_rows: int = 1024
    accumulator_rows: int = 2048
    item_depth: int = 2048
    positions: int = 256
    channels: int = 128
    list_depth: int = 32
    layers: int = 64
    frame_bytes: int = 1024
    multiplier: Multiplier = Multiplier.DSP
    skip: int = 1
    reference_depth: int = 0
    neighbour_depth: int = 0

    def __post_init__(self) -> None:
        """Check each parameter, then the combinations."""
        if self.multiplier not in tuple(Multiplier):
            raise ConfigError(f"multiplier is one of lut, dsp, not {self.multiplier!r}")
        object.__setattr__(self, "multiplier", Multiplier(self.multiplier))
        for name, (low, high, unit) in _RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer, not {value!r}")
            if not low <= value <= high:
                bound, by = (low, low - value) if value < low else (high, value - high)
                raise ConfigError(
                    f"{name} = {value} breaks its bound of {bound} {unit} by {by} "
                    f"(allowed: {low}..{high})"
                )
        if self.digit_bits > self.delta_bits:
            raise ConfigError(
                f"digit_bits = {self.digit_bits} is wider than a delta, which has "
                f"activation_bits + 1 = {self.delta_bits} bits, by "
                f"{self.digit_bits - self.delta_bits}"
            )
        if not self.skip and self.digits > 1:
            raise ConfigError(
                f"digit_bits = {self.digit_bits} takes {self.digits} digits for a delta, but "
                f"skip = 0 takes them as a whole: digit_bits must be {self.delta_bits}"
            )
        product_bits = self.delta_bits + self.weight_bits
        if self.accumulator_bits < product_bits:
            raise ConfigError(
                f"accumulator_bits = {self.accumulator_bits} cannot hold one product of a "
                f"{self.delta_bits}-bit delta and a {self.weight_bits}-bit weight; "
                f"{product_bits - self.accumulator_bits} more are needed"
            )
        if self.neighbour_depth and not self.reference_depth:
            raise ConfigError(
                f"neighbour_depth = {self.neighbour_depth} is for a device that takes differences "
                "itself, but reference_depth is 0"
            )
        if self.item_depth < self.channels * self.digits:
            raise ConfigError(
                f"item_depth = {self.item_depth} cannot hold one position of channels = "
                f"{self.channels} deltas of {self.digits} digits; "
                f"{self.channels * self.digits - self.item_depth} more items are needed"
            )

    @staticmethod
    def least(name: str) -> int:
        """Return the least value that a parameter may have."""
        return _RANGES[name][0]

    @property
    def delta_bits(self) -> int:
        """Width of a signed delta, in bits."""
        return self.activation_bits + 1

    @property
    def max_delta(self) -> int:
        """Largest magnitude of a delta: ``2**activation_bits - 1``."""
        return (1 << self.activation_bits) - 1

    @property
    def shifts(self) -> int:
        """Number of shifts that a digit can have: multiples of ``digit_bits``, from none on."""
        return -(-self.activation_bits // self.digit_bits)

    @property
    def digits(self) -> int:
        """Most work items of a delta, see :func:`ditto.sim.golden.split`."""
        radix = 1 << self.digit_bits
        low = self.digit_bits * (self.shifts - 1)
        # What the balanced digits below take off at most, and what is then left for the highest.
        below = (radix // 2) * ((1 << low) - 1) // (radix - 1)
        most, least = (below + end >> low for end in (self.max_delta, -self.max_delta))
        items = max(-(-most // (radix // 2 - 1)), -(least // (radix // 2)))
        return self.shifts - 1 + items

    @property
    def multipliers(self) -> int:
        """Number of multipliers: ``clusters * lanes * columns``."""
        return self.clusters * self.lanes * self.columns

    @property
    def is_packed(self) -> bool:
        """Whether two products share a multiplier block, see :class:`Multiplier`.

        The block has operands of 18 bits, one of which takes two weights.
        """
        spacing = self.weight_bits + self.digit_bits - 2
        return self.multiplier is Multiplier.DSP and spacing + self.weight_bits <= 18

    @property
    def min_weight(self) -> int:
        """Least weight: ``-2**(weight_bits - 1)``, and one more where products are packed."""
        return -(1 << self.weight_bits - 1) + self.is_packed

    @property
    def channel_bits(self) -> int:
        """Width of the channel in a work item."""
        return (self.channels - 1).bit_length()

    @property
    def shift_bits(self) -> int:
        """Width of the shift in a work item, which counts digits."""
        return (self.shifts - 1).bit_length()

    @property
    def count_bits(self) -> int:
        """Width of the number of items of one position."""
        return (self.channels * self.digits).bit_length()

    @property
    def largest(self) -> dict[str, int]:
        """Largest value of the fields of a layer-table entry that have a bound."""
        positions = self.clusters * self.accumulator_rows
        return {
            "in_height": self.positions,
            "in_width": self.positions,
            "channels": self.channels,
            "out_height": positions,
            "out_width": positions,
            "tiles": self.accumulator_rows,
            "split": self.clusters,
        }

    @property
    def decision_words(self) -> int:
        """Words of the table of decisions, which has as many as there are layer-table entries."""
        return DECISION_WORDS * self.layers

    @staticmethod
    def held_taps(taps: int) -> int:
        """Return the list entries that are set aside for a row of so many taps."""
        return max(taps, 2)

    def rows_ahead(self, taps: int) -> int:
        """Return the rows of so many taps that the sequencer holds at most."""
        return self.list_depth // self.held_taps(taps)

    @property
    def memories(self) -> tuple[MemoryUse, ...]:
        """The memories of the device, largest duty first."""
        item = self.channel_bits + self.digit_bits + self.shift_bits
        accumulators = self.columns * self.accumulator_bits
        counts = self.count_bits + (self.count_bits if self.shifts > 1 else 0)
        place = (self.item_depth - 1).bit_length() + counts
        uses = (
            MemoryUse("weights", self.clusters, self.weight_rows, self.columns * self.weight_bits),
            MemoryUse("accumulators", self.clusters, self.accumulator_rows, accumulators),
            MemoryUse("items", self.clusters, self.item_depth, item),
            MemoryUse("places", self.clusters, self.positions, place),
            MemoryUse("layers", 1, self.layers, 256),
            MemoryUse("frames", 1, self.frame_bytes, 8),
            MemoryUse("references", 1, self.reference_depth, self.activation_bits),
            MemoryUse("neighbours", 1, self.neighbour_depth, self.activation_bits),
            MemoryUse("decisions", int(self.reference_depth > 0), self.decision_words, 32),
        )
        return tuple(use for use in uses if use.bits)

    @property
    def digest(self) -> bytes:
        """Eight bytes that differ between configurations; the device reports them."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).digest()[:8]

    def pack(self) -> bytes:
        """Encode the parameters as the device reports them: 32 bits each, in field order."""
        values = asdict(self) | {"multiplier": list(Multiplier).index(self.multiplier)}
        return b"".join(value.to_bytes(4, "little") for value in values.values())

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode what :meth:`pack` made.

        Raises
        ------
        ConfigError
            If the data has another length or describes an impossible configuration.
        """
        names = [f.name for f in fields(cls)]
        if len(data) != 4 * len(names):
            raise ConfigError(f"a configuration has {4 * len(names)} bytes, not {len(data)}")
        values = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        numbers: dict[str, Any] = dict(zip(names, values, strict=True))
        kinds = list(Multiplier)
        kind = numbers["multiplier"]
        return cls(**numbers | {"multiplier": kinds[kind] if kind < len(kinds) else kind})


demo = Config(
    clusters=2,
    lanes=2,
    columns=16,
    accumulator_bits=24,
    weight_rows=5632,
    accumulator_rows=1536,
    item_depth=8192,
    positions=256,
    channels=64,
    layers=56,
)
"""The device of the demo: fits the block memory of an ECP5-85F."""
