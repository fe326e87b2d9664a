"""Registers that tools would not build so by themselves."""

from typing import Any

from amaranth.hdl import Module, ShapeLike, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["OwnRegister", "register_of"]


def register_of(m: Module, output: Any) -> Any:
    """Return a register without reset that drives an output.

    Parameters
    ----------
    m
        The module that has the output.
    output
        A signal or a view of one.
    """
    name = f"{Value.cast(output).name}_register"
    register = Signal(output.shape(), name=name, reset_less=True)
    m.d.comb += Value.cast(output).eq(Value.cast(register))
    return register


class OwnRegister(wiring.Component):
    """Delay a value that comes from far away and goes to many places by a cycle.

    Each of those places has its register nearby. Tools would make one of registers that hold the
    same; a platform with a method ``get_own_register(register)`` builds them so that they stay.

    Parameters
    ----------
    shape
        Shape of the value.

    Members
    -------
    i : In(shape)
        The value.
    o : Out(shape)
        What it was a cycle ago.
    """

    i: Any
    o: Any

    def __init__(self, shape: ShapeLike) -> None:
        super().__init__({"i": In(shape), "o": Out(shape)})

    def elaborate(self, platform: object) -> Module:
        """Build the register."""
        build = getattr(platform, "get_own_register", None)
        if build is not None:
            return build(self)
        m = Module()
        held = Signal(len(Value.cast(self.i)), reset_less=True)
        m.d.sync += held.eq(Value.cast(self.i))
        m.d.comb += Value.cast(self.o).eq(held)
        return m
