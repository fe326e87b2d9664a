"""What a run does while it goes on: a line for each layer of each step, and a limit."""

import json
from collections.abc import Sequence
from typing import Any, TextIO

from ditto.host.executor import LayerRun
from ditto.host.program import Program

__all__ = ["LimitError", "Monitor", "record", "wide_share"]


class LimitError(Exception):
    """A run that went beyond a limit.

    Parameters
    ----------
    sample, step
        Where it did.
    message
        What happened, and what to do.
    """

    def __init__(self, sample: int, step: int, message: str) -> None:
        self.sample, self.step = sample, step
        super().__init__(f"sample {sample}, step {step}: {message}")


def record(program: Program, sample: int, timestep: int, run: LayerRun) -> dict[str, Any]:
    """Return what is known of a layer's run, as plain values for JSON."""
    counters = run.counters._asdict()
    # Of the device's, `digits` has what it counts; the mode has a name.
    for name in ("mode", "digits_dense", "digits_temporal", "digits_spatial"):
        del counters[name]
    return {
        "sample": sample,
        "step": run.step,
        "timestep": timestep,
        "layer": program.layers[run.layer].layer.name,
        "mode": run.mode.name.lower(),
        **counters,
        "stall_memory": run.stall_memory,
        "digits": dict(run.digits),
        "traffic": run.traffic._asdict(),
    }


def wide_share(runs: Sequence[LayerRun]) -> float:
    """Return the share of wide deltas in some runs; 0 of nothing."""
    counts = [run.counters for run in runs]
    return sum(c.wide for c in counts) / max(sum(c.zero + c.narrow + c.wide for c in counts), 1)


class Monitor:
    """Watches a drawing: pass it to :func:`ditto.host.session.draw` as ``on_step``.

    Parameters
    ----------
    program
        What runs.
    lines
        Takes a line of JSON for each layer of each step, as soon as the step is done.
    max_wide
        Largest share of wide deltas in the temporal runs of a step.

    Raises
    ------
    LimitError
        When called for a step with more wide deltas than that. Its lines have been written.
    """

    def __init__(
        self, program: Program, *, lines: TextIO | None = None, max_wide: float | None = None
    ) -> None:
        self._program = program
        self._lines = lines
        self._max_wide = max_wide

    def __call__(self, sample: int, step: int, timestep: int, runs: Sequence[LayerRun]) -> None:
        """Take a step."""
        if self._lines is not None:
            for run in runs:
                json.dump(record(self._program, sample, timestep, run), self._lines)
                self._lines.write("\n")
            self._lines.flush()
        if self._max_wide is None:
            return
        temporal = [run for run in runs if run.mode.name == "TEMPORAL"]
        share = wide_share(temporal)
        if share <= self._max_wide:
            return
        worst = max(temporal, key=lambda run: wide_share([run]))
        name = self._program.layers[worst.layer].layer.name
        raise LimitError(
            sample,
            step,
            f"{100 * share:.1f} % of the temporal deltas are wide, more than "
            f"{100 * self._max_wide:g} %; most in layer {name}, "
            f"{100 * wide_share([worst]):.1f} %. Take more steps or less fresh noise (--eta), or "
            "let --policy adaptive leave the temporal mode where it does not pay",
        )
