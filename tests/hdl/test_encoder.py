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


Items = list[tuple[int, int, int]]


def expected(deltas: np.ndarray, config: Config) -> list[tuple[Items, Items]]:
    """List the low and the high items (channel, digit, shift) of every position."""
    result = []
    for position in split(deltas, config).tolist():
        items = [
            (channel, digit, min(number, config.shifts - 1))
            for channel, digits in enumerate(position)
            for number, digit in enumerate(digits)
            if digit
        ]
        low = [item for item in items if not item[2]]
        result.append((low, [item for item in items if item[2]]))
    return result


def encode(
    config: Config, tiles: list[np.ndarray], seed: int | None = None
) -> tuple[list[tuple[Items, Items]], dict[str, int]]:
    """Encode tiles one after another; return what the last one left, and the outputs."""
    dut: Any = Encoder(config)
    slot = tiles[-1].shape[1] * config.digits
    buffer: dict[int, tuple[int, int, int]] = {}
    places: list[tuple[int, int, int, int]] = []
    outputs: dict[str, int] = {}

    async def watch(ctx: Any) -> None:
        items, spots = dut.items, dut.places
        ports = (items.en, items.address, items.item, spots.en, spots.address, spots.place)
        async for _, _, en, address, item, is_place, number, place in ctx.tick().sample(*ports):
            if en:
                assert address not in buffer, "an item was overwritten"
                buffer[address] = (item.channel, item.digit, item.shift)
            if is_place:
                places.append((number, place.address, place.low, place.high))

    async def drive(ctx: Any) -> None:
        for tile in tiles:
            buffer.clear()
            places.clear()
            ctx.set(dut.entry.channels, tile.shape[1])
            await ctx.tick()
            ctx.set(dut.begin, 1)
            await ctx.tick()
            ctx.set(dut.begin, 0)
            gaps = None if seed is None else pauses(seed)
            await put(ctx, dut.i, as_bytes(tile), gaps)
            while ctx.get(dut.busy):
                await ctx.tick()
            await ctx.tick().repeat(2)
        for name in ("zero", "narrow", "wide", "positions", "exact"):
            outputs[name] = ctx.get(getattr(dut, name))

    simulate(dut, drive, background=[watch])
    lists = []
    for index, (number, address, low, high) in enumerate(places):
        assert (number, address) == (index, index * slot)
        end = address + slot - 1
        lists.append(
            ([buffer[address + i] for i in range(low)], [buffer[end - i] for i in range(high)])
        )
    return lists, outputs


@pytest.mark.parametrize("digit_bits", range(2, 10))
def test_every_delta_becomes_its_nonzero_digits(digit_bits: int) -> None:
    config = Config(digit_bits=digit_bits, positions=128, item_depth=4096)
    deltas = np.random.default_rng(digit_bits).permutation(np.arange(-255, 256))[:-1].reshape(-1, 5)
    lists, outputs = encode(config, [deltas])
    assert lists == expected(deltas, config)
    counted = (outputs["zero"], outputs["narrow"], outputs["wide"])
    assert counted == classify(deltas, config)
    assert (outputs["positions"], outputs["exact"]) == (len(deltas), 1)


@pytest.mark.parametrize("activation_bits", range(2, 9))
@pytest.mark.parametrize("channels", [1, 4, 9])
def test_narrow_activations_and_odd_channels(activation_bits: int, channels: int) -> None:
    config = Config(activation_bits=activation_bits, digit_bits=2)
    rng = np.random.default_rng([activation_bits, channels])
    deltas = rng.integers(-config.max_delta, config.max_delta + 1, (12, channels))
    lists, outputs = encode(config, [deltas], seed=channels)
    assert lists == expected(deltas, config)
    assert outputs["exact"] == 1


@pytest.mark.parametrize("channels", [7, 16])
def test_a_tile_replaces_the_last_one(channels: int) -> None:
    config = Config(channels=16)
    rng = np.random.default_rng(channels)
    tiles = [rng.integers(-255, 256, (9, channels)) for _ in range(2)]
    lists, _ = encode(config, tiles)
    assert lists == expected(tiles[-1], config)


def test_a_begun_position_is_not_exact() -> None:
    config = Config()
    dut: Any = Encoder(config)

    async def drive(ctx: Any) -> None:
        ctx.set(dut.entry.channels, 3)
        await ctx.tick()
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
    config = Config(positions=4, channels=1, item_depth=96)
    deltas = np.ones((5, 1), int)
    lists, outputs = encode(config, [deltas])
    assert len(lists) == 4 and outputs["exact"] == 0

    config = Config(item_depth=128, channels=32)
    deltas = np.ones((4, 9), int)  # 27 items reserved each: three fit
    lists, outputs = encode(config, [deltas])
    assert len(lists) == 3 and outputs["exact"] == 0


def test_narrow_deltas_take_a_cycle_each() -> None:
    config = Config()
    dut: Any = Encoder(config)
    deltas = np.random.default_rng(0).integers(-8, 8, (20, 10))

    async def drive(ctx: Any) -> None:
        ctx.set(dut.entry.channels, 10)
        await ctx.tick()
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
        await ctx.tick().repeat(2)
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
