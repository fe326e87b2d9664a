"""Draws samples on one or more devices at once."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditto.hdl.protocol import Mode
from ditto.host.conditioning import Conditioning
from ditto.host.defo import (
    Choice,
    Fixed,
    MakePolicy,
    ModeName,
    Planned,
    Policy,
    Resting,
    costs_of,
    plan,
)
from ditto.host.device import Accelerator
from ditto.host.executor import Executor, LayerRun, Stopped
from ditto.host.model import Model
from ditto.host.program import Program
from ditto.host.resume import Checkpoint, ResumeError
from ditto.host.samplers import Sampler, State, denoise
from ditto.sim.golden import Golden
from ditto.sim.memory import MEMORIES, Memory

__all__ = ["Drawing", "OnStep", "draw", "foresee"]

OnStep = Callable[[int, int, int, Sequence[LayerRun]], None]
"""Called after each step with sample, step, timestep, and what the layers took in it."""


@dataclass
class Drawing:
    """Samples, and what it took to draw them.

    Parameters
    ----------
    images
        Of shape (samples, channels, height, width), -1..1.
    runs
        For each sample, what its layers took in each step.
    seconds
        Wall time.
    clock_cycles
        Clock cycles of all devices in this time, if they tell.
    resent
        Commands that had to be sent more than once.
    host_seconds
        Time that the operators took that stay on the host, by operator; of all devices' hosts.
    layer_seconds
        Time that the layers took, in the same sense.
    """

    images: NDArray[np.float32]
    runs: list[list[LayerRun]] = field(default_factory=list)
    seconds: float = 0.0
    clock_cycles: int | None = None
    resent: int = 0
    host_seconds: dict[str, float] = field(default_factory=dict)
    layer_seconds: float = 0.0


def draw(
    model: Model,
    program: Program,
    open_device: Callable[[], Accelerator],
    sampler: Sampler,
    *,
    samples: int,
    seed: int = 0,
    mode: Mode = Mode.TEMPORAL,
    check: bool = False,
    jobs: int = 1,
    tau: int = 0,
    conditioning: Conditioning | None = None,
    policy: MakePolicy | None = None,
    memory: Memory = MEMORIES["chip"],
    on_step: OnStep | None = None,
    checkpoint: Checkpoint | None = None,
) -> Drawing:
    """Draw samples one after another on each of ``jobs`` devices.

    Sample ``i`` gets the label ``i % classes`` if the model takes one. The result does not depend
    on ``jobs``.

    Parameters
    ----------
    model, program
        The model, and its layers placed on the device.
    open_device
        Opens a device.
    sampler
        The sampler.
    samples
        Number of samples.
    seed
        Seed of the noise.
    mode
        What the steps of a sample after the first start from, where no policy chooses.
    check
        Compare every layer of every step with the golden model.
    jobs
        Number of devices.
    tau
        Differences of at most this magnitude are left in the residual; 0 is exact.
    conditioning
        Inputs that are the same in every step, and guidance; the program has as many states.
    policy
        Makes what chooses the mode of each layer and step of a sample. With ``jobs``, several
        threads call it.
    memory
        What is behind the device's buffers.
    on_step
        Called after each step, by one thread at a time. What it raises ends the drawing.
    checkpoint
        Takes up what it holds, and keeps what each sample comes to: after each step or, where a
        step depends on all those before it (with a threshold, and with some samplers), at its end.
        The result has no runs of what was taken up.

    Raises
    ------
    MismatchError
        If a device differs from the golden model, and ``check`` is on.
    ResumeError
        If the checkpoint holds images of another size.
    """
    given = conditioning or Conditioning(model)
    shape = given.shape
    steps = len(sampler.timesteps)
    starts = dict(checkpoint.states) if checkpoint is not None else {}
    can_go_on = sampler.is_memoryless and tau == 0  # in the middle of a sample
    classes = max(sampler.schedule.classes, 1)
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    stop = threading.Event()
    lock = threading.Lock()
    result = Drawing(np.empty((samples, *shape[1:]), np.float32), [[] for _ in range(samples)])
    for state in starts.values():
        if state.latents.shape != tuple(shape):
            raise ResumeError(
                f"the run to take up has images of {state.latents.shape}, but the model makes "
                f"{tuple(shape)}; delete its file and repeat the command without --resume"
            )
    for sample in range(samples):
        if sample in starts and starts[sample].step == steps:
            result.images[sample] = starts[sample].latents[0]
        else:
            todo.put(sample)

    # Only scales differ between windows: all programs have the same places and weights.
    places = [placement.shape for placement in program.layers]
    programs = [program]
    if len(model.windows) > 1:
        programs = [
            Program(part.layers, places, program.config, states=program.states)
            for part in model.in_windows
        ]

    def work(device: Accelerator) -> None:
        own = model.clone().in_windows
        window = 0
        executor = Executor(
            own[0], programs[0], device, mode=mode, check=check, stop=stop, tau=tau, memory=memory
        )
        while True:
            try:
                sample = todo.get_nowait()
            except queue.Empty:
                with lock:
                    for part in own:
                        for name, took in part.host_seconds.items():
                            before = result.host_seconds.get(name, 0.0)
                            result.host_seconds[name] = before + took
                        result.layer_seconds += part.layer_seconds
                return
            executor.begin(policy(sample) if policy is not None else None)
            start = starts.get(sample)
            if start is not None:
                executor.skip(start.step)

            def predict(
                x: NDArray[np.float32], timestep: int, label: int = sample % classes
            ) -> NDArray[np.float32]:
                nonlocal window
                last, window = window, model.windows.at(timestep)
                if window != last:
                    executor.enter(own[window], programs[window])
                return given.combine(
                    [
                        executor.step(given.inputs(state, x, timestep, label), state)[0]
                        for state in range(given.states)
                    ]
                )

            def after(
                step: int, timestep: int, state: dict[str, Any], sample: int = sample
            ) -> None:
                runs, executor.runs = executor.runs, []
                result.runs[sample] += runs
                if checkpoint is not None and (can_go_on or step + 1 == steps):
                    checkpoint.record(sample, State(step + 1, **state))
                if on_step is not None:
                    with lock:
                        on_step(sample, step, timestep, runs)

            result.images[sample] = denoise(
                predict,
                sampler,
                shape,
                seed=seed,
                sample=sample,
                start=start,
                callback_on_step_end=after,
            )[0]

    if todo.empty():
        return result
    with ExitStack() as stack:
        devices: list[Accelerator] = []
        for _ in range(min(jobs, todo.qsize())):
            devices.append(open_device())
            close = getattr(devices[-1], "close", None)
            if close is not None:
                stack.callback(close)
        clocks = [_clock(device) for device in devices]
        begun = time.monotonic()
        with ThreadPoolExecutor(len(devices)) as pool:
            workers = [pool.submit(work, device) for device in devices]
            try:
                _wait(workers)
            except BaseException:
                # Ends workers at the next layer, and those that wait for a silent device.
                stop.set()
                stack.close()
                raise
        result.seconds = time.monotonic() - begun
        passed = [_clock(device) - then for device, then in zip(devices, clocks, strict=True)]
        result.clock_cycles = sum(passed) or None
        result.resent = sum(getattr(device, "resent", 0) for device in devices)
    return result


def foresee(
    model: Model,
    program: Program,
    sampler: Sampler,
    *,
    seed: int,
    memory: Memory,
    conditioning: Conditioning | None = None,
) -> MakePolicy:
    """Return the oracle: what takes fewest cycles, waits for the memory included, of all choices.

    It draws each sample beforehand on the golden model, twice if layers can be spatial, which takes
    as long again each time. Without a threshold, the sums and so the sample are the same in any
    mode.

    Parameters
    ----------
    model, program, sampler, seed, memory, conditioning
        As for :func:`draw`, without guidance.
    """
    given = conditioning or Conditioning(model)
    classes = max(sampler.schedule.classes, 1)

    costs = costs_of(program, memory)

    def drawn(sample: int, policy: Policy) -> list[list[LayerRun]]:
        """Return the runs of each layer."""
        executor = Executor(model.clone(), program, Golden(program.config), memory=memory)
        executor.begin(policy)

        def predict(x: NDArray[np.float32], timestep: int) -> NDArray[np.float32]:
            return executor.step(given.inputs(0, x, timestep, sample % classes))[0]

        denoise(predict, sampler, given.shape, seed=seed, sample=sample)
        runs: list[list[LayerRun]] = [[] for _ in program.layers]
        for run in executor.runs:
            runs[run.layer].append(run)
        return runs

    def make(sample: int) -> Planned:
        temporal = drawn(sample, Fixed("temporal"))
        are_spatial = any("spatial" in cost.rests for cost in costs)
        resting = drawn(sample, Resting(costs)) if are_spatial else temporal
        choices: list[list[Choice]] = []
        for cost, own, rest in zip(costs, temporal, resting, strict=True):
            cycles: dict[ModeName, NDArray[np.int64]] = {
                "temporal": np.array([run.counters.cycles for run in own]),
                "spatial": np.array([run.counters.cycles for run in rest]),
                "dense": np.array([run.dense_cycles for run in own]),
            }
            choices.append(plan(cost, {m: cycles[m] for m in ("temporal", *cost.rests)}))
        return Planned(choices)

    return make


def _wait(workers: Sequence[Future[None]]) -> None:
    """Wait until all workers are done or one has failed, and raise what it failed with."""
    pending = set(workers)
    while pending:
        # Short waits, so that ^C gets through on every platform.
        done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
        for worker in done:
            error = worker.exception()
            if error is not None and not isinstance(error, Stopped):
                raise error


def _clock(device: Accelerator) -> int:
    """Return the clock cycles of a simulated device so far; 0 for others."""
    return int(getattr(getattr(device, "transport", None), "cycles", 0))
