"""Tables as Markdown, LaTeX and CSV, and for the terminal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table as Rich

from egd.report.tables import Table
from egd.runs.safe_names import csv_rows, literal, printable
from egd.runs.safe_names import markdown as safe_markdown

COLUMNS = ("what", "task", "method", "source", "checkpoint", "score", "std", "low", "high", "best", "seeds", "episodes")
RUN_COLUMNS = ("task", "method", "seed", "score", "best", "episodes")
NUMBERS = re.compile(r"-?[\d.]+( ± [\d.]+| \[.*\])?|")


def markdown(tables: Iterable[Table]) -> str:
    """Render tables as one Markdown document."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    sides = ["---:" if right else "---" for right in rights(table)]
    lines = [table.header, sides, *table.rows]
    body = "\n".join(f"| {' | '.join(map(safe_markdown, line))} |" for line in lines)
    notes = "\n\n".join(map(safe_markdown, table.notes))
    return f"## {safe_markdown(table.title)}\n\n{body}\n\n{notes}\n"


def rights(table: Table) -> list[bool]:
    """Return which columns hold only numbers, to be aligned on the right."""
    return [all(NUMBERS.fullmatch(cell) for cell in column) for column in zip(*table.rows, strict=True)]


def latex(tables: Iterable[Table]) -> str:
    """Render tables as LaTeX tabulars, each in a table float; the document must load the package booktabs."""
    return "% \\usepackage{booktabs}\n" + "\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    columns = "".join("r" if right else "l" for right in rights(table))
    lines = [_line(table.header), "\\midrule"]
    for i, row in enumerate(table.rows):
        lines += ["\\midrule"] * (i > 0 and i in table.sections) + [_line(row)]
    body = "\n".join(["\\toprule", *lines, "\\bottomrule"])
    caption = _tex(f"{table.title}. {' '.join(table.notes)}")
    return (
        f"\\begin{{table}}\n\\centering\n\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"
        f"\\caption{{{caption}}}\n\\end{{table}}\n"
    )


def _line(cells: Sequence[str]) -> str:
    return " & ".join(_tex(cell) for cell in cells) + " \\\\"


def _tex(text: str) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\^{}"}
    special |= {"±": "$\\pm$", "<": "$<$", ">": "$>$"}
    shown = "".join(special.get(c, c) for c in printable(text))
    return f"{{}}{shown}" if shown.startswith("[") else shown  # else LaTeX reads it as an option of the line break before


def comma_separated(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Render tidy rows as CSV."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(csv_rows(rows))
    return file.getvalue()


def terminal(table: Table) -> Rich:
    """Render a table for the terminal. The first column becomes titles of sections, so that the table is narrow."""
    result = Rich(title=literal(table.title), title_justify="left")
    for i, column in enumerate(table.header[1:]):
        result.add_column(literal(column), justify="right" if i else "left", overflow="fold", no_wrap=not i)
    for i, row in enumerate(table.rows):
        if i in table.sections:
            result.add_section()
            result.add_row(literal(row[0], "bold"))
        result.add_row(*map(literal, row[1:]))
    return result
