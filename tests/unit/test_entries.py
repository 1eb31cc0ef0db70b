# SPDX-License-Identifier: Apache-2.0
"""What is noted of a layer's entries says as much to the layers above it as the layer itself does."""

import io
import tempfile
from contextlib import ExitStack, suppress

import pytest

from rktd_units.errors import ImageError
from rktd_units.images import canonical
from rktd_units.images.entries import EntriesError, has_contents, noted_entries, read_entries
from rktd_units.images.tarball import read_members
from rktd_units.images.tree import Budget, Tree
from tests.layer_cases import BASE, CASES, Case, entry, hard, layer, sparse_1_0, xattr

SIZE = 1 << 34


def noted(tar: bytes) -> bytes:
    out = io.BytesIO()
    with tempfile.TemporaryFile() as spool:
        spool.write(tar)
        spool.flush()
        for _ in noted_entries(read_members(spool.fileno()), len(tar), out, Budget(SIZE)):
            pass
    return out.getvalue()


def last_delta(tars: list[bytes], *, from_entries: bool) -> tuple[bytes, int]:
    """The headers of the last layer's canonical tar, and what is left of the budget."""
    budget = Budget(SIZE)
    merged = Tree(budget)
    with ExitStack() as stack:
        for index, tar in enumerate(tars):
            if from_entries and index < len(tars) - 1:
                size, members = read_entries(io.BytesIO(noted(tar)))
                assert size == len(tar)
                merged.apply(members)
                continue
            spool = stack.enter_context(tempfile.TemporaryFile())
            spool.write(tar)
            spool.flush()
            merged.apply(read_members(spool.fileno()))
        delta = canonical.build_delta(merged, tempfile.gettempdir())
        stack.callback(delta.headers.close)
        return delta.headers.read(), budget.size


ABOVE = [case for case in CASES if len(case.contents or case.layers) > 1 and not case.refusal]


@pytest.mark.parametrize("case", ABOVE, ids=lambda case: case.name)
def test_a_layer_above_comes_out_the_same(case: Case) -> None:
    tars = list(case.contents or case.layers)
    plain = last_delta(tars, from_entries=False)
    with suppress(EntriesError):  # it links to a file of a lower layer
        assert last_delta(tars, from_entries=True) == plain


def test_a_refusal_above_is_the_same() -> None:
    for case in (case for case in CASES if case.refusal and len(case.contents or case.layers) > 1):
        texts = []
        for from_entries in (False, True):
            with pytest.raises(ImageError) as caught:  # noqa: PT011 - the two are compared
                last_delta(list(case.contents or case.layers), from_entries=from_entries)
            texts.append(str(caught.value))
        assert texts[0] == texts[1]


def test_a_link_to_a_lower_file_needs_its_content() -> None:
    lower = layer(entry("full", data=b"x"), entry("empty"))
    with pytest.raises(EntriesError, match="links to a file of a lower one"):
        last_delta([lower, layer(hard("a", "full"))], from_entries=True)
    assert last_delta([lower, layer(hard("a", "empty"))], from_entries=True) == last_delta(
        [lower, layer(hard("a", "empty"))], from_entries=False
    )


def test_all_of_an_entry_is_kept() -> None:
    odd = layer(
        entry(b"d\xff", "5", mode=0o2750),
        entry("d/x", ids=(5, 6), mtime=-7, pax=[xattr("user.a", b"\x00\xff")]),
        sparse_1_0("s", 1 << 20, [4096], [b"x" * 512]),
    )
    with tempfile.TemporaryFile() as spool:
        spool.write(odd)
        spool.flush()
        real = list(read_members(spool.fileno()))
    _, found = read_entries(io.BytesIO(noted(odd)))
    for one, other in zip(real, found, strict=True):
        assert one._replace(content=None) == other._replace(content=None)
        assert (one.content is None) == (other.content is None)
        if one.content and other.content:
            assert one.content.size == other.content.size
            assert sum(s[2] for s in one.content.segments) == sum(s[2] for s in other.content.segments)
            assert has_contents(one.content)
            assert has_contents(other.content) == (not other.content.size)


@pytest.mark.parametrize("damage", [b"", b"x\n", b"10\n[]\n", b"10\n[1,2]\n", b"10\nnull\n", b"10\n{\n"])
def test_damaged_entries(damage: bytes) -> None:
    with pytest.raises(EntriesError, match="damaged"):
        list(read_entries(io.BytesIO(damage))[1])


def test_base_is_noted_line_by_line() -> None:
    assert noted(BASE).count(b"\n") == 1 + len(list(read_entries(io.BytesIO(noted(BASE)))[1]))
