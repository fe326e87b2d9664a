"""Places the memories and multiplier blocks of a device with many clusters, cluster by cluster.

A part has its block memories and multiplier blocks in a few rows across the whole die. A placer
that looks at wires alone scatters those of each cluster over all of it, and the wires then cross
each other everywhere. Here each cluster gets a region of its own, in which weights, products and
accumulators of a column stand above each other; everything else is left to the placer.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ditto.fpga.parts import PARTS, Part

__all__ = ["LEAST_CLUSTERS", "floorplan"]

LEAST_CLUSTERS = 4
"""Fewest clusters that are placed by region; a device with fewer leaves most of a part free."""

# The die of an LFE5U-85F: columns where a group of four blocks begins, and rows of the blocks.
_GROUPS = (4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114)
_MEMORY_ROWS = ((22, 46), (82, 70))  # of the upper half and of the lower one
_MULTIPLIER_ROWS = (10, 58)
_SHARED_MULTIPLIER_ROW = 34

_THROUGH = ("TRELLIS_FF", "LUT4")  # between a weight and its product
_CONTROLS = ("CLK", "CE", "LSR")


class _Full(Exception):
    """A region has too few places."""


def _memories(row: int) -> list[tuple[int, str]]:
    return [(x + 2 * i, f"X{x + 2 * i}/Y{row}/EBR{i}") for x in _GROUPS for i in range(4)]


def _multipliers(row: int) -> list[tuple[int, str]]:
    return [(x + i, f"X{x + i}/Y{row}/MULT18_{i}") for x in _GROUPS for i in (0, 1, 4, 5)]


def _spread(sites: Sequence[tuple[int, str]], count: int) -> list[tuple[int, str]]:
    """Choose some of the sites, evenly, from left to right."""
    if count > len(sites):
        raise _Full
    chosen = sorted(sites)
    return [chosen[(2 * i + 1) * len(chosen) // (2 * count)] for i in range(count)]


def floorplan(cells: Mapping[str, Mapping[str, Any]], part: Part) -> dict[str, str]:
    """Choose places for the blocks of a device.

    Parameters
    ----------
    cells
        Cells of the flat netlist, as Yosys writes them in JSON.
    part
        The part.

    Returns
    -------
    dict
        nextpnr's name of a place, for some of the cells. Empty if the part is not one whose die is
        known here, if there are fewer than :data:`LEAST_CLUSTERS` clusters, or if the blocks of a
        cluster do not fit its region.
    """
    if part is not PARTS["85k"]:
        return {}
    clusters: defaultdict[int, defaultdict[str, list[str]]]
    clusters = defaultdict(lambda: defaultdict(list))
    for name, cell in cells.items():
        found = re.search(r"\bcluster_(\d+)\.", name)
        if found and cell["type"] in ("DP16KD", "MULT18X18D"):
            clusters[int(found[1])][cell["type"]].append(name)
    if len(clusters) < LEAST_CLUSTERS:
        return {}
    columns = _columns(cells)
    slices = -(-len(clusters) // 2)
    places: dict[str, str] = {}
    try:
        for number, blocks in sorted(clusters.items()):
            at, half = divmod(number, 2)

            def own(sites: list[tuple[int, str]], at: int = at) -> list[tuple[int, str]]:
                return sites[len(sites) * at // slices : len(sites) * (at + 1) // slices]

            for kind, sites in (
                ("DP16KD", _memory_sites(own, half, len(blocks["DP16KD"]))),
                ("MULT18X18D", _multiplier_sites(own, half, len(blocks["MULT18X18D"]))),
            ):
                names = sorted(blocks[kind], key=lambda name: (columns.get(name, 0.5), name))
                places |= {name: site for name, (_, site) in zip(names, sites, strict=True)}
    except _Full:
        return {}
    return places


def _memory_sites(own: Any, half: int, count: int) -> list[tuple[int, str]]:
    return _spread([site for row in _MEMORY_ROWS[half] for site in own(_memories(row))], count)


def _multiplier_sites(own: Any, half: int, count: int) -> list[tuple[int, str]]:
    near = own(_multipliers(_MULTIPLIER_ROWS[half]))
    # Both halves take from the row between them, in turns.
    shared = own(_multipliers(_SHARED_MULTIPLIER_ROW))[half::2]
    nearer = min(len(near), max(count - len(shared), count * 2 // 3))
    return sorted([*_spread(near, nearer), *_spread(shared, count - nearer)])


def _columns(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return where in its array a block belongs, 0 for the first column to 1 for the last.

    A memory block holds some bits of a word, and a word holds the columns in order. A multiplier
    belongs where its weights come from.
    """
    slices: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for name, cell in cells.items():
        found = re.search(r"(\bcluster_\d+\.(?:weights|accumulators))\.\d+\.(\d+)$", name)
        if found and cell["type"] == "DP16KD":
            slices[found[1]].append((int(found[2]), name))
    result = {
        name: (index + 0.5) / (1 + max(parts)[0])
        for parts in slices.values()
        for index, name in parts
    }
    weights = {name: at for name, at in result.items() if ".weights." in name}
    drivers = {
        bit: name
        for name, cell in cells.items()
        for port, bits in cell["connections"].items()
        if cell["port_directions"].get(port) == "output"
        for bit in bits
    }
    for name, cell in cells.items():
        if cell["type"] == "MULT18X18D":
            found_at = _weights_behind(name, cells, drivers, weights)
            if found_at:
                result[name] = sum(found_at) / len(found_at)
    return result


def _weights_behind(
    name: str,
    cells: Mapping[str, Mapping[str, Any]],
    drivers: Mapping[Any, str],
    weights: Mapping[str, float],
) -> list[float]:
    """Go back from a multiplier through registers and logic to the memories of the weights."""
    found: list[float] = []
    seen: set[str] = set()
    front = [name]
    for _ in range(3):
        front, targets = [], front
        for target in targets:
            cell = cells[target]
            for port, bits in cell["connections"].items():
                if cell["port_directions"].get(port) != "input" or port.startswith(_CONTROLS):
                    continue
                for source in (drivers[bit] for bit in bits if bit in drivers):
                    if source in seen:
                        continue
                    seen.add(source)
                    if source in weights:
                        found.append(weights[source])
                    elif cells[source]["type"] in _THROUGH:
                        front.append(source)
    return found
