import json
import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ditto.hdl.config import Config, demo
from ditto.hdl.protocol import Mode
from ditto.host import cli
from ditto.host.analysis import Setting
from ditto.host.costs import LayerCosts, count_items
from ditto.host.defo import costs_of, policy_of
from ditto.host.layers import Linear, Product
from ditto.host.model import Model
from ditto.host.policies import PLAYERS, Recording, compare, player, record, replay, saved
from ditto.host.program import Program
from ditto.host.samplers import DDIM, Schedule
from ditto.host.session import draw, foresee
from ditto.sim.cycles import row_lengths, schedule
from ditto.sim.golden import Golden, items, shares, taps
from ditto.sim.memory import MEMORIES
from ditto.sim.spatial import spatial, stretched

STEPS = 5
CONFIG = Config(clusters=3, columns=4, positions=20, channels=8, item_depth=96)


@pytest.fixture(scope="module")
def recording(denoiser_proto: onnx.ModelProto) -> Recording:
    model = Model(denoiser_proto)
    return record(denoiser_proto, model, CONFIG, Setting(STEPS), samples=2)


def ditto(*words: object) -> int:
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as leave:
        assert isinstance(leave.code, int)
        return leave.code


@pytest.mark.parametrize("name", ["dense", "temporal", "defo", "defo+", "adaptive", "oracle"])
@pytest.mark.parametrize("memory", ["chip", "sdram-state"])
def test_a_replay_is_what_a_device_does(
    denoiser_proto: onnx.ModelProto, recording: Recording, name: str, memory: str
) -> None:
    model = Model(denoiser_proto)
    config = recording.config
    program = Program(model.layers, model.shapes(), config)
    sampler = DDIM(Schedule(), steps=STEPS)
    behind = MEMORIES[memory]
    costs = costs_of(program, behind)
    policy = (
        foresee(model, program, sampler, seed=0, memory=behind)
        if name == "oracle"
        else policy_of(name, costs)
    )
    drawing = draw(
        model,
        program,
        lambda: Golden(config),
        sampler,
        samples=2,
        policy=policy,
        memory=behind,
        check=True,
    )
    replayed = replay(recording, costs, player(name, recording, costs))
    for sample, runs in enumerate(drawing.runs):
        for run in runs:
            at = run.layer, run.step, sample
            assert run.mode is (Mode.DENSE, Mode.TEMPORAL, Mode.SPATIAL)[replayed.modes[at]]
            assert run.counters.cycles == replayed.cycles[at]
            assert run.stall_memory == replayed.stalls[at]
            for mode, digits in run.digits.items():
                assert digits == recording.digits[mode][at]  # type: ignore[index]
    total = sum(run.traffic.total for runs in drawing.runs for run in runs)
    assert total == replayed.traffic.total


def test_a_replay_of_attention_is_what_a_device_does() -> None:
    with as_file(files("ditto.host.models").joinpath("digits16.int8.onnx")) as path:
        proto = onnx.load(path)
    model = Model(proto)
    setting = Setting(8)
    recording = record(proto, model, demo, setting, samples=2)
    assert {type(placement.layer) for placement in recording.placements} == {Linear, Product}
    sampler = setting.make(Schedule.from_metadata(model.metadata))
    program = Program(model.layers, model.shapes(), recording.config)
    costs = costs_of(program, MEMORIES["chip"])
    drawing = draw(model, program, lambda: Golden(recording.config), sampler, samples=2)
    replayed = replay(recording, costs, player("temporal", recording, costs))
    taken = np.zeros((2, len(costs)))
    for run in (run for runs in drawing.runs for run in runs):
        taken[:, run.layer] += run.counters.cycles, run.digits["dense"]
    # The evaluators of the rest of the graph round differently in places.
    assert replayed.cycles.sum(axis=(1, 2)) == pytest.approx(taken[0], rel=0.03)
    assert recording.digits["dense"].sum(axis=(1, 2)) == pytest.approx(taken[1], rel=0.01)


def test_spatial_cycles_are_those_of_their_rows(
    denoiser_proto: onnx.ModelProto, recording: Recording
) -> None:
    rng = np.random.default_rng(1)
    config = recording.config
    for placement in recording.placements:
        values = rng.integers(-128, 128, (1, *placement.shape[1:])).astype(np.int16)
        cycles, digits = LayerCosts(placement, config).spatial(values)
        layer = placement.layer
        assert isinstance(layer, Linear)
        (part,) = placement.parts
        rows = np.moveaxis(values[0], 0, -1) if layer.kind == "conv" else values[0]
        rows = part.lowered.deltas(rows.reshape(-1, layer.channels))
        want = count = 0
        for band in part.bands:
            deltas = spatial(rows[band.inputs], band.entry)
            index = taps(stretched(band.entry))
            low, high = (
                np.append(own.sum(axis=1), 0)[index].sum(axis=1) for own in items(deltas, config)
            )
            lengths = row_lengths(low, high, config)
            tiles = band.entry["tiles"]
            want += max(
                schedule(
                    np.tile(lengths[own.positions], tiles).tolist(),
                    np.tile(own.gaps, tiles).tolist(),
                    index.shape[1],
                    config,
                ).cycles
                for own in shares(band.entry, config.clusters, band.entry["lead"])
            )
            count += count_items(deltas, config)
        assert (cycles[0], digits[0]) == (want, count)


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
def test_comparison(recording: Recording, memory: Any) -> None:
    found = compare(recording, memory)
    assert set(found) == set(PLAYERS) - (set() if memory.name == "chip" else {"table"})
    totals = {name: own["cycles"] + own["stall_memory"] for name, own in found.items()}
    for name, own in found.items():
        assert totals["oracle"] <= totals[name]
        assert own["to_oracle"] == pytest.approx(totals[name] / totals["oracle"])
        fixed = min(totals["dense"], totals["temporal"], totals["spatial"])
        assert own["to_fixed"] == pytest.approx(totals[name] / fixed)
        assert sum(own["modes"].values()) == pytest.approx(1)
        assert own["traffic"] == pytest.approx(sum(own["traffic_parts"].values()))
        if memory.name == "chip":
            assert own["stall_memory"] == 0
    assert found["oracle"]["agreement"] == 1
    assert found["dense"]["traffic_ratio"] == 1 < found["temporal"]["traffic_ratio"]


def test_static_pass(denoiser_proto: onnx.ModelProto) -> None:
    facts = saved(denoiser_proto, Model(denoiser_proto), CONFIG)
    assert facts["layers"] == facts["tensors"]["all"] == 3
    traffic = facts["traffic"]
    assert traffic["forwarded"] <= traffic["exact"] <= traffic["naive"]


def test_command(denoiser_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, page = tmp_path / "p.json", tmp_path / "p.md"
    options = ["--steps", "3,4", "--eta", "0,1", "--samples", "1", "--bandwidth", "4"]
    assert ditto("policies", denoiser_file, *options, "-o", data, "--page", page) == 0
    facts = json.loads(data.read_text())
    assert len(facts["runs"]) == 2 * 2 * len(MEMORIES)
    assert {run["sampler"] for run in facts["runs"]} == {
        "DDIM, 3 steps",
        "DDIM, 4 steps",
        "DDPM, 3 steps",
        "DDPM, 4 steps",
    }
    assert {memory["bandwidth"] for memory in facts["memories"]} == {4.0}
    text = page.read_text()
    assert text in capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith("| denoiser")]
    assert len(rows) == 4 * (len(MEMORIES) + 1) + 1
    for row in rows:
        head = text[: text.index(row)].splitlines()
        assert row.count("|") == head[-1].count("|")
    assert ditto("policies", denoiser_file, "-o", data, "--page", data) == 2
    assert ditto("policies", denoiser_file, "-o", data, "--steps", "2000") == 2


def test_denoise_by_policies(
    denoiser_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = []
    small = ["--steps", "4", "--samples", "3", "--board", "golden", "--jobs", "2"]
    for name in ("dense", "temporal", "defo", "adaptive", "oracle"):
        image, counts, lines = (tmp_path / f"{name}.{end}" for end in ("png", "json", "jsonl"))
        options = ["--policy", name, "--memory", "sdram", "--bandwidth", "1", "--check"]
        options += ["--json", counts, "--monitor", lines, "-o", image]
        assert ditto("denoise", denoiser_file, *small, *options) == 0
        images.append(image.read_bytes())
        facts = json.loads(counts.read_text())
        assert facts["policy"] == name and facts["memory_model"]["bandwidth"] == 1
        runs = [json.loads(line) for line in lines.read_text().splitlines()]
        assert len(runs) == 3 * 4 * 3
        total = facts["total"]
        assert total["stall_memory"] == sum(run["stall_memory"] for run in runs) > 0
        assert total["traffic"]["outputs"] == sum(run["traffic"]["outputs"] for run in runs)
        assert sum(total["modes"].values()) == len(runs)
        output = capsys.readouterr().out
        assert "cycles of a step wait for it, beside" in output
        assert "% dense" in output or "% spatial" in output
    assert len(set(images)) == 1


def test_limits(denoiser_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "m.jsonl"
    options = ["--steps", "3", "--samples", "1", "--board", "golden", "-o", tmp_path / "a.png"]
    assert ditto("denoise", denoiser_file, *options, "--max-wide", "0", "--monitor", lines) == 1
    message = capsys.readouterr().err
    assert "ditto: sample 0, step 1: " in message and "more than 0 %" in message
    assert sorted(os.listdir(tmp_path)) == ["a.png.state", "denoiser.onnx", "m.jsonl"]
    assert len(lines.read_text().splitlines()) == 6
    assert ditto("denoise", denoiser_file, *options, "--max-wide", "100", "--resume") == 0
    # In the last step there is nothing left to take up but the image.
    last = ["--steps", "2", "--samples", "1", "--board", "golden", "-o", tmp_path / "b.png"]
    assert ditto("denoise", denoiser_file, *last, "--max-wide", "0") == 1
    assert ditto("denoise", denoiser_file, *last, "--max-wide", "0", "--resume") == 0
    assert "all steps had been finished before" in capsys.readouterr().out
    assert (tmp_path / "b.png").exists()
    assert ditto("denoise", denoiser_file, *options, "--max-wide", "101") == 2
    assert ditto("denoise", denoiser_file, *options, "--policy", "oracle", "--tau", "1") == 2
    assert "--policy oracle foresees exact samples only" in capsys.readouterr().err
    assert ditto("denoise", denoiser_file, *options, "--monitor", "/proc/x/m.jsonl") == 1
    assert "cannot write /proc/x/m.jsonl" in capsys.readouterr().err
    both = tmp_path / "a.png"
    assert ditto("denoise", denoiser_file, *options, "--monitor", both) == 2
