"""A part of a block that is proven, without its inside."""

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

__all__ = ["Stub"]


class Stub(wiring.Component):
    """In the place of a part: its outputs may do anything in any cycle."""

    def __init__(self, part: wiring.Component) -> None:
        super().__init__(part.signature)
        self.outputs = [
            (Value.cast(value), Signal(len(Value.cast(value)), name="_".join(map(str, path))))
            for path, member, value in self.signature.flatten(self)
            if member.flow is Out
        ]

    def elaborate(self, platform: object) -> Module:
        """Build the stub."""
        m = Module()
        m.d.comb += [output.eq(free) for output, free in self.outputs]
        return m
