# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rktd_units.stage1.launch import Launch
from rktd_units.stage1.plan import parse_plan, render_plan

FIELDS = st.text(st.characters(exclude_categories=()))


@given(st.lists(st.lists(FIELDS, min_size=1)))
def test_what_is_rendered_comes_back(steps: list[list[str]]) -> None:
    text = render_plan(tuple(tuple(step) for step in steps))
    assert parse_plan(text) == steps
    assert text.count("\n") == len(steps) + 1


@pytest.mark.parametrize("field", ["%09", "%250A", "a\tb\nc%", "", "\r", "\x85\u2028"], ids=repr)
def test_fields(field: str) -> None:
    assert parse_plan(render_plan((("verb", field, field),))) == [["verb", field, field]]


@pytest.mark.parametrize("text", ["", "version\t2\n", "lower\ta\tb\n", "version\t1"], ids=["empty", "newer", "none", "cut"])
def test_another_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="this plan is not of version 1"):
        parse_plan(text)


def test_an_unknown_verb_is_no_method_of_another_name() -> None:
    with pytest.raises(AttributeError, match="do_run"):
        Launch("pod@web.service").run([["run", "x"]])
