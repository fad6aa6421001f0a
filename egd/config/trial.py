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

from egd.config.catalogue import OBJECTIVES, POSTERIORS, RULES, WRAPPERS, energy_registry
from egd.config.components import Spec, build
from egd.contracts import ContractError, check_like, check_rows, denoised, guided_score, name_of, posterior_at, timed_values
from egd.energies.base import prepare
from egd.errors import UserError
from egd.objectives.base import ObjectiveNetwork
from egd.posteriors import IsotropicGaussian
from egd.posteriors.moments import calibrate
from egd.tensors import expand, flat_context, isolated_rng, map_context, value_and_grad
from egd.types import BringsNetwork, Context, Sampler, Schedule

TIMES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Trial:
    """Stand-ins for the parts of a run: data N(0, I) of the shape ``event`` with its exact denoiser, and the mean over the
    entries of (x - 1)^2 / 2 as the energy. ``context`` may have any number of rows; its rows are repeated or cut to the batch.

    The methods raise UserError, naming ``key``, where a component breaks its contract: a wrong shape, numbers that are not
    finite, or a gradient that is missing or zero at every time. All other errors may be due to the stand-ins, and are left to
    the run. Components of the library are not tried.
    """

    event: tuple[int, ...]
    schedule: Schedule
    context: Context = None

    def energy(self, spec: Spec, key: str) -> None:
        """Try a closed-form energy, or the loss of an objective."""
        if not names_code(spec):
            return
        with _answering(key):
            component = build(energy_registry(spec.name, key), spec, self.parts, key)
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
        with _answering(key):
            posterior = build(POSTERIORS, spec, self.parts, key)
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
        with _answering(key):
            rule = build(RULES, spec, {"omega": torch.ones(self.rows)}, key)
            for t in TIMES:
                x, times = self._noised(t)
                _check_finite(rule, guided_score(rule, -x, torch.ones_like(x), times))

    def sampler(self, spec: Spec, sampler: Sampler, key: str) -> None:
        """Try a sampler, given with its specification, for two steps."""
        if not names_code(spec):
            return
        with _answering(key):
            x, _ = self._noised(0.9)
            times, generator = torch.tensor([0.9, 0.5, 0.1]), torch.Generator().manual_seed(0)
            samples = sampler(self._denoiser, self.schedule, x, times, self._context, generator=generator)
            check_like(samples, x, sampler)
            _check_finite(sampler, samples)

    def wrapper(self, spec: Spec, parts: Mapping[str, Any], key: str) -> None:
        """Try a wrapper of a denoiser, built with these parts and the denoiser."""
        if not names_code(spec):
            return
        with _answering(key):
            wrapped = build(WRAPPERS, spec, {**parts, "denoiser": self._denoiser}, key)
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
    return ":" in spec.name or any(map(_has_path, spec.settings.values()))


def _has_path(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_path, value.values()))
    return any(map(_has_path, value)) if isinstance(value, list | tuple) else isinstance(value, str) and ":" in value


def _check_finite(component: object, *values: Tensor) -> None:
    if not all(bool(v.isfinite().all()) for v in values):
        raise ContractError(f"{name_of(component)} gives numbers that are not finite for data of unit variance")


@contextmanager
def _answering(key: str) -> Iterator[None]:
    """Turn a broken contract into a UserError, and ignore other errors. The global random state is restored afterwards."""
    with isolated_rng():
        try:
            yield
        except ContractError as error:
            raise UserError(str(error), key=key) from None
        except UserError:
            raise
        except Exception:  # the run itself shows the error, with the real parts
            pass
