"""The table of decisions against its specification, for counts that no run has."""

from typing import Any

from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from ditto.hdl.config import Config
from ditto.hdl.decisions import DecisionTable
from ditto.hdl.protocol import COUNT_BITS, Counters, Decision, Mode, Rule, pack
from ditto.sim.decisions import Decisions

CONFIG = Config(layers=3, reference_depth=1)
_DIGITS = Counters._fields.index("digits_dense")
BUSY = 60  # cycles at most, and 2 for each word to forget

counts = st.one_of(
    st.integers(0, 200), st.integers(6400, 6600), st.integers(0, (1 << COUNT_BITS + 2) - 1)
)
learning = st.tuples(
    st.just("learn"),
    st.integers(0, CONFIG.layers - 1),
    st.builds(
        Counters,
        cycles=counts,
        digits_dense=counts,
        digits_temporal=counts,
        digits_spatial=counts,
        mode=st.integers(0, 2),
    ),
    st.booleans(),
    st.sampled_from([True, True, False]),
)
writing = st.tuples(
    st.just("write"),
    st.integers(0, CONFIG.layers - 1),
    st.builds(
        lambda rule, **fields: int.from_bytes(pack(Decision, rule=rule, **fields), "little"),
        rule=st.sampled_from(list(Rule)),
        spatial=st.integers(0, 1),
        mode=st.integers(0, 3),
        steps=st.integers(0, 3),
        blind=st.integers(0, 1),
    ),
)
moves = st.lists(
    st.one_of(learning, learning, learning, writing, st.just(("forget",))), min_size=1, max_size=30
)


@settings(max_examples=40, deadline=None)
@given(start=st.lists(writing, min_size=3, max_size=6), moves=moves)
def test_any_sequence(start: list[Any], moves: list[Any]) -> None:
    dut: Any = DecisionTable(CONFIG)
    golden = Decisions(CONFIG.layers)

    async def drive(ctx: Any) -> None:
        for move in [*start, *moves]:
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
