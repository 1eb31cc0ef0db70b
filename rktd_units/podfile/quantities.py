# SPDX-License-Identifier: Apache-2.0
"""Kubernetes quantities (k8s.io/apimachinery, pkg/api/resource): exact, in integers. Pure."""

_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_DIGITS = frozenset("0123456789")
_MAX = (1 << 63) - 1
_MAX_LENGTH = 64

FORM_HINT = "a number with a suffix, such as 128Mi, 1Gi, 500m or 1.5"


def parse_bytes(text: str) -> int:
    """`128Mi` -> 134217728. Raises ValueError with the reason; a fraction of a byte is one (`128m` is a slip for `128M`)."""
    numerator, denominator = _parse(text)
    if numerator % denominator:
        if text.endswith(("m", "u", "n")):
            raise ValueError(f"'{text}' is a fraction of a byte: '{text[-1]}' divides; did you mean '{text[:-1]}Mi'?")
        raise ValueError(f"'{text}' is not a whole number of bytes")
    return _bounded(numerator // denominator, text)


def parse_millicores(text: str) -> int:
    """`500m` -> 500, `1.5` -> 1500. Raises ValueError with the reason; 1m is the finest there is."""
    numerator, denominator = _parse(text)
    if numerator * 1000 % denominator:
        raise ValueError(f"'{text}' is finer than 1m, a thousandth of a CPU")
    return _bounded(numerator * 1000 // denominator, text)


def _bounded(value: int, text: str) -> int:
    if value > _MAX:
        raise ValueError(f"'{text}' is too large")
    return value


def _parse(text: str) -> tuple[int, int]:
    """A non-negative quantity as numerator and denominator."""
    if text.startswith("-"):
        raise ValueError(f"must not be negative, got '{text}'")
    body = text[1:] if text.startswith("+") else text
    end = 0
    while end < len(body) and (body[end] in _DIGITS or body[end] == "."):
        end += 1
    number, suffix = body[:end], body[end:]
    whole, _, fraction = number.partition(".")
    if len(text) > _MAX_LENGTH or not (whole or fraction) or "." in fraction:
        raise ValueError(f"must be a quantity, got '{text[:_MAX_LENGTH]}'")
    two, ten = _scale(suffix, text)
    digits, ten = int(whole + fraction), ten - len(fraction)
    return (digits << two) * 10 ** max(ten, 0), 10 ** max(-ten, 0)


def _scale(suffix: str, text: str) -> tuple[int, int]:
    """The powers of two and of ten that a suffix stands for."""
    if suffix in _BINARY:
        return _BINARY[suffix], 0
    if suffix in _DECIMAL:
        return 0, _DECIMAL[suffix]
    exponent = suffix[1:]
    sign = -1 if exponent.startswith("-") else 1
    digits = exponent[1:] if exponent.startswith(("+", "-")) else exponent
    if suffix[0] in "eE" and 0 < len(digits) <= 2 and set(digits) <= _DIGITS:
        return 0, sign * int(digits)
    raise ValueError(f"must be a quantity, got '{text}'{_suffix_hint(suffix)}")


def _suffix_hint(suffix: str) -> str:
    for right in (suffix.removesuffix("B"), suffix[:1].upper() + suffix[1:], suffix.upper(), suffix.lower(), suffix.removesuffix("b")):
        if right and (right in _BINARY or right in _DECIMAL):
            return f": the suffix is '{right}', not '{suffix}'"
    return ""
