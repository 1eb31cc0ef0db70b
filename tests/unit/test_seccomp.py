# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pytest

from rktd_units.errors import ConfigError
from rktd_units.seccomp import load_profile, render_profile

ALLOW, ERRNO, KILL, LOG = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_LOG"


@pytest.mark.parametrize(
    ("profile", "lines"),
    [
        ({"defaultAction": ALLOW}, ()),
        ({"defaultAction": ERRNO}, (("SystemCallFilter", "write"), ("SystemCallErrorNumber", "EPERM"))),
        (
            {
                "defaultAction": ERRNO,
                "defaultErrnoRet": 38,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
                "syscalls": [{"names": ["read", "openat"], "action": ALLOW}, {"names": ["mkdir"], "action": ERRNO, "errnoRet": 38}],
            },
            (("SystemCallArchitectures", "x32 x86-64"), ("SystemCallFilter", "openat read write"), ("SystemCallErrorNumber", "ENOSYS")),
        ),
        ({"defaultAction": KILL, "syscalls": []}, (("SystemCallFilter", "write"), ("SystemCallErrorNumber", "kill"))),
        (
            {
                "defaultAction": ALLOW,
                "syscalls": [{"names": ["mkdir", "chmod"], "action": ERRNO, "errnoRet": 13}, {"names": ["ptrace"], "action": KILL}],
            },
            (("SystemCallFilter", "~chmod:EACCES mkdir:EACCES ptrace:kill"),),
        ),
        ({"defaultAction": LOG}, (("SystemCallLog", "~write"),)),
        (
            {"defaultAction": LOG, "syscalls": [{"names": ["read"], "action": ALLOW}, {"names": ["ptrace"], "action": KILL}]},
            (("SystemCallFilter", "~ptrace:kill"), ("SystemCallLog", "~read write")),
        ),
        ({"defaultAction": ALLOW, "syscalls": [{"names": ["mkdir"], "action": LOG}]}, (("SystemCallLog", "mkdir"),)),
        (
            {"defaultAction": ERRNO, "syscalls": [{"names": ["read"], "action": ALLOW}, {"names": ["mkdir"], "action": LOG}]},
            (("SystemCallFilter", "mkdir read write"), ("SystemCallErrorNumber", "EPERM"), ("SystemCallLog", "mkdir")),
        ),
        (
            {
                "defaultAction": ERRNO,
                "defaultErrnoRet": 38,
                "syscalls": [
                    {"names": ["read"], "action": ALLOW},
                    {"names": ["bpf"], "action": ERRNO},
                    {"names": ["ptrace"], "action": KILL},
                ],
            },
            (("SystemCallFilter", "read write"), ("SystemCallErrorNumber", "ENOSYS"), ("SystemCallFilter", "~bpf:EPERM ptrace:kill")),
        ),
    ],
    ids=["allow", "deny", "list", "kill", "deny-list", "log", "log-others", "log-some", "log-and-deny", "each-its-own"],
)
def test_profiles(profile: dict[str, Any], lines: tuple[tuple[str, str], ...]) -> None:
    assert render_profile(profile) == lines


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ([], "the profile: must be a map"),
        ({}, "defaultAction: must be SCMP_ACT_ALLOW, SCMP_ACT_ERRNO, SCMP_ACT_KILL_PROCESS or SCMP_ACT_LOG, got None"),
        ({"defaultAction": "SCMP_ACT_TRAP"}, "defaultAction: must be "),
        ({"defaultAction": ALLOW, "listenerPath": "/x"}, "the profile: 'listenerPath' is not supported"),
        ({"defaultAction": ERRNO, "defaultErrnoRet": "EPERM"}, "defaultAction: 'EPERM' is no number of an error"),
        ({"defaultAction": ERRNO, "architectures": ["x"]}, "architectures: must be some of "),
        ({"defaultAction": ERRNO, "syscalls": {}}, None),
        ({"defaultAction": ERRNO, "syscalls": [{"names": ["a"], "action": ALLOW, "args": [{}]}]}, r"syscalls\[0\].args: conditions on arg"),
        ({"defaultAction": ERRNO, "syscalls": [{"names": ["a b"], "action": ALLOW}]}, r"syscalls\[0\].names: 'a b' is no system call"),
        (
            {"defaultAction": ERRNO, "syscalls": [{"names": ["a"], "action": ALLOW}, {"names": ["b", "a"], "action": KILL}]},
            r"syscalls\[1\]: a ends in another way by an earlier entry",
        ),
        ({"defaultAction": ERRNO, "syscalls": [{"name": "a"}]}, r"syscalls\[0\]: 'name' is not supported"),
    ],
    ids=range(11),
)
def test_what_systemd_cannot_do_is_refused(profile: Any, message: str | None) -> None:
    if message is None:
        assert render_profile(profile)[0] == ("SystemCallFilter", "write")
        return
    with pytest.raises(ValueError, match=message):
        render_profile(profile)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ConfigError, match=r"a\.json: no such file or directory"):
        load_profile(str(path))
    path.write_text("{")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"a\.json: is not JSON"):
        load_profile(str(path))
    path.write_text(json.dumps({"defaultAction": "x"}))
    with pytest.raises(ConfigError, match=r"a\.json: defaultAction: must be"):
        load_profile(str(path))
    path.write_text(json.dumps({"defaultAction": ALLOW}))
    assert load_profile(str(path)) == ()
    with pytest.raises(ConfigError, match="is no regular file"):
        load_profile(str(tmp_path))
