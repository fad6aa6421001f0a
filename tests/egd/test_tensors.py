"""Derivatives by the event, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from egd.tensors import TILED_ROWS, spread, value_gradient_hessian
from egd.types import Context

D = 3
FEW, MANY = 5, TILED_ROWS[False] // D + 1  # one pass over all directions, and a pass for each


def quartic(x: Tensor, c: Context) -> Tensor:
    """|x|^4 / 4 + c^T x: gradient |x|^2 x + c, Hessian |x|^2 I + 2 x x^T."""
    assert isinstance(c, Tensor)
    return x.square().sum((1, 2)).square() / 4 + (c * x.flatten(1)).sum(1)


def points(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(2, n, D, generator=generator, dtype=torch.float64)
    return x[:, None], c


def expected(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    flat = x.flatten(1)
    square = flat.square().sum(1)
    hessian = square[:, None, None] * torch.eye(D, dtype=x.dtype) + 2 * flat[:, :, None] * flat[:, None, :]
    return square.square() / 4 + (c * flat).sum(1), square[:, None] * flat + c, hessian


@pytest.mark.parametrize("n", [FEW, MANY])
@pytest.mark.parametrize("grad", [False, True])
def test_a_quartic(n: int, grad: bool) -> None:
    x, c = points(n)
    x.requires_grad_()
    with torch.set_grad_enabled(grad):
        found = value_gradient_hessian(quartic, x, c)
    for is_, should in zip(found, expected(x.detach(), c), strict=True):
        torch.testing.assert_close(is_, should)
        assert is_.requires_grad == grad


@pytest.mark.parametrize("n", [FEW, MANY])
def test_derivatives_of_what_it_returns(n: int) -> None:
    x, c = points(n)
    x.requires_grad_()
    value, grad, hessian = value_gradient_hessian(quartic, x, c)
    for part, gradient in [
        (value, grad),
        (0.5 * grad.square().sum(1), (hessian @ grad[..., None])[..., 0]),
        (hessian.diagonal(dim1=1, dim2=2).sum(1), (2 * D + 4) * x.flatten(1)),
    ]:
        (found,) = torch.autograd.grad(part.sum(), x, retain_graph=True)
        torch.testing.assert_close(found.flatten(1), gradient)


@pytest.mark.parametrize("n", [FEW, MANY])
@pytest.mark.parametrize("grad", [0.0, 2.0])
def test_functions_without_curvature(n: int, grad: float) -> None:
    x, c = points(n)

    def linear(x: Tensor, _: Context) -> Tensor:
        return grad * x.sum((1, 2)) if grad else x.new_ones(len(x))

    _, gradient, hessian = value_gradient_hessian(linear, x, c)
    assert bool((gradient == grad).all())
    assert hessian.shape == (n, D, D)
    assert not hessian.any()


def test_it_composes_with_torch_func() -> None:
    x, c = points(FEW)

    def laplacian(x: Tensor) -> Tensor:
        return value_gradient_hessian(quartic, x, c)[2].diagonal(dim1=1, dim2=2).sum()

    torch.testing.assert_close(torch.func.grad(laplacian)(x), (2 * D + 4) * x)


def test_the_spread_of_one_value_is_zero_and_that_of_more_the_samples_deviation() -> None:
    """Batches of one train: a deviation that is no number would end in weights that are none."""
    values = torch.randn(7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(spread(values), values.std()) and float(spread(values[:1])) == 0
