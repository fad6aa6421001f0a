from __future__ import annotations

from pathlib import Path

import pytest

from egd.config.base import execution_keys, flatten
from egd.errors import UserError
from egd.experiments.toy2d.config import Toy2dConfig
from egd.runs.folder import RunFolder
from egd.runs.summaries import Common

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


def test_settings_of_the_execution_may_change_and_are_recorded(tmp_path: Path) -> None:
    config = Toy2dConfig.model_validate({"experiment": "toy2d", "task": "moons", "estimators": {"dps": "dps"}})
    folder = RunFolder(tmp_path, execution=execution_keys(config))
    assert folder.execution == {"device", "threads", "checkpoint_minutes"}
    folder.open(config.model_dump(mode="json"), resume=False)
    folder.log({"step": 1})
    moved = config.model_copy(update={"device": "cuda", "threads": 2})
    folder.open(moved.model_dump(mode="json"), resume=True)
    folder.write_summary({"task": "moons", "seed": 0})
    assert RunFolder(tmp_path).read_summary(Common) is not None
    folder.config.write_text(folder.config.read_text().replace("device: cuda", "device: cpu"))
    assert RunFolder(tmp_path).read_summary(Common) is not None
    folder.config.write_text(folder.config.read_text().replace("omega: 1.0", "omega: 2.0"))
    with pytest.raises(UserError, match="of other settings"):
        RunFolder(tmp_path).read_summary(Common)


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
