"""Watching of sampling runs: for samples that leave the data's scale, and energies whose gradient is always zero."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from egd.contracts import name_of
from egd.errors import Notice
from egd.tensors import transformed
from egd.types import Energy, TimedEnergy

P = ParamSpec("P")
R = TypeVar("R")
FAR = 100.0
"""Bound of the data's scale: so many times the largest entry of the initial noise, or of 1 where that is larger."""
OFTEN = 8
"""Number of calls of a guided denoiser between two checks of x_0 on a GPU, which wait for it; a CPU checks every call."""
SHARES = ("off_scale", "clipped", "effective")
"""Names of a watch's metrics."""
SCALE = f"left the data's scale (an entry beyond {FAR:g} times the noise's largest)"
TOO_STRONG = (
    "guidance was too strong somewhere. Bound x_0 by Clip(guide(...), low, high) with the data's range, "
    "or take a smaller beta or omega, a rule that clips, or another estimator"
)
TOO_WIDE = (
    "no energy was seen to guide, so that it is the denoiser, or guidance of another kind, that leads there. Train the "
    "denoiser longer, or bound x_0 by Clip(denoiser, low, high) with the data's range"
)


class SamplingWarning(Notice):
    """Warning of samples that are off the data's scale, not finite, or not guided."""


@dataclass
class Watch:
    """Counts and flags of the sampling within ``watching()``.

    ``pushed`` holds, for every energy that guided, whether any of its gradients was not zero, as a tensor, so that no step
    waits for the device. ``single_run`` tells that the watch is of one sampling run, at whose end samples are checked.
    """

    single_run: bool = False
    rows: int = 0
    off_scale: int = 0
    curved: int = 0
    clipped: int = 0
    pushed: dict[int, tuple[TimedEnergy, Tensor]] = field(default_factory=dict)
    effective: dict[int, tuple[Energy, Tensor, int, float]] = field(default_factory=dict)
    least_effective: float = math.inf

    def add(self, other: Watch) -> None:
        """Add the counts of another watch that is over."""
        self.rows, self.off_scale = self.rows + other.rows, self.off_scale + other.off_scale
        self.curved, self.clipped = self.curved + other.curved, self.clipped + other.clipped
        self.least_effective = min(self.least_effective, other.least_effective)

    def metrics(self) -> dict[str, float]:
        """Return the shares that are known.

        ``off_scale`` is the share of samples off the data's scale; ``clipped`` the share of rows with a clipped curvature,
        where curvatures were computed; ``effective`` the least effective share of draws, where a fitted mixture averages by
        draws.
        """
        shares = {"off_scale": self.off_scale / self.rows} if self.rows else {}
        shares |= {"clipped": self.clipped / self.curved} if self.curved else {}
        return shares | ({"effective": self.least_effective} if self.least_effective < math.inf else {})


def clips_of(shares: Mapping[str, Any]) -> str | None:
    """Return a text on the clipped curvatures in the metrics of a sampling run; None where there were none."""
    share = shares.get("clipped", 0.0)
    said = f"an energy curves downwards by more than its estimator can integrate in {100 * share:.2g} % of the rows, which were"
    return f"{said} clipped" if share else None


_current: ContextVar[Watch | None] = ContextVar("_current", default=None)
_label: ContextVar[str] = ContextVar("_label", default="")


@contextmanager
def named(label: str) -> Iterator[None]:
    """Put ``label``, the name of a sampling, in front of the warnings in a with-block."""
    token = _label.set(label)
    try:
        yield
    finally:
        _label.reset(token)


@contextmanager
def watching(*, single_run: bool = False) -> Iterator[Watch]:
    """Watch the sampling runs of a with-block, or a ``single_run`` that ends with ``finish``; outer blocks see them too."""
    outer, own = _current.get(), Watch(single_run)
    token = _current.set(own)
    try:
        yield own
    finally:
        _current.reset(token)
        if outer is not None:
            outer.add(own)


def watched(sampler: Callable[P, R]) -> Callable[P, R]:
    """Make a sampler keep no graph, and warn when its samples are off the data's scale or were never guided.

    The sampler takes the noise as its third argument, ``x``, and returns samples, or an object with ``samples`` (B, K, ...).
    """

    @wraps(sampler)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.no_grad(), watching(single_run=True) as watch:
            end = sampler(*args, **kwargs)
            start: Any = kwargs["x"] if "x" in kwargs else args[2]
            samples: Any = end
            finish(watch, start, samples if isinstance(end, Tensor) else samples.samples.flatten(0, 1))
        return end

    return run


class Lookout:
    """Check of a guided denoiser in a loop outside the library: warns once of an x_0 off the data's scale or not finite."""

    def __init__(self) -> None:
        self._bound: Tensor | None = None
        self._off: Tensor | None = None
        self._calls = 0
        self._over = False

    def wanted(self, x0: Tensor) -> bool:
        """Tell whether to check x_0: a sampling run of the library checks its samples itself."""
        watch = _current.get()
        return not self._over and (watch is None or not watch.single_run) and readable(x0)

    def look(self, x: Tensor, x0: Tensor, alpha: Tensor, *, bounded: bool) -> None:
        """Check x_0 (B, ...) at x_t (B, ...) by its share alpha x_0 in x_t, with alpha (B, 1, ...).

        The scale is that of the first x_t, or 1. Where x_0 will be ``bounded``, only nan counts.
        """
        if self._bound is None or self._bound.device != x.device:
            self._bound, self._off, self._calls = _bound_of(x), None, 0
        share = (alpha * x0).detach()
        off = share.isnan().any() if bounded else ~(share.abs() <= self._bound).all()
        self._off = off if self._off is None else self._off | off
        self._calls += 1
        if x.device.type == "cpu" or self._calls % OFTEN == 0:
            self._over = bool(self._off)
            if self._over:
                tell(f"the guided x_0 has {SCALE} or is not finite: {TOO_STRONG}", stacklevel=4)


def note_grad(energy: TimedEnergy, grad: Tensor) -> None:
    """Record whether an energy's gradient was not zero; nothing outside a watched run, or while a graph is recorded."""
    watch = _current.get()
    if watch is not None and readable(grad):
        before = watch.pushed.get(id(energy))
        now = grad.detach().any()
        watch.pushed[id(energy)] = energy, now if before is None else before[1] | now


def note_effective(energy: Energy, effective: Tensor, points: int, least: float) -> None:
    """Record the least effective number () of ``points`` draws of an energy's average; fewer than ``least`` cause a warning."""
    watch = _current.get()
    if watch is not None and readable(effective):
        before = watch.effective.get(id(energy))
        watch.effective[id(energy)] = energy, effective if before is None else before[1].minimum(effective), points, least


def note_clips(clipped: int, rows: int) -> None:
    """Count rows whose curvature was clipped."""
    watch = _current.get()
    if watch is not None:
        watch.clipped, watch.curved = watch.clipped + clipped, watch.curved + rows


def _bound_of(noise: Tensor) -> Tensor:
    return FAR * noise.detach().abs().nan_to_num(posinf=0.0).max().clamp(min=1)


def tell(text: str, stacklevel: int = 3) -> None:
    """Warn, with the name of the sampling in front (``named``)."""
    label = _label.get()
    warnings.warn(f"{label}: {text}" if label else text, SamplingWarning, stacklevel=stacklevel + 1)


def finish(watch: Watch, start: Tensor, end: Tensor) -> None:
    """Count the samples ``end`` (B, ...) that are off the scale of the noise ``start`` (B, ...), and warn.

    The count waits once for the device. Python shows a warning once for each text and place in the code, so no text has numbers
    of this one run; the watch has them.
    """
    if not readable(end) or not len(end):
        return
    bound = _bound_of(start)
    size = end.detach().flatten(1).abs().amax(1)
    off = (~(size <= bound)).sum()  # nan is not below anything
    energies = [energy for energy, _ in watch.pushed.values()]
    flags = [flag.to(off.device).double() for _, flag in watch.pushed.values()]
    averaged = list(watch.effective.values())
    numbers = torch.stack([off.double(), *flags, *(number.to(off.device).double() for _, number, _, _ in averaged)]).tolist()
    count, pushed, effective = int(numbers[0]), numbers[1 : 1 + len(flags)], numbers[1 + len(flags) :]
    watch.rows, watch.off_scale = watch.rows + len(end), watch.off_scale + count
    if count:
        tell(f"samples have {SCALE} or are not finite: {TOO_STRONG if any(pushed) else TOO_WIDE}")
    for energy, flag in zip(energies, pushed, strict=True):
        if not flag:
            tell(
                f"{name_of(energy)} never pushed: its gradient was zero for every sample at every step, so the samples are "
                "not guided. A step function, a saturated or an untrained network has such a gradient; "
                "support_samples looks at an energy's values only"
            )
    for (averaged_energy, _, points, least), number in zip(averaged, effective, strict=True):
        watch.least_effective = min(watch.least_effective, number / points)
        if number < least:
            tell(
                f"of the {points} draws by which mixture_fit averages {name_of(averaged_energy)} fewer than {least:.3g} "
                "counted at some step: its correction has collapsed. Raise points, or use ess_blend or support_samples"
            )


def readable(x: Tensor) -> bool:
    """Tell whether a tensor's values can be read: not while operations are recorded, compiled or captured."""
    recorded = transformed() or torch.compiler.is_compiling() or get_proxy_mode() is not None
    return not (recorded or (x.is_cuda and torch.cuda.is_current_stream_capturing()))
