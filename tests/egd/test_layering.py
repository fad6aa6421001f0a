"""egd knows of nothing but tensors."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import egd

HERE = Path(egd.__file__).parent
STRANGERS = ("rl", "gymnasium", "minari", "diffusers", "mujoco", "h5py")
ON_USE = {"pipelines/guided.py": {"diffusers"}, "experiments/images/unet.py": {"diffusers"}}  # once they are used
TOUCH = """
import sys
import egd
for name in egd.__all__:
    if name != "EnergyGuidedPipeline":
        getattr(egd, name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize("path", sorted(HERE.rglob("*.py")), ids=lambda p: str(p.relative_to(HERE)))
def test_no_file_of_egd_imports_a_domain(path: Path) -> None:
    strangers = set(STRANGERS) - ON_USE.get(path.relative_to(HERE).as_posix(), set())
    assert not re.search(rf"^\s*(from|import) ({'|'.join(strangers)})\b", path.read_text(), re.MULTILINE)


def test_using_all_of_egd_loads_no_domain() -> None:
    done = subprocess.run([sys.executable, "-c", TOUCH], capture_output=True, text=True, check=True, cwd=HERE.parent)
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert not loaded & set(STRANGERS)


def test_importing_egd_alone_does_not_wait_for_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, egd; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE.parent,
    )
    assert done.stdout.strip() == "False"


def test_every_public_name_has_a_docstring() -> None:
    assert len(egd.__all__) < 60
    for name in egd.__all__:
        value = getattr(egd, name)
        assert inspect.getdoc(value) or not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value))
    with pytest.raises(AttributeError, match="No egd attribute Nonsense"):
        _ = egd.Nonsense  # type: ignore[attr-defined]
