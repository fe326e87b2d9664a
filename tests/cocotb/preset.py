"""An engine for benches whose counters can be set as high as no run of a bench gets."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from ditto.hdl.config import Config
from ditto.hdl.engine import Engine, EngineSignature

__all__ = ["COUNTED", "PresetEngine"]

COUNTED = ("cycles", "items", "stall_row", "stall_item", "stall_cluster", "stall_link")
"""The counters that are in the engine itself."""


class PresetEngine(Engine):
    """An engine whose counters take any value.

    Parameters
    ----------
    config
        The device.

    Members
    -------
    preset : In(1)
        Set the counters, in place of counting.
    preset_to : In(32)
        To this.
    """

    preset: Signal
    preset_to: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        members = EngineSignature(config).members
        wiring.Component.__init__(self, {**members, "preset": In(1), "preset_to": In(32)})

    def elaborate(self, platform: object) -> Module:
        """Build the engine, and set its counters last."""
        m = super().elaborate(platform)
        with m.If(self.preset):
            m.d.sync += [self.counters[name].eq(self.preset_to) for name in COUNTED]
        return m
