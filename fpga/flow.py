"""Runs the tools on a design, and keeps what they make.

Results are kept in the folder of :func:`ditto.sim.verilate.cache_folder` under a hash of everything
that went into them: the design, the tools' versions and their options. A run that fails or is
interrupted leaves nothing there.
"""

import gzip
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ditto.fpga.tools import Tool, ToolError, find
from ditto.sim.verilate import cache_folder

__all__ = ["Flow"]

logger = logging.getLogger(__name__)


class Flow:
    """A design, from RTLIL to what place and route makes; what the cache has is not made again.

    The tools meet in a folder where the design is ``top.il`` and its netlist ``top.json``.

    Parameters
    ----------
    rtlil
        The design.
    top
        Name of its top module.
    synthesis
        Yosys' command, but for the name of the top.
    nextpnr
        Name of the tool that places and routes.
    name
        What the design is, for the progress.
    timeout
        Most seconds for each run of a tool.
    progress
        Called with a line of text for each step that the cache does not have.

    Raises
    ------
    MissingToolError
        If a tool is missing.
    """

    def __init__(
        self,
        rtlil: str,
        *,
        top: str,
        synthesis: str,
        nextpnr: str,
        name: str,
        timeout: float,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self._rtlil, self._name = rtlil, name
        self._script = f"read_rtlil top.il; {synthesis} -top {top}; write_json top.json"
        self._timeout, self._progress = timeout, progress
        self._yosys, self._nextpnr = find("yosys"), find(nextpnr)
        self._key = _digest(rtlil, self._yosys.version, self._script)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the tools."""
        return {tool.name: tool.version for tool in (self._yosys, self._nextpnr)}

    def netlist(self) -> bytes:
        """Map the design to cells; return the netlist, as Yosys writes it in JSON.

        Raises
        ------
        ToolError
            If the tool fails or takes too long, or the cache's folder cannot be written.
        """
        (netlist,) = self.run(
            f"netlist-{self._key}",
            "Synthesizing",
            self._yosys,
            ["-q", "-p", self._script],
            {"top.il": self._rtlil.encode()},
            ["top.json"],
        )
        return netlist

    def pack(self, options: Sequence[str], files: Mapping[str, bytes]) -> dict[str, Any]:
        """Pack the netlist, and return nextpnr's report: ``utilization`` by kind of cell."""
        report, _ = self._place("Packing", [*options, "--pack-only"], files, (), bytes)
        return report

    def place(
        self,
        seed: int,
        options: Sequence[str],
        files: Mapping[str, bytes],
        outputs: Sequence[str] = (),
        prepare: Callable[[bytes], bytes] = bytes,
        version: str = "",
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Place and route.

        Parameters
        ----------
        seed
            Seed of the tool.
        options
            Its other options.
        files
            Other files that it reads, by name.
        outputs
            Files to return.
        prepare
            Makes the netlist that is placed from the one of synthesis.
        version
            Of ``prepare``: a result of another one is not used.

        Returns
        -------
        tuple
            nextpnr's report, and the files.
        """
        words = [*options, "--seed", str(seed)]
        step = f"Placing and routing, seed {seed}:"
        return self._place(step, words, files, outputs, prepare, version)

    def _place(
        self,
        step: str,
        options: Sequence[str],
        files: Mapping[str, bytes],
        outputs: Sequence[str],
        prepare: Callable[[bytes], bytes],
        version: str = "",
    ) -> tuple[dict[str, Any], list[bytes]]:
        words = [*options, "--json", "top.json", "--report", "report.json"]
        contents = (item for name in sorted(files) for item in (name, files[name].decode()))
        key = _digest(self._key, self._nextpnr.version, version, *words, *contents)
        report, *made = self.run(
            f"placement-{key}",
            step,
            self._nextpnr,
            words,
            lambda: {"top.json": prepare(self.netlist()), **files},
            ["report.json", *outputs],
        )
        return json.loads(report), made

    def run(
        self,
        name: str,
        step: str,
        tool: Tool,
        arguments: Sequence[str],
        inputs: Mapping[str, bytes] | Callable[[], Mapping[str, bytes]],
        outputs: Sequence[str],
    ) -> list[bytes]:
        """Return the files that a tool makes.

        Parameters
        ----------
        name
            The cache's name for them.
        step
            What it does, for the progress.
        tool, arguments
            What to run.
        inputs
            Files that are there before, by name, or what makes them.
        outputs
            Names of the files to return.

        Raises
        ------
        ToolError
            If the tool fails or takes too long, or the cache's folder cannot be written.
        """
        kept = [cache_folder() / f"{name}.{index}.gz" for index in range(len(outputs))]
        try:
            return [gzip.decompress(path.read_bytes()) for path in kept]
        except (OSError, EOFError):
            pass
        files = inputs() if callable(inputs) else inputs
        logger.info("%s %s", step, self._name)
        if self._progress is not None:
            self._progress(f"{step} {self._name}")
        with tempfile.TemporaryDirectory(dir=_made(cache_folder()), prefix="build-") as temporary:
            folder = Path(temporary)
            for file, content in files.items():
                (folder / file).write_bytes(content)
            tool.run(list(arguments), folder, self._timeout)
            made = [(folder / file).read_bytes() for file in outputs]
            for path, content in zip(kept, made, strict=True):
                whole = folder / "whole"
                whole.write_bytes(gzip.compress(content, 6, mtime=0))
                os.replace(whole, path)
        return made


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ToolError(
            f"cannot build in {folder}: {error} (set XDG_CACHE_HOME to a folder that can be "
            "written)"
        ) from error
    return folder
