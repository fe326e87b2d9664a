import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ditto.hdl.config import Config, demo
from ditto.hdl.protocol import Mode
from ditto.host import boards, cli
from ditto.host.device import Device
from ditto.sim.golden import Golden
from ditto.sim.golden_board import GoldenBoard

SMALL = ["--steps", "4", "--samples", "3", "--board", "golden"]


def ditto(*words: object) -> int:
    """Run the command in this process."""
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as leave:
        assert isinstance(leave.code, int)
        return leave.code


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the message, which must be one line."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ditto")]
    assert len(lines) == 1
    return lines[0]


def test_denoise(denoiser_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, counts = tmp_path / "a.png", tmp_path / "a.json"
    assert ditto("denoise", denoiser_file, *SMALL, "-o", image, "--json", counts, "--check") == 0
    assert image.read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr().out
    for part in ("sample 2: 4 steps  zero", "first", "conv 3x3", "6x6 x 6 -> 1", "all layers"):
        assert part in output
    assert f"wrote {image}" in output
    facts = json.loads(counts.read_text())
    assert facts["configuration"] == Config(**facts["configuration"]).__dict__
    assert [layer["name"] for layer in facts["layers"]] == ["first/Conv", "time/Gemm", "last/Conv"]
    assert len(facts["steps"]) == 4 and facts["steps"][0]["ratio"] == 1.0
    for name in ("cycles", "items", "zero", "narrow", "wide", "stall_row"):
        total = facts["total"]["counters"][name]
        assert total == sum(layer["counters"][name] for layer in facts["layers"])
        assert total == sum(step["counters"][name] for step in facts["steps"])
    assert 0 < facts["total"]["utilization"] < 1
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.png", "denoiser.onnx"]


def test_samplers(denoiser_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {}
    for name in ("ddim", "ddpm", "dpm++", "euler"):
        image = tmp_path / f"{name}.png"
        options = [*SMALL, "--sampler", name, "-o", image, "-q", "--check"]
        assert ditto("denoise", denoiser_file, *options) == 0
        images[name] = image.read_bytes()
    assert len(set(images.values())) == 4
    noisy = tmp_path / "noisy.png"
    assert ditto("denoise", denoiser_file, *SMALL, "--eta", "1", "-o", noisy, "-q") == 0
    assert noisy.read_bytes() == images["ddpm"]
    capsys.readouterr()
    options = [*SMALL, "--sampler", "euler", "--eta", "1", "-o", noisy]
    assert ditto("denoise", denoiser_file, *options) == 2
    assert "eta is for the sampler ddim; euler has none" in capsys.readouterr().err
    page = tmp_path / "page.html"
    options = ["--sampler", "dpm++", "--steps", "3", "--samples", "2", "-o", page, "-q"]
    assert ditto("analyze", denoiser_file, *options) == 0
    assert "DPM-Solver++(2M), 3 steps" in page.read_text()


def test_result_does_not_depend_on_mode_jobs_link_or_number(
    denoiser_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = boards.Board("a link", lambda config: Device(GoldenBoard(config), expect=config))
    monkeypatch.setitem(boards.BOARDS, "link", board)
    images = []
    for options in (
        [*SMALL, "--jobs", "1"],
        [*SMALL, "--jobs", "3"],
        [*SMALL, "--policy", "dense"],
        [*SMALL, "--board", "link", "--jobs", "2", "--check"],
        [*SMALL, "--clusters", "3", "--columns", "5", "--positions", "20", "--digit-bits", "5"],
    ):
        images.append(tmp_path / f"{len(images)}.png")
        assert ditto("denoise", denoiser_file, *options, "-o", images[-1], "-q") == 0
    assert len({image.read_bytes() for image in images}) == 1
    assert ditto("denoise", denoiser_file, *SMALL, "--seed", "1", "-o", images[0]) == 0
    assert images[0].read_bytes() != images[1].read_bytes()


def test_quiet(denoiser_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ditto("denoise", denoiser_file, *SMALL, "-q", "-o", tmp_path / "a.png") == 0
    assert "sample" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["MISSING"], 1, "cannot read model .*missing.onnx: No such file or directory"),
        (["TEXT"], 1, "text.onnx is not a valid ONNX file: "),
        (["MODEL", "-o", "missing/a.png"], 1, "cannot write missing/a.png: No such file or dir"),
        (["MODEL", "--json", "/proc/x/a.json"], 1, "cannot write /proc/x/a.json: "),
        (["MODEL", "--board", "arty"], 2, "there is no board 'arty'; choose from sim, golden"),
        (["MODEL", "--weight-rows", "3"], 1, "does not fit the device: it has weight_rows = 3, "),
        (["MODEL", "--lanes", "99"], 2, r"lanes = 99 breaks its bound of 2 lanes by 97"),
        (["MODEL", "--item-depth", "9"], 2, "item_depth = 9 cannot hold one position"),
        (["MODEL", "--steps", "2000"], 2, "--steps 2000 is more than the 1000 steps that the mod"),
        (["MODEL", "--steps", "0"], 2, "argument --steps: '0' is not a number of at least 1"),
        (["MODEL", "--eta", "7"], 2, r"argument --eta: '7' is not a number in 0\.\.1"),
        (["MODEL", "--lanes", "many"], 2, "argument --lanes: invalid int value: 'many'"),
        (["MODEL", "--multiplier", "x"], 2, "argument --multiplier: invalid choice: 'x'"),
        (
            ["MODEL", "--json", "OUTPUT"],
            2,
            "image, JSON file and monitor.s lines cannot be the same",
        ),
    ],
)
def test_bad_input(
    words: list[str],
    status: int,
    message: str,
    denoiser_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    output = tmp_path / "out.png"
    places = {
        "MODEL": denoiser_file,
        "MISSING": tmp_path / "missing.onnx",
        "TEXT": text,
        "OUTPUT": output,
    }
    before = sorted(os.listdir(tmp_path))
    given = [places.get(word, word) for word in words]
    assert ditto("denoise", *SMALL, "-o", output, *given) == status
    assert sorted(os.listdir(tmp_path)) == before
    import re

    assert re.search(message, error_of(capsys))


def colored(make_graph: Any, channels: int) -> onnx.ModelProto:
    g = make_graph()
    x = g.quantized(g.input("sample", [1, channels, 4, 4]))
    g.input("timestep", [1], onnx.TensorProto.INT64)
    weights = np.ones((channels, channels, 1, 1), np.int8)
    return g.model(g.node("Conv", x, g.weights(weights, [0.01] * channels)))


def test_color(make_graph: Any, tmp_path: Path) -> None:
    onnx.save(colored(make_graph, 3), tmp_path / "rgb.onnx")
    assert ditto("denoise", tmp_path / "rgb.onnx", *SMALL, "-o", tmp_path / "a.png", "-q") == 0
    header = (tmp_path / "a.png").read_bytes()[:26]
    assert header[24:] == bytes([8, 2])  # 8 bits, red, green and blue


def test_images_that_cannot_be_written(
    make_graph: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(colored(make_graph, 4), tmp_path / "latents.onnx")
    assert ditto("denoise", tmp_path / "latents.onnx", *SMALL, "-o", tmp_path / "a.png") == 1
    assert "makes images of 4 channels; only gray (1) and color (3) can" in error_of(capsys)


def test_mismatch(
    denoiser_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Faulty(Golden):
        def run(self, entry: int, mode: Mode) -> Any:
            counters = super().run(entry, mode)
            if mode is Mode.TEMPORAL and entry == 0:
                self._accumulators[0, self._layers[0]["accumulator_base"]] += 1
            return counters

    monkeypatch.setitem(boards.BOARDS, "faulty", boards.Board("a broken one", Faulty))
    options = [*SMALL, "--board", "faulty", "-o", tmp_path / "a.png", "--jobs", "2"]
    assert ditto("denoise", denoiser_file, *options) == 0
    (tmp_path / "a.png").unlink()
    assert ditto("denoise", denoiser_file, *options, "--check") == 1
    message = "step 1, layer first/Conv, accumulator of channel 0, row 0, column 0: got "
    error, note = capsys.readouterr().err.splitlines()
    assert error.startswith(f"ditto: {message}")
    assert note.endswith("a.png.state: repeat the command with --resume to go on")
    assert sorted(os.listdir(tmp_path)) == ["a.png.state", "denoiser.onnx"]
    (tmp_path / "a.png.state").unlink()
    with pytest.raises(Exception, match="step 1, layer first/Conv"):
        ditto("denoise", denoiser_file, *options, "--check", "--debug")


def test_silent_device(
    denoiser_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Dying(GoldenBoard):
        def write(self, data: bytes) -> None:
            if len(self.executed) < 200:
                super().write(data)

    board = boards.Board("dies", lambda config: Device(Dying(config), timeout=0.01))
    monkeypatch.setitem(boards.BOARDS, "dying", board)
    options = ["--board", "dying", "--steps", "50", "-o", tmp_path / "a.png"]
    assert ditto("denoise", denoiser_file, *options) == 1
    error, note = capsys.readouterr().err.splitlines()
    assert "no answer to " in error
    assert "finished steps are kept in" in note
    assert sorted(os.listdir(tmp_path)) == ["a.png.state", "denoiser.onnx"]


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt(denoiser_file: Path, tmp_path: Path, jobs: str, number: int) -> None:
    command = [sys.executable, "-m", "ditto.host.cli", "denoise", str(denoiser_file)]
    options = ["--board", "golden", "--steps", "1000", "--samples", "900", "--jobs", jobs]
    with subprocess.Popen(
        [*command, *options, "-o", "a.png"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may itself have been told to ignore ^C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while len(os.listdir(tmp_path)) == 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.5)  # in the middle of a sample
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    error, note = errors.splitlines()
    assert (process.returncode, error) == (130, "ditto: interrupted; nothing was written")
    assert re.fullmatch(
        r"ditto: the \d+ finished steps are kept in a.png.state: repeat the command with --resume "
        "to go on",
        note,
    )
    assert sorted(os.listdir(tmp_path)) == ["a.png.state", "denoiser.onnx"]


def test_identify(capsys: pytest.CaptureFixture[str]) -> None:
    assert ditto("identify", "--board", "golden", "--clusters", "4") == 0
    output = capsys.readouterr().out.split("\n")
    assert output[1].endswith("128 multipliers")
    assert ["clusters", "4"] in [line.split() for line in output]


def test_generate_passes_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ditto.fpga import generate

    seen = []

    def write(config: Config, output: Path, platform: object, axi: bool) -> tuple[Path, Path]:
        seen.append((config, platform))
        return output, output.with_suffix(".json")

    monkeypatch.setattr(generate, "write", write)
    assert ditto("generate", "-o", tmp_path / "d.v") == 0
    assert ditto("generate", "--lanes", "1", "-o", tmp_path / "d.v") == 0
    assert ditto("generate", "--target", "ecp5", "-o", tmp_path / "d.v") == 0
    assert [config.lanes for config, _ in seen] == [demo.lanes, 1, demo.lanes]
    assert [platform is None for _, platform in seen] == [True, True, False]
    assert "wrote" in capsys.readouterr().out


def test_every_parameter_has_an_option_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("denoise", "bench", "generate", "identify"):
        assert ditto(verb, "-h") == 0
        text = " ".join(capsys.readouterr().out.split())
        for name in Config.__dataclass_fields__:
            option = f"--{name.replace('_', '-')} {'KIND' if name == 'multiplier' else 'N'} "
            assert text.partition(option)[2][0].isupper(), option
    assert ditto() == 2


def test_help_is_quick_and_needs_nothing_heavy() -> None:
    code = (
        "import sys\nfrom ditto.host import cli\n"
        "try: cli.main(['denoise', '-h'])\nexcept SystemExit: pass\n"
        "assert not {'numpy', 'onnx', 'amaranth', 'rich'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_boards_of_the_help_are_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    ditto("identify", "-h")
    text = capsys.readouterr().out
    assert all(f"{name}:" in text for name in boards.BOARDS)
    with pytest.raises(boards.BoardError, match="there is no board 'x'; choose from sim, golden"):
        boards.open_device("x", demo)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_progress_bar_on_a_terminal(denoiser_file: Path, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "ditto.host.cli", "denoise", str(denoiser_file), *SMALL]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "140"}
    with subprocess.Popen(
        [*command, "-o", "a.png"], cwd=tmp_path, stdout=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:
                break
            if not data:
                break
            shown += data
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert "12/12" in text and "narrow" in text and "sample 0" not in text


def test_analyze(denoiser_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, facts, table = (tmp_path / f"a.{kind}" for kind in ("html", "json", "csv"))
    words = ["--steps", "3,4", "--eta", "0,1", "--tau", "0,1", "--samples", "2"]
    words += ["-o", report, "--json", facts, "--csv", table]
    assert ditto("analyze", denoiser_file, *words) == 0
    output = capsys.readouterr().out
    assert "DDPM, 4 steps, tau 1" in output and f"wrote {report}" in output
    runs = json.loads(facts.read_text())["runs"]
    assert [(r["steps"], r["eta"], r["tau"]) for r in runs] == [
        (s, e, t) for s in (3, 4) for e in (0, 1) for t in (0, 1)
    ]
    assert len(table.read_text().splitlines()) == 1 + 3 * 4 * (3 + 4)
    assert report.read_text("utf-8").startswith("<!doctype html>")
    assert ditto("analyze", denoiser_file, "--steps", "2000", "-o", report) == 2
    assert "--steps 2000 is more than the 1000 steps" in error_of(capsys)
    assert ditto("analyze", denoiser_file, "-o", report, "--json", report) == 2
    assert "cannot be the same file" in error_of(capsys)


def test_denoise_with_a_threshold(denoiser_file: Path, tmp_path: Path) -> None:
    totals = []
    for tau in (0, 3):
        counts = tmp_path / f"{tau}.json"
        words = [*SMALL, "--tau", tau, "--check", "-o", tmp_path / "a.png", "--json", counts]
        assert ditto("denoise", denoiser_file, *words) == 0
        totals.append(json.loads(counts.read_text())["total"]["zero"])
    assert totals[0] < totals[1]
