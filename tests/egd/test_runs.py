from __future__ import annotations

from pathlib import Path

import pytest

from egd.errors import UserError
from egd.runs.folder import RunFolder
from egd.runs.summaries import flatten

CONFIG = {"seed": 1, "agent": {"energy": {"beta": 3.0}, "omegas": [1, 2]}, "empty": {}}


def test_a_folder_opens_once_unless_it_is_resumed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "task" / "seed-1")
    folder.open(CONFIG, resume=False)
    assert folder.figures.is_dir()
    folder.open({**CONFIG, "seed": 2}, resume=False)  # the first was refused before it trained anything
    folder.open(CONFIG, resume=False)
    folder.log({"step": 1})
    with pytest.raises(UserError, match="holds a run already; add --resume") as info:
        folder.open(CONFIG, resume=False)
    assert info.value.key == "--out"
    folder.open(CONFIG, resume=True)


def test_a_run_with_other_settings_names_what_differs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open(CONFIG, resume=False)
    with pytest.raises(UserError, match=r"agent\.energy\.beta: 3\.0 there, 4\.0 now") as info:
        folder.open({**CONFIG, "agent": {"energy": {"beta": 4.0}, "omegas": [1, 2]}}, resume=True)
    assert info.value.key == "--resume"
    assert "seed" not in str(info.value)


def test_metrics_append(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.metrics_lines() == []
    folder.log({"step": 1})
    folder.log({"step": 2})
    assert folder.metrics_lines() == [b'{"step": 1}\n', b'{"step": 2}\n']
    with folder.metrics.open("ab") as file:
        file.write(b'{"st')  # a power cut
    assert len(folder.metrics_lines()) == 2


def test_a_summary_is_there_only_when_the_run_is_complete(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_summary() is None
    folder.write_summary({"score": 1.5})
    assert folder.read_summary() == {"score": 1.5}


def test_flattening_dots_the_keys_and_keeps_empty_sections() -> None:
    assert flatten(CONFIG) == {"seed": 1, "agent.energy.beta": 3.0, "agent.omegas": [1, 2], "empty": {}}
