# amaranth: UnusedElaboratable=no
"""Table of decisions: what learning, forgetting and writing do to it, for any counts."""

from typing import Any

import pytest
from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.hdl._ast import Initial
from amaranth.lib.data import View

from ditto.hdl import decisions
from ditto.hdl.config import Config
from ditto.hdl.protocol import DECISION_WORDS, Decision, Mode, Rule
from ditto.sim.formal import Proof, mutant

CONFIG = Config(layers=2, reference_depth=1)
STATES = (
    *("Idle", "Forget", "Take", "Read", "Hold", "Add", "Write", "Mark"),
    *("Read present", "Hold present", "Set bar", "Rewrite"),
)
LONGEST = 29
"""Cycles that learning takes at most; forgetting all is shorter, in so small a table."""


def can(decision: Any, mode: Value) -> Value:
    """Tell whether the entries of a decision can have a mode."""
    return (mode < Mode.SPATIAL.value) | ((mode == Mode.SPATIAL.value) & decision.spatial)


class DecisionTableProof(Proof):
    """What becomes of one decision, any one, by whatever happens to it or to another one."""

    def specify(self, m: Module) -> None:
        dut = self.dut
        self.one = one = self.constant(range(dut.config.layers), "one")
        held = [self.internal(32, f"dut.words[{at}]") for at in range(dut.config.decision_words)]
        places = [Cat(Const(at, 2), one) for at in range(DECISION_WORDS)]
        self.words = words = [Signal(32, name=f"word_{at}") for at in range(DECISION_WORDS)]
        m.d.comb += [word.eq(Array(held)[place]) for word, place in zip(words, places, strict=True)]
        self.first: Any = View(Decision, words[0])
        first = self.first
        self.assume(Value.cast(dut.mode) <= Mode.SPATIAL.value)

        # One thing at a time. What is learned has been there for some cycles, and stays.
        things: Any = Cat(dut.learn, dut.forget, dut.write_en, dut.reads)
        given = Cat(dut.number, Value.cast(dut.mode), dut.blind, dut.decides, dut.cycles)
        given = Cat(given, Value.cast(dut.digits))
        self.before_given = before_given = Signal.like(given)
        self.rests = rests = Signal(range(4))
        m.d.sync += before_given.eq(given)
        with m.If(dut.busy | things.any() | (given != before_given)):
            m.d.sync += rests.eq(0)
        with m.Elif(rests != 3):
            m.d.sync += rests.eq(rests + 1)
        self.assume((things == 0) | (~dut.busy & ((things & (things - 1)[: len(things)]) == 0)))
        self.assume(~dut.learn | ((rests == 3) & (given == before_given)))
        self.assume(~dut.busy | (given == before_given))

        # It ends.
        self.late = late = Signal(range(64))
        m.d.sync += late.eq(Mux(dut.busy, late + 1, 0))
        self.require(~dut.busy | (late < LONGEST))

        # The latest thing that happened, and the words before it.
        self.known, self.learns, self.forgets = Signal(), Signal(), Signal()
        self.is_own, self.decides, self.blind = Signal(), Signal(), Signal()
        known, learns, forgets = self.known, self.learns, self.forgets
        is_own, decides, blind = self.is_own, self.decides, self.blind
        self.before = before = [Signal(32, name=f"before_{at}") for at in range(DECISION_WORDS)]
        target, data = Signal.like(dut.write_address), Signal(32)
        with m.If(dut.learn | dut.forget | dut.write_en):
            m.d.sync += [
                known.eq(1),
                learns.eq(dut.learn),
                forgets.eq(dut.forget),
                target.eq(dut.write_address),
                data.eq(dut.write_data),
                *(old.eq(new) for old, new in zip(before, words, strict=True)),
                is_own.eq(dut.number == one),
                decides.eq(dut.decides),
                blind.eq(dut.blind | first.blind),
            ]
        self.was: Any = View(Decision, before[0])
        was = self.was
        is_adaptive, is_defo = was.rule == Rule.ADAPTIVE, was.rule == Rule.DEFO
        self.kept = kept = Cat(words) == Cat(before)
        settled = known & ~dut.busy
        with m.If(settled & ~learns & ~forgets):
            for word, old, place in zip(words, before, places, strict=True):
                self.require(word == Mux(target == place, data, old))
        with m.If(settled & forgets):
            self.require((first.steps == 0) & (first.blind == 0) & (first.mode == was.mode))
            self.require(Cat(words[1:]) == 0)
        with m.If(settled & (learns | forgets)):
            # These are the host's.
            self.require((first.rule == was.rule) & (first.spatial == was.spatial))
            self.require(first.reserved == was.reserved)
        with m.If(settled & learns & ~(is_own & (is_adaptive | is_defo))):
            self.require(kept)
        with m.If(settled & learns & is_own & (is_adaptive | is_defo)):
            # Whatever runs there are in a step, only the last one decides.
            self.require(decides | (first.mode == was.mode))
            steps = Mux(decides & (was.steps != 2), (was.steps + 1)[:2], was.steps)
            self.require(first.steps == steps)
            self.require(first.blind == Mux(decides, 0, blind))
            self.require(~(decides & is_adaptive) | (Cat(words[1:]) == 0))
            # A mode that the entries cannot have is the host's mistake.
            self.require(can(first, first.mode) | ~can(was, was.mode))
            starts = Mux(is_adaptive, blind, was.steps == 0)
            self.require(~(decides & starts) | (first.mode == Mode.TEMPORAL.value))
            is_over = is_defo & (was.steps > 1)
            self.require(~is_over | (first.mode == was.mode))

        # What is read is what is held, and AUTO takes the mode from there.
        asked, shown = Signal(), Signal(32)
        m.d.sync += [
            asked.eq(dut.reads & dut.read_en & ~dut.busy),
            shown.eq(Array(held)[dut.read_address]),
        ]
        self.require(~asked | (dut.read_data == shown))
        self.looked = looked = Signal()
        m.d.sync += looked.eq(~dut.busy & ~things.any() & (dut.number == one))
        self.require(~(looked & (rests >= 2)) | (Value.cast(dut.decision) == words[0]))

        self.cover(settled & forgets)
        self.cover(settled & learns & is_own)

    def support(self, m: Module) -> None:
        dut, late, first, was = self.dut, self.late, self.first, self.was
        state = self.internal(4, "dut.fsm_state")
        at = {name: state == code for code, name in enumerate(STATES)}
        self.require(state < len(STATES))
        place, walk = self.internal(2, "dut.place"), self.internal(3, "dut.walk")
        judges, next_mode = self.internal(1, "dut.judges"), self.internal(2, "dut.next_mode")
        known: Any = View(Decision, self.internal(32, "dut.known"))
        data = self.internal(32, "dut.r__data")
        self.require((self.rests == 0) | ((place == 0) & at["Idle"]))
        number_before = self.before_given[: len(dut.number)]
        self.require((self.rests == 0) | (self.looked == (number_before == self.one)))

        # How long it has been busy.
        forgets = at["Forget"] | at["Rewrite"]
        learns = ~(at["Idle"] | forgets)
        self.require(~at["Take"] | (late == 0))
        for offset, name in enumerate(("Read", "Hold", "Add", "Write")):
            began = Mux(judges, 16, 1) + offset
            self.require(~at[name] | ((place != 0) & (late == began + 4 * (place - 1))))
        for offset, name in enumerate(("Read present", "Hold present", "Set bar")):
            self.require(~at[name] | (judges & (late == 13 + offset)))
        self.require(~at["Mark"] | ((place == 0) & (late == Mux(judges, 28, 13))))
        self.require(~forgets | (late == 2 * walk + at["Rewrite"]))

        # Learning.
        self.require(~learns | (self.known & self.learns & ~self.forgets))
        with m.If(learns):
            self.require(self.is_own == (dut.number == self.one))
            self.require(self.is_own | self.kept)
            self.require(~self.is_own | (self.words[0] == self.before[0]))
            self.require(~self.is_own | (Value.cast(known) == self.before[0]))
            self.require((self.decides == dut.decides) & (~judges | self.decides))
            self.require(~self.is_own | (self.blind == (dut.blind | was.blind)))
            is_adaptive = known.rule == Rule.ADAPTIVE
            self.require(at["Take"] | is_adaptive | (known.rule == Rule.DEFO))
            self.require(~at["Take"] | (~judges & self.kept))
            self.require(~at["Mark"] | (judges == self.decides))
            compares = judges & Cat(at[n] for n in ("Read", "Hold", "Add", "Write", "Mark")).any()
            chosen = can(known, next_mode) | ~can(known, known.mode)
            self.require(~compares | chosen)
            erased = judges & is_adaptive & self.is_own
            for number, word in enumerate(self.words[1:], 1):
                done = at["Mark"] | (compares & (place > number))
                self.require(~(erased & done) | (word == 0))

        # Forgetting.
        self.require(~forgets | (self.known & self.forgets & ~self.learns))
        with m.If(forgets):
            self.require((first.rule == was.rule) & (first.spatial == was.spatial))
            self.require((first.reserved == was.reserved) & (first.mode == was.mode))
            for number, word in enumerate(self.words):
                own = Cat(Const(number, 2), self.one)
                empty = (first.steps == 0) & (first.blind == 0) if number == 0 else word == 0
                self.require((own >= walk) | empty)
                self.require(~(at["Rewrite"] & (own == walk)) | (data == word))


def table_of(module: Any) -> DecisionTableProof:
    return DecisionTableProof(module.DecisionTable(CONFIG))


def test_table(holds: Any) -> None:
    holds(lambda: table_of(decisions), 3, reach=20, registers=True)


class LearningProof(DecisionTableProof):
    """The same, of a table that does nothing but to learn, of the one decision."""

    def specify(self, m: Module) -> None:
        super().specify(m)
        dut = self.dut
        self.assume(self.reset == Initial())
        self.assume(~(dut.forget | dut.write_en | dut.reads) & (dut.number == self.one))
        self.assume(dut.learn == (~dut.busy & (self.rests == 3)))


@pytest.mark.long
@pytest.mark.parametrize(
    "old, new, at",
    [
        ("(mode != Mode.SPATIAL.value) | known.spatial", "1", 35),
        ("self.decides & ~judges", "~judges", 34),
    ],
)
def test_table_with_a_defect(refutes: Any, old: str, new: str, at: int) -> None:
    # When it has learned; in an earlier cycle, nothing is found.
    dut = mutant("ditto.hdl.decisions", old, new).DecisionTable(CONFIG)
    refutes(lambda: LearningProof(dut), at + 1, skip=at, registers=True)
