"""Whether files that are being read may name code to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from egd.errors import UserError

_trusting: ContextVar[bool] = ContextVar("trusting", default=True)
_trusting_data: ContextVar[bool] = ContextVar("trusting_data", default=False)


@contextmanager
def trusting(code: bool) -> Iterator[None]:
    """Allow or forbid, for the length of a with-block, that files which are read name code outside the library.

    A recipe that a user passes by hand may name code. A run folder, a report's input and a dataset's metadata may come from
    strangers: they are read with ``trusting(False)`` unless the user says ``--trust-code``.
    """
    token = _trusting.set(code)
    try:
        yield
    finally:
        _trusting.reset(token)


@contextmanager
def trusting_data(code: bool) -> Iterator[None]:
    """The same for the metadata of datasets, which name no code unless the user says ``--trust-code``, whoever wrote the
    recipe.
    """
    token = _trusting_data.set(code)
    try:
        yield
    finally:
        _trusting_data.reset(token)


def require_trust(target: str, key: str) -> None:
    """Raise UserError where ``target`` (``module:Name`` or ``file.py:Name``) is named by a file that may not name code."""
    if not _trusting.get():
        raise _untrusted(target, key)


def require_trust_of_data(target: str, key: str) -> None:
    """The same where it is named by a dataset."""
    if not (_trusting.get() and _trusting_data.get()):
        raise _untrusted(target, key)


def _untrusted(target: str, key: str) -> UserError:
    return UserError(
        f"'{target}' is code outside the library, named by a file that may come from a stranger; "
        "read it, then repeat the command with --trust-code",
        key=key,
    )
