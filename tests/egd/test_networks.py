from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from egd.networks.mlp import ACTIVATIONS, EnergyMLP, LayerNorm, NoiseMLP
from egd.tensors import TILED_ROWS, flat_context, jacobian_columns, map_context, repeat_context, value_gradient_hessian


def test_a_fresh_noise_model_predicts_no_noise(generator: torch.Generator) -> None:
    x, t = torch.randn(4, 3, generator=generator), torch.rand(4, generator=generator)
    assert torch.equal(NoiseMLP(3, width=16, blocks=2)(x, t), torch.zeros(4, 3))


@pytest.mark.parametrize("network", [NoiseMLP(2, 5, width=8, blocks=1), EnergyMLP(2, 5, width=8, layers=1)])
def test_a_context_is_its_tensors_in_the_order_of_their_names(network: torch.nn.Module, generator: torch.Generator) -> None:
    network = network.double()
    for p in network.parameters():
        torch.nn.init.normal_(p, generator=generator)
    x, t = torch.randn(4, 2, generator=generator), torch.rand(4, generator=generator)
    a, b = torch.randn(4, 2, generator=generator), torch.randn(4, 3, 1, generator=generator)
    want = network(x, t, torch.cat([a, b[..., 0]], 1))
    assert torch.equal(network(x, t, {"b": b, "a": a}), want)
    assert not torch.equal(network(x, t, {"a": a + 1, "b": b}), want)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_a_standardised_energy_network_starts_at_the_scale_of_its_targets(activation: str, generator: torch.Generator) -> None:
    network = EnergyMLP(2, width=8, layers=2, activation=activation)
    targets = 500 + 20 * torch.randn(1000, generator=generator)
    x, t = torch.randn(50, 2, generator=generator), torch.rand(50, generator=generator)
    before = network(x, t)
    network.standardise(targets)
    torch.testing.assert_close(network(x, t), targets.mean() + targets.std() * before)


def test_contexts_repeat_row_by_row() -> None:
    c = {"a": torch.tensor([[1.0], [2.0]]), "b": torch.tensor([3.0, 4.0])}
    assert repeat_context(c, 2)["b"].tolist() == [3, 3, 4, 4]
    assert repeat_context(c["a"], 2).tolist() == [[1], [1], [2], [2]]
    assert repeat_context(None, 2) is None


def test_contexts_map_and_flatten() -> None:
    assert map_context(lambda v: v + 1, torch.zeros(1)).tolist() == [1]
    assert flat_context(None) == []
    assert [v.shape for v in flat_context({"b": torch.zeros(2, 3, 4), "a": torch.zeros(2, 5)})] == [(2, 5), (2, 12)]


def test_time_is_seen_by_the_networks(generator: torch.Generator) -> None:
    network, x = EnergyMLP(2, width=8, layers=1), torch.randn(1, 2, generator=generator)
    values = [network(x, torch.tensor([t])).item() for t in (0.0, 0.001, 0.5, 1.0)]
    assert len(set(values)) == 4


def differences(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of f(x) (B,) by each entry of x (B, d), by central differences."""
    steps = 1e-5 * torch.eye(x.shape[1], dtype=x.dtype)
    with torch.no_grad():
        return torch.stack([(f(x + step) - f(x - step)) / 2e-5 for step in steps], 1)


def normalised(generator: torch.Generator) -> nn.Module:
    """A critic's network of actions, R^2 -> R."""
    network = nn.Sequential(nn.Linear(2, 16), LayerNorm(16), nn.SiLU(), nn.Linear(16, 1)).double()
    for p in network.parameters():
        nn.init.normal_(p, generator=generator)
    return network


def grad(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


@pytest.mark.parametrize("n", [5, TILED_ROWS[False] // 2 + 1])
def test_third_derivatives_of_a_normalised_network(n: int, generator: torch.Generator) -> None:
    network, x = normalised(generator), torch.randn(n, 2, dtype=torch.float64, generator=generator)

    def curvature(x: Tensor) -> Tensor:
        return value_gradient_hessian(lambda x, c: network(x)[:, 0], x, None)[2].square().sum((1, 2))

    torch.testing.assert_close(grad(curvature, x), differences(curvature, x), rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_jacobian_of_a_normalised_network(generator: torch.Generator) -> None:
    network, x = normalised(generator), torch.randn(5, 2, dtype=torch.float64, generator=generator)
    t, eye = torch.ones(5, dtype=torch.float64), torch.eye(2, dtype=torch.float64)

    def size(x: Tensor) -> Tensor:
        return jacobian_columns(lambda x, t, c: network(x), x, t, None, eye).square().sum((0, 2))

    torch.testing.assert_close(grad(size, x), differences(size, x), rtol=1e-5, atol=1e-5)


def test_layer_norm_is_torchs(generator: torch.Generator) -> None:
    x, network = torch.randn(5, 2, dtype=torch.float64, generator=generator), normalised(generator)
    torch.testing.assert_close(torch.func.vjp(network, x)[0], network(x))
