"""A few of ``tools/hostile_folders.py``: a stranger's run folder names code in every way, under the commands that read it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools import hostile_folders


def test_no_hostile_folder_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINARI_DATASETS_PATH", "EGD_STORE", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back at the end
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(hostile_folders, "NAMES", {"up": "../../escaped"})
    count, failures = hostile_folders.campaign(
        hostile_folders.Place(tmp_path), "eval toy2d", {"toy2d": hostile_folders.RUNS["toy2d"]}
    )
    assert count == 40 and failures == []
