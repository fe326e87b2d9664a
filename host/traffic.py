"""What crosses the link for an image, layer by layer."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from ditto.hdl.config import Config
from ditto.hdl.protocol import Mode
from ditto.host.device import Device
from ditto.host.model import Model
from ditto.host.program import Program
from ditto.host.samplers import Sampler
from ditto.host.session import draw
from ditto.host.transport import Transport

__all__ = ["Traffic", "measure", "seconds"]


@dataclass
class Traffic:
    """What a layer takes in all steps of an image.

    Parameters
    ----------
    sent, received
        Bytes on the link.
    exchanges
        Commands with an answer; the driver waits for each.
    cycles
        Clock cycles of the array.
    """

    sent: int = 0
    received: int = 0
    exchanges: int = 0
    cycles: int = 0


def seconds(traffic: Mapping[str, int], clock_hz: int, baud: int) -> float:
    """Return how long a traffic takes: a byte is ten bits, and nothing overlaps."""
    bits = 10 * (traffic["sent"] + traffic["received"])
    return bits / baud + traffic["cycles"] / clock_hz


class _Meter:
    """A transport that counts what goes through another one."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.traffic = Traffic()

    def write(self, data: bytes) -> None:
        self.traffic.sent += len(data)
        self.traffic.exchanges += 1
        self._transport.write(data)

    def read(self, size: int, timeout: float) -> bytes:
        data = self._transport.read(size, timeout)
        self.traffic.received += len(data)
        return data

    def close(self) -> None:
        self._transport.close()


class _Metered(Device):
    """A device that tells the traffic of each layer-table entry."""

    def __init__(self, transport: Transport, config: Config) -> None:
        self._meter = _Meter(transport)
        self.entries: defaultdict[int, Traffic] = defaultdict(Traffic)
        super().__init__(self._meter, expect=config)

    def write_deltas(self, entry: int, deltas: NDArray[Any], mode: Mode = Mode.DENSE) -> None:
        # Everything until the next tile belongs to this one.
        self._meter.traffic = self.entries[entry]
        super().write_deltas(entry, deltas, mode)

    def write_inputs(self, entry: int, inputs: NDArray[Any], mode: Mode = Mode.AUTO) -> None:
        self._meter.traffic = self.entries[entry]
        super().write_inputs(entry, inputs, mode)


def measure(
    model: Model, config: Config, sampler: Sampler, transport: Transport
) -> dict[str, dict[str, int]]:
    """Draw an image, and return the traffic of each layer, by name.

    Parameters
    ----------
    model
        The model.
    config
        The device.
    sampler
        The sampler.
    transport
        Link to such a device.

    Raises
    ------
    PlacementError
        If the model does not fit the device.
    """
    program = Program(model.layers, model.shapes(), config)
    devices: list[_Metered] = []

    def open_device() -> Device:
        devices.append(_Metered(transport, config))
        return devices[-1]

    drawing = draw(model, program, open_device, sampler, samples=1)
    (device,) = devices
    found = {placement.layer.name: Traffic() for placement in program.layers}
    for placement in program.layers:
        total = found[placement.layer.name]
        for band in placement.bands:
            entry = device.entries[band.number]
            total.sent += entry.sent
            total.received += entry.received
            total.exchanges += entry.exchanges
    for run in drawing.runs[0]:
        total = found[program.layers[run.layer].layer.name]
        total.cycles += run.counters.cycles
    return {name: asdict(traffic) for name, traffic in found.items()}
