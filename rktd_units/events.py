# SPDX-License-Identifier: Apache-2.0
"""The few lines of ours that the message catalog explains: units/rktd.catalog has a text for each of EVENTS, for `journalctl -x`."""

import os

EVENTS = {
    "pod-file-invalid": "69936e0a6b034f728341876f4a71bc9d",
    "image-not-verified": "3b7b91c9ac0f4935836d5e27b5ea05b4",
    "image-unavailable": "dfd4bef71857495784934687e6f29887",
    "port-taken": "f33d8bec841043019b737df896d05e04",
    "stage0-failed": "22a25f1269ff47b380c9f33bf8ee3d0f",
    "stage0-again": "9bcf8d3b2a674cc7ba333bb231d34930",
    "stage1-failed": "b1b56c64d160473d9978800fca9a375e",
    "update-rolled-back": "758d7d5b180d40dbb1d190bb494e4ffa",
    "app-failed": "9e51c5de3a904893a5149833babedcbe",
}


def log(text: str, event: str, pod: str, **fields: str) -> bool:
    """Writes lines, each after `<N>` as sd-daemon(3) has it; the last one is the event. False where the journal does not take them.

    They are found under the pod's unit, too: the journal lets root name another one (systemd.journal-fields(7), OBJECT_SYSTEMD_UNIT=).
    """
    from rktd_units.journal import Journal  # only when something went wrong: stage0 is in every start

    journal, lines = Journal(), text.splitlines()
    common = {"SYSLOG_IDENTIFIER": "stage0", "POD": pod, "OBJECT_SYSTEMD_UNIT": f"pod@{pod}.service"}
    for index, line in enumerate(lines):
        priority, message = (line[1], line[3:]) if line[:1] == "<" and line[2:3] == ">" else ("6", line)
        entry = {**common, "MESSAGE": message, "PRIORITY": priority}
        if index == len(lines) - 1:
            entry |= {"MESSAGE_ID": EVENTS[event], **fields}
        # Of stage0, too, by its unit: the journal finds no unit of a process that has ended before it is looked at.
        sent = [*entry.items(), ("OBJECT_SYSTEMD_UNIT", f"pod-stage0@{pod}.service")]
        if not journal.send([(name, value.encode("utf-8", "surrogateescape")) for name, value in sent]):
            return False
    return True


def is_to_journal() -> bool:
    """Whether standard error is the journal's (systemd.exec(5), $JOURNAL_STREAM)."""
    status = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
