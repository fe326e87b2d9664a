"""The table of decisions against its specification, for counts that no run has."""

import random
from typing import Any

import pytest
from amaranth.sim import Simulator

from ditto.hdl.config import Config
from ditto.hdl.decisions import DecisionTable
from ditto.hdl.protocol import COUNT_BITS, Counters, Decision, Mode, Rule, pack
from ditto.sim.decisions import Decisions

CONFIG = Config(layers=3, reference_depth=1)
_DIGITS = Counters._fields.index("digits_dense")
BUSY = 60  # cycles at most, and 2 for each word to forget


def a_count(rng: random.Random) -> int:
    """Make a count: about the margin of a change mostly; small ones; sums that wrap around."""
    return rng.choice(
        [*[rng.randint(6350, 6600)] * 4, rng.randint(0, 200), rng.getrandbits(COUNT_BITS + 2)]
    )


def a_move(rng: random.Random) -> tuple[Any, ...]:
    """Make something to do."""
    number, chance = rng.randrange(CONFIG.layers), rng.random()
    if chance < 0.02:
        return ("forget",)
    if chance < 0.06:
        return ("write", number, a_decision(rng))
    counters = Counters(
        cycles=a_count(rng),
        digits_dense=a_count(rng),
        digits_temporal=a_count(rng),
        digits_spatial=a_count(rng),
        mode=rng.randrange(3),
    )
    return ("learn", number, counters, rng.random() < 0.9, rng.random() < 0.8)


def a_decision(rng: random.Random) -> int:
    """Make the first word of a decision."""
    word = pack(
        Decision,
        rule=rng.choice([Rule.FIXED, *[Rule.DEFO, Rule.ADAPTIVE] * 4]),
        spatial=rng.randint(0, 1),
        mode=rng.randint(0, 3),
        steps=rng.randint(0, 3),
        blind=rng.randint(0, 1),
    )
    return int.from_bytes(word, "little")


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence(seed: int) -> None:
    rng = random.Random(seed)
    start = [("write", number, a_decision(rng)) for number in range(CONFIG.layers)]
    moves = [*start, *(a_move(rng) for _ in range(250))]
    dut: Any = DecisionTable(CONFIG)
    golden = Decisions(CONFIG.layers)

    async def drive(ctx: Any) -> None:
        for move in moves:
            match move:
                case ("write", number, word):
                    golden.write(4 * number, [word])
                    ctx.set(dut.write_address, 4 * number)
                    ctx.set(dut.write_data, word)
                    ctx.set(dut.write_en, 1)
                    await ctx.tick()
                    ctx.set(dut.write_en, 0)
                case ("learn", number, counters, had_state, decides):
                    golden.learn(number, counters, had_state=had_state, decides=decides)
                    ctx.set(dut.number, number)
                    ctx.set(dut.mode, Mode(counters.mode))
                    ctx.set(dut.blind, not had_state)
                    ctx.set(dut.decides, decides)
                    ctx.set(dut.cycles, counters.cycles)
                    for mode, count in enumerate(counters[_DIGITS:][:3]):
                        ctx.set(dut.digits[mode], count)
                    await ctx.tick().repeat(3)
                    ctx.set(dut.learn, 1)
                    await ctx.tick()
                    ctx.set(dut.learn, 0)
                case _:
                    golden.forget()
                    ctx.set(dut.forget, 1)
                    await ctx.tick()
                    ctx.set(dut.forget, 0)
            cycles = 0
            while ctx.get(dut.busy):
                await ctx.tick()
                cycles += 1
                assert cycles <= BUSY
            read = []
            ctx.set(dut.reads, 1)
            for at in range(len(golden.words)):
                ctx.set(dut.read_address, at)
                ctx.set(dut.read_en, 1)
                await ctx.tick()
                ctx.set(dut.read_en, 0)
                await ctx.tick()
                read.append(ctx.get(dut.read_data))
            ctx.set(dut.reads, 0)
            await ctx.tick().repeat(2)
            assert read == golden.words, move

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.run()
