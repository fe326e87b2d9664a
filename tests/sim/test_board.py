import gc
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ditto.hdl import config
from ditto.host.transport import LinkError, Transport
from ditto.sim.board import SimulatedBoard

ECHO = Path(__file__).with_name("echo.v").read_text()


@pytest.fixture
def board() -> Iterator[SimulatedBoard]:
    with SimulatedBoard.from_verilog(ECHO) as board:
        yield board


def receive(transport: Transport, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = transport.read(size - len(data), 30)
        assert more, f"only {len(data)} of {size} bytes came"
        data += more
    return data


def test_bytes_come_back_in_order(board: SimulatedBoard) -> None:
    source = random.Random(1)
    for size in 1, 2, 3, 60, 64, 500, 5000:
        data = bytes(source.randrange(1, 255) for _ in range(size))
        board.write(data)
        assert receive(board, size) == data


def test_a_read_returns_what_has_come(board: SimulatedBoard) -> None:
    board.write(b"abc")
    assert board.read(100, 30) == b"abc"
    board.write(b"defgh")
    assert board.read(2, 30) == b"de"
    assert board.read(0, 30) == b""
    assert board.read(100, 30) == b"fgh"


def test_silence_ends_with_the_timeout(board: SimulatedBoard) -> None:
    board.write(b"\0" * 10)
    for timeout in 0, 0.2:
        start = time.monotonic()
        assert board.read(10, timeout) == b""
        assert timeout <= time.monotonic() - start < timeout + 5


def test_time_passes_in_reads_and_writes_only(board: SimulatedBoard) -> None:
    assert board.cycles == 0
    time.sleep(0.01)
    assert board.cycles == 0
    board.write(b"a")
    written = board.cycles
    assert written > 0
    assert board.read(1, 30) == b"a"
    assert board.cycles > written
    before = board.cycles
    board.advance(12345)
    assert board.cycles == before + 12345


def test_the_same_calls_take_the_same_cycles() -> None:
    def talk() -> list[int]:
        seen = []
        with SimulatedBoard.from_verilog(ECHO) as board:
            for size in 1, 10, 3000:
                board.write(b"x" * size)
                receive(board, size)
                seen.append(board.cycles)
        return seen

    assert talk() == talk()


def test_a_slow_link_takes_its_time() -> None:
    with SimulatedBoard.from_verilog(ECHO, cycles_per_byte=250) as board:
        board.write(b"x" * 100)
        assert receive(board, 100) == b"x" * 100
        # The echo of a byte needs the line for as long as the byte, while the next one comes in.
        assert 99 * 250 <= board.cycles <= 102 * 250


def test_reset_loses_bytes_and_starts_the_device_again(board: SimulatedBoard) -> None:
    board.write(b"abc\xff")
    assert receive(board, 4) == b"abc\x04"
    board.write(b"lost")
    before = board.cycles
    board.reset(7)
    assert board.cycles == before + 7
    assert board.read(1, 0) == b""
    board.write(b"\xff")
    assert receive(board, 1) == b"\x01"


def test_a_device_that_takes_nothing_stops_no_write(board: SimulatedBoard) -> None:
    dead = ECHO.replace("assign i__ready =", "assign i__ready = 1'b0 &&")
    with SimulatedBoard.from_verilog(dead) as board:
        board.write(b"a" * 10000)
        assert board.read(1, 0.1) == b""


def test_a_closed_board_refuses_everything(board: SimulatedBoard) -> None:
    board.close()
    board.close()
    for call in (
        lambda: board.write(b"a"),
        lambda: board.read(1, 1),
        lambda: board.read(0, 1),
        lambda: board.reset(),
        lambda: board.cycles,
    ):
        with pytest.raises(LinkError, match="^the simulated board is closed$"):
            call()


def test_closing_ends_a_read_in_another_thread(board: SimulatedBoard) -> None:
    errors: list[LinkError] = []

    def wait() -> None:
        try:
            board.read(1, 60)
        except LinkError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    board.close()
    thread.join(30)
    assert not thread.is_alive()
    assert len(errors) == 1


def test_boards_run_in_threads_of_their_own() -> None:
    results: dict[int, bytes] = {}

    def talk(seed: int) -> None:
        source = random.Random(seed)
        with SimulatedBoard.from_verilog(ECHO) as board:
            data = bytes(source.randrange(1, 255) for _ in range(3000))
            for start in range(0, len(data), 300):
                board.write(data[start : start + 300])
            if receive(board, len(data)) == data:
                board.write(b"\xff")
                results[seed] = receive(board, 1)

    threads = [threading.Thread(target=talk, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {seed: bytes([3001 % 256]) for seed in range(4)}


def test_an_assertion_of_the_device_is_an_error_not_the_end() -> None:
    bad = ECHO.replace(
        "    if (rst) begin\n",
        "    if (!rst && i__valid && i__payload == 8'h42) assert (0);\n    if (rst) begin\n",
    )
    assert bad != ECHO
    with SimulatedBoard.from_verilog(bad) as board:
        board.write(b"a")
        assert receive(board, 1) == b"a"
        with pytest.raises(LinkError, match="^the simulated device stopped: .*assertion"):
            board.write(b"\x42")
        with pytest.raises(LinkError, match="^the simulated device stopped: "):
            board.read(1, 1)


def test_boards_that_are_dropped_give_their_memory_back() -> None:
    for _ in range(3):
        SimulatedBoard.from_verilog(ECHO).write(b"a")
    gc.collect()


@pytest.mark.parametrize("cycles", [0, -1])
def test_refuses_a_link_faster_than_its_clock(cycles: int) -> None:
    with pytest.raises(ValueError, match=f"^cycles_per_byte must be at least 1, not {cycles}$"):
        SimulatedBoard.from_verilog(ECHO, cycles_per_byte=cycles)


def test_the_device_starts_silent() -> None:
    small = config.Config(clusters=1, columns=4, weight_rows=64, accumulator_rows=64)
    with SimulatedBoard(small) as board:
        board.write(b"\0\0\0")
        assert board.read(1, 0.05) == b""
        assert board.cycles > 0
