# SPDX-License-Identifier: Apache-2.0
"""What podctl knows of pods: names, files, units, cgroups, the apps inside. Gives the records of docs/podctl-output.md; prints nothing.

A pod whose directory or file is broken is a record with a `fault`; it hides no other. Without root, what only root may read is null.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from rktd_units.cgroups import app_cgroup, cgroup_root, find_host_pid, leader_of, read_quietly
from rktd_units.cli.output import Record, format_time
from rktd_units.errors import ConfigError, NotFoundError, RktdError, StateError, UsageError, clean_text
from rktd_units.names import is_label, is_pod_name, pod_unit, stage0_unit
from rktd_units.paths import Layout, pod_search_path
from rktd_units.podfile.search import PodEntry, find_pods
from rktd_units.results import End, load_result, read_end
from rktd_units.runfiles import read_text, read_untrusted

_RUNS = ("active", "reloading", "deactivating", "activating")
_POD_PROPERTIES = ("Result", "NRestarts", "ExecMainCode", "ExecMainStatus", "MainPID", "ControlGroup", "StatusText")


class Host:
    """One look at this host; systemd is asked when something needs it."""

    def __init__(self, layout: Layout = Layout()) -> None:
        from rktd_units import systemd

        self.layout = layout
        self.directories = pod_search_path(dict(os.environ))
        self.entries: dict[str, PodEntry] = {entry.name: entry for entry in find_pods(self.directories).entries}
        self._manager = systemd.Manager()
        self._manager.__enter__()
        self.units = {
            name: (load, *_true_state(active, sub, waits=job in ("start", "restart")))
            for name, load, active, sub, job in self._manager.list_units("pod@*.service", "pod-stage0@*.service")
        }
        try:
            self._directories = set(filter(is_pod_name, os.listdir(layout.pods)))
        except OSError:
            self._directories = set()

    def names(self) -> list[str]:
        """All pods that have a file, a directory of a run, or a unit that is not at rest."""
        found = set(self.entries) | self._directories
        found |= {split_unit(unit) for unit, (_, active, _) in self.units.items() if active != "inactive"}
        return sorted(filter(is_pod_name, found))

    def has_directory(self, name: str) -> bool:
        """Whether there is something of a run of it."""
        return name in self._directories

    def require(self, names: Sequence[str]) -> list[str]:
        """The pods' names without `pod@` and `.service`. Raises NotFoundError for the first that is not there."""
        known = self.names()
        found = [split_unit(name) for name in names]
        for name in found:
            if name not in known:
                raise not_found("pod", name, known)
        return list(dict.fromkeys(found))

    def require_app(self, text: str) -> tuple[str, str]:
        """(pod, app) of `POD/APP`, or of `POD` when it has one app only."""
        pod, slash, app = text.partition("/")
        pod = self.require([pod])[0]
        known = self.list_apps(pod)
        if not slash and len(known) == 1:
            return pod, known[0]
        if not slash:
            raise UsageError(f"pod {pod} has several apps: say {pod}/APP", hint=f"its apps: {', '.join(known) or 'unknown'}")
        self.check_app(pod, app)
        return pod, app

    def list_apps(self, pod: str) -> list[str]:
        """Their names, as far as they are known."""
        return [record["name"] for record in self.describe([pod], ask=False)[0]["apps"]]

    def check_app(self, pod: str, app: str) -> None:
        """Raises NotFoundError if the pod has no such app."""
        known = self.list_apps(pod)
        if not is_label(app) or (known and app not in known):
            raise not_found(f"app in pod {pod}", app, known)

    def state(self, pod: str) -> tuple[str, str]:
        """ActiveState and SubState of pod@NAME, now; see `_true_state`."""
        active, sub, job = self._manager.get_properties(pod_unit(pod), "Unit", ("ActiveState", "SubState", "Job"))
        return _true_state(active, sub, waits=bool(job[0]))

    def cgroup(self, pod: str) -> str:
        """The directory of the pod's cgroup; "" while it has none."""
        path = self._manager.get_property(pod_unit(pod), "Service", "ControlGroup")
        return cgroup_root() + path if path else ""

    def properties(self, unit: str, interface: str, names: Sequence[str]) -> list[Any]:
        """Of a unit; see systemd.Manager."""
        return self._manager.get_properties(unit, interface, names)

    def start(self, unit: str) -> None:
        """Enqueues a job."""
        self._manager.start_unit(unit)

    def stop(self, unit: str) -> None:
        """The same."""
        self._manager.stop_unit(unit)

    def reset_failed(self, unit: str) -> None:
        """Has systemd forget how it ended; one that it does not know is fine."""
        with suppress(StateError):
            self._manager.reset_failed(unit)

    def start_transient(self, unit: str, description: str, bound_to: Sequence[str], at_end: Sequence[Sequence[str]]) -> None:
        """See systemd.Manager."""
        self._manager.start_transient(unit, description, bound_to, at_end)

    def start_scope(self, unit: str, description: str) -> None:
        """Of this process."""
        self._manager.start_scope(unit, description, os.getpid())

    def version(self) -> str:
        """systemd's."""
        return self._manager.version()

    def describe(self, names: Iterable[str], *, ask: bool = True) -> list[Record]:
        """The records of these pods, in order. With `ask`, their own systemd is asked for the apps' states."""
        records = [self._describe(name) for name in names]
        if ask and os.geteuid() == 0:
            # A guest's leader is its supervisor, which lives among the host's units.
            running = [r["name"] for r in records if r["state"] in _RUNS and r["stage1"] != "xen"]
            leaders = {name: leader for name in running if (leader := leader_of(name))}
            if leaders:
                from rktd_units.appstate import ask_pods

                states = ask_pods(leaders)
                for record in records:
                    _add_app_states(record, states.get(record["name"]))
                    self._add_old_restarts(record)
        for record in records:
            apps = record["apps"]
            for app in apps:
                if app["restarts"] and app["exitCode"] is None:  # while it runs again, its systemd does not know it any more
                    end = read_end(self.layout, record["name"], app["name"])
                    app["exitCode"] = exit_code(end["code"], end["status"]) if end else None
                app["ready"] = record["state"] in _RUNS and app["state"] == "active" and self._is_ready(record["name"], app["name"])
            record["appsReady"] = sum(app["ready"] for app in apps)
            record["appsTotal"] = len(apps) if apps else None
            record["restarts"] += sum(app["restarts"] or 0 for app in apps)
        return records

    def _add_old_restarts(self, record: Record) -> None:
        """Those that its systemd does not count any more: Calm@APP.service."""
        for app in record["apps"]:
            text = read_untrusted(f"{self.layout.pod(record['name'])}/status/{app['name']}.restarts").strip()
            if app["restarts"] is not None and text.isascii() and text.isdecimal() and len(text) < 10:
                app["restarts"] += int(text)

    def _is_ready(self, pod: str, app: str) -> bool:
        """What the app's probes say, if it has some; without root, nobody knows."""
        return read_untrusted(f"{self.layout.pod(pod)}/status/{app}.ready").strip() in ("", "ready")

    def _describe(self, name: str) -> Record:
        unit = self.units.get(pod_unit(name), ("not-loaded", "inactive", "dead"))
        stage0 = self.units.get(stage0_unit(name), ("not-loaded", "inactive", "dead"))
        entry = self.entries.get(name)
        record: Record = {"name": name, "file": entry.path if entry else None, "stage1": None, "state": unit[1], "subState": unit[2]}
        record.update(result="success", exitStatus=None, since=None, pid=None, cgroup=None, restarts=0, address=None, statusText=None)
        if unit[0] == "loaded":
            values = dict(zip(_POD_PROPERTIES, self.properties(pod_unit(name), "Service", _POD_PROPERTIES), strict=True))
            stamp = "ActiveEnterTimestamp" if unit[1] == "active" else "StateChangeTimestamp"
            record.update(result=values["Result"], since=format_time(self._manager.get_property(pod_unit(name), "Unit", stamp)))
            record.update(restarts=values["NRestarts"], pid=values["MainPID"] or None, cgroup=values["ControlGroup"] or None)
            record.update(
                exitStatus=values["ExecMainStatus"] if values["ExecMainCode"] else None, statusText=clean_text(values["StatusText"]) or None
            )
        record["stage0"] = {"state": stage0[1], "subState": stage0[2], "error": read_error(self.layout, name)}
        record["listening"] = os.path.exists(self.layout.socket_record(name))
        record["changed"] = None
        record["fault"] = None
        record["apps"] = []
        try:
            self._add_run(record) if name in self._directories or unit[1] in _RUNS else self._add_file(record, entry)
        except (RktdError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            record["fault"] = clean_text(error)
        return record

    def _add_run(self, record: Record) -> None:
        """What runs, from pod.json; without root, from the file and the cgroups."""
        try:
            run = load_run(self.layout, record["name"])
        except (FileNotFoundError, PermissionError):
            self._add_file(record, self.entries.get(record["name"]))
        else:
            record["changed"] = _is_changed(run, self.entries.get(record["name"]))
            network = run.get("network")
            record.update(stage1=str(run["stage1"]), address=str(network["addresses"][0]).partition("/")[0] if network else None)
            record["apps"] = [
                _app_record(str(a["name"]), str(a["image"]), a.get("digest"), a.get("verifiedBy"), a.get("uid")) for a in run["apps"]
            ]
        if record["stage1"] == "xen":
            self._add_guest(record)
        for app in record["apps"] if record["stage1"] != "xen" else ():
            _add_cgroup(app, record["cgroup"])

    def _add_guest(self, record: Record) -> None:
        """What the supervisor of a Xen guest has heard from it."""
        import json

        try:
            states = json.loads(read_text(f"{self.layout.pod(record['name'])}/states") or "{}")
        except (OSError, ValueError):
            return
        for app in record["apps"]:
            state = states.get(app["name"])
            if state is None:
                continue
            app["restarts"] = int(state["restarts"])
            if state["running"]:
                app.update(state="active", subState="running")
            else:
                end = read_end(self.layout, record["name"], app["name"])
                if end:
                    _add_end(app, end)

    def _add_file(self, record: Record, entry: PodEntry | None) -> None:
        """What would run, from the pod file; how the apps ended last, from the record that stage0 kept."""
        pod = load_model(self.layout, entry) if entry else None
        if pod is not None:
            record["stage1"] = pod.runtime_class
            record["apps"] = [_app_record(c.name, c.image, None, None, c.security.run_as_user) for c in pod.containers]
        last = load_result(self.layout, record["name"])
        for app in record["apps"]:
            end = last.get(app["name"])
            if end:
                _add_end(app, end)


def _add_end(app: Record, end: End) -> None:
    app.update(state="failed" if end["result"] != "success" else "inactive", subState=end["code"], result=end["result"])
    app["exitCode"] = exit_code(end["code"], end["status"])


def _true_state(active: str, sub: str, *, waits: bool) -> tuple[str, str]:
    """While stage0 prepares a pod, pod@NAME itself only has a job that waits; that counts as activating."""
    return ("activating", "queued") if waits and active in ("inactive", "failed") else (active, sub)


def _app_record(name: str, image: str, digest: str | None, verified_by: str | None, uid: int | None) -> Record:
    record: Record = {
        "name": name,
        "state": "inactive",
        "subState": "dead",
        "result": None,
        "pid": None,
        "exitCode": None,
        "restarts": None,
        "ready": False,
    }
    record.update(since=None, memoryBytes=None, cpuNanoseconds=None, tasks=None)
    record.update(image=image, digest=digest, verifiedBy=verified_by, uid=uid)
    return record


def _add_cgroup(app: Record, group: str | None) -> None:
    """From the app's cgroup, which everybody may read: whether it runs, memory, processor time, tasks."""
    directory = app_cgroup(cgroup_root() + group, app["name"]) if group else ""
    if not directory or "populated 1" not in read_quietly(f"{directory}/cgroup.events"):
        return
    app.update(state="active", subState="running")
    memory, tasks = read_quietly(f"{directory}/memory.current"), read_quietly(f"{directory}/pids.current")
    app["memoryBytes"] = int(memory) if memory else None
    app["tasks"] = int(tasks) if tasks else len(read_quietly(f"{directory}/cgroup.threads").split()) or None
    usage = dict(line.split() for line in read_quietly(f"{directory}/cpu.stat").splitlines())
    app["cpuNanoseconds"] = int(usage["usage_usec"]) * 1000 if "usage_usec" in usage else None


def _add_app_states(record: Record, states: "dict[str, Any] | None") -> None:
    if states is None:
        return
    for app in record["apps"]:
        state = states.get(app["name"])
        if state is None:
            app.update(state="inactive", subState="dead")
            continue
        app.update(state=clean_text(state.active), subState=clean_text(state.sub), result=clean_text(state.result))
        app.update(restarts=state.restarts, since=format_time(state.since))
        app["pid"] = find_host_pid(app_cgroup(cgroup_root() + (record["cgroup"] or ""), app["name"]), state.pid)
        if state.code:
            app["exitCode"] = state.status if state.code == 1 else 128 + state.status


def load_run(layout: Layout, name: str) -> dict[str, Any]:
    """pod.json of a pod that runs. Raises FileNotFoundError, PermissionError; StateError for what is not one."""
    import json

    path = f"{layout.pod(name)}/pod.json"
    try:
        with open(path, encoding="utf-8") as file:
            run = json.load(file)
        if not isinstance(run, dict) or run.get("version") != 1 or not isinstance(run.get("apps"), list):
            raise ValueError("not a pod.json of version 1")
    except ValueError as error:
        raise StateError(f"{path} is damaged: {error}") from error
    return run


def _is_changed(run: dict[str, Any], entry: PodEntry | None) -> bool:
    """Whether what runs was started from other files than there are now."""
    from rktd_units.podfile.cache import hash_sources

    try:
        return "sourceHash" in run and (entry is None or run["sourceHash"] != hash_sources(entry))
    except OSError:
        return True


def load_run_app(layout: Layout, pod: str, app: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """pod.json, and what it has of an app that runs. Raises StateError besides."""
    run = load_run(layout, pod)
    record = next((a for a in run["apps"] if a["name"] == app), None)
    if record is None or "env" not in record:
        raise StateError(f"{layout.pod(pod)}/pod.json does not describe app {app}", hint=f"systemctl restart pod@{pod}")
    return run, record


def load_model(layout: Layout, entry: PodEntry) -> Any:
    """The pod of a file. Raises ConfigError with the first of its faults as text."""
    if os.geteuid() == 0:
        from rktd_units.podfile.cache import load_cached

        cached = load_cached(layout.parsed(entry.name), entry)
        if cached is not None:
            return cached
    from rktd_units.podfile.load import load_pod

    pod, diagnostics = load_pod(entry)
    if pod is None:
        raise ConfigError(str(next((d for d in diagnostics if d.severity == "error"), f"{entry.path} is not valid")), diagnostics)
    return pod


def exit_code(code: str, status: str) -> int | None:
    """Of what stage2 wrote down, `exited 3` or `killed TERM`: as a shell has it; None for what is no such thing."""
    if status.isdigit():
        return int(status) if code == "exited" else 128 + int(status)
    import signal

    number = getattr(signal, f"SIG{status}", None)
    return 128 + int(number) if number else None


def read_error(layout: Layout, name: str) -> str | None:
    """Why stage0 failed the last time; None if it did not."""
    try:
        lines = read_text(layout.error(name)).strip().splitlines()
        return "\n".join(line[3:] if line[:1] == "<" and line[2:3] == ">" else line for line in lines) or None  # without journal levels
    except OSError:
        return None


def split_unit(name: str) -> str:
    """`web` of `web`, `pod@web`, `pod@web.service` and of its stage0."""
    stem = name.removesuffix(".service")
    for prefix in ("pod@", "pod-stage0@"):
        if stem.startswith(prefix):
            return stem.removeprefix(prefix)
    return name


def join_target(target: str, app: str | None) -> str:
    """POD/APP, where the app may have been said apart."""
    if app and "/" in target:
        raise UsageError(f"two apps are named: {target}, and {app}")
    return f"{target}/{app}" if app else target


def not_found(kind: str, name: str, known: Iterable[str]) -> NotFoundError:
    """To be raised: with the nearest name that there is, or else with all of a few."""
    from rktd_units.fields import suggest

    names = sorted(known)
    some = f"there is: {', '.join(names[:8])}" if names and len(names) <= 8 else ""
    return NotFoundError(f"not found: there is no {kind} called {clean_text(name)!r}", hint=suggest(name, names) or some)
