"""Checks of the arrays of an episode. Every problem goes to a ``Complain``, which raises or collects it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from egd.errors import UserError

Array: TypeAlias = NDArray[Any]
Complain: TypeAlias = Callable[[str], None]
"""Takes a sentence that names array, episode and row. If it returns, the checks go on and report further problems."""

LARGEST = 1e18
"""Largest magnitude accepted: the square of a larger number nears the limit of float32."""
REACH = 1.05
"""Largest magnitude of an action that is accepted: recorded actions overshoot [-1, 1] by rounding."""


def refusing(name: str, key: str | None = "data.datasets") -> Complain:
    """Return a ``Complain`` that raises UserError at the first problem and names the command that lists all of them."""

    def complain(problem: str) -> None:
        raise UserError(f"{name}: {problem} ('egd data check {name}' lists all that is wrong)", key=key)

    return complain


def numbers(values: Array, name: str, complain: Complain) -> Array | None:
    """Return the array if its entries are finite numbers of magnitude at most ``LARGEST``; else complain and return None."""
    if values.dtype.kind not in "biuf":
        complain(f"{name} has type {values.dtype}, not numbers")
        return None
    if values.dtype.kind == "b":
        return values
    bad = ~(np.abs(values.astype(np.float64)) <= LARGEST)  # so that NaN is bad
    if not bad.any():
        return values
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    more = f", and {bad.sum() - 1} more entries are like it" if bad.sum() > 1 else ""
    complain(f"{name}[{', '.join(map(str, at))}] is {values[at]}, no number to compute with{more}")
    return None


def flags(values: Array, name: str, complain: Complain) -> NDArray[np.bool_] | None:
    """Return the array as booleans if it holds only 0 and 1 (or false and true); else complain and return None."""
    if (known := numbers(values, name, complain)) is None:
        return None
    if (bad := (known != 0) & (known != 1)).any():
        row = int(np.argmax(bad))
        complain(f"{name}[{row}] is {known[row]}, neither 0 nor 1")
        return None
    return known.astype(bool)


def column(values: Array, name: str, rows: int | None, complain: Complain) -> Array | None:
    """Return (N,) from (N,) or (N, 1), where N must be ``rows`` unless that is None; else complain and return None."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        complain(f"{name} has shape {values.shape}: there must be one number a step, (T,)")
        return None
    if rows is not None and len(values) != rows:
        complain(f"{name} has {len(values)} rows, not {rows}")
        return None
    return values


def table(values: Array, name: str, rows: int, shape: tuple[int, ...], complain: Complain) -> Array | None:
    """Return the array if its shape is (rows, *shape); else complain and return None."""
    if values.shape[1:] != shape or values.ndim == 0:
        complain(f"{name} has shape {values.shape}, not ({rows}, {', '.join(map(str, shape))}) as its space says")
        return None
    if len(values) != rows:
        complain(f"{name} has {len(values)} rows, not {rows}")
        return None
    return values


def check_reach(actions: Array, name: str, complain: Complain) -> None:
    """Complain of actions beyond [-1, 1], up to rounding."""
    if actions.size and (reach := float(np.abs(actions).max())) > REACH:
        row = int(np.abs(actions).max(axis=tuple(range(1, actions.ndim))).argmax())
        complain(
            f"{name}[{row}] reaches {reach:.3g}, but actions must lie in [-1, 1]; record through gymnasium's RescaleAction"
        )


def check_ends(terminations: Array, name: str, complain: Complain) -> None:
    """Complain of an episode that continues after a terminal step."""
    if terminations[:-1].any():
        row = int(terminations.argmax())
        complain(f"{name}[{row}] is true, but {len(terminations) - 1 - row} more steps follow: cut the episode there")


SHARE = 0.01
"""Largest rounding error of float32 that is accepted in an entry, as a share of the entry's standard deviation."""


@dataclass
class Digits:
    """Rounding error of observations in float32, beside their spread, per entry; episodes (T, S) are added one by one."""

    lost: list[Array] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    means: list[Array] = field(default_factory=list)
    variances: list[Array] = field(default_factory=list)
    lows: list[Array] = field(default_factory=list)
    highs: list[Array] = field(default_factory=list)

    def add(self, rows: Array) -> Array:
        """Record the rounding errors and moments of the rows, and return the rows in float32."""
        narrow = rows.astype(np.float32)
        if np.can_cast(rows.dtype, np.float32) or not rows.size:
            return narrow
        exact = rows.astype(np.float64)
        self.lost.append(np.abs(exact - narrow).max(0))
        self.counts.append(len(rows))
        self.means.append(exact.mean(0))
        self.variances.append(exact.var(0))
        self.lows.append(exact.min(0))
        self.highs.append(exact.max(0))
        return narrow

    def check(self, name: str, complain: Complain) -> None:
        """Complain of entries whose spread is lost in float32, the precision of the networks; constant entries are ignored."""
        if not self.lost:
            return
        lost, changes = np.max(self.lost, 0), np.min(self.lows, 0) < np.max(self.highs, 0)
        mean = np.average(self.means, 0, self.counts)
        spread = np.sqrt(np.average(self.variances + (self.means - mean) ** 2, 0, self.counts))
        for entry in np.flatnonzero(changes & (lost > SHARE * (spread + 1e-3))):
            complain(
                f"{name}: entry {entry} lies around {mean[entry]:.6g} and spreads by {spread[entry]:.3g} only, of which "
                f"float32 (networks compute in it) loses up to {lost[entry]:.2g}; subtract the offset in the environment "
                "(gymnasium's TransformObservation) and record the dataset anew"
            )
