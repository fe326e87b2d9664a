# amaranth: UnusedElaboratable=no
"""Encoder: every delta arrives whole, and its digits, in its slot, sum to it."""

from typing import Any

import pytest
from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed

from ditto.hdl.config import Config
from ditto.hdl.encoder import DeltaReader, DigitSplitter
from ditto.hdl.protocol import ESCAPE
from ditto.sim.formal import Proof, mutant


class DeltaReaderProof(Proof):
    """Deltas are those that the protocol describes; each leaves with its last byte."""

    def specify(self, m: Module) -> None:
        i, o, clear = self.dut.i, self.dut.o, self.dut.clear
        self.stable(i, assume=True)
        self.stable(o, unless=clear)
        self.seen = seen = Signal(range(3))  # bytes of the delta before this one
        self.low = low = Signal(8)
        takes = i.valid & i.ready
        escape = i.payload == ESCAPE
        single = (seen == 0) & ~escape
        self.require((self.dut.partial == (seen != 0)) & (seen <= 2))
        self.require(o.valid == (i.valid & (single | (seen == 2))))
        # Bytes that end no delta are taken at once, others when the delta is.
        self.require(i.ready == Mux(single | (seen == 2), o.ready, 1) | (i.ready & ~i.valid))
        value = Mux(seen == 0, i.payload.as_signed(), Cat(low, i.payload).as_signed())
        self.require(~o.valid | (o.payload == Value.cast(value)[: len(o.payload)].as_signed()))
        with m.If(clear):
            m.d.sync += seen.eq(0)
        with m.Elif(takes):
            m.d.sync += [low.eq(i.payload), seen.eq(Mux(single | (seen == 2), 0, seen + 1))]
        self.cover(o.valid & o.ready & (o.payload == -255))
        self.cover(clear & (seen == 2))

    def support(self, m: Module) -> None:
        self.require(self.internal(2, "dut.fsm_state") == self.seen)
        self.require((self.seen != 2) | (self.internal(8, "dut.low") == self.low))


def test_delta_reader(holds: Any) -> None:
    holds(lambda: DeltaReaderProof(DeltaReader(delta_bits=9)), 2, reach=8)


@pytest.mark.parametrize(
    "old, new",
    [
        (
            'with m.Elif(self.i.valid):\n                    m.next = "High',
            'with m.Else():\n                    m.next = "High',
        ),
        (
            "with m.If(self.clear | (self.i.valid & self.o.ready))",
            "with m.If(self.clear | self.i.valid)",
        ),
        ("self.i.ready.eq(self.o.ready | escape)", "self.i.ready.eq(1)"),
        ("m.d.sync += low.eq(self.i.payload)", "m.d.sync += low.eq(self.i.payload & 0x7F)"),
    ],
)
def test_delta_reader_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.hdl.encoder", old, new)
    refutes(lambda: DeltaReaderProof(module.DeltaReader(delta_bits=9)), 8)


def splitter_config(activation_bits: int, digit_bits: int, **changes: Any) -> Config:
    digits = Config(activation_bits=activation_bits, digit_bits=digit_bits, **changes).digits
    # Two positions of two channels fit; a third, or bigger ones, do not.
    return Config(
        activation_bits=activation_bits,
        digit_bits=digit_bits,
        clusters=1,
        columns=1,
        channels=2,
        positions=3,
        item_depth=4 * digits,
        weight_rows=2,
        accumulator_rows=2,
        **changes,
    )


class DigitSplitterProof(Proof):
    """For every delta: its digits sum to it, none is zero, and all lie in its position's slot.

    Low items fill the slot from its start upwards and high ones from its end downwards, without a
    gap, and never meet. The place of a position is written with the last delta and has the counts.
    What does not fit is not written at all.
    """

    def specify(self, m: Module) -> None:
        dut = self.dut
        config = dut.config
        bits, most = config.digit_bits, config.digits
        size = config.channels * most
        i, items, places = dut.i, dut.items, dut.places
        item = items.item
        high = item.shift != 0

        # A delta is in range, and channels stay as they are but for `clear`.
        self.assume((i.payload <= config.max_delta) & (i.payload >= -config.max_delta))
        self.channels = channels = Signal.like(dut.channels)  # of the cycle before
        m.d.always += channels.eq(dut.channels)
        self.assume((dut.channels >= 1) & (dut.channels <= config.channels))
        self.assume((dut.channels == channels) | dut.clear | self.reset)

        # What the splitter took last, and what is not written of it.
        self.holds = holds = Signal()
        self.rest = rest = Signal(signed(config.delta_bits + 1))
        self.number = number = Signal(range(most + 1))
        takes = i.valid & i.ready & ~dut.clear
        ends = holds & i.ready  # its last item is written in the next cycle
        # The same, as of the cycle before, to which the write ports belong.
        late = Signal()
        late_ends = Signal()
        m.d.sync += [late.eq(holds & ~dut.clear), late_ends.eq(ends & ~dut.clear)]

        self.require(dut.busy == holds)
        with m.If(i.ready | dut.clear):
            m.d.sync += holds.eq(takes)

        # Position and channel of the delta that is held, and its slot.
        self.channel = channel = Signal(range(config.channels))
        self.position = position = Signal(range(config.positions + 1))
        self.spilled = spilled = Signal()
        self.low, self.high = low, highs = Signal(range(size + 1)), Signal(range(size + 1))
        slot = Signal(range(size + 1))
        base = Signal(range(config.item_depth + size + 1))
        self.fits = fits = Signal()
        last = Signal()
        m.d.comb += [
            slot.eq(channels * most),
            base.eq(position * slot),
            fits.eq(~spilled & (base + slot <= config.item_depth) & (position < config.positions)),
            last.eq(channel == channels - 1),
        ]
        with m.If(ends):
            m.d.sync += channel.eq(channel + 1)
            with m.If(last):
                m.d.sync += channel.eq(0)
                with m.If(fits):
                    m.d.sync += position.eq(position + 1)
                with m.Else():
                    m.d.sync += spilled.eq(1)
        with m.If(dut.clear):
            m.d.sync += [channel.eq(0), position.eq(0), spilled.eq(0)]
        self.require((dut.positions == position) & (dut.overflow == spilled))
        self.require(dut.partial == (holds | (channel != 0)))

        self.late_fits = late_fits = Signal()
        late_last, late_channel = Signal(), Signal.like(channel)
        late_position, late_base = Signal.like(position), Signal.like(base)
        late_slot = Signal.like(slot)
        m.d.sync += [
            late_fits.eq(fits),
            late_last.eq(last),
            late_channel.eq(channel),
            late_position.eq(position),
            late_base.eq(base),
            late_slot.eq(slot),
        ]
        writes = items.en
        # Digits: what is left after this item; the last one leaves nothing.
        weight = item.digit << (item.shift * bits) if config.shifts > 1 else item.digit
        following = Signal.like(rest)
        delta = Signal(signed(config.delta_bits))
        first = Signal(signed(config.delta_bits))
        with m.If(takes):
            m.d.sync += delta.eq(i.payload)
        m.d.sync += first.eq(delta)
        arrived, at_first = Signal(), Signal()
        m.d.sync += [arrived.eq(takes), at_first.eq(arrived)]
        before = Signal.like(rest)
        items_before = Signal.like(number)
        m.d.comb += [
            before.eq(Mux(at_first, first, rest)),
            items_before.eq(Mux(at_first, 0, number)),
            following.eq(before - Mux(writes, weight, 0)),
        ]
        m.d.sync += [rest.eq(following), number.eq(items_before + writes)]
        self.require(~writes | (late & late_fits))
        self.require(~(late & late_ends & late_fits) | (following == 0))
        self.require(~writes | (items_before < most))
        if config.skip:
            self.require(~writes | (item.digit != 0))
        else:
            self.require(~(late & late_ends & late_fits) | writes)
        self.require(~writes | (item.channel == late_channel))
        self.require(~writes | (item.shift < config.shifts))

        # Where they go. The counts are as of the cycle before, like the ports.
        begins = Signal()  # the position begins with this delta
        m.d.comb += begins.eq(late & at_first & (late_channel == 0))
        low_before, high_before = Signal.like(low), Signal.like(highs)
        m.d.comb += [
            low_before.eq(Mux(begins, 0, low)),
            high_before.eq(Mux(begins, 0, highs)),
        ]
        m.d.sync += [
            low.eq(low_before + (writes & ~high)),
            highs.eq(high_before + (writes & high)),
        ]
        end = late_base + late_slot
        self.require(
            ~writes | (items.address == Mux(high, end - 1 - high_before, late_base + low_before))
        )
        self.require(~(late & late_fits) | (end <= config.item_depth))
        self.require(~writes | (low_before + high_before < late_slot))
        is_place = Signal()
        m.d.comb += is_place.eq(late & late_ends & late_last & late_fits)
        self.require(places.en == is_place)
        with m.If(is_place):
            self.require(places.address == late_position)
            self.require(places.place.address == late_base)
            self.require(places.place.low == low_before + (writes & ~high))
            if config.shifts > 1:
                self.require(places.place.high == high_before + (writes & high))

        # What was written in all, for the support.
        self.late, self.number_next = late, items_before + writes
        self.low_next = low_before + (writes & ~high)
        self.high_next = high_before + (writes & high)
        self.late_channel, self.arrived, self.most = late_channel, arrived, most

        self.cover(is_place & (late_position == 1))
        self.cover(spilled)
        if most > 1:
            self.cover(writes & (items_before == most - 1))
        self.cover(dut.clear & holds)

    def support(self, m: Module) -> None:
        dut, most = self.dut, self.most
        config = dut.config
        channel, position, channels = self.channel, self.position, self.channels
        low = self.internal(config.count_bits, "dut.low")
        high = self.internal(config.count_bits, "dut.high")
        base = self.internal(range(config.item_depth + 1), "dut.base")
        slot = self.internal(range(config.channels * most + 1), "dut.slot")
        self.require(self.internal(16, "dut.channel") == channel)
        self.require(channel < channels)
        self.require(base == position * channels * most)
        self.require(~self.holds | (slot == channels * most))
        self.require((position <= config.positions) & (base <= config.item_depth))
        # Nothing of the position is written yet, or what was.
        begins = (channel == 0) & (self.arrived | ~self.holds)
        counted = self.late_fits | ~self.late
        is_same = ~begins & self.fits
        self.require(~begins | ((low == 0) & (high == 0)))
        self.require(~is_same | ~counted | ((low == self.low_next) & (high == self.high_next)))
        self.require(
            ~self.late
            | ~self.late_fits
            | (self.low_next + self.high_next <= self.late_channel * most + self.number_next)
        )
        self.require(self.holds | begins | ~self.fits | (low + high <= channel * most))
        if config.shifts == 1:
            self.require((high == 0) & (self.high == 0))


SPLITTERS = [splitter_config(8, 4), splitter_config(8, 9, skip=0)]
OTHER_SPLITTERS = [
    splitter_config(activation, digit)
    for activation in range(2, 9)
    for digit in range(2, activation + 2)
    if (activation, digit) != (8, 4)
]


def splitter_name(config: Config) -> str:
    return f"a{config.activation_bits}d{config.digit_bits}{'' if config.skip else '-all'}"


@pytest.mark.parametrize("config", SPLITTERS, ids=splitter_name)
def test_digit_splitter(holds: Any, config: Config) -> None:
    holds(
        lambda: DigitSplitterProof(DigitSplitter(config)),
        config.digits + 4,
        reach=4 * config.digits + 4,
    )


@pytest.mark.long
@pytest.mark.parametrize("config", OTHER_SPLITTERS, ids=splitter_name)
def test_digit_splitter_of_other_widths(holds: Any, config: Config) -> None:
    holds(lambda: DigitSplitterProof(DigitSplitter(config)), config.digits + 4, reach=0)


@pytest.mark.parametrize(
    "old, new",
    [
        ("rest = (rest >> bits) + rest[bits - 1]", "rest = rest >> bits"),
        ("end <= config.item_depth", "end < config.item_depth"),
        ("end - 1 - high", "end - high"),
        ("nonzero = Cat(digit != 0", "nonzero = Cat(digit > 0"),
        ("done.eq(((left & ~lowest) == 0) & ~exceeds)", "done.eq((left & ~lowest) == 0)"),
        ("[\n                full.eq(0),", "["),
        ("self.positions < config.positions", "self.positions <= config.positions"),
        ("self.places.place.low.eq(low + writes_low)", "self.places.place.low.eq(low)"),
        ("with m.Elif(lowest[-1]):", "with m.Elif(lowest[0]):"),
    ],
)
def test_digit_splitter_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.hdl.encoder", old, new)
    # Four positions of one channel, then one that does not fit.
    refutes(lambda: DigitSplitterProof(module.DigitSplitter(splitter_config(8, 4))), 12)
