"""Output of ``egd bench ratios``: its rows as a table, as Markdown and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from egd.bench.ratios import LEVELS, RatioRow
from egd.bench.report import short
from egd.files import replacing
from egd.runs.safe_names import figure_text, literal

SHOWN = (0.1, 1.0, 5.0)
FAR = 100.0
"""Larger energy distances are drawn at the edge: the samples of a diverging guidance can lie anywhere."""
HEADINGS = ("estimator", *(f"cos {s:g}" for s in SHOWN), "err 1", "dist.", "mean", "std", "s")


def table(rows: Sequence[RatioRow]) -> Table:
    """Tabulate the rows of one problem for the terminal."""
    out = Table(
        title=f"[b]{rows[0].case}[/]\ntwo sets of samples of p: energy distance ± {short(rows[0].floor)}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in HEADINGS:
        out.add_column(heading, justify="left" if heading == "estimator" else "right", no_wrap=heading != "estimator")
    for row in rows:
        out.add_row(*map(literal, cells(row)))
    return out


def cells(row: RatioRow) -> list[str]:
    """Format a row as text, in the columns HEADINGS."""
    gradients = [f"{row.cosine[LEVELS.index(s)]:.2f}" for s in SHOWN] + [short(row.error[LEVELS.index(1.0)])]
    return [row.estimator, *gradients, *map(short, (row.distance, row.mean_error, row.std_error)), f"{row.seconds:.1f}"]


def markdown(rows: Sequence[RatioRow]) -> str:
    """Render a Markdown table for every problem."""
    parts = []
    for name, own in by_problem(rows).items():
        lines = [HEADINGS, ["---", *["---:"] * (len(HEADINGS) - 1)], *map(cells, own)]
        parts += [f"**{name}**; two sets of samples of p: ± {short(own[0].floor)}", ""]
        parts += [f"| {' | '.join(line)} |" for line in lines] + [""]
    return "\n".join(parts)


def by_problem(rows: Sequence[RatioRow]) -> dict[str, list[RatioRow]]:
    """Group rows by problem, in order."""
    return {name: [row for row in rows if row.case == name] for name in dict.fromkeys(row.case for row in rows)}


def figure(path: Path, rows: Sequence[RatioRow]) -> None:
    """Draw the gradient's relative error over the noise level, a panel a problem, and below it the energy distances."""
    from egd.drawing import plain

    with plain():
        _draw(path, rows)


def _draw(path: Path, rows: Sequence[RatioRow]) -> None:
    from egd.drawing import Figure, mpl

    problems = by_problem(rows)
    labels = [label for label in dict.fromkeys(row.estimator for row in rows) if label != "exact"]
    colours = {label: mpl.colormaps["tab20"](i % 20) for i, label in enumerate(labels)}
    fig = Figure(figsize=(3.2 * len(problems) + 2.4, 7), layout="constrained")
    axes = fig.subplots(2, len(problems), squeeze=False, sharey="row")
    for (top, bottom), (name, own) in zip(axes.T, problems.items(), strict=True):
        for row in own:
            if row.estimator in colours:
                top.plot(LEVELS, row.error, label=figure_text(row.estimator), color=colours[row.estimator])
            far = not row.distance < FAR
            x = FAR if far else row.distance
            bottom.plot(x, row.estimator, ">" if far else "o", color=colours.get(row.estimator, "black"))
        top.set(title=name, xlabel="sigma", xscale="log", yscale="log")
        bottom.axvspan(-2 * own[0].floor, 2 * own[0].floor, color="0.9")
        bottom.set_xscale("symlog", linthresh=2 * own[0].floor)
        bottom.set_xticks([0, 0.1, 1, 10, FAR], ["0", "0.1", "1", "10", "100"])
        bottom.set_xlabel("energy distance")
    axes[0, 0].set_ylabel("relative error of grad E_t")
    axes[1, 0].invert_yaxis()
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        fig.savefig(scratch, dpi=110)
