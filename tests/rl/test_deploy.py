"""A policy that leaves the laboratory: one graph, fixed batch sizes, files that run without egd."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from egd.cli import main as cli
from egd.energies.support import SupportSamples
from egd.errors import UserError
from egd.runs.summaries import signed
from egd.samplers import ancestral
from rl.cli.export import export
from rl.deploy.module import PolicyModule, load_module
from rl.deploy.policy import Compile, Policy
from rl.parts.action_sampling import GivenNoise
from rl.runs.run import OfflineRun

VARIANTS = """variants:
  best_of_4: {omega: 0, candidates: 4}
  guided_best: {energy: dps, candidates: 3}
  softmax: {energy: dps, candidates: 3, selection: softmax}
  curved: {energy: second_order}
  blended: {energy: ess_blend}
"""
TRAINING = ["denoiser={steps: 600, lr: 0.01}", "checkpoint_every=1000"]  # enough for actions that are not all at the bounds
RUN: dict[str, Path] = {}  # the trained run, made once


@pytest.fixture
def begun(egd: Any, recipe: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with a policy of every kind, killed after its training."""

    def killed(*_: Any) -> None:
        raise UserError("killed")

    if "export" not in {command.name for command in cli.app.registered_commands}:
        cli.app.command("export")(export)
    if not RUN:
        out = tmp_path_factory.mktemp("deploy")
        recipe.write_text(recipe.read_text().replace("variants:\n", VARIANTS))
        with monkeypatch.context() as patch:
            patch.setattr(OfflineRun, "finish", killed)
            result = egd("run", recipe, "--out", out, *(word for setting in TRAINING for word in ("--set", setting)))
        assert "killed" in result.output
        RUN["folder"] = out / "egd-maze2d-umaze-v0" / "seed-0"
    return RUN["folder"]


@pytest.fixture
def run(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with a summary, which makes it complete."""
    if "complete" not in RUN:
        RUN["complete"] = Path(shutil.copytree(begun, tmp_path_factory.mktemp("deploy") / "seed-0"))
        summary = {"task": "egd/maze2d/umaze-v0", "seed": 0, "method": "aepo", "policies": {}, "headline": "guided@1"}
        (RUN["complete"] / "summary.json").write_text(json.dumps(signed(summary)))
    return RUN["complete"]


def observations(module: PolicyModule, n: int) -> torch.Tensor:
    """Some of the data's, in the environment's units."""
    data = module.agent.data
    return data.transitions.state[:n] * data.state_std + data.state_mean


def eagerly(module: PolicyModule, observation: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The policy as evaluations run it."""
    act = module.agent.policy(module.policy, [module.omega], GivenNoise(noise))
    return act(module.agent.data.standardise(observation), torch.zeros(len(observation), dtype=torch.long)).detach()


@pytest.mark.parametrize(
    ("policy_name", "draws"),
    [
        pytest.param("guided", 5, marks=pytest.mark.slow),
        ("literal", 1),
        ("behaviour", 1),
        ("best_of_4", 4),
        ("guided_best", 3),
        pytest.param("curved", 1, marks=pytest.mark.slow),
        pytest.param("blended", 1025, marks=pytest.mark.slow),
    ],
)
def test_a_loaded_policy_acts_as_in_evaluations(run: Path, policy_name: str, draws: int) -> None:
    module = load_module(run, policy_name)
    assert module.draws == draws
    policy = Policy(module)
    observation, noise = observations(module, 10), policy.noise(10)
    data = module.agent.data
    expected = eagerly(module, observation, noise).clamp(data.action_low, data.action_high)
    torch.testing.assert_close(policy(observation, noise), expected, atol=1e-5, rtol=1e-5)
    assert (expected.abs() < 0.9).float().mean() > 0.2


def test_given_noise_is_what_a_generator_would_have_drawn(run: Path) -> None:
    module = load_module(run, "literal")
    observation = observations(module, 6)
    act = module.agent.policy("literal", [1.0], torch.Generator().manual_seed(4))
    drawn = act(module.agent.data.standardise(observation), torch.zeros(6, dtype=torch.long)).detach()
    noise = torch.randn(6, 1, 2, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(eagerly(module, observation, noise), drawn)


@pytest.mark.parametrize("n", [3, pytest.param(1003, marks=pytest.mark.slow)])
def test_batches_that_are_filled_up_or_cut_give_the_same_actions(run: Path, n: int) -> None:
    policy = Policy(load_module(run))
    observation, noise = observations(policy.module, n), policy.noise(n)
    exact = policy.module.graph(n)(observation, noise)
    torch.testing.assert_close(policy(observation, noise), exact, atol=1e-5, rtol=1e-5)


def test_a_policy_gives_back_what_it_was_given(run: Path) -> None:
    policy = Policy.load(run, "behaviour", seed=5)
    batch = observations(policy.module, 2)
    for kind in (batch, batch.double(), batch.numpy(), batch.double().numpy()):
        one, both = policy(kind[0]), policy(kind)
        assert type(one) is type(both) is type(kind)
        assert one.shape == (2,) and both.shape == (2, 2)
        assert str(one.dtype).endswith("float32")
    again = [Policy.load(run, "behaviour", seed=seed)(batch) for seed in (5, 5, 6)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])
    with pytest.raises(ValueError, match=r"\(N, 4\), got \(2, 3\)"):
        policy(batch[:, :3])


def test_a_warm_policy_traces_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy.load(run, "behaviour", batch=10)
    monkeypatch.setattr(PolicyModule, "graph", lambda *_: pytest.fail("traced in the control loop"))
    policy(observations(policy.module, 7))
    with pytest.raises(pytest.fail.Exception):
        policy(observations(policy.module, 1))


@pytest.mark.parametrize("policy_name", ["guided", "literal"])
def test_at_scale_zero_the_energy_is_never_asked(run: Path, policy_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any) -> None:
        raise AssertionError("the energy was asked")

    module, plain = load_module(run, policy_name, 0.0), load_module(run, "behaviour")
    monkeypatch.setattr(SupportSamples, "prepare", asked)
    module.agent.guidance.energies["literal"].fit.model.register_forward_pre_hook(asked)
    assert module.draws == 1
    policy = Policy(module)
    observation, noise = observations(module, 10), policy.noise(10)
    acted = policy(observation, noise)
    if module.agent.config.guidances[policy_name].clip_x0:  # as the behaviour policy is that of the policy 'guided'
        torch.testing.assert_close(acted, Policy(plain)(observation, noise))
    with pytest.raises(AssertionError, match="was asked"):
        PolicyModule(module.agent, policy_name, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("compile", [True, "onnx"])
def test_a_compiled_policy_gives_the_same_actions(run: Path, compile: Compile) -> None:
    if compile == "onnx":
        pytest.importorskip("onnxruntime")
    module = load_module(run)
    plain, compiled = Policy(module), Policy(module, compile=compile)
    observation, noise = observations(module, 1), plain.noise(1)
    torch.testing.assert_close(compiled(observation, noise), plain(observation, noise), atol=1e-4, rtol=1e-4)


def test_a_compiler_that_does_not_exist_is_named(run: Path) -> None:
    with pytest.raises(UserError, match=r"'onx'.*'onnx'"):
        Policy(load_module(run), compile="onx")  # type: ignore[arg-type]


def test_without_a_compiler_the_graph_is_run_and_it_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> None:
            raise RuntimeError("no working C++ compiler\nmore")

        return call

    module = load_module(run, "behaviour")
    monkeypatch.setattr(torch, "compile", broken)
    policy = Policy(module, compile=True)
    with pytest.warns(UserWarning, match="no working C"):
        policy.warm_up(1)
    observation, noise = observations(module, 1), policy.noise(1)
    torch.testing.assert_close(policy(observation, noise), Policy(module)(observation, noise))


ALONE = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("egd", "rl"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Gone())
for name in ("egd", "rl"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit("the package is still there")
import numpy as np
given = dict(np.load("given.npz"))
"""
RUNNERS = {
    ".onnx": """
import onnxruntime
session = onnxruntime.InferenceSession("policy.onnx", providers=["CPUExecutionProvider"])
(action,) = session.run(["action"], given)
""",
    ".pt2": """
import torch
action = torch.export.load("policy.pt2").module()(**{k: torch.from_numpy(v) for k, v in given.items()}).numpy()
""",
}


@pytest.mark.parametrize(
    ("policy_name", "batch"),
    [pytest.param("guided", 1, marks=pytest.mark.slow), pytest.param("literal", 2, marks=pytest.mark.slow), ("best_of_4", 2)],
)
@pytest.mark.parametrize("suffix", RUNNERS)
def test_an_exported_policy_runs_without_egd(
    egd: Any, run: Path, tmp_path: Path, suffix: str, policy_name: str, batch: int
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    file = tmp_path / f"policy{suffix}"
    result = egd("export", run, "--to", file, "--policy", policy_name, "--batch", batch)
    assert result.exit_code == 0, result.output
    assert "never pushed" not in result.output  # what is tried at equal noises says nothing
    policy = Policy(load_module(run, policy_name))
    observation, noise = observations(policy.module, batch), policy.noise(batch)
    about = json.loads(file.with_name(file.name + ".json").read_text())
    assert (about["policy"], about["omega"]) == (policy_name, policy.module.omega)
    assert about["inputs"] == {"observation": list(observation.shape), "noise": list(noise.shape)}
    assert about["outputs"] == {"action": [batch, 2]}
    np.savez(tmp_path / "given.npz", observation=observation.numpy(), noise=noise.numpy())
    script = ALONE + RUNNERS[suffix] + "np.save('action.npy', action)"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    np.testing.assert_allclose(np.load(tmp_path / "action.npy"), policy(observation, noise).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "guidd"], ["--policy", "guidd", "'guided'"]),
        (["--policy", "softmax"], ["--policy", "softmax", "selection 'best'"]),
        pytest.param(["--policy", "curved", "--to", "policy.onnx"], ["--to", "curved", "ONNX", ".pt2"], marks=pytest.mark.slow),
        (["--omega", "-1"], ["--omega", "-1"]),
        (["--policy", "behaviour", "--omega", "1"], ["--omega", "behaviour"]),
        (["--to", "policy.pt"], ["--to", "policy.pt", ".pt2", ".onnx"]),
    ],
)
def test_what_cannot_be_exported_is_named_with_its_remedy(
    egd: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = egd("export", run, *(["--to", "policy.pt2"] if "--to" not in arguments else []), *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.glob("policy*")) == []


def test_an_incomplete_run_is_not_exported(egd: Any, begun: Path, tmp_path: Path) -> None:
    nothing, images = tmp_path / "nothing", tmp_path / "images"
    images.mkdir()
    (images / "config.yaml").write_text("experiment: images\n")
    for folder, word in {begun: "--resume", nothing: "config.yaml", images: "'images'"}.items():
        result = egd("export", folder, "--to", tmp_path / "policy.pt2")
        assert result.exit_code == 2
        assert word in result.output
        assert not (tmp_path / "policy.pt2").exists()


def test_onnx_says_what_to_install(egd: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = egd("export", run, "--to", tmp_path / "policy.onnx")
    assert result.exit_code == 2
    said = " ".join(result.output.split())
    assert "pip install onnx" in said and "write a .pt2" in said


def test_a_sampler_that_draws_is_refused(run: Path) -> None:
    agent = load_module(run, "behaviour").agent
    agent.behaviour.sampler = replace(agent.behaviour.sampler, sampler=ancestral)
    with pytest.raises(UserError, match="draws random numbers"):
        PolicyModule(agent, "behaviour")
