"""The table of decisions, in plain Python: see :class:`ditto.hdl.protocol.Rule` for what it does.

This is the specification of :class:`ditto.hdl.decisions.DecisionTable`.
"""

from collections.abc import Sequence

from ditto.hdl.protocol import (
    COUNT_BITS,
    DECISION_WORDS,
    Counters,
    Decision,
    Mode,
    Rule,
    pack,
    unpack,
)

__all__ = ["Decisions"]


class Decisions:
    """A table of decisions.

    Parameters
    ----------
    count
        Decisions that it holds.

    Attributes
    ----------
    words : list of int
        Of 32 bits, as :attr:`ditto.hdl.protocol.Space.DECISIONS` has them.
    """

    def __init__(self, count: int) -> None:
        self.words = [0] * (DECISION_WORDS * count)

    def write(self, first: int, words: Sequence[int]) -> None:
        """Write words."""
        self.words[first : first + len(words)] = words

    def forget(self) -> None:
        """Forget what was learned; the rules stay, and the modes that were chosen last."""
        for at in range(0, len(self.words), DECISION_WORDS):
            self._write(at, self._decision(at) | {"steps": 0, "blind": 0})
            self.words[at + 1 : at + 4] = [0] * 3

    def mode(self, number: int, has_state: bool) -> Mode:
        """Return the mode of an entry of a decision."""
        known = self._decision(DECISION_WORDS * number)
        if has_state:
            return Mode(known["mode"])
        return self._rest(known)

    def learn(self, number: int, counters: Counters, *, had_state: bool, decides: bool) -> None:
        """Take note of a run of an entry, whose mode was that of the table."""
        at = DECISION_WORDS * number
        known = self._decision(at)
        is_adaptive = known["rule"] == Rule.ADAPTIVE.value
        if not is_adaptive and known["rule"] != Rule.DEFO.value:
            return
        digits = (counters.digits_dense, counters.digits_temporal, counters.digits_spatial)
        for mode in range(3):
            amount = digits[mode]
            if not is_adaptive:
                amount = counters.cycles * (counters.mode == mode and known["steps"] != 2)
            count = self.words[at + 1 + mode] + amount
            self.words[at + 1 + mode] = count % (1 << COUNT_BITS)
        blind = known["blind"] | (not had_state)
        if not decides:
            self._write(at, known | {"blind": blind})
            return

        taken = [word % (1 << COUNT_BITS) for word in self.words[at + 1 : at + 4]]
        steps, mode = known["steps"], known["mode"]
        if blind if is_adaptive else steps == 0:
            mode = Mode.TEMPORAL.value
        elif is_adaptive:
            # A mode that is none has the first word.
            bar = self.words[at + (mode + 1) % 4] % (1 << COUNT_BITS)
            bar -= bar >> 6
            for other in range(2 + known["spatial"]):
                if taken[other] < bar:
                    bar, mode = taken[other], other
        elif steps == 1:
            rest = self._rest(known).value
            is_less = taken[Mode.TEMPORAL.value] < taken[rest]
            mode = Mode.TEMPORAL.value if is_less else rest
        if is_adaptive:
            self.words[at + 1 : at + 4] = [0] * 3
        steps = steps if steps == 2 else (steps + 1) % 4
        self._write(at, known | {"mode": mode, "steps": steps, "blind": 0})

    @staticmethod
    def _rest(known: dict[str, int]) -> Mode:
        return Mode.SPATIAL if known["spatial"] else Mode.DENSE

    def _decision(self, at: int) -> dict[str, int]:
        return unpack(Decision, self.words[at].to_bytes(4, "little"))

    def _write(self, at: int, decision: dict[str, int]) -> None:
        self.words[at] = int.from_bytes(pack(Decision, **decision), "little")
