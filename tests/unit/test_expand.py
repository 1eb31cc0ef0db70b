# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rktd_units.expand import expand_references

VARIABLES = {"A": "1", "EMPTY": "", "NESTED": "$(A)", "B.C": "dot"}


@pytest.mark.parametrize(  # k8s.io/kubernetes third_party/forked/golang/expansion/expand_test.go
    ("text", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("$(A)", "1"),
        ("x$(A)y$(A)", "x1y1"),
        ("$(EMPTY)", ""),
        ("$(NESTED)", "$(A)"),
        ("$(B.C)", "dot"),
        ("$(NONE)", "$(NONE)"),
        ("$(NONE)$(A)", "$(NONE)1"),
        ("$$", "$"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$A ${A}", "$A ${A}"),
        ("$", "$"),
        ("a$", "a$"),
        ("$(", "$("),
        ("$(A", "$(A"),
        ("$()", "$()"),
        ("$($(A))", "$($(A))"),
        ("$((A))", "$((A))"),
        ("$(A))", "1)"),
        ("\n$(A)\t%n", "\n1\t%n"),
    ],
    ids=repr,
)
def test_expand(text: str, expected: str) -> None:
    assert expand_references(text, VARIABLES) == expected


@given(st.text())
def test_what_is_doubled_comes_out_as_it_was(text: str) -> None:
    assert expand_references(text.replace("$", "$$"), VARIABLES) == text


@given(st.text("$(A)x"), st.text())
def test_nothing_but_references_changes(text: str, value: str) -> None:
    assert expand_references(text.replace("$", ""), {"A": value}) == text.replace("$", "")
    expand_references(text, {"A": value})
