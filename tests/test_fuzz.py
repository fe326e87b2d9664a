"""A small part of `tests/fuzz/run.py`, and what it has found."""

import importlib.util
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.host.layers import ModelError
from ditto.host.model import Model
from ditto.host.npz import read_npz
from ditto.host.resume import Checkpoint, ResumeError
from ditto.host.samplers import Schedule, load_inputs

RUN = Path(__file__).parent / "fuzz" / "run.py"


def load() -> Any:
    pytest.importorskip("resource", reason="the fuzzer bounds memory as Unix does")
    spec = importlib.util.spec_from_file_location("fuzz_run", RUN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_run"] = module
    spec.loader.exec_module(module)
    return module


FUZZ = load()
PIECES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([part for _, seeds in FUZZ.TARGETS.values() for part in seeds()]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
few = settings(deadline=None, max_examples=60, derandomize=True)


@pytest.mark.parametrize("name", ["frames", "driver", "answers", "board", "schedule"])
@few
@given(data=st.lists(PIECES, max_size=4).map(b"".join))
def test_any_bytes(name: str, data: bytes) -> None:
    FUZZ.TARGETS[name][0](data)


@pytest.mark.parametrize("name", FUZZ.TARGETS)
def test_changed_bytes(name: str, tmp_path: Path) -> None:
    target, seeds = FUZZ.TARGETS[name]
    rng = np.random.default_rng(0)
    for data in seeds():
        target(data)
        for _ in range(10):
            target(FUZZ.mutated(FUZZ.random.Random(int(rng.integers(1 << 30))), data))


@few
@given(facts=st.dictionaries(st.sampled_from(["identity", "format", "samples", "x"]), JSON))
def test_any_facts_in_a_state(facts: dict[str, Any]) -> None:
    FUZZ.checkpoint(FUZZ.state_file(**facts))


@few
@given(entry=st.dictionaries(st.sampled_from(["sample", "step", "rng"]), JSON))
def test_any_sample_in_a_state(entry: dict[str, Any]) -> None:
    FUZZ.checkpoint(FUZZ.state_file(samples=[entry]))


def test_a_target_that_fails_is_noticed(tmp_path: Path) -> None:
    options = FUZZ.argparse.Namespace(runs=30, seconds=60, seed=1, atheris=False, keep=None)
    assert FUZZ.run("frames", options)["ok"]
    code = RUN.read_text(encoding="utf-8").replace("assert 0 < len(body) <= 60", "assert False")
    changed = tmp_path / "run.py"
    changed.write_text(code, encoding="utf-8")
    done = FUZZ.subprocess.run(
        [sys.executable, changed, "-o", tmp_path / "f.json", "--only", "frames", "--runs", "30"],
        capture_output=True,
    )
    assert done.returncode == 0
    (found,) = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))["targets"]
    assert not found["ok"] and found["runs"] == 0 and "AssertionError" in found["end"]


def bomb() -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.npy", "w", force_zip64=True) as member:
            for _ in range(1100):
                member.write(bytes(1 << 20))
    return raw.getvalue()


def test_a_small_archive_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    path.write_bytes(bomb())
    with pytest.raises(ValueError, match="it holds 1153433600 bytes, which is more than"):
        read_npz(path)
    with pytest.raises(ModelError, match="not a usable .npz file: it holds"):
        load_inputs(path)
    with pytest.raises(ResumeError, match="does not hold the steps of a run"):
        Checkpoint(path, {}, resume=True).__enter__()


@pytest.mark.parametrize(
    "facts",
    [
        {"identity": []},
        {"identity": 3},
        {"samples": {}},
        {"samples": [{"sample": -1, "step": 1, "rng": {}}]},
        {"samples": [{"sample": 0, "step": True, "rng": {}}]},
        {"samples": [{"sample": 0, "step": 1, "rng": {"state": 3}}]},
    ],
)
def test_a_state_that_no_run_has_written(tmp_path: Path, facts: dict[str, Any]) -> None:
    path = tmp_path / "a.state"
    path.write_bytes(FUZZ.state_file(**facts))
    with pytest.raises(ResumeError):
        Checkpoint(path, {"model": "a"}, resume=True).__enter__()


def graph(axis: int, size: int) -> Any:
    import onnx

    proto = onnx.load_model_from_string(FUZZ.denoiser())
    proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    return proto


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (1 << 31, r"input sample of .* has the shape \(1, 1, 6, 2147483648\); sizes are"),
        (1 << 17, "makes 6 x 131072 positions of 6 x 131072; at most 262144 are possible"),
    ],
)
def test_a_model_of_images_that_fill_the_memory(size: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Model(graph(3, size)).shapes()


def test_a_schedule_of_more_steps_than_fit_the_memory() -> None:
    with pytest.raises(ModelError, match="noise schedule is impossible"):
        Schedule.from_metadata({"ditto.train_steps": "99999999999999"})
