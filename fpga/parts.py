"""The parts that devices are built for, and what they have."""

from typing import NamedTuple

__all__ = ["PACKAGE", "PARTS", "SPEED", "Part"]

PACKAGE = "CABGA381"
"""The package of most boards; its pins do not matter for size and speed."""

SPEED = 6
"""The slowest speed grade, which is the one that boards have."""


class Part(NamedTuple):
    """An FPGA of Lattice's ECP5 family, as the tools know it."""

    name: str
    #: nextpnr's option.
    option: str
    #: What it has, by the name of the cell.
    cells: dict[str, int]


def _part(size: int, comb: int, blocks: int, multipliers: int) -> Part:
    cells = {
        "TRELLIS_COMB": comb,
        "TRELLIS_FF": comb,
        "TRELLIS_RAMW": comb // 8,
        "DP16KD": blocks,
        "MULT18X18D": multipliers,
    }
    return Part(f"LFE5U-{size}F", f"--{size}k", cells)


# The tools take a 12F for the 25F that is in its package.
PARTS = {
    "12k": _part(12, 24288, 56, 28),
    "25k": _part(25, 24288, 56, 28),
    "45k": _part(45, 43848, 108, 72),
    "85k": _part(85, 83640, 208, 156),
}
"""Parts by size."""
