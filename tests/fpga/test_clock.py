import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto.fpga.clock import (
    Clock,
    ClockError,
    Dividers,
    Ecp5Clock,
    GowinClock,
    Ice40Clock,
    Limits,
    XilinxClock,
    dividers,
)

KINDS = [Ecp5Clock, Ice40Clock, GowinClock, XilinxClock]


def output_of(limits: Limits, source: int, chosen: Dividers) -> tuple[float, float, float]:
    """Return the frequencies compared, of the VCO and of the output, as the data sheets have it."""
    compared = source / chosen.input
    fed_back = compared * chosen.feedback
    if limits.feeds_back_vco:
        return compared, fed_back, fed_back / chosen.output
    return compared, fed_back * chosen.output, fed_back


@pytest.mark.parametrize("kind", KINDS)
@given(
    source=st.sampled_from([12, 25, 27, 50, 100, 125]),
    target=st.integers(2, 400),
    half=st.booleans(),
)
def test_dividers_keep_the_limits(kind: type[Clock], source: int, target: int, half: bool) -> None:
    limits = kind.limits
    assert limits is not None
    hertz = 1_000_000 * target + 500_000 * half
    try:
        chosen = dividers(limits, source * 1_000_000, hertz)
    except ClockError:
        return
    compared, vco, output = output_of(limits, source * 1_000_000, chosen)
    assert output == pytest.approx(hertz, rel=1e-12)
    assert limits.compared[0] <= compared <= limits.compared[1]
    assert limits.vco[0] <= vco <= limits.vco[1]
    assert limits.output[0] <= output <= limits.output[1]
    assert chosen.input in limits.inputs
    assert chosen.feedback in limits.feedbacks
    assert chosen.output in limits.outputs


@pytest.mark.parametrize(
    ("kind", "source", "target", "expected"),
    [
        (Ecp5Clock, 25_000_000, 50_000_000, Dividers(1, 2, 12)),
        (Ecp5Clock, 25_000_000, 62_500_000, Dividers(2, 5, 10)),
        # As icepll has it: DIVR 0, DIVF 63, DIVQ 5.
        (Ice40Clock, 12_000_000, 24_000_000, Dividers(1, 64, 32)),
        (GowinClock, 27_000_000, 54_000_000, Dividers(1, 2, 16)),
        (XilinxClock, 100_000_000, 50_000_000, Dividers(1, 12, 24)),
    ],
)
def test_known_clocks(kind: type[Clock], source: int, target: int, expected: Dividers) -> None:
    assert kind.limits is not None
    assert dividers(kind.limits, source, target) == expected


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        (Ice40Clock, 15_000_000, "^SB_PLL40_PAD cannot make 15 MHz of 12 MHz exactly within its"),
        (Ice40Clock, 16_000_001, "cannot make 16 MHz of 12 MHz exactly"),
        (Clock, 24_000_000, "^there is no PLL for this board: its clock is 12 MHz, and 24 MHz"),
    ],
)
def test_impossible_clocks(kind: type[Clock], target: int, message: str) -> None:
    with pytest.raises(ClockError, match=message):
        kind.choose(12_000_000, target)
    assert kind.choose(12_000_000, 12_000_000) is None
