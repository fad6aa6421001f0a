"""Quality of generated transitions on real data, with as much expert data as an agent might have met online. A command:

    python -m benchmarks.edis_data --task hopper-medium --expert mujoco/hopper/expert-v0 --rows 5000

The task's data are offline. Some of the expert's rows are online, and as many of the next are held out: the generated share of
a batch should resemble these. Further episodes of the expert give the floor.

Four things are measured. Energy distances to the held-out rows, of all coordinates and of (s, a), are in standard deviations of
the replay. The area under the ROC curve is that of a network that discriminates the two sets (0.5: it cannot). Root mean square
errors of s' and of r are against the simulator set to (s, a). The share of near copies counts rows that are closer to an online
row than one in a hundred held-out rows is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from egd.cli.terminal import console, show, user_errors
from egd.config.base import ComponentConfig
from egd.errors import UserError
from egd.metrics import energy_distance
from egd.networks.mlp import mlp
from egd.runs.progress import Reporter
from rl.data.episodes import data_return, load_episodes, to_offline_data
from rl.data.transitions import Batch, OfflineData, drawn
from rl.online.choice import make_generator
from rl.online.generators.base import GeneratorContext
from rl.online.replay import Replay, joined
from rl.online.transition_codec import TransitionCodec
from rl.tasks import Task, find_task

SAMPLES = 2000  # in a measurement
ENVIRONMENTS = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5")  # whose observations are qpos[1:] and qvel

TAKEN = {"window": 0, "actions": "replay"}  # only the actions in the expert's data are available
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "unguided": {"name": "diffusion"},
    "EDIS: CEP": {"name": "edis", "energy": "cep", "ratio": TAKEN},
    "EDIS: ratio": {"name": "edis", "energy": "ratio", "ratio": {"window": 0}},
    "EDIS: support": {"name": "edis", "energy": {"name": "support_samples", "samples": 256}, "ratio": TAKEN},
    "EDIS: second": {"name": "edis", "energy": "second_order", "ratio": TAKEN},
    "EDIS: DPS": {"name": "edis", "energy": "dps", "ratio": TAKEN},
    "resampled": {"name": "resampled", "ratio": TAKEN},
}


@dataclass(frozen=True)
class Setting:
    """The data of a comparison, all in the units of the offline data."""

    task: Task
    data: OfflineData
    online: Batch
    held_out: Batch
    other: Batch
    """As many further rows of the expert, whose measures are the floor."""

    @property
    def codec(self) -> TransitionCodec:
        """The encoding of transitions in which distances are measured, scaled by the standard deviations of the replay."""
        return TransitionCodec(joined(self.data.transitions, self.online), "never")


def load(task_name: str, expert: str, rows: int, seed: int) -> Setting:
    """Load the data. ``rows`` of the expert's transitions, in the order of time, are online, as many of the next are held out,
    and the next as many are the floor. Each seed takes other rows.
    """
    task = find_task(task_name)
    if task.env_id not in ENVIRONMENTS:
        raise UserError(
            f"the simulator of {task_name} cannot be set to an observation; use a task of {', '.join(ENVIRONMENTS)}"
        )
    episodes = load_episodes(task.datasets, task.observation_keys)
    data = to_offline_data(episodes, data_return(task, episodes), scale="range")
    theirs = load_episodes([expert], task.observation_keys)
    raw = to_offline_data(theirs, 0.0, standardise=False).transitions
    s = [data.standardise(v) for v in (raw.state, raw.next_state)]
    rows_of = Batch(s[0], raw.action, (raw.reward + data.reward_shift) * data.reward_factor, s[1], raw.terminal)
    if len(rows_of) < 3 * rows * (seed + 1):
        raise UserError(f"{expert} has {len(rows_of)} transitions, too few for {seed + 1} times thrice {rows}", key="--rows")
    blocks = (3 * rows * seed + torch.arange(3 * rows)).split(rows)  # type: ignore[no-untyped-call]
    return Setting(task, data, *(rows_of[block] for block in blocks))


@dataclass
class Model:
    """The diffusion model trained offline, from which all generators of a seed start."""

    seconds: float
    weights: Mapping[str, Tensor]


def made(
    setting: Setting, variant: Mapping[str, Any], seed: int, model: Model | None, advance: Callable[[int, str], None]
) -> tuple[Batch, Model | None, dict[str, float]]:
    """Return rows of a generator after one refresh, its model before the refresh, and its metrics and seconds."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(name: str, make: Callable[[], Any]) -> Any:
        torch.manual_seed(seed)
        return make()

    context = GeneratorContext(setting.data, setting.task, lambda s, g: s, fresh)
    source = make_generator(ComponentConfig.model_validate(variant), context)
    phases = source.parts()
    if phases and model is None:
        started = time.perf_counter()
        for step in range(phases[0].steps):
            phases[0].learner.update(generator)
            if step % 100 == 0:
                advance(0, f"{variant['name']}: {step} of {phases[0].steps} steps offline")
        weights = {key: value.clone() for key, value in source.networks()["model"].state_dict().items()}
        model = Model(time.perf_counter() - started, weights)
    if phases and model is not None:
        source.networks()["model"].load_state_dict(model.weights)
    generator.manual_seed(seed + 1)
    replay = Replay(len(setting.online), setting.online)
    replay.room, replay.size = setting.online, len(setting.online)
    started = time.perf_counter()
    metrics = source.refresh(replay, generator)
    seconds = {"offline s": model.seconds if phases and model else 0.0, "refresh s": time.perf_counter() - started}
    return source.sample(SAMPLES, generator), model, {**{k: float(v) for k, v in metrics.items()}, **seconds}


def measured(setting: Setting, rows: Batch, seed: int) -> dict[str, float]:
    """Return all measures of some rows."""
    codec, g = setting.codec, torch.Generator().manual_seed(seed)
    held_out = codec.encode(setting.held_out)
    held_out = held_out[torch.randperm(len(held_out), generator=g)]  # shuffled: they were in the order of time
    few = held_out[:SAMPLES]
    x = codec.encode(rows)
    state, reward = dynamics(setting, rows)
    return {
        "distance": float(energy_distance(x, few)),
        "distance (s, a)": float(energy_distance(x[:, codec.state_action], few[:, codec.state_action])),
        "AUC": auc(x, held_out, seed),
        "error s'": state,
        "error r": reward,
        "near copies": near_copies(x, codec.encode(setting.online), held_out),
    }


def near_copies(x: Tensor, online: Tensor, held_out: Tensor) -> float:
    """Return the share of x (N, D) that is closer to an online row than the closest hundredth of the held-out rows."""
    own = torch.cdist(x, online).amin(1)
    usual = torch.cdist(held_out[:SAMPLES], online).amin(1)
    return float((own < usual.quantile(0.01)).float().mean())


def auc(x: Tensor, y: Tensor, seed: int) -> float:
    """Compute the area under the ROC curve of a network trained on half of x (N, D) and of y (M, D), on the other halves."""
    torch.manual_seed(seed)
    x, y = x[torch.randperm(len(x))], y[torch.randperm(len(y))]
    n = min(len(x), len(y)) // 2
    train, test = (torch.cat([x[part], y[part]]) for part in (slice(0, n), slice(n, 2 * n)))
    labels = torch.cat([torch.zeros(n), torch.ones(n)])
    network = mlp(x.shape[1], 1, width=128, layers=2, activation="silu")
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(500):
        index = torch.randint(2 * n, (256,))
        optimiser.zero_grad()
        binary_cross_entropy_with_logits(network(train[index])[:, 0], labels[index]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        scores = network(test)[:, 0]
    wins = scores[n:, None] > scores[None, :n]
    return float(wins.float().mean())


def dynamics(setting: Setting, rows: Batch, most: int = 1000) -> tuple[float, float]:
    """Compute root mean square errors of s' and of r against the simulator, in standard deviations of the replay."""
    data, env = setting.data, gym.make(str(setting.task.env_id)).unwrapped
    env.reset(seed=0)
    simulator: Any = env
    positions = simulator.model.nq - 1
    errors_s, errors_r = [], []
    raw = rows.state * data.state_std + data.state_mean
    for i in range(min(most, len(rows))):
        observation = raw[i].double().numpy()
        simulator.set_state(np.concatenate([[0.0], observation[:positions]]), observation[positions:])
        after, reward, *_ = env.step(rows.action[i].numpy())
        state = data.standardise(torch.as_tensor(after, dtype=torch.float32)[None])[0]
        errors_s.append((state - rows.next_state[i]).square())
        errors_r.append((data.transformed(float(reward)) - rows.reward[i]).square())
    env.close()
    replay = joined(data.transitions, setting.online)
    unit_s, unit_r = replay.next_state.std(0), replay.reward.std()
    off = (torch.stack(errors_s) / unit_s**2).mean().sqrt()
    return float(off), float(torch.stack(errors_r).mean().sqrt() / unit_r)


def main(
    task: Annotated[str, typer.Option(help="Whose data are offline.")] = "hopper-medium",
    expert: Annotated[str, typer.Option(help="Minari id whose data are online.")] = "mujoco/hopper/expert-v0",
    rows: Annotated[int, typer.Option(min=10, help="Online, and as many held out.")] = 5000,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds of the split, the networks and the samples.")] = 3,
    variant: Annotated[list[str] | None, typer.Option("--variant", "-v", help="Only this one. May be repeated.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the diffusion model offline.")] = 20_000,
    training: Annotated[int, typer.Option(min=1, help="Steps of each network at the refresh.")] = 1000,
    share: Annotated[float | None, typer.Option(help="Share of online rows that generators learn from.")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Write all numbers.")] = None,
) -> None:
    """Measure distance, discernibility, dynamics and copies of generated transitions."""
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    variants = {
        name: _settings(spec, steps, training, share) for name, spec in VARIANTS.items() if not variant or name in variant
    }
    with user_errors(), Reporter(console).bar("measuring", seeds * (len(variants) + 3)) as bar:
        if unknown := set(variant or ()) - set(VARIANTS):
            raise UserError(f"no variant is called '{unknown.pop()}'; there are {', '.join(VARIANTS)}", key="--variant")
        for seed in range(seeds):
            setting = load(task, expert, rows, seed)
            replay = joined(setting.data.transitions, setting.online)
            known = {"floor": setting.other, "online": setting.online, "replay": replay}
            for name, given in known.items():
                few = drawn(given, SAMPLES, torch.Generator().manual_seed(seed))
                found.append({"variant": name, "seed": seed, **measured(setting, few, seed + 1)})
                bar.advance(1, name)
            model: Model | None = None
            for name, spec in variants.items():
                generated, model, info = made(setting, spec, seed, model, bar.advance)
                found.append({"variant": name, "seed": seed, **measured(setting, generated, seed + 1), **info})
                bar.advance(1, name)
                if out is not None:
                    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(_summary(found), f"{task}, {rows} online rows of {expert}: mean ± std over {seeds} seeds")


def _settings(spec: Mapping[str, Any], steps: int, training: int, share: float | None) -> dict[str, Any]:
    tree = {**spec, "online_share": share}
    if tree["name"] != "resampled":
        tree |= {"denoiser": {"steps": steps}, "samples": SAMPLES, "refresh_steps": training}
    if tree["name"] == "edis":
        tree["energy_network"] = {"steps": training}
    if tree.get("energy") != "ratio" and "ratio" in tree:
        tree["ratio"] = {**tree["ratio"], "steps": training}
    return tree


SHOWN = {
    "distance": "dist.",
    "distance (s, a)": "(s, a)",
    "AUC": "AUC",
    "error s'": "s'",
    "error r": "r",
    "near copies": "copies",
}
SHOWN |= {"rejected": "rej.", "refresh s": "s"}


def _summary(found: list[dict[str, Any]]) -> list[dict[str, str]]:
    rows = []
    for name in dict.fromkeys(row["variant"] for row in found):
        own = [row for row in found if row["variant"] == name]
        columns = {key: [row[key] for row in own if key in row] for key in SHOWN}
        rows.append({"variant": name, **{SHOWN[key]: _spread(values) for key, values in columns.items()}})
    return rows


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    mean = f"{np.mean(values):.2g}"
    return mean if len(values) < 2 else f"{mean}±{np.std(values, ddof=1):.1g}"


if __name__ == "__main__":
    typer.run(main)
