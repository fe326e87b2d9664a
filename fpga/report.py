"""The report of a build: one HTML page that needs nothing else."""

from collections.abc import Iterable, Sequence
from html import escape

from ditto.fpga.bitstream import Bitstream, Routed
from ditto.fpga.boards import board_of

__all__ = ["render"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 0.5em 0 1.5em; }
th, td { text-align: left; padding: 0.15em 1em 0.15em 0; border-bottom: 1px solid #ccc; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
"""


def render(bitstream: Bitstream) -> str:
    """Return the page of a build."""
    facts = bitstream.facts
    meanings = board_of(facts["board"]).family.cells
    needed = facts["clock_hz"] / 1e6
    best = next(run for run in bitstream.runs if run.seed == facts["seed"])
    parts = [
        f"<h1>Ditto on {escape(facts['title'])}</h1>",
        _table(
            (),
            [
                ("clock", f"{needed:g} MHz"),
                ("serial line", f"{facts['baud']:,} bit/s"),
                ("configuration", facts["digest"]),
                ("build, as IDENTIFY tells it", facts["build"]),
                ("SHA-256 of the bitstream", facts["bitstream_sha256"]),
            ],
        ),
        "<h2>Timing</h2>",
        f"<p>Every clock needs {needed:g} MHz. The bitstream is that of seed {best.seed}.</p>",
        _table(
            ("seed", "clock", "highest MHz", "to spare"),
            [
                (run.seed, clock, f"{mhz:.2f}", f"{100 * (mhz / needed - 1):.0f} %")
                for run in bitstream.runs
                for clock, mhz in run.clocks.items()
            ],
        ),
        f"<p>Not routed: {escape(', '.join(map(str, facts['failed_seeds'])) or 'none')}.</p>",
        "<h3>Slowest path of every group</h3>",
        "<p>Pins are not clocked: the serial line is synchronized, and the lights are for the "
        "eye.</p>",
        _table(
            ("seed", "from", "to", "ns", "first cell", "last cell"),
            [row for run in bitstream.runs for row in _groups(run)],
        ),
        f"<h3>The slowest path of seed {best.seed}, cell by cell</h3>",
        _path(best),
        "<h2>Cells</h2>",
        _table(
            ("cell", "", "used", "available", ""),
            [
                (
                    cell,
                    meanings.get(cell, ""),
                    f"{n['used']:,}",
                    f"{n['available']:,}",
                    f"{100 * n['used'] / max(n['available'], 1):.0f} %",
                )
                for cell, n in facts["utilization"].items()
            ],
        ),
        "<h2>Parameters</h2>",
        _table((), list(facts["configuration"].items())),
        "<h2>Tools</h2>",
        _table((), list(facts["tools"].items())),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>Ditto on {escape(facts['title'])}</title>\n<style>{_STYLE}</style>\n"
        "</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _groups(run: Routed) -> Iterable[tuple[object, ...]]:
    for group in run.groups:
        first, last = group.path[0][0], group.path[-1][0]
        yield run.seed, group.source, group.target, f"{group.nanoseconds:.2f}", first, last


def _path(run: Routed) -> str:
    return _table(("ns", "cell"), [(f"{ns:.2f}", cell) for cell, ns in run.slowest.path])


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>" if heads else f"<table>\n{body}\n</table>"


def _cell(value: object) -> str:
    text = str(value)
    is_number = text.replace(",", "").replace(".", "").removesuffix(" %").isdigit()
    return f'<td class="n">{text}</td>' if is_number else f"<td>{escape(text)}</td>"
