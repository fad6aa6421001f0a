"""A few of the cases of ``tools/fuzz_data.py``: damaged datasets are refused by name, or read as sound data."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

CASES = 6  # of each of the three kinds of datasets
SEED = 1


@pytest.fixture(scope="module")
def fuzz() -> Any:
    spec = spec_from_file_location("fuzz_data", Path(__file__).parents[2] / "tools/fuzz_data.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["fuzz_data"] = module
    spec.loader.exec_module(module)
    return module


def test_damaged_data_are_named_or_sound(fuzz: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))  # so that it is restored
    fuzz.register()
    base = fuzz.bases(tmp_path / "base")
    cases = [(number, *fuzz.isolated(fuzz.KINDS[number % 3], number, SEED, base)) for number in range(3 * CASES)]
    assert not [case for case in cases if case[1] == "failed"]
    assert {"refused", "same"} <= {case[1] for case in cases}
