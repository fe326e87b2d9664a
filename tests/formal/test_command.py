# amaranth: UnusedElaboratable=no
"""Command machine: every command is answered, once, and carried out once."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from amaranth.hdl import Cat, Module, Mux, Signal

from ditto.hdl.command import CommandMachine
from ditto.hdl.config import Config
from ditto.hdl.protocol import (
    COUNTERS,
    CommandHeader,
    Opcode,
    ResponseHeader,
    Space,
    Status,
    identity,
    size,
)
from ditto.sim.formal import Proof, mutant

# In the order in which the machine's text mentions them, which numbers them.
STATES = (
    "Header Decide Drain Store Begin_task Encode End_task Respond Identity Fetch Load Select Merge "
    "Word"
).split()

# Cycles in which nothing can have passed when a state is entered, or in it.
QUIET = dict(zip(STATES, (0, 0, 3, 2, 1, 1, 1, 4, 0, 0, 3, 1, 2, 4), strict=True))

CONFIG = Config(
    clusters=2,
    lanes=1,
    columns=1,
    accumulator_bits=17,
    channels=1,
    item_depth=4,
    positions=2,
    list_depth=2,
    layers=2,
    weight_rows=3,
    accumulator_rows=3,
)
#: With a reference buffer, and so with a table of decisions.
REFERENCES = replace(CONFIG, reference_depth=2)


def memory(config: Config, header: Any) -> tuple[Any, Any, Any]:
    """Return words, bytes of each, and copies of the memory that a READ asks for."""
    accumulators = (config.accumulator_rows, 3, config.clusters)
    decisions = (4 * config.layers, 4, 1) if config.reference_depth else (0, 0, 0)
    is_decisions = header.space == Space.DECISIONS
    rows, most, copies = zip(decisions, accumulators, strict=True)
    return Mux(is_decisions, *rows), Mux(is_decisions, *most), Mux(is_decisions, *copies)


def inside(config: Config, header: Any) -> Any:
    """Tell whether a READ asks for words and bytes that there are."""
    rows, most, _ = memory(config, header)
    return (
        (header.count != 0)
        & (header.size != 0)
        & (header.size <= most)
        & (header.address + header.count <= rows)
    )


def is_tile(config: Config, header: Any) -> Any:
    """Tell whether a WRITE is of deltas or inputs."""
    return (header.space == Space.DELTAS) | (
        (header.space == Space.INPUTS) & (config.reference_depth > 0)
    )


def is_known(header: Any) -> Any:
    return Cat(header.op == op for op in Opcode).any()


class CommandMachineProof(Proof):
    """Whatever comes, and however it is held up.

    The engine answers each task once, with a status.

    Parameters
    ----------
    dut
        The command machine.
    told
        Bytes of the answer to IDENTIFY; fewer than there are if what follows it is to be reached.
    """

    def __init__(self, dut: Any, *, told: int | None = None) -> None:
        super().__init__(dut)
        self.is_short = told is not None
        self.told = told or len(identity(dut.config.digest, dut.config.pack()))

    def specify(self, m: Module) -> None:
        dut = self.dut
        config = dut.config
        i, o, engine = dut.i, dut.o, dut.engine
        tasks, results, deltas = engine.tasks, engine.results, engine.deltas
        self.stable(i, assume=True)
        self.stable(results, assume=True)
        self.stable(o)
        self.stable(tasks)

        # The command at hand.
        takes, gives = i.valid & i.ready, o.valid & o.ready
        length = size(CommandHeader)
        header: Any = Signal(CommandHeader, reset_less=True)
        taken = Signal(range(length + 1))
        whole = Signal()  # all of the body has been taken
        owed = Signal()  # it has a header, so an answer is due
        with m.If(takes):
            with m.If(taken != length):
                m.d.sync += [
                    header.eq(Cat(header.as_value()[8:], i.p.data)),
                    taken.eq(taken + 1),
                ]
            m.d.sync += whole.eq(i.p.last)
            with m.If(taken == length - 1):
                m.d.sync += owed.eq(1)
            with m.Elif((taken < length - 1) & i.p.last):
                m.d.sync += [taken.eq(0), whole.eq(0)]
        self.require(~takes | ~(owed & whole))

        # Sessions and sequences, as the protocol has them.
        session = Signal()
        last: Any = Signal(CommandHeader)
        outcome: Any = Signal(Status)  # what the last command was told
        identifies = header.op == Opcode.IDENTIFY
        repeats = session & ~identifies & (header.as_value() == last.as_value())
        fresh = session & ~identifies & (header.sequence == (last.sequence + 1)[:16])

        # Its answer: sequence, opcode, status, and as many bytes as it has.
        given = Signal(range(256))
        status: Any = Signal(Status)
        rest = Mux(
            identifies,
            self.told,
            Mux(
                (header.op == Opcode.COUNTERS) | (header.op == Opcode.RUN),
                COUNTERS.size // 8,
                Mux(
                    header.op == Opcode.READ,
                    header.count[:4] * header.size[:3] * memory(config, header)[2],
                    0,
                ),
            ),
        )
        self.require(~o.valid | (owed & whole))
        told = [header.sequence[:8], header.sequence[8:], header.op.as_value()]
        with m.If(o.valid):
            for number, byte in enumerate(told):
                self.require((given != number) | (o.p.data == byte))
            # The status is at hand in the very cycle in which it is given.
            known = Mux(given == 3, o.p.data == Status.OK.value, status == Status.OK)
            total = size(ResponseHeader) + Mux(known, rest, 0)
            self.require(o.p.last == ((given >= 3) & (given == total - 1)))
        with m.If(gives):
            m.d.sync += given.eq(given + 1)
            with m.If(given == 3):
                m.d.sync += status.eq(o.p.data)
                now = o.p.data
                self.require(now <= Status.BAD_LAYER.value)
                self.require(~identifies | (now == Status.OK.value))
                with m.If(~session & ~identifies):
                    self.require(now == Status.NO_SESSION.value)
                with m.Elif(repeats):
                    self.require(now == outcome.as_value())
                with m.Elif(~fresh & ~identifies):
                    self.require(now == Status.BAD_SEQUENCE.value)
                with m.If(fresh | identifies):
                    m.d.sync += [
                        outcome.eq(now),
                        session.eq(1),
                        last.eq(header),
                    ]
                with m.If(fresh & (header.op == Opcode.READ) & (now == Status.OK.value)):
                    self.require(inside(config, header))
            with m.If(o.p.last):
                m.d.sync += [given.eq(0), taken.eq(0), whole.eq(0), owed.eq(0)]

        # What it does to the engine, and how often.
        tasked, forgot, at_work = Signal(), Signal(), Signal()
        begins = tasks.valid & tasks.ready
        ends = results.valid & results.ready
        is_task = (header.op == Opcode.RUN) | (
            (header.op == Opcode.WRITE) & is_tile(config, header) & (header.count == 0)
        )
        writes = header.op == Opcode.WRITE
        due = owed & fresh & (given == 0)
        m.d.sync += [tasked.eq(tasked | begins), forgot.eq(forgot | engine.forget)]
        with m.If(gives & o.p.last):
            m.d.sync += [tasked.eq(0), forgot.eq(0)]
        m.d.sync += at_work.eq((at_work | begins) & ~ends)
        self.assume(~results.valid | at_work)
        self.assume(results.payload.as_value() <= Status.BAD_LAYER.value)
        self.require(~tasks.valid | (due & is_task & ~tasked))
        self.require(~engine.forget | (due & (header.op == Opcode.RESET) & ~forgot))
        self.require(~engine.layer_en | (due & writes & (header.space == Space.LAYERS)))
        self.require(~engine.weight_en | (due & writes & (header.space == Space.WEIGHTS)))
        self.require(~engine.decision_en | (due & writes & (header.space == Space.DECISIONS)))
        self.require(~engine.decision_en | (engine.decision_address < 4 * config.layers))
        self.require(~deltas.valid | (due & writes & is_tile(config, header)))
        self.require(~engine.layer_en | (engine.layer_address < config.layers))
        self.require(~engine.weight_en | (engine.weight_address < config.weight_rows))
        self.require(~engine.weight_en | (engine.cluster < config.clusters))
        self.require(~engine.read_en | (engine.read_address < memory(config, header)[0]))
        self.require(~at_work | ~o.valid)
        done = gives & (given == 3) & fresh & (o.p.data == Status.OK.value)
        self.require(~done | (header.op != Opcode.RESET) | forgot)
        self.require(~done | ~is_task | tasked)

        # No deadlock: if nobody holds it up, something passes at least every eighth cycle.
        willing = (
            (i.valid | ~i.ready)
            & (o.ready | ~o.valid)
            & (tasks.ready | ~tasks.valid)
            & (results.valid | ~at_work)
            & deltas.ready
            & ~engine.encoding
        )
        passes = takes | gives | begins | ends | (deltas.valid & deltas.ready)
        quiet = Signal(range(9))
        m.d.sync += quiet.eq(Mux(passes | ~willing, 0, quiet + 1))
        self.require(quiet < 8)

        self.state_of = dict(
            header=header,
            taken=taken,
            whole=whole,
            owed=owed,
            session=session,
            outcome=outcome,
            identifies=identifies,
            repeats=repeats,
            fresh=fresh,
            given=given,
            status=status,
            last=last,
            quiet=quiet,
            tasked=tasked,
            forgot=forgot,
            at_work=at_work,
            is_task=is_task,
            writes=writes,
        )
        self.cover(gives & identifies & (given == 3))
        self.cover(gives & o.p.last & ~session)
        if self.is_short:
            ok = o.p.data == Status.OK.value
            for op in (Opcode.RESET, Opcode.WRITE, Opcode.RUN):
                self.cover(gives & (given == 3) & fresh & (header.op == op) & ok)
            self.cover(gives & repeats & (given == 3))

    def support(self, m: Module) -> None:
        config = self.dut.config
        known = SimpleNamespace(**self.state_of)
        header, given = known.header, known.given
        state = self.internal(4, "dut.fsm_state")
        at = {name: state == number for number, name in enumerate(STATES)}
        self.require(state < len(STATES))
        count = self.internal(6, "dut.count")
        inner = self.internal(8 * size(CommandHeader), "dut.header")
        session = self.internal(1, "dut.session")
        half, repeated = self.internal(1, "dut.half"), self.internal(1, "dut.repeated")
        sequence = self.internal(16, "dut.sequence")
        halves = [
            Cat(self.internal(8, f"dut.headers[{16 * n + m}]") for m in range(size(CommandHeader)))
            for n in range(2)
        ]
        status, outcome = self.internal(8, "dut.status"), self.internal(8, "dut.outcome")
        more, stored = self.internal(1, "dut.more"), self.internal(1, "dut.stored")
        address = self.internal(17, "dut.address")
        cluster = self.internal(1, "dut.cluster")
        rom = self.internal(7, "dut.rom_r__addr")
        length = size(CommandHeader)

        # The header, and what has been taken of it.
        self.require(known.owed == ~at["Header"])
        self.require(Mux(known.owed, known.taken == length, known.taken < length))
        self.require(~at["Header"] | ((count == known.taken) & ~known.whole & (given == 0)))
        differ = inner ^ header.as_value()
        missing = (8 * (length - known.taken)).as_unsigned()[:7]
        self.require((differ >> missing) == 0)
        self.require(~known.owed | (more == ~known.whole))
        answers = Cat(
            at[n] for n in ("Respond", "Identity", "Fetch", "Select", "Merge", "Load", "Word")
        ).any()
        self.require(~answers | known.whole)
        self.require(answers | (given == 0))

        # Sessions, sequences and statuses.
        decided = ~(at["Header"] | at["Decide"]) & (given <= 3)
        taken_up = known.fresh | known.identifies
        self.require(session == (known.session | (decided & known.identifies)))
        last = Mux(half, *reversed(halves))
        self.require(
            ~session | (last == Mux(decided & taken_up, header.as_value(), known.last.as_value()))
        )
        self.require(~session | (sequence == last[:16]))
        # Before it is decided on, a header comes into the other half, and has been compared.
        come = header.as_value() >> missing
        with m.If(at["Header"] | at["Decide"]):
            other = Mux(half, *halves)
            self.require((((other ^ come) << missing)[: len(last)]) == 0)
            self.require(
                (known.taken == 0) | (repeated == (((last ^ come) << missing)[: len(last)] == 0))
            )
        self.require(~session | ~decided | (repeated == (taken_up | known.repeats)))
        told = decided & answers
        self.require(
            ~session
            | Mux(
                told & taken_up,
                outcome == status,
                ~known.session | (outcome == known.outcome.as_value()),
            )
        )
        settled = decided & (answers | at["Drain"])
        self.require(~decided | (status <= Status.BAD_LAYER.value))
        self.require((given <= 3) | (status == known.status.as_value()))
        with m.If(settled):
            self.require(~known.identifies | (status == 0))
            with m.If(~known.session & ~known.identifies):
                self.require(status == Status.NO_SESSION.value)
            with m.Elif(known.repeats):
                self.require(status == known.outcome.as_value())
            with m.Elif(~known.fresh & ~known.identifies):
                self.require(status == Status.BAD_SEQUENCE.value)
            with m.Else():
                ok = status == 0
                self.require(~ok | (header.op != Opcode.RESET) | known.forgot | known.identifies)
                self.require(~ok | ~known.is_task | known.tasked)
                self.require(~ok | (header.op != Opcode.READ) | inside(config, header))
                self.require(~ok | is_known(header))
        was_read = (known.last.op == Opcode.READ) & (known.outcome == Status.OK)
        self.require(~known.session | ~was_read | inside(config, known.last))
        last_fine = known.session & (known.outcome == Status.OK)
        self.require(~known.session | (known.outcome.as_value() <= Status.BAD_LAYER.value))
        self.require(~last_fine | is_known(known.last))
        with m.If(given > 3):
            self.require(known.session & (known.last.as_value() == header.as_value()))
            self.require(known.outcome == known.status)

        # What it is at.
        early = at["Header"] | at["Decide"]
        self.require(~known.tasked | (~early & known.is_task))
        self.require(~known.forgot | (~early & (header.op == Opcode.RESET)))
        self.require(known.at_work == at["End_task"])
        begins = at["Begin_task"] | at["End_task"]
        self.require(~begins | (known.fresh & known.is_task & (known.tasked == at["End_task"])))
        self.require(~stored | at["Store"])
        with m.If(at["Store"]):
            layers, weights = (header.space == s for s in (Space.LAYERS, Space.WEIGHTS))
            decisions = (header.space == Space.DECISIONS) & (config.reference_depth > 0)
            self.require(known.fresh & known.writes & (layers | weights | decisions))
            self.require(count < Mux(layers, 32, Mux(weights, 1, 4)))
        encodes = known.writes & is_tile(config, header)
        self.require(~at["Encode"] | (known.fresh & encodes & (~known.is_task | known.tasked)))

        for name, cycles in QUIET.items():
            self.require(~at[name] | (known.quiet <= cycles))

        # What is still to be given.
        self.require(~at["Respond"] | (count == given))
        self.require(~at["Respond"] | (given <= 3))
        follows = answers & ~at["Respond"]
        in_word = at["Word"]
        self.require(~follows | ((given > 3) & (status == 0) & ((count == 0) | in_word)))
        self.require(~at["Identity"] | (known.identifies & (given == 4 + rom) & (rom < self.told)))
        reads = header.op == Opcode.READ
        counts = (header.op == Opcode.COUNTERS) | (header.op == Opcode.RUN)
        self.require(~in_word | (count != 0))
        self.require(~follows | at["Identity"] | reads | ((at["Load"] | in_word) & counts))
        with m.If(follows & counts):
            self.require((count <= COUNTERS.size // 8) & (given == 4 + count - in_word))
        with m.If(follows & reads):
            size_, number = header.size[:3], header.count[:4]
            rows, most, copies = memory(config, header)
            later = (copies - 1 - cluster).as_unsigned()[:1] * number * size_
            end = header.address + header.count
            self.require(address <= end)
            words = (end - address).as_unsigned()[:17]
            fetched = Mux(at["Fetch"], words, words + 1)
            left = (size_ - count + 1).as_unsigned()[:4]
            here = Mux(in_word, left + words * size_, fetched * size_)
            self.require(inside(config, header) & (words <= rows) & ((left <= most) | ~in_word))
            self.require(cluster < copies)
            self.require(~in_word | (count <= size_))
            self.require(~at["Fetch"] | (words != 0))
            self.require(given + here + later == 4 + number * size_ * copies)


@pytest.mark.parametrize("config", [CONFIG, REFERENCES], ids=["deltas", "references"])
def test_command_machine(holds: Any, config: Config) -> None:
    holds(lambda: CommandMachineProof(CommandMachine(config)), 2, reach=20, registers=True)


@pytest.mark.long
def test_commands_of_a_session(holds: Any) -> None:
    """Reach them: on a machine whose answer to IDENTIFY has one byte, not a hundred."""
    module = mutant(
        "ditto.hdl.command", "identity(config.digest, config.pack(), self.build)", "bytes(1)"
    )
    machine = partial(module.CommandMachine, CONFIG)
    holds(lambda: CommandMachineProof(machine(), told=1), 20, "bmc", reach=56, registers=True)


@pytest.mark.parametrize(
    "old, new",
    [
        ("with m.Elif(~session):", "with m.Elif(session):"),
        pytest.param(
            "response.sequence.eq(header.sequence)",
            "response.sequence.eq(sequence)",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "with m.Elif(self.i.p.last):\n                        m.d.sync += count.eq(0)",
            "with m.Elif(0):\n                        m.d.sync += count.eq(0)",
            marks=pytest.mark.long,
        ),
    ],
)
def test_command_machine_with_a_defect(refutes: Any, old: str, new: str) -> None:
    module = mutant("ditto.hdl.command", old, new)
    refutes(lambda: CommandMachineProof(module.CommandMachine(CONFIG)), 18, registers=True)
