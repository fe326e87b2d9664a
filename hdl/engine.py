"""The engine: layer table, encoder and clusters, at work on one layer-table entry."""

from functools import reduce
from operator import or_

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ditto.hdl.cluster import Cluster
from ditto.hdl.config import Config
from ditto.hdl.decisions import DecisionTable
from ditto.hdl.encoder import Encoder
from ditto.hdl.multiplier import stored
from ditto.hdl.protocol import COUNTERS, MOST_LEAD, LayerEntry, Mode, Status
from ditto.hdl.sequencer import geometry_of

__all__ = ["Engine", "EngineSignature", "task_of"]


def task_of(config: Config) -> data.StructLayout:
    """Lay out a task: begin a tile of deltas or inputs for an entry, or run the entry in a mode."""
    return data.StructLayout({"run": 1, "inputs": 1, "entry": range(config.layers), "mode": Mode})


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
        Bytes of deltas or inputs for the entry whose tile was begun.
    encoding : Out(1)
        Deltas are still on their way to the difference buffer, or what was learned is being
        forgotten.
    layer_en, layer_address, layer_data
        Write port of the layer table.
    weight_en, weight_address, weight_data
        Write port of the weight bank of ``cluster``.
    cluster : In
        Whose memory is written or read.
    read_en, read_address, read_data
        Read port of the accumulator buffers; data of ``cluster`` comes three cycles after
        ``read_en`` and stays while ``cluster`` does.
    decision_en, decision_address, decision_data
        Write port of the table of decisions, of 32 bits.
    reads_decisions : In(1)
        ``read_en`` and ``read_address`` read the table of decisions, too; the word is in
        ``decision`` from the next cycle on.
    decision : Out(32)
        What was read of the table of decisions.
    forget : In(1)
        Forget which entries hold accumulators, the deltas, and what was learned.
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
                "weight_address": In(range(config.weight_rows)),
                "weight_data": In(weights),
                "cluster": In(range(max(config.clusters, 2))),
                "read_en": In(1),
                "read_address": In(range(max(config.accumulator_rows, config.decision_words))),
                "read_data": Out(accumulators),
                "decision_en": In(1),
                "decision_address": In(range(config.decision_words)),
                "decision_data": In(32),
                "reads_decisions": In(1),
                "decision": Out(32),
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
    weight_address: Signal
    weight_data: data.View
    cluster: Signal
    read_en: Signal
    read_address: Signal
    read_data: data.View
    decision_en: Signal
    decision_address: Signal
    decision_data: Signal
    reads_decisions: Signal
    decision: Signal
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
        clusters = [Cluster(config, number) for number in range(config.clusters)]
        connect(m, flipped(self.deltas), encoder.i)
        m.d.comb += self.encoding.eq(encoder.busy)

        # What the host writes goes to one cluster, through a register on the long way there.
        word = Signal.like(self.weight_data, reset_less=True)
        row = Signal.like(self.weight_address, reset_less=True)
        m.d.sync += [
            word.eq(stored(config, self.weight_data)),
            row.eq(self.weight_address),
            # Clusters that are not selected give zeros.
            Value.cast(self.read_data).eq(reduce(or_, [Value.cast(c.read_data) for c in clusters])),
        ]
        entry = Signal(LayerEntry, reset_less=True)
        geometry = Signal(geometry_of(config), reset_less=True)
        task = Signal(task_of(config), reset_less=True)
        mode = Signal(Mode)  # of the task
        start, begin, stop = Signal(), Signal(), Signal()
        # Far away, these are heard a cycle later. A reset stops the clusters, too.
        started, begun, stopped = Signal(), Signal(), Signal(init=1)
        m.d.sync += [started.eq(start), begun.eq(begin), stopped.eq(stop)]
        for number, cluster in enumerate(clusters):
            m.submodules[f"cluster_{number}"] = cluster
            weight_en = Signal(name=f"weight_en_{number}")
            selected = Signal(name=f"selected_{number}")
            m.d.comb += selected.eq(self.cluster == number)
            m.d.sync += weight_en.eq(self.weight_en & selected)
            m.d.comb += [
                cluster.items.en.eq(encoder.items.en),
                cluster.items.address.eq(encoder.items.address),
                cluster.items.item.eq(encoder.items.item),
                cluster.places.en.eq(encoder.places.en),
                cluster.places.address.eq(encoder.places.address),
                cluster.places.place.eq(encoder.places.place),
                cluster.weight_en.eq(weight_en),
                cluster.weight_address.eq(row),
                cluster.weight_data.eq(word),
                cluster.selected.eq(selected),
                cluster.read_en.eq(self.read_en),
                cluster.read_address.eq(self.read_address),
                cluster.entry.eq(entry),
                cluster.geometry.eq(geometry),
                cluster.start.eq(started),
                cluster.begin.eq(begun),
                cluster.stop.eq(stopped),
                cluster.dense.eq(mode != Mode.TEMPORAL),
            ]

        m.submodules.layers = layers = memory.Memory(
            shape=unsigned(LayerEntry.as_shape().size), depth=config.layers, init=[]
        )
        table_w, table_r = layers.write_port(), layers.read_port()
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

        sizes = [
            entry.positions,
            entry.channels,
            entry.out_height,
            entry.out_width,
            entry.kernel_height,
            entry.kernel_width,
            entry.tiles,
            entry.split,
        ]
        taps = Signal(8, reset_less=True)
        rooms = [config.rows_ahead(max(n, 1)) - 1 for n in range(config.list_depth + 1)]
        possible = Signal()
        holds_state = Signal()  # the task's entry holds accumulators
        complete, incomplete = Signal(), Signal()  # the tile's positions are there
        loaded = Signal()  # The difference buffer belongs to `tile` and may be run.
        tile = Signal(task_of(config))
        tile_mode = Signal(Mode)
        blind = Signal()  # The entry held no accumulators before the tile.
        # A spatial tile has positions behind each line, and its lines begin before the image.
        extra, expected = Signal(20, reset_less=True), Signal(20, reset_less=True)
        lead = Signal(range(15 * config.clusters + 1), reset_less=True)  # in output positions
        lead_x = Signal(len(lead) + 4, reset_less=True)
        is_spatial = Signal(reset_less=True)
        may_be_spatial = Signal()
        height = entry.in_height[: config.positions.bit_length()]
        m.d.sync += [
            taps.eq(entry.kernel_height * entry.kernel_width),
            geometry.room.eq(Array(rooms)[taps]),
            geometry.tiles.eq(entry.tiles - 2),
            geometry.lines.eq(entry.out_height - 2),
            geometry.kernel_y.eq(entry.kernel_height - 2),
            geometry.kernel_x.eq(entry.kernel_width - 2),
            geometry.slot_last.eq(entry.channels * config.digits - 1),
            geometry.split_x.eq(entry.split * entry.stride_x),
            geometry.skew_x.eq(entry.skew * entry.stride_x),
            geometry.skew_back_x.eq(geometry.skew_x - geometry.split_x),
            is_spatial.eq(tile_mode == Mode.SPATIAL),
            extra.eq(Mux(is_spatial, height * entry.margin, 0)),
            expected.eq(entry.positions + extra),
            lead.eq(entry.lead * entry.split[: config.clusters.bit_length()]),
            lead_x.eq(lead * entry.stride_x),
            geometry.pitch.eq(entry.in_width + Mux(is_spatial, entry.margin, 0)),
            geometry.before_x.eq(entry.pad_left + Mux(is_spatial, lead_x, 0)),
            geometry.carries.eq(is_spatial),
            geometry.leads.eq(is_spatial & (entry.lead != 0)),
            geometry.end_back.eq(entry.split - Mux(is_spatial, lead, 0)),
        ]
        m.d.comb += may_be_spatial.eq(entry.spatial & (lead_x <= MOST_LEAD))
        m.d.sync += [
            possible.eq(
                Cat(size != 0 for size in sizes).all()
                & (taps <= config.list_depth)
                & Cat(getattr(entry, name) <= value for name, value in config.largest.items()).all()
                & (entry.skew < entry.split)
            ),
            holds_state.eq((filled & task_bit).any()),
            complete.eq(
                encoder.exact & (encoder.positions == expected) & (encoder.whole | ~tile.inputs)
            ),
            incomplete.eq(encoder.positions < expected),
        ]
        m.d.comb += [
            encoder.entry.eq(entry),
            encoder.distance.eq(geometry.split_x),
            encoder.inputs.eq(task.inputs),
            encoder.mode.eq(tile_mode),
            encoder.holds.eq(holds_state),
            encoder.open.eq(loaded),
        ]
        is_takeable = Signal()  # as a tile of inputs
        m.d.sync += is_takeable.eq(
            (entry.in_height != 0)
            & (entry.in_width != 0)
            & (~entry.spatial | ((entry.stride_x != 0) & (entry.margin <= geometry.split_x)))
            & ((task.mode != Mode.AUTO) | (entry.decision < config.layers))
        )
        ahead = Signal()  # The sequencers walk ahead of a run.
        running = Signal()
        steady = Cat(cluster.steady for cluster in clusters).all()
        ended = Cat(cluster.ended for cluster in clusters).all()
        overrun = Cat(cluster.overrun for cluster in clusters).any()
        with m.If(start):
            m.d.sync += ahead.eq(1)
        with m.Elif(stopped):
            m.d.sync += ahead.eq(0)

        table: DecisionTable | None = None
        learns = Signal()
        if config.reference_depth:
            m.submodules.decisions = table = DecisionTable(config)
            m.d.comb += [
                table.number.eq(entry.decision),
                table.learn.eq(learns),
                table.mode.eq(tile_mode),
                table.blind.eq(blind),
                table.decides.eq(entry.decides),
                table.cycles.eq(self.counters.cycles),
                table.digits[0].eq(encoder.dense),
                table.digits[1].eq(encoder.temporal),
                table.digits[2].eq(encoder.spatial),
                table.forget.eq(self.forget),
                table.write_en.eq(self.decision_en),
                table.write_address.eq(self.decision_address),
                table.write_data.eq(self.decision_data),
                table.reads.eq(self.reads_decisions),
                table.read_en.eq(self.read_en),
                table.read_address.eq(self.read_address),
                self.decision.eq(table.read_data),
                self.encoding.eq(encoder.busy | table.busy),
            ]

        def finish(status: Status) -> None:
            m.d.sync += self.results.payload.eq(status)
            if status is not Status.OK:
                m.d.sync += loaded.eq(0)
                m.d.comb += stop.eq(1)
            m.next = "Report"

        with m.FSM():
            with m.State("Idle"):
                m.d.comb += [
                    self.tasks.ready.eq(1),
                    start.eq(loaded & ~ahead & complete & ~self.tasks.valid),
                ]
                m.d.sync += task.eq(self.tasks.payload)
                with m.If(self.tasks.valid):
                    m.next = "Look up"
            with m.State("Look up"):
                m.next = "Take entry"
            with m.State("Take entry"):
                m.d.sync += entry.eq(table_r.data)
                m.next = "Derive"
            with m.State("Derive"):
                m.next = "Judge"
            with m.State("Judge"):
                m.d.sync += mode.eq(task.mode)
                with m.If(task.mode == Mode.AUTO):
                    with m.If(task.run):
                        m.d.sync += mode.eq(tile_mode)
                    with m.Elif(holds_state):
                        m.d.sync += mode.eq(table.decision.mode if table else Mode.DENSE)
                    with m.Else():
                        spatial = table.decision.spatial if table else Const(0)
                        m.d.sync += mode.eq(Mux(spatial, Mode.SPATIAL.value, Mode.DENSE.value))
                m.next = "Check"
            with m.State("Check"):
                is_other = (mode == Mode.SPATIAL) ^ (tile_mode == Mode.SPATIAL)
                is_other |= tile.inputs & (Value.cast(mode) != Value.cast(tile_mode))
                with m.If(
                    ~possible
                    | (mode == Mode.AUTO)
                    | ((mode == Mode.SPATIAL) & ~may_be_spatial)
                    | (task.inputs & ~task.run & ~is_takeable)
                ):
                    finish(Status.BAD_LAYER)
                with m.Elif(~task.run):
                    with m.If(task.inputs & (mode == Mode.TEMPORAL) & ~holds_state):
                        finish(Status.NO_STATE)
                    with m.Else():
                        m.d.comb += [encoder.begin.eq(1), stop.eq(1)]
                        m.d.sync += [
                            loaded.eq(1),
                            tile.eq(task),
                            tile_mode.eq(mode),
                            blind.eq(~holds_state),
                        ]
                        finish(Status.OK)
                        with m.If(task.inputs):
                            # References change with every input, accumulators with the run only.
                            m.d.sync += filled.eq(filled & ~task_bit)
                with m.Elif(~loaded | (tile.entry != task.entry) | ~complete | is_other):
                    finish(Status.NO_DELTAS)
                with m.Elif(~tile.inputs & (mode == Mode.TEMPORAL) & ~holds_state):
                    finish(Status.NO_STATE)
                with m.Else():
                    m.d.comb += start.eq(~ahead)
                    m.d.sync += loaded.eq(0)
                    m.next = "Start"
            with m.State("Start"):
                m.next = "Hear"
            with m.State("Hear"):
                m.next = "Walk ahead"
            with m.State("Walk ahead"):
                with m.If(steady):
                    m.d.comb += begin.eq(1)
                    m.d.sync += running.eq(1)
                    m.next = "Run"
            with m.State("Run"):
                with m.If(ended):
                    m.d.sync += [running.eq(0), filled.eq(filled | task_bit)]
                    m.d.comb += stop.eq(1)
                    finish(Status.OK)
                    if table is not None:
                        with m.If(tile.inputs & (tile.mode == Mode.AUTO)):
                            m.next = "Learn"
                with m.Elif(overrun):
                    # More rows than the accumulator buffer has: the entry makes no sense.
                    m.d.sync += [running.eq(0), filled.eq(filled & ~task_bit)]
                    finish(Status.BAD_LAYER)
            if table is not None:
                with m.State("Learn"):
                    m.d.comb += learns.eq(1)
                    m.next = "Wait"
                with m.State("Wait"):
                    with m.If(~table.busy):
                        m.next = "Report"
            with m.State("Report"):
                m.d.comb += self.results.valid.eq(1)
                with m.If(self.results.ready):
                    m.next = "Idle"
        with m.If(self.layer_en):
            m.d.sync += [filled.eq(filled & ~written_bit), loaded.eq(0)]
            m.d.comb += stop.eq(1)
        with m.If(self.forget):
            m.d.sync += [filled.eq(0), loaded.eq(0)]
            m.d.comb += stop.eq(1)

        counters = self.counters
        m.d.comb += [
            counters.zero.eq(encoder.zero),
            counters.narrow.eq(encoder.narrow),
            counters.wide.eq(encoder.wide),
            counters.digits_dense.eq(encoder.dense),
            counters.digits_temporal.eq(encoder.temporal),
            counters.digits_spatial.eq(encoder.spatial),
        ]
        # Lane cycles are added up a cycle late, which keeps the sums off the lanes' path.
        added = {
            name: Signal(range(config.clusters * config.lanes + 1), name=name)
            for name in ("items", "stall_row", "stall_item", "stall_cluster")
        }
        # Clusters begin two cycles late, and what they say is a cycle old.
        late = [running]
        for age in range(1, 4):
            late.append(Signal(name=f"running_{age}"))
            m.d.sync += late[age].eq(late[age - 1])
        counting = Cat(late).all() & ~ended
        work = [cluster.working for cluster in clusters]
        idle = [~cluster.working & ~cluster.ended for cluster in clusters]
        over = [~cluster.working & cluster.ended for cluster in clusters]
        busy = [cluster.busy[lane] for cluster in clusters for lane in range(config.lanes)]
        for name, signal in added.items():
            m.d.sync += signal.eq(0)
            m.d.sync += counters[name].eq(counters[name] + signal)
        with m.If(counting):
            m.d.sync += [
                counters.cycles.eq(counters.cycles + 1),
                added["items"].eq(sum(busy)),
                added["stall_row"].eq(config.lanes * sum(work) - sum(busy)),
                added["stall_item"].eq(config.lanes * sum(idle)),
                added["stall_cluster"].eq(config.lanes * sum(over)),
            ]
        with m.If(begin):
            m.d.sync += [counters[name].eq(0) for name in ("cycles", *added)]
            m.d.sync += counters.mode.eq(Value.cast(mode))
        with m.If(encoder.begin):
            m.d.sync += counters.stall_link.eq(0)
        with m.Elif(loaded & incomplete & encoder.i.ready & ~encoder.i.valid):
            m.d.sync += counters.stall_link.eq(counters.stall_link + 1)
        return m
