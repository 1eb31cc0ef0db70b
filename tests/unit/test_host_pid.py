# SPDX-License-Identifier: Apache-2.0
"""Pods with hostPID: what nspawn is told, and who their systemd is."""

import os
from pathlib import Path

import pytest

from rktd_units.stage1.leader import find_leader
from rktd_units.stage1.nspawn import Settings, render_argv, render_steps

OWN = Settings("p", "p", "/r", "/s", None, False, "", (), False, machine_id="00" * 16)


def test_nspawn_makes_no_process_name_space() -> None:
    """A user manager instead of a system's, which is ended by another signal; launch says who it is, and keeps it from other users."""
    argv, other = render_argv(OWN._replace(host_pid=True)), render_argv(OWN)
    assert argv[:2] == ("/usr/bin/env", "SYSTEMD_NSPAWN_SHARE_NS_PID=1")
    assert render_argv(OWN._replace(host_pid=True, host_ipc=True))[1:3] == ("SYSTEMD_NSPAWN_SHARE_NS_IPC=1", argv[1])
    assert {"--kill-signal=SIGTERM", "--block-signal=TERM", "--user", "--setenv=XDG_RUNTIME_DIR=/run"} < set(argv)
    assert not {"--user", "--kill-signal=SIGTERM"} & set(other)
    assert [step[0] for step in render_steps(OWN._replace(host_pid=True))] == ["leader", "sameusers", "exec"]
    assert [step[0] for step in render_steps(OWN)] == ["exec"]


def test_the_leader_is_nspawns_child(tmp_path: Path) -> None:
    """Whoever else is in its cgroup; nobody is looked for when nspawn has gone."""
    (tmp_path / "cgroup.procs").write_text(f"{os.getppid()}\n{os.getpid()}\n")
    assert find_leader(f"{tmp_path}", os.getppid()) == os.getpid()
    with pytest.raises(ProcessLookupError, match="nspawn has ended"):
        find_leader(f"{tmp_path}", os.getpid())
