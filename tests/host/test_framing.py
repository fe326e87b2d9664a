import random
import re
from zlib import crc32

import pytest
from cobs import cobs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ditto.host.framing import Decoder, encode

BODIES = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.binary(min_size=1, max_size=600),
    st.integers(1, 600).map(bytes),
    st.builds(lambda n, byte: bytes([byte]) * n, st.integers(245, 260), st.integers(0, 255)),
)
quick = settings(deadline=None, max_examples=100)


def frame(body: bytes) -> bytes:
    return cobs.encode(body + crc32(body).to_bytes(4, "little"))


def bodies_in(link: bytes, max_frame: int) -> list[bytes]:
    """Decode as simply as possible."""
    bodies = []
    for part in link.split(b"\0")[:-1]:
        try:
            decoded = cobs.decode(part)
        except cobs.DecodeError:
            continue
        body, crc = decoded[:-4], decoded[-4:]
        if body and len(decoded) <= max_frame and crc == crc32(body).to_bytes(4, "little"):
            bodies.append(body)
    return bodies


def feed_in_pieces(decoder: Decoder, link: bytes, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    bodies, at = [], 0
    while at < len(link):
        size = rng.choice((1, 2, 7, 100, 1000))
        bodies += decoder.feed(link[at : at + size])
        at += size
    return bodies


@quick
@given(BODIES)
def test_frames_match_the_reference(body: bytes) -> None:
    assert encode(body) == b"\0" + frame(body) + b"\0"


def test_frames_of_all_lengths_match_the_reference() -> None:
    rng = random.Random(0)
    for length in range(1, 1100):
        for body in (bytes(length), b"\7" * length, rng.randbytes(length)):
            assert encode(body) == b"\0" + frame(body) + b"\0"
            assert Decoder().feed(encode(body)) == [body]


@quick
@given(st.lists(BODIES, max_size=5), st.integers(0, 1000))
def test_bodies_come_back_in_order(bodies: list[bytes], seed: int) -> None:
    decoder = Decoder()
    assert feed_in_pieces(decoder, b"".join(map(encode, bodies)), seed) == bodies
    assert decoder.dropped == 0


@quick
@given(st.lists(st.one_of(BODIES.map(encode), st.binary(max_size=30)), max_size=8), st.data())
def test_damage_costs_no_more_than_the_damaged_frames(
    parts: list[bytes], data: st.DataObject
) -> None:
    link = bytearray(b"".join(parts))
    for at in data.draw(st.lists(st.integers(0, max(len(link) - 1, 0)), max_size=4)):
        if at < len(link):
            link[at] = data.draw(st.integers(0, 255))
    decoder = Decoder(max_frame=300)
    got = feed_in_pieces(decoder, bytes(link) + encode(b"the next one"), 0)
    assert got == bodies_in(bytes(link) + encode(b"the next one"), 300)
    assert got[-1] == b"the next one"
    parts = (bytes(link) + encode(b"the next one")).split(b"\0")
    assert decoder.dropped == sum(map(bool, parts)) - len(got)


@quick
@given(st.binary(max_size=300))
@example(cobs.encode(b"\0\0\0\0"))
@example(b"\xff" + b"\7" * 254 + b"\1")
def test_any_bytes_decode_as_the_reference_does(link: bytes) -> None:
    assert Decoder().feed(link + b"\0") == bodies_in(link + b"\0", 1 << 16)


def test_full_last_block_may_be_followed_by_a_code_byte() -> None:
    body = next(body for n in range(1, 256) if frame(body := bytes([n]) * 250)[0] == 0xFF)
    stuffed = frame(body)
    assert stuffed[0] == 0xFF and len(stuffed) == 255
    assert Decoder(max_frame=254).feed(stuffed + b"\1\0") == [body]


def test_longest_frame_and_one_byte_more() -> None:
    decoder = Decoder(max_frame=64)
    lengths = (59, 60, 61, 62, 63, 64, 65, 66, 67, 1000, 60)
    got = decoder.feed(b"".join(encode(b"\7" * length) for length in lengths))
    assert [len(body) for body in got] == [59, 60, 60]
    assert decoder.dropped == 8


@pytest.mark.parametrize("longest", [64, 253, 254, 255, 507, 508, 509, 1016])
def test_the_longest_frame_of_full_blocks_may_have_a_code_byte_more(longest: int) -> None:
    """Such frames are the longest that a decoder has to hold, in one piece or in many."""
    body = next(
        body
        for n in range(1, 256)
        if 0 not in crc32(body := bytes([n]) * (longest - 4)).to_bytes(4)
    )
    stuffed = frame(body)
    decoder = Decoder(max_frame=longest)
    is_full = longest % 254 == 0
    link = stuffed + (b"\1\0" if is_full else b"\0")
    assert decoder.feed(link) == [body]
    assert [found for byte in link for found in decoder.feed(bytes([byte]))] == [body]
    assert decoder.feed(encode(body + b"\7")) == [] and decoder.dropped == 1


def test_endless_frame_is_dropped_once_and_takes_no_memory() -> None:
    decoder = Decoder(max_frame=100)
    for size in [1] * 200 + [50] * 1000:
        assert decoder.feed(b"\7" * size) == []
        assert len(decoder._held) <= 101
    assert decoder.feed(encode(b"next")) == [b"next"]
    assert decoder.dropped == 1


def test_wrong_size_is_named() -> None:
    message = "Frame size must be at least 5 bytes, not 4"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Decoder(max_frame=4)
