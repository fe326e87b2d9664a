"""Fuzz what reads bytes that others have made: frames, answers of devices, models, states.

    python tests/fuzz/run.py -o fuzz.json [--runs 20000] [--only model,checkpoint] [--atheris]

A target is a function of bytes that must return: whatever it is given, the code under it may refuse
with its own errors only. Each runs in a process of its own with bounded memory; a case that takes
seconds is a failure, and so is a file that appears. With ``--atheris``, coverage guides the bytes.
"""

import argparse
import importlib.util
import io
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ditto.hdl.config import Config
from ditto.hdl.protocol import Opcode, identity
from ditto.host.device import Device, DeviceError
from ditto.host.framing import Decoder, encode
from ditto.host.layers import ModelError
from ditto.host.model import Model
from ditto.host.program import PlacementError, Program, suggest
from ditto.host.resume import Checkpoint, ResumeError
from ditto.host.samplers import DDIM, SamplerError, Schedule, load_inputs, noise_of
from ditto.sim import disturbance
from ditto.sim.golden_board import GoldenBoard

TESTS = Path(__file__).parents[1]
MEMORY = 4 << 30
SECONDS = 20
"""For a single case."""

CONFIG = disturbance.CONFIG


@cache
def denoiser() -> bytes:
    spec = importlib.util.spec_from_file_location("models", TESTS / "host" / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["models"] = module
    spec.loader.exec_module(module)
    return module.denoiser().SerializeToString()


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="ditto-fuzz-"))


def frames(data: bytes) -> None:
    """The decoder holds no more than a frame, and finds those that are whole."""
    decoder = Decoder(max_frame=64)
    for start in range(0, len(data), 7):
        for body in decoder.feed(data[start : start + 7]):
            assert 0 < len(body) <= 60
        assert len(decoder._held) <= 67
    if data and len(data) <= 60:
        assert decoder.feed(b"\0" + encode(data))[-1] == data


class Talker:
    """A transport that answers each frame with the next piece of the data."""

    def __init__(self, data: bytes, board: GoldenBoard | None, clock: disturbance.Clock) -> None:
        self.data, self.board, self.clock = data, board, clock

    def write(self, data: bytes) -> None:
        if self.board is not None:
            self.board.write(data)

    def read(self, size: int, timeout: float) -> bytes:
        piece, self.data = self.data[:16], self.data[16:]
        if self.board is not None:
            piece += self.board.read(size, 0)
        if not piece:
            self.clock.sleep(timeout)
        return piece

    def close(self) -> None:
        pass


def driver(data: bytes) -> None:
    """A device may answer anything, between what a real one does or instead."""
    with disturbance.counted_time() as clock:
        for board in (None, GoldenBoard(CONFIG)):
            try:
                device = Device(Talker(data, board, clock), timeout=0.01, tries=3)
                device.reset()
                device.read_accumulators(0, 2)
                device.counters()
            except DeviceError:
                pass


def answers(data: bytes) -> None:
    """IDENTIFY with a right frame around anything."""

    class Stranger(Talker):
        def write(self, data: bytes) -> None:
            (body,) = Decoder().feed(data)
            self.data = encode(body[:2] + bytes([Opcode.IDENTIFY.value, 0]) + given)

    given = data
    with disturbance.counted_time() as clock:
        try:
            Device(Stranger(b"", None, clock), timeout=0.01, tries=2)
        except DeviceError:
            pass


def board(data: bytes) -> None:
    """The command machine answers every body of a header's length, and never fails."""
    with disturbance.counted_time():
        target = GoldenBoard(CONFIG)
        rest = data
        while rest:
            length, rest = 12 + rest[0] % 60, rest[1:]
            body, rest = rest[:length], rest[length:]
            target.write(encode(body.ljust(12, b"\0")))
            (answer,) = Decoder().feed(target.read(1 << 20, 0))
            assert len(answer) >= 4


def load_model(path: Path) -> None:
    try:
        model = Model.load(path)
        Schedule.from_metadata(model.metadata)
        shapes = model.shapes()
        Program(model.layers, shapes, suggest(model.layers, shapes, Config()))
    except (ModelError, PlacementError):
        pass


def model(data: bytes) -> None:
    path = folder() / "case.onnx"
    path.write_bytes(data)
    load_model(path)


def graph(data: bytes) -> None:
    """Models that are well-formed files: attributes, sizes, inputs and nodes are others."""
    import onnx

    rng = random.Random(data)
    proto = onnx.load_model_from_string(denoiser())
    numbers = [-1, 0, 1, 2, 3, 7, 255, 1 << 20, 1 << 31, (1 << 62) + 1]
    graph = proto.graph
    names = [name for node in graph.node for name in (*node.input, *node.output)] + ["", "x"]
    for _ in range(rng.choice([1, 1, 2, 4])):
        node = rng.choice(graph.node)
        tensor = rng.choice(graph.initializer)
        match rng.randrange(9):
            case 0 if node.attribute:
                attribute = rng.choice(node.attribute)
                if attribute.ints:
                    attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(numbers)
                attribute.i = rng.choice(numbers)
            case 1 if node.attribute:
                del node.attribute[rng.randrange(len(node.attribute))]
            case 2 if node.input:
                node.input[rng.randrange(len(node.input))] = rng.choice(names)
            case 3:
                node.op_type = rng.choice([*(n.op_type for n in graph.node), "Nothing", "Loop"])
            case 4:
                graph.node.remove(node)
            case 5 if tensor.dims:
                tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(numbers)
            case 6:
                tensor.data_type = rng.randrange(20)
            case 7:
                tensor.raw_data = rng.randbytes(rng.choice([0, 1, len(tensor.raw_data)]))
            case _:
                shape = rng.choice(graph.input).type.tensor_type.shape
                if shape.dim:
                    rng.choice(shape.dim).dim_value = rng.choice(numbers)
    path = folder() / "graph.onnx"
    path.write_bytes(proto.SerializeToString())
    load_model(path)


def checkpoint(data: bytes) -> None:
    path = folder() / "case.state"
    path.write_bytes(data)
    try:
        checkpoint = Checkpoint(path, {"model": "a"}, resume=True)
        checkpoint.__enter__()
        for state in checkpoint.states.values():
            assert isinstance(state.step, int) and state.latents.shape == state.estimate.shape
        assert checkpoint.steps >= 0
    except ResumeError:
        pass


def inputs(data: bytes) -> None:
    path = folder() / "case.npz"
    path.write_bytes(data)
    try:
        load_inputs(path)
    except ModelError:
        pass


def schedule(data: bytes) -> None:
    """Properties of a model: noise schedules."""
    parts = data.decode(errors="replace").split("\n")
    names = "schedule prediction train_steps beta_start beta_end clip_sample classes".split()
    metadata = {
        f"ditto.{name}": part for name, part in zip(names, parts, strict=False) if part != "-"
    }
    try:
        DDIM(Schedule.from_metadata(metadata), steps=1)
    except (ModelError, SamplerError):
        pass


def state_file(**facts: Any) -> bytes:
    """Write a state as a run does, with other facts if given."""
    latents = np.zeros((1, 1, 1, 6, 6), np.float32)
    whole = {
        "format": 1,
        "identity": {"model": "a"},
        "samples": [{"sample": 0, "step": 1, "rng": noise_of(0, 0).bit_generator.state}],
    }
    raw = io.BytesIO()
    text = json.dumps(whole | facts).encode()
    np.savez(raw, facts=np.frombuffer(text, np.uint8), latents=latents, estimates=latents)
    return raw.getvalue()


def archive() -> bytes:
    raw = io.BytesIO()
    np.savez_compressed(raw, context=np.arange(12.0).reshape(3, 4))
    return raw.getvalue()


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "frames": (frames, lambda: [encode(b"abc") + encode(bytes(20)), bytes(60)]),
    "driver": (driver, lambda: [encode(b"\0\0\1\0DITT" + bytes(90)), b""]),
    "answers": (answers, lambda: [identity(CONFIG.digest, CONFIG.pack())]),
    "board": (
        board,
        lambda: [b"\0\0\0\1" + bytes(9) + b"\x20\1\0\3" + bytes(9) + b"\x08\2\0\5" + b"\1" * 9],
    ),
    "model": (model, lambda: [denoiser()]),
    "graph": (graph, lambda: [bytes(8)]),
    "checkpoint": (
        checkpoint,
        lambda: [
            state_file(),
            state_file(identity=[]),
            state_file(samples={}),
            state_file(samples=[{"sample": "x", "step": None, "rng": 3}]),
            state_file(format={}),
        ],
    ),
    "inputs": (inputs, lambda: [archive()]),
    "schedule": (
        schedule,
        lambda: [b"linear\nepsilon\n1000\n0.0001\n0.02\n1\n10", b"-\n-\n99999999999999"],
    ),
}


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Change some bytes: single ones, numbers, pieces that are cut, repeated or moved."""
    part = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(part) + 1)
        length = rng.choice([1, 1, 2, 4, 8, 64])
        match rng.randrange(6):
            case 0 if at < len(part):
                part[at] ^= 1 << rng.randrange(8)
            case 1:
                part[at : at + length] = rng.randbytes(length)
            case 2:
                del part[at : at + length]
            case 3:
                part[at:at] = part[at : at + length] * rng.choice([1, 2, 30])
            case 4:
                part[at : at + length] = rng.choice([b"\xff", b"\0", b"\x7f"]) * length
            case _:
                source = rng.randrange(len(part) + 1)
                part[at : at + length] = part[source : source + length]
    return bytes(part)


def limit(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def expire(*_: object) -> None:
    raise TimeoutError(f"a case took more than {SECONDS} s")


def fuzz(name: str, runs: int, seed: int, work: Path) -> int:
    """Run a target; a failure leaves its case in the folder."""
    target, seeds = TARGETS[name]
    rng = random.Random(f"{seed} {name}")
    known = seeds()
    signal.signal(signal.SIGALRM, expire)
    warnings.simplefilter("ignore")
    case = work / "case"
    for number in range(runs):
        data = known[number] if number < len(known) else mutated(rng, rng.choice(known))
        case.write_bytes(data)
        signal.alarm(SECONDS)
        target(data)
        signal.alarm(0)
        if number % 20 == 0:
            (work / "count").write_text(str(number + 1))
    (work / "count").write_text(str(runs))
    return runs


def fuzz_by_coverage(name: str, runs: int, seconds: int, work: Path) -> None:
    """Run a target under atheris, for so many runs or seconds; it ends the process."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["ditto"]):
        pass
    target, seeds = TARGETS[name]
    corpus = work / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds()):
        (corpus / str(number)).write_bytes(data)
    for module in [m for n, m in list(sys.modules.items()) if n.startswith("ditto.")]:
        for value in list(vars(module).values()):
            if callable(value) and getattr(value, "__module__", "") == module.__name__:
                if hasattr(value, "__code__"):
                    atheris.instrument_func(value)
    warnings.simplefilter("ignore")
    arguments = [f"-runs={runs}", f"-max_total_time={seconds}", f"-timeout={SECONDS}"]
    arguments += ["-rss_limit_mb=2048", "-max_len=8192"]
    atheris.Setup(
        [sys.argv[0], *arguments, f"-artifact_prefix={work}/", "-seed=1", str(corpus)], target
    )
    atheris.Fuzz()


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a target in a process of its own."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ditto-fuzz-") as temporary:
        work = Path(temporary)
        (work / "outside").mkdir()
        words = [sys.executable, str(Path(__file__).resolve()), "--inside", name, "-o", temporary]
        words += ["--runs", str(options.runs), "--seed", str(options.seed)]
        words += ["--seconds", str(options.seconds)]
        words += ["--atheris"] if options.atheris else []
        done = subprocess.run(
            words,
            cwd=work / "outside",
            env=os.environ | {"TMPDIR": temporary, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        count = work / "count"
        if options.atheris:
            told = re.search(r"Done (\d+) runs in", done.stdout)
            runs = int(told[1]) if told else 0
        else:
            runs = int(count.read_text() if count.exists() else 0)
        found = {
            "target": name,
            "how": "atheris" if options.atheris else "mutated",
            "runs": runs if done.returncode == 0 else 0,
            "ok": done.returncode == 0 and runs > 0 and not any((work / "outside").iterdir()),
            "seconds": round(time.monotonic() - start),
        }
        if not found["ok"]:
            found["end"] = done.stdout[-2000:]
            case = work / "case"
            if options.keep and case.exists():
                options.keep.mkdir(exist_ok=True)
                (options.keep / name).write_bytes(case.read_bytes())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--seconds", type=int, default=60, help="for a target under atheris (default: 60)"
    )
    parser.add_argument("--only", default=",".join(TARGETS), help="(default: all of them)")
    parser.add_argument("--atheris", action="store_true", help="needs the extra [verify]; Linux")
    parser.add_argument("--keep", type=Path, help="keep what a target failed with in this folder")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        if options.atheris:
            fuzz_by_coverage(options.inside, options.runs, options.seconds, options.output)
        else:
            limit(MEMORY)
            fuzz(options.inside, options.runs, options.seed, options.output)
        return
    report = []
    for name in options.only.split(","):
        report.append(run(name, options))
        print(json.dumps(report[-1]).replace("\\n", "\n"), flush=True)
        options.output.write_text(json.dumps({"targets": report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
