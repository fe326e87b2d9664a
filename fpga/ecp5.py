"""What the gateware can have better on a Lattice ECP5 than Yosys infers."""

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import ClockSignal, Const, Instance, Module, Signal, Value

from ditto.hdl.adder import SelectAdder
from ditto.hdl.register import OwnRegister

__all__ = ["Ecp5"]


class Ecp5:
    """A platform for ECP5: what a primitive can do and Yosys does not find.

    A bit of a carry cell (CCU2C) has a table of four inputs, A lowest. Where it gives 1 the carry
    is passed on and inverts the sum; where it gives 0, the table's first quarter gives the carry,
    from A and B alone (Lattice TN1263). So a bit adds A to any function of B, C and D that is 0
    where C and D are.
    """

    _SELECT = 0x665A
    """``A ^ (D ? B : C)``, with the carry A."""

    _CARRY = 0x000A
    """0 if C is 1, with the carry A."""

    def get_select_adder(self, adder: SelectAdder) -> Module:
        """Build a :class:`~ditto.hdl.adder.SelectAdder` of carry cells alone."""
        m = Module()
        low, high = Const(0, 1), Const(1, 1)
        tables = [self._CARRY]
        inputs: list[Sequence[Value]] = [(adder.carry, low, high, low)]
        sums: list[Value] = [Signal(name="unused")]
        for bit in range(adder.width):
            tables.append(self._SELECT)
            inputs.append((adder.a[bit], adder.b[bit], adder.c[bit], adder.select))
            sums.append(adder.o[bit])
        if len(tables) % 2:
            tables.append(0)
            inputs.append((low, low, low, low))
            sums.append(Signal(name="unused_last"))
        carry: Value = low
        for at in range(0, len(tables), 2):
            next_carry = Signal(name=f"carry_{at}")
            pair = slice(at, at + 2)
            m.submodules[f"bits_{at}"] = self.carry_cell(
                tables[pair], inputs[pair], carry, sums[pair], next_carry
            )
            carry = next_carry
        return m

    def carry_cell(
        self,
        tables: Sequence[int],
        inputs: Sequence[Sequence[Value]],
        carry: Value,
        sums: Sequence[Value],
        next_carry: Value,
    ) -> Any:
        """Return a cell of two bits; each has a table, inputs A, B, C, D and a sum."""
        ports: dict[str, object] = {"i_CIN": carry, "o_COUT": next_carry}
        for bit in range(2):
            ports[f"p_INIT{bit}"] = Const(tables[bit], 16)
            ports[f"p_INJECT1_{bit}"] = "NO"
            ports[f"o_S{bit}"] = sums[bit]
            ports |= {
                f"i_{name}{bit}": value for name, value in zip("ABCD", inputs[bit], strict=True)
            }
        return Instance("CCU2C", **ports)

    def get_own_register(self, register: OwnRegister) -> Module:
        """Build an :class:`~ditto.hdl.register.OwnRegister` of cells, which Yosys leaves alone."""
        m = Module()
        source, target = Value.cast(register.i), Value.cast(register.o)
        for bit in range(len(source)):
            m.submodules[f"bit_{bit}"] = self.flip_flop(source[bit], target[bit])
        return m

    def flip_flop(self, i: Value, o: Value) -> Any:
        """Return a flip-flop without reset."""
        return Instance(
            "TRELLIS_FF",
            p_CEMUX="1",
            p_CLKMUX="CLK",
            p_GSR="DISABLED",
            p_LSRMUX="LSR",
            p_REGSET="RESET",
            i_CLK=ClockSignal(),
            i_LSR=Const(0, 1),
            i_DI=i,
            o_Q=o,
        )
