"""Names from people or strangers, made safe for paths, the terminal, Markdown, CSV, LaTeX and figures.

Methods, tasks, variants, descriptions and paths may contain any characters. All that prints, draws or writes one uses this
module; Jinja escapes HTML.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping

from pydantic import BaseModel
from rich.markup import escape
from rich.text import Text

from egd.errors import UserError

BYTES = 200
"""The longest name. File systems allow 255 bytes, and some files of a run are named by it and a suffix."""
GRID_BYTES = 255

RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
"""Names that Windows reserves."""


def folder_name(name: str, key: str) -> str:
    """Return the name where it is safe as a folder's. Raises UserError, naming ``key``, where it would lead to another folder,
    or is impossible on some file system.
    """
    if problem := _problem(name):
        raise UserError(f"{_short(name)} cannot be the name of a folder: {problem}; choose another", key=key)
    return name


def folder_of_task(task: str, key: str) -> str:
    """Return the folder of a task. A task may be a dataset's id of several parts: ``D4RL/door/human-v2`` becomes
    ``D4RL-door-human-v2``. Raises UserError as ``folder_name``.
    """
    for part in task.split("/"):
        folder_name(part, key)
    return folder_name(task.replace("/", "-"), key)


def folder_of_cell(key: str, value: str) -> str:
    """Return the folder ``key=value`` of a grid value, with slashes as dashes. Raises UserError where it cannot be a folder."""
    folder, size = f"{key}={value}".replace("/", "-"), len(f"{key}={value}".encode(errors="replace"))
    if folder != printable(folder):
        raise UserError(f"{_short(folder)} has characters that cannot be the name of a folder", key="--grid")
    if size > GRID_BYTES:
        remedy = "give such a value a short name, as a method of the recipe"
        raise UserError(f"{_short(folder)} names a folder of {size} bytes, {GRID_BYTES} are possible; {remedy}", key="--grid")
    return folder


def check_names(settings: BaseModel) -> None:
    """Raise UserError where a name in the settings that the user chose, such as a variant's, cannot be a file's."""
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if isinstance(value, Mapping) and all(isinstance(own, BaseModel) for own in value.values()):
            for name in value:
                folder_name(str(name), key)


def apart(folders: Mapping[str, str], key: str) -> None:
    """Raise UserError where two names would share a folder; ``folders`` maps names to folders."""
    first: dict[str, str] = {}
    for name, folder in folders.items():
        if first.setdefault(folder, name) != name:
            raise UserError(f"{_short(first[folder])} and {_short(name)} would share the folder '{folder}'", key=key)


def _problem(name: str) -> str | None:
    size = len(name.encode(errors="replace"))
    problems = {
        "it is empty": not name.strip(),
        "it leads to another folder": "/" in name or "\\" in name or not name.strip("."),
        "it has characters that cannot be shown": name != printable(name),
        "it begins or ends with a space": name != name.strip(),
        "this machine's file names cannot have its characters": not _encodable(name),
        "Windows has taken it": RESERVED.fullmatch(name) is not None,
        f"it has {size} bytes, {BYTES} are possible": size > BYTES,
    }
    return next((problem for problem, there in problems.items() if there), None)


def _encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def module_name(name: str) -> str:
    """Escape dots for the name of a module or a group of tensors, since PyTorch reads a dot as a submodule. Other names stay
    unchanged.
    """
    return name.replace("%", "%25").replace(".", "%2E")


def _short(name: str, length: int = 60) -> str:
    shown = printable(name)
    return f"'{shown}'" if len(shown) <= length else f"'{shown[:length]}...'"


def printable(text: str, keep: str = "") -> str:
    """Escape control characters, changes of direction and lone surrogates, except those in ``keep``."""
    if text.isprintable():
        return text
    return "".join(c if _is_mark(c) or c in keep else c.encode("unicode_escape").decode() for c in text)


def _is_mark(c: str) -> bool:
    return c.isprintable() or unicodedata.category(c) == "Zs" or c in "\u200c\u200d"  # spaces, and joiners within words


def literal(text: object, style: str = "") -> Text:
    """Return text that Rich prints unchanged: without markup or control characters, with its line breaks."""
    return Text(printable(str(text), keep="\n"), style)


def markup(text: object) -> str:
    """Escape text for use inside a string with Rich markup."""
    return escape(printable(str(text), keep="\n"))


def markdown(text: str) -> str:
    """Escape one line, or a cell of a table, so that it contains no HTML, link, code or further column."""
    line = re.sub(r"([\\`*|])", r"\\\1", printable(text))
    return line.replace("<", "&lt;").replace("](", "]\\(")


def csv_cell(value: object) -> object:
    """Quote text that a spreadsheet would take for a formula; numbers stay unchanged."""
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else printable(value)


def csv_rows(rows: Iterable[Mapping[str, object]]) -> list[dict[str, object]]:
    """Apply ``csv_cell`` to all cells of the rows."""
    return [{key: csv_cell(value) for key, value in row.items()} for row in rows]


def figure_text(text: str) -> str:
    """Escape text for Matplotlib: dollars are shown, and a leading underscore does not hide a line from the legend. Line breaks
    stay.
    """
    shown = printable(text, keep="\n").replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
