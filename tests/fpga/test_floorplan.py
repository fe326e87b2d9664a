"""Places of the blocks of a big device."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from ditto.fpga import flow
from ditto.fpga.build import Builder
from ditto.fpga.floorplan import floorplan
from ditto.fpga.parts import PARTS
from ditto.hdl.config import Config


def netlist(clusters: int, memories: int, multipliers: int) -> dict[str, Any]:
    """Make a netlist of blocks; the first multiplier's weights come from the last memory."""
    cells: dict[str, Any] = {}
    bit = 0
    for cluster in range(clusters):
        for i in range(memories):
            cells[f"engine.cluster_{cluster}.weights.0.{i}"] = {
                "type": "DP16KD",
                "port_directions": {"DOA0": "output"},
                "connections": {"DOA0": [bit + i]},
            }
        for i in range(multipliers):
            register, source = bit + memories + i, bit + memories - 1 - i % memories
            cells[f"engine.cluster_{cluster}.register_{i}"] = {
                "type": "TRELLIS_FF",
                "port_directions": {"DI": "input", "Q": "output", "CLK": "input"},
                "connections": {"DI": [source], "Q": [register], "CLK": ["0"]},
            }
            cells[f"engine.cluster_{cluster}.product_{i:02}"] = {
                "type": "MULT18X18D",
                "port_directions": {"A0": "input"},
                "connections": {"A0": [register]},
            }
        bit += memories + multipliers
    cells["deframer.store.0.0"] = {"type": "DP16KD", "port_directions": {}, "connections": {}}
    return cells


def spot(place: str) -> tuple[int, int]:
    """Return the coordinates in a place's name."""
    found = re.fullmatch(r"X(\d+)/Y(\d+)/(EBR|MULT18_)\d", place)
    assert found
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("clusters", [4, 5, 8])
def test_each_cluster_has_a_region(clusters: int) -> None:
    places = floorplan(netlist(clusters, 20, 18), PARTS["85k"])
    assert len(places) == len(set(places.values())) == clusters * 38
    boxes = []
    for cluster in range(clusters):
        spots = [spot(place) for name, place in places.items() if f"cluster_{cluster}." in name]
        boxes.append((min(spots), max(spots), cluster % 2))
    for half in (0, 1):
        own = [(low[0], high[0]) for low, high, at in boxes if at == half]
        assert all(right < left for (_, right), (left, _) in zip(own, own[1:], strict=False))


def test_columns_stand_in_order() -> None:
    places = floorplan(netlist(4, 16, 16), PARTS["85k"])
    for kind, order in (("weights.0.", 1), ("product_", -1)):
        found = {
            int(name.rsplit(kind)[1]): spot(place)[0]
            for name, place in places.items()
            if f"cluster_1.{kind}" in name
        }
        across = [found[i] for i in range(16)][::order]
        assert across == sorted(across)


@pytest.mark.parametrize(
    ("clusters", "multipliers", "part"), [(3, 16, "85k"), (8, 21, "85k"), (4, 16, "45k")]
)
def test_leaves_the_rest_to_the_placer(clusters: int, multipliers: int, part: str) -> None:
    assert floorplan(netlist(clusters, 16, multipliers), PARTS[part]) == {}


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(f"yowasp_{name}") for name in ("yosys", "nextpnr_ecp5")),
    reason="needs the extra fpga",
)
def test_places_exist_on_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "cache_folder", lambda: tmp_path)
    config = Config(
        clusters=4,
        lanes=1,
        columns=2,
        accumulator_bits=20,
        weight_rows=1024,
        accumulator_rows=512,
        item_depth=512,
        positions=16,
        channels=8,
        list_depth=9,
        layers=4,
        frame_bytes=64,
    )
    assert Builder(config, part="85k").place(1).fmax_mhz > 10
