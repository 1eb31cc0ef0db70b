# SPDX-License-Identifier: Apache-2.0
"""The probes of a pod's apps: one process inside each pod that has some, Probes.service of the pod's PID 1 (docs/lifecycle.md, Probes).

One poll loop, raw sockets, next to no imports: it is there as long as the pod. What answers a probe is hostile, and so is what an app makes
of its own processes; nothing here blocks on them, and nothing grows with what they send.
"""

import _socket
import errno
import os
import select
import sys
import time
from contextlib import suppress

from rktd_units.probetalk import GrpcTalk, HttpTalk, redirected
from rktd_units.stage1.plan import parse_plan

CONFIG = "/etc/rktd-probes"  # lines of a plan: `app` and what it has, each followed by its `probe`s; stage2.render_probes
STATUS_DIRECTORY = "/run/rktd-status"
EX_ENDED = 3  # an app has failed for good before it was ready: the start of the pod fails
_CGROUPS = "/sys/fs/cgroup/system.slice"
_EXECUTOR = "/usr/lib/systemd/systemd-executor"
_ENVIRONMENT = {"SYSTEMD_LOG_TARGET": "null", "SYSTEMD_IGNORE_CHROOT": "1"}  # with hostPID, the root of PID 1 is another one
_SYSTEMCTL = "/usr/bin/systemctl"
_ENTER_SOCKET = "/run/rktd-exec/socket"  # in EXEC_DIRECTORY of paths.py: execprobes.py of the host or guest
_LOOK_OFTEN, _LOOK_SELDOM = 0.05, 1.0  # seconds between two looks whether an app has started: before READY=1, and later
_EAGER = 0.1  # seconds after the first failure of what has never succeeded; doubles up to the period
_AGAIN = 1.0  # seconds after which what could not be done is tried again
_EXEC_EXTRA = 5  # seconds that systemd may take to end an exec probe at its timeout
_REDIRECTS_MAX = 10
_SOCKET_MAX = 1 << 18  # bytes of one answer, TLS and all
_PROCESSES_MAX = 256  # of an app, that are looked at for its main one


class Trouble(str):
    """A verdict that says nothing of the app: its probe could not be done."""

    __slots__ = ()


class Probe:
    """One probe and where it stands. Times are seconds of CLOCK_MONOTONIC; 0 failures and successes at first."""

    def __init__(self, kind: str, handler: str, numbers: list[str], target: list[str]) -> None:
        self.kind = kind
        self.handler = handler
        self.delay, self.period, self.timeout, self.successes, self.failures, self.grace = map(int, numbers)
        self.target = target  # enter: none; exec: unit; tcp: host, port; http: host, port, tls, path, headers...; grpc: host, port, service
        self.reset(0)

    def reset(self, began: float) -> None:
        """For a new run of the app, which began then."""
        self.attempt: Connection | Command | Errand | None = None
        self.due = began + self.delay
        self.began = 0.0
        self.counted = -1e9  # when a failure was counted last
        self.succeeded = self.failed = 0
        self.passed = self.lost = False
        self.troubles = 0  # in a row
        self.eager = _EAGER

    def start(self, now: float, app: str, pid: int, pidfd: int) -> None:
        """A new attempt, of this app, whose main process is that."""
        self.began = now
        if self.handler == "enter":
            self.attempt = Errand(app, self.kind, pid, pidfd)
        else:
            self.attempt = Command(self.target[0]) if self.handler == "exec" else Connection(self.handler, self.target)

    def note(self, reason: str, now: float) -> None:
        """How an attempt ended. What has never succeeded is tried again soon; that makes no more failures, but finds a success earlier."""
        if isinstance(reason, Trouble):
            self.troubles, self.due = self.troubles + 1, now + _AGAIN
            return
        self.troubles = 0
        if not reason:
            self.failed, self.lost = 0, False
            self.succeeded += 1
            self.passed = self.passed or self.succeeded >= self.successes
            self.due = self.began + self.period
            return
        self.succeeded = 0
        if self.began - self.counted >= self.period - 0.01:
            self.failed, self.counted = self.failed + 1, self.began
            self.lost = self.failed >= self.failures
        self.due = self.counted + self.period
        if self.kind != "liveness" and not self.passed:
            self.due = min(self.due, now + self.eager)
            self.eager = min(self.eager * 2, self.period)


class App:
    """One app with probes: its main process, if it runs, and what is known of it."""

    def __init__(self, name: str, restart: str, signal: str, has_default: str, grace: str, shared: str, hook: str) -> None:
        self.name = name
        self.restart = restart
        self.signal = int(signal)
        self.has_default = has_default == "yes"  # what the signal does to a process without a handler is to end it
        self.grace = int(grace)
        self.shared = shared == "yes"
        self.has_hook = hook == "yes"  # a preStop one: Stop-APP.service runs it and then sends the signal
        self.probes: dict[str, Probe] = {}
        self.pid = 0
        self.pidfd = -1
        self.look = 0.0  # when to look for its process next
        self.kill_at = 0.0  # when it is killed, if it was told to end
        self.ending = self.started = self.ready = self.was_ready = False
        self.is_held = False  # it is to start again, whatever it ends with
        self.said = ""

    def feels(self, number: int) -> bool:
        """Whether PID 1 of a name space feels a signal: stage2._stop_service has the rule."""
        kinds = ("SigCgt:", "SigIgn:", "SigBlk:")
        masks = [line.split()[1] for line in _read(f"/proc/{self.pid}/status").split("\n") if line.startswith(kinds)]
        waits = _read(f"/proc/{self.pid}/syscall").partition(" ")[0] in ("128", "137")
        return waits or any(int(mask, 16) >> (number - 1) & 1 for mask in masks)

    def has_failed(self) -> bool | None:
        """Whether it ended badly, if it has ended for good; else None. What it came to: stage2._result_service."""
        words = _read(f"{STATUS_DIRECTORY}/{self.name}").split()
        if len(words) != 3 or self.restart == "Always":
            return None
        is_good = words[2] == "success"
        return None if self.restart == "OnFailure" and not is_good else not is_good

    def publish(self, *, tell: bool) -> None:
        """STATUS_DIRECTORY/NAME.ready: starting, unready or ready. `tell`: the host is asked to show it."""
        text = "ready" if self.ready else "unready" if self.started else "starting"
        if text != self.said:
            self.said = text
            temporary = f"{STATUS_DIRECTORY}/.{self.name}.ready"
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            os.write(descriptor, f"{text}\n".encode())
            os.close(descriptor)
            os.rename(temporary, f"{STATUS_DIRECTORY}/{self.name}.ready")
            if tell:
                _tell_host()


def find_main(app: str, *, shared: bool) -> tuple[int, int]:
    """The main process of an app once it runs the app's program, and a descriptor of it; (0, -1) if there is none."""
    unit = f"{app}.service"
    directory = f"{_CGROUPS}/_{unit}"  # of an app `cpu`, `memory` ...
    pids = _read(f"{directory if os.path.isdir(directory) else f'{_CGROUPS}/{unit}'}/cgroup.procs").split()
    for pid in map(int, pids[:_PROCESSES_MAX]):
        try:
            found = os.pidfd_open(pid)
        except OSError:
            continue
        if _is_main(pid, shared=shared):
            return pid, found
        os.close(found)
    return 0, -1


def _is_main(pid: int, *, shared: bool) -> bool:
    """PID 1 of the app's own name space, or without one the eldest; and no more systemd's, on its way to the app's program."""
    numbers = next((line for line in _read(f"/proc/{pid}/status").split("\n") if line.startswith("NSpid:")), "").split()[1:]
    if not shared and (len(numbers) != 2 or numbers[1] != "1"):
        return False
    try:
        return not os.path.samestat(os.stat(f"/proc/{pid}/exe"), os.stat(_EXECUTOR))
    except OSError:
        return False


class Connection:
    """One attempt over TCP."""

    def __init__(self, handler: str, target: list[str]) -> None:
        self._redirects = 0
        self._open(handler, target)

    def _open(self, handler: str, target: list[str]) -> None:
        self._target = target
        host, port = target[0], int(target[1])
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._talk: HttpTalk | GrpcTalk | None = None
        self._tls: Tls | None = None
        if handler == "http":
            self._talk = HttpTalk(authority, target[3], list(zip(target[4::2], target[5::2], strict=True)))
            self._tls = Tls() if target[2] == "yes" else None
        elif handler == "grpc":
            self._talk = GrpcTalk(authority, target[2])
        self._out = b""
        self._received = 0
        self._is_connected = False
        self.events = select.POLLOUT
        family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
        self._socket = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        self._error = self._socket.connect_ex((host, port))  # in progress, as a rule: the loop tells when it is through
        self.descriptor = self._socket.fileno()

    def step(self) -> str | None:
        """Goes on as far as it can without waiting; the verdict, or None."""
        try:
            if not self._is_connected:
                error = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR) or (
                    self._error if self._error != errno.EINPROGRESS else 0
                )
                if error:
                    return f"cannot connect: {os.strerror(error).lower()}"
                self._is_connected = True
                if self._talk is None:
                    return ""
            return self._exchange(self._talk) if self._talk else ""
        except OSError as error:
            reason = getattr(error, "reason", None)  # of ssl.SSLError: OpenSSL's word for it
            return f"TLS: {reason}" if reason else _text(error)

    def _exchange(self, talk: HttpTalk | GrpcTalk) -> str | None:
        verdict = None
        for _ in range(16):  # then others have their turn
            self._out += self._tls.pull(talk) if self._tls else talk.outgoing
            if not self._tls:
                talk.outgoing = b""
            with suppress(BlockingIOError):
                while self._out:
                    self._out = self._out[self._socket.send(self._out) :]
            try:
                data = self._socket.recv(4096)
            except BlockingIOError:
                break
            self._received += len(data)
            if not data:
                verdict = talk.end()
            elif self._received > _SOCKET_MAX:
                verdict = "the answer is too long"
            else:
                verdict = self._tls.push(data, talk) if self._tls else talk.feed(data)
            if verdict is not None:
                break
        self.events = select.POLLIN | (select.POLLOUT if self._out else 0)
        return self._follow(talk.location) if verdict == "" and isinstance(talk, HttpTalk) and talk.location else verdict

    def _follow(self, location: str) -> str | None:
        """On the same host; a redirect to another one is a success, as for kubelet."""
        target = redirected(self._target, location)
        if target is None:
            return ""
        self._redirects += 1
        if self._redirects > _REDIRECTS_MAX:
            return f"more than {_REDIRECTS_MAX} redirects"
        before = self._socket
        self._open("http", target)
        before.close()  # only now: what waits for the new one must not take it for the old one
        return None

    def close(self) -> None:
        self._socket.close()


class Tls:
    """TLS without any check of the certificate, as kubelet has it: what is probed is the app, not who it says it is."""

    def __init__(self) -> None:
        import ssl  # 5 MB, for pods that use it only

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._wants_read: type[Exception] = ssl.SSLWantReadError
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._in, self._out)

    def pull(self, talk: HttpTalk | GrpcTalk) -> bytes:
        """What is to be sent now. The request goes when the handshake is through."""
        with suppress(self._wants_read):
            self._object.do_handshake()
            while talk.outgoing:
                talk.outgoing = talk.outgoing[self._object.write(talk.outgoing) :]
        return self._out.read()

    def push(self, data: bytes, talk: HttpTalk | GrpcTalk) -> str | None:
        """Takes what was received."""
        self._in.write(data)
        with suppress(self._wants_read):
            self._object.do_handshake()
            while data := self._object.read(4096):
                verdict = talk.feed(data)
                if verdict is not None:
                    return verdict
            return talk.end()
        return None


class Errand:
    """One run of an exec probe or hook by who enters the app (execprobes.py), which tells the exit code. To close the connection ends it.

    That counts pids otherwise; by the pidfd it need not look through all processes of the app for the one that is meant.
    """

    events = select.POLLIN

    def __init__(self, app: str, kind: str, pid: int, pidfd: int) -> None:
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        self.descriptor = self._socket.fileno()
        try:
            self._socket.connect(_ENTER_SOCKET)
            process = pidfd.to_bytes(4, sys.byteorder)
            self._socket.sendmsg([f"{app} {kind} {pid}".encode()], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, process)])
        except OSError:
            self._socket.close()
            raise

    def step(self) -> str | None:
        try:
            text = self._socket.recv(256).decode("ascii", "replace")
        except OSError as error:
            return Trouble(_text(error))
        if not text.isdigit():
            return Trouble(f"the command was not run: {text[2:] or 'no answer'}")
        return _describe_end("exit-code", text) if text != "0" else ""

    def close(self) -> None:
        self._socket.close()


class Command:
    """One attempt of an exec probe or hook that nobody enters the app for: a start of its unit; after a failure, what that came to."""

    events = select.POLLIN

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._out = -1
        self._run("start", "--quiet", unit)

    def _run(self, *words: str) -> None:
        read, write = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
        environment = _ENVIRONMENT | {"SYSTEMD_PAGER": ""}
        self._pid = os.posix_spawn(_SYSTEMCTL, [_SYSTEMCTL, *words], environment, file_actions=actions)
        os.close(write)
        self._out = self.descriptor = read  # it ends when systemctl does

    def step(self) -> str | None:
        text = os.read(self._out, 256).decode("ascii", "replace")
        os.close(self._out)
        self._out = -1
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if text:
            found = dict(line.split("=", 1) for line in text.split("\n") if "=" in line)
            result = found.get("Result", "")
            if result in ("", "success", "resources"):  # its unit was not started
                return Trouble("the command was not run")
            return _describe_end(result, found.get("ExecMainStatus", ""))
        if os.waitstatus_to_exitcode(status) == 0:
            return ""
        self._run("show", "--property=Result,ExecMainStatus", self._unit)
        return None

    def close(self) -> None:
        """systemctl only: the command ends by its own timeout."""
        if self._out >= 0:
            os.close(self._out)
        if self._pid:
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)


class Prober:
    """All apps, and the loop."""

    def __init__(self, apps: list[App]) -> None:
        self._apps = apps
        self._poll = select.poll()
        self._attempts: dict[int, tuple[App, Probe]] = {}
        self._mains: dict[int, App] = {}
        self._announced = False

    def run(self) -> int:
        """Until it is stopped, or until the start of the pod has failed."""
        for app in self._apps:
            app.publish(tell=False)
        while True:
            now = time.monotonic()
            due = min(self._tend(app, now) for app in self._apps)
            if not self._announced and (code := self._announce()):
                return code
            wait = max(due - time.monotonic(), 0)
            for descriptor, _ in self._poll.poll(wait * 1000 + 0.5):
                if descriptor in self._mains:
                    self._lose_main(self._mains[descriptor])
                elif descriptor in self._attempts:
                    self._go_on(*self._attempts[descriptor])

    def _tend(self, app: App, now: float) -> float:
        """Does what is due for an app; gives when to come again."""
        if app.pidfd < 0:
            if now >= app.look:
                app.look = now + (_LOOK_SELDOM if self._announced else _LOOK_OFTEN)
                app.pid, app.pidfd = find_main(app.name, shared=app.shared)
                if app.pidfd >= 0:
                    self._begin(app, now)
            if app.pidfd < 0:
                if app.is_held and app.has_failed() is False:
                    self._release(app, "start", "--no-block", f"{app.name}.service")
                return app.look
        if app.ending:
            if app.kill_at and now >= app.kill_at:
                _send(app, 9)
                app.kill_at = 0
            return app.kill_at or now + 3600
        times = [now + 3600]
        for probe in self._active(app):
            if probe.attempt is None and now >= probe.due:
                self._start(app, probe, now)
            if probe.attempt is None:
                times.append(probe.due)
                continue
            end = probe.began + probe.timeout + (_EXEC_EXTRA if probe.handler == "exec" else 0)
            if now >= end:
                is_command = probe.handler in ("enter", "exec")
                self._conclude(app, probe, "the command took too long" if is_command else f"no answer within {probe.timeout} s")
                return now
            times.append(end)
        return min(times)

    def _active(self, app: App) -> list[Probe]:
        """Those that run: startup until it has succeeded, then the others."""
        startup = app.probes.get("startup")
        return [startup] if startup and not app.started else [p for p in app.probes.values() if p is not startup]

    def _begin(self, app: App, now: float) -> None:
        """The app runs."""
        self._mains[app.pidfd] = app
        self._poll.register(app.pidfd, select.POLLIN)
        app.ending, app.kill_at = False, 0
        if app.is_held:
            self._release(app)
        for probe in app.probes.values():
            probe.reset(now)
        self._judge(app)

    def _lose_main(self, app: App) -> None:
        """The app has ended; others say so. Its probes begin anew with its next run."""
        for probe in app.probes.values():
            self._drop(probe)
        self._poll.unregister(app.pidfd)
        del self._mains[app.pidfd]
        os.close(app.pidfd)
        app.pidfd, app.look = -1, 0.0
        app.started = app.ready = False
        app.publish(tell=self._announced)

    def _start(self, app: App, probe: Probe, now: float) -> None:
        try:
            probe.start(now, app.name, app.pid, app.pidfd)
        except OSError as error:
            self._note(app, probe, Trouble(_text(error)))
            return
        assert probe.attempt is not None
        self._attempts[probe.attempt.descriptor] = (app, probe)
        self._poll.register(probe.attempt.descriptor, probe.attempt.events)

    def _go_on(self, app: App, probe: Probe) -> None:
        attempt = probe.attempt
        assert attempt is not None
        before = attempt.descriptor, attempt.events
        verdict = attempt.step()
        if verdict is not None:
            self._conclude(app, probe, verdict)
        elif (attempt.descriptor, attempt.events) != before:
            self._poll.unregister(before[0])
            del self._attempts[before[0]]
            self._attempts[attempt.descriptor] = (app, probe)
            self._poll.register(attempt.descriptor, attempt.events)

    def _drop(self, probe: Probe) -> None:
        if probe.attempt is not None:
            self._poll.unregister(probe.attempt.descriptor)
            del self._attempts[probe.attempt.descriptor]
            probe.attempt.close()
            probe.attempt = None

    def _conclude(self, app: App, probe: Probe, reason: str) -> None:
        self._drop(probe)
        self._note(app, probe, reason)

    def _note(self, app: App, probe: Probe, reason: str) -> None:
        was_lost = probe.lost
        probe.note(reason, time.monotonic())
        if probe.troubles == 2:  # one may be that the app is about to end
            say(4, f"the {probe.kind} probe of app {app.name} cannot be done, which does not count: {reason}")
        if probe.lost and not was_lost:
            if probe.kind == "readiness":
                say(4, f"app {app.name} is not ready: {reason}")
            else:
                self._end(app, probe, reason)
        self._judge(app)

    def _judge(self, app: App) -> None:
        """What its probes come to."""
        if app.ending:
            return
        startup, readiness = app.probes.get("startup"), app.probes.get("readiness")
        if not app.started and (startup is None or startup.passed):
            app.started = True
        before, is_lost = app.ready, readiness is not None and readiness.lost
        passed = readiness is None or (readiness.succeeded >= readiness.successes or before)
        app.ready = app.started and passed and not is_lost
        if app.ready and not before:
            app.was_ready = True
            if startup or readiness:
                say(6, f"app {app.name} is ready")
        app.publish(tell=self._announced)

    def _release(self, app: App, *start: str) -> None:
        """The pod need not be held for this app any more, as it runs or is started now."""
        app.is_held = False
        if start:
            call(*start)
        if not any(other.is_held for other in self._apps):
            call("stop", "--no-block", "Held.service")

    def _end(self, app: App, probe: Probe, reason: str) -> None:
        """The stop signal, and SIGKILL after the grace period; what then becomes of it is for its restart policy. As Stop-APP.service.

        Under OnFailure it is to start again even if it answers the signal with exit code 0, for which its unit would not do that, nor would
        the pod outlive it.
        """
        if app.restart == "OnFailure":
            app.is_held = call("start", "Held.service")
        say(3, f"app {app.name} is ended: its {probe.kind} probe failed {probe.failures} times: {reason}")
        app.ending, app.started, app.ready = True, False, False
        app.publish(tell=self._announced)
        for other in app.probes.values():
            self._drop(other)
        app.kill_at = time.monotonic() + (probe.grace if probe.grace >= 0 else app.grace)
        if app.has_hook:
            call("stop", "--no-block", f"Stop-{app.name}.service")
        else:
            _send(app, 9 if app.has_default and not app.feels(app.signal) else app.signal)

    def _announce(self) -> int:
        """READY=1 once every app was ready, or has ended well; EX_ENDED if one never will be."""
        for app in self._apps:
            if not app.was_ready and app.probes.keys() & {"startup", "readiness"}:
                failed = app.has_failed() if app.pidfd < 0 else None
                if failed:
                    say(3, f"app {app.name} has ended before it was ready")
                    return EX_ENDED
                if failed is None:
                    return 0
        self._announced = True
        _notify("READY=1")
        return 0


def _send(app: App, number: int) -> None:
    import signal  # 0.8 MB

    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(app.pidfd, number)


def call(*words: str) -> bool:
    """systemctl, and waits for it: only for what the pod's PID 1 does at once."""
    quiet = [(os.POSIX_SPAWN_OPEN, stream, "/dev/null", os.O_WRONLY, 0) for stream in (1, 2)]
    pid = os.posix_spawn(_SYSTEMCTL, [_SYSTEMCTL, *words], _ENVIRONMENT, file_actions=quiet)
    return os.waitpid(pid, 0)[1] == 0


def say(level: int, text: str) -> None:
    """A line of the pod's own in the journal, with its syslog level."""
    with suppress(OSError):
        os.write(1, f"<{level}>{text}\n".encode())


def _tell_host() -> None:
    """Has STATUS= of pod@NAME say what is in STATUS_DIRECTORY; nothing where it does not listen; in a Xen guest guestlog.py does it."""
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
    with suppress(OSError):
        channel.connect(_ENTER_SOCKET)
        channel.send(b"status")
    channel.close()


def _notify(text: str) -> None:
    """sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        channel.connect("\0" + path[1:] if path.startswith("@") else path)
        channel.send(text.encode())
        channel.close()


def _read(path: str) -> str:
    """A small file; "" where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 65536).decode("ascii", "replace")
    except OSError:  # of a process that is gone
        return ""
    finally:
        os.close(descriptor)


def _describe_end(result: str, status: str) -> str:
    """How the command of an exec probe ended."""
    if result == "timeout":
        return "the command took too long"
    if result == "signal":
        return f"the command was killed by signal {status}"
    return f"the command ended with exit code {status}" + (": it cannot be executed" if status == "203" else "")


def _text(error: OSError) -> str:
    return (error.strerror or "").lower() or "the connection failed"


def parse_config(text: str) -> list[App]:
    """The apps of a CONFIG file."""
    apps: list[App] = []
    for verb, *fields in parse_plan(text):
        if verb == "app":
            apps.append(App(*fields))
        else:
            apps[-1].probes[fields[0]] = Probe(fields[0], fields[1], fields[2:8], fields[8:])
    return apps


def main(argv: list[str]) -> int:
    """`prober [CONFIG]`."""
    with open(argv[1] if len(argv) > 1 else CONFIG, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        apps = parse_config(file.read())
    return Prober(apps).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
