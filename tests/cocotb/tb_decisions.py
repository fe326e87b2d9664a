# amaranth: UnusedElaboratable=no
"""The table of decisions against its specification, for counts that no run has."""

import random
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, RisingEdge
from gateware import CONFIG, LIMIT_MS, PARAMETERS, chance, idle, pulse

from ditto.hdl.decisions import DecisionTable
from ditto.hdl.protocol import COUNT_BITS, DECISION_WORDS, Counters, Decision, Rule
from ditto.hdl.protocol import pack as pack_struct
from ditto.sim.cocotb_bench import start
from ditto.sim.decisions import Decisions

MOVES: int = PARAMETERS["moves"]
BUSY = 60  # cycles at most, and 2 for each word to forget
_DIGITS = Counters._fields.index("digits_dense")


def a_count() -> int:
    """Make a count: small ones, and such that sums wrap around."""
    return random.getrandbits(random.choice([3, 8, 16, COUNT_BITS + 2]))


def some_counts() -> list[int]:
    """Make the counts of a run: anything, or about where a change begins to pay."""
    if chance(0.3):
        return [a_count() for _ in range(4)]
    most = a_count()
    bars = [most - (most >> 6), most]
    return [
        max(
            random.choice(bars) + random.choice([0, random.randint(-2, 2), random.randint(-9, 9)]),
            0,
        )
        for _ in range(4)
    ]


def a_decision() -> int:
    """Make the first word of a decision."""
    word = pack_struct(
        Decision,
        rule=random.choice([Rule.FIXED, *[Rule.DEFO, Rule.ADAPTIVE] * 4]).value,
        spatial=random.getrandbits(1),
        mode=random.getrandbits(2),
        steps=random.getrandbits(2),
        blind=random.getrandbits(1),
        reserved=random.getrandbits(24),
    )
    return int.from_bytes(word, "little")


class Bench:
    """A table with the golden one beside it."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        idle(dut, DecisionTable(CONFIG))
        self.golden = Decisions(CONFIG.layers)

    async def write(self, first: int, words: list[int]) -> None:
        dut = self.dut
        self.golden.write(first, words)
        for address, word in enumerate(words, first):
            dut.write_address.value, dut.write_data.value = address, word
            await pulse(dut, "write_en")

    async def learn(self, number: int) -> None:
        """Take note of a run with random counts."""
        dut = self.dut
        names = ("cycles", "digits_dense", "digits_temporal", "digits_spatial")
        counts = dict(zip(names, some_counts(), strict=True))
        counters = Counters(**counts, mode=random.randrange(3))
        had_state, decides = chance(0.9), chance(0.6)
        self.golden.learn(number, counters, had_state=had_state, decides=decides)
        digits = counters[_DIGITS:][:3]
        dut.number.value = number
        dut.mode.value = counters.mode
        dut.blind.value = not had_state
        dut.decides.value = decides
        dut.cycles.value = counters.cycles
        dut.digits.value = sum(count % (1 << 32) << 32 * mode for mode, count in enumerate(digits))
        # It is known since the run was looked up.
        for _ in range(random.randint(3, 5)):
            await RisingEdge(dut.clk)
        await pulse(dut, "learn")

    async def forget(self) -> None:
        self.golden.forget()
        await pulse(self.dut, "forget")

    async def settle(self) -> None:
        """Wait for the end of what was begun."""
        await FallingEdge(self.dut.clk)
        cycles = 0
        while int(self.dut.busy.value):
            await FallingEdge(self.dut.clk)
            cycles += 1
            assert cycles <= BUSY
        await RisingEdge(self.dut.clk)

    async def compare(self, where: str) -> None:
        """Compare all words, and the decision that is at hand."""
        dut = self.dut
        words = []
        dut.reads.value = 1
        for address in range(len(self.golden.words)):
            dut.read_address.value = address
            await pulse(dut, "read_en")
            for _ in range(random.randint(0, 2)):
                dut.read_address.value = random.randrange(len(self.golden.words))
                await RisingEdge(dut.clk)
            await FallingEdge(dut.clk)
            words.append(int(dut.read_data.value))
            await RisingEdge(dut.clk)
        dut.reads.value = 0
        assert words == self.golden.words, where
        number = random.randrange(CONFIG.layers)
        dut.number.value = number
        await RisingEdge(dut.clk)
        await RisingEdge(dut.clk)
        await FallingEdge(dut.clk)
        assert int(dut.decision.value) == words[DECISION_WORDS * number], where
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def any_sequence(dut: Any) -> None:
    bench = Bench(dut)
    await start(dut)
    for number in range(CONFIG.layers):
        counts = [a_count() % (1 << COUNT_BITS) for _ in range(DECISION_WORDS - 1)]
        await bench.write(DECISION_WORDS * number, [a_decision(), *counts])
    await bench.compare("written")
    for _ in range(MOVES):
        number, draw = random.randrange(CONFIG.layers), random.random()
        if draw < 0.02:
            await bench.forget()
        elif draw < 0.08:
            await bench.write(DECISION_WORDS * number, [a_decision()])
        else:
            await bench.learn(number)
        await bench.settle()
        await bench.compare(f"decision {number}")


@cocotb.test(timeout_time=LIMIT_MS, timeout_unit="ms")
async def reset_at_any_time(dut: Any) -> None:
    """Reset some cycles after a run was to be learned; the next one is learned."""
    bench = Bench(dut)
    await start(dut)
    for delay in range(40):
        await bench.write(0, [a_decision(), 0, 0, 0])
        await bench.learn(0)
        for _ in range(delay):
            await RisingEdge(dut.clk)
        await pulse(dut, "rst")
        await FallingEdge(dut.clk)
        assert not int(dut.busy.value)
        await RisingEdge(dut.clk)
        for number in range(CONFIG.layers):
            await bench.write(DECISION_WORDS * number, [a_decision(), 0, 0, 0])
        await bench.learn(0)
        await bench.settle()
        await bench.compare(f"reset after {delay} cycles")
