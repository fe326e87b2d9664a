# amaranth: UnusedElaboratable=no
"""Difference buffer and queue of rows against Python, every cycle, with random use of each port."""

import random
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, RisingEdge
from gateware import CONFIG, PARAMETERS, chance, idle, pulse

from ditto.hdl.difference_buffer import DifferenceBuffer, item_of, place_of
from ditto.hdl.lanes import RowQueue
from ditto.hdl.sequencer import row_of
from ditto.sim.cocotb_bench import start

IS_QUEUE = PARAMETERS["top"] == "rows"
DEPTH: int = PARAMETERS.get("depth", 1)
CYCLES: int = PARAMETERS["cycles"]


@cocotb.test(skip=IS_QUEUE)
async def buffer_holds_what_was_written(dut: Any) -> None:
    """Fill some cells, then read at random with every port, again and again."""
    idle(dut, DifferenceBuffer(CONFIG))
    item_bits, place_bits = item_of(CONFIG).size, place_of(CONFIG).size
    items: dict[int, int] = {}
    places: dict[int, int] = {}
    await start(dut)
    ports = [
        tuple(getattr(dut, f"items_r__{lane}__{name}") for name in ("en", "address", "item"))
        for lane in range(CONFIG.lanes)
    ]
    shown: list[int | None] = [None] * CONFIG.lanes
    cycle = 0
    while cycle < CYCLES:
        for _ in range(random.randint(1, 40)):
            address, position = (
                random.randrange(CONFIG.item_depth),
                random.randrange(CONFIG.positions),
            )
            for name, key, value, cells, bits in [
                ("items", address, "item", items, item_bits),
                ("places", position, "place", places, place_bits),
            ]:
                is_written = chance(0.7)
                data = random.getrandbits(bits)
                getattr(dut, f"{name}_w__en").value = is_written
                getattr(dut, f"{name}_w__address").value = key
                getattr(dut, f"{name}_w__{value}").value = data
                if is_written:
                    cells[key] = data
            await RisingEdge(dut.clk)
            cycle += 1
        dut.items_w__en.value = dut.places_w__en.value = 0
        shown = [None] * CONFIG.lanes
        for _ in range(random.randint(1, 40)):
            for lane, (en, address, _) in enumerate(ports):
                where = random.choice(list(items)) if items else 0
                enabled = chance(0.7)
                en.value = enabled
                address.value = where
                if enabled:
                    shown[lane] = items.get(where)
            position = random.choice(list(places)) if places else 0
            dut.places_r__address.value = position
            await RisingEdge(dut.clk)
            cycle += 1
            for en, address, _ in ports:
                # What a port shows doesn't depend on what it is asked now.
                en.value = 0
                address.value = random.randrange(CONFIG.item_depth)
            await FallingEdge(dut.clk)
            for lane, (_, _, item) in enumerate(ports):
                if shown[lane] is not None:
                    assert int(item.value) == shown[lane], f"lane {lane}, cycle {cycle}"
            if position in places:
                got = int(dut.places_r__place.value)
                assert got == places[position], f"place {position}, cycle {cycle}"


@cocotb.test(skip=not IS_QUEUE)
async def rows_are_a_queue(dut: Any) -> None:
    shape = row_of(CONFIG)
    idle(dut, RowQueue(shape=shape, depth=DEPTH))
    await start(dut)
    # It has no reset, and begins with anything.
    await pulse(dut, "clear")
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
    await pulse(dut, "clear")
    await FallingEdge(dut.clk)
    assert not int(dut.filled.value)
