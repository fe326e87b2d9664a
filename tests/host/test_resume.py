import functools
import itertools
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ditto.hdl.config import Config, demo
from ditto.hdl.protocol import Counters, Mode
from ditto.host import boards, cli, resume
from ditto.host.device import Accelerator
from ditto.host.model import Model
from ditto.host.program import Program
from ditto.host.resume import Checkpoint, ResumeError
from ditto.host.samplers import DDIM, Schedule, State
from ditto.host.session import draw
from ditto.host.transport import LinkError
from ditto.sim.golden import Golden
from ditto.sim.golden_board import GoldenBoard
from ditto.sim.line import Pty

STEPS, SAMPLES = 6, 3
SIZES = ["--steps", str(STEPS), "--samples", str(SAMPLES), "-q"]
LAYERS = 3


def ditto(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture
def break_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make a board "frail" whose link is lost after a number of runs, of all devices together."""

    def make(runs: int) -> None:
        left = itertools.count(runs, -1)
        lock = threading.Lock()

        class Frail(Golden):
            def run(self, entry: int, mode: Mode) -> Counters:
                with lock:
                    if next(left) <= 0:
                        raise LinkError("the port is lost")
                return super().run(entry, mode)

        def frail(config: Config) -> Accelerator:
            return Frail(config)

        monkeypatch.setitem(boards.BOARDS, "frail", boards.Board("a frail one", frail))

    return make


SAMPLERS = [
    [],
    ["--sampler", "ddpm"],
    ["--eta", "0.5"],
    ["--sampler", "dpm++"],
    ["--sampler", "euler"],
    ["--policy", "dense"],
    ["--policy", "defo", "--memory", "sdram-state"],
    ["--policy", "defo+"],
    ["--tau", "2"],
]


@pytest.mark.parametrize("options", SAMPLERS, ids=" ".join)
@pytest.mark.parametrize("jobs", [1, 2])
def test_the_image_is_that_of_a_run_that_did_not_fail(
    denoiser_file: Path,
    tmp_path: Path,
    break_after: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    jobs: int,
) -> None:
    whole, image, facts = (tmp_path / name for name in ("whole.png", "a.png", "a.json"))
    words = ["denoise", denoiser_file, *SIZES, *options]
    assert ditto(*words, "--board", "golden", "-o", whole) == 0
    words += ["--jobs", jobs, "--board", "frail", "-o", image, "--json", facts]
    more: list[str] = []
    done = 0
    # Fails in the first step, in the middle of a later one, and just after it was taken up.
    for runs in (0, LAYERS * STEPS * jobs + 2, LAYERS):
        break_after(runs)
        assert ditto(*words, *more) == 1
        error, *notes = capsys.readouterr().err.splitlines()
        assert error == "ditto: the port is lost"
        assert not image.exists() and not facts.exists()
        if runs == 0:
            assert notes == [] and not (tmp_path / "a.png.state").exists()
            continue
        found = re.search(r"the (\d+) finished steps are kept in (.*): repeat", notes[0])
        assert found and int(found[1]) >= max(done, STEPS)
        done = int(found[1])
        assert found[2] == str(tmp_path / "a.png.state")
        more = ["--resume"]
    break_after(1000)
    assert ditto(*words, *more) == 0
    assert image.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.png", "denoiser.onnx", "whole.png"]
    report = json.loads(facts.read_text())
    assert report["steps_run"] == STEPS * SAMPLES - done
    assert 0 < done < STEPS * SAMPLES


class Inert(DDIM):
    """A sampler that keeps something of all steps before."""

    is_memoryless = False
    sum: Any = 0.0

    def step(self, index: int, noise: Any, x: Any, rng: Any, last: Any = None) -> Any:
        self.sum = 0.5 * self.sum + noise
        return super().step(index, self.sum.astype(np.float32), x, rng, last)


def test_a_sample_whose_sampler_keeps_something_begins_anew(
    denoiser_file: Path, tmp_path: Path, break_after: Callable[[int], None]
) -> None:
    model = Model.load(denoiser_file)
    program = Program(model.layers, model.shapes(), demo)
    sampler = Inert(Schedule(), steps=STEPS)

    def images(board: str, checkpoint: Checkpoint | None = None) -> Any:
        device = functools.partial(boards.open_device, board, demo)
        return draw(model, program, device, sampler, samples=3, checkpoint=checkpoint).images

    whole = images("golden")
    path = tmp_path / "state"
    break_after(LAYERS * STEPS + 7)
    with pytest.raises(LinkError), Checkpoint(path, {}, resume=False) as checkpoint:
        images("frail", checkpoint)
    with Checkpoint(path, {}, resume=True) as checkpoint:
        assert {sample: state.step for sample, state in checkpoint.states.items()} == {0: STEPS}
        assert np.array_equal(images("golden", checkpoint), whole)


@pytest.mark.parametrize(
    "options",
    [["--sampler", "ddpm"], ["--sampler", "ddpm", "--guidance", "2", "--null-label", "0"]],
    ids=" ".join,
)
def test_images_stay_the_same_when_another_number_of_boards_takes_up(
    denoiser_file: Path,
    tmp_path: Path,
    break_after: Callable[[int], None],
    options: list[str],
) -> None:
    words = ["denoise", denoiser_file, *SIZES, *options]
    assert ditto(*words, "--board", "golden", "-o", tmp_path / "whole.png") == 0
    words += ["-o", tmp_path / "a.png"]
    break_after(20)
    assert ditto(*words, "--board", "frail", "--jobs", 3) == 1
    assert ditto(*words, "--board", "golden", "--jobs", 1, "--resume", "--check") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


def test_a_run_whose_samples_are_all_done_needs_no_device(
    denoiser_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["denoise", denoiser_file, *SIZES, "--board", "golden"]
    assert ditto(*words, "-o", tmp_path / "whole.png") == 0
    with monkeypatch.context() as patch:
        patch.setattr("ditto.host.png.encode", lambda image: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            ditto(*words, "-o", tmp_path / "a.png")
    monkeypatch.setitem(boards.BOARDS, "golden", boards.Board("none", lambda config: 1 / 0))  # type: ignore[arg-type]
    assert ditto(*words, "-o", tmp_path / "a.png", "--resume") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--steps", "7"], "--steps was 6 and is 7"),
        (["--seed", "1"], "--seed was 0 and is 1"),
        (["--samples", "2"], "--samples was 3 and is 2"),
        (["--sampler", "euler"], "--sampler was ddim and is euler"),
        (["--eta", "0.5"], "--eta was 0.0 and is 0.5"),
        (["--tau", "1"], "--tau was 0 and is 1"),
        (["--columns", "8"], "the device's configuration was [0-9a-f]{16} and is [0-9a-f]{16}"),
        ("another model", "the model's hash was [0-9a-f]{16} and is [0-9a-f]{16}"),
    ],
)
def test_another_run_is_refused(
    denoiser_file: Path,
    denoiser_proto: onnx.ModelProto,
    tmp_path: Path,
    break_after: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    change: Any,
    reason: str,
) -> None:
    break_after(20)
    words = ["denoise", denoiser_file, *SIZES, "--jobs", 1, "-o", tmp_path / "a.png"]
    assert ditto(*words, "--board", "frail") == 1
    if change == "another model":
        other = onnx.ModelProto()
        other.CopyFrom(denoiser_proto)
        other.doc_string = "another"
        onnx.save(other, denoiser_file)
        change = []
    capsys.readouterr()
    assert ditto(*words, "--board", "golden", *change, "--resume") == 2
    error = capsys.readouterr().err
    assert re.search(f"a.png.state is of another run: {reason}. Repeat that run's command", error)
    assert (tmp_path / "a.png.state").exists()


def test_an_unfinished_run_is_not_overwritten(
    denoiser_file: Path,
    tmp_path: Path,
    break_after: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_after(20)
    words = ["denoise", denoiser_file, *SIZES, "--jobs", 1, "-o", tmp_path / "a.png"]
    assert ditto(*words, "--board", "frail") == 1
    kept = (tmp_path / "a.png.state").read_bytes()
    capsys.readouterr()
    assert ditto(*words, "--board", "golden") == 2
    assert "take it up again with --resume, or delete the file" in capsys.readouterr().err
    assert (tmp_path / "a.png.state").read_bytes() == kept


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x05\x06" + bytes(18)])
def test_files_that_hold_no_run(
    denoiser_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
) -> None:
    if content is not None:
        (tmp_path / "a.png.state").write_bytes(content)
    words = ["denoise", denoiser_file, *SIZES, "--board", "golden", "-o", tmp_path / "a.png"]
    assert ditto(*words, "--resume") == 2
    expected = "nothing to take up again" if content is None else "does not hold the steps of a run"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def state(step: int) -> State:
    image = np.full((1, 1, 2, 2), step, np.float32)
    return State(step, image, image, np.random.default_rng(step).bit_generator.state)


def test_the_file_is_whole_while_the_run_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process that is killed leaves behind can be taken up."""
    monkeypatch.setattr(resume, "_SECONDS", 0)
    path = tmp_path / "state"
    with Checkpoint(path, {"a": "b"}, resume=False) as checkpoint:
        for step in range(1, 4):
            checkpoint.record(5, state(step))
            with pytest.raises(KeyError), Checkpoint(path, {"a": "b"}, resume=True) as other:
                assert other.states.keys() == {5}
                found = other.states[5]
                assert (found.step, found.rng) == (step, state(step).rng)
                assert np.array_equal(found.latents, state(step).latents)
                raise KeyError  # leaves the file
    assert not path.exists()


def test_the_file_is_written_no_more_than_once_in_a_second_and_when_there_is_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    now, first = 1000.0, b""
    monkeypatch.setattr("ditto.host.resume.time.monotonic", lambda: now)
    with pytest.raises(KeyError), Checkpoint(path, {}, resume=False) as checkpoint:
        checkpoint.record(0, state(1))
        assert not path.exists()
        now += 1.5
        checkpoint.record(0, state(2))
        first = path.read_bytes()
        now += 1.0
        checkpoint.record(0, state(3))
        assert path.read_bytes() == first
        raise KeyError
    assert path.read_bytes() != first
    os.utime(path, (0, 0))
    with pytest.raises(KeyError), Checkpoint(path, {}, resume=True) as checkpoint:
        assert checkpoint.states[0].step == 3
        raise KeyError
    assert path.stat().st_mtime == 0
    with pytest.raises(KeyError), Checkpoint(path, {}, resume=True) as checkpoint:
        now += 1.5
        checkpoint.record(0, state(4))
        assert path.stat().st_mtime > 0
        os.utime(path, (0, 0))
        raise KeyError
    assert path.stat().st_mtime == 0


def refusal(path: Path, identity: dict[str, str]) -> str:
    with pytest.raises(ResumeError) as error:
        Checkpoint(path, identity, resume=True).__enter__()
    return str(error.value)


def test_every_difference_to_the_other_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(KeyError), Checkpoint(path, {"a": "1", "b": "2"}, resume=False) as other:
        other.record(0, state(1))
        raise KeyError
    assert refusal(path, {"a": "3", "c": "4"}) == (
        f"{path} is of another run: a was 1 and is 3, b was 2 and is None, c was None and is 4. "
        "Repeat that run's command with --resume, or delete the file"
    )
    # A later release may keep something else.
    arrays = dict(np.load(path))
    facts = json.loads(arrays["facts"].tobytes()) | {"format": 2}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    assert "is of another run: format was 2 and is 1. Rep" in refusal(path, {"a": "1", "b": "2"})


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    folder, path = tmp_path / "folder", tmp_path / "state"
    folder.mkdir()
    assert re.fullmatch(rf"cannot read {re.escape(str(folder))}: [A-Z][a-z ]+", refusal(folder, {}))
    path.write_bytes(b"text")
    message = r" does not hold the steps of a run \(.*\); delete it and repeat the command "
    assert re.fullmatch(re.escape(str(path)) + message + "without --resume", refusal(path, {}))
    with pytest.raises(ResumeError) as error:
        Checkpoint(path, {}, resume=False).__enter__()
    assert str(error.value) == (
        f"{path} has the finished steps of a run that failed; take it up again with --resume, or "
        "delete the file"
    )


@pytest.mark.parametrize(
    ("sample", "wrong", "message"),
    [
        (-1, {}, "sample -1"),
        (0, {"step": -2}, "step -2"),
        (0, {"latents": np.zeros((1, 2, 2), np.float32)}, r"an image of \(1, 2, 2\) float32"),
        (0, {"latents": np.zeros((1, 1, 2, 2))}, r"an image of \(1, 1, 2, 2\) float64"),
        (0, {"estimate": np.zeros((1, 1, 2, 3), np.float32)}, r"an image of \(1, 1, 2, 3\) float"),
    ],
)
def test_states_that_no_sample_comes_to(
    tmp_path: Path, sample: int, wrong: dict[str, Any], message: str
) -> None:
    path = tmp_path / "state"
    bad = state(1)._replace(**wrong)
    if "latents" in wrong:
        bad = bad._replace(estimate=bad.latents)
    with pytest.raises(KeyError), Checkpoint(path, {}, resume=False) as checkpoint:
        checkpoint.record(sample, bad)
        raise KeyError
    with pytest.raises(ResumeError, match=message):
        Checkpoint(path, {}, resume=True).__enter__()


def test_a_disk_that_is_full_does_not_end_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "no folder" / "state"
    with (
        pytest.raises(LinkError) as error,
        Checkpoint(path, {}, resume=False) as checkpoint,
    ):
        checkpoint.record(0, state(1))
        raise LinkError("lost")
    assert not hasattr(error.value, "__notes__")
    (message,) = caplog.messages
    assert message.startswith(f"the run cannot be taken up again if it fails: cannot write {path}")
    with pytest.raises(ResumeError, match="nothing to take up"):
        Checkpoint(path, {}, resume=True).__enter__()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_cable_that_is_pulled(
    denoiser_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Pulled(GoldenBoard):
        """A board whose cable is pulled in the middle of an answer."""

        sent = 0

        def read(self, size: int, timeout: float) -> bytes:
            data = super().read(size, timeout)
            self.sent += len(data)
            if self.sent > 30_000:
                raise LinkError("pulled")
            return data

    words = ["denoise", denoiser_file, *SIZES]
    assert ditto(*words, "--board", "golden", "-o", tmp_path / "whole.png") == 0
    words += ["-o", tmp_path / "a.png", "--board", "ulx3s-85f", "--port"]
    with Pty(Pulled(demo)) as pty:
        assert ditto(*words, pty.name) == 1
    error, note = capsys.readouterr().err.splitlines()
    assert re.match(r"ditto: the port \S+ is lost .*; plug the board in again", error)
    assert "repeat the command with --resume to go on" in note
    with Pty(GoldenBoard(demo)) as pty:
        assert ditto(*words, pty.name, "--resume") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
