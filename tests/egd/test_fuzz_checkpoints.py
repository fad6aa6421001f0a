"""Checkpoints of any content, by hypothesis: what loads is what was written or fits the learner, all else is refused by name.

``EGD_FUZZ=1000 pytest tests/egd/test_fuzz_checkpoints.py`` tries so many of each kind.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from egd.checkpoint import Damaged, load_checkpoint, save_checkpoint
from egd.errors import UserError
from egd.runs.folder import RunFolder
from egd.runs.phase import Phase
from egd.runs.phase_files import load_phase, settle
from egd.runs.restoring import load_trained
from tests.egd.test_phases import STEPS, learner, opened, run

fuzz = settings(
    max_examples=int(os.environ.get("EGD_FUZZ", "30")),
    derandomize="EGD_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
META = ("step", "seconds", "notes", "rows", "metrics", "settings", "tensors", "counts", "store", "made", "other")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@pytest.fixture
def trained(tmp_path: Path) -> RunFolder:
    """A run of one phase."""
    folder = opened(tmp_path / "trained")
    run(folder, {"one": learner()})
    return folder


@pytest.fixture
def content(trained: RunFolder) -> bytes:
    return trained.checkpoint("one").read_bytes()


@fuzz
@given(data=st.data())
def test_bytes_that_changed_are_noticed(trained: RunFolder, content: bytes, tmp_path: Path, data: st.DataObject) -> None:
    changed = bytearray(content)
    head = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, head + 64) | st.integers(0, len(content)))
        changed[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    path = tmp_path / "changed.safetensors"
    path.write_bytes(changed)
    try:
        tensors, meta = load_checkpoint(path)
    except Damaged as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    same, about = load_checkpoint(trained.checkpoint("one"))
    assert meta == about and tensors.keys() == same.keys() and all(torch.equal(tensors[k], same[k]) for k in same)


@fuzz
@given(
    header=st.dictionaries(st.text(max_size=9), JSON, max_size=4), body=st.binary(max_size=64), size=st.none() | st.integers(0)
)
def test_files_of_that_format_that_are_no_checkpoints_are_named(
    tmp_path: Path, header: dict[str, Any], body: bytes, size: int | None
) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "other.safetensors"
    path.write_bytes((len(text) if size is None else size % 2**64).to_bytes(8, "little") + text + body)
    with pytest.raises(Damaged, match="is not a checkpoint of egd"):
        load_phase(path)


@st.composite
def tensors(draw: st.DrawFn, like: Tensor) -> Tensor:
    """Of another type, another shape, with another number in it, or as it is."""
    shape = draw(st.sampled_from([tuple(like.shape), (), (0,), (1, *like.shape), tuple(like.shape)[::-1], (3,)]))
    made = like.clone() if shape == tuple(like.shape) else torch.zeros(shape, dtype=like.dtype)
    if made.is_floating_point() and made.numel() and draw(st.booleans()):
        made.view(-1)[draw(st.integers(0, made.numel() - 1))] = draw(st.floats(width=32))
    return made.to(draw(st.sampled_from([like.dtype, like.dtype, *DTYPES])))


@fuzz
@given(data=st.data())
def test_what_was_signed_anew_fits_or_is_refused(trained: RunFolder, content: bytes, data: st.DataObject) -> None:
    """Whoever makes a new digest may change numbers, and nothing else."""
    path = trained.checkpoint("one")
    path.write_bytes(content)
    old, meta = load_checkpoint(path)
    new = dict(old)
    for name in data.draw(st.lists(st.sampled_from([*old]), max_size=2)):
        new[name] = data.draw(tensors(old[name]))
    for name in data.draw(st.lists(st.sampled_from([*old]), max_size=1)):
        del new[name]
    if data.draw(st.booleans()):
        new[data.draw(st.sampled_from(["learner.other", "generator", "recent.loss", ""]))] = torch.zeros(2)
    meta["tensors"] = len(new)
    for key in data.draw(st.lists(st.sampled_from(META), max_size=2)):
        meta[key] = data.draw(JSON)
    try:
        save_checkpoint(path, new, meta)
    except ValueError:  # NaN in JSON, which egd does not write
        return
    made = learner()
    try:
        load_trained(Phase("one", STEPS, made), trained, "cpu")
    except UserError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        state, whole = made.state(), learner().state()
        assert all(t.isfinite().all() for t in state.values() if t.is_floating_point())
        assert all(state[k].shape == t.shape and state[k].dtype == t.dtype for k, t in whole.items())
    try:  # and the same of a run that goes on
        settle(trained, lambda text: None)
        run(trained, {"one": learner()})
    except UserError as error:
        assert "one" in str(error)  # noqa: PT017
    finally:
        trained.previous("one").unlink(missing_ok=True)
