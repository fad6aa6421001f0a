"""Implicit Q-learning against answers known in closed form."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from egd.errors import UserError
from egd.networks.ensemble import EnsembleMLP
from rl.config import CriticConfig
from rl.critics import IQL
from rl.critics.choice import make_critic
from rl.critics.iql import expectile_loss
from rl.data.transitions import Batch


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9])
def test_the_expectile_loss_has_its_minimum_at_the_expectile(tau: float) -> None:
    sample = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    m = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([m], max_iter=50)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = expectile_loss(sample - m, tau)
        loss.backward()
        return loss

    optimiser.step(closure)
    # an expectile balances the mean excess on both sides: tau E(x - m)+ = (1 - tau) E(m - x)+
    above, below = (sample - m).clamp(min=0).mean(), (m - sample).clamp(min=0).mean()
    torch.testing.assert_close(tau * above, (1 - tau) * below, rtol=1e-4, atol=0)


def test_ensemble_members_are_independent_networks() -> None:
    net = EnsembleMLP(3, 4, width=8, layers=2)
    x = torch.randn(5, 4)
    out = net(x)
    assert out.shape == (3, 5)
    assert not torch.allclose(out[0], out[1])
    with torch.no_grad():
        for p in net.parameters():
            if p.shape[0] == 3:
                p[1] += 1.0
    changed = net(x)
    torch.testing.assert_close(changed[0], out[0])
    torch.testing.assert_close(changed[2], out[2])


def chain() -> Batch:
    """Three states in a row; action 0 goes on (reward 0, then 1 and the end), action 1 stays without reward."""
    rows = []
    for s in range(3):
        for a in (0.0, 1.0):
            last = s == 2 and a == 0
            rows.append((s, a, 1.0 if last else 0.0, min(s + (a == 0), 2), float(last)))
    s, a, r, n, d = (torch.tensor(np.array(column), dtype=torch.float32) for column in zip(*rows, strict=True))
    eye = torch.eye(3)
    return Batch(eye[s.long()], a[:, None] * 2 - 1, r, eye[n.long()], d)


@pytest.mark.slow
def test_iql_finds_the_values_of_a_chain() -> None:
    """With a high expectile V(s) nears max_a Q: gamma^2, gamma, 1 from the far end; the terminal does not bootstrap."""
    torch.manual_seed(0)
    critic = IQL(3, 1, expectile=0.97, gamma=0.9, polyak=0.05, lr=3e-3, width=32, layers=2)
    batch = chain()
    for _ in range(3000):
        critic.update_on(batch)
    values = critic.v(torch.eye(3)).detach()
    torch.testing.assert_close(values, torch.tensor([0.81, 0.9, 1.0]), rtol=0, atol=0.06)
    assert critic.q(batch.state[4:5], batch.action[4:5]).item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def q(self, state, action): return self.target(state, action).transpose(0, 1)", r"Q: Mine .*shape \(2, 2\)"),
        ("def v(self, state): return super().v(state)[:, None]", r"V: Mine .*shape \(2, 1\)"),
        ("def q(self, state, action): return super().q(state, action) / 0", "Q of Mine .* not finite"),
        ("def q(self, state, action): return {}['x']", r"Mine fails on two rows of .*KeyError: 'x' \(mine.py, line 4\)"),
        ("def loss(self, drawn): return drawn.nothing", r"AttributeError: 'Batch' object has no attribute 'nothing' \(mine.py"),
        ("def loss(self, drawn): return drawn.reward, {}", "Mine .* has a loss that is no single number"),
        (
            "def __init__(self, *a, **k): raise LookupError('no file')",
            r"Mine fails when it is made: LookupError: no file \(mine",
        ),
        ("def learner(self, *a): ...\n    def loss(self, drawn): return drawn.nothing", None),  # what it draws is not known
        ("pass", None),
    ],
)
def test_a_critic_of_ones_own_is_tried_on_two_rows(tmp_path: Path, body: str, words: str | None) -> None:
    (tmp_path / "mine.py").write_text(f"from rl.critics.iql import IQL\n\nclass Mine(IQL):\n    {body}\n")
    config = CriticConfig(name=f"{tmp_path}/mine.py:Mine", width=8, layers=1)
    torch.manual_seed(1)
    with pytest.raises(UserError, match=words) if words else nullcontext():
        assert make_critic(config, 3, 2, torch.device("cpu")).q(torch.zeros(2, 3), torch.zeros(2, 2)).shape == (2,)
    if words is None:  # the trial leaves the weights of the run as they are
        torch.manual_seed(1)
        weights = IQL(3, 2, width=8, layers=1).values.state_dict()
        torch.manual_seed(1)
        made = make_critic(config, 3, 2, torch.device("cpu")).values.state_dict()
        assert all(torch.equal(tensor, made[name]) for name, tensor in weights.items())
