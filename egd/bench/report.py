"""Output of ``egd bench energies``: its rows as tables, a figure and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table

from egd.bench.energies import Curve, EnergyRow
from egd.files import replacing, write_text
from egd.runs.safe_names import figure_text, literal, markup

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Item = TypeVar("Item", bound="DataclassInstance")
HEADINGS = ("estimator", "error", "at target", "cosine", "SW2", "mean E", "NFE", "s")


def table(rows: Sequence[EnergyRow]) -> Table:
    """Tabulate the rows of one case, beta and denoiser for the terminal."""
    first = rows[0]
    title = (
        f"[b]{markup(first.case)}, beta {first.beta:g}, {first.denoiser} denoiser[/]\n"
        f"two exact samples: SW2 {short(first.noise_floor)}; exact mean E {short(first.exact_mean_energy)}"
    )
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in HEADINGS:
        named = heading == "estimator"  # names may take two lines, numbers are never cut
        out.add_column(heading, justify="left" if named else "right", no_wrap=not named)
    for row in rows:
        out.add_row(*map(literal, cells(row)))
    return out


def cells(row: EnergyRow) -> list[str]:
    """Format a row as text, in the columns HEADINGS."""
    numbers = (row.sliced_w2, row.mean_energy)
    return [
        row.estimator,
        short(row.grad_rel_error),
        short(row.target_error),
        f"{row.grad_cosine:.2f}",
        *map(short, numbers),
        f"{row.nfe:.0f}",
        f"{row.seconds:.1f}",
    ]


def short(value: float | None) -> str:
    """Format a number with three decimals, or fewer where it is large; "diverged" where it is not finite."""
    if value is None or not math.isfinite(value):
        return "diverged"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.1e}"


def grouped(rows: Iterable[EnergyRow]) -> list[list[EnergyRow]]:
    """Group rows by case, beta and denoiser, in order."""
    groups: dict[tuple[str, float, str], list[EnergyRow]] = {}
    for row in rows:
        groups.setdefault((row.case, row.beta, row.denoiser), []).append(row)
    return list(groups.values())


def markdown(rows: Sequence[EnergyRow]) -> str:
    """Render all rows as Markdown: a summary over cases, then a table for each case and denoiser with all betas side by
    side.
    """
    parts = ["## Summary", ""]
    for denoiser in dict.fromkeys(row.denoiser for row in rows):
        parts += [f"### {denoiser.capitalize()} denoiser", "", *_summary([r for r in rows if r.denoiser == denoiser]), ""]
    parts += ["## Every case", ""]
    for case, denoiser in dict.fromkeys((row.case, row.denoiser) for row in rows):
        chosen = [r for r in rows if (r.case, r.denoiser) == (case, denoiser)]
        parts += [f"### {case}, {denoiser} denoiser", "", *_full(chosen), ""]
    return "\n".join(parts)


def _summary(rows: Sequence[EnergyRow]) -> list[str]:
    """Tabulate medians over cases at each beta, the number of problems on which an estimator is good, and on which it is
    best.
    """
    betas = sorted({row.beta for row in rows})
    problems = {(row.case, row.beta) for row in rows}
    labels = list(dict.fromkeys(row.estimator for row in rows))
    best = [min((r for r in rows if (r.case, r.beta) == p and r.estimator != "exact"), key=_error).estimator for p in problems]
    head = ["estimator", *[f"{what}, β {b:g}" for what in ("error", "at target", "W2/floor") for b in betas]]
    lines = _header([*head, "error ≤ 5 %", "W2 ≤ 2 floors", "least error", "NFE", "s"])
    for label in labels:
        mine = [r for r in rows if r.estimator == label]
        errors = [short(median([_error(r) for r in mine if r.beta == b])) for b in betas]
        at_target = [short(median([r.target_error for r in mine if r.beta == b])) for b in betas]
        ratios = [short(median([_ratio(r) for r in mine if r.beta == b])) for b in betas]
        good = sum(_error(r) <= 0.05 for r in mine), sum(_ratio(r) <= 2 for r in mine), best.count(label)
        cost = f"{median([r.nfe for r in mine]):.0f}", f"{median([r.seconds for r in mine]):.1f}"
        lines.append(_line([f"`{label}`", *errors, *at_target, *ratios, *[f"{n}/{len(problems)}" for n in good], *cost]))
    return lines


def _full(rows: Sequence[EnergyRow]) -> list[str]:
    """Tabulate one case and denoiser, an estimator a line."""
    betas = sorted({row.beta for row in rows})
    floors = {b: next(r for r in rows if r.beta == b) for b in betas}
    truth = "; ".join(f"β {b:g}: {short(r.noise_floor)}, {short(r.exact_mean_energy)}" for b, r in floors.items())
    heads = [f"{what}, β {b:g}" for b in betas for what in ("error", "at target", "cosine", "W2", "E")]
    lines = [f"Noise floor and exact mean energy: {truth}.", "", *_header(["estimator", *heads, "NFE", "s"])]
    for label in dict.fromkeys(row.estimator for row in rows):
        mine = {r.beta: r for r in rows if r.estimator == label}
        values = [
            text
            for r in (mine[b] for b in betas)
            for text in (
                short(r.grad_rel_error),
                short(r.target_error),
                f"{r.grad_cosine:.2f}",
                short(r.sliced_w2),
                short(r.mean_energy),
            )
        ]
        lines.append(_line([f"`{label}`", *values, f"{mine[betas[0]].nfe:.0f}", f"{mine[betas[0]].seconds:.1f}"]))
    return lines


def _error(row: EnergyRow) -> float:
    return row.grad_rel_error if math.isfinite(row.grad_rel_error) else math.inf


def _ratio(row: EnergyRow) -> float:
    return math.inf if row.sliced_w2 is None else row.sliced_w2 / row.noise_floor


def _header(columns: Sequence[str]) -> list[str]:
    return [_line(columns), _line(["---", *["---:"] * (len(columns) - 1)])]


def _line(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |"


def write_json(path: Path, items: Sequence[DataclassInstance]) -> None:
    """Write a list of objects as JSON, one a line; numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(rounded(item))) for item in items]
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def rounded(item: Item) -> Item:
    """Return the object with its numbers rounded to six digits."""
    return replace(item, **{field.name: _rounded(getattr(item, field.name)) for field in fields(item)})


def _rounded(value: Any) -> Any:
    """Round to six digits, in lists and tuples, too; a number that is not finite becomes None."""
    if isinstance(value, tuple | list):
        return [_rounded(v) for v in value]
    return (float(f"{value:.6g}") if math.isfinite(value) else None) if isinstance(value, float) else value


def figure(path: Path, curves: Sequence[Curve], rows: Sequence[EnergyRow]) -> None:
    """Draw the gradient's relative error over t, a panel a beta, as the median over cases, and below it sliced W2 over its
    floor.
    """
    from egd.drawing import plain

    with plain():
        _draw(path, curves, rows)


def _draw(path: Path, curves: Sequence[Curve], rows: Sequence[EnergyRow]) -> None:
    from egd.drawing import Figure, mpl

    betas = sorted({curve.beta for curve in curves})
    labels = list(dict.fromkeys(curve.estimator for curve in curves if curve.estimator != "exact"))
    colours = {label: mpl.colormaps["tab20"](i % 20) for i, label in enumerate(labels)}
    fig = Figure(figsize=(3.6 * len(betas) + 2.4, 7), layout="constrained")
    axes = fig.subplots(2, len(betas), squeeze=False, sharey="row")
    for column, beta in enumerate(betas):
        top, bottom = axes[:, column]
        for label in labels:
            chosen = [c for c in curves if c.beta == beta and c.estimator == label]
            top.plot(chosen[0].t, _median([c.grad_rel_error for c in chosen]), label=figure_text(label), color=colours[label])
        top.set(title=f"beta = {beta:g}", xlabel="t", yscale="log")
        _ratios(bottom, [r for r in rows if r.beta == beta], labels, colours)
    axes[0, 0].set_ylabel("relative error of grad E_t (median over cases)")
    axes[1, 0].set_ylabel("sliced W2 / noise floor, each case")
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        fig.savefig(scratch, dpi=110)


def _ratios(axis: Any, rows: Sequence[EnergyRow], labels: Sequence[str], colours: dict[str, Any]) -> None:
    for i, label in enumerate(labels):
        values = [r.sliced_w2 / r.noise_floor for r in rows if r.estimator == label and r.sliced_w2 is not None]
        axis.plot([i] * len(values), values, ".", color=colours[label], alpha=0.7)
    axis.axhline(2, color="0.5", lw=0.8, ls="--")
    axis.set(yscale="log", xticks=[])
    axis.set_xlabel("estimator (dashed: twice the floor)")


def _median(series: Sequence[Sequence[float]]) -> list[float]:
    return [median(column) for column in zip(*series, strict=True)]
