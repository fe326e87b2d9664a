"""Delta encoder: bytes to deltas, deltas to digits, nonzero digits to work items.

::

    deltas ──► DeltaReader ───┐
    inputs ──► Differencer ───┴─► DigitSplitter ──► difference buffer
               one delta          one nonzero
               a cycle            digit a cycle

"""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ditto.hdl.config import Config
from ditto.hdl.difference_buffer import ItemWrite, PlaceWrite
from ditto.hdl.differences import Differencer
from ditto.hdl.protocol import ESCAPE, LayerEntry, Mode

__all__ = ["DeltaReader", "DigitSplitter", "Encoder"]


class DeltaReader(wiring.Component):
    """Read deltas from a stream of bytes, see :attr:`ditto.hdl.protocol.Space.DELTAS`.

    A byte is a delta in -127..127; the byte 0x80 announces a 16-bit little-endian delta. Takes a
    byte a cycle; a delta leaves in the cycle in which its last byte comes.

    Parameters
    ----------
    delta_bits
        Width of a delta.

    Members
    -------
    i : In(stream.Signature(8))
        Bytes.
    o : Out(stream.Signature(signed(delta_bits)))
        Deltas.
    clear : In(1)
        Forget a delta that has begun.
    partial : Out(1)
        A delta has begun and not ended.
    """

    i: stream.Interface
    o: stream.Interface
    clear: Signal
    partial: Signal

    def __init__(self, *, delta_bits: int) -> None:
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(signed(delta_bits))),
                "clear": In(1),
                "partial": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the reader."""
        m = Module()
        low = Signal(8)
        with m.FSM() as fsm:
            with m.State("Delta"):
                # Nothing is remembered here, so `clear` has nothing to do.
                escape = self.i.payload == ESCAPE
                m.d.comb += [
                    self.o.payload.eq(self.i.payload.as_signed()),
                    self.o.valid.eq(self.i.valid & ~escape),
                    self.i.ready.eq(self.o.ready | escape),
                ]
                with m.If(self.i.valid & escape & ~self.clear):
                    m.next = "Low byte"
            with m.State("Low byte"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += low.eq(self.i.payload)
                with m.If(self.clear):
                    m.next = "Delta"
                with m.Elif(self.i.valid):
                    m.next = "High byte"
            with m.State("High byte"):
                m.d.comb += [
                    self.o.payload.eq(Cat(low, self.i.payload).as_signed()),
                    self.o.valid.eq(self.i.valid),
                    self.i.ready.eq(self.o.ready),
                ]
                with m.If(self.clear | (self.i.valid & self.o.ready)):
                    m.next = "Delta"
            m.d.comb += self.partial.eq(~fsm.ongoing("Delta"))
        return m


class DigitSplitter(wiring.Component):
    """Write the nonzero digits of deltas to the difference buffer as work items.

    Zero digits produce nothing, unless the device does not skip. A delta takes as many cycles as it
    has items, and at least one. Position ``n`` has the items from ``n * channels * digits`` on: its
    low ones, without a shift, from there upwards, and its high ones from the end downwards.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    channels : In(16)
        Channels of a position, at least 1; may change only together with ``clear``.
    i : In(stream.Signature(signed(delta_bits)))
        Deltas, position by position.
    items : Out(ItemWrite)
        Write port of the items.
    places : Out(PlaceWrite)
        Where a position's items are, when all of them have been written.
    positions : Out(16)
        Positions written since ``clear``; stays at its largest value.
    overflow : Out(1)
        A position did not fit the difference buffer since ``clear``, and was not written.
    partial : Out(1)
        A position has begun and not been written.
    busy : Out(1)
        Items of a delta are not written yet.
    clear : In(1)
        Begin at the first position again.
    """

    channels: Signal
    i: stream.Interface
    items: wiring.PureInterface
    places: wiring.PureInterface
    positions: Signal
    overflow: Signal
    partial: Signal
    busy: Signal
    clear: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "channels": In(16),
                "i": In(stream.Signature(signed(config.delta_bits))),
                "items": Out(ItemWrite(config)),
                "places": Out(PlaceWrite(config)),
                "positions": Out(16),
                "overflow": Out(1),
                "partial": Out(1),
                "busy": Out(1),
                "clear": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the splitter."""
        m = Module()
        config = self.config
        channel = Signal(16)
        base = Signal(range(config.item_depth + 1))
        slot = Signal(range(config.channels * config.digits + 1))
        end = Signal(range(config.item_depth + config.channels * config.digits + 1))
        low = Signal(config.count_bits)
        high = Signal(config.count_bits)
        fits, done, last = Signal(), Signal(), Signal()

        # Digits below the highest shift are balanced; a negative one is made good by one more in
        # those above it. What remains is given out in as many of the largest digits as it takes.
        bits, shifts = config.digit_bits, config.shifts
        low_digits: list[Value] = []
        rest: Value = self.i.payload
        for _ in range(shifts - 1):
            low_digits.append(rest[:bits].as_signed())
            rest = (rest >> bits) + rest[bits - 1]
        full = Signal()
        digits: list[Value] = [
            Signal.like(digit, name=f"digit_{number}", reset_less=True)
            for number, digit in enumerate(low_digits)
        ]
        remaining = Signal(rest.shape(), reset_less=True)
        left = Signal(shifts, reset_less=True)  # what is not written yet
        most, least = (1 << bits - 1) - 1, -1 << bits - 1
        exceeds = Signal()
        digits.append(Mux(remaining > most, most, Mux(remaining < least, least, remaining)))
        lowest = Signal(shifts)
        shift = Signal(range(max(shifts, 2)))
        writes, writes_low = Signal(), Signal()
        m.d.sync += slot.eq(self.channels * config.digits)
        m.d.comb += [
            exceeds.eq((remaining > most) | (remaining < least)),
            lowest.eq(left & -left),
            done.eq(((left & ~lowest) == 0) & ~exceeds),
            end.eq(base + slot),
            fits.eq(
                ~self.overflow & (end <= config.item_depth) & (self.positions < config.positions)
            ),
            last.eq(channel == self.channels - 1),
            writes.eq(full & left.any()),
            writes_low.eq(writes & lowest[0]),
            self.i.ready.eq(~full | done),
            self.busy.eq(full),
            self.partial.eq(full | (channel != 0)),
        ]
        for i in range(shifts):
            with m.If(lowest[i]):
                m.d.comb += shift.eq(i)
        with m.If(self.i.ready):
            nonzero = Cat(digit != 0 for digit in [*low_digits, rest])
            m.d.sync += [
                full.eq(self.i.valid & ~self.clear),
                remaining.eq(rest),
                left.eq(nonzero if config.skip else 1),
                *(held.eq(digit) for held, digit in zip(digits, low_digits, strict=False)),
            ]
        with m.Elif(lowest[-1]):
            m.d.sync += remaining.eq(remaining - digits[-1])
        with m.Else():
            m.d.sync += left.eq(left & ~lowest)

        # The memories are written a cycle later.
        m.d.sync += [
            self.items.en.eq(writes & fits & ~self.clear),
            self.items.address.eq(Mux(lowest[0], base + low, end - 1 - high)),
            self.items.item.channel.eq(channel),
            self.items.item.digit.eq(Array(digits)[shift]),
            self.items.item.shift.eq(shift),
            self.places.en.eq(full & done & last & fits & ~self.clear),
            self.places.address.eq(self.positions),
            self.places.place.address.eq(base),
            self.places.place.low.eq(low + writes_low),
            self.places.place.high.eq(high + (writes & ~writes_low)),
        ]
        with m.If(full):
            m.d.sync += [
                low.eq(low + writes_low),
                high.eq(high + (writes & ~writes_low)),
            ]
            with m.If(done):
                m.d.sync += channel.eq(channel + 1)
                with m.If(last):
                    m.d.sync += [channel.eq(0), low.eq(0), high.eq(0)]
                    with m.If(fits):
                        m.d.sync += [base.eq(end), self.positions.eq(self.positions + 1)]
                    with m.Else():
                        m.d.sync += self.overflow.eq(1)
        with m.If(self.clear):
            m.d.sync += [
                full.eq(0),
                channel.eq(0),
                low.eq(0),
                high.eq(0),
                base.eq(0),
                self.positions.eq(0),
                self.overflow.eq(0),
            ]
        return m


class Encoder(wiring.Component):
    """Encode a tile into the difference buffer, and count what its deltas are.

    Takes a byte a cycle, and an item more for each further digit of a delta.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    entry : In(LayerEntry)
        The entry of the tile.
    distance, mode, holds, open
        Of a tile of inputs, see :class:`~ditto.hdl.differences.Differencer`.
    inputs : In(1)
        The tile is one of inputs. Sampled with ``begin``.
    i : In(stream.Signature(8))
        Bytes of deltas, see :class:`DeltaReader`, or inputs.
    items, places
        Write ports of the difference buffer.
    begin : In(1)
        Empty the difference buffer and begin a tile; ``entry`` has its new value since the cycle
        before, and keeps it.
    positions : Out(16)
        Whole positions that the difference buffer holds.
    exact : Out(1)
        No position has begun without having ended, and all of them fitted.
    whole : Out(1)
        All bytes of a tile of inputs have come, and none beyond.
    busy : Out(1)
        Something is still on its way to the difference buffer.
    zero, narrow, wide : Out(32)
        Deltas since ``begin`` that are zero, that fit the low digit, and others.
    dense, temporal, spatial : Out(32)
        Work items that the inputs since ``begin`` have in each mode.
    """

    entry: wiring.PureInterface
    distance: Signal
    mode: Signal
    holds: Signal
    open: Signal
    inputs: Signal
    i: stream.Interface
    items: wiring.PureInterface
    places: wiring.PureInterface
    begin: Signal
    positions: Signal
    exact: Signal
    whole: Signal
    busy: Signal
    zero: Signal
    narrow: Signal
    wide: Signal
    dense: Signal
    temporal: Signal
    spatial: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "entry": In(LayerEntry),
                "distance": In(8),
                "mode": In(Mode),
                "holds": In(1),
                "open": In(1),
                "inputs": In(1),
                "i": In(stream.Signature(8)),
                "items": Out(ItemWrite(config)),
                "places": Out(PlaceWrite(config)),
                "begin": In(1),
                "positions": Out(16),
                "exact": Out(1),
                "whole": Out(1),
                "busy": Out(1),
                "zero": Out(32),
                "narrow": Out(32),
                "wide": Out(32),
                "dense": Out(32),
                "temporal": Out(32),
                "spatial": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the encoder."""
        m = Module()
        config = self.config
        m.submodules.reader = reader = DeltaReader(delta_bits=config.delta_bits)
        m.submodules.splitter = splitter = DigitSplitter(config)
        connect(m, splitter.items, flipped(self.items))
        connect(m, splitter.places, flipped(self.places))

        # A register between them keeps the reader's escape off the splitter's path.
        held = Signal(signed(config.delta_bits))
        full = Signal()
        ready = Signal()
        m.d.comb += [
            ready.eq(~full | splitter.i.ready),
            reader.i.payload.eq(self.i.payload),
            reader.i.valid.eq(self.i.valid),
            reader.clear.eq(self.begin),
            reader.o.ready.eq(ready),
            self.i.ready.eq(reader.i.ready),
            splitter.i.valid.eq(full),
            splitter.i.payload.eq(held),
            splitter.clear.eq(self.begin),
            splitter.channels.eq(self.entry.channels),
            self.positions.eq(splitter.positions),
            self.exact.eq(~(reader.partial | full | splitter.partial | splitter.overflow)),
            self.busy.eq(self.i.valid | full | splitter.busy),
        ]
        with m.If(ready):
            m.d.sync += [full.eq(reader.o.valid & ~self.begin), held.eq(reader.o.payload)]
        if config.reference_depth:
            m.submodules.differencer = differencer = Differencer(config)
            takes_inputs = Signal()
            with m.If(self.begin):
                m.d.sync += takes_inputs.eq(self.inputs)
            m.d.comb += [
                differencer.begin.eq(self.begin),
                *(
                    Value.cast(getattr(differencer, name)).eq(Value.cast(getattr(self, name)))
                    for name in ("entry", "distance", "mode", "holds", "open")
                ),
                *(
                    getattr(self, name).eq(getattr(differencer, name))
                    for name in ("whole", "dense", "temporal", "spatial")
                ),
                differencer.i.payload.eq(self.i.payload),
                differencer.o.ready.eq(ready),
            ]
            with m.If(takes_inputs):
                m.d.comb += [
                    reader.i.valid.eq(0),
                    differencer.i.valid.eq(self.i.valid),
                    self.i.ready.eq(differencer.i.ready),
                    self.busy.eq(self.i.valid | full | splitter.busy | differencer.busy),
                ]
                with m.If(ready):
                    m.d.sync += [
                        full.eq(differencer.o.valid & ~self.begin),
                        held.eq(differencer.o.payload),
                    ]
        with m.If(self.begin):
            m.d.sync += [full.eq(0), self.zero.eq(0), self.narrow.eq(0), self.wide.eq(0)]
        with m.Elif(full & splitter.i.ready):
            with m.If(held == 0):
                m.d.sync += self.zero.eq(self.zero + 1)
            with m.Elif(held == held[: config.digit_bits].as_signed()):
                m.d.sync += self.narrow.eq(self.narrow + 1)
            with m.Else():
                m.d.sync += self.wide.eq(self.wide + 1)
        return m
