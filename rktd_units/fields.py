# SPDX-License-Identifier: Apache-2.0
"""Table-driven reading of YAML nodes: a table names every key of a map and how its value is read. Knows no field of any file.

A reader takes the faults, a node and its key path, and gives the value, or None after it has noted a fault. Nothing raises.
"""

from collections.abc import Callable, Iterable
from typing import Any

from rktd_units.errors import Diagnostic
from rktd_units.strictyaml import Mapping, Node, Scalar, Sequence

Place = tuple[Any, str | int] | None  # a key path, innermost last: ((None, "spec"), "containers"); rendered only when a fault needs it
Reader = Callable[["Faults", Node, Place], Any]
Table = dict[str, Reader]

_BOOLEANS_OF_YAML_1_1 = frozenset({"y", "yes", "on", "true", "n", "no", "off", "false"})  # what go-yaml, so kubectl, takes for a bool
_SPECIAL_FLOATS = frozenset({".inf", "+.inf", "-.inf", ".nan"})


class Faults:
    """All that was found wrong, in the order of discovery."""

    def __init__(self) -> None:
        self.found: list[Diagnostic] = []

    def error(self, node: Node, place: Place, message: str, hint: str = "") -> None:
        self.found.append(Diagnostic(node.file, node.line, node.column, render_place(place), message, hint))

    def warning(self, node: Node, place: Place, message: str) -> None:
        self.found.append(Diagnostic(node.file, node.line, node.column, render_place(place), message, severity="warning"))


def render_place(place: Place) -> str:
    """`spec.containers[0].image`."""
    if place is None:
        return ""
    before, key = render_place(place[0]), place[1]
    if isinstance(key, int):
        return f"{before}[{key}]"
    if "." in key or "/" in key:
        return f"{before}['{key}']"
    return f"{before}.{key}" if before else key


def read_mapping(faults: Faults, node: Node, place: Place, table: Table, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a map's keys, without those that are absent, null or wrong. An unknown or missing key is a fault."""
    values: dict[str, Any] = {}
    if not isinstance(node, Mapping):
        faults.error(node, place, f"must be a map, got {describe(node)}")
        return values
    for key, (key_node, value) in node.entries.items():
        reader = table.get(key)
        if reader is None:
            faults.error(key_node, (place, key), "unknown field", suggest(key, table))
        elif not value.is_null:
            result = reader(faults, value, (place, key))
            if result is not None:
                values[key] = result
    for key in required:
        if node.get(key) is None:
            faults.error(node, (place, key), "is required")
    return values


def suggest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or "" when nothing comes near."""
    from difflib import get_close_matches  # only when there is a fault: the generator starts without it

    spellings = {name.lower(): name for name in sorted(known)}
    near = get_close_matches(word.lower(), spellings, 1, 0.65)
    return f"did you mean '{spellings[near[0]]}'?" if near else ""


def describe(node: Node) -> str:
    """What a node is, for `got ...`."""
    if isinstance(node, Scalar):
        return f"'{shorten(node.text)}'"
    return node.kind


def shorten(text: str) -> str:
    """As much of a text as a message has room for: a line of the kernel's log has 976 bytes."""
    return text if len(text) <= 60 else text[:57] + "..."


def looks_typed(text: str) -> bool:
    """True for plain text that YAML readers take for a number, a bool or null."""
    if text[:1] in "0123456789+-." and text.isascii():
        if text.lower() in _SPECIAL_FLOATS:
            return True
        try:
            int(text, 0)
        except ValueError:
            try:
                float(text)
            except ValueError:
                return False
            return "n" not in text.lower()
        return True
    return text.lower() in _BOOLEANS_OF_YAML_1_1


def read_text(faults: Faults, node: Node, place: Place) -> str | None:
    """A string. Plain text that looks like something else is refused, as Kubernetes refuses it."""
    if not isinstance(node, Scalar):
        faults.error(node, place, f"must be a string, got {describe(node)}")
        return None
    if node.plain and looks_typed(node.text):
        faults.error(node, place, f"must be a string, got {shorten(node.text)}", f'quote it: "{shorten(node.text)}"')
        return None
    if "\0" in node.text:
        faults.error(node, place, "must not contain a NUL byte")
        return None
    return node.text


def read_boolean(faults: Faults, node: Node, place: Place) -> bool | None:
    """`true` or `false`, and no other spelling."""
    if isinstance(node, Scalar):
        if node.plain and node.text in ("true", "false"):
            return node.text == "true"
        lower = node.text.lower()
        hint = ""
        if lower in _BOOLEANS_OF_YAML_1_1:
            right = "true" if lower in ("y", "yes", "on", "true") else "false"
            hint = f"write {right}" if lower != right or node.plain else f"write {right}, without quotes"
        faults.error(node, place, f"must be true or false, got {describe(node)}", hint)
        return None
    faults.error(node, place, f"must be true or false, got {describe(node)}")
    return None


def read_integer(low: int, high: int, hint: str = "") -> Reader:
    """A reader of whole numbers from `low` to `high`; the hint says why these."""

    def read(faults: Faults, node: Node, place: Place) -> int | None:
        if not isinstance(node, Scalar):
            faults.error(node, place, f"must be a whole number, got {describe(node)}")
            return None
        digits = node.text[1:] if node.text[:1] in ("-", "+") else node.text
        if not (digits.isascii() and digits.isdecimal()):
            faults.error(node, place, f"must be a whole number, got {describe(node)}")
        elif not node.plain:
            faults.error(node, place, f"must be a number, got the string {describe(node)}", f"write {shorten(node.text)}, without quotes")
        elif len(digits) > 1 and digits[0] == "0":
            faults.error(
                node, place, f"must be a decimal number, got {describe(node)}", "with a leading 0 it is an octal one for some readers"
            )
        elif len(digits) > 20 or not low <= int(node.text) <= high:
            faults.error(node, place, f"must be between {low} and {high}, got {shorten(node.text)}", hint)
        else:
            return int(node.text)
        return None

    return read


def read_choice(*choices: str, later: tuple[str, ...] = ()) -> Reader:
    """A reader of one of some words; those in `later` are known, but not supported yet."""

    def read(faults: Faults, node: Node, place: Place) -> str | None:
        text = read_text(faults, node, place)
        if text is None or text in choices:
            return text
        if text in later:
            faults.error(node, place, f"'{text}' is not supported yet")
        else:
            shown = ", ".join(choice for choice in (*choices, *later) if choice)
            faults.error(node, place, f"must be one of {shown}, got {describe(node)}", suggest(text, (*choices, *later)))
        return None

    return read


def read_list(reader: Reader) -> Reader:
    """A reader of lists; wrong items are left out of what it gives."""

    def read(faults: Faults, node: Node, place: Place) -> list[Any] | None:
        if not isinstance(node, Sequence):
            faults.error(
                node, place, f"must be a list, got {describe(node)}", "write it as a list, even of one" if isinstance(node, Scalar) else ""
            )
            return None
        values = []
        for index, item in enumerate(node.items):
            value = reader(faults, item, (place, index))
            if value is not None:
                values.append(value)
        return values

    return read


def read_table(table: Table, required: tuple[str, ...] = ()) -> Reader:
    """A reader of maps with the keys of a table, as a dict."""

    def read(faults: Faults, node: Node, place: Place) -> dict[str, Any]:
        return read_mapping(faults, node, place, table, required)

    return read


def ignored(faults: Faults, node: Node, place: Place) -> None:
    """A field that has no meaning on one host: a warning."""
    faults.warning(node, place, "has no meaning on a single host, ignored")


def not_yet(faults: Faults, node: Node, place: Place) -> None:
    """A field that a later version implements. An empty list asks for nothing."""
    if not (isinstance(node, Sequence) and not node.items):
        faults.error(node, place, "not supported yet")


def not_yet_true(faults: Faults, node: Node, place: Place) -> None:
    """A switch that a later version implements: `false` is fine."""
    if read_boolean(faults, node, place):
        faults.error(node, place, "not supported yet")


def not_supported(faults: Faults, node: Node, place: Place) -> None:
    """A field of which no version is planned. An empty list asks for nothing."""
    if not (isinstance(node, Sequence) and not node.items):
        faults.error(node, place, "not supported")


def refuse_repeated(faults: Faults, node: Node | None, place: Place, keys: tuple[str, ...], defaults: tuple[str, ...] = ()) -> None:
    """A fault for each map of a list that agrees with an earlier one in all `keys` (the last ones may have defaults)."""
    if not isinstance(node, Sequence):
        return
    seen: dict[tuple[str, ...], Node] = {}
    for index, item in enumerate(node.items):
        found = [text_of(item, key) for key in keys]
        for position, default in enumerate(reversed(defaults), 1):
            found[-position] = found[-position] or default
        if not all(found):
            continue
        first = seen.setdefault(tuple(found), item)
        if first is not item:
            at = item.get(keys[0]) if isinstance(item, Mapping) else None
            faults.error(at or item, ((place, index), keys[0]), f"'{'/'.join(found)}' is repeated, first in {place_of(first, item)}")


def place_of(node: Node, seen_from: Node) -> str:
    """`line 5`, with the file when it is another one."""
    return f"line {node.line}" if node.file == seen_from.file else f"{node.file}:{node.line}"


def text_of(node: Node | None, key: str) -> str:
    """The raw text under a key of a map, "" when there is none."""
    value = node.get(key) if isinstance(node, Mapping) else None
    return value.text if isinstance(value, Scalar) else ""


def items_of(node: Node | None, key: str) -> list[Node]:
    """The items of the list under a key of a map, [] when there is none."""
    value = node.get(key) if isinstance(node, Mapping) else None
    return value.items if isinstance(value, Sequence) else []
