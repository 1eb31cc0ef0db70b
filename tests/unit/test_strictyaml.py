# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from rktd_units.errors import Diagnostic
from rktd_units.sourcefile import MAX_BYTES, read_source
from rktd_units.strictyaml import Mapping, Scalar, parse_yaml


def texts(data: bytes) -> list[str]:
    return [str(fault) for fault in parse_yaml(data, "f")[1]]


def test_text_is_kept_raw() -> None:
    (document,), faults = parse_yaml(b"a: 22:22\nb: 0755\nc: no\nd: 'no'\n", "f")
    assert isinstance(document, Mapping)
    assert not faults
    values = [value for _, value in document.entries.values()]
    assert [v.text for v in values if isinstance(v, Scalar)] == ["22:22", "0755", "no", "no"]
    assert [v.plain for v in values if isinstance(v, Scalar)] == [True, True, True, False]
    assert (values[1].line, values[1].column) == (2, 4)


BOMB = b"a: &a [1,2,3,4,5,6,7,8,9]\n" + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefgh")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"a: 1\nb: 2\na: 3", "f:3:1: the key 'a' is repeated, first in line 1", id="repeated"),
        pytest.param(b"a: !x 1", "f:1:4: tags are not supported, got '!x'", id="tag"),
        pytest.param(b"a: !!int 1", "f:1:4: tags are not supported, got '!!int'", id="standard-tag"),
        pytest.param(b"a: &a [*a]", "f:1:8: the anchor 'a' refers to itself", id="recursion"),
        pytest.param(b"a: *b", "f:1:4: the anchor 'b' is not defined", id="no-anchor"),
        pytest.param(b"a: {<<: {}}", "f:1:5: merge keys ('<<') are not supported\n  hint: write the values out", id="merge-key"),
        pytest.param(b"? [a]\n: x", "f:1:3: a key must be text, got a list", id="list-as-key"),
        pytest.param("ä: \n b: ".encode() + b"\xff", "f:2:5: is not UTF-8, got byte 0xff\n  hint: save the file as UTF-8", id="utf-8"),
        pytest.param("ä: \x01".encode(), "f:1:4: is not YAML: the character U+0001 is not allowed", id="control"),
        pytest.param(b"a: b: c", "f:1:5: is not YAML: mapping values are not allowed in this context", id="syntax"),
        pytest.param(b"[" * 100_000, "f:1:65: is nested more than 64 levels deep", id="deep"),
        pytest.param(b"- " * 100_000, "f:1:129: is nested more than 64 levels deep", id="deep-block"),
        pytest.param(BOMB, "f:5:23: has more than 50000 values (an alias counts as all that it stands for)", id="bomb"),
        pytest.param(b"#" * (MAX_BYTES + 1), "f: is larger than 1 MiB", id="large"),
    ],
)
def test_refused(data: bytes, expected: str) -> None:
    assert texts(data) == [expected]


def test_tab_gets_a_hint() -> None:
    assert texts(b"a:\n\t- b")[0].endswith("hint: indent with spaces, not with tabs")


def test_faults_before_a_syntax_error_are_told_too() -> None:
    assert len(texts(b"a: !x 1\nb: [")) == 2


def test_empty_documents_are_left_out() -> None:
    assert len(parse_yaml(b"---\n---\na: 1\n---\n", "f")[0]) == 1


def test_read_source_never_blocks(tmp_path: os.PathLike[str]) -> None:
    fifo = os.path.join(tmp_path, "f")
    os.mkfifo(fifo)
    assert read_source(fifo) == Diagnostic(fifo, 0, 0, "", "cannot be read: it is not a regular file")
    assert isinstance(found := read_source(os.path.join(tmp_path, "none")), Diagnostic)
    assert "no such file" in found.message
    assert isinstance(read_source("/dev/null"), tuple)
