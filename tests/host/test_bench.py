import copy
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ditto.hdl.config import Config, demo
from ditto.hdl.protocol import Mode
from ditto.host.bench import BOUNDS, baseline, compare_builds, fitting, macs, measure
from ditto.host.boards import open_device
from ditto.host.model import Linear, Model
from ditto.host.performance import page
from ditto.host.program import PlacementError, Program
from ditto.host.roofline import roofline
from ditto.host.samplers import DDIM, Schedule
from ditto.host.session import draw

STEPS = 5


@pytest.fixture
def model(denoiser_file: Path) -> Model:
    return Model.load(denoiser_file)


@pytest.fixture
def sampler(model: Model) -> DDIM:
    return DDIM(Schedule.from_metadata(model.metadata), steps=STEPS)


@pytest.fixture
def runs(model: Model, sampler: DDIM) -> list[dict[str, Any]]:
    found = measure(model, demo, sampler, name="small", samples=2)
    return [run | {"scales": None, "brams_needed": 7, "brams_available": 208} for run in found]


def build_of(configuration: dict[str, Any], comb: int, fmax: float) -> dict[str, Any]:
    return {
        "device": "LFE5U-85F",
        "speed": 6,
        "configuration": configuration,
        "luts": 1000,
        "carries": 200,
        "comb": comb,
        "ffs": 1500,
        "dsps": 39,
        "brams": 5,
        "available": {"TRELLIS_COMB": 80000, "MULT18X18D": 156, "DP16KD": 208},
        "fmax_mhz": {"1": fmax, "2": fmax + 1, "3": fmax - 2},
        "delays": {
            "1": [{"source": "clk", "target": "clk", "nanoseconds": 9.5, "first": "a", "last": "b"}]
        },
    }


def test_counts_are_those_of_the_device(
    model: Model, sampler: DDIM, runs: list[dict[str, Any]]
) -> None:
    assert [run["mode"] for run in runs] == ["temporal", "dense"]
    program = Program(model.layers, model.shapes(), demo)
    drawing = draw(model, program, lambda: open_device("golden", demo), sampler, samples=2)
    found = [run for sample in drawing.runs for run in sample]
    temporal, dense = runs
    assert temporal["array_cycles"] == sum(run.counters.cycles for run in found)
    assert temporal["products"] == sum(run.products for run in found)
    assert dense["array_cycles"] == sum(run.dense_cycles for run in found)
    assert json.loads(json.dumps(runs)) == runs


def test_layers_add_up(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        for name in ("array_cycles", "products", "macs", "link_cycles", "link_bytes_in"):
            assert run[name] == sum(layer[name] for layer in run["layers"])
        for part in (run, *run["layers"]):
            assert list(part["shares"]) == list(BOUNDS)
            assert sum(part["shares"].values()) == pytest.approx(1)
            assert all(share >= 0 for share in part["shares"].values())
            assert part["shares"]["products"] == pytest.approx(part["utilization"])
            assert part["ideal_cycles"] <= part["array_cycles"]
        for layer in run["layers"]:
            assert layer["array_bound"] in BOUNDS
            is_link = layer["link_cycles"] > layer["array_cycles"]
            assert layer["bound"] == ("link" if is_link else layer["array_bound"])


def test_macs_leave_the_padding_out(model: Model) -> None:
    # Too many input channels to gather taps, too few columns to scatter them.
    program = Program(model.layers, model.shapes(), replace(demo, channels=8, columns=4))
    last = program.layers[-1]
    assert isinstance(last.layer, Linear)
    assert (last.layer.channels, last.layer.outputs) == (6, 1)
    # 3 x 3 taps at 6 x 6 positions, of which each side loses 6 in three taps.
    assert macs(last) == (3 * 6 - 2) ** 2 * 6


def test_speedup_is_over_the_dense_array(
    model: Model, sampler: DDIM, runs: list[dict[str, Any]]
) -> None:
    for run in runs:
        assert run["baseline"] == "the dense array of the same generator"
        dense = Config(**run["baseline_configuration"])
        # Two multipliers of four bits for one of eight.
        assert (dense.skip, dense.digits, 2 * dense.multipliers) == (0, 1, demo.multipliers)
        assert run["baseline_cycles"] * dense.multipliers > run["macs"]
        (other,) = measure(model, dense, sampler, name="", modes=[Mode.TEMPORAL], samples=2)
        assert run["baseline_cycles"] == other["array_cycles"]
        assert run["speedup_equal_bits"] == pytest.approx(
            run["baseline_cycles"] / run["array_cycles"]
        )
        assert run["speedup_equal_resources"] is None


def test_baseline_has_as_many_multiplier_bits() -> None:
    def sizes(**changes: int) -> tuple[int, ...] | None:
        dense = baseline(replace(demo, **changes))
        return dense and (dense.clusters, dense.columns, dense.digit_bits, dense.skip)

    assert sizes(clusters=8) == (4, 16, 9, 0)
    assert sizes(clusters=3) == (3, 8, 9, 0)
    assert sizes(clusters=8, digit_bits=3) == (3, 16, 9, 0)
    assert sizes(clusters=1, columns=5) == (1, 2, 9, 0)
    assert sizes(clusters=1, columns=1) is None


def test_without_a_dense_array_the_speedup_is_over_an_ideal_one(
    model: Model, sampler: DDIM, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = replace(demo, clusters=1, columns=1, lanes=2)
    (run,) = measure(model, single, sampler, name="", modes=[Mode.TEMPORAL])
    assert baseline(single) is None and run["baseline_configuration"] is None
    assert run["baseline"].startswith("an ideal dense array")
    assert run["baseline_cycles"] == -(-run["macs"] // 1)

    def refuse(model: Model, config: Config) -> Config:
        raise PlacementError("too deep")

    monkeypatch.setattr("ditto.host.bench.fitting", refuse)
    (run,) = measure(model, demo, sampler, name="", modes=[Mode.TEMPORAL])
    assert run["baseline"].startswith("an ideal dense array")
    compare_builds(run, [build_of(run["configuration"], 10000, 80.0)])
    assert run["speedup_equal_resources"] is None


def test_equal_resources(runs: list[dict[str, Any]]) -> None:
    run = copy.deepcopy(runs[0])
    dense = run["baseline_configuration"]
    run["baseline_cycles"] = 3 * run["array_cycles"]
    # What is built may have other memories.
    ours = build_of(run["configuration"] | {"weight_rows": 64}, 10000, 80.0)
    theirs = build_of(dense, 40000, 100.0)
    compare_builds(run, [ours])
    assert run["speedup_equal_resources"] is run["speedup_end_to_end"] is None
    assert run["built"] == {}
    compare_builds(run, [theirs, ours])
    # A quarter of the multiplier blocks against half of the lookup tables.
    assert run["speedup_equal_resources"] == pytest.approx(3 * 2)
    assert run["speedup_end_to_end"] == pytest.approx(3 * 2 * 80 / 100)
    (kind,) = run["built"]
    assert kind == "dsp"
    found = run["built"][kind]
    assert (found["array"]["share"], found["baseline"]["share"]) == (0.25, 0.5)
    macs = run["macs"] / run["array_cycles"]
    assert found["array"]["gmacs"] == pytest.approx(macs * 0.08)
    assert found["array"]["part_gmacs"] == pytest.approx(4 * macs * 0.08)
    assert found["baseline"]["gmacs"] == pytest.approx(macs / 3 * 0.1)


def test_size_alone_tells_no_time(runs: list[dict[str, Any]]) -> None:
    run = copy.deepcopy(runs[0])
    pair = [run["configuration"], run["baseline_configuration"]]
    builds = [build_of(c | {"multiplier": "lut"}, 20000, 80.0) | {"fmax_mhz": {}} for c in pair]
    compare_builds(run, builds)
    # Those are not the run's multipliers.
    assert run["speedup_equal_resources"] is None
    found = run["built"]["lut"]
    assert found["speedup_equal_resources"] == pytest.approx(run["speedup_equal_bits"])
    assert found["speedup_end_to_end"] is None and found["array"]["gmacs"] is None


def test_memories_grow_where_they_must(model: Model) -> None:
    assert fitting(model, demo) == demo
    tight = replace(demo, weight_rows=16, layers=2)
    fitted = fitting(model, tight)
    assert fitted.weight_rows > 16 and fitted.layers == 3
    assert fitted.columns == tight.columns and fitted.item_depth == tight.item_depth
    dense = replace(demo, skip=0, digit_bits=9, weight_rows=16)
    assert fitting(model, dense).skip == 0


def test_roofline(runs: list[dict[str, Any]]) -> None:
    root = ElementTree.fromstring(roofline(runs))
    name = "{http://www.w3.org/2000/svg}"
    marks = [mark for mark in root.iter(f"{name}circle") if mark.find(f"{name}title") is not None]
    assert len(marks) == 2 * 2 * len(runs[0]["layers"])
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    roofs = root.find(f"{name}polyline")
    assert roofs is not None
    (_, top), *_ = [tuple(map(float, p.split(","))) for p in roofs.attrib["points"].split()][1:]
    for mark in marks:
        assert 0 < float(mark.attrib["cx"]) < width
        # Nothing is above the roof.
        assert top <= float(mark.attrib["cy"]) < height


def test_page(runs: list[dict[str, Any]]) -> None:
    facts: dict[str, Any] = {
        "command": "ditto bench -o b.json",
        "versions": {"ditto-accel": "1.2"},
        "configuration": runs[0]["configuration"],
        "runs": runs,
        "builds": [],
    }
    text = page(facts)
    assert "Nothing was built." in text and "![" not in text
    assert "`ditto bench -o b.json`" in text and "| ditto-accel | 1.2 |" in text
    assert f"{runs[0]['array_cycles']:,}" in text
    assert all(layer["name"] in text for layer in runs[0]["layers"])
    build = build_of(runs[0]["configuration"], 3210, 80.0)
    failed = build | {"fmax_mhz": {}, "delays": {}, "error": "it is too big"}
    text = page(facts | {"builds": [build, failed]}, ["b.svg"])
    assert "78.0 / 80.0 / 81.0" in text and "3,210 of 80,000" in text
    assert "| clk → clk | 9.5 | `a` | `b` |" in text
    assert "Not routed with every seed: it is too big." in text and "(b.svg)" in text
    assert "do not hold" not in text
    needy = [run | {"brams_needed": 209} for run in runs]
    assert "do not hold every model" in page(facts | {"runs": needy})
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
