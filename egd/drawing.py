"""matplotlib for all figures, with the same look whatever settings lie in the current folder, which may be a stranger's."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager, suppress
from pathlib import Path
from typing import Any

with ExitStack() as elsewhere:
    if "matplotlib" not in sys.modules:  # its import reads ./matplotlibrc, and ends in a traceback where that file is damaged
        with suppress(OSError):  # the current folder may be gone
            elsewhere.enter_context(chdir(Path(__file__).parent))
    import matplotlib as mpl
    import matplotlib.style
    from matplotlib.figure import Figure

__all__ = ["Figure", "mpl", "plain"]


@contextmanager
def plain(style: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Draw and save figures by matplotlib's defaults and ``style`` within a with-block, or within a function that it
    decorates.
    """
    with mpl.style.context(["default", dict(style or {})]):
        yield
