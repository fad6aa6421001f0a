"""What a file or a value of YAML may be: each refusal names line and column, and none takes time or memory to find."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from egd.config import yaml_text
from egd.config.base import override, read_yaml
from egd.errors import UserError

BOMB = "\n".join([f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" if i else "a0: &a0 [1, 2, 3]" for i in range(9)])
CHAIN = "\n".join(f"a{i}: &a{i} [*a{i - 1}]" if i else "a0: &a0 [1]" for i in range(200))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 5000, "line 1, column 53: nested more than 50 levels deep"),
        ("a: " + "{b: " * 5000, "nested more than 50 levels deep"),
        (BOMB, "line 6, column 5: aliases expand to more than 50,000 values"),
        (CHAIN, "line 50, column 6: aliases expand to more than 50 levels"),
        ("a: &a [*a]", "line 1, column 8: an alias stands for what it is in"),
        ("a: *b", "line 1, column 4: found undefined alias 'b'"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2, column 11: the key 'c' is given twice"),
        ("1: x", "line 1, column 1: a key must be a name: '1' is no text; write it in quotes"),
        ("[a]: x", "a key must be a name"),
        ("a: !!int x", "line 1, column 4: 'x' is no int"),
        ("a: !!float x", "'x' is no float"),
        ("a: " + "1" * 5000, "is no int"),
        ("a: !!python/name:os.system", "line 1, column 4: could not determine a constructor"),
        ("a: !!binary aGVsbG8=", "could not determine a constructor"),
        ("a: !!set {x}", "could not determine a constructor"),
        ("a: 1\nb: \0", "line 2, column 4: the character 0x0 has no place in text"),
        ("a: 1\n---\nb: 2", "line 2, column 1: but found another document"),
        ("a:\n\t- 1", "line 2, column 1: found character '\\t' that cannot start any token"),
    ],
)
def test_what_is_refused_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UserError) as info:
        yaml_text.parse(text, "r.yaml")
    assert str(info.value).startswith("r.yaml is not valid YAML")
    assert message in str(info.value) and len(str(info.value)) < 200


def test_many_values_are_refused_before_all_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "NODES", 100)
    with pytest.raises(UserError, match=r"line 1, column [0-9]{3}: more than 100 values"):
        yaml_text.parse("a: [" + "1," * 1000 + "]", "r.yaml")


def test_merge_keys_and_aliases_work_and_a_date_is_text() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\nd: 2001-99-99"
    a = {"x": 1, "y": 2}
    assert yaml_text.parse(text, "r.yaml") == {"a": a, "b": {"x": 1, "y": 3}, "c": [a, a], "d": "2001-99-99"}


def test_a_mark_of_utf8_is_no_character(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfa: \xc3\xa4")
    assert read_yaml(tmp_path / "r.yaml") == {"a": "ä"}


def test_only_small_regular_files_of_utf8_are_read(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"a: 1\n" + b"#" * yaml_text.BYTES)
    (tmp_path / "utf16.yaml").write_bytes("a: 1".encode("utf-16"))
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    wrong = {"large": "more than 1,000,000 bytes", "utf16": "not UTF-8", "folder": "a folder", "pipe": "a pipe"}
    for name, message in wrong.items():
        with pytest.raises(UserError, match=message):
            read_yaml(tmp_path / f"{name}.yaml")
    with pytest.raises(UserError, match="a device"):
        read_yaml(Path("/dev/zero"))


@pytest.mark.parametrize("value", ["[" * 5000, "{a: 1, a: 2}", "!!int x", "1" * 5000, "!!python/name:os.system"])
def test_a_value_of_the_command_line_is_no_way_around(value: str) -> None:
    with pytest.raises(UserError, match="is not valid YAML") as info:
        override({}, [f"a.b={value}"])
    assert info.value.key == "--set" and "a.b" in str(info.value) and len(str(info.value)) < 250
