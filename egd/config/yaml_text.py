"""YAML as recipes use it: mappings of names, lists, numbers and text, of limited size, without tags for other types."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import ParserError
from yaml.scanner import ScannerError

from egd.errors import UserError

BYTES = 1_000_000  # in a file
NODES = 50_000  # values and keys, counted again at every alias
DEPTH = 50  # levels, including those behind aliases
TAGS = ("null", "bool", "int", "float", "str", "seq", "map")


def read_text(path: Path) -> str:
    """Read a regular file of UTF-8 with at most a megabyte. Raises OSError as usual, and UserError for any other file."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise UserError(f"{path} is {what}, not a file of YAML")
    with path.open("rb") as file:
        data = file.read(BYTES + 1)
    if len(data) > BYTES:
        raise UserError(f"{path} has more than {BYTES:,} bytes, which no recipe needs")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: byte {error.start} is not UTF-8; save it as UTF-8") from None


def parse(text: str, source: str) -> Any:
    """Parse YAML. Raises UserError, with line and column, for text that is not YAML, is too large, or repeats a key."""
    try:
        return yaml.load(text, _Loader)  # a restricted SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {_place_and_problem(error, text)}") from None


def parse_or_text(text: str, source: str) -> Any:
    """Parse a value of the command line as ``parse`` does; a value without the form of YAML is returned as text."""
    try:
        return yaml.load(text, _Loader)
    except (ScannerError, ParserError):
        return text
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {_place_and_problem(error, text)}") from None


def items(text: str, source: str) -> list[str]:
    """Split a text at the commas between YAML values, and return the values as text; [] where it does not have the form of
    YAML. Raises UserError as ``parse``.
    """
    listed = f"[{text}]"
    try:
        root = _Loader(listed).get_single_node()
    except (ScannerError, ParserError):
        return []
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {_place_and_problem(error, text)}") from None
    found = root.value if isinstance(root, SequenceNode) else []
    return [listed[node.start_mark.index : node.end_mark.index] for node in found]


def _place_and_problem(error: yaml.YAMLError, text: str) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark, problem = error.problem_mark or error.context_mark, " ".join(str(error.problem or error.context).split())
        return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark is not None else problem
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        return f"line {line}, column {column}: the character {error.character:#x} has no place in text"
    return str(error)


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses too large documents while it composes them, before anything is expanded."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth, self._count = 0, 0
        self._sizes: dict[int, tuple[int, int]] = {}  # id of a finished node -> its number of values, its levels

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose a node. Raises ConstructorError beyond ``DEPTH`` levels or ``NODES`` nodes."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        alias, mark = isinstance(event, yaml.AliasEvent), event.start_mark
        self._depth, self._count = self._depth + 1, self._count + 1
        if self._depth > DEPTH or self._count > NODES:
            what = f"nested more than {DEPTH} levels deep" if self._depth > DEPTH else f"more than {NODES:,} values"
            raise ConstructorError(None, None, what, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None or id(node) in self._sizes:
            return node
        if alias:
            raise ConstructorError(None, None, "an alias stands for what it is in", mark)
        self._sizes[id(node)] = self._measured(node, mark)
        return node

    def _measured(self, node: Node, mark: yaml.Mark) -> tuple[int, int]:
        parts: list[Node] = []
        if isinstance(node, MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            parts = node.value
        size = 1 + sum(self._sizes[id(part)][0] for part in parts)
        depth = 1 + max((self._sizes[id(part)][1] for part in parts), default=0)
        if size > NODES or depth > DEPTH:
            what = f"more than {NODES:,} values" if size > NODES else f"more than {DEPTH} levels"
            raise ConstructorError(None, None, f"aliases expand to {what}", mark)
        return size, depth

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping. Raises ConstructorError for a repeated key, and for a key that is not text."""
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, MappingNode) else ():
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not (isinstance(key, ScalarNode) and key.tag == "tag:yaml.org,2002:str"):
                shown = f"{key.value!r} is no text; write it in quotes" if isinstance(key, ScalarNode) else "it is no text"
                raise ConstructorError(None, None, f"a key must be a name: {shown}", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"the key '{key.value[:60]}' is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Construct an object. Raises ConstructorError, with its place, for a scalar that is invalid for its type."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"{str(node.value)[:60]!r} is no {kind}", node.start_mark) from None


_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix("tag:yaml.org,2002:") in TAGS
}
_Loader.yaml_implicit_resolvers = {  # dates stay text
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
