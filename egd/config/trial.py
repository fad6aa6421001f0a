"""Trials of a user's own components on a batch of a few rows, before anything is trained or sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor

from egd.config.catalogue import OBJECTIVES, POSTERIORS, RULES, TIMES, WRAPPERS, energy_registry
from egd.config.components import Registry, Spec, build
from egd.config.failures import ComponentError, answering
from egd.contracts import ContractError, check_like, check_rows, denoised, guided_score, name_of, posterior_at, timed_values
from egd.energies.base import prepare
from egd.objectives.base import ObjectiveNetwork
from egd.own_files import of_toolkit
from egd.posteriors import IsotropicGaussian
from egd.posteriors.moments import calibrate
from egd.tensors import expand, flat_context, isolated_rng, map_context, value_and_grad
from egd.types import BringsNetwork, Context, Sampler, Schedule

STEPS = 5
"""Steps of a sampler that is tried: as many as the highest orders need."""


@dataclass(frozen=True)
class Trial:
    """Stand-ins for the parts of a run: data N(0, I) of the shape ``event`` with its exact denoiser, and the mean over the
    entries of (x - 1)^2 / 2 as the energy. ``context`` may have any number of rows; its rows are repeated or cut to the batch.

    The methods raise UserError, naming ``key``, where a component breaks its contract (a wrong shape, numbers that are not
    finite, a gradient that is missing or zero at every time) or raises any other error. An error that may be due to the
    stand-ins is left to the run; where event and context are not the ``runs_own`` either, all but broken contracts may be.
    Components of the library are not tried.
    """

    event: tuple[int, ...]
    schedule: Schedule
    context: Context = None
    runs_own: bool = True

    def energy(self, spec: Spec, key: str) -> None:
        """Try a closed-form energy, or the loss of an objective."""
        if not names_code(spec):
            return
        with self._answering(spec, key):
            component = self._made(energy_registry(spec.name, key), spec, self.parts, key)
            if hasattr(component, "loss"):
                self._loss(component)
                return
            timed = prepare(component, self._context)
            grads = []
            for t in TIMES:
                x, times = self._noised(t)
                value, grad = value_and_grad(lambda x, times=times: timed_values(timed, x, times, self._context), x)  # type: ignore[misc]
                _check_finite(component, value, grad)
                grads.append(grad)
            if not torch.stack(grads).any():
                raise ContractError(f"{name_of(component)} has a gradient of zero at every time: it would guide nowhere")

    def posterior(self, spec: Spec, key: str) -> None:
        """Try a posterior: its mean and its quadratic form."""
        if not names_code(spec):
            return
        with self._answering(spec, key):
            posterior = self._made(POSTERIORS, spec, self.parts, key)
            for t in TIMES:
                x, times = self._noised(t)
                q = posterior_at(posterior, x, times, self._context)
                form = q.quadratic(torch.ones_like(x))
                check_rows(form, x, posterior)
                _check_finite(posterior, q.mean, form)

    def rule(self, spec: Spec, key: str) -> None:
        """Try a guidance rule."""
        if not names_code(spec):
            return
        with self._answering(spec, key):
            rule = self._made(RULES, spec, {"omega": torch.ones(self.rows)}, key)
            for t in TIMES:
                x, times = self._noised(t)
                _check_finite(rule, guided_score(rule, -x, torch.ones_like(x), times))

    def sampler(self, spec: Spec, sampler: Sampler, key: str) -> None:
        """Try a sampler, given with its specification, for a few steps."""
        if not names_code(spec):
            return
        with self._answering(spec, key):
            x, _ = self._noised(0.9)
            times, generator = torch.linspace(0.9, 0.1, 1 + STEPS), torch.Generator().manual_seed(0)
            samples = sampler(self._denoiser, self.schedule, x, times, self._context, generator=generator)
            check_like(samples, x, sampler)
            _check_finite(sampler, samples)

    def wrapper(self, spec: Spec, parts: Mapping[str, Any], key: str) -> None:
        """Try a wrapper of a denoiser, built with these parts and the denoiser."""
        if not names_code(spec):
            return
        with self._answering(spec, key):
            wrapped = self._made(WRAPPERS, spec, {**parts, "denoiser": self._denoiser}, key)
            for t in TIMES:
                x, times = self._noised(t)
                x0, _ = value_and_grad(lambda x, times=times: denoised(wrapped, x, times, self._context).flatten(1).sum(1), x)  # type: ignore[misc]
                _check_finite(wrapped, x0)

    def own_objective(self, spec: Spec, beta: float, key: str) -> object:
        """Make an objective for its network alone, before a calibration: with stand-ins for all parts but ``beta`` and the
        schedule. None for an objective of the library, none of which brings a network.
        """
        made: object = build(OBJECTIVES, spec, self.parts | {"beta": beta}, key) if names_code(spec) else None
        return made

    @cached_property
    def rows(self) -> int:
        """The number of rows: the smallest from 2 on that is no axis of ``event``, so that a sum over the wrong axis is
        noticed.
        """
        return next(n for n in count(2) if n not in self.event)

    @cached_property
    def _context(self) -> Context:
        return map_context(lambda v: v[torch.arange(self.rows) % len(v)], self.context)

    @cached_property
    def parts(self) -> dict[str, Any]:
        """The parts that a component may ask for by name."""
        moments = calibrate(
            self._denoiser, self.schedule, self._sample, generator=torch.Generator().manual_seed(0), grid=4, samples=64
        )
        return {
            "energy": lambda x, c: 0.5 * (x - 1).square().flatten(1).mean(1),
            "denoiser": self._denoiser,
            "posterior": self._posterior,
            "schedule": self.schedule,
            "support": lambda c, k: torch.randn(1 if c is None else self.rows, k, *self.event),
            "moments": moments,
            "wanted": self._sample,
            "beta": 1.0,
        }

    @contextmanager
    def _answering(self, spec: Spec, key: str) -> Iterator[None]:
        """Raise UserError for the component's errors. The global random state is restored afterwards."""
        on = f"{self.rows} rows of made-up data, {(self.rows, *self.event)}"
        with isolated_rng():
            try:
                with answering(_title(spec), key, on):
                    yield
            except ComponentError as error:
                if self.runs_own and not _of_a_stand_in(error.__cause__):
                    raise

    def _made(self, registry: Registry, spec: Spec, parts: Mapping[str, Any], key: str) -> Any:
        with answering(_title(spec), key):
            return build(registry, spec, parts, key)

    def _sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        c = map_context(lambda v: v[:1].expand(n, *v.shape[1:]), self._context)
        return torch.randn(n, *self.event, generator=generator), c

    def _denoiser(self, x: Tensor, t: Tensor, c: Context = None) -> Tensor:
        return self._posterior(x, t, c).mean

    def _posterior(self, x: Tensor, t: Tensor, c: Context = None) -> IsotropicGaussian:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        total = alpha**2 + sigma**2
        return IsotropicGaussian(expand(alpha / total, x) * x, sigma**2 / total)

    def _noised(self, t: float) -> tuple[Tensor, Tensor]:
        times = torch.full((self.rows,), t)
        draws = torch.randn(self.rows, *self.event, generator=torch.Generator().manual_seed(1))
        return expand((self.schedule.alpha(times) ** 2 + self.schedule.sigma(times) ** 2).sqrt(), draws) * draws, times

    def _loss(self, objective: Any) -> None:
        x, times = self._noised(0.5)
        weight = torch.ones((), requires_grad=True)
        network: Any = lambda x, t, c: weight * x.flatten(1).sum(1)  # noqa: E731
        if isinstance(objective, BringsNetwork):
            entries = sum(v.shape[1] for v in flat_context(self._context))
            made = ObjectiveNetwork(objective, self.event, entries)
            timed_values(made, x.clone().requires_grad_(), times, self._context)
            network = made.network
        loss, _ = objective.loss(network, torch.ones_like(x), x, times, self._context, torch.Generator())
        if loss.shape or not loss.requires_grad:
            raise ContractError(f"{name_of(objective)} has a loss that is no single number, or that does not see the network")
        _check_finite(objective, loss)


def names_code(spec: Spec) -> bool:
    """Return whether a component, or one nested in its settings, comes from outside the library."""
    return any(True for _ in code_names(spec))


def _title(spec: Spec) -> str:
    return ", ".join(dict.fromkeys(code_names(spec)))


def code_names(spec: Spec) -> Iterator[str]:
    """Yield the names of the components from outside the library, the component's own and those nested in its settings."""
    return _paths([spec.name, *spec.settings.values()])


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, str) and ":" in value:
        yield value
    if isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(part)


def _check_finite(component: object, *values: Tensor) -> None:
    if not all(bool(v.isfinite().all()) for v in values):
        raise ContractError(f"{name_of(component)} gives numbers that are not finite for data of unit variance")


def _of_a_stand_in(error: BaseException | None) -> bool:
    """Return whether an error is due to a stand-in: it lacks an attribute that the run's part may have, or is on the CPU."""
    made_by = getattr(error.obj, "__module__", None) if isinstance(error, AttributeError) else None
    return (isinstance(made_by, str) and of_toolkit(made_by)) or "on the same device" in str(error)
