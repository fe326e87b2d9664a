from typing import Any

import numpy as np
import pytest

from ditto.hdl.config import Config
from ditto.hdl.encoder import DeltaReader, Encoder
from ditto.hdl.protocol import ESCAPE
from ditto.sim.golden import classify, split
from ditto.sim.testbench import each, pauses, put, simulate


def as_bytes(deltas: np.ndarray) -> list[int]:
    """Encode deltas byte by byte, straight from the protocol's text."""
    result: list[int] = []
    for delta in deltas.ravel().tolist():
        if -127 <= delta <= 127:
            result.append(delta & 0xFF)
        else:
            result += [ESCAPE, delta & 0xFF, delta >> 8 & 0xFF]
    return result


def expected(deltas: np.ndarray, config: Config) -> list[list[list[tuple[int, int, int]]]]:
    """List the items (row, digit, shift) of every position and lane."""
    digits = split(deltas, config)
    return [
        [
            [
                (channel // config.lanes, int(digit), shift)
                for channel in range(lane, deltas.shape[1], config.lanes)
                for shift, digit in enumerate(position[channel])
                if digit
            ]
            for lane in range(config.lanes)
        ]
        for position in digits
    ]


def encode(
    config: Config, tiles: list[np.ndarray], seed: int | None = None
) -> tuple[list[Any], dict[str, int]]:
    """Encode tiles one after another; return what the last one left, and the outputs."""
    dut: Any = Encoder(config)
    rows = -(-tiles[-1].shape[1] // config.lanes)
    slot = rows * config.digits
    buffer: dict[tuple[int, int], tuple[int, int, int]] = {}
    counts: list[list[int]] = []
    outputs: dict[str, int] = {}

    async def watch(ctx: Any) -> None:
        ports = [port for item in dut.items for port in (item.en, item.address, item.item)]
        lanes = config.lanes
        async for sample in ctx.tick().sample(*ports, dut.counts.en, dut.counts.counts):
            values, (en, position) = sample[2:-2], sample[-2:]
            for lane in range(lanes):
                write, address, item = values[3 * lane : 3 * lane + 3]
                if write:
                    assert (lane, address) not in buffer, "an item was overwritten"
                    buffer[lane, address] = (item.row, item.digit, item.shift)
            if en:
                counts.append(list(position))

    async def drive(ctx: Any) -> None:
        for tile in tiles:
            buffer.clear()
            counts.clear()
            ctx.set(dut.channels, tile.shape[1])
            ctx.set(dut.channel_rows, rows)
            ctx.set(dut.begin, 1)
            await ctx.tick()
            ctx.set(dut.begin, 0)
            gaps = None if seed is None else pauses(seed)
            await put(ctx, dut.i, as_bytes(tile), gaps)
            while ctx.get(dut.busy):
                await ctx.tick()
        for name in ("zero", "narrow", "wide", "positions", "exact"):
            outputs[name] = ctx.get(getattr(dut, name))

    simulate(dut, drive, background=[watch])
    lists = [
        [[buffer[lane, n * slot + i] for i in range(count)] for lane, count in enumerate(position)]
        for n, position in enumerate(counts)
    ]
    return lists, outputs


@pytest.mark.parametrize("digit_bits", range(2, 10))
def test_every_delta_becomes_its_nonzero_digits(digit_bits: int) -> None:
    config = Config(lanes=3, digit_bits=digit_bits, positions=128, item_depth=4096)
    deltas = np.random.default_rng(digit_bits).permutation(np.arange(-255, 256))[:-1].reshape(-1, 5)
    lists, outputs = encode(config, [deltas])
    assert lists == expected(deltas, config)
    counted = (outputs["zero"], outputs["narrow"], outputs["wide"])
    assert counted == classify(deltas, config)
    assert (outputs["positions"], outputs["exact"]) == (len(deltas), 1)


@pytest.mark.parametrize("activation_bits", range(2, 9))
@pytest.mark.parametrize("channels", [1, 4, 9])
def test_narrow_activations_and_odd_channels(activation_bits: int, channels: int) -> None:
    config = Config(lanes=4, activation_bits=activation_bits, digit_bits=2)
    rng = np.random.default_rng([activation_bits, channels])
    deltas = rng.integers(-config.max_delta, config.max_delta + 1, (12, channels))
    lists, outputs = encode(config, [deltas], seed=channels)
    assert lists == expected(deltas, config)
    assert outputs["exact"] == 1


@pytest.mark.parametrize("lanes", [1, 2, 16])
def test_a_tile_replaces_the_last_one(lanes: int) -> None:
    config = Config(lanes=lanes)
    rng = np.random.default_rng(lanes)
    tiles = [rng.integers(-255, 256, (9, 7)) for _ in range(2)]
    lists, _ = encode(config, tiles)
    assert lists == expected(tiles[-1], config)


def test_a_begun_position_is_not_exact() -> None:
    config = Config(lanes=2)
    dut = Encoder(config)

    async def drive(ctx: Any) -> None:
        ctx.set(dut.channels, 3)
        ctx.set(dut.channel_rows, 2)
        ctx.set(dut.begin, 1)
        await ctx.tick()
        ctx.set(dut.begin, 0)
        await put(ctx, dut.i, [1, 2, 3, 4])
        await ctx.tick().repeat(4)
        assert (ctx.get(dut.positions), ctx.get(dut.exact)) == (1, 0)
        await put(ctx, dut.i, [5, ESCAPE])
        await ctx.tick().repeat(4)
        assert (ctx.get(dut.positions), ctx.get(dut.exact)) == (1, 0)
        await put(ctx, dut.i, [0, 1])
        await ctx.tick().repeat(4)
        assert (ctx.get(dut.positions), ctx.get(dut.exact)) == (2, 1)

    simulate(dut, drive)


def test_what_does_not_fit_is_reported_and_not_written() -> None:
    config = Config(lanes=1, positions=4, item_depth=96)
    deltas = np.ones((5, 1), int)
    lists, outputs = encode(config, [deltas])
    assert len(lists) == 4 and outputs["exact"] == 0

    config = Config(lanes=1, item_depth=96, channel_rows=32)
    deltas = np.ones((4, 9), int)  # 27 items reserved each: three fit
    lists, outputs = encode(config, [deltas])
    assert len(lists) == 3 and outputs["exact"] == 0


def test_narrow_deltas_take_a_cycle_each() -> None:
    config = Config(lanes=4)
    dut = Encoder(config)
    deltas = np.random.default_rng(0).integers(-8, 8, (20, 10))

    async def drive(ctx: Any) -> None:
        ctx.set(dut.channels, 10)
        ctx.set(dut.channel_rows, 3)
        ctx.set(dut.begin, 1)
        await ctx.tick()
        ctx.set(dut.begin, 0)
        cycles = 0
        for byte in as_bytes(deltas):
            ctx.set(dut.i.payload, byte)
            ctx.set(dut.i.valid, 1)
            assert ctx.get(dut.i.ready), f"byte {cycles} had to wait"
            await ctx.tick()
            cycles += 1
        ctx.set(dut.i.valid, 0)
        await ctx.tick()
        assert ctx.get(dut.positions) == 20

    simulate(dut, drive)


def test_reader_forgets_a_begun_delta() -> None:
    dut = DeltaReader(delta_bits=9)
    got: list[int] = []

    async def drive(ctx: Any) -> None:
        for begun in ([ESCAPE], [ESCAPE, 7]):
            await put(ctx, dut.i, begun)
            assert ctx.get(dut.partial)
            ctx.set(dut.clear, 1)
            await ctx.tick()
            ctx.set(dut.clear, 0)
            assert not ctx.get(dut.partial)
            await put(ctx, dut.i, [5])
        await put(ctx, dut.i, [ESCAPE, 0x01, 0xFF])

    async def sink(ctx: Any) -> None:
        async for delta in each(ctx, dut.o):
            got.append(delta)

    simulate(dut, drive, background=[sink])
    assert got == [5, 5, -255]
