"""Table of decisions: which mode the entries of a layer take next."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ditto.hdl.config import Config
from ditto.hdl.protocol import COUNT_BITS, Decision, Mode, Rule

__all__ = ["DecisionTable"]


class DecisionTable(wiring.Component):
    """Hold decisions, and learn from runs; see :class:`ditto.hdl.protocol.Rule` for how.

    Its words are those of :attr:`ditto.hdl.protocol.Space.DECISIONS`. Everything may be used while
    the table is not busy.

    Parameters
    ----------
    config
        The device, which has a reference buffer.

    Members
    -------
    number : In(range(layers))
        The decision at hand.
    decision : Out(Decision)
        What is held of it, a cycle later.
    learn : In(1)
        An entry of the decision has run. What follows is stable until the table is no longer busy.
    mode : In(Mode)
        Its mode.
    blind : In(1)
        It held no accumulators before.
    decides : In(1)
        It was the last one of the step.
    cycles : In(32)
        What the run took.
    digits : In(ArrayLayout(32, 3))
        What the inputs have in each mode.
    forget : In(1)
        Forget what was learned.
    busy : Out(1)
        Learning or forgetting.
    write_en, write_address, write_data
        Write port.
    reads, read_en, read_address, read_data
        Read port, which is used while ``reads``; data comes a cycle after ``read_en`` and stays.
    """

    number: Signal
    decision: data.View
    learn: Signal
    mode: Signal
    blind: Signal
    decides: Signal
    cycles: Signal
    digits: data.View
    forget: Signal
    busy: Signal
    write_en: Signal
    write_address: Signal
    write_data: Signal
    reads: Signal
    read_en: Signal
    read_address: Signal
    read_data: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        words = range(config.decision_words)
        super().__init__(
            {
                "number": In(range(self.config.layers)),
                "decision": Out(Decision),
                "learn": In(1),
                "mode": In(Mode),
                "blind": In(1),
                "decides": In(1),
                "cycles": In(32),
                "digits": In(data.ArrayLayout(32, 3)),
                "forget": In(1),
                "busy": Out(1),
                "write_en": In(1),
                "write_address": In(words),
                "write_data": In(32),
                "reads": In(1),
                "read_en": In(1),
                "read_address": In(words),
                "read_data": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the table."""
        m = Module()
        m.submodules.words = words = memory.Memory(
            shape=unsigned(32), depth=self.config.decision_words, init=[]
        )
        w, r = words.write_port(), words.read_port()
        place = Signal(2)  # of the words of a decision
        walk = Signal(range(self.config.decision_words))
        word = Signal(COUNT_BITS, reset_less=True)  # as it was read
        known = Signal(Decision, reset_less=True)
        next_mode = Signal(2)
        is_adaptive = Signal()
        forgets, writes, adds = Signal(), Signal(), Signal()
        total = Signal(COUNT_BITS, reset_less=True)
        marked = Signal(Decision)  # written in place of a sum
        at = Cat(place, self.number)
        m.d.comb += [
            is_adaptive.eq(known.rule == Rule.ADAPTIVE),
            r.addr.eq(Mux(self.reads, self.read_address, Mux(forgets, walk, at))),
            r.en.eq(~self.reads | self.read_en),
            self.read_data.eq(r.data),
            self.decision.eq(r.data),
            w.en.eq(self.write_en | writes),
            w.addr.eq(Mux(forgets, walk, at)),
            w.data.eq(Mux(adds, total, marked)),
        ]
        with m.If(self.write_en):
            m.d.comb += [w.addr.eq(self.write_address), w.data.eq(self.write_data)]
        m.d.sync += word.eq(r.data)

        # What the run adds to the word of a mode.
        mode = Signal(2)
        amount = Signal(COUNT_BITS, reset_less=True)
        amounts = Array([*(self.digits[kind] for kind in range(3)), self.cycles])
        m.d.comb += mode.eq(place - 1)
        m.d.sync += [
            amount.eq(amounts[Mux(is_adaptive, mode, 3)]),
            total.eq(word + amount),
        ]
        with m.If(~is_adaptive & ((Value.cast(self.mode) != mode) | (known.steps == 2))):
            m.d.sync += amount.eq(0)

        # The decision: the least word that is below the bar.
        judges = Signal()
        bar = Signal(COUNT_BITS, reset_less=True)
        rest = Mux(known.spatial, Mode.SPATIAL.value, Mode.DENSE.value)
        present = Signal(2)
        is_allowed = Signal()
        m.d.comb += [
            present.eq(Mux(is_adaptive, known.mode, rest)),
            is_allowed.eq(
                Mux(
                    is_adaptive,
                    (mode != Mode.SPATIAL.value) | known.spatial,
                    mode == Mode.TEMPORAL.value,
                )
            ),
        ]

        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))
            with m.State("Idle"):
                m.d.sync += [place.eq(0), walk.eq(0), judges.eq(0), known.eq(r.data)]
                with m.If(self.forget):
                    m.next = "Forget"
                with m.Elif(self.learn):
                    m.next = "Take"
            with m.State("Take"):
                # Known since the run was looked up.
                m.d.sync += place.eq(1)
                m.next = "Read"
                with m.If((known.rule != Rule.DEFO) & ~is_adaptive):
                    m.next = "Idle"
            with m.State("Read"):
                m.next = "Hold"
            with m.State("Hold"):
                m.next = "Add"
            with m.State("Add"):
                m.next = "Write"
            with m.State("Write"):
                m.d.comb += [writes.eq(~judges | is_adaptive), adds.eq(~judges)]
                with m.If(judges & is_allowed & (word < bar)):
                    m.d.sync += [bar.eq(word), next_mode.eq(mode)]
                m.d.sync += place.eq(place + 1)
                m.next = "Read"
                with m.If(place == 3):
                    m.next = "Mark"
                    with m.If(self.decides & ~judges):
                        m.d.sync += [judges.eq(1), place.eq(present + 1)]
                        m.next = "Read present"
            with m.State("Read present"):
                m.next = "Hold present"
            with m.State("Hold present"):
                m.next = "Set bar"
            with m.State("Set bar"):
                m.d.sync += [
                    bar.eq(word - Mux(is_adaptive, word >> 6, 0)),
                    next_mode.eq(present),
                    place.eq(1),
                ]
                m.next = "Read"
            with m.State("Mark"):
                blind = known.blind | self.blind
                m.d.comb += [marked.eq(known), marked.blind.eq(blind & ~judges), writes.eq(1)]
                with m.If(judges):
                    with m.If(known.steps != 2):
                        m.d.comb += marked.steps.eq(known.steps + 1)
                    with m.If(Mux(is_adaptive, blind, known.steps == 0)):
                        m.d.comb += marked.mode.eq(Mode.TEMPORAL.value)
                    with m.Elif(is_adaptive | (known.steps == 1)):
                        m.d.comb += marked.mode.eq(next_mode)
                m.next = "Idle"
            with m.State("Forget"):
                m.d.comb += forgets.eq(1)
                m.next = "Rewrite"
            with m.State("Rewrite"):
                m.d.comb += [forgets.eq(1), writes.eq(1)]
                with m.If(walk[:2] == 0):
                    m.d.comb += [marked.eq(r.data), marked.steps.eq(0), marked.blind.eq(0)]
                m.d.sync += walk.eq(walk + 1)
                m.next = "Forget"
                with m.If(walk == words.depth - 1):
                    m.next = "Idle"
        return m
