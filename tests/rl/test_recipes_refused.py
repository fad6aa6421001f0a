"""What a recipe or a command line cannot mean is refused when it is planned, by its key, and costs neither time nor memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from egd.errors import UserError
from egd.runs import experiment as experiments
from egd.runs import resources
from egd.runs.bases import read_recipe
from egd.runs.experiment import Options
from egd.runs.grid import parse_grid, parse_seeds

RECIPES = Path("recipes")


def planned(name: str = "quickstart", *, seeds: str | None = None, grid: tuple[str, ...] = (), **options: Any) -> int:
    """How many jobs; nothing is made."""
    path = RECIPES / f"{name}.yaml"
    tree = read_recipe(path)
    several = {"seeds": parse_seeds(seeds) if seeds else (), "grid": parse_grid(grid)}
    plan = experiments.load(tree.get("experiment"), str(path)).plan
    return len(plan(tree, Options(out=Path("nowhere"), source=str(path), **several, **options)))


def refused(*settings: str, name: str = "quickstart", **options: Any) -> str:
    with pytest.raises(UserError) as info:
        planned(name, settings=settings, **options)
    return f"{info.value.key}: {info.value}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("experiment=toy2d", "--set: 'experiment' cannot be set here; take another recipe"),
        ("task=hopper-medium", "--set: 'task' cannot be set here; use --task"),
        ("tasks={hopper-medium: {}}", "use --task"),
        ("methods.iql.agent=iql", "use --method"),
        ("method=x", "use --method"),
        ("budgets.quick={}", "use --budget"),
        ("default_budget=full", "use --budget"),
        ("description=x", "edit the recipe"),
        ("denoiser.lr=.nan", "--set: denoiser.lr: got nan; input should be a finite number"),
        ("guidance.beta=.inf", "--set: guidance.beta: got inf; input should be a finite number"),
        ("sampler.steps=False", "--set: sampler.steps: got False; input should be a number, not true or false"),
        ("guidance.energy.samples=-5", "--set guidance.energy.samples: -5 does not fit"),
        ("variants={a@1: {omega: 2}}", "'a@1' cannot be the name of a policy: @ parts that from a guidance scale"),
        ("variants={a: 5}", "--set: variants.a: got 5; write"),
        ("data.reward_scale=.nan", "--set: data.reward_scale: got nan"),
        ("guidance=[1]", "--set: guidance: got [1]; input should be a valid dictionary"),
        ("guidance=5", "--set: guidance: got 5"),
    ],
)
def test_a_key_that_cannot_be_set_and_a_value_that_cannot_be_meant_blame_the_option(setting: str, message: str) -> None:
    assert message in refused(setting)


@pytest.mark.parametrize("settings", [("selections={guided: [1]}",), ("selection=5", "selections={a: {}}")])
def test_a_selection_of_another_form_is_named(settings: tuple[str, ...]) -> None:
    assert "input should be a valid dictionary" in refused(
        *settings, name="benchmark", methods=["idql"], tasks=["hopper-medium"]
    )


def test_a_selection_called_as_a_policy_at_a_scale_is_refused() -> None:
    told = refused("selections={a@1: {}}", name="benchmark", methods=["idql"], tasks=["hopper-medium"])
    assert "'a@1' cannot be the name of a policy" in told


def test_constraints_hold_in_settings_that_components_take_from_sections() -> None:
    for setting in ("ratio={width: -5}", "ratio.width=-5", "denoiser.lr=.nan", "sampler.steps=False", "denoiser.steps=1e30"):
        path, key = "online.generator", setting.partition("=")[0]
        told = refused(f"{path}.{setting}", name="edis_gym_mujoco", methods=["iql_edis"], tasks=["hopper-medium"])
        assert told.startswith(f"--set {path}.{key}"), told


def test_a_complaint_about_a_file_does_not_blame_the_option() -> None:
    tree = {**read_recipe(RECIPES / "quickstart.yaml"), "denoiser": {"width": -1}, "critic": {"width": -1}}
    plan = experiments.load("offline_rl", "r.yaml").plan
    with pytest.raises(UserError) as info:
        plan(tree, Options(out=Path("nowhere"), source="r.yaml", settings=["critic.width=-2"]))
    assert info.value.key == "r.yaml"
    assert [line.partition(":")[0] for line in str(info.value).splitlines()] == ["denoiser.width", "--set critic.width"]


def test_a_seed_or_a_device_is_given_once() -> None:
    assert "'seed' cannot be set here" in refused("seed=1", seed=2)
    assert "'seed' cannot be set here" in refused("seed=1", seeds="0-3")
    assert "'device' cannot be set here" in refused("device=cpu", device="cpu")
    assert planned(settings=["seed=1", "device=cpu"]) == 1


@pytest.mark.parametrize("text", ["0-1000000000", "0-10000", "0-4999,10000-19999", "99999999999", "1" * 5000])
def test_seeds_are_counted_before_they_are_listed(text: str) -> None:
    with pytest.raises(UserError) as info:
        parse_seeds(text)
    assert info.value.key == "--seeds" and len(str(info.value)) < 200
    assert parse_seeds("0-9,5,20") == [*range(10), 20]


def test_runs_are_counted_before_they_are_planned() -> None:
    many = ",".join(map(str, range(1, 101)))
    message = refused(grid=(f"guidance.beta={many}", f"denoiser.width={many}"), seeds="0-99")
    assert "100 (--grid guidance.beta) x 100 (--grid denoiser.width) x 100 (--seeds) = 1,000,000 runs" in message
    assert "--grid: guidance.beta: got -3" in refused(grid=("guidance.beta=1,-3",))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("critic={width: 65536, layers: 1000}", ["critic.width, critic.layers", "this machine has 8.0 GB"]),
        ("denoiser={width: 65536}", ["denoiser.width, denoiser.blocks"]),
        ("evaluation={envs: 10000, episodes: 10000}", ["evaluation.envs"]),
        ("guidance.energy.samples=10000000", ["guidance.energy.samples"]),
        ("data.generator.steps=1000000000", ["data.generator.steps"]),
        ("critic={batch: 1000000, width: 4096}", ["critic.batch, critic.width"]),
    ],
)
def test_what_does_not_fit_into_memory_is_refused_with_its_keys(
    setting: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EGD_MEMORY_GB", "8")
    message = refused(setting, budget="full")
    assert "of memory are needed" in message and all(word in message for word in words), message


def test_where_the_memory_is_not_known_nothing_is_refused_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(resources.os, "sysconf")  # Windows
    monkeypatch.setattr(resources, "Path", lambda name: Path("nowhere") if "cgroup" in str(name) else Path(name))
    assert resources.memory_limit() == 2**62
    assert planned() == 1


def test_levels_of_a_temporal_network_double_its_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EGD_MEMORY_GB", "8")
    assert "denoiser.width, denoiser.blocks: 10^" in refused("denoiser.blocks=1000", name="diffuser_pointmaze")


def test_checkpoints_of_many_runs_must_fit_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_free", lambda path: 10**6)
    assert "checkpoints of 3 runs take about" in refused(seeds="0-2")


def test_a_place_without_a_disk_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of /proc the system says that it has 0 bytes, all of them in use; that nothing can be written there is said later."""
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=0))
    resources.check([[{"denoiser": {"width": 64, "blocks": 3, "batch": 1}}]], tmp_path / "x", "recipe.yaml")
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: SimpleNamespace(total=10**6, used=10**6 - 500, free=500))
    with pytest.raises(UserError, match=r"take about 0.2 MB, and 0.5 kB are free"):
        resources.check([[{"denoiser": {"width": 64, "blocks": 3, "batch": 1}}]], tmp_path / "x", "recipe.yaml")


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=str)
def test_every_recipe_fits_a_laptop(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EGD_MEMORY_GB", "8")
    task = next(iter(read_recipe(path)["tasks"]))
    assert planned(path.stem, tasks=[task]) > 0
