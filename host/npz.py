"""Reads ``.npz`` files that others have made."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_npz"]

_MOST = 1 << 30


def read_npz(path: Path | str) -> dict[str, NDArray[Any]]:
    """Read all arrays of an archive, without running what it may hold.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no archive of arrays, or a small one that would fill the memory: unpacked it may
        have the size of the file or 1 GiB, whichever is more.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > max(_MOST, Path(path).stat().st_size):
            raise ValueError(f"it holds {unpacked} bytes, which is more than {_MOST}")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError:
        raise
    except Exception as error:  # a damaged archive can be wrong in any way
        raise ValueError(str(error)) from error
