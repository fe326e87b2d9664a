"""What is said where the packages of an extra are missing."""

import sys
from pathlib import Path

import pytest

from ditto.host import diffusers as exporter
from ditto.host.cli import main
from ditto.host.model import ModelError
from ditto.host.schedulers import load_scheduler


@pytest.mark.parametrize("name", ["torch", "diffusers"])
def test_export(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for other in ("torch", "diffusers"):
        monkeypatch.setitem(sys.modules, other, pytest if other != name else None)
    assert exporter.main([str(tmp_path), "-o", str(tmp_path / "a.onnx")]) == 1
    assert (
        f"exporting needs {name}: pip install 'ditto-accel[diffusers]'" in capsys.readouterr().err
    )


def test_schedulers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    with pytest.raises(ModelError, match=r"need it: pip install 'ditto-accel\[diffusers\]'"):
        load_scheduler(tmp_path)


def test_quantize(
    float_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["quantize", str(float_file), "-o", str(tmp_path / "a.onnx")]) == 1
    assert "pip install 'ditto-accel[quantize]'" in capsys.readouterr().err
