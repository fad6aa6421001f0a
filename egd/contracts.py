"""Checks of what users' functions return against the contracts of ``egd.types``: the shape, and whether a gradient can pass.

Without a check a wrong shape broadcasts and a missing gradient does not guide, both in silence. The library therefore calls a
user's energy, denoiser, posterior and rule through this module alone. The checks read shapes and flags, never values, so that
they never wait for a GPU.
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egd.errors import UserError
from egd.tensors import transformed
from egd.types import Context, Denoiser, Energy, Gaussian, GuidanceRule, Posterior, TimedEnergy

NO_GRAPH = (
    "look for a comparison, argmax, rounding, detach(), no_grad() or NumPy in it. "
    "An energy of steps can be smoothed, or guide by support_samples, which only looks at its values"
)
OUT_OF_TORCH = ("Can't call numpy()", "Cannot access data pointer of Tensor that doesn't have storage")
"""Messages of torch for a tensor that is handed to NumPy while it is differentiated."""


class ContractError(UserError, ValueError):
    """Error of a user's function that returned what its contract does not allow."""


def energy_values(energy: Energy, x0: Tensor, c: Context) -> Tensor:
    """Evaluate E(x_0, c): (B, ...) -> (B,).

    Raises ValueError for another shape, and where x_0 is differentiated and the values have no graph.
    """
    values: Tensor = _called(energy, x0, c)
    check_rows(values, x0, energy)
    _check_graph(values, x0, energy, "x_0")
    return values


def timed_values(energy: TimedEnergy, x: Tensor, t: Tensor, c: Context) -> Tensor:
    """Evaluate E_t(x_t, c): (B, ...), (B,) -> (B,). Raises ValueError as ``energy_values``."""
    values: Tensor = _called(energy, x, t, c)
    check_rows(values, x, energy)
    _check_graph(values, x, energy, "x_t")
    return values


def denoised(denoiser: Denoiser, x: Tensor, t: Tensor, c: Context) -> Tensor:
    """Evaluate D(x_t, t, c), shaped like x_t.

    Raises ValueError for another shape, and where x_t is differentiated and the result has no graph.
    """
    x0: Tensor = _called(denoiser, x, t, c)
    check_like(x0, x, denoiser)
    _check_graph(x0, x, denoiser, "x_t")
    return x0


def posterior_at(posterior: Posterior, x: Tensor, t: Tensor, c: Context) -> Gaussian:
    """Evaluate the Gaussian at x_t.

    Raises ValueError where its mean is not shaped like x_t, and where x_t is differentiated and the mean has no graph.
    """
    q = posterior(x, t, c)
    check_like(q.mean, x, posterior)
    _check_graph(q.mean, x, posterior, "x_t")
    return q


def guided_score(rule: GuidanceRule, score: Tensor, grad: Tensor, t: Tensor) -> Tensor:
    """Apply a guidance rule. Raises ValueError where its result is not shaped like the score."""
    guided = rule(score, grad, t)
    check_like(guided, score, rule)
    return guided


def check_rows(values: Any, x: Tensor, of: object) -> None:
    """Raise ValueError unless ``values`` are one floating-point number for each row of x (B, ...); the message names ``of``."""
    if not isinstance(values, Tensor):
        raise ContractError(f"{name_of(of)} gave {type(values).__name__}, not a tensor of one number a row")
    if values.shape != x.shape[:1]:
        rows = len(x)
        remedy = "end with .squeeze(-1)" if values.shape == (rows, 1) else "sum over the axes of the event, not over the rows"
        raise ContractError(
            f"{name_of(of)} gave the shape {tuple(values.shape)} for {rows} rows {tuple(x.shape)}: "
            f"it must be one number a row, ({rows},); {remedy}"
        )
    if not values.is_floating_point():
        raise ContractError(f"{name_of(of)} gave {values.dtype}: whole numbers have no gradient; give floating-point numbers")


def check_like(values: Any, x: Tensor, of: object) -> None:
    """Raise ValueError unless ``values`` have the shape of x; the message names ``of``."""
    if not isinstance(values, Tensor) or values.shape != x.shape:
        given = f"the shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ContractError(f"{name_of(of)} gave {given} where {tuple(x.shape)} was due, the shape of what it was given")


def _called(function: Any, *arguments: Any) -> Any:
    """Call a user's function. Raises ContractError where it takes a tensor that is being differentiated out of torch."""
    if torch.compiler.is_compiling():
        return function(*arguments)
    try:
        return function(*arguments)
    except RuntimeError as error:  # torch advises to detach, which is not the remedy here
        if not any(word in str(error) for word in OUT_OF_TORCH):
            raise
        raise ContractError(f"{name_of(function)} has no gradient, and guidance is that gradient: {NO_GRAPH}") from error


def _check_graph(values: Tensor, x: Tensor, of: object, by: str) -> None:
    """Raise ContractError where x is differentiated and ``values`` carry no gradient by it."""
    if values.requires_grad or not x.requires_grad or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    if transformed() and not torch._C._functorch.is_functorch_wrapped_tensor(x):
        return  # x is differentiated outside this transform, and results of a transform carry no flag
    raise ContractError(f"{name_of(of)} has no gradient by {by}, and guidance is that gradient: {NO_GRAPH}")


def name_of(component: object) -> str:
    """Name a component for a message: its class or function, with the file and line of its definition."""
    while isinstance(component, partial):
        component = component.func
    made_by = component if inspect.isroutine(component) or inspect.isclass(component) else type(component)
    name = getattr(made_by, "__qualname__", type(component).__name__).replace("<locals>.", "")
    try:
        file, line = inspect.getsourcefile(made_by), inspect.getsourcelines(made_by)[1]
    except (TypeError, OSError):
        return name
    return f"{name} ({Path(file).name}, line {line})" if file else name
