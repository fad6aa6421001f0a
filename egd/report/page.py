"""The files of a report: a page that needs no other files or network, tables and figures."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, PackageLoader

from egd.drawing import Figure, plain
from egd.errors import UserError, writable
from egd.files import SCRATCH, replacing, write_text
from egd.report.figures import CAPTIONS, FIGURES, draw
from egd.report.measures import measured_tables, tidy_measures
from egd.report.render import RUN_COLUMNS, comma_separated, latex, markdown, rights
from egd.report.results import Report
from egd.report.tables import Table, by_run, tables, tidy
from egd.runs.safe_names import printable

DPI = 150


def write(report: Report, out: Path) -> tuple[list[Table], list[str]]:
    """Write all files of a report into a folder. Returns the tables, and the reasons for figures that are lacking."""
    found, lacking = [*(tables(report) if report.runs else ()), *measured_tables(report)], []
    figures: dict[str, Figure] = {}
    for name in FIGURES:
        if not (report.measured if name == "measures" else report.runs):
            continue
        try:
            figures[name] = draw(name, report)
        except UserError as error:
            lacking.append(str(error))
    with writable("--out"), _all_or_none(out) as place:
        write_text(place / "table.md", markdown(found))
        write_text(place / "table.tex", latex(found))
        if report.runs:
            write_text(place / "table.csv", comma_separated(tidy(report)))
            write_text(place / "scores.csv", comma_separated(by_run(report), RUN_COLUMNS))
        if measures := tidy_measures(report):
            columns = list(dict.fromkeys(key for row in measures for key in row))
            write_text(place / "measures.csv", comma_separated(measures, columns))
        for name, figure in figures.items():
            save(figure, place, name)
        write_text(place / "index.html", _page(report, found, figures, lacking))
    return found, lacking


@contextmanager
def _all_or_none(out: Path) -> Iterator[Path]:
    """Yield a scratch folder in ``out`` whose files move to ``out`` at the end. No file moves where the block fails, so that
    the tables of one report never stand beside the figures of another.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=SCRATCH, dir=out) as place:
            yield Path(place)
            for path in Path(place).iterdir():
                os.replace(path, out / path.name)
    finally:
        with suppress(OSError):
            out.rmdir()  # fails, as it should, unless the folder is empty


@plain()
def save(figure: Figure, out: Path, name: str) -> list[Path]:
    """Save a figure as PNG and as SVG, and return the paths."""
    with writable("--out"):
        out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.png", out / f"{name}.svg"]
    for path in paths:
        with replacing(path) as scratch:
            figure.savefig(scratch, dpi=DPI)
    return paths


def _page(report: Report, found: list[Table], figures: Mapping[str, Figure], lacking: list[str]) -> str:
    environment = Environment(loader=PackageLoader("egd.report", "."), autoescape=True, finalize=_shown)
    template = environment.get_template("page.html.j2")
    runs = [*report.runs, *report.measured]
    return template.render(
        report=report,
        date=date.today().isoformat(),
        runs=runs,
        devices=sorted({run.summary.device or "unknown" for run in runs}),
        versions=sorted({", ".join(f"{k} {v}" for k, v in run.summary.versions.items()) for run in runs}),
        methods=sorted({run.label for run in runs}),
        tasks=sorted({run.summary.task for run in runs}),
        tables=[(table, rights(table)) for table in found],
        figures=[(name, CAPTIONS[name], _encoded(figure)) for name, figure in figures.items()],
        lacking=lacking,
    )


def _shown(value: Any) -> Any:
    return printable(value) if type(value) is str else value  # text that Jinja has escaped is of a subclass


@plain()
def _encoded(figure: Figure) -> str:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return base64.b64encode(file.getvalue()).decode()
