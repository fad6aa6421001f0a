"""Methods that choose among samples of the behaviour policy, or weigh them: IDQL, SfBC, QIPO, against what is known exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from rl.agents.base import Agent
from rl.agents.idql import IDQL
from rl.agents.qipo import QIPO
from rl.agents.sfbc import SfBC
from rl.critics import InSamplePlanning
from rl.critics.in_sample_planning import planned
from rl.critics.isql import ISQL
from rl.data.transitions import Batch, OfflineData
from rl.parts.support_actions import SupportTable

BEST, STEEPNESS = 0.6, 2.0  # Q(a) = -STEEPNESS (a - BEST)^2 / 2 in a bandit of one state


def bandit(actions: Tensor) -> OfflineData:
    n = len(actions)
    state = torch.zeros(n, 1)
    rows = Batch(state, actions, value(actions), state, torch.ones(n))
    far = torch.full((1,), 10.0)
    return OfflineData(rows, torch.zeros(1), torch.ones(1), -far, far, 0.0, n)


def value(action: Tensor) -> Tensor:
    return -0.5 * STEEPNESS * (action[:, 0] - BEST).square()


def improved(mean: float, std: float, beta: float) -> tuple[float, float]:
    """Mean and standard deviation of N(mean, std^2) exp(beta Q)."""
    precision = 1 / std**2 + beta * STEEPNESS
    return (mean / std**2 + beta * STEEPNESS * BEST) / precision, precision**-0.5


SMALL = {
    "experiment": "offline_rl",
    "task": "hopper-medium",
    "denoiser": {"width": 32, "blocks": 2, "steps": 6, "batch": 16},
    "critic": {"width": 16, "layers": 2, "steps": 6, "batch": 16},
    "calibration": {"samples": 64, "grid": 4},
    "support": {"actions": 4},
    "sampler": {"steps": 4},
}


def make(kind: type[Agent], data: OfflineData, **over: Any) -> Any:
    return kind(kind.Config.model_validate({**SMALL, **over}), data, torch.device("cpu"))


def knowing(made: Any, mean: float | None = None, std: float = 1.0) -> Any:
    """An agent whose critic is the truth, and whose behaviour policy is N(mean, std^2), where a mean is given."""
    made.critic.q = lambda state, action: value(action)
    made.critic.v = lambda state: torch.full((len(state),), -0.1)

    def exact(x: Tensor, t: Tensor, c: Any) -> Tensor:
        alpha, sigma = made.behaviour.schedule.alpha(t)[:, None], made.behaviour.schedule.sigma(t)[:, None]
        return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)

    if mean is not None:
        made.behaviour.denoiser = lambda clip, straight_through=False: exact
    return made


def acts(made: Any, name: str, n: int) -> Tensor:
    act = made.policy(name, [], torch.Generator().manual_seed(0))
    actions: Tensor = act(torch.zeros(n, 1), torch.zeros(n, dtype=torch.long))
    return actions[:, 0]


@pytest.fixture
def data() -> OfflineData:
    return bandit(torch.randn(64, 1, generator=torch.Generator().manual_seed(0)))


FINE = {"sampler": {"steps": 40, "name": "heun"}}


def test_the_best_of_many_samples_nears_the_best_action(data: OfflineData) -> None:
    errors = []
    for candidates in (4, 64, 1024):
        made = knowing(make(IDQL, data, selection={"candidates": candidates}, **FINE), 0.0)
        errors.append(float((acts(made, "policy", 64) - BEST).abs().mean()))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 0.005


def test_implicit_weights_prefer_actions_above_the_value_by_the_odds_of_tau(data: OfflineData) -> None:
    settings: Any = {"candidates": 64, "by": "expectile"}
    made = knowing(make(IDQL, data, selection=settings, critic={"expectile": 0.8}, **FINE), 0.0)
    above = (value(acts(made, "policy", 3000)[:, None]) >= -0.1).float().mean()
    reach = (2 * 0.1 / STEEPNESS) ** 0.5  # of the actions with Q >= V = -0.1 around the best
    share = torch.special.ndtr(torch.tensor(BEST + reach)) - torch.special.ndtr(torch.tensor(BEST - reach))
    expected = 0.8 * share / (0.8 * share + 0.2 * (1 - share))
    assert above == pytest.approx(float(expected), abs=0.03)  # three standard errors


@pytest.mark.parametrize("kind", [IDQL, SfBC])
def test_softmax_resampling_is_exact_with_many_candidates(kind: type[Agent], data: OfflineData) -> None:
    selection = {"candidates": 256, "by": "softmax", "beta": 1.5}
    made = knowing(make(kind, data, selection=selection, **FINE), -0.5, 0.8)
    chosen = acts(made, "policy", 3000)
    mean, std = improved(-0.5, 0.8, 1.5)
    assert float(chosen.mean()) == pytest.approx(mean, abs=0.03)
    assert float(chosen.std()) == pytest.approx(std, rel=0.05)


def test_further_selections_start_from_the_headline(data: OfflineData) -> None:
    selections: Any = {"drawn": {"by": "expectile"}, "few": {"candidates": 2}}
    made = knowing(make(IDQL, data, selection={"candidates": 128}, selections=selections, **FINE), 0.0)
    assert made.scales() == {"behaviour": [], "policy": [], "drawn": [], "few": []}
    assert made.config.named_selections["drawn"].candidates == 128
    spreads = {name: float((acts(made, name, 200) - BEST).abs().mean()) for name in made.policies()}
    assert spreads["policy"] < 0.1 * spreads["few"] < spreads["behaviour"]
    assert 0.1 < spreads["drawn"] < spreads["behaviour"]


def test_selection_shares_denoiser_and_critic_with_guidance(data: OfflineData) -> None:
    from rl.agents.aepo import AEPO

    kinds = (IDQL, AEPO, QIPO, SfBC)
    selected, guided, qipo, sfbc = ({phase.name: phase.cache_key for phase in make(kind, data).phases()} for kind in kinds)
    for phase in ("denoiser", "critic", "calibration"):
        assert selected[phase] == guided[phase]
    assert qipo["support"] == sfbc["support"]


# -- critics ---------------------------------------------------------------------------------------------------------


def test_isql_backs_up_the_softmax_of_the_smaller_twin() -> None:
    torch.manual_seed(0)
    critic = ISQL(3, 2, beta=2.0, gamma=0.9, width=16, layers=2)
    rows = Batch(torch.randn(5, 3), torch.randn(5, 2), torch.randn(5), torch.randn(5, 3), torch.tensor([0.0, 0, 1, 0, 0]))
    actions = torch.randn(5, 4, 2)
    targets = []
    for n in range(5):
        q = torch.stack([critic.target(rows.next_state[n : n + 1], actions[n, k : k + 1]).min() for k in range(4)])
        weights = (2 * q).exp() / (2 * q).exp().sum()
        targets.append(rows.reward[n] + (0 if n == 2 else 0.9) * (weights * q).sum())
    _, metrics = critic.loss((rows, actions))
    expected = (critic.values.q(rows.state, rows.action) - torch.stack(targets)).square().mean()
    torch.testing.assert_close(metrics["q_loss"], expected.detach())


def trajectories() -> Batch:
    """Rows 0 to 2 end by a terminal, rows 3 and 4 by the time limit; all states are told apart by one number."""
    state = torch.tensor([0.0, 1, 2, 10, 11])
    following = torch.tensor([1.0, 2, 3, 11, 12])
    reward = torch.tensor([1.0, -2, 4, 0.5, 1.0])
    return Batch(state[:, None], torch.zeros(5, 1), reward, following[:, None], torch.tensor([0.0, 0, 1, 0, 0]))


def dataset(rows: Batch) -> OfflineData:
    zero = torch.zeros(1)
    return OfflineData(rows, zero, zero + 1, zero - 1, zero + 1, 0.0, 2)


def table(rows: Batch) -> SupportTable:
    filled = SupportTable(dataset(rows), 2, lambda s, k, g: s[:, None].repeat(1, k, 1))
    for _ in range(filled.steps):
        filled.update(torch.Generator())
    return filled


def test_returns_follow_the_data_until_the_policy_does_better() -> None:
    rows, gamma = trajectories(), 0.5
    support = table(rows)
    first, on_data = planned(rows, support, None, gamma)
    tail = -2 / (1 - gamma)  # as if the lowest reward came for ever after
    by_hand = [1 + 0.5 * (-2 + 0.5 * 4), -2 + 0.5 * 4, 4, 0.5 + 0.5 * (1 + 0.5 * tail), 1 + 0.5 * tail]
    torch.testing.assert_close(first, torch.tensor(by_hand))
    assert on_data == 1
    values = {0.0: 9.0, 1.0: 5.0, 2.0: -1.0, 3.0: 100.0, 10.0: 9.0, 11.0: -7.0, 12.0: 6.0}  # of states, V
    again, on_data = planned(rows, support, torch.tensor([values[float(s)] for s in support.states]), gamma)
    torch.testing.assert_close(again, torch.tensor([1 + 0.5 * 5, -2 + 0.5 * 4, 4, 0.5 + 0.5 * (1 + 0.5 * 6), 1 + 0.5 * 6]))
    assert on_data == pytest.approx(2 / 3)  # rows 0, 1 and 3 have a next one; row 0 does better to leave


def test_planning_stitches_trajectories_and_rounds_go_further() -> None:
    """From state 0 all data goes to 1; from 1 half goes on to the reward, half stops. Along one half of the trajectories the
    return of the first step is 0: only a plan knows better.
    """
    eye, rows, both = torch.eye(3), [], torch.tensor([[-1.0], [1.0]])
    for good in (False, True):
        rows.append((0, 1.0, 0.0, 1, 0.0))
        rows.append((1, 1.0 if good else -1.0, 1.0 if good else 0.0, 2, 1.0))
    s, a, r, n, d = (torch.tensor(column) for column in zip(*rows * 8, strict=True))
    data = dataset(Batch(eye[s], a[:, None], r, eye[n], d))
    found = {}
    for rounds in (1, 2):
        torch.manual_seed(0)
        settings: Any = {"gamma": 0.9, "polyak": 0.05, "lr": 3e-3, "width": 32, "layers": 2, "steps": 400 * rounds}
        critic = InSamplePlanning(3, 1, rounds=rounds, beta=50.0, **settings)
        support = SupportTable(data, 2, lambda states, k, g: both.expand(len(states), 2, 1))
        support.update(torch.Generator())
        learner: Any = critic.learner(data, 32, support)
        generator = torch.Generator().manual_seed(0)
        for _ in range(critic.fit.steps):
            learner.update(generator)
        q = critic.q(eye[[0, 1, 1]], torch.tensor([[1.0], [1.0], [-1.0]])).detach()
        found[rounds] = (q * learner.spread + learner.mean).tolist()
    assert found[1] == pytest.approx([0.45, 1.0, 0.0], abs=0.05)  # the mean of the returns 0 and 0.9
    assert found[2] == pytest.approx([0.9, 1.0, 0.0], abs=0.05)


# -- QIPO ------------------------------------------------------------------------------------------------------------


def train(made: Agent) -> None:
    """All but the critic, which knows."""
    for phase in made.phases():
        if phase.name != "critic":
            generator = torch.Generator().manual_seed(0)
            for _ in range(phase.steps):
                phase.learner.update(generator)


@pytest.mark.slow
def test_qipo_learns_the_tilted_policy_of_two_modes_once_more_in_each_round() -> None:
    beta, n, means, std = 0.8, 1000, torch.tensor([-0.5, 0.5]), 0.2
    noise = torch.randn(n, 1, generator=torch.Generator().manual_seed(0))
    made = make(
        QIPO,
        bandit(means[torch.arange(n)[:, None] % 2] + std * noise),
        denoiser={"width": 32, "blocks": 2, "steps": 800, "batch": 256, "lr": 3e-3, "ema": 0.98},
        support={"actions": 16},
        sampler={"steps": 15, "spacing": "log_snr"},
        policy={"beta": beta, "steps": 400, "batch": 512, "lr": 2e-3, "rounds": 2, "ema": 0.98},
    )
    train(knowing(made))
    grid = torch.linspace(-2, 2, 2001)
    mu = sum(torch.exp(-0.5 * ((grid - m) / std) ** 2) for m in means)
    for rounds in (2, 1):
        density = mu * (rounds * beta * value(grid[:, None])).exp()
        upper = density * (grid > 0)
        actions = acts(made, "policy", 4000)
        assert float((actions > 0).float().mean()) == pytest.approx(float(upper.sum() / density.sum()), abs=0.05)
        assert float(actions[actions > 0].mean()) == pytest.approx(float(upper @ grid / upper.sum()), abs=0.09)
        del made.rounds[1:]
    assert float((acts(made, "behaviour", 4000) > 0).float().mean()) == pytest.approx(0.5, abs=0.03)


# -- training --------------------------------------------------------------------------------------------------------


def episodes() -> OfflineData:
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(61, 3, generator=generator)
    rows = Batch(path[:-1], torch.randn(60, 2, generator=generator).tanh(), path[1:, 0], path[1:], torch.zeros(60))
    rows.terminal[[19, 39]] = 1
    one = torch.ones(2)
    return OfflineData(rows, torch.zeros(3), torch.ones(3), -one, one, 0.0, 3)


AGENTS: dict[str, tuple[type[Agent], dict[str, Any]]] = {
    "idql": (IDQL, {}),
    "sfbc": (SfBC, {"critic": SMALL["critic"] | {"rounds": 3}}),  # type: ignore[operator]
    "qipo": (QIPO, {"policy": {"steps": 6, "batch": 18, "rounds": 2}}),
}


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_every_phase_goes_on_bit_for_bit(name: str, stop: int) -> None:
    kind, over = AGENTS[name]
    whole, half, again = (make(kind, episodes(), **over) for _ in range(3))
    for one, first, second in zip(whole.phases(), half.phases(), again.phases(), strict=True):
        generator, halves = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
        for _ in range(one.steps):
            one.learner.update(generator)
        for _ in range(min(stop, one.steps)):
            first.learner.update(halves)
        saved = {key: tensor.clone() for key, tensor in first.learner.state().items()}
        second.learner.load(saved)
        for learner, steps in ((second.learner, halves.clone_state()), (first.learner, halves)):
            for _ in range(one.steps - min(stop, one.steps)):
                learner.update(steps)
        ended = second.learner.state()
        assert ended.keys() == one.learner.state().keys()
        assert all(torch.equal(ended[key], tensor) for key, tensor in one.learner.state().items()), one.name
    states = episodes().transitions.state[:5]
    actions = [
        a.policy(a.headline, [], torch.Generator().manual_seed(2))(states, torch.zeros(5, dtype=torch.long))
        for a in (whole, again)
    ]
    torch.testing.assert_close(*actions, rtol=0, atol=0)


# -- the command line ------------------------------------------------------------------------------------------------


METHODS: dict[str, dict[str, Any]] = {
    "idql": {"selection": {"candidates": 4}, "selections": {"implicit": {"by": "expectile"}}},
    "sfbc": {"support": {"actions": 2}, "selection": {"candidates": 4}},
    "qipo": {"support": {"actions": 2}, "policy": {"steps": 8, "batch": 16, "rounds": 2}},
}
POLICIES = {"idql": {"implicit"}, "sfbc": set(), "qipo": set()}


def with_methods(recipe: Path) -> Path:
    tree = yaml.safe_load(recipe.read_text())
    tree["sampler"] = {"steps": 2}
    tree["methods"] = {name: {"agent": name, **over} for name, over in METHODS.items()}
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


def test_all_run_from_one_recipe_and_again_from_their_configs(
    egd: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.envs.maze2d.step_limit", lambda name: 20)
    result = egd("run", with_methods(recipe), "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    for name in METHODS:
        run = tmp_path / "a" / "egd-maze2d-umaze-v0" / name / "seed-0"
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["algorithm"], summary["headline"]) == (name, "policy")
        assert set(summary["policies"]) == {"behaviour", "policy"} | POLICIES[name]
        assert summary["diagnostics"]["critic"].keys() >= {"advantage_std"}
        assert (run / "figures" / "maze.png").exists()
    run = tmp_path / "a" / "egd-maze2d-umaze-v0" / "sfbc" / "seed-0"
    assert {p.stem for p in (run / "checkpoints").iterdir()} == {"denoiser", "support", "critic", "calibration"}
    again = egd("run", run / "config.yaml", "--out", tmp_path / "b")
    assert again.exit_code == 0, again.output
    repeated = json.loads(next((tmp_path / "b").rglob("summary.json")).read_text())
    assert repeated["policies"] == json.loads((run / "summary.json").read_text())["policies"]
    assert egd("eval", run, "--episodes", 1).exit_code == 0


@pytest.mark.parametrize(
    ("method", "setting", "words"),
    [
        ("sfbc", "selection.by=expectile", ["selection.by", "in_sample_planning"]),
        ("sfbc", "critic.rounds=0", ["critic.rounds", "0"]),
        ("idql", "selections.policy.by=best", ["selections", "policy"]),
        ("idql", "selection.candidate=3", ["selection.candidate", "candidates"]),
        ("qipo", "policy.rounds=0", ["policy.rounds", "0"]),
        ("qipo", "policy.eta=1", ["policy.eta", "beta"]),
    ],
)
def test_bad_input_is_named(egd: Any, recipe: Path, tmp_path: Path, method: str, setting: str, words: list[str]) -> None:
    result = egd("run", with_methods(recipe), "--out", tmp_path / "out", "--method", method, "--set", setting)
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
