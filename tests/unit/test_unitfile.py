# SPDX-License-Identifier: Apache-2.0
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rktd_units.errors import RktdError
from rktd_units.unitfile import LINE_MAX, UnitFile, escape_specifiers, quote_command, quote_word

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'", "s": " "}


def split_words(text: str) -> list[bytes]:
    """extract_first_word() of systemd with EXTRACT_UNQUOTE and EXTRACT_CUNESCAPE, and its `%%`. Strict: an unknown escape is an error."""
    words: list[bytes] = []
    position = 0
    while position < len(text):
        if text[position] in " \t":
            position += 1
            continue
        word = bytearray()
        quote = ""
        while position < len(text) and (quote or text[position] not in " \t"):
            char = text[position]
            position += 1
            if char == "\\":
                code = text[position]
                if code == "x":
                    word.append(int(text[position + 1 : position + 3], 16))
                    position += 3
                else:
                    assert code in SIMPLE or (code == ";" and not quote), f"\\{code}"
                    word += SIMPLE.get(code, code).encode()
                    position += 1
            elif quote and char == quote:
                quote = ""
            elif not quote and char in "'\"":
                quote = char
            elif char == "%":
                assert text[position] == "%", "a specifier"
                word += b"%"
                position += 1
            else:
                word += char.encode()
        assert not quote, "an open quote"
        words.append(bytes(word))
    return words


@given(WORDS)
def test_a_word_comes_back(text: str) -> None:
    quoted = quote_word(text)
    assert split_words(quoted) == [text.encode()]
    assert not set(quoted) & {chr(c) for c in (*range(32), 127)}


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_a_command_comes_back(argv: list[str]) -> None:
    line = quote_command("/bin/x y", tuple(argv))
    assert line.startswith("@:")
    assert split_words(line[2:]) == [b"/bin/x y", *(word.encode() for word in argv)]
    assert ";" not in line.split(" ")  # which would end the command


def test_bytes_that_are_not_utf_8_come_back() -> None:
    assert quote_word(b"a\xff\xfeb".decode("utf-8", "surrogateescape")) == '"a\\xff\\xfeb"'


def test_plain_words_stay_plain() -> None:
    plain = string.ascii_letters + string.digits + "_@+=:,./-"
    assert quote_word(plain) == plain
    assert quote_word("") == '""'


@pytest.mark.parametrize("text", ["100%", "%n%%", "%"], ids=["end", "pairs", "alone"])
def test_specifiers(text: str) -> None:
    assert escape_specifiers(text).replace("%%", "%") == text
    assert "%" not in escape_specifiers(text).replace("%%", "")


def test_what_no_unit_can_hold() -> None:
    with pytest.raises(RktdError, match="NUL"):
        quote_word("a\0b")
    with pytest.raises(RktdError, match="absolute path, got 'sh'"):
        quote_command("sh", ("sh",))
    with pytest.raises(RktdError, match="absolute path"):
        quote_command("/bin/sh", ())
    for program in ("/bin/it's", '/bin/"', "/bin/\\", "/bin/\n", "/bin/\x7f"):
        with pytest.raises(RktdError, match="executes no program with quotes"):
            quote_command(program, ("x",))


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b"], ids=["line-break", "return", "nul"])
def test_no_value_starts_another_line(value: str) -> None:
    with pytest.raises(RktdError, match=r"Service\.ExecStart= would break its line"):
        UnitFile().add("Service", "ExecStart", value)


def test_no_line_is_longer_than_systemd_reads() -> None:
    unit = UnitFile()
    unit.add("Service", "Environment", "x" * (LINE_MAX - len("Environment") - 1))
    with pytest.raises(RktdError, match="longer than systemd reads"):
        unit.add("Service", "Environment", "x" * LINE_MAX)
    with pytest.raises(RktdError, match="longer than systemd reads"):  # it counts bytes
        unit.add("Service", "Environment", "é" * (LINE_MAX // 2))


def test_render() -> None:
    unit = UnitFile("one\ntwo")
    unit.add("Service", "Type", "exec")
    unit.add("Unit", "After", "a")
    unit.add_all("Service", (("Environment", "A=1"), ("Environment", "B=2"), ("TimeoutStopSec", 3)))
    assert unit.render() == "# one\n# two\n\n[Service]\nType=exec\nEnvironment=A=1\nEnvironment=B=2\nTimeoutStopSec=3\n\n[Unit]\nAfter=a\n"
    assert unit.values("Service", "Environment") == ("A=1", "B=2")
    assert unit.values("Install", "Alias") == ()


VALUES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1).filter(lambda v: v == v.strip() and not v.endswith("\\"))


@given(st.lists(st.tuples(st.sampled_from(["Unit", "Service", "X-a"]), st.sampled_from(["Key", "Other"]), VALUES)))
def test_what_is_rendered_is_what_was_added(lines: list[tuple[str, str, str]]) -> None:
    unit = UnitFile("comment")
    for line in lines:
        unit.add(*line)
    found = []
    section = ""
    for row in unit.render().split("\n"):
        if row.startswith("["):
            section = row[1:-1]
        elif row and not row.startswith("#"):
            found.append((section, *row.split("=", 1)))
    assert sorted(found) == sorted(lines)
    for name in {line[0] for line in lines}:
        assert [line for line in found if line[0] == name] == [line for line in lines if line[0] == name]
