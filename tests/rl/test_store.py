"""Finished phases are used again by runs that need the same, and by no other."""

from __future__ import annotations

import json
import os
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from egd.checkpoint import load_checkpoint, save_checkpoint
from egd.config.base import override
from egd.errors import UserError
from egd.runs import code_digest as sources
from egd.runs.store import default_store, key_of
from rl.agents import agent_class
from rl.agents.base import CODE
from rl.data.transitions import digest_of
from rl.runs.loading import load_data
from rl.runs.recipe import typed
from tests.processes import exit_code, kill_when, start_egd

RUN = Path("egd-maze2d-umaze-v0") / "seed-0"
PHASES = {"denoiser", "critic", "calibration", "energy_literal"}


@pytest.fixture
def recipe(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of seconds in a fraction of one: training is as it was, evaluation hardly is."""
    tree = yaml.safe_load(recipe.read_text())
    tree["sampler"] = {"steps": 1}
    tree["evaluation"] = {"episodes": 1, "envs": 1}
    tree["guidance"] = {"energy": "dps", "beta": 3, "omega": 0}
    recipe.write_text(yaml.safe_dump(tree))
    monkeypatch.setattr("rl.envs.maze2d.step_limit", lambda name: 20)
    monkeypatch.setattr("rl.evaluation.figures.draw", lambda *_: None)
    monkeypatch.setattr("rl.evaluation.figures.draw_guided", lambda *_: None)
    return recipe


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of a test."""
    monkeypatch.setenv("EGD_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def run(egd: Any, recipe: Path, tmp_path: Path) -> Any:
    """run(name, *settings) -> the run's folder, below one of that name."""

    def call(name: str, *settings: str, flags: tuple[str, ...] = (), seed: int = 0) -> Path:
        chosen = [part for setting in settings for part in ("--set", setting)]
        result = egd("run", recipe, "--out", tmp_path / name, "--seed", seed, *chosen, *flags)
        assert result.exit_code == 0, result.output
        return next((tmp_path / name).rglob("summary.json")).parent

    return call


def reused(folder: Path) -> set[str]:
    return set(json.loads((folder / "summary.json").read_text())["reused"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "checkpoints").glob("*.safetensors"))
    return {f"{path.stem}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


def assert_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    results = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    for key in ("policies", "best", "evaluations", "diagnostics"):
        assert results[0][key] == results[1][key], key
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()


def test_the_same_run_trains_nothing_and_is_the_same(run: Any, kept: Path) -> None:
    first, second, fresh = run("a"), run("b"), run("c", flags=("--fresh",))
    assert (reused(first), reused(second), reused(fresh)) == (set(), PHASES, set())
    assert_same(first, second)
    assert_same(first, fresh)
    keys = json.loads((second / "summary.json").read_text())["reused"].values()
    for key in keys:
        assert {path.suffix for path in kept.glob(f"{key}.*")} == {".safetensors", ".json", ".jsonl"}


CHANGES = {
    "critic.expectile=0.9": {"denoiser"},
    "calibration.samples=64": {"denoiser", "critic"},
    "energy_network.lr=0.01": {"denoiser", "critic", "calibration"},
    "variants.literal.beta=1": {"denoiser", "critic", "calibration"},
    "denoiser.lr=0.01": {"critic"},
    "schedule.beta_max=10": {"critic"},
    "data.reward_scale=2": {"denoiser"},
    "data.standardise_states=false": set(),
    "variants.literal.omega=2": PHASES,
    "variants.literal.rule=additive": PHASES,
    "evaluation.episodes=3": PHASES,
    "sampler.steps=4": PHASES,
    "precision=bf16": set(),
    "seed=1": set(),
}


def keys(recipe: Path, *settings: str) -> dict[str, str]:
    """Of every phase of a run, in the store."""
    tree = {k: v for k, v in yaml.safe_load(recipe.read_text()).items() if k not in ("tasks", "budgets")}
    tree = override(tree | {"task": "egd/maze2d/umaze-v0"}, settings)
    kind, allowed = agent_class(tree["agent"]), {*agent_class(tree["agent"]).Config.model_fields}
    config: Any = typed({k: v for k, v in tree.items() if k in allowed}, "test")
    agent = kind(config, load_data(config, "cpu")[0], torch.device("cpu"))
    return {phase.name: key_of(phase.cache_key) for phase in agent.phases()}


def test_a_phase_is_another_where_a_setting_has_part_in_it(recipe: Path) -> None:
    before = keys(recipe)
    assert before.keys() == PHASES
    found = {setting: {n for n, key in keys(recipe, setting).items() if before[n] == key} for setting in CHANGES}
    assert found == CHANGES


def test_a_network_taught_by_samples_is_another_with_another_sampler(recipe: Path) -> None:
    taught = "variants.literal.energy={name: analytic, target: {name: support_samples, samples: 2}}"
    one, other = keys(recipe, taught), keys(recipe, taught, "sampler.steps=2")
    assert {name for name in one if one[name] != other[name]} == {"energy_literal"}


def test_a_changed_critic_is_trained_on_the_denoiser_that_is_there(run: Any, kept: Path) -> None:
    run("first")
    changed = run("changed", "critic.expectile=0.9")
    assert reused(changed) == {"denoiser"}
    assert_same(changed, run("anew", "critic.expectile=0.9", flags=("--fresh",)))


def test_a_full_store_forgets_what_was_not_asked_for_the_longest(
    run: Any, kept: Path, monkeypatch: pytest.MonkeyPatch, egd: Any, recipe: Path, tmp_path: Path
) -> None:
    run("first")
    before = {path.stem for path in kept.iterdir()}
    room = sum(path.stat().st_size for path in kept.iterdir()) + 1000
    for path in kept.iterdir():
        os.utime(path, (1, 1))
    monkeypatch.setenv("EGD_STORE_GB", str(room / 1e9))
    run("second", seed=1)  # as large, but for some digits
    left = {path.stem for path in kept.glob("*.safetensors")}
    assert sum(path.stat().st_size for path in kept.iterdir()) <= room
    assert len(left) == len(PHASES) and not left & before
    assert {path.stem for path in kept.iterdir()} == left
    monkeypatch.setenv("EGD_STORE_GB", "much")
    refused = egd("run", recipe, "--out", tmp_path / "third")
    assert refused.exit_code == 2 and "'much' is not a number of gigabytes" in refused.output


def test_a_damaged_entry_is_replaced(run: Any, kept: Path) -> None:
    first = run("first")
    for path in kept.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    second = run("second")
    assert reused(second) == set()
    assert_same(first, second)
    assert reused(run("third")) == PHASES


@pytest.mark.slow
def test_a_truncated_log_in_the_store_ends_no_sweep(egd: Any, recipe: Path, tmp_path: Path, kept: Path) -> None:
    sweep = ("sweep", recipe, "--seeds", "0,1", "--out")
    assert egd(*sweep, tmp_path / "first").exit_code == 0
    (key, *_) = [p.stem for p in kept.glob("*.json") if json.loads(p.read_text())["cache_key"]["phase"] == "critic"]
    path = kept / f"{key}.jsonl"
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    second = egd(*sweep, tmp_path / "second")
    said = " ".join(second.output.split())
    assert second.exit_code == 0, said
    assert f"{key}.jsonl is not what was put into the store; phase 'critic' is trained anew" in said
    for seed in (0, 1):
        place = RUN.with_name(f"seed-{seed}")
        assert_same(tmp_path / "first" / place, tmp_path / "second" / place)
    assert path.read_bytes().count(b"\n") == before.count(b"\n"), "and is whole again"


def test_a_store_that_cannot_be_written_costs_no_run(
    egd: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EGD_STORE", str(tmp_path / "file" / "store"))
    result = egd("run", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "denoiser is not kept" in result.output and "EGD_STORE" in result.output


def test_a_store_that_is_a_file_is_refused_by_all_who_use_it(
    egd: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    commands = [["store", "list"], ["store", "prune", "--all"], ["run", recipe, "--out", tmp_path / "out"]]
    for named, message, refused in (
        ("file", "is not a folder; name a folder for finished phases", commands),
        ("file/store", "file' is none; name another", commands[:2]),
    ):
        monkeypatch.setenv("EGD_STORE", str(tmp_path / named))
        for command in refused:
            result = egd(*command)
            assert result.exit_code == 2 and message in result.output and "EGD_STORE" in result.output, (command, result.output)
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "out").exists()


def test_other_seeds_and_data_share_nothing(run: Any, kept: Path) -> None:
    run("first")
    assert reused(run("seed", seed=1)) == set()
    generator = "{name: maze2d, map_name: umaze, steps: 1000, noise: 0.5, seed: 1}"
    other = ("data.datasets=[egd/maze2d/other-v0]", f"data.generator={generator}")
    assert reused(run("data", *other)) == set()
    assert reused(run("data again", *other)) == PHASES


def test_evaluations_in_mid_training_are_reused_as_well(run: Any, kept: Path) -> None:
    first, second = (run(name, "evaluation.every=10") for name in "ab")
    assert reused(second) == PHASES
    assert_same(first, second)
    assert len(json.loads((second / "summary.json").read_text())["evaluations"]) == 4
    assert reused(run("c", "evaluation.every=10", "evaluation.episodes=2")) == PHASES - {"denoiser"}


KINDS = """
methods:
  aepo: {agent: aepo}
  idql: {agent: idql, selection: {candidates: 2}}
  sfbc: {agent: sfbc, selection: {candidates: 2}}
  qipo: {agent: qipo, policy: {steps: 5, batch: 8, rounds: 2}}
  further: {agent: qipo, policy: {steps: 5, batch: 8, rounds: 3}}
support: {actions: 2}
"""


def test_methods_share_what_they_have_in_common(egd: Any, recipe: Path, tmp_path: Path, kept: Path) -> None:
    recipe.write_text(recipe.read_text() + KINDS)
    assert egd("run", recipe, "--out", tmp_path / "out").exit_code == 0
    found = {path.parent.parent.name: reused(path.parent) for path in (tmp_path / "out").rglob("summary.json")}
    assert found == {
        "aepo": set(),
        "idql": {"denoiser", "critic", "calibration"},
        "sfbc": {"denoiser"},
        "qipo": {"denoiser", "support", "critic", "calibration"},
        "further": {"denoiser", "support", "critic", "calibration", "policy", "support_2", "policy_2"},
    }


# -- code ------------------------------------------------------------------------------------------------------------

OWN = """
from rl.agents.iql import IQLAgent, AdvantageWeightedRegression

class Backwards(AdvantageWeightedRegression):
    def loss(self, drawn):
        loss, metrics = super().loss(drawn)
        return -loss, metrics

class Same(IQLAgent):
    pass

class Mine(IQLAgent):
    def parts(self):
        critic, cloned = super().parts()
        cloned.learner.__class__ = Backwards
        return critic, cloned
"""


def test_an_agent_of_a_users_own_takes_nothing_of_the_librarys(run: Any, kept: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    tiny = ("actor.width=8", "actor.layers=1", "actor.steps=20", "actor.batch=16")
    plain = run("plain", "agent=iql", *tiny)
    mine, same, again = (run(n, f"agent={own}:{kind}", *tiny) for n, kind in (("m", "Mine"), ("s", "Same"), ("a", "Same")))
    assert (reused(mine), reused(same), reused(again)) == (set(), set(), {"critic", "policy"})
    policies = [
        {k: t for k, t in weights(folder).items() if k.startswith("policy/learner.module")} for folder in (plain, mine, same)
    ]
    assert policies[0] and all(torch.equal(tensor, policies[2][name]) for name, tensor in policies[0].items())
    assert not any(torch.equal(tensor, policies[1][name]) for name, tensor in policies[0].items())


def test_a_setting_that_only_a_users_own_agent_knows_counts(recipe: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from rl.agents.iql import IQLAgent, IQLConfig\n"
        "class Config(IQLConfig):\n    weight: float = 1.0\n"
        "class Mine(IQLAgent):\n    Config = Config\n"
    )
    kind = f"agent={own}:Mine"
    one, same, other = (keys(recipe, kind, f"weight={weight}") for weight in (1, 1, 2))
    assert one == same
    assert not set(one.values()) & set(other.values())


def test_iql_and_iql_online_share_what_is_trained_offline(recipe: Path) -> None:
    offline, online = keys(recipe, "agent=iql"), keys(recipe, "agent=iql_online")
    assert offline.keys() == {"critic", "policy"}
    assert online == {**offline, "online": key_of(None)}


ONLINE = (
    "agent=iql_online",
    "actor={width: 16, steps: 10}",
    "online.generator={name: edis, reach: 10, denoiser: {width: 16, blocks: 2, steps: 20, batch: 32}}",
)
OF_GENERATORS = {
    "denoiser.lr=0.01": True,
    "denoiser.width=8": True,
    "denoiser.prediction=sample": True,
    "denoiser.steps=21": True,
    "schedule=vp_linear": True,
    "terminal=computed": True,
    "refresh_steps=7": False,  # all that comes later is of the phase online, which no other run takes
    "samples=9": False,
    "ratio.lr=0.01": False,
    "energy=cep": False,
}


def test_what_an_online_generator_learns_offline_rests_on_the_settings_of_its_model(recipe: Path) -> None:
    before = keys(recipe, *ONLINE)
    assert {*before} == {"critic", "policy", "generator", "online"}
    assert before["online"] == key_of(None)
    for setting, changes in OF_GENERATORS.items():
        found = keys(recipe, *ONLINE, f"online.generator.{setting}")
        assert {name for name in before if found[name] != before[name]} == ({"generator"} if changes else set()), setting
    other = keys(recipe, *ONLINE, "seed=1")
    assert {name for name in before if other[name] != before[name]} == {"critic", "policy", "generator"}


def test_any_change_of_the_training_code_is_noticed(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def forget() -> None:
        for found in (sources._digest, sources._closure):
            found.cache_clear()

    def changed(old: str, new: str) -> dict[str, str]:
        text = file.read_text()
        assert old in text
        edited = tmp_path / file.name
        edited.write_text(text.replace(old, new))
        monkeypatch.setattr(sources, "_file", lambda module: edited if module == "rl.parts.behaviour" else found(module))
        forget()
        sources._read.cache_clear()
        return keys(recipe)

    request.addfinalizer(forget)
    found, before = sources._file, keys(recipe)
    file = found("rl.parts.behaviour")
    assert file is not None
    old = "return batch.action, batch.state"
    assert changed(old, f"{old}  # a comment") == before
    after = changed(old, "return -batch.action, batch.state")
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


def test_what_only_shows_results_is_no_training_code() -> None:
    found = set(sources._closure(CODE.job, CODE.packages))
    assert {
        "rl.parts.behaviour",
        "rl.critics.isql",
        "egd.energies.dps",
        "egd.samplers.heun",
        "rl.online.generators.edis",
    } <= found
    assert not {"egd.report.page", "benchmarks.lab", "egd.experiments.toy2d.model", "rl.deploy.policy"} & found


def test_a_digest_sees_shape_and_type() -> None:
    zeros = [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(6), torch.zeros(2, 3, dtype=torch.int32)]
    digests = [digest_of(array) for array in zeros]
    assert len(set(digests)) == 4
    assert digest_of(torch.zeros(3, 2).T) == digests[0] == digest_of(np.zeros((2, 3), np.float32))


# -- in processes of their own ---------------------------------------------------------------------------------------


def start(recipe: Path, out: Path, store: Path, *extra: str) -> BaseProcess:
    return start_egd("run", recipe, "--out", out, *extra, env={"EGD_STORE": str(store)})


MINE = '''
"""An objective of a user's own."""
from egd.objectives import MSE

class Mine(MSE):
    """{comment}"""
    def targets(self, x0, x, t, c):
        return {factor} * super().targets(x0, x, t, c)
'''


@pytest.mark.slow
def test_an_objective_whose_code_changed_is_trained_anew(egd: Any, recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    found = []
    for i, (comment, factor) in enumerate([("One.", 1), ("Another comment.", 1), ("Another comment.", 2)]):
        path.write_text(MINE.format(comment=comment, factor=factor))
        setting = ("--set", f"variants.literal.energy={path}:Mine")
        assert exit_code(start(recipe, tmp_path / str(i), tmp_path / "store", *setting)) == 0
        found.append(reused(tmp_path / str(i) / RUN))
    assert found == [set(), PHASES, PHASES - {"energy_literal"}]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_what_it_reused(egd: Any, recipe: Path, tmp_path: Path) -> None:
    store, long = tmp_path / "store", ("--set", "energy_network.steps=400")
    assert exit_code(start(recipe, tmp_path / "first", store)) == 0
    reached = tmp_path / "killed" / RUN / "checkpoints" / "energy_literal.safetensors"
    kill_when(start(recipe, tmp_path / "killed", store, *long), reached)
    assert not (tmp_path / "killed" / RUN / "summary.json").exists()
    assert exit_code(start(recipe, tmp_path / "killed", store, *long, "--resume")) == 0
    assert exit_code(start(recipe, tmp_path / "whole", store, *long, "--fresh")) == 0
    assert reused(tmp_path / "killed" / RUN) == {"denoiser", "critic", "calibration"}
    assert_same(tmp_path / "whole" / RUN, tmp_path / "killed" / RUN)


@pytest.mark.parametrize("size", ["much", "nan", "-1", "inf", ""])
def test_a_size_that_is_none_is_refused(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EGD_STORE_GB", size)
    with pytest.raises(UserError, match=f"'{size}' is not a number of gigabytes") as info:
        default_store()
    assert info.value.key == "EGD_STORE_GB"


def test_the_store_is_listed_and_pruned(run: Any, kept: Path, egd: Any) -> None:
    run("first")
    names = {json.loads(path.read_text())["cache_key"]["phase"]: path.stem for path in kept.glob("*.json")}
    total = sum(path.stat().st_size for path in kept.iterdir())
    shown = egd("store", "list").output
    assert all(any(name in line and key in line for line in shown.splitlines()) for name, key in names.items())
    assert "egd/maze2d/umaze-v0" in shown and "aepo" in shown and "of at most 20 GB" in shown
    critic = kept / f"{names['critic']}.safetensors"
    critic.write_bytes(critic.read_bytes()[:-1] + b"?")
    assert f"removed {names['critic']}" in egd("store", "prune", "--damaged").output
    assert {path.stem for path in kept.iterdir()} == set(names.values()) - {names["critic"]}
    for path in kept.glob(f"{names['denoiser']}.*"):
        os.utime(path, (0, 0))
    assert "1 removed" in egd("store", "prune", "--older-than", "30").output
    assert not list(kept.glob(f"{names['denoiser']}.*"))
    assert "0 removed" in egd("store", "prune", "--keep-gb", str(total / 1e9)).output
    assert "2 removed" in egd("store", "prune", "--all").output
    assert list(kept.iterdir()) == []
    refused = egd("store", "prune")
    assert refused.exit_code == 2 and "--keep-gb" in refused.output


@pytest.mark.parametrize("part", ["module", "generator", "notes"])
def test_an_entry_that_does_not_fit_is_said_and_trained_anew(
    egd: Any, recipe: Path, tmp_path: Path, kept: Path, part: str
) -> None:
    """Its digest may be right, if it was forged."""
    assert egd("run", recipe, "--out", tmp_path / "first").exit_code == 0
    (key,) = [p.stem for p in kept.glob("*.json") if json.loads(p.read_text())["cache_key"]["phase"] == "critic"]
    tensors, meta = load_checkpoint(kept / f"{key}.safetensors")
    forged: dict[str, torch.Tensor] = {}
    if part == "generator":
        forged = {"generator": torch.zeros(7, dtype=torch.uint8)}
    elif part == "notes":
        meta["notes"] = [{"step": 1, "score": 10.0}]
    else:
        forged = {k: 2 * t.double() for k, t in tensors.items() if "module" in k and t.dtype == torch.float32}
        assert forged
    save_checkpoint(kept / f"{key}.safetensors", {**tensors, **forged}, meta)
    second = egd("run", recipe, "--out", tmp_path / "second")
    assert second.exit_code == 0 and f"{key}.safetensors does not fit these settings" in second.output, second.output
    assert "phase 'critic' is trained anew" in second.output and "remove it" not in second.output
    assert reused(tmp_path / "second" / RUN) == PHASES - {"critic"}
    assert_same(tmp_path / "first" / RUN, tmp_path / "second" / RUN)


def test_a_critic_that_is_not_a_number_is_said_and_trained_anew(egd: Any, recipe: Path, tmp_path: Path, kept: Path) -> None:
    assert egd("run", recipe, "--out", tmp_path / "first").exit_code == 0
    (key,) = [p.stem for p in kept.glob("*.json") if json.loads(p.read_text())["cache_key"]["phase"] == "critic"]
    tensors, meta = load_checkpoint(kept / f"{key}.safetensors")
    name = next(name for name, tensor in tensors.items() if "module" in name and tensor.is_floating_point())
    save_checkpoint(kept / f"{key}.safetensors", {**tensors, name: tensors[name] * torch.nan}, meta)
    second = egd("run", recipe, "--out", tmp_path / "second")
    assert second.exit_code == 0 and f"{name} is not finite; phase 'critic' is trained anew" in second.output, second.output
    assert reused(tmp_path / "second" / RUN) == PHASES - {"critic"}
    assert_same(tmp_path / "first" / RUN, tmp_path / "second" / RUN)
