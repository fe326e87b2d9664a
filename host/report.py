"""What a run took: layer by layer, step by step, in all."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ditto.hdl.config import Config
from ditto.hdl.protocol import Counters
from ditto.host.executor import LayerRun
from ditto.host.layers import Product
from ditto.host.program import Placement, Program
from ditto.host.session import Drawing
from ditto.sim.memory import Traffic

__all__ = ["Total", "describe", "report", "shares"]


@dataclass
class Total:
    """Sum over some layer runs."""

    runs: int = 0
    counters: Counters = Counters()
    dense_cycles: int = 0
    products: int = 0
    stall_memory: int = 0
    traffic: Traffic = Traffic()
    modes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, runs: Iterable[LayerRun]) -> "Total":
        """Add up runs."""
        total = cls()
        for run in runs:
            total.runs += 1
            total.counters += run.counters
            total.dense_cycles += run.dense_cycles
            total.products += run.products
            total.stall_memory += run.stall_memory
            total.traffic += run.traffic
            total.modes[run.mode.name.lower()] += 1
        return total

    @property
    def ratio(self) -> float:
        """How many times the cycles a run in dense mode takes."""
        return self.dense_cycles / max(self.counters.cycles, 1)

    def utilization(self, config: Config) -> float:
        """Share of multiplier cycles that multiply a nonzero digit for a real output channel."""
        return self.products / max(config.multipliers * self.counters.cycles, 1)

    def idleness(self, config: Config) -> dict[str, float]:
        """Share of multiplier cycles that are lost, by cause.

        ``columns``: without an output channel; ``row``: a lane waits for the other one at the end
        of a row; ``item``: no row at work; ``cluster``: done, and others are not.
        """
        counters = self.counters
        lane_cycles = max(config.clusters * config.lanes * counters.cycles, 1)
        return {
            "columns": counters.items / lane_cycles - self.utilization(config),
            "row": counters.stall_row / lane_cycles,
            "item": counters.stall_item / lane_cycles,
            "cluster": counters.stall_cluster / lane_cycles,
        }


def shares(counters: Counters) -> tuple[float, float, float]:
    """Return the shares of zero, narrow and wide deltas."""
    total = max(counters.zero + counters.narrow + counters.wide, 1)
    return counters.zero / total, counters.narrow / total, counters.wide / total


def describe(placement: Placement) -> tuple[str, str]:
    """Return a layer's kind, such as ``conv 3x3/2``, and its sizes."""
    layer = placement.layer
    if isinstance(layer, Product):
        heads, rows, inner, columns = layer.sizes(placement.shape)
        kind = "product" if heads == 1 else f"product, {heads} heads"
        return kind, f"{rows} x {inner} -> {columns}"
    height, width = layer.image(placement.shape)
    if layer.kind == "linear":
        return "linear", f"{height * width} x {layer.channels} -> {layer.outputs}"
    kind = f"conv {layer.kernel[0]}x{layer.kernel[1]}"
    if layer.is_transposed:
        height, width = (1, *placement.shape[2:])[-2:]
        kind = f"transposed {kind}/{layer.spacing[0]}"
    elif layer.stride != (1, 1):
        kind += f"/{layer.stride[0]}"
    if layer.groups > 1:
        kind += f" g{layer.groups}"
    return kind, f"{height}x{width} x {layer.channels} -> {layer.outputs}"


def report(
    drawing: Drawing,
    program: Program,
    timesteps: Sequence[int],
    *,
    on_host: Mapping[str, str] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Make the report of a run, which can be written as JSON.

    Parameters
    ----------
    drawing
        The run.
    program
        The program that ran.
    timesteps
        Timesteps of the sampler.
    on_host
        Layers that stay on the host, and why.
    facts
        More entries.
    """
    runs = [run for sample in drawing.runs for run in sample]
    config = program.config
    total = Total.of(runs)
    # Of the samples and steps that ran: a run that was taken up again lacks those before.
    ran = {(sample, run.step) for sample, own in enumerate(drawing.runs) for run in own}
    steps = max(len(ran), 1)
    layers = []
    for index, placement in enumerate(program.layers):
        kind, sizes = describe(placement)
        part = Total.of(run for run in runs if run.layer == index)
        entry = {"name": placement.layer.name, "kind": kind, "sizes": sizes}
        layers.append(entry | {"bands": len(placement.bands)} | _numbers(part, steps, config))
    by_step = [
        {"step": step, "timestep": timestep}
        | _numbers(
            Total.of(run for run in runs if run.step == step),
            max(sum(at == step for _, at in ran), 1),
            config,
        )
        for step, timestep in enumerate(timesteps)
    ]
    clock = drawing.clock_cycles
    return facts | {
        "configuration": asdict(config),
        "memory": {
            "weight_rows": program.weight_rows,
            "accumulator_rows": program.accumulator_rows,
            "layers": program.entries,
        },
        "seconds": round(drawing.seconds, 3),
        "clock_cycles": clock,
        "clock_hertz": None if clock is None else round(clock / max(drawing.seconds, 1e-9)),
        "link_share": None if clock is None else 1 - total.counters.cycles / clock,
        "steps_run": len(ran),
        "resent_commands": drawing.resent,
        "host": _host(drawing, on_host or {}),
        "total": _numbers(total, steps, config),
        "layers": layers,
        "steps": by_step,
    }


def _host(drawing: Drawing, on_host: Mapping[str, str]) -> dict[str, Any]:
    """Return what the host did itself: its operators' share of the time, and layers among them."""
    took = dict(sorted(drawing.host_seconds.items(), key=lambda item: -item[1]))
    own = sum(took.values())
    total = max(own + drawing.layer_seconds, 1e-9)
    return {
        "share": own / total,
        "operators": {name: seconds / total for name, seconds in took.items()},
        "layers": dict(on_host),
    }


def _numbers(total: Total, steps: int, config: Config) -> dict[str, Any]:
    zero, narrow, wide = shares(total.counters)
    return {
        "counters": total.counters._asdict(),
        "dense_cycles": total.dense_cycles,
        "cycles_per_step": total.counters.cycles / steps,
        "dense_cycles_per_step": total.dense_cycles / steps,
        "ratio": total.ratio,
        "zero": zero,
        "narrow": narrow,
        "wide": wide,
        "modes": dict(sorted(total.modes.items())),
        "stall_memory": total.stall_memory,
        "traffic": total.traffic._asdict(),
        "utilization": total.utilization(config),
        "idleness": total.idleness(config),
    }
