from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto.hdl.config import Config
from ditto.hdl.protocol import CommandError, Mode, Status
from ditto.sim.cycles import LIST_LATENCY, RUN_LATENCY, START_LATENCY, Timing, schedule
from ditto.sim.golden import Golden, items, split, taps
from ditto.sim.spatial import spatial, stretched
from ditto.sim.workload import DELTAS, random_deltas, random_workload

# Accumulators narrow enough to wrap around.
CONFIG = Config(
    clusters=3, columns=4, accumulator_bits=18, item_depth=512, positions=64, channels=16
)


def configs() -> st.SearchStrategy[Config]:
    def build(activation: int, weight: int, digit: int) -> Config:
        return Config(
            columns=2,
            activation_bits=activation,
            weight_bits=weight,
            digit_bits=min(digit, activation + 1),
        )

    return st.builds(build, st.integers(2, 8), st.integers(2, 8), st.integers(2, 9))


@given(configs())
def test_digits_of_every_delta_sum_to_it(config: Config) -> None:
    deltas = np.arange(-config.max_delta, config.max_delta + 1)
    digits = split(deltas, config)
    half = 1 << config.digit_bits - 1
    assert digits.min() >= -half and digits.max() < half
    shifts = np.minimum(np.arange(config.digits), config.shifts - 1)
    np.testing.assert_array_equal((digits << shifts * config.digit_bits).sum(axis=-1), deltas)
    assert (digits[:, -1] != 0).any(), "no delta needs the last digit"


def plain(entry: dict[str, int], deltas: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Convolve with a cluster's weights in nested loops, straight from the definition.

    Returns an array of shape (tiles, out_height, out_width, columns).
    """
    image = deltas.reshape(entry["in_height"], entry["in_width"], -1)
    taps = entry["kernel_height"] * entry["kernel_width"]
    out = np.zeros(
        (entry["tiles"], entry["out_height"], entry["out_width"], weights.shape[1]), np.int64
    )
    for tile, oy, ox, tap in np.ndindex(*out.shape[:3], taps):
        ky, kx = divmod(tap, entry["kernel_width"])
        y = oy * entry["stride_y"] + ky * entry["dilation_y"] - entry["pad_top"]
        x = ox * entry["stride_x"] + kx * entry["dilation_x"] - entry["pad_left"]
        if not (0 <= y < entry["in_height"] and 0 <= x < entry["in_width"]):
            continue
        for channel in range(entry["channels"]):
            row = (tile * taps + tap) * entry["channels"] + channel
            out[tile, oy, ox] += image[y, x, channel] * weights[row]
    return out


def share_of(entry: dict[str, int], cluster: int, values: np.ndarray) -> np.ndarray:
    """Take the output positions of a cluster, straight from the protocol's text."""
    split, skew = entry["split"], entry["skew"]
    chosen = [
        tile[y, x]
        for tile in values
        for y in range(entry["out_height"])
        for x in range(entry["out_width"])
        if x % split == (cluster + skew * y) % split
    ]
    return np.array(chosen).reshape(-1, values.shape[3])


@given(st.integers(0, 2**32), st.lists(st.sampled_from(DELTAS), min_size=1, max_size=4))
def test_accumulators_are_what_plain_convolution_gives(seed: int, kinds: list[str]) -> None:
    rng = np.random.default_rng(seed)
    golden = Golden(CONFIG)
    work = random_workload(rng, CONFIG, rows=40)
    work.load(golden, 1)
    entry = work.entry
    totals: list[Any] = [0] * CONFIG.clusters
    half = 1 << CONFIG.accumulator_bits - 1
    mode = Mode.DENSE
    for kind in kinds:
        deltas = random_deltas(rng, CONFIG, work.entry, kind)
        golden.write_deltas(1, deltas)
        counters = golden.run(1, mode)
        got = golden.read_accumulators(entry["accumulator_base"], work.rows)
        for cluster, weights in enumerate(work.weights):
            total = totals[cluster] + share_of(entry, cluster, plain(entry, deltas, weights))
            totals[cluster] = (total + half) % (2 * half) - half
            np.testing.assert_array_equal(got[cluster, : len(total)], totals[cluster])
        assert counters.zero + counters.narrow + counters.wide == deltas.size
        assert (
            counters.items + counters.stall_row + counters.stall_item + counters.stall_cluster
            == CONFIG.clusters * CONFIG.lanes * counters.cycles
        )
        mode = Mode.TEMPORAL


@given(st.integers(0, 2**32))
def test_a_spatial_run_gives_what_a_dense_one_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    golden = Golden(CONFIG)
    while True:
        work = random_workload(rng, CONFIG, rows=40)
        if work.entry["spatial"]:
            break
    work.load(golden, 1)
    entry, split = work.entry, work.entry["split"]
    values = rng.integers(-128, 128, (entry["positions"], entry["channels"]))
    # Items under the window of each position of the lines, those before the image among them.
    walked = stretched(entry)
    of_input = np.append(np.stack(items(spatial(values, entry), CONFIG)).sum(axis=(0, 2)), 0)
    lines = of_input[taps(walked)].sum(axis=1).reshape(walked["out_height"], walked["out_width"])
    starts = [
        (line, (cluster + entry["skew"] * y) % split)
        for cluster in range(CONFIG.clusters)
        for y, line in enumerate(lines)
    ]
    steps = [int(line[at::split].sum()) for line, at in starts if at < entry["out_width"]]
    found = []
    for mode in (Mode.DENSE, Mode.SPATIAL):
        deltas = spatial(values, work.entry) if mode is Mode.SPATIAL else values
        golden.write_deltas(1, deltas, mode)
        counters = golden.run(1, mode)
        assert counters.mode == mode.value
        lane_cycles = CONFIG.clusters * CONFIG.lanes * counters.cycles
        stalls = counters.stall_row + counters.stall_item + counters.stall_cluster
        assert counters.items + stalls == lane_cycles
        assert mode is Mode.DENSE or counters.items == entry["tiles"] * sum(steps)
        rows = golden.read_accumulators(work.entry["accumulator_base"], work.rows)
        found.append([words[:n] for words, n in zip(rows, work.filled, strict=True)])
    for dense, got in zip(*found, strict=True):
        np.testing.assert_array_equal(got, dense)


def test_a_dense_run_restarts_from_zero() -> None:
    rng = np.random.default_rng(1)
    golden = Golden(CONFIG)
    work = random_workload(rng, CONFIG)
    work.load(golden, 0)
    results = []
    for _ in range(2):
        golden.write_deltas(0, np.ones((work.entry["positions"], work.entry["channels"])))
        golden.run(0, Mode.DENSE)
        results.append(golden.read_accumulators(work.entry["accumulator_base"], work.rows))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    "lanes, deltas, items, length",
    [
        (1, [1, 5, 0, -8], 3, 3),
        (1, [1, 5, 0, 48], 3, 3),
        (2, [1, 5, 0, -8], 3, 2),  # two and one
        (2, [16, 32, 0, 48], 3, 3),  # high digits are for the second lane alone
        (2, [16, 1, 2, 3], 4, 2),
        (2, [120, 120, 1, 1], 8, 4),  # two low digits more, and two high ones each
        (2, [0, 0, 0, 0], 0, 1),  # a row takes a cycle at least
    ],
)
def test_a_row_takes_as_long_as_its_busiest_lane(
    lanes: int, deltas: list[int], items: int, length: int
) -> None:
    config = replace(CONFIG, clusters=1, lanes=lanes)
    golden = Golden(config)
    entry = dict.fromkeys(
        ("in_height", "in_width", "positions", "out_height", "out_width", "kernel_height",
         "kernel_width", "stride_y", "stride_x", "dilation_y", "dilation_x", "tiles", "split"), 1
    ) | {"channels": 4, "pad_top": 0, "pad_left": 0, "skew": 0}  # fmt: skip
    golden.write_layers(0, [entry | {"weight_base": 0, "accumulator_base": 1}])
    golden.write_deltas(0, np.array([deltas]))
    counters = golden.run(0, Mode.DENSE)
    assert (counters.items, counters.stall_row) == (items, lanes * length - items)
    assert lanes * counters.cycles - counters.stall_item == lanes * length
    assert counters.stall_cluster == 0


def walk(lengths: list[int], gaps: list[int], taps: int, config: Config) -> Timing:
    """Step through a run, cycle by cycle: a sequencer that walks, and lanes that follow it."""
    ahead = config.rows_ahead(taps)
    known = dict.fromkeys(range(min(ahead, len(lengths))), -LIST_LATENCY)  # before the run
    walking, skips, steps = ahead, 0, taps
    done: list[int] = []
    left = lengths[0]
    cycle = busy = 0
    while len(done) < len(lengths):
        row = len(done)
        is_free = walking < ahead + row  # rows that are done make room
        works = cycle >= START_LATENCY and row in known and cycle >= known[row] + LIST_LATENCY
        if walking < len(lengths):
            if skips:
                skips -= 1
            elif is_free:
                steps -= 1
                if not steps:
                    known[walking] = cycle + 1
                    walking, steps = walking + 1, taps
                    skips = gaps[walking] if walking < len(lengths) else 0
        cycle += 1
        if works:
            busy, left = busy + 1, left - 1
            if not left:
                done.append(cycle)
                left = lengths[row + 1] if row + 1 < len(lengths) else 0
    return Timing(cycles=cycle + RUN_LATENCY, busy=busy)


@given(st.data())
def test_a_schedule_is_what_a_run_takes_cycle_by_cycle(data: st.DataObject) -> None:
    taps = data.draw(st.sampled_from([1, 2, 3, 9]))
    config = replace(CONFIG, list_depth=data.draw(st.sampled_from([9, 16, 32])))
    rows = st.tuples(st.sampled_from([1, 1, 2, 5, 20]), st.sampled_from([0, 0, 1, 4, 30]))
    lengths, gaps = zip(*data.draw(st.lists(rows, min_size=1, max_size=40)), strict=True)
    found = schedule(lengths, gaps, taps, config)
    assert found == walk(list(lengths), list(gaps), taps, config)


def test_a_share_without_positions_takes_no_cycle() -> None:
    assert schedule([], [], 9, CONFIG) == Timing(cycles=0, busy=0)


def test_clusters_that_are_done_wait_for_the_others() -> None:
    config = replace(CONFIG, clusters=2, lanes=1)
    golden = Golden(config)
    names = "in_height out_height kernel_height kernel_width stride_y stride_x".split()
    names += ["dilation_y", "dilation_x", "tiles", "channels"]
    entry = dict.fromkeys(names, 1) | {"in_width": 3, "positions": 3, "out_width": 3, "split": 2}
    entry |= dict.fromkeys(["pad_top", "pad_left", "skew", "weight_base"], 0)
    golden.write_layers(0, [entry | {"accumulator_base": 1}])
    golden.write_deltas(0, np.array([[1], [0], [1]]))
    counters = golden.run(0, Mode.DENSE)
    # Positions 0 and 2 against position 1 alone, a cycle each.
    assert (counters.items, counters.stall_row, counters.stall_cluster) == (2, 1, 1)


def test_what_lies_outside_of_the_device_is_refused_by_name() -> None:
    golden = Golden(CONFIG)
    words = np.zeros((2, CONFIG.columns))

    def refused(status: Status, what: str, call: Callable[..., Any], *arguments: Any) -> None:
        with pytest.raises(CommandError, match=f"^{status.name}: {what}$") as caught:
            call(*arguments)
        assert caught.value.status is status

    last = CONFIG.weight_rows - 2
    golden.write_weights(CONFIG.clusters - 1, last, words)
    refused(Status.BAD_ADDRESS, "weights", golden.write_weights, 0, last + 1, words)
    cluster = CONFIG.clusters
    refused(Status.BAD_COMMAND, f"cluster {cluster}", golden.write_weights, cluster, 0, words)
    refused(Status.BAD_ADDRESS, "layer table", golden.write_layers, CONFIG.layers, [{}])
    assert golden.read_accumulators(CONFIG.accumulator_rows - 2, 2).shape[1] == 2
    read = golden.read_accumulators
    refused(Status.BAD_ADDRESS, "accumulators", read, CONFIG.accumulator_rows - 1, 2)
    layer = f"layer {CONFIG.layers}"
    refused(Status.BAD_ADDRESS, layer, golden.write_deltas, CONFIG.layers, words)
    refused(Status.BAD_COMMAND, "no reference buffer", golden.write_inputs, 0, words)
    refused(Status.BAD_COMMAND, "no table of decisions", golden.read_decisions, 0, 1)
    refused(Status.BAD_COMMAND, "no table of decisions", golden.write_decisions, 0, [1])
    golden = Golden(replace(CONFIG, reference_depth=16))
    refused(Status.BAD_ADDRESS, layer, golden.write_inputs, CONFIG.layers, words)
    depth = CONFIG.decision_words
    golden.write_decisions(depth - 1, [7])
    assert golden.read_decisions(depth - 1, 1) == [7]
    refused(Status.BAD_ADDRESS, "table of decisions", golden.read_decisions, depth - 1, 2)
    refused(Status.BAD_ADDRESS, "table of decisions", golden.write_decisions, depth, [1])


def test_a_device_begins_without_deltas_and_layers() -> None:
    golden = Golden(replace(CONFIG, reference_depth=16))
    with pytest.raises(CommandError, match="NO_DELTAS: layer 0"):
        golden.run(0, Mode.DENSE)
    assert golden.begin_inputs(0, Mode.AUTO) is Mode.DENSE
    assert not golden.read_accumulators(0, CONFIG.accumulator_rows).any()


def test_runs_without_their_state_are_refused() -> None:
    golden = Golden(CONFIG)
    work = random_workload(np.random.default_rng(2), CONFIG)
    work.load(golden, 0)
    deltas = np.zeros((work.entry["positions"], work.entry["channels"]), int)

    def refused(mode: Mode) -> Status:
        with pytest.raises(CommandError) as caught:
            golden.run(0, mode)
        return caught.value.status

    with pytest.raises(CommandError, match=f"BAD_ADDRESS: layer {CONFIG.layers}"):
        golden.run(CONFIG.layers, Mode.DENSE)
    assert refused(Mode.DENSE) is Status.NO_DELTAS
    golden.write_deltas(0, deltas)
    assert refused(Mode.TEMPORAL) is Status.NO_STATE
    assert refused(Mode.DENSE) is Status.NO_DELTAS
    golden.write_deltas(0, deltas)
    golden.run(0, Mode.DENSE)
    assert refused(Mode.TEMPORAL) is Status.NO_DELTAS
    golden.write_deltas(0, deltas)
    golden.run(0, Mode.TEMPORAL)
    work.load(golden, 1)  # another entry
    golden.write_deltas(0, deltas)
    golden.run(0, Mode.TEMPORAL)
    work.load(golden, 0)
    golden.write_deltas(0, deltas)
    assert refused(Mode.TEMPORAL) is Status.NO_STATE
    golden.write_deltas(0, deltas)
    golden.run(0, Mode.DENSE)
    golden.reset()
    golden.write_deltas(0, deltas)
    assert refused(Mode.TEMPORAL) is Status.NO_STATE
