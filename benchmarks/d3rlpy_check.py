"""Comparison of IQL here with IQL of d3rlpy (https://github.com/takuseno/d3rlpy): the same transitions, sizes, settings and
number of steps, both evaluated here from the same starts.

    python -m benchmarks.d3rlpy_check --task hopper-medium --steps 100000 --seeds 0-2

Each draws its own batches from the same tensors, so that all code between a batch and an action is compared. Two differences
are inherent and remain. Here the critic is trained to its end before the policy, on which it does not depend; in d3rlpy both
are trained at once. The policy's standard deviation is the exponential of a parameter here, and a sigmoid of it in d3rlpy.

d3rlpy is not a dependency. Its release 2.8.1 (MIT License) requires gymnasium 1.0.0, of which this check uses nothing. Beside a
newer gymnasium, install it without its dependencies, and then those that it needs, in a separate environment:

    pip install --no-deps d3rlpy==2.8.1
    pip install gym==0.26.2 dataclasses-json==0.6.7 structlog==26.1.0 scikit-learn colorama
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table
from torch import Tensor

from egd.cli.terminal import console, user_errors
from egd.errors import UserError
from egd.runs.grid import parse_seeds
from egd.runs.phase import seed_of
from egd.runs.progress import Reporter
from egd.training.precision import set_up
from rl.agents.iql import IQLAgent, IQLConfig
from rl.data.transitions import OfflineData
from rl.envs.making import env_factory
from rl.evaluation.rollouts import Player, PolicyBatch, rollouts
from rl.runs.loading import load_data
from rl.runs.recipe import typed
from rl.tasks import Task

Act = Callable[[Tensor], Tensor]
"""Standardised states (B, S) -> actions (B, A)."""
NETWORK = {"width": 256, "layers": 2, "activation": "relu", "layer_norm": False}
VALUED = 10_000  # transitions over which V is averaged


@dataclass(frozen=True)
class Trained:
    """A trained policy with its value function V."""

    act: Act
    value: Act

    def mean_value(self, data: OfflineData) -> float:
        """Return the mean of V over the first transitions of the data."""
        with torch.no_grad():
            return float(self.value(data.transitions.state[:VALUED]).mean())


def settings(task: str, seed: int, steps: int, batch: int, expectile: float, beta: float, device: str) -> IQLConfig:
    """Return IQL's published settings: two layers of 256 ReLU units, a Gaussian policy, a cosine decay of the policy's learning
    rate.
    """
    shared = {**NETWORK, "steps": steps, "batch": batch, "lr": 3e-4}
    tree = {
        "experiment": "offline_rl",
        "agent": "iql",
        "task": task,
        "seed": seed,
        "device": device,
        "critic": {**shared, "name": "iql", "expectile": expectile, "decay": False},
        "actor": {**shared, "name": "gaussian", "beta": beta, "decay": True},
    }
    config = typed(tree, "d3rlpy_check")
    assert isinstance(config, IQLConfig)
    return config


def ours(config: IQLConfig, data: OfflineData, reporter: Reporter) -> Trained:
    """Train the agent of this package, phase by phase."""
    agent = IQLAgent(config, data, torch.device(config.device))
    for phase in agent.phases():
        generator = torch.Generator(config.device).manual_seed(seed_of(config.seed, phase.name))
        with reporter.bar(f"egd, {phase.name}", phase.steps) as bar:
            for _ in range(phase.steps):
                phase.learner.update(generator)
                bar.advance(1)
    return Trained(agent.actor.mean, agent.critic.v)


def theirs(config: IQLConfig, data: OfflineData, reporter: Reporter) -> Trained:
    """Train d3rlpy's agent on batches of the same transitions. Raises UserError where d3rlpy is not installed."""
    algorithm = _algorithm(config, data)
    batch_of = importlib.import_module("d3rlpy.torch_utility").TorchMiniBatch
    generator = torch.Generator(config.device).manual_seed(seed_of(config.seed, "d3rlpy"))
    with reporter.bar("d3rlpy", config.critic.steps) as bar:
        for step in range(config.critic.steps):
            b = data.sample(config.critic.batch, generator)
            column = torch.zeros_like(b.reward)[:, None]
            batch = batch_of(
                observations=b.state,
                actions=b.action,
                rewards=b.reward[:, None],
                next_observations=b.next_state,
                next_actions=torch.zeros_like(b.action),  # not used by IQL
                returns_to_go=column,
                terminals=b.terminal[:, None],
                intervals=column + 1,
                device=config.device,
            )
            algorithm.impl.update(batch, step)
            bar.advance(1)
    return Trained(algorithm.impl.predict_best_action, algorithm.impl.modules.value_func)


def _algorithm(config: IQLConfig, data: OfflineData) -> Any:
    """Create d3rlpy's IQL with these settings."""
    try:
        algos, models, optimizers = (importlib.import_module(f"d3rlpy.{name}") for name in ("algos", "models", "optimizers"))
    except ImportError as error:
        raise UserError(f"d3rlpy cannot be imported ({error}); how to install it: python -m pydoc {__spec__.name}") from error
    importlib.import_module("d3rlpy").seed(config.seed)
    c, a = config.critic, config.actor
    schedules = importlib.import_module("d3rlpy.optimizers.lr_schedulers")
    encoder = models.VectorEncoderFactory([c.width] * c.layers, activation=c.activation)
    decay = schedules.CosineAnnealingLRFactory(T_max=a.steps)
    algorithm = algos.IQLConfig(
        actor_learning_rate=a.lr,
        critic_learning_rate=c.lr,
        actor_optim_factory=optimizers.AdamFactory(lr_scheduler_factory=decay),
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        value_encoder_factory=encoder,
        batch_size=c.batch,
        gamma=c.gamma,
        tau=c.polyak,
        n_critics=c.ensemble,
        expectile=c.expectile,
        weight_temp=a.beta,
        max_weight=a.max_weight,
    ).create(device="cuda:0" if config.device == "cuda" else False)
    algorithm.create_impl((data.transitions.state.shape[1],), data.transitions.action.shape[1])
    return algorithm


def scores(both: dict[str, Trained], data: OfflineData, task: Task, episodes: int, seed: int, device: str) -> dict[str, float]:
    """Return mean normalised scores by name, in ``episodes`` episodes from the same starts."""

    def policy(name: str, trained: Trained) -> PolicyBatch:
        @torch.no_grad()
        def act(states: Tensor, scale_index: Tensor) -> Tensor:
            return trained.act(states).clamp(-1, 1)

        return PolicyBatch([name], act)

    player = Player([policy(*item) for item in both.items()], data.standardise, episodes, episodes, 10_000 + 1000 * seed)
    (result,) = rollouts(env_factory(task, task.observation_keys), [player], device=device)
    return {name: float(np.mean([task.score(float(r)) for r in returns])) for name, returns in result.returns.items()}


def main(
    task: Annotated[str, typer.Option(help="A task of egd list tasks, or the Minari id of a dataset.")] = "hopper-medium",
    steps: Annotated[int, typer.Option(help="Steps of the critic, and of the policy.", min=1)] = 100_000,
    seeds: Annotated[str, typer.Option(help="As 0-2 or 0,5.")] = "0",
    episodes: Annotated[int, typer.Option(help="Episodes of each policy.", min=1)] = 30,
    batch: Annotated[int, typer.Option(min=1)] = 256,
    expectile: float = 0.7,
    beta: float = 3.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = 1,
) -> None:
    """Train and evaluate both, and show scores and mean values."""
    with user_errors():
        set_up(device, threads)
        table = Table("seed", "score, egd", "score, d3rlpy", "V, egd", "V, d3rlpy", title=f"IQL on {task}, {steps:,} steps")
        found: list[list[float]] = []
        reporter = Reporter(console)
        for seed in parse_seeds(seeds):
            config = settings(task, seed, steps, batch, expectile, beta, device)
            data, target = load_data(config, device, reporter)
            _algorithm(config, data)  # fails here, before anything is trained, where d3rlpy is not installed
            both = {"egd": ours(config, data, reporter), "d3rlpy": theirs(config, data, reporter)}
            scored = scores(both, data, target, episodes, seed, device)
            found.append([*scored.values(), *(trained.mean_value(data) for trained in both.values())])
            table.add_row(str(seed), *(f"{value:.2f}" for value in found[-1]))
        if len(found) > 1:
            spread = np.std(found, axis=0, ddof=1) / len(found) ** 0.5
            means = zip(np.mean(found, axis=0), spread, strict=True)
            table.add_row("mean ± s.e.", *(f"{mean:.2f} ± {error:.2f}" for mean, error in means))
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
