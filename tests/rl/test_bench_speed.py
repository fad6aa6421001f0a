"""``egd bench speed``: its pieces, its rows, its command line; and that the plain code does the same as ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from benchmarks import pieces, plain, plain_acting
from benchmarks.lab import BETA, NU, SUPPORT, Lab
from benchmarks.pieces import step
from benchmarks.qgpo import ScoreUNet
from egd.bench import speed
from egd.bench.cli import app
from egd.bench.roofline import count, measure_rates
from egd.bench.speed import Setup, SpeedRow
from egd.bench.speed_report import SHORT, cells
from egd.cli import main as cli
from egd.networks.ensemble import EnsembleLinear
from rl.agents.aepo import AEPO
from rl.critics import IQL
from rl.data.transitions import Batch

CPU = torch.device("cpu")
KEYS = {"piece", "batch", "device", "ms", "eager_ms", "flops", "bytes", "roofline_fraction", "runs", "note"}
STEPS = {"noise_step", "critic_step", "energy_step_aepo", "energy_step_cep", "energy_cep_cached", "calibration"}
ACTING = {"act_trained", "act_training_free", "support_actions", "evaluation"}
SEEDS = {"seeds_noise", "seeds_critic", "seeds_energy_aepo"}
SWEEPS = {"scaling_width", "scaling_batch", "scaling_action"}


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points of this checkout, whatever is installed."""
    monkeypatch.setattr(speed, "found", lambda group: {"offline_rl": EntryPoint("offline_rl", "benchmarks:pieces", group)})
    monkeypatch.setattr(cli.console, "width", 120)  # on a busy machine times have more digits than eighty columns hold
    monkeypatch.setattr(cli.errors, "width", 200)


def bench(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["speed", "--smoke", *map(str, arguments)])


@pytest.mark.slow
def test_every_piece_is_measured_and_the_files_hold_what_the_table_shows(tmp_path: Path) -> None:
    out, markdown = tmp_path / "rows.json", tmp_path / "rows.md"
    result = bench("--json", out, "--markdown", markdown)
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())
    assert all(row.keys() >= KEYS for row in rows)
    assert {row["piece"] for row in rows} == STEPS | ACTING | SEEDS
    assert all(row["ms"] > 0 and row["eager_ms"] > 0 and row["flops"] > 0 and row["bytes"] > 0 for row in rows)
    assert all(row["roofline_fraction"] > 0 for row in rows)
    assert {r["runs"] for r in rows if r["piece"] == "seeds_noise"} == {1, 8, 32}
    assert {r["batch"] for r in rows if r["piece"] == "act_trained"} == {1, 10, 100, 1000}
    shown = [" ".join(line.split()) for line in result.output.splitlines()]
    written = markdown.read_text().replace("`", "").splitlines()
    for row in rows:
        texts = cells(SpeedRow(**row))
        assert " ".join(texts[: len(SHORT)]) in shown
        assert f"| {' | '.join(texts)} |" in written


def test_a_step_and_a_policy_are_measured_in_every_way_they_can_be_run() -> None:
    found = {(p.name, p.how) for p in pieces(Setup(CPU))}
    assert {how for name, how in found if name == "critic_step"} == {"eager", "compiled", "compiled bf16"}
    assert {how for name, how in found if name == "act_trained"} == {"eager", "traced", "torch.compile", "onnx"}


@pytest.mark.slow
def test_a_compiled_step_costs_the_operations_of_an_eager_one() -> None:
    lab = Lab(Setup(CPU, smoke=True))
    eager, compiled = (step(lab, "critic", 32, {"compile": on}) for on in (False, True))
    compiled.run()
    assert count(compiled.run).flops == count(eager.run).flops > 0


def test_eight_runs_together_cost_eight_times_the_operations_of_one() -> None:
    (one, eight, _) = (p for p in pieces(Setup(CPU, smoke=True)) if p.name == "seeds_critic")
    assert count(eight.make().run).flops == pytest.approx(8 * count(one.make().run).flops, rel=0.01)


def test_sweeps_come_when_asked_for(tmp_path: Path) -> None:
    every = speed.find_pieces(Setup(CPU, smoke=True))
    assert {p.name for p in speed.choose(every, [], scaling=True)} == STEPS | ACTING | SEEDS | SWEEPS
    out = tmp_path / "rows.json"
    result = bench("-p", "scaling_width", "-p", "scaling_action", "--json", out)
    assert result.exit_code == 0
    assert "width 16" in result.output and "width 32" in result.output
    assert [row["piece"] for row in json.loads(out.read_text())] == ["scaling_width"] * 2 + ["scaling_action"] * 2


def test_shapes_and_settings_reach_the_networks(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    flops = []
    for options in [], ["--width", 64], ["--set", "denoiser.blocks=9"], ["--action", 40], ["--shapes", "qgpo"]:
        assert bench("-p", "noise_step", "--json", out, *options).exit_code == 0
        flops.append(json.loads(out.read_text())[0]["flops"])
    assert len(set(flops)) == len(flops)
    assert min(flops) == flops[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--piece", "noise"], "there are noise_step, critic_step"),
        (["--device", "tpu"], "use auto, cpu or cuda"),
        (["--shapes", "dql"], "known: qgpo, recipe"),
        (["--shapes", "qgpo", "--width", "64"], "--shapes recipe"),
        (["--set", "denoiser.widht=64"], "did you mean 'width'?"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(options: list[str], said: str) -> None:
    result = bench(*options)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_a_missing_domain_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "found", lambda group: {})
    result = bench()
    assert result.exit_code == 2
    assert "egd.bench.pieces" in result.output


def test_an_installation_without_the_repository_says_where_the_pieces_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks", None)
    monkeypatch.delitem(sys.modules, "benchmarks.pieces", raising=False)
    result = bench()
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert "the folder benchmarks/ of the repository" in said and "pip install -e ." in said and "Traceback" not in said


# -- the roofline ------------------------------------------------------------------------------------------------


def test_the_device_has_rates() -> None:
    rates = measure_rates(CPU, smoke=True)
    assert rates.matmul > 0
    assert rates.copy > 0


def test_the_cost_of_a_step_of_a_linear_layer() -> None:
    layer, x = nn.Linear(8, 16, bias=False), torch.randn(32, 8)
    optimiser = torch.optim.Adam(layer.parameters(), fused=True)

    def step() -> None:
        optimiser.zero_grad()
        layer(x).sum().backward()
        optimiser.step()

    step()
    cost = count(step)
    assert cost.flops == 2 * (2 * 32 * 8 * 16)  # forward, and the weight's gradient
    weights, products = 8 * 16, 32 * 16 + 8 * 16
    assert cost.bytes == pytest.approx(4 * (x.numel() + 3 * weights + products), abs=64)  # two moments; small change


def test_of_a_data_set_only_the_rows_that_are_read_count() -> None:
    data, rows = torch.randn(10_000, 4), torch.arange(8)
    assert count(lambda: data[rows]).bytes == 8 * 4 * 4 + rows.nbytes


# -- plain code does the same ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agent() -> AEPO:
    """With a noise model that predicts something."""
    agent = Lab(Setup(CPU, state=3, action=2, smoke=True)).agent({"sampler": {"steps": 5}})
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in agent.behaviour.fit.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    agent.calibration.update(torch.Generator().manual_seed(0))
    return agent


def critic_of(agent: AEPO) -> Any:
    """The agent's critic, as plain code calls its own."""
    return SimpleNamespace(v=lambda s: agent.critic.v(s)[:, None], target=agent.critic.q)


def test_noise_steps_agree(agent: AEPO) -> None:
    lab = Lab(Setup(CPU, state=3, action=2, smoke=True))
    fresh = lab.agent({"denoiser": {"batch": 64, "lr": 3e-3}})
    learner, generator = lab.learner(fresh, "denoiser"), torch.Generator().manual_seed(0)
    network = lab.plain_noise_network(fresh)
    network.load_state_dict(fresh.behaviour.fit.module.state_dict())
    by_hand = plain.PlainNoise(network, lab.replay(fresh), batch=64, lr=3e-3, ema=0.995)
    ours, theirs = [], []
    for _ in range(30):
        drawn = learner.draw(generator)
        x0, c, t, noise = drawn
        alpha, sigma = plain.marginal(t)
        theirs.append(by_hand.step_on(alpha[:, None] * x0 + sigma[:, None] * noise, t, noise, c))
        loss, _ = learner.loss(drawn)
        ours.append(float(loss.detach()))
        learner.fit.descend(loss)
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert sum(ours[-5:]) < 0.9 * sum(ours[:5])
    assert sum(by_hand.step() for _ in range(5)) == pytest.approx(sum(ours[-5:]), rel=0.3)  # on batches of its own


def test_critic_steps_agree() -> None:
    shape = {"width": 16, "layers": 2, "activation": "relu", "layer_norm": False}
    lab = Lab(Setup(CPU, state=3, action=2, smoke=True))
    replay = plain.PlainReplay.of(lab.data, CPU)
    by_hand = plain.PlainIQL(3, 2, replay, batch=64, lr=3e-3, expectile=0.8, gamma=0.9, polyak=0.1, **shape)
    ours = IQL(3, 2, expectile=0.8, gamma=0.9, polyak=0.1, lr=3e-3, **shape)
    copy_members([by_hand.q.q1, by_hand.q.q2], ours.values.q.net)
    copy_members([by_hand.v], ours.values.v.net)
    ours.target.module.load_state_dict(ours.values.q.state_dict())
    losses, theirs = [], []
    for _ in range(30):
        batch = Batch(*replay.sample(64))
        theirs.append(by_hand.step_on(batch.state, batch.action, batch.reward, batch.next_state, batch.terminal))
        metrics = ours.update_on(batch)
        losses.append(float(metrics["v_loss"] + metrics["q_loss"]))
    assert losses == pytest.approx(theirs, rel=1e-3)


def copy_members(members: list[nn.Sequential], ensemble: nn.Sequential) -> None:
    """The weights of separate networks into one ensemble."""
    layers = [module for module in ensemble if isinstance(module, EnsembleLinear)]
    with torch.no_grad():
        for i, member in enumerate(members):
            linears = [module for module in member if isinstance(module, nn.Linear)]
            for own, layer in zip(linears, layers, strict=True):
                layer.weight[i], layer.bias[i, 0] = own.weight.T, own.bias


def test_energy_targets_agree(agent: AEPO) -> None:
    moments = agent.calibration.moments[False]
    variance = moments.t, moments.clamped("posterior1"), moments.data_var
    network = agent.guidance.energies["aepo"].fit.module
    noise, critic = agent.behaviour.fit.model, critic_of(agent)
    by_hand = plain.PlainAEPO(network, noise, critic, variance, batch=64, lr=1e-3, beta=BETA, nu=NU)
    batch = agent.data.sample(64, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    t, _, x = plain.noised(batch.action)
    objective: Any = agent.guidance.energies["aepo"].learner.objective
    want = objective.targets(batch.action, x, t, batch.state)
    torch.testing.assert_close(by_hand.targets(batch.state, batch.action, t, x), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("policy_name", ["aepo", "guided"])
def test_actions_agree(agent: AEPO, policy_name: str) -> None:
    state = agent.data.transitions.state[:20]
    policy = agent.policy(policy_name, [2.0], torch.Generator().manual_seed(3))
    want = policy(state, torch.zeros(20, dtype=torch.long))
    torch.manual_seed(3)
    torch.testing.assert_close(by_hand(agent, policy_name, 2.0)(state), want, rtol=1e-2, atol=1e-2)


def by_hand(agent: AEPO, policy_name: str, scale: float) -> Callable[[Tensor], Tensor]:
    noise, bounds = agent.behaviour.fit.model, (agent.data.action_low, agent.data.action_high)

    def act(state: Tensor) -> Tensor:
        if policy_name == "aepo":
            energy = plain_acting.trained_energy(agent.guidance.energies["aepo"].fit.model, state)
            return plain_acting.sample(noise, state, 2, steps=5, energy=energy, scale=scale)
        critic = critic_of(agent)
        energy = plain_acting.support_energy(noise, critic, state, SUPPORT, 2, beta=BETA, steps=5, bounds=bounds)
        drawn = plain_acting.sample(noise, state, 2, steps=5, energy=energy, scale=scale, bounds=bounds)
        return drawn.clamp(*bounds)

    return act


def test_a_plain_cep_step_learns() -> None:
    lab = Lab(Setup(CPU, state=3, action=2, smoke=True))
    fresh = lab.agent()
    draw = lambda state, k: torch.randn(len(state), k, 2)  # noqa: E731
    network, critic = lab.plain_energy_network(fresh), lab.plain_critic(fresh)
    learner = plain.PlainCEP(network, critic, draw, batch=256, samples=4, lr=1e-2, beta=20.0)
    losses = [learner.step() for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_qgpos_network_has_the_published_size() -> None:
    sizes = [sum(p.numel() for p in ScoreUNet(action, state).parameters()) for state, action in ((11, 3), (39, 30))]
    assert sizes == pytest.approx([1.63e6, 1.68e6], abs=1e4)
