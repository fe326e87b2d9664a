"""Train, export and quantize the demo model: a small U-Net that draws digits of 16x16 pixels.

The result is an ONNX file of the QDQ kind: int8 weights per output channel, int8 activations per
tensor, everything symmetric. The facts that a sampler needs (noise schedule, number of classes,
image shape) are in the file's metadata under keys that begin with ``ditto.``.

It needs PyTorch and ONNX Runtime: ``pip install 'ditto-accel[train]'``.
"""

# The extra's packages need not be there when types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

if TYPE_CHECKING:
    import onnxruntime as ort
    import torch

__all__ = [
    "build_network",
    "calibration_feeds",
    "export_onnx",
    "load_digits",
    "main",
    "psnr",
    "quantize",
    "sample",
    "train_network",
]

SIZE = 16
CLASSES = 10
TRAIN_STEPS = 1000
BETA_START = 1e-4
BETA_END = 0.02
OPSET = 19
METADATA = {
    "ditto.train_steps": str(TRAIN_STEPS),
    "ditto.schedule": "linear",
    "ditto.beta_start": str(BETA_START),
    "ditto.beta_end": str(BETA_END),
    "ditto.prediction": "epsilon",
    "ditto.clip_sample": "1",
    "ditto.image": f"1x{SIZE}x{SIZE}",
    "ditto.classes": str(CLASSES),
}


def alphas_cumprod() -> npt.NDArray[np.float64]:
    """Return the share of signal power that is left after each noising step.

    Returns
    -------
    numpy.ndarray
        ``TRAIN_STEPS`` values, falling from almost 1 to almost 0.
    """
    return np.cumprod(1.0 - np.linspace(BETA_START, BETA_END, TRAIN_STEPS), dtype=np.float64)


def load_digits(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Read MNIST and resample its training images to 16x16.

    Two pixels are cut off at each side (they are empty but for a few strokes' ends), and the
    remaining 24x24 pixels are averaged by area: each new pixel covers 1.5x1.5 old ones.

    Parameters
    ----------
    path
        An ``.npz`` file with ``train_x`` (N, 28, 28) of type uint8 and ``train_y`` (N,).

    Returns
    -------
    images : numpy.ndarray
        (N, 1, 16, 16), from -1 (paper) to 1 (ink).
    labels : numpy.ndarray
        (N,), from 0 to 9.
    """
    with np.load(path) as data:
        images, labels = data["train_x"], data["train_y"]
    margin = 2
    cut = images[:, margin:-margin, margin:-margin].astype(np.float32) / 255.0
    old = cut.shape[1]
    ratio = old / SIZE
    start = np.arange(SIZE)[:, None] * ratio
    pixel = np.arange(old)[None, :]
    overlap = np.minimum(start + ratio, pixel + 1) - np.maximum(start, pixel)
    average = (np.maximum(overlap, 0.0) / ratio).astype(np.float32)
    small = average @ cut @ average.T
    return (small * 2.0 - 1.0)[:, None], labels.astype(np.int64)


def build_network(channels: Sequence[int] = (16, 32, 32), embedding: int = 64) -> torch.nn.Module:
    """Build the U-Net with fresh weights.

    It has three levels (16x16, 8x8, 4x4) and self-attention at the lowest. Upsampling comes after
    the convolution that narrows the channels, so that this convolution runs at the lower
    resolution. All channel counts but those of the image are multiples of 16.

    Parameters
    ----------
    channels
        Channels of each level, highest resolution first.
    embedding
        Width of the embedding of timestep and label.

    Returns
    -------
    torch.nn.Module
        Called with ``sample`` (B, 1, 16, 16), ``timestep`` (B,) and ``label`` (B,), both int64;
        returns the predicted noise.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    groups = 8
    heads = 2
    frequencies = 16

    def upsample(x: torch.Tensor) -> torch.Tensor:
        # Nearest neighbour without a Resize operator, which onnx.reference runs very slowly.
        _, width, side, _ = x.shape
        tiles = x.reshape(-1, width, side, 1, side, 1) * torch.ones(1, 1, 1, 2, 1, 2)
        return tiles.reshape(-1, width, 2 * side, 2 * side)

    class Residual(nn.Module):
        """Two convolutions with the embedding added between them; a skip runs beside them."""

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.norm1 = nn.GroupNorm(groups, inputs)
            self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
            self.embed = nn.Linear(embedding, outputs)
            self.norm2 = nn.GroupNorm(groups, outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
            nn.init.zeros_(self.conv2.weight)

        def forward(
            self, x: torch.Tensor, context: torch.Tensor, skip: torch.Tensor
        ) -> torch.Tensor:
            h = self.conv1(functional.silu(self.norm1(x)))
            h = h + self.embed(context)[:, :, None, None]
            return skip + self.conv2(functional.silu(self.norm2(h)))

    class Attention(nn.Module):
        """Self-attention among the pixels, with 1x1 convolutions as projections."""

        def __init__(self, width: int, side: int) -> None:
            super().__init__()
            self.width, self.side = width, side
            self.norm = nn.GroupNorm(groups, width)
            self.qkv = nn.Conv2d(width, 3 * width, 1)
            self.out = nn.Conv2d(width, width, 1)
            nn.init.zeros_(self.out.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            size = self.width // heads
            qkv = self.qkv(self.norm(x)).reshape(-1, 3 * heads, size, self.side**2)
            q, k, v = qkv[:, :heads], qkv[:, heads : 2 * heads], qkv[:, 2 * heads :]
            weights = ((q * size**-0.5).transpose(2, 3) @ k).softmax(dim=-1)
            h = (weights @ v.transpose(2, 3)).transpose(2, 3)
            return x + self.out(h.reshape(-1, self.width, self.side, self.side))

    class UNet(nn.Module):
        rates: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            high, middle, low = channels
            rates = torch.exp(-math.log(TRAIN_STEPS) * torch.arange(frequencies) / frequencies)
            self.register_buffer("rates", rates, persistent=False)
            self.time = nn.Sequential(
                nn.Linear(2 * frequencies, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
            )
            self.label = nn.Embedding(CLASSES, embedding)
            self.conv_in = nn.Conv2d(1, high, 3, padding=1)
            self.down16 = Residual(high, high)
            self.shrink16 = nn.Conv2d(high, middle, 3, stride=2, padding=1)
            self.down8 = Residual(middle, middle)
            self.shrink8 = nn.Conv2d(middle, low, 3, stride=2, padding=1)
            self.low1 = Residual(low, low)
            self.attention = Attention(low, SIZE // 4)
            self.low2 = Residual(low, low)
            self.grow4 = nn.Conv2d(low, middle, 3, padding=1)
            self.up8a = Residual(middle, middle)
            self.up8b = Residual(middle, middle)
            self.grow8 = nn.Conv2d(middle, high, 3, padding=1)
            self.up16 = Residual(2 * high, high)
            self.norm_out = nn.GroupNorm(groups, high)
            self.conv_out = nn.Conv2d(high, 1, 3, padding=1)
            nn.init.zeros_(self.conv_out.weight)

        def forward(
            self, sample: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor
        ) -> torch.Tensor:
            angles = timestep.float()[:, None] * self.rates
            waves = torch.cat((angles.sin(), angles.cos()), dim=1)
            context = functional.silu(self.time(waves) + self.label(label))

            x = self.conv_in(sample)
            skip16 = x = self.down16(x, context, x)
            x = self.shrink16(x)
            skip8 = x = self.down8(x, context, x)
            x = self.shrink8(x)
            x = self.low1(x, context, x)
            x = self.attention(x)
            x = self.low2(x, context, x)
            x = upsample(self.grow4(x)) + skip8
            x = self.up8a(x, context, x)
            x = self.up8b(x, context, x)
            x = upsample(self.grow8(x))
            x = self.up16(torch.cat((x, skip16), dim=1), context, x + skip16)
            return self.conv_out(functional.silu(self.norm_out(x)))

    return UNet()


def train_network(
    network: torch.nn.Module,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    checkpoint: Path,
    *,
    steps: int,
    batch: int,
    rate: float,
    decay: float,
    seed: int,
) -> None:
    """Train the network to predict the noise, and leave the averaged weights in it.

    AdamW with a linear warm-up over the first 5 % of the steps and a cosine fall to zero; the
    weights that count are an exponential moving average. The checkpoint is written every 500
    steps and at the end.

    Parameters
    ----------
    network
        The network, changed in place.
    images, labels
        Training data as from :func:`load_digits`.
    checkpoint
        File for the averaged weights, written with ``torch.save``.
    steps, batch
        Number of optimizer steps, and images in each.
    rate
        Highest learning rate.
    decay
        Decay of the moving average per step.
    seed
        Seed of the draws of images, timesteps and noise.
    """
    import torch
    from torch.optim.swa_utils import AveragedModel

    generator = torch.Generator().manual_seed(seed)
    pictures, classes = torch.from_numpy(images), torch.from_numpy(labels)
    signal = torch.from_numpy(alphas_cumprod()).float().sqrt()
    noise_level = (1.0 - signal**2).sqrt()
    warmup = max(1, steps // 20)

    def schedule(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    # Channels last is twice as fast on a CPU.
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    network.train()
    average = AveragedModel(
        network,
        avg_fn=lambda old, new, n: old + (1.0 - min(decay, (1 + n) / (10 + n))) * (new - old),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    recent = 0.0
    for step in range(1, steps + 1):
        pick = torch.randint(len(pictures), (batch,), generator=generator)
        # One timestep from each of `batch` equal slices: less noise in the gradient.
        place = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        timestep = (place * TRAIN_STEPS).long().clamp(max=TRAIN_STEPS - 1)
        noise = torch.randn(batch, 1, SIZE, SIZE, generator=generator)
        noised = (
            signal[timestep, None, None, None] * pictures[pick]
            + noise_level[timestep, None, None, None] * noise
        )
        loss = ((network(noised, timestep, classes[pick]) - noise) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        average.update_parameters(network)
        recent += loss.item()
        if step % 100 == 0:
            passed = time.monotonic() - began
            print(f"step {step}/{steps}: loss {recent / 100:.4f}, {passed:.0f} s", flush=True)
            recent = 0.0
        if step % 500 == 0 or step == steps:
            torch.save(average.module.state_dict(), checkpoint)
    network.load_state_dict(average.module.state_dict())


def export_onnx(network: torch.nn.Module, path: Path) -> None:
    """Write the network as a float32 ONNX file whose batch dimension is open.

    Parameters
    ----------
    network
        A network from :func:`build_network`.
    path
        The file to write.
    """
    import torch

    network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    network.eval()
    example = (
        torch.zeros(2, 1, SIZE, SIZE),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
    )
    names = ["sample", "timestep", "label"]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        network,
        example,
        str(path),
        input_names=names,
        output_names=["noise"],
        dynamic_axes={name: {0: "batch"} for name in [*names, "noise"]},
        opset_version=OPSET,
        dynamo=False,
    )
    model = onnx.load(path)
    _save(model, path)


def open_session(path: Path) -> ort.InferenceSession:
    """Open an ONNX file without graph optimizations, which would change the int8 rounding.

    Parameters
    ----------
    path
        The file to open.

    Returns
    -------
    onnxruntime.InferenceSession
        A session on the CPU.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def trajectory(
    session: ort.InferenceSession, labels: npt.NDArray[np.int64], *, steps: int, seed: int
) -> Iterator[tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.float32]]]:
    """Run DDIM without added noise (eta = 0), from the noisiest of evenly spaced timesteps to 0.

    Parameters
    ----------
    session
        The network.
    labels
        The digit that each image shall show.
    steps
        Number of steps.
    seed
        Seed of the first noise.

    Yields
    ------
    feed : dict
        The network's inputs at this step.
    estimate : numpy.ndarray
        The image without noise as predicted at this step, clipped to -1..1; the last one is the
        result.
    """
    power = alphas_cumprod()
    times = np.linspace(TRAIN_STEPS - 1, 0, steps).round().astype(np.int64)
    shape = (len(labels), 1, SIZE, SIZE)
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    for index, t in enumerate(times):
        feed = {"sample": x, "timestep": np.full(len(labels), t), "label": labels}
        noise = np.asarray(session.run(None, feed)[0])
        estimate = (x - math.sqrt(1.0 - power[t]) * noise) / math.sqrt(power[t])
        estimate = np.clip(estimate, -1.0, 1.0).astype(np.float32)
        yield feed, estimate
        noise = (x - math.sqrt(power[t]) * estimate) / math.sqrt(1.0 - power[t])
        after = power[times[index + 1]] if index + 1 < steps else 1.0
        x = (math.sqrt(after) * estimate + math.sqrt(1.0 - after) * noise).astype(np.float32)


def sample(
    session: ort.InferenceSession, labels: npt.NDArray[np.int64], *, steps: int, seed: int
) -> npt.NDArray[np.float32]:
    """Draw one image for each label with DDIM.

    Parameters
    ----------
    session
        The network.
    labels
        The digit that each image shall show.
    steps
        Number of steps.
    seed
        Seed of the first noise.

    Returns
    -------
    numpy.ndarray
        (N, 1, 16, 16), from -1 to 1.
    """
    *_, (_, image) = trajectory(session, labels, steps=steps, seed=seed)
    return image


def calibration_feeds(
    session: ort.InferenceSession, *, steps: int, seed: int, images: int
) -> list[dict[str, npt.NDArray[Any]]]:
    """Collect the inputs of every step of some float trajectories.

    Parameters
    ----------
    session
        The float network.
    steps
        Steps of a trajectory.
    seed
        Seed of the first noise.
    images
        Number of trajectories; the digits take turns.

    Returns
    -------
    list of dict
        The network's inputs, one entry a step.
    """
    labels = np.arange(images) % CLASSES
    return [feed for feed, _ in trajectory(session, labels, steps=steps, seed=seed)]


def quantize(
    source: Path,
    target: Path,
    feeds: Sequence[dict[str, npt.NDArray[Any]]],
    *,
    method: str = "max",
) -> None:
    """Quantize every convolution, linear layer and matrix product of an ONNX file to int8.

    Parameters
    ----------
    source
        The float file.
    target
        The int8 file to write.
    feeds
        Inputs that show the range of every activation, as from :func:`calibration_feeds`.
    method
        Where a scale's range ends, as for :func:`ditto.host.quantize.quantize`.
    """
    from ditto.host.quantize import quantize as quantized

    data = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    target.parent.mkdir(parents=True, exist_ok=True)
    _save(quantized(source, data, method=method), target)


def psnr(images: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    """Return the peak signal-to-noise ratio of images from -1 to 1, in decibels.

    Parameters
    ----------
    images, reference
        Arrays of one shape; the squared error is averaged over all of it.

    Returns
    -------
    float
        Infinity for equal images.
    """
    error = float(np.mean((images.astype(np.float64) - reference) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(4.0 / error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments
        The words after the program's name; those of the process if absent.

    Returns
    -------
    int
        The exit status.
    """
    options = _parser().parse_args(arguments)
    try:
        import onnxruntime  # noqa: F401
        import torch
    except ImportError as error:
        print(f"{error}: pip install 'ditto-accel[train]'", file=sys.stderr)
        return 1
    source = options.checkpoint if options.from_checkpoint else options.data
    if not source.is_file():
        print(f"there is no file {source}", file=sys.stderr)
        return 1
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    network = build_network()
    count = sum(parameter.numel() for parameter in network.parameters())
    print(f"{count} parameters")
    if options.from_checkpoint:
        network.load_state_dict(torch.load(options.checkpoint, weights_only=True))
    else:
        images, labels = load_digits(options.data)
        train_network(
            network,
            images,
            labels,
            options.checkpoint,
            steps=options.steps,
            batch=options.batch,
            rate=options.rate,
            decay=options.decay,
            seed=options.seed,
        )

    with tempfile.TemporaryDirectory() as folder:
        float_path = options.float_output or Path(folder) / "float.onnx"
        export_onnx(network, float_path)
        session = open_session(float_path)
        feeds = calibration_feeds(
            session,
            steps=options.sampling_steps,
            seed=options.seed + 1,
            images=options.calibration_images,
        )
        quantize(float_path, options.output, feeds, method=options.calibration)
        digits = np.arange(40) % CLASSES
        check = {"steps": options.sampling_steps, "seed": options.seed + 2}
        exact = sample(session, digits, **check)
        rounded = sample(open_session(options.output), digits, **check)
    print(f"int8 against float, {len(digits)} images: PSNR {psnr(rounded, exact):.1f} dB")
    print(f"wrote {options.output} ({options.output.stat().st_size} bytes)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ditto.host.train",
        description="Train the demo model on MNIST at 16x16 pixels and write it as int8 ONNX. "
        "Needs: pip install 'ditto-accel[train]'",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="NPZ",
        default=Path("mnist.npz"),
        help="MNIST: train_x (N, 28, 28) uint8 and train_y (N,)",
    )
    add(
        "-o",
        "--output",
        type=Path,
        metavar="ONNX",
        default=Path("digits16.int8.onnx"),
        help="the int8 model to write",
    )
    add("--float-output", type=Path, metavar="ONNX", help="keep the float model as well")
    add(
        "--checkpoint",
        type=Path,
        metavar="PT",
        default=Path("build/digits16.pt"),
        help="trained weights, written while training",
    )
    add(
        "--from-checkpoint",
        action="store_true",
        help="don't train; export and quantize what the checkpoint holds",
    )
    add("--seed", type=int, default=0, help="seed of weights, batches and noise")
    add("--steps", type=int, default=5500, help="optimizer steps")
    add("--batch", type=int, default=128, help="images a step")
    add("--rate", type=float, default=2e-3, help="highest learning rate")
    add("--decay", type=float, default=0.999, help="moving average of the weights: decay a step")
    add("--threads", type=int, default=2, help="threads for training")
    add("--sampling-steps", type=int, default=50, help="DDIM steps for calibration and check")
    add(
        "--calibration",
        choices=("max", "percentile"),
        default="max",
        help="range of a scale: largest magnitude, or its 99.9th percentile",
    )
    add("--calibration-images", type=int, default=20, help="trajectories to calibrate with")
    return parser


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model with the metadata that a sampler needs, and tidy what the tools left in it."""
    own = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, own | METADATA)
    model.doc_string = "Digits of 16x16 pixels: class-conditional noise prediction (DDPM)."
    for item in (*model.graph.input, *model.graph.output):
        shape = ["batch", 1, SIZE, SIZE] if item.name in ("sample", "noise") else ["batch"]
        kind = item.type.tensor_type.elem_type
        item.CopyFrom(onnx.helper.make_tensor_value_info(item.name, kind, shape))
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


if __name__ == "__main__":
    sys.exit(main())
