"""Testbench parts for Amaranth's simulator: sources, sinks, pauses and the contract of streams."""

import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import nullcontext, suppress
from itertools import repeat
from typing import Any

from amaranth.hdl import Const, ResetInserter, ShapeCastable, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.sim import Simulator

__all__ = ["Testbench", "contract", "each", "get", "pauses", "put", "simulate"]

Testbench = Callable[[Any], Coroutine[Any, Any, None]]
"""A coroutine function that takes a simulation context."""


def pauses(seed: object, *, longest: int = 3, share: float = 0.5) -> Iterator[int]:
    """Yield how many cycles to wait before each transfer, for ever.

    Parameters
    ----------
    seed
        Determines the sequence, by its text.
    longest
        Longest pause, in cycles.
    share
        How many of the transfers have a pause at all, 0..1.
    """
    rng = random.Random(str(seed))
    while True:
        yield rng.randint(1, longest) if rng.random() < share else 0


async def put(
    ctx: Any,
    port: stream.Interface,
    payloads: Iterable[Any],
    gaps: Iterator[int] | None = None,
) -> None:
    """Send payloads, one a cycle but for the gaps.

    Parameters
    ----------
    ctx
        Context of the testbench.
    port
        Input stream of the device under test.
    payloads
        Values of the payload: integers or, for a structure, mappings.
    gaps
        Cycles without ``valid`` before each payload, see :func:`pauses`.
    """
    ticks = aiter(ctx.tick().sample(port.ready))
    is_valid = False
    for payload, gap in zip(payloads, gaps or repeat(0), strict=False):
        if gap and is_valid:
            ctx.set(port.valid, 0)
            is_valid = False
        for _ in range(gap):
            await anext(ticks)
        ctx.set(port.payload, payload)
        if not is_valid:
            ctx.set(port.valid, 1)
            is_valid = True
        while not (await anext(ticks))[-1]:
            pass
    if is_valid:
        ctx.set(port.valid, 0)


async def each(
    ctx: Any, port: stream.Interface, stalls: Iterator[int] | None = None
) -> AsyncIterator[Any]:
    """Take payloads for ever, one a cycle but for the stalls; see :func:`get`."""
    raw = Value.cast(port.payload)
    shape = port.payload.shape()
    ticks = aiter(ctx.tick().sample(port.valid, raw))
    for stall in stalls or repeat(0):
        if stall:
            ctx.set(port.ready, 0)
        for _ in range(stall):
            await anext(ticks)
        ctx.set(port.ready, 1)
        valid = payload = 0
        while not valid:
            *_, valid, payload = await anext(ticks)
        yield shape.from_bits(payload) if isinstance(shape, ShapeCastable) else payload


async def get(
    ctx: Any, port: stream.Interface, count: int = 1, stalls: Iterator[int] | None = None
) -> list[Any]:
    """Take payloads, one a cycle but for the stalls.

    Parameters
    ----------
    ctx
        Context of the testbench.
    port
        Output stream of the device under test.
    count
        How many payloads to take, at least 1.
    stalls
        Cycles without ``ready`` before each payload, see :func:`pauses`.

    Returns
    -------
    list
        The payloads: integers or, for a structure, its constants.
    """
    payloads = []
    async for payload in each(ctx, port, stalls):
        payloads.append(payload)
        if len(payloads) == count:
            break
    ctx.set(port.ready, 0)
    return payloads


def contract(port: stream.Interface, name: str, *, reset: Signal | None = None) -> Testbench:
    """Watch that a stream keeps what it offers until it is taken.

    Once ``valid``, a payload stays valid and the same until ``ready``; only a reset withdraws it.

    Parameters
    ----------
    port
        The stream; either end.
    name
        What to call it in a failure.
    reset
        Synchronous reset of the device under test, if the test uses it.
    """
    payload = Value.cast(port.payload)

    async def watch(ctx: Any) -> None:
        held = None
        cycle = 0
        withdrawal = Const(0) if reset is None else reset
        samples = ctx.tick().sample(port.valid, port.ready, payload, withdrawal)
        async for _, _, valid, ready, offer, is_reset in samples:
            if held is not None and not is_reset:
                assert valid, f"{name}, cycle {cycle}: payload {held:#x} withdrawn while stalled"
                assert offer == held, (
                    f"{name}, cycle {cycle}: payload changed from {held:#x} to {offer:#x} "
                    "while stalled"
                )
            held = offer if valid and not ready and not is_reset else None
            cycle += 1

    return watch


def simulate(
    dut: wiring.Component,
    *testbenches: Testbench,
    background: Iterable[Testbench] = (),
    reset: Signal | None = None,
    cycles: int = 100_000,
    vcd: str | None = None,
) -> None:
    """Run testbenches against a component until all of them end, with every stream under watch.

    Parameters
    ----------
    dut
        Device under test. The :func:`contract` of each of its streams is checked.
    testbenches
        What drives it. They run side by side.
    background
        Testbenches that run along and need not end.
    reset
        Signal that shall reset the device; testbenches set it.
    cycles
        How long this may take.
    vcd
        File to write waveforms to.

    Raises
    ------
    AssertionError
        If a testbench raises it, a stream breaks its contract, or ``cycles`` are not enough.
    """
    started: list[Coroutine[Any, Any, None]] = []

    def start(testbench: Testbench) -> Testbench:
        async def run(ctx: Any) -> None:
            started.append(testbench(ctx))
            await started[-1]

        return run

    async def deadline(ctx: Any) -> None:
        await ctx.tick().repeat(cycles)
        raise AssertionError(f"not done after {cycles} cycles")

    sim = Simulator(dut if reset is None else ResetInserter({"sync": reset})(dut))
    sim.add_clock(1e-8)
    watchers = [contract(port, name, reset=reset) for name, port in _streams(dut)]
    for testbench in (deadline, *watchers, *background):
        sim.add_testbench(start(testbench), background=True)
    for testbench in testbenches:
        sim.add_testbench(start(testbench))
    try:
        with nullcontext() if vcd is None else sim.write_vcd(vcd):
            sim.run()
    finally:
        # Amaranth 0.5 cannot abandon a process within repeat() or until(): left to the garbage
        # collector, it complains of a running generator there, where nobody can catch it.
        for coroutine in started:
            with suppress(RuntimeError):
                coroutine.close()


def _streams(interface: Any, prefix: str = "") -> Iterator[tuple[str, stream.Interface]]:
    """Find the streams of an interface, in its members and arrays too."""
    for name, member in interface.signature.members.items():
        if member.is_signature:
            yield from _streams_of(getattr(interface, name), prefix + name)


def _streams_of(port: Any, name: str) -> Iterator[tuple[str, stream.Interface]]:
    if isinstance(port, stream.Interface):
        yield name, port
    elif isinstance(port, list):
        for index, item in enumerate(port):
            yield from _streams_of(item, f"{name}[{index}]")
    else:
        yield from _streams(port, f"{name}.")
