import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto.sim.memory import MEMORIES, Memory, Traffic

TRAFFIC = st.builds(Traffic, *[st.integers(0, 5000)] * len(Traffic._fields))


def test_on_chip_nothing_waits() -> None:
    memory = MEMORIES["chip"]
    assert memory.cycles(Traffic(1, 2, 3, 4, 5, 6, 7)) == 0
    assert memory.stall(0, 0) == 0
    assert memory.stall(np.array([5, 9]), 0).tolist() == [0, 0]


def test_cycles_by_hand() -> None:
    memory = Memory(name="m", holds=frozenset({"inputs", "weights"}), bandwidth=4, burst=32)
    # Two bursts of 8 cycles and 8 of latency each; outputs are on chip.
    assert memory.burst_cycles == 16
    assert memory.cycles(Traffic(inputs=33, outputs=999)) == 32
    assert memory.cycles(Traffic(inputs=32, weights=1)) == 32
    assert memory.stall(20, 32) == 16  # the first burst, at least
    assert memory.stall(10, 32) == 22
    assert memory.with_bandwidth(32).cycles(Traffic(inputs=33)) == 18


@given(TRAFFIC, TRAFFIC, st.integers(0, 20_000))
def test_more_traffic_never_costs_less(a: Traffic, b: Traffic, compute: int) -> None:
    assert (a + b).total == a.total + b.total
    for memory in MEMORIES.values():
        assert memory.cycles(a + b) >= max(memory.cycles(a), memory.cycles(b))
        stall = memory.stall(compute, memory.cycles(a))
        assert compute + stall >= memory.cycles(a)
        assert memory.stall(compute, memory.cycles(a + b)) >= stall
        assert memory.stall(np.array([compute]), memory.cycles(a)).tolist() == [stall]


def test_only_the_state_is_off_chip() -> None:
    own = Traffic(inputs=100, weights=100, outputs=100)
    assert MEMORIES["sdram-state"].cycles(own) == 0 < MEMORIES["sdram"].cycles(own)
    state = Traffic(accumulators_read=100)
    assert MEMORIES["sdram-state"].cycles(state) == MEMORIES["sdram"].cycles(state) > 0


@pytest.mark.parametrize("wrong", [{"bandwidth": 0}, {"burst": 0}, {"latency": -1}])
def test_impossible_memories(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="there is no memory like"):
        Memory(name="m", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no traffic called items"):
        Memory(name="m", holds=frozenset({"items"}))
