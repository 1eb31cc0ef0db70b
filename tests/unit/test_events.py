# SPDX-License-Identifier: Apache-2.0
"""Every line with a message id has a text in units/rktd.catalog, and every error a line."""

import re
from pathlib import Path

from rktd_units import errors, events

CATALOG = Path(__file__).resolve().parents[2] / "units/rktd.catalog"


def read_catalog() -> dict[str, str]:
    """Texts by id: https://systemd.io/CATALOG."""
    parts = re.split(r"^-- ([0-9a-f]{32})$\n", CATALOG.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_events_and_texts_agree() -> None:
    texts = read_catalog()
    assert set(events.EVENTS.values()) == set(texts)
    assert len(set(events.EVENTS.values())) == len(events.EVENTS)
    for text in texts.values():
        head, _, body = text.partition("\n\n")
        assert re.fullmatch(r"Subject: .+\nDefined-By: rktd-units\nSupport: man:podctl\(1\)\nDocumentation: man:[\w@.-]+\(\d\)", head)
        assert body.strip()
        assert set(re.findall(r"@([A-Z_]+)@", text)) <= {"POD", "APP"}


def test_the_manual_has_them() -> None:
    text = (CATALOG.parents[1] / "docs/podctl.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`([0-9a-f]{32})`", text)) == set(events.EVENTS.values())


def test_every_error_is_an_event() -> None:
    classes = [errors.RktdError]
    for known in classes:
        classes += known.__subclasses__()
    assert {known.event for known in classes} <= set(events.EVENTS)
    assert errors.StateError("x", event="port-taken").event == "port-taken"
    assert errors.ConfigError("x").event == "pod-file-invalid"
