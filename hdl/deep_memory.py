"""A memory too deep for one row of block memories, without a wide multiplexer behind them."""

from amaranth.hdl import Array, Module, Shape, ShapeLike, Signal, Value
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["DeepMemory"]

_BANK = 1 << 14
"""Words of a bank: as many as a block memory of 16 or 18 kbit has where its words are one bit."""


class DeepMemory(wiring.Component):
    """A memory of banks, each with a register behind it; a word comes two cycles after its address.

    A bank takes a block memory for each bit of a word. What is left to multiplex are the banks, and
    that happens behind their registers.

    Parameters
    ----------
    shape
        Shape of a word.
    depth
        Number of words, at least 1. What is written or read beyond them is undefined.

    Members
    -------
    read_en : In(1)
        Move on: take ``read_address``, and let the word of the address before come to
        ``read_data``, which stays until the next time.
    read_address
        Word to read.
    read_data
        The word.
    write_en, write_address, write_data
        Write port. What a word holds when it is read in the cycle in which it is written, is
        undefined.
    """

    read_en: Signal
    read_address: Signal
    read_data: Signal
    write_en: Signal
    write_address: Signal
    write_data: Signal

    def __init__(self, *, shape: ShapeLike, depth: int) -> None:
        self._shape, self._depth = Shape.cast(shape), depth
        super().__init__(
            {
                "read_en": In(1),
                "read_address": In(range(depth)),
                "read_data": Out(shape),
                "write_en": In(1),
                "write_address": In(range(depth)),
                "write_data": In(shape),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the banks."""
        m = Module()
        words = (_BANK - 1).bit_length()
        held: list[Value] = []
        for number, first in enumerate(range(0, self._depth, _BANK)):
            m.submodules[f"bank_{number}"] = bank = memory.Memory(
                shape=self._shape, depth=min(_BANK, self._depth - first), init=[]
            )
            write, read = bank.write_port(), bank.read_port()
            word = Signal(self._shape, name=f"word_{number}", reset_less=True)
            held.append(word)
            m.d.comb += [
                read.en.eq(self.read_en),
                read.addr.eq(self.read_address[:words]),
                write.en.eq(self.write_en & (self.write_address[words:] == number)),
                write.addr.eq(self.write_address[:words]),
                write.data.eq(self.write_data),
            ]
            with m.If(self.read_en):
                m.d.sync += word.eq(read.data)
        chosen = Signal(range(max(len(held), 2)), reset_less=True)
        behind = Signal.like(chosen, reset_less=True)
        with m.If(self.read_en):
            m.d.sync += [chosen.eq(self.read_address[words:]), behind.eq(chosen)]
        m.d.comb += self.read_data.eq(Array(held)[behind])
        return m
