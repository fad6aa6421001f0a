"""Figures look the same whatever settings of matplotlib lie where a command runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from egd.drawing import mpl
from egd.experiments.images.figure import grid_figure
from egd.experiments.toy2d.data import DATA_SETS
from egd.experiments.toy2d.figure import samples_figure

pytestmark = pytest.mark.pictures
STRANGE: Any = {"figure.facecolor": "red", "savefig.facecolor": "red", "font.size": 30.0, "savefig.bbox": "tight"}


def draw(folder: Path) -> list[bytes]:
    """Pictures by two of the experiments."""
    folder.mkdir()
    torch.manual_seed(0)
    samples_figure(DATA_SETS["moons"], {"dps": {1.0: torch.randn(50, 2)}}, folder / "a.png")
    grid_figure({"zero": {"dps": torch.zeros(4, 1, 8, 8)}}, folder / "b.png", 4)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def test_figures_do_not_depend_on_settings(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    plain = draw(tmp_path / "plain")
    with mpl.rc_context(STRANGE):
        assert draw(tmp_path / "strange") == plain
    assert dict(mpl.rcParams) == before, "nor do those of the user change"


@pytest.mark.parametrize("content", [b"savefig.facecolor: red\n", b"\xff\xfe no text"])
def test_a_strangers_matplotlibrc_is_not_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "matplotlibrc").write_bytes(content)
    program = "from egd.drawing import mpl; import os; print(mpl.rcParams['savefig.facecolor'], os.getcwd())"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["auto", str(tmp_path)], "")


@pytest.mark.parametrize("package", ["egd", "rl"])
def test_all_figures_are_drawn_so(package: str) -> None:
    for path in Path(package).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "drawing.py":
            assert not re.search(r"^\s*(from|import) matplotlib\b", text, re.MULTILINE), path
        assert "savefig(" not in text or re.search(r"\bplain\(", text), path
