"""Command machine: carries out the commands of :mod:`ditto.hdl.protocol` and answers them."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value, ValueLike
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from ditto.hdl.config import Config
from ditto.hdl.engine import EngineSignature
from ditto.hdl.framing import PACKET
from ditto.hdl.protocol import (
    COUNTERS,
    NO_BUILD,
    CommandHeader,
    Decision,
    LayerEntry,
    Mode,
    Opcode,
    ResponseHeader,
    Space,
    Status,
    identity,
    size,
)

__all__ = ["CommandMachine"]


def _bytes(bits: int) -> int:
    return -(-bits // 8)


class CommandMachine(wiring.Component):
    """Carry out one command after another, and answer each.

    Takes and gives a byte a cycle; a command is taken in full before it is answered, and the next
    one after that. A body that is shorter than a header is not answered.

    Parameters
    ----------
    config
        The device.
    build
        What it was made of, see :func:`ditto.hdl.protocol.identity`.

    Members
    -------
    i : In(stream.Signature(PACKET))
        Bodies of command frames, which have passed their check.
    o : Out(stream.Signature(PACKET))
        Bodies of response frames.
    engine : In(EngineSignature)
        What the commands are carried out on.
    """

    i: stream.Interface
    o: stream.Interface
    engine: wiring.PureInterface

    def __init__(self, config: Config, build: bytes = NO_BUILD) -> None:
        self.config = config
        self.build = build
        super().__init__(
            {
                "i": In(stream.Signature(PACKET)),
                "o": Out(stream.Signature(PACKET)),
                "engine": In(EngineSignature(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the command machine."""
        m = Module()
        config = self.config
        engine = self.engine
        header = Signal(CommandHeader, reset_less=True)
        status = Signal(Status)

        # Headers are compared with that of the last command in sequence by the byte, as they come.
        # They are kept in turn in the halves of a memory; a command in sequence keeps its half.
        session = Signal()
        sequence = Signal(16, reset_less=True)  # of the last command in sequence
        outcome = Signal(Status)  # of that command, should it be repeated
        half = Signal()  # that has its header
        repeated = Signal()
        place_bits = (size(CommandHeader) - 1).bit_length()
        m.submodules.headers = headers = memory.Memory(shape=8, depth=2 << place_bits, init=[])
        headers_w, headers_r = headers.write_port(), headers.read_port(domain="comb")

        # Words are taken by the byte into the top of a register, low byte first.
        layer_bits = LayerEntry.as_shape().size
        weight_bits = config.columns * config.weight_bits
        accumulator_bits = config.columns * config.accumulator_bits
        word_bytes = {
            Space.LAYERS: _bytes(layer_bits),
            Space.WEIGHTS: _bytes(weight_bits),
        }
        accumulator_bytes = _bytes(accumulator_bits)
        depths = {
            Space.LAYERS: config.layers,
            Space.WEIGHTS: config.weight_rows,
        }
        # Without a reference buffer there is no table of decisions either.
        decisions = [Space.DECISIONS] if config.reference_depth else []
        for space in decisions:
            word_bytes[space], depths[space] = size(Decision), config.decision_words
        word_in = Signal(8 * max(word_bytes.values()), reset_less=True)
        address = Signal(17, reset_less=True)
        cluster = Signal.like(engine.cluster, reset_less=True)
        counters_bytes = COUNTERS.size // 8
        count = Signal(range(max(accumulator_bytes, counters_bytes, *word_bytes.values()) + 1))
        stored = Signal()

        def top(space: Space, bits: int) -> Value:
            start = len(word_in) - 8 * word_bytes[space]
            return word_in[start : start + bits]

        fits = Signal()
        last_byte = Signal()
        m.d.comb += [
            engine.layer_data.eq(top(Space.LAYERS, layer_bits)),
            engine.layer_address.eq(address),
            engine.layer_en.eq(stored & fits & (header.space == Space.LAYERS)),
            engine.weight_data.eq(top(Space.WEIGHTS, weight_bits)),
            engine.weight_address.eq(address),
            engine.cluster.eq(cluster),
            engine.weight_en.eq(stored & fits & (header.space == Space.WEIGHTS)),
        ]
        for space in decisions:
            m.d.comb += [
                engine.decision_data.eq(top(space, 8 * size(Decision))),
                engine.decision_address.eq(address),
                engine.decision_en.eq(stored & fits & (header.space == space)),
            ]
        for space, depth in depths.items():
            with m.If(header.space == space):
                m.d.comb += [
                    fits.eq(address < depth),
                    last_byte.eq(count == word_bytes[space] - 1),
                ]
        m.d.sync += stored.eq(0)
        with m.If(stored):
            m.d.sync += address.eq(address + 1)
            with m.If(~fits):
                m.d.sync += status.eq(Status.BAD_ADDRESS)

        # Of a word that is given, the next byte is on its way while one is taken.
        next_byte, byte = Signal(8), Signal(8, reset_less=True)
        word_size = Signal.like(count)
        reads_decisions = Signal()
        end = Signal(17)  # of the words of READ
        last_word = Signal()
        m.d.comb += [
            next_byte.eq(engine.read_data.as_value().word_select(count, 8)),
            word_size.eq(header.size),
            end.eq(header.address + header.count),
            last_word.eq((address == end) & ((cluster == config.clusters - 1) | reads_decisions)),
        ]
        with m.If(reads_decisions):
            m.d.comb += next_byte.eq(engine.decision.word_select(count[:2], 8))
        with m.If(header.op != Opcode.READ):
            m.d.comb += [
                next_byte.eq(engine.counters.as_value().word_select(count, 8)),
                word_size.eq(counters_bytes),
                last_word.eq(1),
            ]
        answer_of_identify = identity(config.digest, config.pack(), self.build)
        m.submodules.rom = rom = memory.Memory(
            shape=8, depth=len(answer_of_identify), init=answer_of_identify
        )
        rom_r = rom.read_port(domain="comb")
        response = Signal(ResponseHeader)
        m.d.comb += [
            response.sequence.eq(header.sequence),
            response.op.eq(header.op),
            response.status.eq(status),
            engine.read_address.eq(address),
            engine.reads_decisions.eq(reads_decisions),
        ]
        asks_decisions = (header.op == Opcode.READ) & (header.space == Space.DECISIONS)
        if decisions:
            m.d.comb += reads_decisions.eq(asks_decisions)

        in_range = Signal()
        m.d.comb += in_range.eq(
            (header.count != 0)
            & Mux(reads_decisions, end <= config.decision_words, end <= config.accumulator_rows)
            & (header.size != 0)
            & Mux(
                reads_decisions,
                header.size <= size(Decision),
                header.size <= accumulator_bytes,
            )
        )
        more = Signal()  # the body has not been taken in full

        def answer(result: ValueLike) -> None:
            m.d.sync += status.eq(result)
            m.next = "Drain"

        def keep() -> None:
            m.d.sync += [half.eq(~half), sequence.eq(header.sequence), repeated.eq(1)]

        deltas = header.space == Space.DELTAS
        tiles = [Space.DELTAS, Space.INPUTS] if config.reference_depth else [Space.DELTAS]
        is_known_mode = Cat(header.mode == mode for mode in Mode).any()

        def perform() -> None:
            keep()
            m.d.sync += status.eq(Status.OK)
            with m.Switch(header.op):
                with m.Case(Opcode.RESET):
                    m.d.comb += engine.forget.eq(1)
                    m.next = "Drain"
                with m.Case(Opcode.WRITE):
                    m.d.sync += [address.eq(header.address), count.eq(0)]
                    with m.Switch(header.space):
                        with m.Case(Space.LAYERS, *decisions):
                            m.next = "Store"
                        with m.Case(Space.WEIGHTS):
                            m.d.sync += cluster.eq(header.bank)
                            m.next = "Store"
                            with m.If(header.bank >= config.clusters):
                                answer(Status.BAD_COMMAND)
                        with m.Case(*tiles):
                            m.next = "Begin task"
                            with m.If(header.address >= config.layers):
                                answer(Status.BAD_ADDRESS)
                            with m.Elif(header.count != 0):
                                m.next = "Encode"
                            with m.Elif(~is_known_mode | (deltas & (header.mode == Mode.AUTO))):
                                answer(Status.BAD_COMMAND)
                        with m.Default():
                            answer(Status.BAD_COMMAND)
                with m.Case(Opcode.RUN):
                    m.next = "Begin task"
                    with m.If(~is_known_mode):
                        answer(Status.BAD_COMMAND)
                    with m.Elif(header.address >= config.layers):
                        answer(Status.BAD_ADDRESS)
                with m.Case(Opcode.READ):
                    answer(Mux(in_range, Status.OK.value, Status.BAD_ADDRESS.value))
                    if not decisions:
                        with m.If(asks_decisions):
                            answer(Status.BAD_COMMAND)
                with m.Case(Opcode.COUNTERS):
                    m.next = "Drain"
                with m.Default():
                    answer(Status.BAD_COMMAND)

        m.d.comb += [
            engine.tasks.p.run.eq(header.op == Opcode.RUN),
            engine.tasks.p.entry.eq(header.address),
            engine.tasks.p.mode.eq(header.mode),
            engine.deltas.payload.eq(self.i.p.data),
            headers_w.addr.eq(Cat(count[:place_bits], ~half)),
            headers_w.data.eq(self.i.p.data),
            headers_r.addr.eq(Cat(count[:place_bits], half)),
        ]
        if config.reference_depth:
            m.d.comb += engine.tasks.p.inputs.eq(header.space == Space.INPUTS)
        with m.FSM():
            with m.State("Header"):
                m.d.comb += [self.i.ready.eq(1), headers_w.en.eq(self.i.valid)]
                with m.If(self.i.valid):
                    m.d.sync += [
                        repeated.eq((repeated | (count == 0)) & (headers_r.data == self.i.p.data)),
                        header.eq(Cat(header.as_value()[8:], self.i.p.data)),
                        count.eq(count + 1),
                        more.eq(~self.i.p.last),
                    ]
                    with m.If(count == size(CommandHeader) - 1):
                        m.next = "Decide"
                    with m.Elif(self.i.p.last):
                        m.d.sync += count.eq(0)
            with m.State("Decide"):
                with m.If(header.op == Opcode.IDENTIFY):
                    keep()
                    m.d.sync += session.eq(1)
                    answer(Status.OK)
                with m.Elif(~session):
                    answer(Status.NO_SESSION)
                with m.Elif(repeated):
                    answer(outcome)
                with m.Elif(header.sequence != (sequence + 1)[:16]):
                    answer(Status.BAD_SEQUENCE)
                with m.Else():
                    perform()
            with m.State("Begin task"):
                m.d.comb += engine.tasks.valid.eq(1)
                with m.If(engine.tasks.ready):
                    m.next = "End task"
            with m.State("End task"):
                m.d.comb += engine.results.ready.eq(1)
                with m.If(engine.results.valid):
                    m.d.sync += status.eq(engine.results.payload)
                    m.next = "Drain"
                    with m.If((header.op == Opcode.WRITE) & (engine.results.payload == Status.OK)):
                        m.next = "Encode"
            with m.State("Encode"):
                m.d.comb += [
                    engine.deltas.valid.eq(more & self.i.valid),
                    self.i.ready.eq(more & engine.deltas.ready),
                ]
                with m.If(more):
                    with m.If(self.i.valid & engine.deltas.ready):
                        m.d.sync += more.eq(~self.i.p.last)
                with m.Elif(~engine.encoding):
                    m.next = "Drain"
            with m.State("Store"):
                m.d.comb += self.i.ready.eq(more)
                with m.If(more & self.i.valid):
                    m.d.sync += [
                        word_in.eq(Cat(word_in[8:], self.i.p.data)),
                        count.eq(Mux(last_byte, 0, count + 1)),
                        stored.eq(last_byte),
                        more.eq(~self.i.p.last),
                    ]
                with m.Elif(~more & ~stored):
                    m.next = "Drain"
                    with m.If(count != 0):
                        answer(Status.BAD_ADDRESS)
            with m.State("Drain"):
                m.d.comb += self.i.ready.eq(more)
                m.d.sync += count.eq(0)
                with m.If(more):
                    with m.If(self.i.valid):
                        m.d.sync += more.eq(~self.i.p.last)
                with m.Elif(~engine.encoding):
                    with m.If(repeated & session):
                        m.d.sync += outcome.eq(status)
                    m.next = "Respond"
            with m.State("Respond"):
                none = (
                    (status != Status.OK)
                    | (header.op == Opcode.RESET)
                    | (header.op == Opcode.WRITE)
                )
                m.d.comb += [
                    self.o.valid.eq(1),
                    self.o.p.data.eq(response.as_value().word_select(count[:2], 8)),
                    self.o.p.last.eq((count == size(ResponseHeader) - 1) & none),
                ]
                with m.If(self.o.ready):
                    m.d.sync += count.eq(count + 1)
                    with m.If(count == size(ResponseHeader) - 1):
                        m.d.sync += [count.eq(0), address.eq(header.address)]
                        with m.If(none):
                            m.next = "Header"
                        with m.Elif(header.op == Opcode.IDENTIFY):
                            m.d.sync += rom_r.addr.eq(0)
                            m.next = "Identity"
                        with m.Elif(header.op == Opcode.READ):
                            m.d.sync += cluster.eq(0)
                            m.next = "Fetch"
                        with m.Else():
                            m.next = "Load"
            with m.State("Identity"):
                m.d.comb += [
                    self.o.valid.eq(1),
                    self.o.p.data.eq(rom_r.data),
                    self.o.p.last.eq(rom_r.addr == rom.depth - 1),
                ]
                with m.If(self.o.ready):
                    m.d.sync += rom_r.addr.eq(rom_r.addr + 1)
                    with m.If(self.o.p.last):
                        m.next = "Header"
            with m.State("Fetch"):
                m.d.comb += engine.read_en.eq(1)
                m.d.sync += [address.eq(address + 1), count.eq(0)]
                m.next = "Select"
            with m.State("Select"):
                m.next = "Merge"
            with m.State("Merge"):
                m.next = "Load"
            with m.State("Load"):
                m.d.sync += [byte.eq(next_byte), count.eq(count + 1)]
                m.next = "Word"
            with m.State("Word"):
                m.d.comb += [
                    self.o.valid.eq(1),
                    self.o.p.data.eq(byte),
                    self.o.p.last.eq((count == word_size) & last_word),
                ]
                with m.If(self.o.ready):
                    m.d.sync += [byte.eq(next_byte), count.eq(count + 1)]
                    with m.If(count == word_size):
                        m.d.sync += count.eq(0)
                        m.next = "Fetch"
                        with m.If(last_word):
                            m.next = "Header"
                        with m.Elif(address == end):
                            m.d.sync += [address.eq(header.address), cluster.eq(cluster + 1)]
        return m
