"""Trust in the code that files name: whether a file that is being read may name code to run.

A recipe that a user passes by hand may name code. Files that may come from a stranger (a run folder, a report's input, a
dataset's metadata) may name only the library's own components. There are two exceptions: the option ``--trust-code``, and the
user's own code. Code counts as the user's own where it lies in the current project, unchanged since the run recorded its
digest, and the record has a signature that only this user can make.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from egd.errors import UserError
from egd.files import read_regular, write_text
from egd.own_files import imported

RECORD = "code.json"
"""File in a run folder: the code outside the library that its settings name, with the digests of the files, signed."""

CODE = "code outside the library"
RUN_CONFIG = "config.yaml"
TARGET = re.compile(r"(?s).+\.py:[^\W\d]\w*|[^\W\d][\w.]*:[^\W\d]\w*")


@dataclass(frozen=True)
class _Trust:
    """``code``: whether files that are read may name code, None where nobody has decided; ``run``: the folder that is read."""

    code: bool | None = None
    run: Path | None = None


_trust: ContextVar[_Trust] = ContextVar("trust", default=_Trust())  # noqa: B039  (it is frozen)


@contextmanager
def trusting(code: bool, run: Path | None = None) -> Iterator[None]:
    """Allow or forbid, within the with-block, that files which are read name code outside the library. The user's own code is
    allowed for the run folder ``run``. Where an outer block allows code, by the user's ``--trust-code``, it stays allowed.
    """
    outer = _trust.get()
    token = _trust.set(outer if outer.code else _Trust(code, run))
    try:
        yield
    finally:
        _trust.reset(token)


def reading(recipe: Path, code: bool = False) -> AbstractContextManager[None]:
    """Return ``trusting`` for a recipe passed by hand, which may name code, or for a run's ``config.yaml``, which may be a
    stranger's.
    """
    if code:
        return trusting(True)
    return trusting(False, recipe.parent) if recipe.name.lower() == RUN_CONFIG else nullcontext()


def may_name_code() -> bool:
    """Return whether files that are being read may name any code; False where they may come from a stranger."""
    return _trust.get().code is not False


def require_trust(target: str, key: str) -> None:
    """Raise UserError where ``target`` (``module:Name`` or ``file.py:Name``) is named by a file that may not name code."""
    if not _is_trusted(target):
        raise _untrusted(target, key)


def require_trust_of_data(target: str, key: str, what: str = CODE) -> None:
    """Raise UserError where a dataset names ``target`` without ``--trust-code`` (``trusting(True)``), whoever wrote the recipe.
    ``what`` describes the target in the message.
    """
    if not _trust.get().code:
        raise _untrusted(target, key, what)


def _untrusted(target: str, key: str, what: str = CODE) -> UserError:
    return UserError(
        f"'{target}' is {what}, named by a file that may come from a stranger (see SECURITY.md); "
        "read it, then repeat the command with --trust-code (in Python, trust_code=True)",
        key=key,
    )


def record(folder: Path, settings: Mapping[str, Any]) -> None:
    """Record the trusted code that the settings name in the run folder, with a signature. Nothing is written where they name
    none.
    """
    named = [target for target in sorted(set(_targets(settings))) if _is_trusted(target)]
    found = {target: _digest(file) for target in named if (file := _file_of(target)) is not None}
    if found and (key := _key(make=True)) is not None:
        note = {"code": found, "signature": _signature(key, found)}
        write_text(folder / RECORD, json.dumps(note, indent=2) + "\n")


def _is_trusted(target: str) -> bool:
    trust = _trust.get()
    return trust.code is not False or (trust.run is not None and _is_own(target, trust.run))


def _is_own(target: str, run: Path) -> bool:
    file = _file_of(target)
    if file is None or not file.is_relative_to(Path.cwd().resolve()) or file.is_relative_to(run.resolve()):
        return False
    return _recorded(run).get(target) == _digest(file)


def _recorded(run: Path) -> Mapping[str, Any]:
    """Return target -> digest from a run's record, {} without a valid signature of this user."""
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        note, key = json.loads(read_regular(run / RECORD, 2**20)), _key()
        if key is not None and hmac.compare_digest(str(note["signature"]), _signature(key, note["code"])):
            return dict(note["code"])
    return {}


def _signature(key: bytes, found: Mapping[str, str]) -> str:
    return hmac.new(key, json.dumps(found, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def _key(*, make: bool = False) -> bytes | None:
    """Return this user's secret key on this machine, which is created on first use with ``make``; None where there is none."""
    path = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "egd" / "key"
    with suppress(OSError):
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_name(f"key.{os.getpid()}.part")
            with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            os.replace(scratch, path)
        key = path.read_bytes()
        return key if len(key) == 32 else None
    return None


def _file_of(target: str) -> Path | None:
    """Return the file of the code without importing it, None where it is not found."""
    place = target.rpartition(":")[0]
    try:
        if place.endswith(".py"):
            file = Path(place).expanduser().resolve()
            return file if file.is_file() else None
        first, *rest = place.split(".")
        spec = importlib.util.find_spec(first)
        for name in rest:
            spec = PathFinder.find_spec(f"{first}.{name}", spec.submodule_search_locations) if spec else None
            first = f"{first}.{name}"
    except (ImportError, OSError, ValueError, AttributeError, RuntimeError):
        return None
    origin = spec.origin if spec else None
    return Path(origin).resolve() if origin and origin.endswith(".py") else None


def _digest(file: Path) -> str:
    """Return the digest of a file of code and of the user's own modules that it imports."""
    return hashlib.sha256(
        b"".join(hashlib.sha256(each.read_bytes()).digest() for each in [file, *sorted(imported(file))])
    ).hexdigest()


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, str) and TARGET.fullmatch(value):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _targets(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _targets(item)


def is_pythons_own(module: str) -> bool:
    """Return whether a module belongs to Python's standard library, which has no components."""
    return module.partition(".")[0] in sys.stdlib_module_names
