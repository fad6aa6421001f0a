"""The library's components by kind, which a recipe may name."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from egd.config.components import Registry, Spec, build, validate
from egd.config.failures import answering
from egd.contracts import ContractError, check_rows, name_of
from egd.errors import UserError
from egd.types import Schedule

SCHEDULES = Registry("schedule", "egd.schedules", ("alpha",))
POSTERIORS = Registry("posterior", "egd.posteriors", ("__call__",), 3)
ENERGIES = Registry("energy", "egd.energies", ("__call__", "loss"), 3)
OBJECTIVES = Registry("energy", "egd.objectives", ("loss",))
RULES = Registry("guidance rule", "egd.rules", ("__call__",), 3)
SAMPLERS = Registry("sampler", "egd.samplers")
WRAPPERS = Registry("wrapper of a denoiser", "egd.wrappers", ("__call__",), 3)

CATALOGUE = {
    "schedule": SCHEDULES,
    "posterior": POSTERIORS,
    "energy (closed form)": ENERGIES,
    "energy (trained)": OBJECTIVES,
    "guidance rule": RULES,
    "sampler": SAMPLERS,
    "wrapper of a denoiser": WRAPPERS,
}
"""Kind, as ``egd list`` shows it -> registry."""


def is_trained(name: str, key: str) -> bool:
    """Return whether an energy of this name or path is an objective that trains a network, rather than a closed form."""
    return hasattr(ENERGIES.find(name, key), "loss") if ":" in name else name in OBJECTIVES.names()


def energy_registry(name: str, key: str) -> Registry:
    """Return the registry of an energy of this name or path."""
    return OBJECTIVES if is_trained(name, key) else ENERGIES


def check_energy(spec: Spec, parts: set[str], key: str) -> Any:
    """Return the class of an energy. Raises UserError for one that does not exist, is not an energy, or does not have these
    settings.
    """
    known = {**ENERGIES.names(), **OBJECTIVES.names()}
    if spec.name not in known and ":" not in spec.name:
        raise ENERGIES.unknown(spec.name, key, known)
    return validate(energy_registry(spec.name, key), spec, parts, key)


TIMES = (0.1, 0.5, 0.9)
"""Times at which a user's components are tried."""


def make_schedule(spec: Spec) -> Schedule:
    """Build a recipe's schedule. Raises UserError for one that does not exist, for settings that it does not take, and for a
    schedule of the user's own that fails at ``TIMES``.
    """
    try:
        own = ":" in spec.name
        with answering(spec.name, "schedule") if own else nullcontext():
            schedule: Schedule = build(SCHEDULES, spec, {}, "schedule")
        with answering(spec.name, "schedule", f"the times {TIMES}") if own else nullcontext():
            _check_times(schedule)
    except (ValueError, UserError) as error:
        raise UserError(str(error), key=(error.key if isinstance(error, UserError) else None) or "schedule") from None
    return schedule


def _check_times(schedule: Schedule) -> None:
    """Raise ContractError unless alpha and sigma give one finite number for every time of ``TIMES``."""
    t = torch.tensor(TIMES)
    for name in ("alpha", "sigma"):
        values = getattr(schedule, name)(t)
        check_rows(values, t, schedule)
        if not values.isfinite().all():
            raise ContractError(f"{name} of {name_of(schedule)} is not finite at the times {TIMES}")
