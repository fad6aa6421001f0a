"""One process at a time in a run folder; what the dead have locked is free."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from egd.errors import UserError
from egd.runs.folder import RunFolder
from egd.runs.locks import locked

HOLD = """
import sys, time
from pathlib import Path
from egd.runs.locks import locked
with locked(Path(sys.argv[1]), "it", "--out"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_is_succeeded(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    lock = folder.path / ".lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=rf"run is in use by process {other.pid} on .*for 0 minutes") as info, folder.lock():
        pytest.fail("both hold it")
    assert info.value.key == "--out"
    other.kill()
    other.wait()
    assert lock.exists()
    with folder.lock():
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()


def test_another_lock_on_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, "it", "key"), pytest.raises(UserError, match="it is in use by process"), locked(path, "it", "key"):
        pytest.fail("both hold it")
    with locked(path, "it", "key"):
        pass


def test_a_lock_of_another_host_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": time.time() - 3 * 3600}))
    with pytest.raises(UserError, match=r"process 7 on elsewhere, for 3\.0 hours.*remove .*lock"), locked(path, "it", "key"):
        pytest.fail("held")
    path.write_text("half a no")
    with locked(path, "it", "key"):
        pass


def test_a_complete_run_is_shown_also_where_nothing_can_be_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_summary({"score": 1})
    with folder.lock(), folder.lock():
        assert not (tmp_path / ".lock").exists()


def test_the_lock_of_a_process_killed_at_its_very_end_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_summary({"score": 1})
    (tmp_path / ".lock").write_text("{}")
    with folder.lock():
        assert not (tmp_path / ".lock").exists()
