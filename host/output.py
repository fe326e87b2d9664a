"""Output files that are there whole or not at all."""

import os
import stat
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["OutputError", "OutputFile"]


class OutputError(Exception):
    """A file that cannot be written."""


class OutputFile:
    """A file to write at the end of a long run.

    Entering the context finds out whether the file can be written at all. It appears when
    :meth:`write` is called; until then, and after an error, there is nothing.

    Parameters
    ----------
    path
        The file. It is replaced if it exists.

    Raises
    ------
    OutputError
        On entering, if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary: Path | None = None

    def __enter__(self) -> Self:
        """Reserve a place beside the file."""
        try:
            if self.path.is_dir():
                raise OutputError(f"cannot write {self.path}: it is a directory")
            if self.path.exists() and not stat.S_ISREG(self.path.stat().st_mode):
                raise OutputError(f"cannot write {self.path}: it is not a regular file")
            if self.path.exists() and not os.access(self.path, os.W_OK):
                raise OutputError(f"cannot write {self.path}: it is write-protected")
            handle, name = tempfile.mkstemp(
                dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".part"
            )
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror or error} (does the folder "
                f"{self.path.parent.absolute()} exist, and may you write there?)"
            ) from error
        os.close(handle)
        self._temporary = Path(name)
        return self

    def write(self, data: bytes) -> None:
        """Write the whole file.

        Raises
        ------
        OutputError
            If that fails, e.g. because the disk is full.
        """
        assert self._temporary is not None
        try:
            self._temporary.write_bytes(data)
            mask = os.umask(0)
            os.umask(mask)
            self._temporary.chmod(0o666 & ~mask)
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._temporary = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove what is left."""
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None
