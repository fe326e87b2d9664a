# amaranth: UnusedElaboratable=no

from pathlib import Path
from typing import Any

import pytest

from ditto.hdl.framing import Deframer, Framer
from ditto.sim.cocotb_runner import CocotbError, run_cocotb

TESTBENCH = Path(__file__).with_name("tb_framing.py")
FRAME_BYTES = 604
TOPS = {"framer": Framer, "deframer": lambda: Deframer(frame_bytes=FRAME_BYTES)}
# Around one and two full blocks, with and without the CRC, and some of the others up to 600.
LENGTHS = [*range(1, 20), *range(248, 257), *range(503, 510), *range(20, 601, 29)]


def parameters(top: str, **kwargs: Any) -> dict[str, Any]:
    return {"top": top, "frame_bytes": FRAME_BYTES, **kwargs}


@pytest.mark.parametrize("top", TOPS)
def test_framing_on_verilator(top: str) -> None:
    count = run_cocotb(
        TOPS[top](),
        top_name=top,
        testbench=TESTBENCH,
        parameters=parameters(top, lengths=LENGTHS, frames=100),
    )
    assert count == {"framer": 4, "deframer": 4}[top]


@pytest.mark.parametrize("top", TOPS)
def test_framing_on_icarus(top: str) -> None:
    run_cocotb(
        TOPS[top](),
        top_name=top,
        testbench=TESTBENCH,
        simulator="icarus",
        parameters=parameters(top, lengths=[1, 7, 250, 251], frames=30),
    )


BENCH = """
import random

import cocotb
from cocotb.triggers import ClockCycles
from ditto.sim.cocotb_bench import start


async def fall(dut):
    await ClockCycles(dut.clk, 2)
    raise ValueError("this task fails")


@cocotb.test(skip={skip})
async def bench(dut):
    await start(dut)
    if {in_task}:
        cocotb.start_soon(fall(dut))
    await ClockCycles(dut.clk, 5)
    assert {in_task}, f"this fails, {{random.getrandbits(32)}}"
"""


def run_bench(path: Path, text: str) -> str:
    (path / "tb_wrong.py").write_text(text)
    with pytest.raises(CocotbError) as caught:
        run_cocotb(Framer(), top_name="framer", testbench=path / "tb_wrong.py", seed=7)
    return str(caught.value)


@pytest.mark.parametrize("in_task, message", [(0, "this fails, "), (1, "this task fails")])
def test_a_failure_is_reported_with_its_seed(tmp_path: Path, in_task: int, message: str) -> None:
    first = run_bench(tmp_path, BENCH.format(skip=False, in_task=in_task))
    assert "1 of 1 tests failed" in first
    assert "repeat with COCOTB_RANDOM_SEED=7\n" in first
    assert message in first


def test_no_test_is_a_failure(tmp_path: Path) -> None:
    assert "0 of 0 tests failed" in run_bench(tmp_path, "import cocotb\n")
    assert "0 of 0 tests failed" in run_bench(tmp_path, BENCH.format(skip=True, in_task=0))
    assert "no_such_module" in run_bench(tmp_path, "import no_such_module\n")
