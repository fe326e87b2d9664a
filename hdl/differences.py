"""Differences: quantized inputs to deltas of the tile's mode, and the digits that each mode has.

::

    inputs ──► references[p], inputs D positions back ──► three differences ──► one of them
               0                                    1, 2                   3    4 ──► digits

The numbers are cycles. A stage moves when what comes after the last one is ready for it.
"""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from ditto.hdl.config import Config
from ditto.hdl.deep_memory import DeepMemory
from ditto.hdl.protocol import LayerEntry, Mode

__all__ = ["Differencer", "count_digits"]


def count_digits(config: Config, delta: Value) -> Value:
    """Return how many work items a delta has, see :func:`ditto.sim.golden.items`."""
    if not config.skip:
        return Value.cast(1)
    bits, shifts = config.digit_bits, config.shifts
    half = 1 << bits - 1
    # Without the low digit, all follows from the bits above it and its sign.
    first = bits - 1 if shifts > 1 else 0
    index = delta[first:]
    table: list[int] = []
    for bits_of in range(1 << len(index)):
        rest = bits_of - (bits_of >> len(index) - 1 << len(index))
        count = 0
        if shifts > 1:
            rest = rest + 1 >> 1
        for _ in range(shifts - 2):
            digit = (rest + half) % (2 * half) - half
            count += digit != 0
            rest = rest - digit >> bits
        count += -(-rest // (half - 1)) if rest > 0 else -(rest // half)
        table.append(count)
    above = Array(table)[index]
    return above + (delta[:bits] != 0) if shifts > 1 else above


class Differencer(wiring.Component):
    """Take differences of a tile's inputs, an input a cycle.

    The references of an entry are its last inputs, or what was applied of them, see ``threshold``
    of :class:`~ditto.hdl.protocol.LayerEntry`. Each is read before it is replaced.

    In a spatial tile, the differences of the zeros behind a line of the image follow those of the
    line. Inputs beyond the tile, or that find no room in the memories, are dropped.

    Parameters
    ----------
    config
        The device, which has a reference buffer.

    Members
    -------
    i : In(stream.Signature(8))
        Quantized inputs, position by position, channels in order; higher bits are ignored.
    o : Out(stream.Signature(signed(delta_bits)))
        Differences of the tile's mode.
    begin : In(1)
        Begin a tile. What follows has its new value since the cycle before, and keeps it.
    entry : In(LayerEntry)
        The entry of the tile.
    distance : In(8)
        Positions from one to the one that its spatial difference is taken from, at least 1.
    mode : In(Mode)
        The tile's mode: dense, temporal or spatial.
    holds : In(1)
        The references are those of the entry's accumulators. Sampled with ``begin``.
    open : In(1)
        Inputs are wanted; others are dropped without a trace.
    whole : Out(1)
        All inputs of the tile have been taken, and none beyond.
    busy : Out(1)
        Something is still on its way to ``o``.
    dense, temporal, spatial : Out(32)
        Work items that the inputs since ``begin`` have in each mode.
    """

    i: stream.Interface
    o: stream.Interface
    begin: Signal
    entry: wiring.PureInterface
    distance: Signal
    mode: Signal
    holds: Signal
    open: Signal
    whole: Signal
    busy: Signal
    dense: Signal
    temporal: Signal
    spatial: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(signed(config.delta_bits))),
                "begin": In(1),
                "entry": In(LayerEntry),
                "distance": In(8),
                "mode": In(Mode),
                "holds": In(1),
                "open": In(1),
                "whole": Out(1),
                "busy": Out(1),
                "dense": Out(32),
                "temporal": Out(32),
                "spatial": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the stages."""
        m = Module()
        config, entry = self.config, self.entry
        value = signed(config.activation_bits)
        delta = signed(config.delta_bits)
        is_spatial = Signal()
        is_temporal = Signal()
        zero_point = Signal(value)
        m.d.comb += [
            is_spatial.eq(self.mode == Mode.SPATIAL),
            is_temporal.eq(self.mode == Mode.TEMPORAL),
            zero_point.eq(entry.zero_point),
        ]
        full = [Signal(name=f"full_{stage}") for stage in range(5)]  # of each stage
        moves = Signal()
        m.d.comb += moves.eq(~full[4] | self.o.ready)

        # Where in the tile the next input is.
        channel = Signal(range(config.channels + 1))  # from 1 on
        column = Signal(range(config.positions + 1))  # what is left of the line
        line = Signal(range(config.positions + 1))  # lines that are left
        address = Signal(range(config.reference_depth + 1))
        slot = Signal(8)  # position in the ring, from 1 on
        neighbour = Signal(range(config.neighbour_depth + 1))
        around = Signal()  # the ring holds `distance` positions of the line
        emits = Signal()  # what is behind the line
        margin = Signal(4)
        ended, excess = Signal(), Signal()
        beyond = entry.reference_base[len(address) :].any()
        blocked = (address >= config.reference_depth) | beyond
        fits_ring = (neighbour != config.neighbour_depth) | ~entry.spatial
        takes, drops, last_channel, last_slot, ends_line = (Signal() for _ in range(5))
        m.d.comb += [
            last_channel.eq(channel == entry.channels[: len(channel)]),
            last_slot.eq(slot == self.distance),
            takes.eq(self.i.valid & self.open & ~emits & ~ended & ~blocked & fits_ring),
            drops.eq(self.i.valid & ~emits & ~takes),
            full[0].eq(takes | emits),
            self.i.ready.eq(moves & ~emits),
            ends_line.eq(
                last_channel
                & Mux(emits, margin == 1, (column == 1) & ~(is_spatial & (entry.margin != 0)))
            ),
            self.whole.eq(ended & ~excess),
            self.busy.eq(emits | Cat(full[1:]).any()),
        ]
        with m.If(moves & drops & self.open):
            m.d.sync += excess.eq(1)
        with m.If(moves & full[0]):
            m.d.sync += [channel.eq(channel + 1), neighbour.eq(neighbour + 1)]
            with m.If(~emits):
                m.d.sync += address.eq(address + 1)
            with m.If(last_channel):
                m.d.sync += [channel.eq(1), slot.eq(slot + 1)]
                with m.If(last_slot):
                    m.d.sync += [slot.eq(1), neighbour.eq(0), around.eq(1)]
                with m.If(emits):
                    m.d.sync += margin.eq(margin - 1)
                with m.Else():
                    m.d.sync += column.eq(column - 1)
                    with m.If(column == 1):
                        m.d.sync += emits.eq(1)
                with m.If(ends_line):
                    m.d.sync += [
                        column.eq(entry.in_width),
                        line.eq(line - 1),
                        slot.eq(1),
                        neighbour.eq(0),
                        around.eq(0),
                        emits.eq(0),
                        margin.eq(entry.margin),
                        ended.eq(line == 1),
                    ]
        with m.If(self.begin):
            m.d.sync += [
                channel.eq(1),
                column.eq(entry.in_width),
                line.eq(entry.in_height),
                address.eq(entry.reference_base),
                slot.eq(1),
                neighbour.eq(0),
                around.eq(0),
                emits.eq(0),
                margin.eq(entry.margin),
                ended.eq(0),
                excess.eq(0),
            ]

        # Memories: read in stage 0, so that the word is there in stage 1.
        m.submodules.references = references = DeepMemory(shape=value, depth=config.reference_depth)
        places = [address]
        own: list[Signal] = []  # the input of stages 1 to 4
        behind: list[Signal] = []  # whether it is one behind the line
        for stage in range(1, 5):
            places.append(Signal.like(address, name=f"address_{stage}", reset_less=True))
            own.append(Signal(value, name=f"input_{stage}", reset_less=True))
            behind.append(Signal(name=f"behind_{stage}", reset_less=True))
        turned = Signal(reset_less=True)
        left = [Signal.like(column, name=f"left_{stage}", reset_less=True) for stage in (1, 2)]
        m.d.comb += [references.read_en.eq(moves), references.read_address.eq(address)]
        other: Value = zero_point  # of the spatial difference
        if config.neighbour_depth:
            m.submodules.neighbours = neighbours = memory.Memory(
                shape=value, depth=config.neighbour_depth, init=[]
            )
            ring_w, ring_r = neighbours.write_port(), neighbours.read_port()
            written = Signal.like(neighbour, reset_less=True)
            # A ring of one input is written too late to be read.
            only = (self.distance == 1) & (entry.channels == 1)
            m.d.comb += [
                ring_r.en.eq(moves),
                ring_r.addr.eq(neighbour),
                ring_w.en.eq(moves & full[1] & ~behind[0]),
                ring_w.addr.eq(written),
                ring_w.data.eq(own[0]),
            ]
            with m.If(moves):
                m.d.sync += written.eq(neighbour)
            other = Mux(turned, Mux(only, own[1], ring_r.data), zero_point)

        # The words of block memories come late, so they have a cycle for themselves.
        neighboured = Signal(value, reset_less=True)
        differences = [Signal(delta, name=f"{kind}_3", reset_less=True) for kind in "dts"]
        chosen = Signal(delta, reset_less=True)
        stays = Signal()  # the temporal delta is not applied
        rests = Signal(reset_less=True)  # nor does the input become the reference
        nears = Signal(reset_less=True)  # a zero behind the line will be compared with this input
        kinds = ("dense", "temporal", "spatial", "behind")
        counted = {k: Signal(delta, name=f"{k}_4", reset_less=True) for k in kinds}
        counts_of = {k: Signal(name=f"counts_{k}", reset_less=True) for k in kinds}
        with m.If(moves):
            m.d.sync += [
                *(full[stage].eq(full[stage - 1]) for stage in range(1, 5)),
                own[0].eq(self.i.payload),
                behind[0].eq(emits),
                places[1].eq(address),
                turned.eq(around),
                left[0].eq(column),
                left[1].eq(left[0]),
                neighboured.eq(other),
                own[2].eq(own[1]),
                own[3].eq(own[2]),
                differences[0].eq(own[1] - zero_point),
                differences[1].eq(own[1] - references.read_data),
                differences[2].eq(Mux(behind[1], zero_point, own[1]) - neighboured),
                *(after.eq(now) for now, after in zip(behind, behind[1:], strict=False)),
                *(after.eq(now) for now, after in zip(places[1:], places[2:], strict=False)),
                nears.eq((left[1] <= self.distance) & (left[1] + entry.margin > self.distance)),
            ]
            with m.If(full[1]):
                m.d.sync += own[1].eq(own[0])
            applied = Mux(stays, 0, differences[1])
            m.d.sync += [
                chosen.eq(
                    Mux(is_spatial, differences[2], Mux(is_temporal, applied, differences[0]))
                ),
                counted["dense"].eq(differences[0]),
                counted["temporal"].eq(applied),
                counted["spatial"].eq(differences[2]),
                counted["behind"].eq(-differences[0]),
                *(counts_of[kind].eq(full[3] & ~behind[2]) for kind in kinds[:3]),
                counts_of["behind"].eq(full[3] & ~behind[2] & nears),
                rests.eq(is_temporal & stays),
            ]
        held = Signal()
        with m.If(self.begin):
            m.d.sync += [*(stage.eq(0) for stage in full[1:]), held.eq(self.holds)]
        m.d.comb += [
            # Two comparisons side by side are faster than one with the magnitude.
            stays.eq((differences[1] <= entry.threshold) & (differences[1] + entry.threshold >= 0)),
            references.write_en.eq(moves & full[4] & ~behind[3] & ~rests),
            references.write_address.eq(places[4]),
            references.write_data.eq(own[3]),
            self.o.valid.eq(full[4]),
            self.o.payload.eq(chosen),
        ]

        # Counts may lag behind: nobody reads them before the tile's last command is answered.
        longest = range(config.digits + 1)
        number = {k: Signal(longest, name=f"digits_{k}", reset_less=True) for k in kinds}
        for kind, digits in number.items():
            m.d.sync += digits.eq(0)
            with m.If(moves & full[4] & counts_of[kind]):
                m.d.sync += digits.eq(count_digits(config, counted[kind]))
        m.d.sync += [
            self.dense.eq(self.dense + number["dense"]),
            self.temporal.eq(self.temporal + Mux(held, number["temporal"], 0)),
            self.spatial.eq(
                self.spatial + Mux(entry.spatial, number["spatial"] + number["behind"], 0)
            ),
        ]
        with m.If(self.begin):
            m.d.sync += [
                *(digits.eq(0) for digits in number.values()),
                self.dense.eq(0),
                self.temporal.eq(0),
                self.spatial.eq(0),
            ]
        return m
