# SPDX-License-Identifier: Apache-2.0
"""YAML as a tree of places and raw text: nothing is guessed, so `22:22`, `0755` and `no` stay what the file says.

Types are the schema's business (`fields`). Repeated keys, tags, aliases that recurse or multiply, and files that are not UTF-8 are refused.
"""

from collections.abc import Callable
from typing import Any

import yaml

from rktd_units.errors import Diagnostic
from rktd_units.sourcefile import MAX_BYTES

MAX_NODES = 50_000
MAX_DEPTH = 64

_Event = Any  # PyYAML makes them in C; its stubs know only what all events share
_NextEvent = Callable[[], _Event]
_PREFIX = "tag:yaml.org,2002:"
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


class Node:
    """One value and where it stands: `line` and `column` count from 1."""

    __slots__ = ("column", "file", "line")
    kind = "a value"

    def __init__(self, file: str, line: int, column: int) -> None:
        self.file = file
        self.line = line
        self.column = column

    @property
    def is_null(self) -> bool:
        return False


class Scalar(Node):
    """Raw text; `plain` is False when it was quoted or a block, hence surely a string."""

    __slots__ = ("plain", "text")
    kind = "a single value"

    def __init__(self, file: str, line: int, column: int, text: str, plain: bool) -> None:
        self.file = file
        self.line = line
        self.column = column
        self.text = text
        self.plain = plain

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _NULLS


class Sequence(Node):
    """A list."""

    __slots__ = ("items",)
    kind = "a list"

    def __init__(self, file: str, line: int, column: int, items: list[Node]) -> None:
        self.file = file
        self.line = line
        self.column = column
        self.items = items


class Mapping(Node):
    """A map: each key with its own node (for its place) and its value, in the file's order."""

    __slots__ = ("entries",)
    kind = "a map"

    def __init__(self, file: str, line: int, column: int, entries: dict[str, tuple[Scalar, Node]]) -> None:
        self.file = file
        self.line = line
        self.column = column
        self.entries = entries

    def get(self, key: str) -> Node | None:
        """The value of `key`, None when it is absent or null."""
        entry = self.entries.get(key)
        return None if entry is None or entry[1].is_null else entry[1]


class _RefusedError(Exception):
    """Ends the reading of a file that is too big or too deep: what else is wrong with it does not matter."""


class _Composer:
    """Builds the tree from PyYAML's events, and not by `yaml.compose`: that recurses in C, and 30,000 brackets crash the interpreter.

    An alias is the anchor's own node once more. Its size counts each time, since whatever walks the tree walks it each time.
    """

    def __init__(self, data: bytes, file: str, *, merge_keys: bool = False) -> None:
        self.file = file
        self.merge_keys = merge_keys
        self.faults: list[Diagnostic] = []
        self.documents: list[Node] = []
        self.next_event: _NextEvent = yaml.CSafeLoader(data).get_event
        self.nodes = 0
        self.depth = 0
        self.anchors: dict[str, tuple[Node, int] | None] = {}  # node and its size; None while it is open

    def read_documents(self) -> None:
        while True:
            event = self.next_event()
            kind = type(event)
            if kind is yaml.StreamEndEvent:
                return
            if kind is yaml.DocumentStartEvent:
                self.anchors = {}
                node = self.build(self.next_event())
                if not node.is_null:
                    self.documents.append(node)

    def fault(self, event: _Event | Node, message: str, hint: str = "") -> None:
        if isinstance(event, Node):
            line, column = event.line, event.column
        else:
            line, column = event.start_mark.line + 1, event.start_mark.column + 1
        self.faults.append(Diagnostic(self.file, line, column, "", message, hint))

    def build(self, event: _Event) -> Node:
        kind, mark = type(event), event.start_mark
        if kind is yaml.AliasEvent:
            return self.resolve(event)
        before = self.nodes
        self.spend(event, 1)
        if event.tag is not None:
            self.fault(event, f"tags are not supported, got '{event.tag.replace(_PREFIX, '!!')}'")
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        node: Node
        if kind is yaml.ScalarEvent:
            node = Scalar(self.file, mark.line + 1, mark.column + 1, event.value, not event.style)
        else:
            self.depth += 1
            if self.depth > MAX_DEPTH:
                self.fault(event, f"is nested more than {MAX_DEPTH} levels deep")
                raise _RefusedError
            node = self.build_sequence(mark) if kind is yaml.SequenceStartEvent else self.build_mapping(mark)
            self.depth -= 1
        if event.anchor is not None:
            self.anchors[event.anchor] = (node, self.nodes - before)
        return node

    def build_sequence(self, mark: _Event) -> Sequence:
        items: list[Node] = []
        while type(event := self.next_event()) is not yaml.SequenceEndEvent:
            items.append(self.build(event))
        return Sequence(self.file, mark.line + 1, mark.column + 1, items)

    def build_mapping(self, mark: _Event) -> Mapping:
        entries: dict[str, tuple[Scalar, Node]] = {}
        merged: list[tuple[Scalar, Node]] = []
        while type(event := self.next_event()) is not yaml.MappingEndEvent:
            key, value = self.build(event), self.build(self.next_event())
            if not isinstance(key, Scalar):
                self.fault(key, f"a key must be text, got {key.kind}")
            elif key.plain and key.text == "<<" and self.merge_keys:
                merged.append((key, value))
            elif key.plain and key.text == "<<":
                self.fault(key, "merge keys ('<<') are not supported", "write the values out")
            elif key.text in entries:
                self.fault(key, f"the key '{key.text}' is repeated, first in line {entries[key.text][0].line}")
            else:
                entries[key.text] = (key, value)
        for key, value in merged:
            for source in value.items if isinstance(value, Sequence) else [value]:
                if isinstance(source, Mapping):
                    entries = {**source.entries, **entries}
                else:
                    self.fault(key, f"must be a map to merge, got {source.kind}")
        return Mapping(self.file, mark.line + 1, mark.column + 1, entries)

    def resolve(self, event: _Event) -> Node:
        """The node of an alias."""
        found = self.anchors.get(event.anchor)
        if found is None:
            self.fault(event, f"the anchor '{event.anchor}' {'refers to itself' if event.anchor in self.anchors else 'is not defined'}")
            raise _RefusedError
        node, size = found
        self.spend(event, size)
        return node

    def spend(self, event: _Event, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            self.fault(event, f"has more than {MAX_NODES} values (an alias counts as all that it stands for)")
            raise _RefusedError


def parse_yaml(data: bytes, file: str, *, merge_keys: bool = False) -> tuple[tuple[Node, ...], tuple[Diagnostic, ...]]:
    """The documents of one file, without the empty ones, and all faults. With faults the documents are still what could be read.

    `merge_keys`: `<<` brings in the keys of another map, for files of others; pod files have none.
    """
    if len(data) > MAX_BYTES:
        return (), (Diagnostic(file, 0, 0, "", f"is larger than {MAX_BYTES >> 20} MiB"),)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _position(data[: error.start])
        return (), (Diagnostic(file, line, column, "", f"is not UTF-8, got byte 0x{data[error.start]:02x}", "save the file as UTF-8"),)
    composer = _Composer(data, file, merge_keys=merge_keys)
    try:
        composer.read_documents()
    except _RefusedError:
        pass
    except yaml.YAMLError as error:
        composer.faults.append(_syntax_error(error, data, file))
    return tuple(composer.documents), tuple(composer.faults)


def _syntax_error(error: yaml.YAMLError, data: bytes, file: str) -> Diagnostic:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark, problem = error.problem_mark, str(error.problem)
        hint = "indent with spaces, not with tabs" if "cannot start any token" in problem and _is_tab(data, mark.line, mark.column) else ""
        context = f" {error.context}" if error.context else ""
        return Diagnostic(file, mark.line + 1, mark.column + 1, "", f"is not YAML: {problem}{context}", hint)
    if isinstance(error, yaml.reader.ReaderError):
        line, column = _position(data[: error.position])
        return Diagnostic(file, line, column, "", f"is not YAML: the character U+{int(error.character):04X} is not allowed")
    return Diagnostic(file, 0, 0, "", f"is not YAML: {error}")


def _is_tab(data: bytes, line: int, column: int) -> bool:
    lines = data.decode("utf-8").split("\n")
    return line < len(lines) and lines[line][column : column + 1] == "\t"


def _position(before: bytes) -> tuple[int, int]:
    """Line and column (from 1, in characters) of what follows `before`."""
    text = before.decode("utf-8", "replace")
    return text.count("\n") + 1, len(text) - text.rfind("\n")
