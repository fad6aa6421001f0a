"""Tensor helpers for events of any shape; the batch is the first axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from egd.types import Context

TILED_ROWS = {False: 256, True: 32_768}
"""Number of rows, by whether they are on a GPU, up to which one pass over d copies of a batch is faster than d passes."""


def expand(v: Tensor, like: Tensor) -> Tensor:
    """Append axes to v (B,) until it broadcasts against ``like`` (B, ...)."""
    return v.reshape(v.shape + (1,) * (like.ndim - v.ndim))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum a * b over the event dimensions: (B, ...), (B, ...) -> (B,)."""
    return (a * b).flatten(1).sum(1)


def norm(x: Tensor) -> Tensor:
    """Compute the Euclidean norm over the event dimensions: (B, ...) -> (B,)."""
    length: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return length


def spread(values: Tensor) -> Tensor:
    """Compute the standard deviation of a sample (B,): (); it is 0 for a single value, where torch gives nan."""
    return values.std(correction=min(1, len(values) - 1))


def inpaint(x: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """Replace the entries of x (B, ...) that ``mask`` (...) marks by values (B, k) in the event's order.

    ``mask`` holds booleans, of which k are true. The result keeps the gradient by x elsewhere.
    """
    index = (mask.flatten().cumsum(0) - 1).clamp(min=0)
    return torch.where(mask, values[:, index].reshape(len(values), *mask.shape), x)


def map_context(f: Callable[[Tensor], Tensor], c: Context) -> Context:
    """Apply f to every tensor of a context."""
    if c is None or isinstance(c, Tensor):
        return None if c is None else f(c)
    return {key: f(value) for key, value in c.items()}


def repeat_context(c: Context, times: int) -> Context:
    """Repeat every row of a context: (B, ...) -> (B * times, ...), copies of a row side by side."""
    return map_context(lambda v: v.repeat_interleave(times, 0), c)


def transformed() -> bool:
    """Tell whether this is a call under a transform of ``torch.func``: no tensor made in it may outlive it."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def differentiated_again() -> bool:
    """Tell whether this is a call under a forward-mode derivative of ``torch.func``, or under two of its derivatives."""
    kinds = torch._C._functorch.TransformType
    levels = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
    return kinds.Jvp in levels or levels.count(kinds.Grad) > 1


def value_and_grad(f: Callable[[Tensor], Tensor], x: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """Return f(x) (B,) and its gradient by x (B, ...). Rows are independent, so that one backward pass serves all.

    With ``create_graph`` both stay differentiable by whatever x itself depends on. The function composes with ``torch.func``.
    """
    if create_graph or transformed():
        return _functional_value_and_grad(f, x, create_graph)
    with torch.enable_grad():  # half the operations of torch.func.grad, which keeps the gradient differentiable
        leaf = x.detach().requires_grad_()
        value = f(leaf)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), grad


def _functional_value_and_grad(f: Callable[[Tensor], Tensor], x: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        value = f(x)
        return value.sum(), value

    with torch.set_grad_enabled(create_graph):
        grad, value = torch.func.grad(total, has_aux=True)(x)
    return value, grad


def flat_context(c: Context) -> list[Tensor]:
    """List the tensors of a context, each as (B, entries), in a stable order; [] for None."""
    if c is None:
        return []
    values = [c] if isinstance(c, Tensor) else [c[key] for key in sorted(c)] if isinstance(c, Mapping) else []
    return [v.flatten(1) if v.ndim > 1 else v[:, None] for v in values]


def jacobian_columns(f: Callable[[Tensor, Tensor, Context], Tensor], x: Tensor, t: Tensor, c: Context, v: Tensor) -> Tensor:
    """Compute (df/dx) v_k in forward mode for directions v (K, d) of the flattened event: (K, B, d).

    All K directions pass through f as one batch of K * B rows; rows must be independent.
    """
    points, times, context, directions = _tiled(x, t, c, v)
    _, out = torch.func.jvp(lambda p: f(p, times, context), (points,), (directions,))  # type: ignore[misc]
    columns: Tensor = out
    return columns.reshape(len(v), len(x), -1)


def jacobian_rows(f: Callable[[Tensor, Tensor, Context], Tensor], x: Tensor, t: Tensor, c: Context, v: Tensor) -> Tensor:
    """Compute v_k^T (df/dx) in reverse mode for directions v (K, d): (K, B, d); differentiable where gradients are on.

    As in ``jacobian_columns``, f sees one batch of K * B independent rows.
    """
    points, times, context, directions = _tiled(x, t, c, v)
    _, pull = torch.func.vjp(lambda p: f(p, times, context), points)  # type: ignore[misc]
    rows: Tensor = pull(directions)[0]
    return rows.reshape(len(v), len(x), -1)


def _tiled(x: Tensor, t: Tensor, c: Context, v: Tensor) -> tuple[Tensor, Tensor, Context, Tensor]:
    """Stack K copies of a batch of B rows; copy k has direction v_k of v (K, d) for all its rows."""
    k, n = len(v), len(x)

    def copies(a: Tensor) -> Tensor:
        return a.repeat(k, *[1] * (a.ndim - 1))

    directions = v[:, None].expand(k, n, -1).reshape(k * n, *x.shape[1:])
    return copies(x), copies(t), map_context(copies, c), directions


def value_gradient_hessian(f: Callable[[Tensor, Context], Tensor], x: Tensor, c: Context) -> tuple[Tensor, Tensor, Tensor]:
    """Compute f(x, c) (B,), its gradient (B, d) and its Hessian (B, d, d) by the flattened x; rows are independent.

    The results are differentiable where gradients are on. The function composes with ``torch.func``.
    """
    n, d = len(x), x[0].numel()
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    tiled = x.numel() <= TILED_ROWS[x.is_cuda] or transformed()
    points, _, context, directions = _tiled(x, x.new_zeros(n), c, eye) if tiled else (x, None, c, eye)

    def total(p: Tensor) -> tuple[Tensor, Tensor]:
        value = f(p, context)
        return value.sum(), value

    grad, pull, value = torch.func.vjp(torch.func.grad(total, has_aux=True), points, has_aux=True)  # type: ignore[misc]
    if tiled:
        hessian = pull(directions)[0].reshape(d, n, d)
    else:
        hessian = torch.stack([pull(row.reshape(x[:1].shape).expand_as(x))[0].flatten(1) for row in eye])
    return value[:n], grad[:n].flatten(1), hessian.transpose(0, 1)


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Restore the state of torch's global generator on the CPU after the with-block, which begins with ``seed`` where given."""
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield
