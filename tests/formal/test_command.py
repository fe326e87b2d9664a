# amaranth: UnusedElaboratable=no
"""Command machine: every command is answered, once, and carried out once."""

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


class CommandMachineProof(Proof):
    """Whatever comes, and however it is held up.

    The engine answers each task once; nothing else is assumed of it, nor of the bytes.
    """

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
        header = Signal(CommandHeader)
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
        self.assert_(~takes | ~(owed & whole))

        # Sessions and sequences, as the protocol has them.
        session, sequence = Signal(), Signal(16)
        outcome = Signal(Status)  # what the last command was told
        identifies = header.op == Opcode.IDENTIFY
        repeats = session & ~identifies & (header.sequence == sequence)
        fresh = session & ~identifies & (header.sequence == (sequence + 1)[:16])

        # Its answer: sequence, opcode, status, and as many bytes as it has.
        given = Signal(range(256))
        status = Signal(Status)
        rest = Mux(
            identifies,
            len(identity(config.digest, config.pack())),
            Mux(
                header.op == Opcode.COUNTERS,
                COUNTERS.size // 8,
                Mux(
                    header.op == Opcode.READ,
                    header.count[:2] * header.size[:2] * config.clusters,
                    0,
                ),
            ),
        )
        self.assert_(~o.valid | (owed & whole))
        told = [header.sequence[:8], header.sequence[8:], header.op.as_value()]
        with m.If(o.valid):
            for number, byte in enumerate(told):
                self.assert_((given != number) | (o.p.data == byte))
            # The status is at hand in the very cycle in which it is given.
            known = Mux(given == 3, o.p.data == Status.OK.value, status == Status.OK)
            total = size(ResponseHeader) + Mux(known, rest, 0)
            self.assert_(o.p.last == ((given >= 3) & (given == total - 1)))
        with m.If(gives):
            m.d.sync += given.eq(given + 1)
            with m.If(given == 3):
                m.d.sync += status.eq(o.p.data)
                now = o.p.data
                self.assert_(now <= Status.BAD_LAYER.value)
                self.assert_(~identifies | (now == Status.OK.value))
                with m.If(~session & ~identifies):
                    self.assert_(now == Status.NO_SESSION.value)
                with m.Elif(repeats):
                    self.assert_(now == outcome.as_value())
                with m.Elif(~fresh & ~identifies):
                    self.assert_(now == Status.BAD_SEQUENCE.value)
                with m.If(fresh | identifies):
                    m.d.sync += [outcome.eq(now), sequence.eq(header.sequence), session.eq(1)]
                with m.If(fresh & (header.op == Opcode.READ) & (now == Status.OK.value)):
                    self.assert_((header.size <= 3) & (header.address + header.count <= 3))
            with m.If(o.p.last):
                m.d.sync += [given.eq(0), taken.eq(0), whole.eq(0), owed.eq(0)]

        # What it does to the engine, and how often.
        tasked, forgot, at_work = Signal(), Signal(), Signal()
        begins = tasks.valid & tasks.ready
        ends = results.valid & results.ready
        is_task = (header.op == Opcode.RUN) | (
            (header.op == Opcode.WRITE) & (header.space == Space.DELTAS) & (header.count == 0)
        )
        writes = header.op == Opcode.WRITE
        due = owed & fresh & (given == 0)
        m.d.sync += [tasked.eq(tasked | begins), forgot.eq(forgot | engine.forget)]
        with m.If(gives & o.p.last):
            m.d.sync += [tasked.eq(0), forgot.eq(0)]
        m.d.sync += at_work.eq((at_work | begins) & ~ends)
        self.assume(~results.valid | at_work)
        self.assert_(~tasks.valid | (due & is_task & ~tasked))
        self.assert_(~engine.forget | (due & (header.op == Opcode.RESET) & ~forgot))
        self.assert_(~engine.layer_en | (due & writes & (header.space == Space.LAYERS)))
        self.assert_(~engine.weight_en | (due & writes & (header.space == Space.WEIGHTS)))
        self.assert_(~deltas.valid | (due & writes & (header.space == Space.DELTAS)))
        self.assert_(~engine.layer_en | (engine.layer_address < config.layers))
        self.assert_(~engine.weight_en | (engine.weight_address < config.weight_rows))
        self.assert_(~engine.weight_en | (engine.cluster < config.clusters))
        self.assert_(~engine.read_en | (engine.read_address < config.accumulator_rows))
        self.assert_(~at_work | ~o.valid)
        done = gives & (given == 3) & fresh & (o.p.data == Status.OK.value)
        self.assert_(~done | (header.op != Opcode.RESET) | forgot)
        self.assert_(~done | ~is_task | tasked)

        # No deadlock: if nobody holds it up, something passes at least every eighth cycle.
        willing = (
            (i.valid | ~i.ready)
            & (o.ready | ~o.valid)
            & (tasks.ready | ~tasks.valid)
            & (results.valid | ~at_work)
            & (deltas.ready | ~deltas.valid)
            & ~engine.encoding
        )
        passes = takes | gives | begins | ends | (deltas.valid & deltas.ready)
        quiet = Signal(range(9))
        m.d.sync += quiet.eq(Mux(passes | ~willing, 0, quiet + 1))
        self.assert_(quiet < 8)

        ok = Mux(given == 3, o.p.data == Status.OK.value, status == Status.OK)
        for op in (Opcode.RESET, Opcode.RUN):
            self.cover(gives & o.p.last & (header.op == op) & ok)
        self.cover(gives & repeats & (given == 3) & (header.op == Opcode.RUN))


def test_command_machine(holds: Any) -> None:
    holds(lambda: CommandMachineProof(CommandMachine(CONFIG)), 40, "bmc", reach=60)
