# SPDX-License-Identifier: Apache-2.0
"""The plan: what stage0 tells the exec wrapper to do, one step per line. The contract between them, documented in docs/stage1-plan.md.

A line is a verb and its fields, tab-separated; in a field `%`, tab and line break are %XX. Read in every start, hence no JSON.
"""

VERSION = "1"
_ESCAPED = (("%", "%25"), ("\t", "%09"), ("\n", "%0A"), ("\r", "%0D"))


def render_plan(steps: tuple[tuple[str, ...], ...]) -> str:
    """Steps -> text; the version line is put in front."""
    return "".join("\t".join(_escape(field) for field in step) + "\n" for step in (("version", VERSION), *steps))


def parse_plan(text: str) -> list[list[str]]:
    """Text -> steps, without the version line. Raises ValueError for another version."""
    steps = [[_unescape(field) for field in line.split("\t")] for line in text.split("\n")[:-1]]
    if not steps or steps[0] != ["version", VERSION]:
        raise ValueError(f"this plan is not of version {VERSION}")
    return steps[1:]


def _escape(field: str) -> str:
    for char, code in _ESCAPED:
        field = field.replace(char, code)
    return field


def _unescape(field: str) -> str:
    for char, code in reversed(_ESCAPED):
        field = field.replace(code, char)
    return field
