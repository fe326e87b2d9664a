"""The engine: memories, encoder, sequencer, lanes and array, at work on one layer-table entry."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ditto.hdl.array import Array
from ditto.hdl.config import Config
from ditto.hdl.difference_buffer import DifferenceBuffer
from ditto.hdl.encoder import Encoder
from ditto.hdl.lanes import Lanes
from ditto.hdl.protocol import COUNTERS, LayerEntry, Mode, Status
from ditto.hdl.sequencer import Sequencer

__all__ = ["Engine", "EngineSignature", "task_of"]


def task_of(config: Config) -> data.StructLayout:
    """Lay out a task: begin a tile of deltas for an entry, or run the entry in a mode."""
    return data.StructLayout({"run": 1, "entry": range(config.layers), "mode": Mode})


class EngineSignature(wiring.Signature):
    """What an engine offers to whoever commands it, seen from the engine.

    One task at a time: ``tasks`` takes the next when ``results`` has given the status of the last.
    Everything else may be used while no task is at work.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    tasks : In(stream.Signature(StructLayout))
        What to do, see :func:`task_of`.
    results : Out(stream.Signature(Status))
        How it ended.
    deltas : In(stream.Signature(8))
        Bytes of deltas for the entry whose tile was begun.
    encoding : Out(1)
        Deltas are still on their way to the difference buffer.
    layer_en, layer_address, layer_data
        Write port of the layer table.
    weight_en, weight_bank, weight_address, weight_data
        Write port of the weight banks.
    accumulator_en, accumulator_address, accumulator_data
        Write port of the accumulator buffer.
    read_en, read_address, read_data
        Read port of the accumulator buffer; data comes a cycle after ``read_en`` and stays.
    forget : In(1)
        Forget which entries hold accumulators, and the deltas.
    counters : Out(COUNTERS)
        See :class:`ditto.hdl.protocol.Counters`.
    """

    def __init__(self, config: Config) -> None:
        weights = data.ArrayLayout(signed(config.weight_bits), config.columns)
        accumulators = data.ArrayLayout(signed(config.accumulator_bits), config.columns)
        super().__init__(
            {
                "tasks": In(stream.Signature(task_of(config))),
                "results": Out(stream.Signature(Status)),
                "deltas": In(stream.Signature(8)),
                "encoding": Out(1),
                "layer_en": In(1),
                "layer_address": In(range(config.layers)),
                "layer_data": In(LayerEntry),
                "weight_en": In(1),
                "weight_bank": In(range(config.lanes)),
                "weight_address": In(range(config.weight_rows)),
                "weight_data": In(weights),
                "accumulator_en": In(1),
                "accumulator_address": In(range(config.accumulator_rows)),
                "accumulator_data": In(accumulators),
                "read_en": In(1),
                "read_address": In(range(config.accumulator_rows)),
                "read_data": Out(accumulators),
                "forget": In(1),
                "counters": Out(COUNTERS),
            }
        )


class Engine(wiring.Component):
    """Encode deltas and run layers; see :class:`EngineSignature` for the members.

    Parameters
    ----------
    config
        The device.
    """

    tasks: stream.Interface
    results: stream.Interface
    deltas: stream.Interface
    encoding: Signal
    layer_en: Signal
    layer_address: Signal
    layer_data: data.View
    weight_en: Signal
    weight_bank: Signal
    weight_address: Signal
    weight_data: data.View
    accumulator_en: Signal
    accumulator_address: Signal
    accumulator_data: data.View
    read_en: Signal
    read_address: Signal
    read_data: data.View
    forget: Signal
    counters: data.View

    def __init__(self, config: Config) -> None:
        self.config = config
        super().__init__(EngineSignature(config))

    def elaborate(self, platform: object) -> Module:
        """Build the engine."""
        m = Module()
        config = self.config
        m.submodules.encoder = encoder = Encoder(config)
        m.submodules.buffer = buffer = DifferenceBuffer(config)
        m.submodules.sequencer = sequencer = Sequencer(config)
        m.submodules.lanes = lanes = Lanes(config)
        m.submodules.array = array = Array(config)

        connect(m, flipped(self.deltas), encoder.i)
        connect(m, encoder.counts, buffer.counts_w)
        connect(m, sequencer.counts, buffer.counts_r)
        for lane in range(config.lanes):
            connect(m, encoder.items[lane], buffer.items_w[lane])
            connect(m, lanes.items[lane], buffer.items_r[lane])
            m.d.comb += [
                lanes.entries[lane].eq(sequencer.entries[lane]),
                array.items[lane].eq(buffer.items_r[lane].item),
            ]
        m.d.comb += [
            self.encoding.eq(encoder.busy),
            lanes.push.eq(sequencer.push),
            lanes.row.eq(sequencer.row),
            lanes.push_row.eq(sequencer.push_row),
            sequencer.free_row.eq(lanes.free_row),
            array.issue.eq(lanes.issue),
        ]

        for lane in range(config.lanes):
            m.submodules[f"weights_{lane}"] = bank = memory.Memory(
                shape=self.weight_data.shape(), depth=config.weight_rows, init=[]
            )
            write, read = bank.write_port(), bank.read_port()
            m.d.comb += [
                write.en.eq(self.weight_en & (self.weight_bank == lane)),
                write.addr.eq(self.weight_address),
                write.data.eq(self.weight_data),
                read.en.eq(array.weight_en),
                read.addr.eq(array.weight_address[lane]),
                array.weights[lane].eq(read.data),
            ]

        m.submodules.accumulators = accumulators = memory.Memory(
            shape=self.accumulator_data.shape(), depth=config.accumulator_rows, init=[]
        )
        write, read = accumulators.write_port(), accumulators.read_port()
        m.d.comb += [
            write.en.eq(array.write_en | self.accumulator_en),
            write.addr.eq(Mux(array.write_en, array.write_address, self.accumulator_address)),
            write.data.eq(Mux(array.write_en, array.write_data, self.accumulator_data)),
            read.en.eq(array.read_en | self.read_en),
            read.addr.eq(Mux(array.read_en, array.read_address, self.read_address)),
            array.read_data.eq(read.data),
            self.read_data.eq(read.data),
        ]

        m.submodules.layers = layers = memory.Memory(
            shape=unsigned(LayerEntry.as_shape().size), depth=config.layers, init=[]
        )
        table_w, table_r = layers.write_port(), layers.read_port()
        task = Signal(task_of(config), reset_less=True)
        entry = Signal(LayerEntry, reset_less=True)
        m.d.comb += [
            table_w.en.eq(self.layer_en),
            table_w.addr.eq(self.layer_address),
            table_w.data.eq(self.layer_data),
            table_r.addr.eq(task.entry),
        ]

        # Which entries hold accumulators, and the bits of the task's entry and of a written one.
        filled = Signal(config.layers)
        task_bit = Signal(config.layers)
        written_bit = Signal(config.layers)
        m.d.comb += [
            task_bit.eq(1 << task.entry),
            written_bit.eq(1 << self.layer_address),
        ]

        taps = Signal(8)
        sizes = [
            entry.positions,
            entry.channels,
            entry.channel_rows,
            entry.out_height,
            entry.out_width,
            entry.kernel_height,
            entry.kernel_width,
            entry.tiles,
        ]
        possible = Signal()
        m.d.comb += [
            taps.eq(entry.kernel_height * entry.kernel_width),
            possible.eq(
                Cat(size != 0 for size in sizes).all()
                & (taps <= config.list_depth)
                & (entry.channel_rows <= config.channel_rows)
            ),
            encoder.channels.eq(entry.channels),
            encoder.channel_rows.eq(entry.channel_rows),
            sequencer.entry.eq(entry),
            array.accumulator_base.eq(entry.accumulator_base),
            array.bias_base.eq(entry.bias_base),
            array.dense.eq(task.mode == Mode.DENSE),
        ]

        loaded = Signal()  # The difference buffer belongs to `tile` and may be run.
        tile = Signal(range(config.layers))
        left = Signal(range(config.accumulator_rows + 1))  # Rows before the run is cut off.
        running = Signal()

        def finish(status: Status) -> None:
            m.d.sync += self.results.payload.eq(status)
            if status is not Status.OK:
                m.d.sync += loaded.eq(0)
            m.next = "Report"

        with m.FSM():
            with m.State("Idle"):
                m.d.comb += self.tasks.ready.eq(1)
                m.d.sync += task.eq(self.tasks.payload)
                with m.If(self.tasks.valid):
                    m.next = "Look up"
            with m.State("Look up"):
                m.next = "Take entry"
            with m.State("Take entry"):
                m.d.sync += entry.eq(table_r.data)
                m.next = "Check"
            with m.State("Check"):
                with m.If(~possible):
                    finish(Status.BAD_LAYER)
                with m.Elif(~task.run):
                    m.d.comb += encoder.begin.eq(1)
                    m.d.sync += [loaded.eq(1), tile.eq(task.entry)]
                    finish(Status.OK)
                with m.Elif(
                    ~loaded
                    | (tile != task.entry)
                    | ~encoder.exact
                    | (encoder.positions != entry.positions)
                ):
                    finish(Status.NO_DELTAS)
                with m.Elif((task.mode != Mode.DENSE) & ~(filled & task_bit).any()):
                    finish(Status.NO_STATE)
                with m.Else():
                    m.d.comb += [sequencer.start.eq(1), array.begin.eq(1)]
                    m.d.sync += [left.eq(config.accumulator_rows), running.eq(1), loaded.eq(0)]
                    m.next = "Run"
            with m.State("Run"):
                with m.If(lanes.free_row):
                    m.d.sync += left.eq(left - 1)
                with m.If(array.done):
                    m.d.sync += [running.eq(0), filled.eq(filled | task_bit)]
                    finish(Status.OK)
                with m.Elif(left == 0):
                    # More rows than the accumulator buffer has: the entry makes no sense.
                    m.d.sync += [running.eq(0), filled.eq(filled & ~task_bit)]
                    m.d.comb += [sequencer.stop.eq(1), lanes.clear.eq(1), array.stop.eq(1)]
                    finish(Status.BAD_LAYER)
            with m.State("Report"):
                m.d.comb += self.results.valid.eq(1)
                with m.If(self.results.ready):
                    m.next = "Idle"
        with m.If(self.layer_en):
            m.d.sync += [filled.eq(filled & ~written_bit), loaded.eq(0)]
        with m.If(self.forget):
            m.d.sync += [filled.eq(0), loaded.eq(0)]

        counters = self.counters
        busy_lanes = Signal(range(config.lanes + 1))
        m.d.comb += [
            busy_lanes.eq(sum(lanes.issue.busy[lane] for lane in range(config.lanes))),
            counters.zero.eq(encoder.zero),
            counters.narrow.eq(encoder.narrow),
            counters.wide.eq(encoder.wide),
        ]
        with m.If(sequencer.start):
            m.d.sync += [
                counters[name].eq(0) for name in ("cycles", "items", "stall_row", "stall_item")
            ]
        with m.Elif(running):
            m.d.sync += counters.cycles.eq(counters.cycles + 1)
            with m.If(lanes.issue.valid):
                m.d.sync += [
                    counters.items.eq(counters.items + busy_lanes),
                    counters.stall_row.eq(counters.stall_row + (config.lanes - busy_lanes)),
                ]
            with m.Else():
                m.d.sync += counters.stall_item.eq(counters.stall_item + 1)
        with m.If(encoder.begin):
            m.d.sync += counters.stall_link.eq(0)
        with m.Elif(
            loaded & (encoder.positions < entry.positions) & encoder.i.ready & ~encoder.i.valid
        ):
            m.d.sync += counters.stall_link.eq(counters.stall_link + 1)
        return m
