# SPDX-License-Identifier: Apache-2.0
"""The little languages that podman, docker and systemd share: ports, volumes, sizes, durations, words. Pure; all raise ValueError."""

from typing import Any, NamedTuple

_SIZES = {"": "", "b": "", "k": "Ki", "m": "Mi", "g": "Gi", "t": "Ti"}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_RANGE_MAX = 200
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'", "s": " "}


class Mount(NamedTuple):
    """`SOURCE:TARGET:OPTIONS`; an anonymous volume has no source."""

    source: str
    target: str
    options: tuple[str, ...]


def escape_variables(text: str) -> str:
    """A text that is to arrive as it is: of a pod file's `command`, `args` and `env`, `$(VAR)` and `$$` would be replaced."""
    return "".join(f"{c}$" if c == "$" and text[i + 1 : i + 2] in ("$", "(") else c for i, c in enumerate(text))


def parse_ports(text: str) -> list[dict[str, Any]]:
    """`[[IP:]PORT:]PORT[/udp]`, ranges, as `ports` of a container. What has no port of the host is only said."""
    numbers, slash, protocol = text.partition("/")
    rest, colon, inner = numbers.rpartition(":")
    address, outer = "", ""
    if colon:
        address, _, outer = rest.rpartition(":") if not rest.endswith("]") else (rest, "", "")
        if not outer:
            raise ValueError(f"'{text}' leaves the port of the host to chance: name one, [IP:]PORT:PORT")
    targets, sources = _parse_range(inner, text), _parse_range(outer, text) if outer else []
    if sources and len(sources) != len(targets):
        raise ValueError(f"'{text}' has ranges of different lengths")
    if slash and protocol.lower() not in ("tcp", "udp", "sctp"):
        raise ValueError(f"'{text}' has the protocol '{protocol}'")
    ports: list[dict[str, Any]] = []
    for index, target in enumerate(targets):
        port: dict[str, Any] = {"containerPort": target}
        if sources:
            port["hostPort"] = sources[index]
        if address and address not in ("0.0.0.0", "[::]"):
            port["hostIP"] = address.strip("[]")
        if slash and protocol.lower() != "tcp":
            port["protocol"] = protocol.upper()
        ports.append(port)
    return ports


def _parse_range(text: str, whole: str) -> list[int]:
    first, dash, last = text.partition("-")
    if not (first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit()))):
        raise ValueError(f"must be [IP:]PORT:PORT[/udp], got '{whole}'")
    low, high = int(first), int(last or first)
    if not 1 <= low <= high <= 65535 or high - low >= _RANGE_MAX:
        raise ValueError(f"ports are 1 to 65535, {_RANGE_MAX} of them at most, got '{whole}'")
    return list(range(low, high + 1))


def parse_mount(text: str) -> Mount:
    """`[SOURCE:]TARGET[:OPTION,...]`."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise ValueError(f"must be SOURCE:TARGET[:OPTIONS], got '{text}'")
    if len(parts) == 1:
        return Mount("", parts[0], ())
    return Mount(parts[0], parts[1], tuple(parts[2].split(",")) if len(parts) > 2 else ())


def parse_size(text: str) -> str:
    """Docker's `256m`, which is 256 Mi, as a quantity; what has a suffix of Kubernetes stays."""
    digits = text.rstrip("bBkKmMgGtTi")
    suffix = text[len(digits) :]
    if not digits.replace(".", "", 1).isdigit() or not digits.isascii():
        raise ValueError(f"'{text}' is not a size")
    if suffix in ("Ki", "Mi", "Gi", "Ti"):
        return text
    short = suffix.lower().removesuffix("ib").removesuffix("b") or ("b" if suffix else "")
    if short not in _SIZES or "." in digits:
        raise ValueError(f"'{text}' is not a size such as 256m or 1g")
    return digits + _SIZES[short]


def parse_seconds(text: str) -> int:
    """`1m30s`, or plain seconds; rounded up."""
    total, rest = 0.0, text.strip()
    if rest.isascii() and rest.isdigit():
        return int(rest)
    while rest:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        unit = rest[len(number) :][: len(rest) - len(number) - len(rest[len(number) :].lstrip("abcdefghijklmnopqrstuvwxyz"))]
        if unit not in _SECONDS or not number.replace(".", "", 1).isdigit():
            raise ValueError(f"'{text}' is not a time such as 30s or 1m30s")
        total += float(number) * _SECONDS[unit]
        rest = rest[len(number) + len(unit) :].lstrip()
    if not text.strip():
        raise ValueError("is empty")
    return int(-(-total // 1))


def parse_ids(text: str) -> dict[str, int]:
    """`UID[:GID]` as keys of a securityContext."""
    ids = text.split(":")
    if len(ids) > 2 or not all(word.isascii() and word.isdigit() for word in ids):
        raise ValueError(f"must be UID[:GID] in digits, got '{text}': the image's /etc/passwd has them")
    return dict(zip(("runAsUser", "runAsGroup"), map(int, ids), strict=False))


def split_words(text: str) -> list[str]:
    """Words as systemd splits them (systemd.syntax(7), QUOTING): quotes, and C's escapes within and without."""
    words: list[str] = []
    word, quote, index, open_word = "", "", 0, False
    while index < len(text):
        char = text[index]
        index += 1
        if char == "\\":
            piece, index = _read_escape(text, index)
            word, open_word = word + piece, True
        elif quote and char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote, open_word = char, True
        elif not quote and char in " \t\n":
            if open_word:
                words.append(word)
            word, open_word = "", False
        else:
            word, open_word = word + char, True
    if quote:
        raise ValueError(f"has a quote {quote} that is not closed")
    return [*words, word] if open_word else words


def _read_escape(text: str, index: int) -> tuple[str, int]:
    """What an escape after its backslash means, and where it ends."""
    char = text[index : index + 1]
    if char in _ESCAPES and char:
        return _ESCAPES[char], index + 1
    lengths = {"x": 2, "u": 4, "U": 8}
    if char in lengths:
        digits = text[index + 1 : index + 1 + lengths[char]]
        try:
            return chr(int(digits, 16)), index + 1 + lengths[char]
        except (ValueError, OverflowError):
            raise ValueError(f"has a bad escape '\\{char}{digits}'") from None
    return "\\" + char, index + 1
