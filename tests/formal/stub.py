"""A part of a block that is proven, without its inside."""

from amaranth.hdl import Module, Value
from amaranth.hdl._ast import AnyValue
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

__all__ = ["Stub"]


class Stub(wiring.Component):
    """In the place of a part: its outputs may do anything in any cycle."""

    def __init__(self, part: wiring.Component) -> None:
        super().__init__(part.signature)

    def elaborate(self, platform: object) -> Module:
        """Build the stub."""
        m = Module()
        for _, member, value in self.signature.flatten(self):
            if member.flow is Out:
                output = Value.cast(value)
                m.d.comb += output.eq(AnyValue("anyseq", len(output)))  # pyright: ignore[reportCallIssue]
        return m
