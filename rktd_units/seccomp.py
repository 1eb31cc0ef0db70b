# SPDX-License-Identifier: Apache-2.0
"""seccompProfile of type Localhost: an OCI seccomp file (runtime-spec, config-linux.md, Seccomp) as lines of an app's unit.

systemd knows which calls are allowed or logged, and with which error or signal each other one ends, but no conditions on arguments: a
profile that has those, or that traces or traps, is refused and not made weaker. What systemd itself needs between its filter and the
app's first instruction is always allowed (systemd.exec(5), SYSTEM CALL FILTERING: execve, exit, clocks, sleep ...; and write).
"""

import errno
import os
import stat
from typing import Any

from rktd_units.confine import CALL_OF_SYSTEMD
from rktd_units.errors import ConfigError
from rktd_units.ownership import HINT, find_fault

_SIZE_MAX = 1 << 20
_ALLOW = "SCMP_ACT_ALLOW"
_KILL = ("SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS")
_ERRNO = "SCMP_ACT_ERRNO"
_LOG = "SCMP_ACT_LOG"  # allowed, and the kernel says so
_ARCHITECTURES = {
    "SCMP_ARCH_X86": "x86",
    "SCMP_ARCH_X86_64": "x86-64",
    "SCMP_ARCH_X32": "x32",
    "SCMP_ARCH_ARM": "arm",
    "SCMP_ARCH_AARCH64": "arm64",
    "SCMP_ARCH_RISCV64": "riscv64",
    "SCMP_ARCH_PPC64LE": "ppc64-le",
    "SCMP_ARCH_S390X": "s390x",
}
_KEYS = frozenset({"defaultAction", "defaultErrnoRet", "architectures", "syscalls", "flags"})
_CALL_KEYS = frozenset({"names", "action", "errnoRet", "args"})
_ALLOWING = ("", "log")
Lines = tuple[tuple[str, str], ...]


def load_profile(path: str) -> Lines:
    """Keys and values of [Service]. Raises ConfigError naming the file and what in it cannot be done."""
    import json

    try:
        status = os.stat(path)
        fault = find_fault(status) if os.geteuid() == 0 else ""
        if fault or not stat.S_ISREG(status.st_mode) or status.st_size > _SIZE_MAX:
            raise ConfigError(f"{path}: {fault or f'is no regular file of at most {_SIZE_MAX} bytes'}", hint=HINT if fault else "")
        with open(path, encoding="utf-8") as file:
            profile = json.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or '').lower()}", hint="localhostProfile names a file below that directory") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON: {error}") from error
    try:
        return render_profile(profile)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def render_profile(profile: Any) -> Lines:
    """Raises ValueError with the place and what is wrong there."""
    _check_map(profile, _KEYS, "the profile")
    default = _outcome(profile.get("defaultAction"), profile.get("defaultErrnoRet"), "defaultAction")
    lines: list[tuple[str, str]] = []
    names = [_architecture(name) for name in _list(profile, "architectures", "the profile")]
    if names:
        lines.append(("SystemCallArchitectures", " ".join(sorted(set(names)))))
    calls: dict[str, str] = {}  # how each ends
    for index, entry in enumerate(_list(profile, "syscalls", "the profile")):
        place = f"syscalls[{index}]"
        _check_map(entry, _CALL_KEYS, place)
        if entry.get("args"):
            raise ValueError(f"{place}.args: conditions on arguments are not supported")
        outcome = _outcome(entry.get("action"), entry.get("errnoRet"), f"{place}.action")
        for call in _list(entry, "names", place):
            if not isinstance(call, str) or not call.isascii() or not call.replace("_", "a").isalnum():
                raise ValueError(f"{place}.names: {call!r:.60} is no system call")
            if calls.setdefault(call, outcome) != outcome:
                raise ValueError(f"{place}: {call} ends in another way by an earlier entry")
    return (*lines, *_filter_lines(default, calls))


def _filter_lines(default: str, calls: dict[str, str]) -> Lines:
    """In a list of what is allowed, too, `~CALL:ERROR` says how a call ends (systemd 257, seccomp_parse_syscall_filter)."""
    allowed = {call for call, outcome in calls.items() if outcome == ""}
    logged = {call for call, outcome in calls.items() if outcome == "log"}
    denied = {f"{call}:{outcome}" for call, outcome in calls.items() if outcome not in (*_ALLOWING, default)}
    lines: list[tuple[str, str]] = []
    if default not in _ALLOWING:
        lines.append(("SystemCallFilter", " ".join((*sorted(allowed | logged), CALL_OF_SYSTEMD))))
        lines.append(("SystemCallErrorNumber", default))
    if denied:
        lines.append(("SystemCallFilter", f"~{' '.join(sorted(denied))}"))
    if default == "log":
        lines.append(("SystemCallLog", f"~{' '.join((*sorted(allowed), CALL_OF_SYSTEMD))}"))
    elif logged:
        lines.append(("SystemCallLog", " ".join(sorted(logged))))
    return tuple(lines)


def _outcome(action: object, number: object, place: str) -> str:
    """How a call ends: "" for as it should, `log` for the same with a word of the kernel's, the name of an error, or `kill`."""
    if action == _ALLOW:
        return ""
    if action == _LOG:
        return "log"
    if action in _KILL:
        return "kill"
    if action != _ERRNO:
        raise ValueError(f"{place}: must be {_ALLOW}, {_ERRNO}, {_KILL[2]} or {_LOG}, got {action!r:.60}")
    number = errno.EPERM if number is None else number
    if not isinstance(number, int) or number not in errno.errorcode:
        raise ValueError(f"{place}: {number!r:.60} is no number of an error")
    return errno.errorcode[number]


def _architecture(name: object) -> str:
    if name not in _ARCHITECTURES:
        raise ValueError(f"architectures: must be some of {', '.join(_ARCHITECTURES)}, got {name!r:.60}")
    return _ARCHITECTURES[str(name)]


def _check_map(value: Any, keys: frozenset[str], place: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: must be a map")
    unknown = sorted(set(value) - keys)
    if unknown:
        raise ValueError(f"{place}: {unknown[0]!r:.60} is not supported")


def _list(value: dict[str, Any], key: str, place: str) -> list[Any]:
    found = value.get(key) or []
    if not isinstance(found, list):
        raise ValueError(f"{place}: {key} must be a list")
    return found
