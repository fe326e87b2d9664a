import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from ditto.host import png
from ditto.host.output import OutputError, OutputFile


def decode(data: bytes) -> np.ndarray:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks = {}
    at = 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 0, 0, 0, 0]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:]


def test_png() -> None:
    pixels = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
    np.testing.assert_array_equal(decode(png.encode(pixels)), pixels)


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (12, 9)), (2, (12, 20)), (3, (26, 20)), (7, (40, 31))]
)
def test_grid(count: int, shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 3)).astype(np.uint8)
    result = png.grid(images, zoom=3, gap=2)
    assert result.shape == shape
    np.testing.assert_array_equal(result[:12:3, :9:3], images[0])


def test_output_appears_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with OutputFile(path) as file:
        assert not path.exists()
        file.write(b"picture")
        assert path.read_bytes() == b"picture"
    assert os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(KeyboardInterrupt):
        with OutputFile(path):
            raise KeyboardInterrupt
    assert path.read_bytes() == b"picture"
    assert os.listdir(tmp_path) == ["a.png"]


def test_unwritable_outputs_are_refused_before(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory .does the folder .*missing"):
        OutputFile(tmp_path / "missing" / "a.png").__enter__()
    with pytest.raises(OutputError, match="is a directory"):
        OutputFile(tmp_path).__enter__()
    with pytest.raises(OutputError, match="/dev/null: it is not a regular file"):
        OutputFile(Path(os.devnull)).__enter__()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write .*a.png: Not a directory"):
        OutputFile(tmp_path / "file" / "a.png").__enter__()
