"""Calibration of posterior variances over t as a phase of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from egd.checkpoint import group, prefixed
from egd.posteriors.moments import Moments, calibrate
from egd.training.learners import Metrics
from egd.types import Denoiser, Sample, Schedule


class Calibration(nn.Module):
    """Learner of the ``Moments`` of one or several denoisers by name; its one update is ``calibrate`` with ``settings``.

    The moments are buffers, so that those of many runs can be stacked. ``version`` counts how often they changed.
    """

    def __init__(
        self, denoisers: Mapping[str, Callable[[], Denoiser]], schedule: Schedule, sample: Sample, **settings: Any
    ) -> None:
        super().__init__()
        self.denoisers, self.schedule, self.sample, self.settings = dict(denoisers), schedule, sample, settings
        self.fitted = nn.ModuleDict()
        self.version = 0

    @property
    def moments(self) -> dict[str, Moments]:
        """Moments by the name of their denoiser; {} before the first update."""
        loaded = {name: Moments.load(_tensors(module)) for name, module in self.fitted.items()}
        return {name: replace(moments, schedule=self.schedule) for name, moments in loaded.items()}

    @torch.no_grad()
    def update(self, generator: torch.Generator) -> Metrics:
        """Estimate all moments anew, and return the data's variance."""
        for name, denoiser in self.denoisers.items():
            found = calibrate(denoiser(), self.schedule, self.sample, generator=generator, **self.settings)
            self._keep(name, found.state())
        self.version += 1
        return {"data_var": next(iter(self.moments.values())).data_var}

    def state(self) -> dict[str, Tensor]:
        """Return the moments as flat tensors, for the checkpoint."""
        return {k: v for name, module in self.fitted.items() for k, v in prefixed(name, _tensors(module)).items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Set the moments from a ``state``. Raises ValueError where it is of other denoisers, or of another grid."""
        for name in self.denoisers:
            if not (tensors := group(name, state)):
                raise ValueError(f"there are no moments of {name}")
            times, grid = len(Moments.load(tensors).checked().t), self.settings.get("grid")
            if grid is not None and times != grid:
                raise ValueError(f"{name} was estimated at {times} times, and calibration.grid is {grid}")
            self._keep(name, tensors)
        self.version += 1

    def _keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the moments of one denoiser as buffers."""
        self.fitted[name] = nn.Module()
        for key, tensor in tensors.items():
            self.fitted[name].register_buffer(key.replace(".", "/"), tensor)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's buffers by their names before registration, which had dots."""
    return {name.replace("/", "."): tensor for name, tensor in module.named_buffers()}
