"""Small tensor helpers that keep event shapes free: everything is batch first."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from egd.types import Context


def expand(v: Tensor, like: Tensor) -> Tensor:
    """Append axes to v (B,) until it broadcasts against ``like`` (B, ...)."""
    return v.reshape(v.shape + (1,) * (like.ndim - v.ndim))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a * b over the event dimensions: (B, ...), (B, ...) -> (B,)."""
    return (a * b).flatten(1).sum(1)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm over the event dimensions: (B, ...) -> (B,)."""
    length: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return length


def map_context(f: Callable[[Tensor], Tensor], c: Context) -> Context:
    """Apply f to every tensor of a context."""
    if c is None or isinstance(c, Tensor):
        return None if c is None else f(c)
    return {key: f(value) for key, value in c.items()}


def repeat_context(c: Context, times: int) -> Context:
    """Repeat every row of a context: (B, ...) -> (B * times, ...), copies of a row side by side."""
    return map_context(lambda v: v.repeat_interleave(times, 0), c)


def value_and_grad(f: Callable[[Tensor], Tensor], x: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """f(x) (B,) and its gradient by x (B, ...). Rows are independent, so one backward pass serves all.

    With ``create_graph`` both stay differentiable by whatever x itself depends on.
    """
    with torch.enable_grad():
        leaf = x if create_graph and x.requires_grad else x.detach().requires_grad_()
        value = f(leaf)
        (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=create_graph)
    if not create_graph:
        value = value.detach()
    return value, slope


def flat_context(c: Context) -> list[Tensor]:
    """The tensors of a context, each flattened to (B, -1), in a stable order; [] for None."""
    if c is None:
        return []
    values = [c] if isinstance(c, Tensor) else [c[key] for key in sorted(c)] if isinstance(c, Mapping) else []
    return [v.flatten(1) for v in values]
