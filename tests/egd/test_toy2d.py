"""2-D data sets: the data, their energies, exact samples of the target, and the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from egd.cli import main as cli
from egd.experiments.toy2d import DATA_SETS, DataSet, Draws, find_data_set
from egd.experiments.toy2d.figure import samples_figure
from tests.processes import exit_code, start_egd

NAMES = sorted(DATA_SETS)
RECIPE = """
experiment: toy2d
tasks: [moons, rings]
denoiser: {width: 16, blocks: 1, steps: 30, batch: 32}
calibration: {samples: 64, grid: 4}
energy_network: {width: 16, layers: 1, steps: 20, batch: 32}
estimators:
  dps: dps
  support_samples: {name: support_samples, samples: 50}
  learned: mse
  efm: {name: energy_weights, clip: 5.0}
betas: [0, 3]
sampler: {steps: 3}
evaluation: {samples: 50, reference: 200, draws: 2000, projections: 8}
checkpoint_every: 10
log_every: 10
budgets: {longer: {denoiser: {steps: 40}}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def egd(monkeypatch: pytest.MonkeyPatch) -> Any:
    from typer.testing import CliRunner

    monkeypatch.setattr(cli.console, "width", 200)
    monkeypatch.setattr(cli.errors, "width", 200)
    return lambda *arguments: CliRunner().invoke(cli.app, [str(a) for a in arguments])


# -- data and energies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_data_fill_the_square_and_their_energy_is_their_label(name: str, generator: torch.Generator) -> None:
    data = DATA_SETS[name]
    x, labels = data.draw(4000, generator)
    assert x.shape == (4000, 2) and labels.shape == (4000,)
    assert 2.5 < float(x.abs().max()) < 4.5
    assert float(x.mean(0).abs().max()) < 0.5
    off = (data.energy(x, None) - labels).abs()
    assert float(off.quantile(0.9)) < 0.1
    assert float(off.mean()) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_energies_are_smooth_everywhere(name: str, generator: torch.Generator) -> None:
    x = torch.cat([torch.zeros(1, 2), 9 * torch.rand(20, 2, generator=generator) - 4.5]).double().requires_grad_()
    energy = DATA_SETS[name].energy
    assert torch.autograd.gradcheck(lambda x: energy(x, None), x)
    assert torch.autograd.gradgradcheck(lambda x: energy(x, None), x)


@pytest.mark.parametrize("name", ["8gaussians", "moons"])
def test_soft_labels_are_conditional_expectations(name: str, generator: torch.Generator) -> None:
    """E[(label - E(x)) f(x)] = 0 for every f, where the kernel's width is the noise's."""
    data = DATA_SETS[name]
    x, labels = data.draw(100_000, generator)
    energy = data.energy(x, None)
    error, close = labels - energy, (energy - 0.5).abs() < 0.45  # close: where labels overlap
    for f in (torch.ones_like(error), x[:, 0], x[:, 1], close.to(error)):
        assert abs(float((error * f).mean())) < 4 * float((error * f).std()) / len(x) ** 0.5 + 2e-5


def test_what_is_wanted_is_as_cep_has_it() -> None:
    for name, wanted, unwanted in (
        ("8gaussians", [2.0, 2.0], [0.0, 2.83]),
        ("2spirals", [0.1, 0.0], [0.0, 3.0]),
        ("checkerboard", [1.0, 1.0], [3.0, 1.0]),
        ("moons", [1.0, -1.2], [-1.0, 1.8]),
        ("rings", [0.0, 1.5], [0.0, 0.75]),
        ("swissroll", [3.0, 0.0], [0.0, 1.0]),
    ):
        good, bad = DATA_SETS[name].energy(torch.tensor([wanted, unwanted]), None)
        assert float(good) < 0.1 and float(bad) > 0.8, name


# -- exact samples ---------------------------------------------------------------------------------------------------


def test_draws_of_a_gaussian_with_a_linear_energy_are_the_shifted_gaussian(generator: torch.Generator) -> None:
    """q = N(0, I), E = x_1: the target is N(-beta e_1, I), and ESS / n -> exp(-beta^2)."""

    def draw(n: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 2, generator=g)
        return x, x[:, 0]

    draws = Draws.of(DataSet("gaussian", draw, lambda x, c: x[:, 0]), 400_000, generator)
    x = draws.resample(0.8, 20_000, generator)
    torch.testing.assert_close(x.mean(0), torch.tensor([-0.8, 0.0]), atol=0.03, rtol=0)
    torch.testing.assert_close(x.T.cov(), torch.eye(2), atol=0.05, rtol=0)
    assert draws.mean_energy(0.8) == pytest.approx(-0.8, abs=0.02)
    assert draws.ess(0.8) / 400_000 == pytest.approx(torch.tensor(-0.64).exp().item(), abs=0.02)
    assert draws.ess(0.0) == pytest.approx(400_000)


# -- recipe ----------------------------------------------------------------------------------------------------------


def summary(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return result


def comparable(run: Path) -> Any:
    return {n: {b: (r["w2"], r["energy"]) for b, r in d.items()} for n, d in summary(run)["results"].items()}


@pytest.mark.pictures
def test_a_run_leaves_figure_table_and_summary(egd: Any, recipe: Path, tmp_path: Path) -> None:
    result = egd("run", recipe, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for task in ("moons", "rings"):
        run = tmp_path / "out" / task / "seed-0"
        results = summary(run)["results"]
        assert list(results) == ["exact", "unguided", "dps", "support_samples", "learned", "efm"]
        assert results["dps"]["0"]["w2"] == results["unguided"]["0"]["w2"]  # beta = 0: no guidance
        assert results["dps"]["3"]["w2"] != results["unguided"]["3"]["w2"]
        assert results["exact"]["3"]["w2"] < results["unguided"]["3"]["w2"]
        assert summary(run)["ess"]["3"] < summary(run)["ess"]["0"] == pytest.approx(2000)
        assert (run / "figures" / "samples.png").stat().st_size > 1000
        trained = {"denoiser", "calibration", "energy_learned_beta3", "denoiser_efm_beta3"}
        assert {p.stem for p in (run / "checkpoints").iterdir()} == trained
    row = next(line for line in result.output.splitlines() if "support_samples" in line)
    first = summary(tmp_path / "out" / "moons" / "seed-0")["results"]["support_samples"]["3"]
    assert f"{first['w2']:.3f} ({first['energy']:.2f})" in row


def test_a_run_goes_on_where_it_was_and_its_config_repeats_it(egd: Any, recipe: Path, tmp_path: Path) -> None:
    arguments = ["run", recipe, "--task", "moons", "--out"]
    assert egd(*arguments, tmp_path / "a").exit_code == 0
    whole = tmp_path / "a" / "moons" / "seed-0"
    before = comparable(whole), load_file(whole / "checkpoints" / "energy_learned_beta3.safetensors")
    assert egd(*arguments, tmp_path / "a").exit_code == 2  # never overwritten
    for name in ("summary.json", "checkpoints/energy_learned_beta3.safetensors"):
        (whole / name).unlink()
    resumed = egd(*arguments, tmp_path / "a", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert comparable(whole) == before[0]
    after = load_file(whole / "checkpoints" / "energy_learned_beta3.safetensors")
    assert all(torch.equal(t, after[k]) for k, t in before[1].items())
    repeat = egd("run", whole / "config.yaml", "--out", tmp_path / "b")
    assert repeat.exit_code == 0, repeat.output
    assert comparable(tmp_path / "b" / "moons" / "seed-0") == before[0]


@pytest.mark.slow
def test_a_denoiser_of_the_weighted_data_finds_the_target_unguided(egd: Any, recipe: Path, tmp_path: Path) -> None:
    longer = ["-s", "denoiser.steps=800", "-s", "denoiser.width=32", "-s", "denoiser.batch=128", "-s", "evaluation.samples=500"]
    few = ["-s", "estimators.learned=null", "-s", "sampler.steps=15", "-t", "moons"]
    assert egd("run", recipe, "--out", tmp_path, *longer, *few).exit_code == 0
    results = summary(tmp_path / "moons" / "seed-0")["results"]
    assert results["efm"]["3"]["w2"] < 0.5 * results["unguided"]["3"]["w2"]
    assert abs(results["efm"]["3"]["energy"] - results["exact"]["3"]["energy"]) < 0.1
    assert results["efm"]["0"]["w2"] == results["unguided"]["0"]["w2"]


def test_eval_samples_again_at_other_scales(egd: Any, recipe: Path, tmp_path: Path) -> None:
    assert egd("run", recipe, "--task", "moons", "--out", tmp_path).exit_code == 0
    run = tmp_path / "moons" / "seed-0"
    result = egd("eval", run, "--omega", "0,1", "--episodes", "50")
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines() if "moons" in line]
    rows = [row for row in rows if len(row) > 2]
    by_omega = {(row[1], row[-1]): row[3] for row in rows}
    assert by_omega["dps", "0"] == by_omega["unguided", "0"]
    assert by_omega["dps", "1"] == next(f"{w:.3f} ({e:.2f})" for w, e in [comparable(run)["dps"]["3"]])


def test_what_was_seen_of_sampling_is_in_the_summary_and_clips_are_said(egd: Any, recipe: Path, tmp_path: Path) -> None:
    sets = (
        "--set",
        "estimators={second_order: second_order, mixture_fit: {name: mixture_fit, samples: 200, components: [1, 2]}}",
    )
    result = egd("run", recipe, "--out", tmp_path, "--task", "moons", *sets, "--set", "betas=[0, 100]")
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "moons" / "seed-0" / "summary.json").read_text())["results"]
    assert all(
        results[name][beta]["off_scale"] == 0 for name in ("unguided", "second_order", "mixture_fit") for beta in ("0", "100")
    )
    assert "off_scale" not in results["exact"]["100"]  # it is drawn, not sampled
    assert (
        0 < results["second_order"]["100"]["clipped"] < 1 and "clipped" not in results["second_order"]["0"]
    )  # beta 0 is unguided
    assert 0 < results["mixture_fit"]["100"]["effective"] <= 1
    assert "second_order at beta 100: an energy curves downwards" in " ".join(result.output.split())


def test_an_estimator_that_breaks_down_or_refuses_costs_no_other(egd: Any, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Broken:\n"
        "    def __init__(self, denoiser): pass\n"
        "    def __call__(self, x, t, c=None):\n"
        "        sign = 1 if len(x) < 9 else -1  # the few rows of the trial are sound\n"
        "        return torch.linalg.cholesky(sign * torch.eye(2)).sum() * x.sum(1)\n"
    )
    few = "estimators.fit={name: mixture_fit, samples: 200, components: [1], points: 1}"  # one draw is no average
    arguments = ["--set", f"estimators.broken='{tmp_path}/mine.py:Broken'", "--set", few, "--task", "moons"]
    result = egd("run", recipe, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    (said,) = [line for line in result.output.splitlines() if "draws" in line]  # one line, of no warning's form
    assert (
        said.startswith("fit at beta 3: of the 1 draws") and "Raise points" in said and "SamplingWarning" not in result.output
    )
    assert "diverged" in result.output and "not finite at beta 3" in result.output
    results = summary(tmp_path / "out" / "moons" / "seed-0")["results"]
    assert results["broken"]["3"]["w2"] is None and results["fit"]["3"]["w2"] is None and results["dps"]["3"]["w2"] is not None


def test_the_recipe_of_the_repository_runs_at_the_smoke_budget(egd: Any, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "toy2d.yaml"
    assert sorted(yaml.safe_load(recipe.read_text())["tasks"]) == NAMES
    smaller = ["--set", "evaluation.draws=2000", "--set", "sampler.steps=2", "--set", "betas=[0,3]"]
    result = egd("run", recipe, "-t", "8gaussians", "-b", "smoke", "--out", tmp_path, *smaller)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "mons"], ["--task", "mons", "moons"]),
        (["--budget", "lnger"], ["--budget", "longer"]),
        (["--set", "denoiser.widht=3"], ["denoiser.widht", "width"]),
        (["--set", "estimators.dps=dsp"], ["estimators.dps", "dsp", "dps"]),
        (["--set", "estimators.support_samples.sample=3"], ["support_samples", "samples"]),
        (["--set", "posterior=residul"], ["posterior", "residual"]),
        (["--set", "rule=rescale"], ["rule", "rescaled"]),
        (["--set", "sampler.name=ddmi"], ["sampler", "ddim"]),
        (["--set", "betas=[-1]"], ["betas", "-1"]),
        (["--set", "estimators.exact=dps"], ["estimators.exact", "a row of its own"]),
        (["--set", "evaluation.draws=0"], ["evaluation.draws"]),
        (["--device", "tpu"], ["--device", "tpu"]),
        (["--set", "{estimators: 3"], ["--set"]),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) else None,
)
def test_bad_input_is_named_with_its_remedy(
    egd: Any, recipe: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    result = egd("run", recipe, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_estimators_set_to_null_are_left_out_and_none_at_all_is_refused(egd: Any, recipe: Path, tmp_path: Path) -> None:
    drop = ["--set", "estimators.learned=null", "--set", "estimators.dps=null", "--task", "rings"]
    assert egd("run", recipe, "--out", tmp_path, *drop).exit_code == 0
    assert set(comparable(tmp_path / "rings" / "seed-0")) == {"exact", "unguided", "support_samples", "efm"}
    nothing = egd(
        "run",
        recipe,
        "--out",
        tmp_path / "none",
        *drop,
        "--set",
        "estimators.support_samples=null",
        "--set",
        "estimators.efm=null",
    )
    assert nothing.exit_code == 2
    assert "estimators" in nothing.output


def test_the_figure_says_how_many_samples_it_cannot_show(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    texts: list[str] = []
    original = Figure.savefig

    def spy(self: Figure, *arguments: Any, **settings: Any) -> None:
        texts.extend(text.get_text() for axis in self.axes for text in axis.texts)
        original(self, *arguments, **settings)

    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 0.0], [torch.nan, 0.0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", spy)
        samples_figure(find_data_set("moons"), {"exact": {0: points[:2]}, "mine": {0: points}}, tmp_path / "f.png")
    assert texts == ["50 % out of sight"]


def test_a_seed_gives_the_same_in_another_process_however_often_it_logs_and_saves(recipe: Path, tmp_path: Path) -> None:
    found = []
    for i, settings in enumerate([("log_every=10", "checkpoint_every=10"), ("log_every=3", "checkpoint_every=7")]):
        chosen = [part for setting in settings for part in ("--set", setting)]
        process = start_egd("run", recipe, "--task", "moons", "--device", "cpu", "--out", tmp_path / str(i), *chosen)
        assert exit_code(process) == 0
        run = tmp_path / str(i) / "moons" / "seed-0"
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        results = {name: {b: r["w2"] for b, r in by_beta.items()} for name, by_beta in summary["results"].items()}
        found.append((results, {path.name: load_file(path) for path in sorted((run / "checkpoints").glob("*.safetensors"))}))
    (results, weights), (again, others) = found
    assert results == again and weights.keys() == others.keys() and len(weights) > 2
    for name, tensors in weights.items():
        assert all(torch.equal(tensor, others[name][key]) for key, tensor in tensors.items() if key.startswith("learner."))


# -- an objective with a network of its own -------------------------------------------------------------------------


def test_an_objective_trains_its_own_network_of_two_outputs(recipe: Path, egd: Any, two_heads: str) -> None:
    tree = yaml.safe_load(recipe.read_text()) | {"estimators": {"mine": two_heads}, "tasks": ["moons"]}
    recipe.write_text(yaml.safe_dump(tree))
    result = egd("run", recipe, "--out", "out", "--device", "cpu")
    assert result.exit_code == 0, result.output
    trained = next(Path("out").rglob("checkpoints/energy_mine_beta3.safetensors"))
    assert any(tuple(tensor.shape) == (2, 64) for tensor in load_file(trained).values())
