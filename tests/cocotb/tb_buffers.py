# amaranth: UnusedElaboratable=no
"""Difference buffer and list against Python's lists: every cycle, with random use of each port."""

import random
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, RisingEdge
from gateware import CONFIG, PARAMETERS, chance, idle, pulse

from ditto.hdl.difference_buffer import DifferenceBuffer, item_of
from ditto.hdl.sequencer import List, entry_of
from ditto.sim.cocotb_bench import start

IS_LIST = PARAMETERS["top"] == "list"
DEPTH: int = PARAMETERS.get("depth", 1)
CYCLES: int = PARAMETERS["cycles"]


class Port:
    """One memory of the buffer, with its ports: what it holds and what it shows."""

    def __init__(self, dut: Any, name: str, depth: int, width: int, *, reads_always: bool) -> None:
        write, read = name.replace("#", "w", 1), name.replace("#", "r", 1)
        value = "counts" if reads_always else "item"
        self.w_en = getattr(dut, f"{write}__en")
        self.w_address = getattr(dut, f"{write}__address")
        self.w_value = getattr(dut, f"{write}__{value}")
        self.r_en = None if reads_always else getattr(dut, f"{read}__en")
        self.r_address = getattr(dut, f"{read}__address")
        self.r_value = getattr(dut, f"{read}__{value}")
        self.name = name
        self.width = width
        self.cells: list[int | None] = [None] * depth
        self.shown: int | None = None
        self.last = 0

    def drive(self) -> None:
        """Write and read at random, not the same cell at once."""
        depth = len(self.cells)
        written = None
        if chance(0.5):
            # Often the cell that the read port shows, which must not change what is shown.
            written = self.last if chance(0.3) else random.randrange(depth)
        self.w_en.value = written is not None
        value = random.getrandbits(self.width)
        self.w_address.value = random.randrange(depth) if written is None else written
        self.w_value.value = value
        reads = [cell for cell in range(depth) if cell != written] or [0]
        read = random.choice(reads)
        enabled = chance(0.5) and read != written
        if self.r_en is None:
            enabled = True
        else:
            self.r_en.value = enabled
        self.r_address.value = read
        if enabled:
            # With one cell, a port without enable shows what nobody may rely on.
            self.shown = None if read == written else self.cells[read]
            self.last = read
        if written is not None:
            self.cells[written] = value

    def check(self, cycle: int) -> None:
        if self.shown is not None:
            got = int(self.r_value.value)
            assert got == self.shown, f"{self.name}, cycle {cycle}: {got:#x}, not {self.shown:#x}"


@cocotb.test(skip=IS_LIST)
async def buffer_holds_what_was_written(dut: Any) -> None:
    idle(dut, DifferenceBuffer(CONFIG))
    width = item_of(CONFIG).size
    ports = [
        Port(dut, f"items_#__{lane}", CONFIG.item_depth, width, reads_always=False)
        for lane in range(CONFIG.lanes)
    ]
    width = CONFIG.count_bits * CONFIG.lanes
    ports.append(Port(dut, "counts_#", CONFIG.positions, width, reads_always=True))
    await start(dut)
    for cycle in range(CYCLES):
        for port in ports:
            port.drive()
        await RisingEdge(dut.clk)
        if chance(0.5):
            # What a port shows doesn't depend on what it is asked now.
            for port in ports:
                port.r_address.value = random.randrange(len(port.cells))
        await FallingEdge(dut.clk)
        for port in ports:
            port.check(cycle)


@cocotb.test(skip=not IS_LIST)
async def list_is_a_queue(dut: Any) -> None:
    shape = entry_of(CONFIG)
    idle(dut, List(shape=shape, depth=DEPTH))
    await start(dut)
    queue: deque[int] = deque()
    longest = 0
    eager = 0.5
    for cycle in range(CYCLES):
        if cycle % 50 == 0:
            eager = random.choice([0.1, 0.5, 0.9])
        push = len(queue) < DEPTH and chance(eager)
        pop = bool(queue) and chance(1 - eager)
        clear = chance(0.01)
        tail = random.getrandbits(shape.size)
        dut.push.value = push
        dut.pop.value = pop
        dut.clear.value = clear
        dut.tail.value = tail
        await FallingEdge(dut.clk)
        assert int(dut.filled.value) == bool(queue), f"cycle {cycle}: {len(queue)} in the queue"
        if queue:
            assert int(dut.head.value) == queue[0], f"cycle {cycle}"
        await RisingEdge(dut.clk)
        if pop:
            queue.popleft()
        if push:
            queue.append(tail)
        if clear:
            queue.clear()
        longest = max(longest, len(queue))
    assert longest == DEPTH
    dut.push.value = dut.pop.value = dut.clear.value = 0
    await pulse(dut, "rst")
    await FallingEdge(dut.clk)
    assert not int(dut.filled.value)
