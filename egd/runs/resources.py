"""Memory and disk space that runs will need, estimated from their settings before anything is allocated.

Estimates are right to a factor of a few, which suffices to detect a mistyped number.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egd.errors import UserError

COPIES = 6
"""Copies of a network's weights in training: weights, gradients, Adam's two moments, an average, a target."""
KEPT = 4
"""How many of these copies a checkpoint holds."""
ROW = 100  # bytes of a transition
Sizes = dict[str, int]
"""The keys that make something large -> bytes."""


def memory_limit() -> int:
    """Return the bytes of memory that ``EGD_MEMORY_GB`` states, or that the machine or the container has. Raises UserError
    where the variable is not a number.
    """
    if said := os.environ.get("EGD_MEMORY_GB"):
        try:
            return int(float(said) * 1e9)
        except (ValueError, OverflowError):
            raise UserError(f"'{said}' is not a number of gigabytes", key="EGD_MEMORY_GB") from None
    there = 2**62
    with suppress(AttributeError, OSError, ValueError):  # AttributeError: Windows has no sysconf
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return there


def of_networks(tree: Mapping[str, Any], convolutional: Collection[str] = ()) -> Sizes:
    """Estimate the bytes of all weights, by the keys that determine their number. A ``convolutional`` section doubles its
    channels every level.
    """
    sizes: Sizes = {}
    for path, section in sections_in(tree):
        depth = next((name for name in ("blocks", "layers") if name in section), None)
        if "width" in section and ("name" not in section or "steps" in section):
            width, levels = whole(section["width"]), _depth(section)
            if path in convolutional:
                width = width << min(levels - 1, 60)
            weights = width * width * (10 if path in convolutional else levels) * section.get("ensemble", 1)
            sizes[f"{path}.width" + (f", {path}.{depth}" if depth else "")] = 4 * weights
        elif "widths" in section:
            sizes[f"{path}.widths"] = 4 * 20 * section.get("layers", 1) * sum(width * width for width in section["widths"])
    return sizes


def of_arrays(tree: Mapping[str, Any], rows: int | None = None, besides: tuple[str, ...] = ()) -> Sizes:
    """Estimate the bytes of arrays beside the networks, by the keys that determine them. ``rows`` is the number of rows sampled
    at once, by default the evaluation's number of samples. Components in the sections ``besides`` draw no samples for every
    row.
    """
    evaluation = tree.get("evaluation", {})
    at_once = evaluation.get("samples", 1) if rows is None else rows
    sizes: Sizes = {}
    for path, section in sections_in(tree):
        if "width" in section and "batch" in section:
            each = 12 * whole(section["width"]) * _depth(section) * section.get("ensemble", 1)
            sizes[f"{path}.batch, {path}.width"] = each * whole(section["batch"])
        elif "widths" in section:
            sizes[f"{path}.batch, {path}.widths"] = 400 * section.get("batch", 1) * sum(section["widths"])
        if "name" in section and "samples" in section and path.partition(".")[0] not in besides:
            sizes[f"{path}.samples"] = 16 * at_once * whole(section["samples"])
    sizes["evaluation.draws"] = 40 * evaluation.get("draws", 0)
    sizes["evaluation.samples, evaluation.reference"] = 100 * (evaluation.get("samples", 0) + evaluation.get("reference", 0))
    sizes["calibration.samples"] = ROW * (tree.get("calibration") or {}).get("samples", 0)
    return sizes


@dataclass(frozen=True)
class Estimates:
    """The functions that estimate the bytes of an experiment's runs: of weights, and of arrays beside them."""

    networks: Callable[[Mapping[str, Any]], Sizes] = of_networks
    arrays: Callable[[Mapping[str, Any]], Sizes] = of_arrays


GENERAL = Estimates()


def check(jobs: Sequence[Sequence[Mapping[str, Any]]], out: Path, source: str, estimates: Estimates = GENERAL) -> None:
    """Raise UserError where a job needs more memory than this machine has, or all checkpoints together need more than is free
    on the disk of ``out``. Each job is given by the settings of the runs that it trains together.
    """
    total = sum(check_memory(runs, source, estimates=estimates) * KEPT // COPIES for runs in jobs)
    free = _free(out)
    if total > free:
        count = sum(map(len, jobs))
        remedy = "choose another folder, or fewer or smaller runs"
        why = f"checkpoints of {count:,} runs take about {_gb(total)}, and {_gb(free)} are free"
        raise UserError(f"{why}; {remedy}", key="--out")


def check_memory(
    runs: Sequence[Mapping[str, Any]], source: str, known: Mapping[str, int] | None = None, *, estimates: Estimates = GENERAL
) -> int:
    """Return the bytes of the runs' networks in training. Raises UserError where runs that are trained together, or one that is
    evaluated, need more memory than this machine has. ``known`` maps keys to sizes that need not be estimated.
    """
    most = memory_limit()
    networks = dict[str, int]()
    for tree in runs:
        for key, size in estimates.networks(tree).items():
            networks[key] = networks.get(key, 0) + COPIES * size
    needed = networks | estimates.arrays(runs[0]) | dict(known or {})
    if (bytes_needed := sum(needed.values())) > most:
        remedy = "lower these, or state the memory that there is with EGD_MEMORY_GB"
        together = f" ({len(runs)} runs at once)" if len(runs) > 1 else ""
        why = f"about {_gb(bytes_needed)} of memory are needed{together}, and this machine has {_gb(most)}"
        raise UserError(f"{_largest(needed)}: {why}; {remedy}", key=source)
    return sum(networks.values())


def _depth(section: Mapping[str, Any]) -> int:
    return whole(section.get("layers", section.get("blocks", 4)))


def sections_in(tree: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the sections at every depth, each with its dotted key."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield head + key, value
            yield from sections_in(value, f"{head}{key}.")


def whole(value: Any) -> int:
    """Convert a number, or its text, to an int; 0 where it is not a number."""
    with suppress(TypeError, ValueError, OverflowError):
        return int(float(value))
    return 0


def _largest(sizes: Sizes, count: int = 3) -> str:
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:count]
    return "; ".join(f"{key}: {_gb(size)}" for key, size in largest if size > sum(sizes.values()) // 100)


def _gb(size: int) -> str:
    if size >= 10**15:
        return f"10^{math.floor(math.log10(size)) - 9} GB"
    if size < 10**8:
        return f"{size / 1e6:.1f} MB" if size >= 10**5 else f"{size / 1e3:.1f} kB"
    return f"{size / 1e9:,.1f} GB" if size < 10**11 else f"{size / 1e9:,.0f} GB"


def _free(path: Path) -> int:
    """Return the free bytes of the disk on which a folder will be created; a large number where there is none, as in /proc."""
    here = path.resolve()
    while not here.exists() and here != here.parent:
        here = here.parent
    with suppress(OSError):
        usage = shutil.disk_usage(here)
        if usage.total:
            return usage.free
    return 2**62
