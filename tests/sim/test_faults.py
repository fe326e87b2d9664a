import time
from typing import Any

import pytest

from ditto.host.transport import Transport
from ditto.sim.faults import FaultRates, FaultyTransport

DATA = bytes(range(1, 256)) * 80


class Loopback:
    """Gives back what was written."""

    def __init__(self) -> None:
        self.kept = b""
        self.is_open = True

    def write(self, data: bytes) -> None:
        self.kept += data

    def read(self, size: int, timeout: float) -> bytes:
        data, self.kept = self.kept[:size], self.kept[size:]
        return data

    def close(self) -> None:
        self.is_open = False


def send(transport: Transport, *, piece: int) -> bytes:
    for start in range(0, len(DATA), piece):
        transport.write(DATA[start : start + piece])
    received = b""
    while data := transport.read(piece, 0):
        assert len(data) <= piece
        received += data
    return received


def test_nothing_happens_without_rates() -> None:
    faulty = FaultyTransport(Loopback(), seed=1)
    assert send(faulty, piece=100) == DATA
    assert faulty.faults == 0


@pytest.mark.parametrize("direction", ["to_device", "from_device"])
@pytest.mark.parametrize(
    ("kind", "growth"), [("drop", -1), ("flip", 0), ("duplicate", 1), ("insert", 1), ("swap", 0)]
)
def test_each_fault_happens_at_its_rate(direction: str, kind: str, growth: int) -> None:
    rates: dict[str, Any] = {direction: FaultRates(**{kind: 0.05})}
    faulty = FaultyTransport(Loopback(), seed=1, **rates)
    received = send(faulty, piece=100)
    assert len(received) == len(DATA) + growth * faulty.faults
    assert faulty.faults == pytest.approx(0.05 * len(DATA), rel=0.2)
    if kind == "flip":
        changed = [a ^ b for a, b in zip(received, DATA, strict=True) if a != b]
        assert len(changed) == faulty.faults
        assert {value.bit_count() for value in changed} == {1}
        assert len(set(changed)) == 8


def test_the_cuts_of_the_stream_do_not_matter() -> None:
    rates = FaultRates(drop=0.01, flip=0.01, duplicate=0.01, insert=0.01)
    one, other, third = (
        send(
            FaultyTransport(Loopback(), seed=seed, to_device=rates, from_device=rates), piece=piece
        )
        for seed, piece in ((7, 1000), (7, 33), (8, 33))
    )
    assert one == other != DATA
    assert third != one


def test_everything_lost_ends_with_the_timeout() -> None:
    faulty = FaultyTransport(Loopback(), seed=1, from_device=FaultRates(drop=1))
    faulty.write(b"lost")
    start = time.monotonic()
    assert faulty.read(1000, 0.1) == b""
    assert time.monotonic() - start >= 0.1
    assert faulty.faults == 4


def test_closes_what_it_wraps() -> None:
    inner = Loopback()
    FaultyTransport(inner, seed=1).close()
    assert not inner.is_open


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"drop": -0.1}, "drop must be a probability, not -0.1"),
        ({"flip": float("nan")}, "flip must be a probability, not nan"),
        ({"drop": 0.75, "insert": 0.5}, "fault rates must add up to at most 1, not 1.25"),
    ],
)
def test_refuses_impossible_rates(rates: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        FaultRates(**rates)


def test_a_cut_takes_the_rest_of_its_frame() -> None:
    faulty = FaultyTransport(Loopback(), seed=1, to_device=FaultRates(cut=0.05))
    frames = [bytes(range(1, 30)) + b"\0"] * 100
    for frame in frames:
        faulty.write(frame)
    parts = faulty.read(1 << 16, 0).split(b"\0")[:-1]
    assert all(frames[0].startswith(part) for part in parts)
    # One that begins or ends with the cut byte included.
    assert sum(len(part) < 29 for part in parts) >= 0.8 * faulty.kinds["cut"] > 20


def test_a_stall_is_over_with_its_timeout() -> None:
    faulty = FaultyTransport(Loopback(), seed=1, stall=0.5)
    faulty.write(DATA)
    received = b""
    for _ in range(100):
        received += faulty.read(1 << 10, 0.001)
    assert received == DATA and faulty.kinds["stall"] > 10
