# SPDX-License-Identifier: Apache-2.0
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rktd_units.podfile.quantities import parse_bytes, parse_millicores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("128Mi", 128 << 20),
        ("1e3", 1000),
        (".5Gi", 1 << 29),
        ("1.5G", 1_500_000_000),
        ("5", 5),
        ("+2k", 2000),
        ("1E", 10**18),
        ("2E1", 20),
        ("3000m", 3),
    ],
    ids=str,
)
def test_bytes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("500m", 500), ("1.5", 1500), ("2", 2000), ("1e-3", 1), ("2k", 2_000_000)], ids=str)
def test_millicores(text: str, expected: int) -> None:
    assert parse_millicores(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("128m", "did you mean '128Mi'"),
        ("-1", "must not be negative"),
        ("1GB", "the suffix is 'G', not 'GB'"),
        ("1gi", "the suffix is 'Gi', not 'gi'"),
        ("0x10", "must be a quantity"),
        ("", "must be a quantity"),
        (".", "must be a quantity"),
        ("1.2.3", "must be a quantity"),
        ("1e999999999", "must be a quantity"),
        ("9" * 100, "must be a quantity"),
        ("99999999999Ei", "is too large"),
        ("0.5", "not a whole number of bytes"),
    ],
    ids=lambda value: value[:20],
)
def test_bad_bytes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_bytes(text)


def test_finest_cpu() -> None:
    with pytest.raises(ValueError, match="finer than 1m"):
        parse_millicores("100u")


@given(st.integers(0, 2**40), st.sampled_from(["", "k", "Ki", "M", "Mi"]))
def test_suffixes_multiply(number: int, suffix: str) -> None:
    assert parse_bytes(f"{number}{suffix}") == number * {"": 1, "k": 1000, "Ki": 1024, "M": 10**6, "Mi": 1 << 20}[suffix]


@given(st.text(alphabet="0123456789.+-eEkKMGimun", max_size=12))
def test_only_value_error(text: str) -> None:
    for parse in (parse_bytes, parse_millicores):
        with suppress(ValueError):
            assert parse(text) >= 0
