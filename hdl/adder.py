"""An adder that chooses one of its operands, for FPGAs whose carry chains can do so for free."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["SelectAdder", "add"]


def add(a: Value, b: Value, carry: Value) -> Value:
    """Add two signed numbers and a carry in one carry chain."""
    total = Cat(Const(1, 1), a).as_signed() + Cat(carry, b).as_signed()
    return total[1:].as_signed()


class SelectAdder(wiring.Component):
    """Add a number, one of two others, and a carry; all combinational.

    A platform with a method ``get_select_adder(adder)`` builds it its own way.

    Parameters
    ----------
    width
        Width of the operands and of the sum, which wraps around.

    Members
    -------
    a : In(signed(width))
        What is always added.
    b, c : In(signed(width))
        What is added if ``select`` is 1, and if it is 0.
    select : In(1)
        Choose.
    carry : In(1)
        Added too.
    o : Out(signed(width))
        The sum.
    """

    a: Signal
    b: Signal
    c: Signal
    select: Signal
    carry: Signal
    o: Signal

    def __init__(self, width: int) -> None:
        self.width = width
        number = signed(width)
        super().__init__(
            {
                "a": In(number),
                "b": In(number),
                "c": In(number),
                "select": In(1),
                "carry": In(1),
                "o": Out(number),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the adder."""
        build = getattr(platform, "get_select_adder", None)
        if build is not None:
            return build(self)
        m = Module()
        m.d.comb += self.o.eq(add(self.a, Mux(self.select, self.b, self.c), self.carry))
        return m
