"""Errors of users' components, told by the component's name, with the line of its code."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from egd.contracts import ContractError
from egd.errors import UserError
from egd.own_files import of_toolkit

MOST = 300
"""Longest text of a user's error that is shown."""
STANDARD = Path(sysconfig.get_path("stdlib"))
"""Folder of Python's own modules."""


class ComponentError(UserError):
    """Error of a user's component that is no broken contract; its cause is what the component raised."""


@contextmanager
def answering(name: str, key: str, on: str = "") -> Iterator[None]:
    """Raise UserError, naming ``key``, for any error of the user's component ``name`` in the with-block, which makes it, or
    tries it ``on`` some rows. The error is a ``ComponentError`` where it is no broken contract.
    """
    try:
        yield
    except ContractError as error:
        raise UserError(str(error), key=key) from None
    except UserError:
        raise
    except Exception as error:  # a user's code may raise any
        text = " ".join(str(error).split())[:MOST]
        said = f"{type(error).__name__}: {text}" if text else type(error).__name__
        when, remedy = (f"on {on}", "to take any such batch") if on else ("when it is made", "or its settings")
        raise ComponentError(f"{name} fails {when}: {said}{_place(error)}; correct it {remedy}", key=key) from error


def _place(error: Exception) -> str:
    """Name the innermost line of the user's code that an error came through; an empty text where there is none."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file, module = Path(frame.f_code.co_filename), frame.f_globals.get("__name__", "")
        installed = file.is_relative_to(STANDARD) or {"site-packages", "dist-packages"} & {*file.parts}
        if not (installed or of_toolkit(module)):
            place = f" ({file.name}, line {line})"
    return place
