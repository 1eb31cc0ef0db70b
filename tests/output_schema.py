# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/podctl-output.md as a check of records."""

import re
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/podctl-output.md"
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def load_schema() -> dict[str, dict[str, tuple[type, ...]]]:
    """Record -> key -> its types."""
    found: dict[str, dict[str, tuple[type, ...]]] = {}
    record = ""
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("## "):
            record = line[3:].strip()
        elif match := re.match(r"\| `(\w+)` \| ([^|]+) \|", line):
            kinds = [t for word in match[2].strip().split(" or ") for t in _TYPES[word]]
            found.setdefault(record, {})[match[1]] = tuple(kinds)
    return found


def check_record(kind: str, record: dict[str, Any]) -> None:
    """Exactly the documented keys, each of a documented type; what is in it, too."""
    schema = load_schema()[kind] | (load_schema()["pod"] if kind == "shown" else {})
    assert set(record) == set(schema), set(record) ^ set(schema)
    for key, value in record.items():
        assert isinstance(value, schema[key]), (key, value)
        assert not isinstance(value, bool) or bool in schema[key], (key, value)
    for app in record.get("apps", ()):
        check_record("app", app)
    for container in record.get("containers", ()):
        check_record("container", container)
    for inner in ("stage0", "spec"):
        if record.get(inner):
            check_record(inner, record[inner])
