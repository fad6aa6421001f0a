"""matplotlib for all figures here, which look the same whatever settings lie in the current folder: a stranger's, perhaps."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager, suppress
from pathlib import Path
from typing import Any

with ExitStack() as elsewhere:
    if "matplotlib" not in sys.modules:  # at its import it reads ./matplotlibrc, ends in a traceback where that is damaged
        with suppress(OSError):  # of a current folder that is gone
            elsewhere.enter_context(chdir(Path(__file__).parent))
    import matplotlib as mpl
    import matplotlib.style
    from matplotlib.figure import Figure

__all__ = ["Figure", "mpl", "plain"]


@contextmanager
def plain(style: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Within it, or within a function that it decorates, figures are drawn and saved by matplotlib's defaults and ``style``."""
    with mpl.style.context(["default", dict(style or {})]):
        yield
