"""What a stranger may put in place of a run's files: nothing is written through it, and reading it ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from egd.checkpoint import Damaged, load_checkpoint
from egd.config.trust import require_trust, trusting
from egd.errors import UserError
from egd.runs.folder import RunFolder
from egd.runs.locks import locked
from egd.runs.summaries import read_metrics, read_summary

MINE = "of the user"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "mine"
    path.parent.mkdir()
    path.write_text(MINE, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "checkpoints", "previous", "figures/samples.png", "pipeline"])
def test_a_run_is_not_written_through_links(tmp_path: Path, victim: Path, name: str) -> None:
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim if "." in name else victim.parent)
    with pytest.raises(UserError, match="neither a file nor a folder"), RunFolder(tmp_path / "run").lock():
        pass
    assert victim.read_text(encoding="utf-8") == MINE and os.listdir(victim.parent) == ["mine"]


def test_a_task_that_is_a_link_leads_nowhere(tmp_path: Path, victim: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "task").symlink_to(victim.parent)
    with pytest.raises(UserError, match="out/task is neither"), RunFolder(out / "task" / "seed-0", out).lock():
        pass
    assert os.listdir(victim.parent) == ["mine"]


def test_out_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    out = tmp_path / "runs"
    out.symlink_to(tmp_path / "large disk")
    folder = RunFolder(out / "task" / "seed-0", out)
    with folder.lock():
        folder.open({"seed": 0}, resume=False)
    assert (tmp_path / "large disk" / "task" / "seed-0" / "config.yaml").exists()


def test_an_evaluation_is_not_noted_through_a_link(tmp_path: Path, victim: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.symlink_to(victim)
    with pytest.raises(UserError, match="is a link, or no file"):
        folder.log({"phase": "eval"})
    assert victim.read_text(encoding="utf-8") == MINE


def test_a_lock_that_is_a_link_is_not_written(tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"), locked(tmp_path / ".lock", "a folder", "--out"):
        pass
    assert victim.read_text(encoding="utf-8") == MINE


def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    for name in ("summary.json", "metrics.jsonl", "x.safetensors", "code.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    for name in ("summary.json", "endless.json"):
        with pytest.raises(Damaged, match="not a file"):
            read_summary(tmp_path / name, object)  # type: ignore[type-var]
    with pytest.raises(Damaged, match="not a file"):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(Damaged, match="not a file"):
        load_checkpoint(tmp_path / "x.safetensors")
    with trusting(False, tmp_path), pytest.raises(UserError, match="may come from a stranger"):
        require_trust("energy.py:Energy", "energy")


def test_a_note_that_is_nested_too_deep_is_none(tmp_path: Path) -> None:
    (tmp_path / "code.json").write_text("[" * 100_000, encoding="utf-8")
    with trusting(False, tmp_path), pytest.raises(UserError, match="may come from a stranger"):
        require_trust("energy.py:Energy", "energy")
