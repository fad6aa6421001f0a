"""Policies of one network: what they converge to where that is known, and the runs they make."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from torch import Tensor

from benchmarks import d3rlpy_check
from egd.errors import UserError
from egd.runs.experiment import Options
from egd.runs.phase import Phase
from egd.runs.progress import Reporter
from egd.training.batched import BatchedLearner
from egd.training.learners import Fit, StepLearner
from rl.agents import AGENTS
from rl.agents.bc import Cloning
from rl.agents.iql import AdvantageWeightedRegression
from rl.agents.td3_bc import TD3BC
from rl.critics import IQL
from rl.data.episodes import Episodes, to_offline_data
from rl.data.transitions import Batch, OfflineData
from rl.deploy.policy import Policy
from rl.parts.actors import DeterministicActor, GaussianActor
from rl.runs.experiment import OfflineRL
from rl.runs.recipe import typed

KINDS = ("bc", "iql", "td3_bc", "cql")


def modes(n: int = 400) -> Batch:
    """One state with two actions: -0.5 in a quarter of the data, rewarded, and 0.5."""
    action = torch.where(torch.arange(n) % 4 == 0, -0.5, 0.5)[:, None]
    return Batch(torch.ones(n, 1), action, (action[:, 0] < 0).float(), torch.ones(n, 1), torch.ones(n))


class Known(IQL):
    """A critic that knows its values: Q = r, V = 0.25."""

    def q(self, state: Tensor, action: Tensor) -> Tensor:
        """(B,)"""
        return (action[:, 0] < 0).float()

    def v(self, state: Tensor) -> Tensor:
        """(B,)"""
        return torch.full((len(state),), 0.25)


def cloned(actor: DeterministicActor, learner: Callable[..., StepLearner], steps: int = 300) -> Tensor:
    """The action after training on ``modes``."""
    cloning = learner(actor, Fit(actor, lr=0.02, steps=steps, decay=True), lambda generator: modes())
    for _ in range(steps):
        cloning.update(torch.Generator())
    return actor.mean(torch.ones(1, 1))[0, 0].detach()


@pytest.fixture(autouse=True)
def weights() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", [DeterministicActor, GaussianActor])
def test_cloning_finds_the_mean_and_the_spread(kind: type[DeterministicActor]) -> None:
    actor = kind(1, 1, width=8, layers=1)
    torch.testing.assert_close(cloned(actor, Cloning), torch.tensor(0.25), atol=5e-3, rtol=0)
    if isinstance(actor, GaussianActor):
        torch.testing.assert_close(actor.std.detach(), torch.tensor([np.sqrt(0.1875)], dtype=torch.float32), atol=5e-3, rtol=0)


@pytest.mark.parametrize("most", [100.0, 2.0])
def test_weighted_regression_finds_the_weighted_mean(most: float) -> None:
    good, bad = min(np.exp(2 * 0.75), most), np.exp(2 * -0.25)
    wanted = (-0.5 * 0.25 * good + 0.5 * 0.75 * bad) / (0.25 * good + 0.75 * bad)
    critic = Known(1, 1, width=4, layers=1)
    learner = partial(AdvantageWeightedRegression, critic=critic, beta=2.0, max_weight=most)
    found = cloned(DeterministicActor(1, 1, width=8, layers=1), learner)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float32), atol=1e-2, rtol=0)


def test_policies_of_several_betas_take_their_steps_together() -> None:
    def learner(beta: float) -> AdvantageWeightedRegression:
        torch.manual_seed(0)
        actor, critic = GaussianActor(1, 1, width=8, layers=1), IQL(1, 1, width=4, layers=1)
        sample: Callable[[torch.Generator], Batch] = lambda g: modes()[torch.randint(400, (32,), generator=g)]  # noqa: E731
        return AdvantageWeightedRegression(actor, Fit(actor, lr=1e-2, steps=10), sample, critic, beta)

    alone, together = [[learner(beta) for beta in (1.0, 30.0)] for _ in range(2)]
    for one in alone:
        g = torch.Generator().manual_seed(1)
        for _ in range(5):
            one.update(g)
    batched = BatchedLearner(together, [torch.Generator().manual_seed(1) for _ in together])
    for _ in range(5):
        batched.update()
    batched.unstack()
    for one, other in zip(alone, together, strict=True):
        for name, tensor in one.state().items():
            torch.testing.assert_close(other.state()[name], tensor)
    assert not torch.equal(alone[0].state()["module.log_std"], alone[1].state()["module.log_std"])


def agent(kind: str, data: OfflineData, **over: Any) -> Any:
    """Built, untrained."""
    small = {"width": 16, "layers": 2, "steps": 6, "batch": 16}
    own: dict[str, Any] = {"critic": small, "actor": small}
    if kind == "cql":
        own = {"critic": small | {"actions": 2, "policy_width": 16}}
    if kind == "bc":
        del own["critic"]
    tree: dict[str, Any] = {"experiment": "offline_rl", "task": "hopper-medium", "agent": kind, **own}
    for section, settings in over.items():
        tree[section] = tree.get(section, {}) | settings
    return AGENTS[kind](typed(tree, "test"), data, torch.device("cpu"))


def random_data() -> OfflineData:
    rng = np.random.default_rng(0)
    return to_offline_data(
        Episodes(
            [rng.normal(size=(81, 3)).astype(np.float32)],
            [rng.uniform(-1, 1, size=(80, 2)).astype(np.float32)],
            [rng.normal(size=80).astype(np.float32)],
            [np.zeros(80, dtype=bool)],
        ),
        0.0,
    )


def bandit_data() -> OfflineData:
    """Episodes of one step: the reward is highest at 0.6, the actions are spread evenly."""
    action = np.linspace(-1, 1, 401, dtype=np.float32)[:, None]
    states = [np.zeros((2, 1), dtype=np.float32)] * 401
    rewards, ends = list(2 - (action - 0.6) ** 2), [np.ones(1, dtype=bool)] * 401
    return to_offline_data(Episodes(states, list(action[:, None]), rewards, ends), 0)


@pytest.mark.parametrize(("alpha", "wanted"), [pytest.param(0.0, 0.0, marks=pytest.mark.slow), (2.5, 0.339), (100.0, 0.588)])
def test_td3_bc_goes_from_the_mean_of_the_data_to_the_best_action(alpha: float, wanted: float) -> None:
    """Its optimum a solves a = w (0.6 - a), w = alpha / Q(a)."""
    settings = {"alpha": alpha, "steps": 500, "batch": 128, "lr": 1e-2}
    made = agent("td3_bc", bandit_data(), actor=settings, critic={"width": 32, "lr": 1e-2})
    train(made)
    found = made.policy("policy", [], torch.Generator())(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(found, torch.tensor([[wanted]]), atol=0.05, rtol=0)


def train(made: Any, seed: int = 1) -> None:
    """All phases to their ends."""
    for phase in made.phases():
        generator = torch.Generator().manual_seed(seed)
        for _ in range(phase.steps):
            phase.learner.update(generator)


def test_td3_bc_weighs_q_by_its_size_and_smooths_its_target() -> None:
    made: TD3BC = agent("td3_bc", random_data(), actor={"alpha": 2.5, "noise": 5.0, "noise_clip": 0.1})
    learner, batch = made.learner, made.data.sample(64, torch.Generator().manual_seed(0))
    action = made.actor.mean(batch.state)
    q = learner.critic.values.q(batch.state, action)[0]
    wanted = -2.5 * q.mean() / q.abs().mean() + (action - batch.action).square().mean()
    loss, _ = learner.actor_loss(batch)
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert all(p.grad is None for p in learner.critic.values.parameters())
    moved = learner.next_actions(batch.next_state, torch.Generator().manual_seed(0)) - made.actor.mean(batch.next_state)
    assert float(moved.detach().abs().max()) <= 0.1 + 1e-6
    assert float((moved.abs() > 0.099).float().mean()) > 0.8


def test_td3_bc_delays_its_policy() -> None:
    made = agent("td3_bc", random_data(), actor={"delay": 3})
    before = [p.clone() for p in made.actor.parameters()]
    generator = torch.Generator().manual_seed(0)
    metrics = [made.learner.update(generator) for _ in range(2)]
    assert all(torch.equal(old, new) for old, new in zip(before, made.actor.parameters(), strict=True))
    assert "cloning_loss" not in metrics[1]
    assert "cloning_loss" in made.learner.update(generator)
    assert made.learner.fit.step == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_phase_goes_on_bit_for_bit(kind: str) -> None:
    whole, half, again = (agent(kind, random_data()) for _ in range(3))
    for phases in zip(whole.phases(), half.phases(), again.phases(), strict=True):
        resumed(*phases)
    states = torch.randn(5, 3)
    acted = [made.policy("policy", [], torch.Generator())(states, torch.zeros(5)) for made in (whole, again)]
    assert torch.equal(*acted)
    assert float(acted[0].abs().max()) <= 1


def resumed(whole: Phase, half: Phase, again: Phase) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        whole.learner.update(generator)
    generator.manual_seed(1)
    for _ in range(3):
        half.learner.update(generator)
    again.learner.load(half.learner.state())
    for _ in range(3):
        again.learner.update(generator)
    wanted, found = whole.learner.state(), again.learner.state()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    half.learner.load(wanted)  # as the next phase finds it


def test_the_critics_are_those_of_aepo() -> None:
    data = random_data()
    guided = {"denoiser": {"width": 8, "blocks": 1}, "energy_network": {"width": 8}}
    for kind, critic in (("iql", {}), ("cql", {"name": "cql"})):
        alone = agent(kind, data, critic=critic)
        settings = alone.config.critic.model_dump()
        aepo = made_aepo(data, guided, settings)
        (own,) = [phase for phase in alone.phases() if phase.name == "critic"]
        (theirs,) = [phase for phase in aepo.phases() if phase.name == "critic"]
        assert own.cache_key == theirs.cache_key
        assert all(torch.equal(t, theirs.learner.state()[name]) for name, t in own.learner.state().items())


def made_aepo(data: OfflineData, sections: dict[str, Any], critic: dict[str, Any]) -> Any:
    tree = {"experiment": "offline_rl", "task": "hopper-medium", "agent": "aepo", **sections, "critic": critic}
    return AGENTS["aepo"](typed(tree, "test"), data, torch.device("cpu"))


RECIPE = """
experiment: offline_rl
tasks: {egd/maze2d/umaze-v0: {}}
data: {generator: {name: maze2d, map_name: umaze, steps: 1500, noise: 0.5, seed: 0}}
critic: {width: 16, layers: 2, steps: 12, batch: 32}
actor: {width: 16, layers: 2, steps: 12, batch: 32}
methods:
  bc: {agent: bc}
  gaussian: {agent: bc, actor: {name: gaussian}}
  iql: {agent: iql}
  td3_bc: {agent: td3_bc}
  cql: {agent: cql, critic: {actions: 2, policy_width: 16, gap: 5}}
evaluation: {episodes: 2, envs: 2}
checkpoint_every: 5
log_every: 5
"""


def planned(tree: dict[str, Any], **chosen: Any) -> dict[tuple[str, str], Any]:
    """Task and method -> the configuration of the run."""
    jobs = OfflineRL().plan(tree, Options(source="recipe.yaml", out=Path("out"), **chosen))
    return {(run.config.task, run.method): run.config for job in jobs for run in job.planned}


def test_a_task_may_change_a_method() -> None:
    tree = yaml.safe_load(RECIPE) | {
        "tasks": {
            "maze2d-umaze": {"critic": {"steps": 7}, "methods": {"cql": {"critic": {"steps": 9, "gap": 2}}}},
            "pen-cloned": {},
        }
    }
    configs = planned(tree)
    assert {m: configs["maze2d-umaze", m].critic.steps for m in ("iql", "cql")} == {"iql": 7, "cql": 9}
    assert configs["maze2d-umaze", "cql"].critic.settings == {"actions": 2, "policy_width": 16, "gap": 2}
    assert configs["pen-cloned", "cql"].critic.settings["gap"] == 5
    assert configs["pen-cloned", "cql"].critic.steps == 12
    assert planned(tree, settings=["critic.steps=11"])["maze2d-umaze", "cql"].critic.steps == 11


@pytest.mark.parametrize(
    ("methods", "words"),
    [({"cqll": {}}, ["tasks.maze2d-umaze.methods", "'cqll'", "'cql'"]), (["cql"], ["tasks.maze2d-umaze", "['cql']"])],
)
def test_a_task_names_methods_that_there_are(methods: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        planned(yaml.safe_load(RECIPE) | {"tasks": {"maze2d-umaze": {"methods": methods}}}, methods=["iql"])
    assert all(word in f"{error.value.key}: {error.value}" for word in words)


def test_a_recipe_runs_them_all_and_they_deploy(egd: Any, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE)
    result = egd("run", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    runs = {path.parent.parent.name: path for path in (tmp_path / "out").rglob("summary.json")}
    assert set(runs) == {"bc", "gaussian", "iql", "td3_bc", "cql"}
    for method, path in runs.items():
        summary = json.loads(path.read_text())
        assert summary["headline"] == "policy"
        assert list(summary["policies"]) == ["policy"]
        assert summary["policies"]["policy"]["episodes"] == 2
        assert summary["algorithm"] == ("bc" if method == "gaussian" else method)
    phases = {m: sorted(p.stem for p in (path.parent / "checkpoints").iterdir()) for m, path in runs.items()}
    policy = {"bc": ["policy"], "gaussian": ["policy"], "iql": ["critic", "policy"], "td3_bc": ["policy"], "cql": ["critic"]}
    assert phases == policy
    target = tmp_path / "policy.pt2"
    assert egd("export", runs["cql"].parent, "--to", target).exit_code == 0
    observation = torch.zeros(1, 4)
    exported = torch.export.load(target).module()(observation=observation, noise=torch.zeros(1, 0, 2))
    torch.testing.assert_close(exported, Policy.load(runs["cql"].parent)(observation))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["agent=iql", "critic.name=isql"], "critic.name"),
        (["agent=td3_bc", "critic.name=iql"], "critic.name"),
        (["agent=td3_bc", "actor.name=gaussian"], "actor.name"),
        (["agent=bc", "actor.beta=1"], "actor.beta"),
        (["agent=iql", "actor.beta=-1"], "actor.beta"),
    ],
)
def test_settings_that_do_not_fit_are_named(egd: Any, recipe: Path, tmp_path: Path, settings: list[str], said: str) -> None:
    text = RECIPE[: RECIPE.index("methods")] + RECIPE[RECIPE.index("evaluation") :]
    recipe.write_text(text if "agent=bc" not in settings else text.replace("critic: {", "# "))
    result = egd("run", recipe, "--out", tmp_path / "out", *(part for s in settings for part in ("--set", s)))
    assert result.exit_code == 2
    assert said in result.output


def test_the_check_against_d3rlpy_trains_ours_and_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "d3rlpy", None)
    data, reporter = random_data(), Reporter(Console(file=io.StringIO()))
    config = d3rlpy_check.settings("hopper-medium", 0, 3, 16, 0.7, 3.0, "cpu")
    trained = d3rlpy_check.ours(config, data, reporter)
    assert trained.act(data.transitions.state).shape == (80, 2)
    assert np.isfinite(trained.mean_value(data))
    with pytest.raises(UserError, match="d3rlpy cannot be imported"):
        d3rlpy_check.theirs(config, data, reporter)
