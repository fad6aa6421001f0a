"""The packages are typed for those who use them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

USER = Path(__file__).parent / "typing" / "user.py"


@pytest.mark.slow
def test_a_users_file_is_checked_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path), str(USER)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)  # where only py.typed tells
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_users_file_runs() -> None:
    subprocess.run([sys.executable, str(USER)], check=True, capture_output=True)
