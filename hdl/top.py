"""The device: framing, command machine and engine behind one byte stream each way."""

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped

from ditto.hdl.command import CommandMachine
from ditto.hdl.config import Config
from ditto.hdl.engine import Engine
from ditto.hdl.framing import PACKET, Deframer, Framer
from ditto.hdl.protocol import NO_BUILD

__all__ = ["Top"]


class Top(wiring.Component):
    """A device that knows no board: clock, reset and two byte streams.

    Parameters
    ----------
    config
        The device.
    build
        What it was made of, see :func:`ditto.hdl.protocol.identity`.

    Members
    -------
    i : In(stream.Signature(8))
        Bytes from the host, see :mod:`ditto.hdl.protocol`.
    o : Out(stream.Signature(8))
        Bytes to the host.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: Config, build: bytes = NO_BUILD) -> None:
        self.config = config
        self.build = build
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        """Build the device."""
        m = Module()
        m.submodules.deframer = deframer = Deframer(frame_bytes=self.config.frame_bytes)
        m.submodules.command = command = CommandMachine(self.config, self.build)
        m.submodules.engine = engine = Engine(self.config)
        m.submodules.framer = framer = Framer()

        # Bytes wait in between, so that no path leads through both sides of such a stream.
        def connect_through(name: str, source: stream.Interface, sink: stream.Interface) -> None:
            m.submodules[name] = fifo = SyncFIFOBuffered(width=PACKET.size, depth=2)
            m.d.comb += [
                fifo.w_data.eq(source.payload),
                fifo.w_en.eq(source.valid),
                source.ready.eq(fifo.w_rdy),
                sink.payload.eq(fifo.r_data),
                sink.valid.eq(fifo.r_rdy),
                fifo.r_en.eq(sink.ready),
            ]

        connect(m, flipped(self.i), deframer.i)
        connect_through("commands", deframer.o, command.i)
        connect(m, command.engine, engine)
        connect_through("answers", command.o, framer.i)
        connect(m, framer.o, flipped(self.o))
        return m
