"""Testbench parts for cocotb: sources and sinks for the streams of generated Verilog.

Amaranth flattens a stream ``o`` into the ports ``o__payload``, ``o__valid`` and ``o__ready``; a
structure is one vector, its first field lowest.

Everything here drives after the rising edge of the clock and looks before the next one, at the
falling edge, so that it does not depend on the order in which a simulator does things at an edge.
"""

import json
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

import cocotb
from amaranth.hdl import Const, ShapeCastable
from amaranth.lib import data
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, RisingEdge

__all__ = ["Sink", "Source", "parameters", "start", "watch"]

Payload = int | Mapping[Any, Any]


def parameters() -> dict[str, Any]:
    """Return what the caller of :func:`ditto.sim.cocotb_runner.run_cocotb` passed as such."""
    return json.loads(os.environ.get("DITTO_PARAMETERS", "{}"))


async def start(dut: Any, *streams: str) -> None:
    """Start the clock, reset the device, and watch over the given streams.

    Call it after making the sources and sinks, so that no input is unknown.
    """
    Clock(dut.clk, 10, unit="ns").start()
    dut.rst.value = 1
    await RisingEdge(dut.clk)
    await RisingEdge(dut.clk)
    dut.rst.value = 0
    for name in streams:
        cocotb.start_soon(watch(dut, name))


async def watch(dut: Any, name: str) -> None:
    """Fail the test when a stream withdraws or changes what it offers before it is taken.

    Only a reset may withdraw it.
    """
    payload, valid, ready = (getattr(dut, f"{name}__{part}") for part in _PARTS)
    held = None
    cycle = 0
    while True:
        await FallingEdge(dut.clk)
        is_valid, is_ready, is_reset = int(valid.value), int(ready.value), int(dut.rst.value)
        offer = int(payload.value) if is_valid else None
        if held is not None and not is_reset:
            assert is_valid, f"{name}, cycle {cycle}: payload {held:#x} withdrawn while stalled"
            assert offer == held, (
                f"{name}, cycle {cycle}: payload changed from {held:#x} to {offer:#x} while stalled"
            )
        held = offer if not is_ready and not is_reset else None
        cycle += 1


_PARTS = ("payload", "valid", "ready")


class Source:
    """Sends payloads into an input stream.

    Parameters
    ----------
    dut
        The device under test; its clock is ``clk``.
    name
        The stream.
    shape
        Layout of the payload, if it is a structure.
    gaps
        Cycles without ``valid`` before each payload, see :func:`ditto.sim.testbench.pauses`.
    """

    def __init__(
        self,
        dut: Any,
        name: str,
        *,
        shape: data.Layout | None = None,
        gaps: Iterator[int] | None = None,
    ) -> None:
        self.gaps = gaps or repeat(0)
        self._clock = dut.clk
        self._shape = shape
        self._payload, self._valid, self._ready = (getattr(dut, f"{name}__{p}") for p in _PARTS)
        self._payload.value = 0
        self._valid.value = 0

    async def send(self, payloads: Iterable[Payload]) -> None:
        """Send payloads, integers or mappings; returns after the edge that takes the last one."""
        for payload, gap in zip(payloads, self.gaps, strict=False):
            for _ in range(gap):
                self._valid.value = 0
                await RisingEdge(self._clock)
            self._payload.value = payload if isinstance(payload, int) else self._pack(payload)
            self._valid.value = 1
            is_taken = False
            while not is_taken:
                await FallingEdge(self._clock)
                is_taken = int(self._ready.value)
                await RisingEdge(self._clock)
        self._valid.value = 0

    def _pack(self, payload: Mapping[Any, Any]) -> int:
        assert self._shape is not None, "a payload of named fields needs the layout"
        return Const.cast(self._shape.const(payload)).value


class Sink:
    """Takes payloads from an output stream.

    Parameters
    ----------
    dut
        The device under test; its clock is ``clk``.
    name
        The stream.
    shape
        Layout of the payload, if it is a structure; then payloads are its constants.
    stalls
        Cycles without ``ready`` before each payload, see :func:`ditto.sim.testbench.pauses`.
    """

    def __init__(
        self,
        dut: Any,
        name: str,
        *,
        shape: ShapeCastable | None = None,
        stalls: Iterator[int] | None = None,
    ) -> None:
        self.stalls = stalls or repeat(0)
        self._clock = dut.clk
        self._shape = shape
        self._payload, self._valid, self._ready = (getattr(dut, f"{name}__{p}") for p in _PARTS)
        self._ready.value = 0

    async def each(self) -> AsyncIterator[Any]:
        """Take payloads for ever, each right after the edge that takes it."""
        for stall in self.stalls:
            for _ in range(stall):
                self._ready.value = 0
                await RisingEdge(self._clock)
            self._ready.value = 1
            payload = None
            while payload is None:
                await FallingEdge(self._clock)
                payload = int(self._payload.value) if int(self._valid.value) else None
                await RisingEdge(self._clock)
            yield payload if self._shape is None else self._shape.from_bits(payload)

    async def receive(self, count: int = 1) -> list[Any]:
        """Take ``count`` payloads, at least 1."""
        payloads = []
        async for payload in self.each():
            payloads.append(payload)
            if len(payloads) == count:
                break
        self._ready.value = 0
        return payloads
