"""``egd bench speed``: the time of pieces of training and acting, compared with plain code and with the device's limits.

Domains supply the pieces: each entry point of the group ``egd.bench.pieces`` is a function from a ``Setup`` to a list of
``Piece``.
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
    """The options of the command line: the networks' ``shapes`` by name and sizes, and ``settings`` as ``a.b=c``. With
    ``smoke`` everything is as small as possible.
    """

    device: torch.device
    shapes: str = "recipe"
    state: int = 17
    action: int = 6
    width: int | None = None
    settings: Sequence[str] = ()
    smoke: bool = False


@dataclass(frozen=True)
class SpeedCase:
    """Calls that are ready to be timed. ``run`` is the library's code, ``eager`` plain code that does the same work. ``one`` is
    the library's code with a single run, where ``run`` does many runs at once. ``dtype`` is that of matrix products.
    ``written`` is the library's eager code, whose operations can be counted, where ``run`` uses another runtime.
    """

    run: Callable[[], object]
    eager: Callable[[], object] | None = None
    one: Callable[[], object] | None = None
    dtype: torch.dtype = torch.float32
    written: Callable[[], object] | None = None


@dataclass(frozen=True)
class Piece:
    """A piece of work to time: ``batch`` rows for each of ``runs`` runs. ``how`` says how the library's code is run, eager or
    compiled. ``items`` is the number of items that a call processes, in ``unit`` (such as states). ``make`` is called when the
    piece's turn comes. ``extra`` pieces are timed only on request.
    """

    name: str
    batch: int
    make: Callable[[], SpeedCase]
    runs: int = 1
    items: int = 0
    unit: str = ""
    shape: str = ""
    note: str = ""
    how: str = "eager"
    extra: bool = False


@dataclass(frozen=True)
class Timing:
    """The effort of a measurement: medians over ``blocks`` blocks of calls, each of about ``seconds``."""

    seconds: float
    blocks: int


FULL, QUICK, SMOKE = Timing(0.5, 9), Timing(0.15, 3), Timing(0.0, 1)


@dataclass(frozen=True)
class SpeedRow:
    """The measurement of one piece. Times are milliseconds per call. ``ms`` is the library's code; ``eager_ms`` (plain code)
    and ``separate_ms`` (the library's code, one run after the other) are times of all ``runs``. ``roofline_fraction`` is the
    least time that the device could take over ``ms``. ``spread`` is the ratio of the largest to the smallest block time of the
    library's code, which shows the load by other programs.
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
        """Time of plain code over the library's time."""
        return None if self.eager_ms is None else self.eager_ms / self.ms


def find_pieces(setup: Setup) -> list[Piece]:
    """Return the pieces of all installed domains. Raises UserError where there are none, or where the package of the pieces is
    not installed.
    """
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
    """Return the named pieces; without names all but the extra ones, or all with ``scaling``. Raises UserError for an unknown
    name.
    """
    known = list(dict.fromkeys(piece.name for piece in pieces))
    for name in names:
        if name not in known:
            raise UserError(f"no piece is called '{name}'; there are {', '.join(known)}", key="--piece")
    return [p for p in pieces if (p.name in names if names else scaling or not p.extra)]


def measure(pieces: Sequence[Piece], setup: Setup, timing: Timing) -> Iterator[SpeedRow]:
    """Yield a row for every piece, in order, as soon as it is measured."""
    rates = cache(lambda dtype, precision: measure_rates(setup.device, dtype, smoke=setup.smoke))
    for piece in pieces:
        case = piece.make()
        # a piece may change the global precision of products: rates are measured at this precision
        yield _row(piece, case, setup.device, timing, rates(case.dtype, torch.get_float32_matmul_precision()))


def _row(piece: Piece, case: SpeedCase, device: torch.device, timing: Timing, rates: Rates) -> SpeedRow:
    plain = None if case.eager is None else as_torch_comes(case.eager)
    blocks, eager, one = block_times([case.run, plain, case.one], device, timing)
    seconds, cost = median(blocks), count(case.written or case.run)
    return SpeedRow(
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
    """Return the call at torch's default precision of products, which the library may have changed."""

    def by_default() -> None:
        with products("highest"):
            call()

    return by_default


def block_times(calls: Sequence[Callable[[], object] | None], device: torch.device, timing: Timing) -> list[list[float]]:
    """Return the seconds per call in every block, for each of the calls ([] for None), after warming up.

    The calls take turns, so that the load by other programs affects all of them.
    """
    chosen = {i: call for i, call in enumerate(calls) if call is not None}
    counts = {i: _warm(call, device, timing.seconds) for i, call in chosen.items()}
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(timing.blocks):
        for i, call in chosen.items():
            times[i].append(elapsed(call, device, counts[i]) / counts[i])
    return times


def _warm(call: Callable[[], object], device: torch.device, seconds: float) -> int:
    """Call until warm, and return the number of calls that fill a block."""
    first = elapsed(call, device)
    if first > 10 * seconds:
        return 1
    n = max(1, math.ceil(seconds / elapsed(call, device)))
    return max(1, math.ceil(seconds / (elapsed(call, device, n) / n)))


def device_label(device: torch.device) -> str:
    """Return the device's label for the table: a GPU's name, or the CPU with its threads."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
