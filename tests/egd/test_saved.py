"""What a run keeps is what it was, or is not used: no damage goes unnoticed, no number is made of what is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from egd.checkpoint import Damaged, load_checkpoint, save_checkpoint
from egd.errors import UserError
from egd.runs.folder import RunFolder
from egd.runs.phase import Phase
from egd.runs.phase_files import settle
from egd.runs.phases import run_phase
from egd.runs.restoring import load_trained
from tests.egd.test_phases import STEPS, learner, opened, quiet, run, weights


@pytest.fixture
def whole(tmp_path: Path) -> RunFolder:
    """A run of two phases, never interrupted."""
    folder = opened(tmp_path / "whole")
    run(folder, {"first": learner(), "second": learner()})
    return folder


def go_on(folder: RunFolder) -> list[str]:
    """What is said when the run is resumed."""
    said: list[str] = []
    settle(folder, said.append)
    run(folder, {"first": learner(), "second": learner()})
    return said


def assert_as_trained_at_once(folder: RunFolder, tmp_path: Path) -> None:
    other = opened(tmp_path / "other")
    run(other, {"first": learner(), "second": learner()})
    for name in ("first", "second"):
        one, two = weights(folder, name), weights(other, name)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert sorted(folder.metrics_lines()) == sorted(other.metrics_lines())


def test_any_flipped_byte_of_a_checkpoint_is_noticed(whole: RunFolder) -> None:
    path = whole.checkpoint("first")
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    for at in [*range(0, header + 8, 397), *range(header + 8, len(content), 1999), len(content) - 1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            tensors, meta = load_checkpoint(path)
        except Damaged:
            continue
        path.write_bytes(content)  # a byte that says nothing, such as a space of the header
        same, meta_too = load_checkpoint(path)
        assert meta == meta_too and tensors.keys() == same.keys() and all(torch.equal(tensors[k], same[k]) for k in same)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "a flipped byte": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"?" + path.read_bytes()[-8:]),
    "gone": lambda path: path.unlink(),
    "negative step": lambda path: again(path, meta={"step": -1}),
    "a tensor less": lambda path: again(path, drop="learner.optimiser.0.exp_avg"),
    "a tensor more": lambda path: again(path, tensors={"learner.foreign": torch.zeros(2)}),
}


def again(path: Path, tensors: Any = (), meta: Any = (), drop: str = "") -> None:
    """The same checkpoint with something else in it, signed as if it were right."""
    old, about = load_checkpoint(path)
    save_checkpoint(path, {k: v for k, v in {**old, **dict(tensors)}.items() if k != drop}, {**about, **dict(meta)})


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(whole: RunFolder, kind: str, tmp_path: Path) -> None:
    DAMAGE[kind](whole.checkpoint("first"))
    (said,) = go_on(whole)
    assert "first" in said and "step 21" in said
    assert_as_trained_at_once(whole, tmp_path)


def test_without_a_whole_checkpoint_the_run_is_refused_and_says_what_to_remove(whole: RunFolder) -> None:
    whole.checkpoint("first").write_bytes(b"no")
    whole.previous("first").write_bytes(b"no")
    with pytest.raises(UserError, match=r"no other of phase 'first'.*previous/first\.safetensors removed") as info:
        settle(whole)
    assert info.value.key == "--resume"


WEIGHT = "learner.module.final.weight"

UNFIT = {
    "another shape": {"learner.optimiser.0.exp_avg": torch.zeros(3)},
    "another type": {"learner.optimiser.0.exp_avg": None},
    "of a weight": {WEIGHT: None},
    "generator": {"generator": torch.zeros(7, dtype=torch.uint8)},
    "generator's numbers": {"generator": torch.zeros(5056, dtype=torch.uint8)},
    "not a number": {"learner.optimiser.0.exp_avg": torch.nan},
}


@pytest.mark.parametrize("kind", UNFIT)
def test_tensors_that_do_not_fit_the_learner_are_refused(whole: RunFolder, kind: str) -> None:
    path = whole.checkpoint("second")
    ((name, value),) = UNFIT[kind].items()
    old = load_checkpoint(path)[0]
    name = name if name in old else next(key for key in old if key.startswith("learner.module"))
    new = old[name].half() if value is None else torch.full_like(old[name], value) if value is torch.nan else value
    again(path, {name: new})
    with pytest.raises(UserError, match=r"second\.safetensors (does not fit these settings|is of no use).*; remove it"):
        go_on(whole)


def test_a_step_beyond_the_last_is_refused(whole: RunFolder) -> None:
    again(whole.checkpoint("second"), meta={"step": STEPS + 1})
    with pytest.raises(UserError, match="step 24, and the phase has 23"):
        go_on(whole)


@pytest.mark.parametrize("notes", [[], [{"step": "?"}], [{"step": 7}, {"step": 14}, {"step": 20}], [{"score": 1.0}] * 3])
def test_results_of_a_hook_that_were_not_due_are_refused(whole: RunFolder, notes: list[dict[str, Any]]) -> None:
    again(whole.checkpoint("second"), meta={"notes": notes})
    with pytest.raises(UserError, match=r"it has results of steps .*, and they are due at \[7, 14, 21\]; remove it"):
        go_on(whole)


class Diverging:
    """Learns to be infinite at its second step, while its loss is fine."""

    value = torch.zeros(1)

    def update(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        self.value = self.value + 1
        return {"loss": torch.zeros(())}

    def state(self) -> dict[str, torch.Tensor]:
        return {"weight": self.value / (2 - self.value)}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.value = state["weight"]


def test_a_last_step_that_diverges_is_named_and_never_saved(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with pytest.raises(UserError, match="weight is not finite at step 2; lower the phase's lr") as info:
        run_phase(Phase("late", 2, Diverging()), folder, quiet(), seed=0, device="cpu", checkpoint_every=1, log_every=1)
    assert info.value.key == "late"
    assert load_checkpoint(folder.checkpoint("late"))[1]["step"] == 1


def test_metrics_that_are_not_what_a_checkpoint_knows_are_never_padded(whole: RunFolder) -> None:
    lines = whole.metrics_lines()
    whole.metrics.write_bytes(b"".join(lines[:3]))
    with pytest.raises(UserError, match=r"metrics\.jsonl is not what it was at the checkpoint of phase 'first'"):
        settle(whole)
    assert whole.metrics_lines() == lines[:3]
    whole.metrics.write_bytes(b"".join(lines).replace(b'"loss": 0', b'"loss": 1', 1))
    with pytest.raises(UserError, match="damaged or was edited"):
        settle(whole)
    whole.metrics.unlink()
    said = go_on(whole)
    assert len(said) == 2 and all("lost the rows" in line for line in said)


def test_settings_other_than_those_of_the_checkpoints_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, execution=frozenset({"device"}))
    folder.open({"seed": 3, "lr": 1.0, "device": "cpu"}, resume=False)
    run(folder, {"one": learner()})
    folder.config.write_text(folder.config.read_text().replace("lr: 1.0", "lr: 2.0"))
    edited = folder.config.read_bytes()
    with pytest.raises(UserError, match="made with other settings"):
        folder.open({"seed": 3, "lr": 2.0, "device": "cpu"}, resume=True)
    with pytest.raises(UserError, match="made with other settings"):
        load_trained(Phase("one", STEPS, learner()), folder, "cpu")
    assert folder.config.read_bytes() == edited
    folder.config.unlink()
    with pytest.raises(UserError, match="holds a run already"):
        folder.open({"seed": 3, "lr": 1.0, "device": "cpu"}, resume=False)
    with pytest.raises(UserError, match="made with other settings"):
        folder.open({"seed": 3, "lr": 2.0, "device": "cpu"}, resume=True)
    assert not folder.config.exists()
    folder.open({"seed": 3, "lr": 1.0, "device": "cuda"}, resume=True)  # changes no result
    load_trained(Phase("one", STEPS, learner()), folder, "cpu")


def test_an_unfinished_phase_is_not_taken_for_a_trained_one(whole: RunFolder) -> None:
    again(whole.checkpoint("second"), meta={"step": 21})
    with pytest.raises(UserError, match="of step 21, and the phase has 23; finish it with egd run --resume"):
        load_trained(Phase("second", STEPS, learner()), whole, "cpu")


def test_a_damaged_summary_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_summary({"score": 61.5, "policies": {"a": {"mean": math.nan}}, "pair": (1, 2)})
    assert folder.read_summary() == {
        "score": 61.5,
        "policies": {"a": {"mean": None}},
        "pair": [1, 2],
        "not_finite": ["policies.a.mean"],
    }
    text = folder.summary.read_text()
    json.loads(text, parse_constant=pytest.fail)
    for damaged in (text[:40], text.replace("61.5", "91.5"), "[]", "\x00" * 9):
        folder.summary.write_text(damaged)
        with pytest.raises(Damaged, match=r"summary\.json is damaged.*remove it, and egd run --resume"):
            folder.read_summary()
    folder.summary.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != "digest"}))
    with pytest.raises(Damaged, match=r"summary\.json has no digest.*remove it, and egd run --resume"):
        folder.read_summary()


@pytest.mark.parametrize("other", [{"lr": 2.0}, {"seed": 4}, {"task": "b"}])
def test_a_summary_of_another_run_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    settings = {"task": "a", "seed": 3, "lr": 1.0, "device": "cpu"}
    folders = [RunFolder(tmp_path / str(i), execution=frozenset({"device"})) for i in range(3)]
    for folder, changed in zip(folders, ({}, other, {"device": "cuda"}), strict=True):
        folder.open(settings | changed, resume=False)
        folder.write_summary({"task": folder.path.name, "seed": 3} | settings | changed | {"score": 1.0})
    one, another, elsewhere = folders
    one.summary.write_bytes(elsewhere.summary.read_bytes())
    assert one.read_summary() == elsewhere.read_summary()
    one.summary.write_bytes(another.summary.read_bytes())
    with pytest.raises(Damaged, match=r"0/summary\.json is not of this run"):
        one.read_summary()


def test_a_row_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="guided@1 is not finite") as info:
        RunFolder(tmp_path).log({"phase": "eval", "guided@1": math.inf})
    assert info.value.key == "eval"
    assert not RunFolder(tmp_path).metrics.exists()


def test_what_killed_processes_left_half_written_is_swept_up(whole: RunFolder) -> None:
    for name in (".part-1-0.safetensors", "critic.safetensors.77.part"):
        (whole.checkpoint("first").parent / name).touch()
    settle(whole)
    assert {path.stem for path in whole.checkpoint("first").parent.iterdir()} == {"first", "second"}
