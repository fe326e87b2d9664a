"""Deep memory: words of every bank are read as they were written, two cycles later."""

import random
from typing import Any

import pytest
from amaranth.hdl import signed

from ditto.hdl.deep_memory import DeepMemory
from ditto.sim.testbench import simulate

BANK = 1 << 14


@pytest.mark.parametrize("depth", [1, 5, BANK, BANK + 1, 2 * BANK + 100])
def test_words_of_every_bank(depth: int) -> None:
    rng = random.Random(depth)
    dut = DeepMemory(shape=signed(8), depth=depth)
    borders = {0, depth - 1, *(at for n in (1, 2) for at in (n * BANK - 1, n * BANK) if at < depth)}
    places = sorted(borders | {rng.randrange(depth) for _ in range(20)})
    words = {place: rng.randrange(-128, 128) for place in places}

    async def test(ctx: Any) -> None:
        ctx.set(dut.write_en, 1)
        for place, word in words.items():
            ctx.set(dut.write_address, place)
            ctx.set(dut.write_data, word)
            await ctx.tick()
        ctx.set(dut.write_en, 0)
        asked: list[int] = []
        for _ in range(200):
            moves = rng.random() < 0.7
            place = rng.choice(places)
            ctx.set(dut.read_en, moves)
            ctx.set(dut.read_address, place)
            await ctx.tick()
            asked += [place] * moves
            if len(asked) >= 2:
                assert ctx.get(dut.read_data) == words[asked[-2]]

    simulate(dut, test)
