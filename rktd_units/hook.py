# SPDX-License-Identifier: Apache-2.0
"""Runs one hook of an app, inside the pod: PostStart-APP.service and PreStop-APP.service of the pod's PID 1 (docs/lifecycle.md, Hooks).

`hook postStart|preStop APP`. It waits as long as its unit lets it. A postStart hook that fails is the end of its app's run.
"""

import select
import time

from rktd_units.prober import Command, Connection, Errand, call, find_main, say
from rktd_units.stage1.plan import parse_plan

CONFIG = "/etc/rktd-hooks"  # a plan: `APP KIND HANDLER TARGET...`; stage2.render_hooks
_LOOK = 0.01  # seconds between two looks whether the app's program runs
_ENDING = 1000  # milliseconds that an app may take to end after its hook was killed
_PATIENCE = 1.0  # seconds until an app that is to be stopped must


def main(argv: list[str]) -> int:
    """0 in any case: what a failure means is done here, and told."""
    kind, app = argv[1:3]
    with open(argv[3] if len(argv) > 3 else CONFIG, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for name, found, handler, *target in parse_plan(file.read()):
            if (name, found) == (app, kind) and (reason := run_hook(app, kind, handler, target)):
                _conclude(kind, app, reason)
    return 0


def run_hook(app: str, kind: str, handler: str, target: list[str]) -> str:
    """Why it failed, or ""."""
    if handler == "sleep":
        time.sleep(int(target[0]))
        return ""
    try:
        if handler == "enter":
            return _enter(app, kind, shared=target[0] == "yes")
        attempt = Command(target[0]) if handler == "exec" else Connection("http", target)
        reason = _wait(attempt)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "" if reason.startswith("HTTP status ") else reason  # any answer is one, as for kubelet


def _enter(app: str, kind: str, *, shared: bool) -> str:
    """A command in the app. That the app ends of what a preStop hook does, and the hook with it, is no failure.

    The hook is gone before the app's main process is, which kills and awaits all in its process name space.
    """
    pid, pidfd = find_main(app, shared=shared)
    end = time.monotonic() + _PATIENCE
    while pidfd < 0:  # a unit that has started may be on its way to its program; one that has ended takes its postStart hook with it
        if kind == "preStop" and time.monotonic() > end:
            return "the app does not run"
        time.sleep(_LOOK)
        pid, pidfd = find_main(app, shared=shared)
    reason = _wait(Errand(app, kind, pid, pidfd))
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    return "" if not reason or (kind == "preStop" and ended.poll(_ENDING)) else reason


def _wait(attempt: Command | Connection | Errand) -> str:
    try:
        while True:
            poll = select.poll()
            poll.register(attempt.descriptor, attempt.events)
            poll.poll()
            verdict = attempt.step()
            if verdict is not None:
                return verdict
    finally:
        attempt.close()


def _conclude(kind: str, app: str, reason: str) -> None:
    """As kubelet kills a container whose postStart hook fails: preStop hook, stop signal, and SIGKILL after the grace period."""
    if kind == "preStop":
        say(4, f"the preStop hook of app {app} failed: {reason}")
        return
    say(3, f"app {app} is ended: its postStart hook failed: {reason}")
    if not call("stop", f"Stop-{app}.service"):
        call("kill", "--kill-whom=main", "--signal=KILL", f"{app}.service")
