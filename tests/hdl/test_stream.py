from typing import Any

import pytest

from ditto.hdl.stream import Register
from ditto.sim.testbench import each, pauses, put, simulate


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a_register_hands_on_everything_in_order(seed: int | None) -> None:
    dut: Any = Register(8)
    sent = list(range(200))
    got: list[int] = []

    async def drive(ctx: Any) -> None:
        await put(ctx, dut.i, sent, None if seed is None else pauses(seed))
        await ctx.tick().repeat(20 if seed is None else 100)

    async def take(ctx: Any) -> None:
        stalls = None if seed is None else pauses(seed + 10)
        async for value in each(ctx, dut.o, stalls):
            got.append(value)

    simulate(dut, drive, background=[take])
    assert got == sent
