"""Multipliers: a lane's digit times the weight of every column.

Each product comes as a value and a carry, ``product = value + carry``: the carry goes into an adder
that is there anyway.

*Blocks* of 18 x 18 bits take two columns each, because both have the same digit. With
``S = weight_bits + digit_bits - 2``::

    (w1 * 2**S + w0) * digit = (w1 * digit) * 2**S + w0 * digit

The low product has ``S + 1`` bits. Its sign is where the high product begins, and follows from the
lowest bit of the high product, which is that of the weight and that of the digit. A negative low
product borrows one from the high product, which is its carry. The weight bank holds ``w1`` less one
where ``w0`` is negative, so that the block's operand is a mere concatenation.

*Tables* add radix-4 Booth rows, each 0, w or 2w, inverted where it is negative. What an inverted
row lacks is added by the bits below the row and by carries.
"""

from amaranth.hdl import Cat, Const, Module, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ditto.hdl.adder import add
from ditto.hdl.config import Config, Multiplier

__all__ = ["Products", "product_bits", "stored", "word_of"]


def word_of(config: Config) -> data.ArrayLayout:
    """Lay out a word of a weight bank."""
    return data.ArrayLayout(signed(config.weight_bits), config.columns)


def product_bits(config: Config) -> int:
    """Return the width of the signed value of a product."""
    return config.weight_bits + config.digit_bits - config.is_packed


def stored(config: Config, word: data.View) -> Value:
    """Return what a weight bank holds for a word of weights."""
    weights = [word[column] for column in range(config.columns)]
    if config.is_packed:
        for column in range(1, config.columns, 2):
            weights[column] = (weights[column] - weights[column - 1][-1])[: config.weight_bits]
    return Cat(weights)


class Products(wiring.Component):
    """Multiply a digit with a word of weights; the products are there a cycle later.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    digit : In(signed(digit_bits))
        The lane's digit.
    weights : In(ArrayLayout)
        A word of the weight bank, see :func:`stored`.
    values : Out(signed) array
        One for each column, see :func:`product_bits`.
    carries : Out(columns)
        What is to be added to each value.
    """

    digit: Signal
    weights: data.View
    values: list[Signal]
    carries: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "digit": In(signed(config.digit_bits)),
                "weights": In(word_of(config)),
                "values": Out(signed(product_bits(config))).array(config.columns),
                "carries": Out(config.columns),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the multipliers."""
        m = Module()
        config = self.config
        column = 0
        if config.multiplier is Multiplier.LUT:
            self._add_tables(m)
            return m
        if config.is_packed:
            for column in range(0, config.columns - 1, 2):
                self._add_pair(m, column)
            column = config.columns - config.columns % 2
        for single in range(column, config.columns):
            product = Signal.like(self.values[single], name=f"product_{single}", reset_less=True)
            m.d.sync += product.eq(self.digit * self.weights[single])
            m.d.comb += self.values[single].eq(product)
        return m

    def _add_pair(self, m: Module, column: int) -> None:
        """Multiply with the weights of two columns in one block."""
        config = self.config
        spacing = config.weight_bits + config.digit_bits - 2
        low, high = self.weights[column], self.weights[column + 1]
        sign = low[-1]
        operand = Cat(low, sign.replicate(config.digit_bits - 2), high).as_signed()
        product = Signal(
            signed(len(operand) + config.digit_bits), name=f"pair_{column}", reset_less=True
        )
        parity = Signal(name=f"parity_{column}", reset_less=True)
        borrow = Signal(name=f"borrow_{column}")
        m.d.sync += [
            product.eq(operand * self.digit),
            parity.eq((high[0] ^ sign) & self.digit[0]),
        ]
        m.d.comb += [
            borrow.eq(product[spacing] ^ parity),
            self.values[column].eq(Cat(product[:spacing], borrow).as_signed()),
            self.values[column + 1].eq(product[spacing:].as_signed()),
            self.carries[column + 1].eq(borrow),
        ]

    def _add_tables(self, m: Module) -> None:
        """Multiply with Booth rows."""
        config = self.config
        digit = Cat(Const(0, 1), self.digit, self.digit[-1])
        controls = []
        for row in range((config.digit_bits + 1) // 2):
            below, low, high = digit[2 * row], digit[2 * row + 1], digit[2 * row + 2]
            one, two, minus = (Signal(name=f"{name}_{row}") for name in ("one", "two", "minus"))
            m.d.comb += [
                one.eq(low ^ below),
                two.eq((high ^ low) & ~one),
                minus.eq(high),
            ]
            controls.append((one, two, minus))
        carry = Signal(reset_less=True)
        m.d.sync += carry.eq(controls[0][2])
        m.d.comb += self.carries.eq(carry.replicate(config.columns))
        for column in range(config.columns):
            weight = self.weights[column]
            single, double = Cat(weight, weight[-1]), Cat(Const(0, 1), weight)
            total: Value | None = None
            for row, (one, two, minus) in enumerate(controls):
                width = len(single)
                bits = (single & one.replicate(width)) | (double & two.replicate(width))
                bits = bits ^ minus.replicate(width)
                if total is None:
                    total = bits.as_signed()
                else:
                    total = add(total, Cat(minus.replicate(2 * row), bits).as_signed(), minus)
            assert total is not None
            product = Signal.like(self.values[column], name=f"product_{column}", reset_less=True)
            m.d.sync += product.eq(total)
            m.d.comb += self.values[column].eq(product)
        return
