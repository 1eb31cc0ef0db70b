# SPDX-License-Identifier: Apache-2.0
"""An ordered unit file, systemd's quoting and escaping, and byte-stable rendering. Pure; knows no pod.

Rules: systemd.syntax(7), systemd.service(5) COMMAND LINES, systemd.unit(5) SPECIFIERS. Every text that comes from a user passes one of
`escape_specifiers`, `quote_word` or `quote_command` before it enters a unit; a line break in a plain value is refused, not written.
"""

from rktd_units.errors import RktdError

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@+=:,./-")
_NOT_IN_PROGRAMS = frozenset("\"'\\")  # string_is_safe() of systemd
LINE_MAX = 1024 * 1024  # LONG_LINE_MAX of systemd: a longer line is an error there


def escape_specifiers(text: str) -> str:
    """`%` doubled, so that systemd expands nothing."""
    return text.replace("%", "%%")


def quote_word(text: str) -> str:
    """One word of a list-like value (Environment=, ReadOnlyPaths=), taken back by systemd byte for byte; `%` is escaped.

    Raises RktdError for a NUL, which no systemd string can hold.
    """
    if "\0" in text:
        raise RktdError(f"a NUL byte cannot be in a unit: {text[:60]!r}")
    if text and all(c in _PLAIN for c in text):
        return text
    out = ['"']
    for char in escape_specifiers(text):
        if char in _ESCAPES:
            out.append(_ESCAPES[char])
        elif ord(char) < 32 or ord(char) == 127:
            out.append(f"\\x{ord(char):02x}")
        elif 0xDC80 <= ord(char) <= 0xDCFF:  # a byte that was not UTF-8 (surrogateescape)
            out.append(f"\\x{ord(char) - 0xDC00:02x}")
        else:
            out.append(char)
    out.append('"')
    return "".join(out)


def quote_command(program: str, argv: tuple[str, ...]) -> str:
    """A command line for ExecStart=, argv[0] as given (`@`), no `$` expanded (`:`); nothing goes through a shell.

    The program must be an absolute path. A lone `;` is escaped, since unquoted it separates commands.
    """
    if not argv or not program.startswith("/"):
        raise RktdError(f"a command needs an absolute path, got {program!r}")
    if any(char in _NOT_IN_PROGRAMS or ord(char) < 32 or ord(char) == 127 for char in program):
        raise RktdError(f"systemd executes no program with quotes, backslashes or control characters in its path: {program!r}")
    return "@:" + " ".join("\\;" if word == ";" else quote_word(word) for word in (program, *argv))


class UnitFile:
    """Sections and lines in the order in which they were added; a repeated key stays repeated."""

    def __init__(self, comment: str = "") -> None:
        self._comment = comment
        self._sections: dict[str, list[tuple[str, str]]] = {}

    def add(self, section: str, key: str, value: str | int) -> None:
        """One line; `value` is already quoted. Raises RktdError where a line break would start another line."""
        text = str(value)
        if "\n" in text or "\r" in text or "\0" in text:
            raise RktdError(f"{section}.{key}= would break its line: {text[:60]!r}")
        if len(text.encode("utf-8", "surrogateescape")) + len(key) >= LINE_MAX:
            raise RktdError(f"{section}.{key}= is longer than systemd reads ({LINE_MAX} bytes)")
        self._sections.setdefault(section, []).append((key, text))

    def add_all(self, section: str, lines: tuple[tuple[str, str | int], ...]) -> None:
        """Several lines of one section."""
        for key, value in lines:
            self.add(section, key, value)

    def values(self, section: str, key: str) -> tuple[str, ...]:
        """All values of a key, in order."""
        return tuple(value for name, value in self._sections.get(section, ()) if name == key)

    def render(self) -> str:
        """The file's text: sections in order of first use, a blank line between."""
        parts = []
        if self._comment:
            parts.append("".join(f"# {line}\n" for line in self._comment.split("\n")))
        for section, lines in self._sections.items():
            parts.append(f"[{section}]\n" + "".join(f"{key}={value}\n" for key, value in lines))
        return "\n".join(parts)


def quote_script(script: str) -> str:
    """A script of ours, in which `%%` and `%i` are meant; user text never gets here."""
    return '"' + script.replace("\\", "\\\\").replace('"', '\\"') + '"'
