"""``egd bench speed``: how long the pieces of training and acting take, beside plain code and beside what the device can do.

What is measured comes from domains: each entry point of the group ``egd.bench.pieces`` is a function of a ``Setup`` that gives
a list of ``Piece``.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch

from egd.bench.roofline import Rates, count, elapsed, measure_rates
from egd.errors import UserError
from egd.runs.experiment import found
from egd.training.precision import products

GROUP = "egd.bench.pieces"


@dataclass(frozen=True)
class Setup:
    """What the command line asks for: the networks' ``shapes`` by name and sizes, ``settings`` as ``a.b=c``. With ``smoke``
    everything is as small as it can be.
    """

    device: torch.device
    shapes: str = "recipe"
    state: int = 17
    action: int = 6
    width: int | None = None
    settings: Sequence[str] = ()
    smoke: bool = False


@dataclass(frozen=True)
class Case:
    """Calls that are ready to be timed: ours; the ``eager`` code of the usual kind that does the same; and where ours does
    many runs at once, ours with ``one`` run alone. ``dtype`` is that of matrix products. ``written`` is ours as it is written,
    whose operations can be counted, where ``run`` hands them to another runtime.
    """

    run: Callable[[], object]
    eager: Callable[[], object] | None = None
    one: Callable[[], object] | None = None
    dtype: torch.dtype = torch.float32
    written: Callable[[], object] | None = None


@dataclass(frozen=True)
class Piece:
    """Something to measure: ``batch`` rows for each of ``runs`` runs; ``how`` says in what way ours is run, eager or compiled.
    ``items`` are what a call gets done, in ``unit`` (states, say). ``make`` is called when its turn comes. ``extra`` pieces are
    measured only when asked for.
    """

    name: str
    batch: int
    make: Callable[[], Case]
    runs: int = 1
    items: int = 0
    unit: str = ""
    shape: str = ""
    note: str = ""
    how: str = "eager"
    extra: bool = False


@dataclass(frozen=True)
class Timing:
    """Medians of ``blocks`` blocks of calls, each of about ``seconds``."""

    seconds: float
    blocks: int


FULL, QUICK, SMOKE = Timing(0.5, 9), Timing(0.15, 3), Timing(0.0, 1)


@dataclass(frozen=True)
class Row:
    """One piece measured. Times are milliseconds of a call; ``eager_ms`` and ``separate_ms`` (ours, one run after the other)
    are those of all ``runs``. ``roofline_fraction`` is the least time the device could take over ``ms``. ``spread`` is the
    largest over the smallest block time of ours: what else the machine does shows there.
    """

    piece: str
    batch: int
    runs: int
    how: str
    device: str
    ms: float
    eager_ms: float | None
    separate_ms: float | None
    flops: int
    bytes: int
    roofline_fraction: float
    per_second: float | None
    unit: str
    spread: float
    shape: str
    note: str

    @property
    def speedup(self) -> float | None:
        """Eager over ours."""
        return None if self.eager_ms is None else self.eager_ms / self.ms


def find_pieces(setup: Setup) -> list[Piece]:
    """List those of all installed domains. UserError when there are none, or only the name of a package that is not here."""
    pieces: list[Piece] = []
    for entry in found(GROUP).values():
        try:
            offered = entry.load()
        except ModuleNotFoundError as error:
            if error.name != entry.module.partition(".")[0]:
                raise
            raise UserError(
                f"what is measured lies in the folder {error.name}/ of the repository, which is not installed with the "
                "package: clone the repository, and pip install -e . there"
            ) from error
        pieces += offered(setup)
    if not pieces:
        raise UserError(f"no installed package offers pieces to measure (entry points of the group {GROUP})")
    return pieces


def choose(pieces: Sequence[Piece], names: Sequence[str], *, scaling: bool = False) -> list[Piece]:
    """The named ones, or all but the extra ones (those too with ``scaling``). UserError for a name that is not there."""
    known = list(dict.fromkeys(piece.name for piece in pieces))
    for name in names:
        if name not in known:
            raise UserError(f"no piece is called '{name}'; there are {', '.join(known)}", key="--piece")
    return [p for p in pieces if (p.name in names if names else scaling or not p.extra)]


def measure(pieces: Sequence[Piece], setup: Setup, timing: Timing) -> Iterator[Row]:
    """A row for every piece, in order, as soon as it is there."""
    rates = cache(lambda dtype, precision: measure_rates(setup.device, dtype, smoke=setup.smoke))
    for piece in pieces:
        case = piece.make()
        # the products' precision is a global setting that a piece may have made; rates are those under it
        yield _row(piece, case, setup.device, timing, rates(case.dtype, torch.get_float32_matmul_precision()))


def _row(piece: Piece, case: Case, device: torch.device, timing: Timing, rates: Rates) -> Row:
    plain = None if case.eager is None else as_torch_comes(case.eager)
    blocks, eager, one = block_times([case.run, plain, case.one], device, timing)
    seconds, cost = median(blocks), count(case.written or case.run)
    return Row(
        piece=piece.name,
        batch=piece.batch,
        runs=piece.runs,
        how=piece.how,
        device=device_label(device),
        ms=1e3 * seconds,
        eager_ms=1e3 * piece.runs * median(eager) if eager else None,
        separate_ms=1e3 * piece.runs * median(one) if one else None,
        flops=cost.flops,
        bytes=cost.bytes,
        roofline_fraction=cost.least_seconds(rates) / seconds,
        per_second=piece.items / seconds if piece.items else None,
        unit=piece.unit,
        spread=max(blocks) / min(blocks),
        shape=piece.shape,
        note=piece.note,
    )


def as_torch_comes(call: Callable[[], object]) -> Callable[[], object]:
    """The call with torch's default for the precision of products, which ours may have changed."""

    def by_default() -> None:
        with products("highest"):
            call()

    return by_default


def block_times(calls: Sequence[Callable[[], object] | None], device: torch.device, timing: Timing) -> list[list[float]]:
    """Seconds a call, block by block, for each of the calls ([] for None), after warming up.

    The calls take turns, so that what else the machine does is everyone's loss.
    """
    chosen = {i: call for i, call in enumerate(calls) if call is not None}
    counts = {i: _warm(call, device, timing.seconds) for i, call in chosen.items()}
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(timing.blocks):
        for i, call in chosen.items():
            times[i].append(elapsed(call, device, counts[i]) / counts[i])
    return times


def _warm(call: Callable[[], object], device: torch.device, seconds: float) -> int:
    """Call until it is warm; how many calls fill a block."""
    first = elapsed(call, device)
    if first > 10 * seconds:
        return 1
    n = max(1, math.ceil(seconds / elapsed(call, device)))
    return max(1, math.ceil(seconds / (elapsed(call, device, n) / n)))


def device_label(device: torch.device) -> str:
    """For the table: a GPU's name, or the CPU with its threads."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
