from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In

from ditto.hdl.config import Config, Multiplier
from ditto.hdl.multiplier import Products, stored, word_of
from ditto.sim.testbench import simulate

WIDTHS = [(2, 2), (4, 4), (4, 8), (5, 8), (9, 8), (3, 5), (7, 2), (6, 6)]


def config_of(digit_bits: int, weight_bits: int, kind: Multiplier, columns: int) -> Config:
    return Config(columns=columns, digit_bits=digit_bits, weight_bits=weight_bits, multiplier=kind)


class Stored(wiring.Component):
    """Multipliers behind the way into a weight bank."""

    word: data.View
    digit: Signal

    def __init__(self, config: Config) -> None:
        self.config = config
        self.products: Any = Products(config)
        super().__init__({"word": In(word_of(config)), "digit": In(signed(config.digit_bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.products = self.products
        m.d.comb += [
            self.products.weights.eq(stored(self.config, self.word)),
            self.products.digit.eq(self.digit),
        ]
        return m


def check(config: Config, words: np.ndarray) -> None:
    """Multiply words of shape (count, columns) with every digit."""
    half = 1 << config.digit_bits - 1
    dut: Any = Stored(config)

    async def drive(ctx: Any) -> None:
        for word in words.tolist():
            ctx.set(dut.word, word)
            for digit in range(-half, half):
                ctx.set(dut.digit, digit)
                await ctx.tick()
                carries = ctx.get(dut.products.carries)
                got = [
                    ctx.get(value) + (carries >> n & 1)
                    for n, value in enumerate(dut.products.values)
                ]
                assert got == [weight * digit for weight in word], (digit, word)

    simulate(dut, drive)


@pytest.mark.parametrize("kind", Multiplier)
@pytest.mark.parametrize(("digit_bits", "weight_bits"), WIDTHS)
def test_every_digit_times_every_weight(
    digit_bits: int, weight_bits: int, kind: Multiplier
) -> None:
    config = config_of(digit_bits, weight_bits, kind, 16)
    weights = np.arange(config.min_weight, 1 << weight_bits - 1)
    # Every weight once, and every one in an even and in an odd column.
    rows = [np.resize(np.roll(weights, shift), -(-len(weights) // 16) * 16) for shift in (0, 1)]
    check(config, np.concatenate(rows).reshape(-1, 16))


@pytest.mark.parametrize(("digit_bits", "weight_bits"), [(4, 8), (2, 2), (4, 4), (5, 7), (3, 8)])
def test_two_products_of_one_block_do_not_touch_each_other(
    digit_bits: int, weight_bits: int
) -> None:
    config = config_of(digit_bits, weight_bits, Multiplier.DSP, 2)
    assert config.is_packed
    weights = np.arange(config.min_weight, 1 << weight_bits - 1)
    ends = np.unique(np.concatenate([weights[:4], weights[-4:], [-2, -1, 0, 1, 2]]))
    ends = ends[(ends >= weights[0]) & (ends <= weights[-1])]
    pairs = np.stack(np.meshgrid(ends, ends), axis=-1).reshape(-1, 2)
    random = np.random.default_rng(0).choice(weights, (100, 2))
    check(config, np.concatenate([pairs, random]))


def test_an_odd_column_has_a_block_of_its_own() -> None:
    config = config_of(4, 8, Multiplier.DSP, 3)
    check(config, np.random.default_rng(1).integers(-127, 128, (40, 3)))
