"""Precision: what may be fast must be as exact as it says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from egd.networks.mlp import EnergyMLP, NoiseMLP
from egd.schedules import VPLinear
from egd.training.learners import DenoiserLearner, Fit
from egd.training.precision import Computing, fastest, onednn_is_exact, products, set_up
from egd.types import Context


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Single precision by default, and torch's global settings as they were afterwards."""
    torch.set_default_dtype(torch.float32)
    threads, before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(before)


def test_the_products_of_a_run_on_a_cpu_are_those_of_float32() -> None:
    set_up("cpu", 1, "tf32")
    a, b = torch.randn(2, 300, 300).unbind()
    torch.testing.assert_close((a @ b).double(), a.double() @ b.double(), atol=1e-3, rtol=0)


def test_onednn_is_not_used_where_it_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    onednn_is_exact.cache_clear()
    exact = Tensor.__matmul__
    rounding = lambda a, b: exact(a.bfloat16(), b.bfloat16()).to(a) if a.dtype == torch.float32 else exact(a, b)  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "__matmul__", rounding)
        assert fastest("cpu") == "highest"
    onednn_is_exact.cache_clear()


@pytest.mark.parametrize(("precision", "name"), [("float32", "highest"), ("tf32", "high"), ("bf16", "highest")])
def test_a_gpu_takes_tf32_only_when_told(precision: str, name: str) -> None:
    assert fastest("cuda", precision) == name


def test_the_precision_of_products_is_put_back() -> None:
    torch.set_float32_matmul_precision("high")
    with suppress(ZeroDivisionError), products("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("network", [NoiseMLP(3, width=32, blocks=2), EnergyMLP(3, width=32)], ids=["noise", "energy"])
def test_outputs_are_not_rounded_to_eight_bits(network: nn.Module) -> None:
    network.float()
    for p in network.parameters():
        nn.init.normal_(p)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(torch.randn(64, 3), torch.rand(64))
    assert out.dtype == torch.float32
    assert not torch.equal(out, out.bfloat16().float())


def test_a_denoiser_trained_in_bf16_is_as_good() -> None:
    def trained(precision: str) -> float:
        torch.manual_seed(0)
        fit = Fit(NoiseMLP(2, width=64, blocks=2), lr=3e-3, steps=300)
        learner = DenoiserLearner(fit, VPLinear(), _ring, batch=256)
        learner.computing = Computing(precision)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        losses = [learner.update(generator)["loss"] for _ in range(300)]
        return float(torch.stack(losses[-100:]).mean())

    exact, rounded = trained("float32"), trained("bf16")
    assert exact < 0.6
    assert rounded == pytest.approx(exact, rel=0.03)


def _ring(n: int, generator: torch.Generator) -> tuple[Tensor, Context]:
    angle = 6.2832 * torch.rand(n, generator=generator)
    return torch.stack([angle.cos(), angle.sin()], 1), None
