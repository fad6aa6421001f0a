"""Output of ``egd bench speed``: its rows as a table and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from egd.bench.speed import SpeedRow

SHORT = ("piece", "batch", "ours", "ms", "plain", "x", "singly", "roofline")
NUMBERS = ("batch", *SHORT[3:], "GFLOP", "MB")
HEADINGS = (*SHORT, "GFLOP", "MB", "rate", "networks")
LEGEND = (
    "ms: a call of ours, all runs together; plain: the same by plain eager code; x: plain / ms; singly: our runs one after the "
    "other; roofline: the least time that the device's matrix and copy rates allow, as a share of ms."
)


def table(rows: Sequence[SpeedRow]) -> Table:
    """Tabulate the columns SHORT for a terminal of eighty columns."""
    out = Table(title=f"{rows[0].device}; {LEGEND}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in SHORT:
        out.add_column(heading, justify="left" if heading in ("piece", "ours") else "right", no_wrap=True)
    several = {row.piece for row in rows if any(row.piece == other.piece and row.shape != other.shape for other in rows)}
    for row in rows:
        piece, *rest = cells(row)[: len(SHORT)]
        out.add_row(f"{piece}, {row.shape}" if row.piece in several else piece, *rest)
    return out


def cells(row: SpeedRow) -> list[str]:
    """Format a row as text, in the columns HEADINGS."""
    rate = "" if row.per_second is None else f"{figures(row.per_second)} {row.unit}/s"
    times = map(figures, (row.ms, row.eager_ms, row.speedup, row.separate_ms))
    batch = str(row.batch) if row.runs == 1 else f"{row.runs} x {row.batch}"
    most = [row.piece, batch, row.how, *times, f"{100 * row.roofline_fraction:.0f} %"]
    return [*most, figures(row.flops / 1e9), figures(row.bytes / 1e6), rate, row.shape]


def figures(value: float | None) -> str:
    """Format a number with up to four significant digits, without an exponent."""
    if value is None:
        return "-"
    value = float(f"{value:.4g}")
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 4
    return f"{value:.{digits}f}"


def markdown(rows: Sequence[SpeedRow]) -> str:
    """Render a Markdown table that includes the shapes of the networks, with the notes below it."""
    rule = ["---:" if heading in NUMBERS else "---" for heading in HEADINGS]
    lines = [f"{rows[0].device}. {LEGEND}", "", _line(HEADINGS), _line(rule)]
    lines += [_line([f"`{row.piece}`", *cells(row)[1:]]) for row in rows]
    notes = {row.piece: row.note for row in rows if row.note}
    lines += ["", *(f"* `{piece}`: {note}" for piece, note in notes.items())]
    return "\n".join(lines).rstrip() + "\n"


def _line(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |"
