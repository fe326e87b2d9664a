import json
from collections.abc import Callable
from typing import Any, Literal

import pytest

from ditto.sim.formal import Proof, missing_tools, prove

Make = Callable[[], Proof]


@pytest.fixture(autouse=True)
def tools() -> None:
    if missing := missing_tools():
        pytest.skip(missing)


@pytest.fixture
def holds(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """Prove what a proof states, and reach what it covers; with ``reach=0``, nothing of that."""

    def check(
        make: Make,
        depth: int,
        mode: Literal["prove", "bmc"] = "prove",
        *,
        reach: int | None = None,
        registers: bool = False,
        timeout: float = 300.0,
    ) -> None:
        parts: list[tuple[Literal["prove", "bmc", "cover"], int]]
        parts = [(mode, depth)]
        if reach != 0:
            parts.append(("cover", reach or depth))
        for kind, cycles in parts:
            result = prove(make(), kind, cycles, registers=registers, timeout=timeout)
            assert result.status == "pass", result.log[-6000:]
            found = {"depth": cycles, "seconds": round(result.seconds, 1)}
            record_property(kind, json.dumps(found))

    return check


@pytest.fixture
def refutes(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """Find a run in which a block with a defect breaks what the proof states."""

    def check(
        make: Make,
        depth: int,
        *,
        skip: int = 0,
        registers: bool = False,
        timeout: float = 300.0,
    ) -> None:
        result = prove(make(), "bmc", depth, skip=skip, registers=registers, timeout=timeout)
        assert result.status == "fail", "the proof does not see the defect"
        record_property("refuted", json.dumps({"depth": depth}))

    return check
