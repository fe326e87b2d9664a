"""The device behind AXI, for the programmable logic of a Zynq and other processor systems.

An AXI4-Lite port has the registers of :class:`ditto.host.axi.Register`. The device's byte streams
are at one of them, or at two AXI4-Streams for a DMA engine. Towards the processor, a packet ends
with the zero byte that ends every frame.
"""

from amaranth.hdl import ClockDomain, ClockSignal, Module, Mux, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from ditto.hdl.config import Config
from ditto.hdl.protocol import NO_BUILD
from ditto.hdl.top import Top
from ditto.host.axi import EMPTY, IDENT, Control, Register, State

__all__ = ["PORTS", "AxiDevice"]

_QUEUE = 512

PORTS = {
    "aclk": In(1),
    "aresetn": In(1),
    "s_axi_awaddr": In(4),
    "s_axi_awprot": In(3),
    "s_axi_awvalid": In(1),
    "s_axi_awready": Out(1),
    "s_axi_wdata": In(32),
    "s_axi_wstrb": In(4),
    "s_axi_wvalid": In(1),
    "s_axi_wready": Out(1),
    "s_axi_bresp": Out(2),
    "s_axi_bvalid": Out(1),
    "s_axi_bready": In(1),
    "s_axi_araddr": In(4),
    "s_axi_arprot": In(3),
    "s_axi_arvalid": In(1),
    "s_axi_arready": Out(1),
    "s_axi_rdata": Out(32),
    "s_axi_rresp": Out(2),
    "s_axi_rvalid": Out(1),
    "s_axi_rready": In(1),
    "s_axis_tdata": In(8),
    "s_axis_tvalid": In(1),
    "s_axis_tready": Out(1),
    "s_axis_tlast": In(1),
    "m_axis_tdata": Out(8),
    "m_axis_tvalid": Out(1),
    "m_axis_tready": In(1),
    "m_axis_tlast": Out(1),
}
"""The ports, named as AXI has it."""


class AxiDevice(wiring.Component):
    """A device with AXI ports, named as AXI has it.

    Addresses and data are taken together; one access of each kind is under way at a time. All
    responses are OKAY: an error would kill the process that caused it.

    Parameters
    ----------
    config
        The device.
    build
        What it was made of, see :func:`ditto.hdl.protocol.identity`.

    Members
    -------
    aclk, aresetn : In(1)
        Clock, and reset, active low.
    s_axi_* : AXI4-Lite
        Registers.
    s_axis_* : In
        Bytes for the device.
    m_axis_* : Out
        Bytes of the device.
    """

    aclk: Signal
    aresetn: Signal
    s_axi_awaddr: Signal
    s_axi_awprot: Signal
    s_axi_awvalid: Signal
    s_axi_awready: Signal
    s_axi_wdata: Signal
    s_axi_wstrb: Signal
    s_axi_wvalid: Signal
    s_axi_wready: Signal
    s_axi_bresp: Signal
    s_axi_bvalid: Signal
    s_axi_bready: Signal
    s_axi_araddr: Signal
    s_axi_arprot: Signal
    s_axi_arvalid: Signal
    s_axi_arready: Signal
    s_axi_rdata: Signal
    s_axi_rresp: Signal
    s_axi_rvalid: Signal
    s_axi_rready: Signal
    s_axis_tdata: Signal
    s_axis_tvalid: Signal
    s_axis_tready: Signal
    s_axis_tlast: Signal
    m_axis_tdata: Signal
    m_axis_tvalid: Signal
    m_axis_tready: Signal
    m_axis_tlast: Signal

    def __init__(self, config: Config, build: bytes = NO_BUILD) -> None:
        self.config = config
        self.build = build
        super().__init__(PORTS)

    def elaborate(self, platform: object) -> Module:
        """Build the device and its ports."""
        m = Module()
        m.domains.sync = ClockDomain()
        m.d.comb += [ClockSignal().eq(self.aclk), ResetSignal().eq(~self.aresetn)]
        m.submodules.device = device = Top(self.config, self.build)
        # To and from the register; the processor may be away for a while.
        m.submodules.inbox = inbox = SyncFIFOBuffered(width=8, depth=_QUEUE)
        m.submodules.outbox = outbox = SyncFIFOBuffered(width=8, depth=_QUEUE)
        streams, lost = Signal(), Signal()

        # A write takes address and data together, and waits for its response to be taken.
        write, read = Signal(), Signal()
        writes_low = self.s_axi_wstrb[0]
        m.d.comb += [
            write.eq(
                self.s_axi_awvalid & self.s_axi_wvalid & (~self.s_axi_bvalid | self.s_axi_bready)
            ),
            self.s_axi_awready.eq(write),
            self.s_axi_wready.eq(write),
            read.eq(self.s_axi_arvalid & (~self.s_axi_rvalid | self.s_axi_rready)),
            self.s_axi_arready.eq(read),
            inbox.w_data.eq(self.s_axi_wdata[:8]),
        ]
        with m.If(self.s_axi_bready):
            m.d.sync += self.s_axi_bvalid.eq(0)
        with m.If(write):
            m.d.sync += self.s_axi_bvalid.eq(1)
            with m.If((self.s_axi_awaddr[2:] == Register.DATA >> 2) & writes_low):
                m.d.comb += inbox.w_en.eq(1)
                with m.If(~inbox.w_rdy):
                    m.d.sync += lost.eq(1)
            with m.If((self.s_axi_awaddr[2:] == Register.CONTROL >> 2) & writes_low):
                m.d.sync += streams.eq((self.s_axi_wdata & Control.STREAMS) != 0)

        with m.If(self.s_axi_rready):
            m.d.sync += self.s_axi_rvalid.eq(0)
        with m.If(read):
            m.d.sync += self.s_axi_rvalid.eq(1)
            with m.Switch(self.s_axi_araddr[2:]):
                with m.Case(Register.IDENT >> 2):
                    m.d.sync += self.s_axi_rdata.eq(IDENT)
                with m.Case(Register.STATE >> 2):
                    m.d.sync += self.s_axi_rdata.eq(
                        Mux(inbox.w_rdy, State.CAN_WRITE, 0)
                        | Mux(outbox.r_rdy, State.CAN_READ, 0)
                        | Mux(lost, State.LOST, 0)
                    )
                with m.Case(Register.DATA >> 2):
                    m.d.sync += self.s_axi_rdata.eq(Mux(outbox.r_rdy, outbox.r_data, EMPTY))
                    m.d.comb += outbox.r_en.eq(1)
                with m.Case(Register.CONTROL >> 2):
                    m.d.sync += self.s_axi_rdata.eq(Mux(streams, Control.STREAMS, 0))

        m.d.comb += self.m_axis_tdata.eq(device.o.payload)
        m.d.comb += self.m_axis_tlast.eq(device.o.payload == 0)
        with m.If(streams):
            m.d.comb += [
                device.i.payload.eq(self.s_axis_tdata),
                device.i.valid.eq(self.s_axis_tvalid),
                self.s_axis_tready.eq(device.i.ready),
                self.m_axis_tvalid.eq(device.o.valid),
                device.o.ready.eq(self.m_axis_tready),
            ]
        with m.Else():
            m.d.comb += [
                device.i.payload.eq(inbox.r_data),
                device.i.valid.eq(inbox.r_rdy),
                inbox.r_en.eq(device.i.ready),
                outbox.w_data.eq(device.o.payload),
                outbox.w_en.eq(device.o.valid),
                device.o.ready.eq(outbox.w_rdy),
            ]
        return m
