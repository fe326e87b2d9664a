"""What the gateware can have better on a Lattice iCE40 UltraPlus than Yosys infers."""

from typing import Any

from amaranth.hdl import (
    Cat,
    ClockSignal,
    Const,
    Instance,
    Module,
    Mux,
    Shape,
    Signal,
    Value,
    unsigned,
)
from amaranth.lib import data, memory
from amaranth.lib.data import Layout

from ditto.hdl.adder import SelectAdder
from ditto.hdl.config import Config
from ditto.hdl.difference_buffer import item_of
from ditto.hdl.multiplier import word_of
from ditto.hdl.protocol import OF_INPUTS, LayerEntry
from ditto.hdl.register import OwnRegister

__all__ = ["Ice40"]

_BLOCK_WORD, _BLOCK_DEPTH = 16, 256
_SINGLE_WORD, _SINGLE_DEPTH = 16, 1 << 14

_ENTRY = Layout.cast(LayerEntry)
_ENTRY_BITS = Shape.cast(_ENTRY).width


class Ice40:
    """A platform for iCE40 UltraPlus: memories that Yosys does not map.

    - Weights and work items are written while nothing reads them, so they go to the big
      single-port memories (SB_SPRAM256KA). Yosys never takes these, as they start without a value.
    - Lists that are read in the cycle of their address would be flip-flops. They go to block
      memories (SB_RAM40_4K) whose reads are at the falling edge of the clock: what was written at
      the rising edge before is there, and half a cycle is left for what was read.
    - The bits of the layer table that nobody reads are side by side. Yosys leaves out block
      memories of which nothing is read, and no others.

    A class that inherits this has the device's configuration in ``config``.
    """

    config: Config

    def get_select_adder(self, adder: SelectAdder) -> Module:
        """Build a :class:`~ditto.hdl.adder.SelectAdder` as Yosys finds it in a SB_MAC16."""
        m = Module()
        m.d.comb += adder.o.eq(adder.a + Mux(adder.select, adder.b, adder.c) + adder.carry)
        return m

    def get_own_register(self, register: OwnRegister) -> Module:
        """Build an :class:`~ditto.hdl.register.OwnRegister`, where a cluster can tell.

        What a layer is stays as it is while a cluster works on it, and only what it is told to do
        has to come a cycle late: the rest of the registers would take a thirtieth of the FPGA.
        """
        m = Module()
        if isinstance(register.i, data.View):
            m.d.comb += Value.cast(register.o).eq(Value.cast(register.i))
        else:
            held = Signal.like(register.i, name="held", reset_less=True)
            m.d.sync += held.eq(register.i)
            m.d.comb += register.o.eq(held)
        return m

    def get_memory(self, storage: memory.Memory) -> Any:
        """Build an :class:`amaranth.lib.memory.Memory`."""
        if storage.shape in (word_of(self.config), item_of(self.config)):
            if storage.depth <= _SINGLE_DEPTH and storage.depth > _BLOCK_DEPTH:
                return self._single_port(storage)
        if storage.shape == unsigned(_ENTRY_BITS):
            return self._layer_table(storage)
        if storage.write_ports and storage.depth > 4:
            if all(port.domain == "comb" for port in storage.read_ports):
                return self._falling_edge(storage)
        return _inferred(storage)

    def _layer_table(self, storage: memory.Memory) -> Module:
        """Build a layer table, with the bits that nobody reads at the end of its words."""
        m = Module()
        bases = {
            "weight_base": self.config.weight_rows,
            "accumulator_base": self.config.accumulator_rows,
        }
        order, unread = [], []
        for name, field in _ENTRY:
            width = (bases[name] - 1).bit_length() if name in bases else field.width
            width = 0 if name in {*OF_INPUTS, "reserved"} else min(width, field.width)
            bits = range(field.offset, field.offset + field.width)
            order += bits[:width]
            unread += bits[width:]
        order += unread
        shape = data.ArrayLayout(1, _ENTRY_BITS)  # not the shape of a layer table
        m.submodules.words = words = memory.Memory(shape=shape, depth=storage.depth, init=[])
        (write,), (read,) = storage.write_ports, storage.read_ports
        write_word, read_word = words.write_port(), words.read_port()
        given, found = Value.cast(write.data), Signal(_ENTRY_BITS)
        m.d.comb += [
            write_word.en.eq(write.en),
            write_word.addr.eq(write.addr),
            Value.cast(write_word.data).eq(Cat(given[bit] for bit in order)),
            read_word.en.eq(read.en),
            read_word.addr.eq(read.addr),
            Cat(found[bit] for bit in order).eq(Value.cast(read_word.data)),
            Value.cast(read.data).eq(found),
        ]
        return m

    def _single_port(self, storage: memory.Memory) -> Module:
        """Build a memory of which a word is written or read in a cycle, not both."""
        m = Module()
        (write,) = storage.write_ports
        data = Value.cast(write.data)
        for number, read in enumerate(storage.read_ports):
            words = []
            for low in range(0, len(data), _SINGLE_WORD):
                word = Signal(_SINGLE_WORD, name=f"word_{number}_{low}")
                m.submodules[f"memory_{number}_{low}"] = Instance(
                    "SB_SPRAM256KA",
                    i_CLOCK=ClockSignal(),
                    i_ADDRESS=Mux(write.en, write.addr, read.addr),
                    i_DATAIN=data[low : low + _SINGLE_WORD],
                    i_MASKWREN=Const(0b1111, 4),
                    i_WREN=write.en,
                    i_CHIPSELECT=write.en | read.en,
                    i_STANDBY=Const(0),
                    i_SLEEP=Const(0),
                    i_POWEROFF=Const(1),
                    o_DATAOUT=word,
                )
                words.append(word)
            m.d.comb += Value.cast(read.data).eq(Cat(words))
        return m

    def _falling_edge(self, storage: memory.Memory) -> Module:
        """Build a memory that is read in the cycle of the address."""
        m = Module()
        (write,) = storage.write_ports
        data = Value.cast(write.data)
        for number, read in enumerate(storage.read_ports):
            words = []
            for low in range(0, len(data), _BLOCK_WORD):
                word = Signal(_BLOCK_WORD, name=f"word_{number}_{low}")
                m.submodules[f"memory_{number}_{low}"] = Instance(
                    "SB_RAM40_4KNR",
                    p_READ_MODE=0,
                    p_WRITE_MODE=0,
                    i_RCLKN=ClockSignal(),
                    i_RCLKE=Const(1),
                    i_RE=Const(1),
                    i_RADDR=_widened(read.addr, 11),
                    i_WCLK=ClockSignal(),
                    i_WCLKE=Const(1),
                    i_WE=write.en,
                    i_WADDR=_widened(write.addr, 11),
                    i_MASK=Const(0, _BLOCK_WORD),
                    i_WDATA=_widened(data[low : low + _BLOCK_WORD], _BLOCK_WORD),
                    o_RDATA=word,
                )
                words.append(word)
            m.d.comb += Value.cast(read.data).eq(Cat(words))
        return m


def _widened(value: Value, width: int) -> Value:
    return Cat(value, Const(0, width - len(value)))


def _inferred(storage: memory.Memory) -> Any:
    """Build a memory as it is without a platform."""
    # Frozen it is already: elaborating once more does nothing else.
    return memory.Memory.elaborate(storage, None)
