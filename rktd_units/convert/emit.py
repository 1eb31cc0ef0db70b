# SPDX-License-Identifier: Apache-2.0
"""Plain data as YAML that people like to read, and that strictyaml and every other reader take for the same."""

from typing import Any

from rktd_units.fields import looks_typed
from rktd_units.strictyaml import Mapping, Node, Scalar, Sequence

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./@:+=,-$()")
_NULLS = frozenset({"", "~", "null"})
_STARTS = "?:,@%=()"  # not all of them are forbidden, but none looks well


class Raw(str):
    """Text that was plain in the file that it comes from, hence a number or a bool if it looks like one."""

    __slots__ = ()


def render_documents(documents: list[dict[str, Any]], comments: tuple[str, ...] = ()) -> str:
    """Documents, separated, after comment lines."""
    head = "".join(f"# {line}\n" for comment in comments for line in comment.splitlines())
    return head + "---\n".join(_render(document, 0) for document in documents)


def plain_data(node: Node) -> Any:
    """A node as dicts, lists and text, for `render_documents`."""
    if isinstance(node, Mapping):
        return {key: plain_data(value) for key, (_, value) in node.entries.items()}
    if isinstance(node, Sequence):
        return [plain_data(item) for item in node.items]
    assert isinstance(node, Scalar)
    return Raw(node.text) if node.plain else node.text


def _render(value: Any, depth: int) -> str:
    """Lines of a map or list, each ended."""
    indent = "  " * depth
    lines = []
    if isinstance(value, dict):
        for key, inner in value.items():
            lines.append(f"{indent}{_scalar(key, 0)}:{_after(inner, depth + (not isinstance(inner, list)))}")
    else:
        for item in value:
            text = _after(item, depth + 1).removeprefix("\n")
            lines.append(f"{indent}- {text.lstrip(' ')}")
    return "".join(lines)


def _after(value: Any, depth: int) -> str:
    """What stands after `key:`, up to the end of its lines."""
    if isinstance(value, dict | list) and value:
        return "\n" + _render(value, depth)
    if isinstance(value, dict | list):
        return " {}\n" if isinstance(value, dict) else " []\n"
    return f" {_scalar(value, depth)}\n"


def _scalar(value: Any, depth: int) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if isinstance(value, Raw) and (looks_typed(text) or text in _NULLS):
        return text or "null"
    if text and not looks_typed(text) and text not in _NULLS and _is_plain(text):
        return text
    return _block(text, depth) if _is_block(text) and depth else _quoted(text)


def _is_plain(text: str) -> bool:
    words = all(c in _PLAIN for c in text.replace(" ", "")) and "  " not in text and text.strip() == text
    return (
        words
        and text[0] not in _STARTS
        and not text.startswith("---")
        and text != "-"
        and not text.startswith("- ")
        and text[-1] != ":"
        and ": " not in text
    )


def _is_block(text: str) -> bool:
    lines = text.removesuffix("\n").split("\n")
    return (
        len(lines) > 1
        and all(line.isprintable() and line.rstrip() == line for line in lines)
        and bool(lines[-1])
        and lines[0][:1].strip() != ""
    )


def _block(text: str, depth: int) -> str:
    indent = "  " * depth
    body = "\n".join(f"{indent}{line}" if line else "" for line in text.removesuffix("\n").split("\n"))
    return f"|{'' if text.endswith(chr(10)) else '-'}\n{body}"


def _quoted(text: str) -> str:
    shown = []
    for char in text:
        if char in '"\\':
            shown.append("\\" + char)
        elif char in "\n\t":
            shown.append("\\n" if char == "\n" else "\\t")
        else:
            shown.append(char if char.isprintable() else f"\\U{ord(char):08x}")
    return '"' + "".join(shown) + '"'
