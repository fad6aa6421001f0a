"""Where nothing more can be written, commands end on one screen; nothing half-made stays, and what was there is whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from egd.cli.terminal import user_errors
from egd.errors import UserError, of_the_system
from egd.files import replacing, write_atomic
from egd.runs.folder import RunFolder
from egd.runs.locks import locked
from egd.runs.phase_files import settle
from tests.egd.test_phases import learner, opened, run, weights


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Fills the disk, as it seems to what is written from then on."""

    def fsync(number: int) -> None:
        os.ftruncate(number, 3)  # what there was room for
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(os, "fsync", fsync)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path: Path, full: Callable[[], None]) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, b"old")
    full()
    with pytest.raises(OSError, match="No space") as info:
        write_atomic(path, b"new")
    assert info.value.filename == str(path)
    assert contents(tmp_path) == {path: b"old"}


def test_checkpoints_outlive_a_full_disk(tmp_path: Path, full: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, folder = opened(tmp_path / "whole"), opened(tmp_path / "full")
    run(whole, {"one": learner()})
    dying = learner()
    update = dying.update

    def filling(generator: Any) -> Any:
        if dying.updates == 12:
            full()
        return update(generator)

    dying.update = filling  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space"):
        run(folder, {"one": dying})
    assert {path.name for path in contents(folder.path)} == {"config.yaml", "metrics.jsonl", "one.safetensors"}
    monkeypatch.undo()
    said: list[str] = []
    settle(folder, said.append)
    run(folder, {"one": learner()})
    assert said == []
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
    assert all((tensor == weights(whole, "one")[name]).all() for name, tensor in weights(folder, "one").items())


def test_half_a_row_of_metrics_is_taken_back(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    folder = RunFolder(tmp_path)
    folder.log({"step": 1})
    before, limits = folder.metrics.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            folder.log({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert folder.metrics.read_bytes() == before


def test_a_lock_that_cannot_be_written_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(number: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space"), locked(tmp_path / ".lock", "a run", "--out"):
        pytest.fail("the lock is not held")
    assert contents(tmp_path) == {}


def test_a_pipe_or_a_folder_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="no file that could be replaced"):
            write_atomic(tmp_path / name, b"text")
    assert (tmp_path / "pipe").is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "folder"}


def test_a_name_that_is_too_long_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long") as info, replacing(tmp_path / ("a" * 260 + ".png")) as scratch:
        scratch.write_bytes(b"picture")
    assert "choose a shorter name" in str(of_the_system(info.value))
    assert contents(tmp_path) == {}
    longest = tmp_path / ("a" * 251 + ".png")
    write_atomic(longest, b"picture")
    assert contents(tmp_path) == {longest: b"picture"}


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EROFS, "can be written"),
        (errno.EACCES, "can be written"),
        (errno.EISDIR, "another"),
    ],
)
def test_the_systems_refusals_are_one_screen(number: int, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as info, user_errors():
        raise OSError(number, os.strerror(number), "/runs/a")
    assert info.value.exit_code == 2
    with pytest.raises(UserError, match=rf"/runs/a: {os.strerror(number)}; .*{remedy}"):
        raise of_the_system(OSError(number, os.strerror(number), "/runs/a"))


def test_errors_that_are_not_about_files_stay_what_they_are() -> None:
    with pytest.raises(ConnectionError), user_errors():
        raise ConnectionError("no route to host")
