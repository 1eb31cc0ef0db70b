# SPDX-License-Identifier: Apache-2.0
"""`podctl stats`, `top` and `port`: what pods use, from their cgroups; no app is asked, and nothing of ours runs in between."""

import argparse
import os
import time

from rktd_units.cgroups import app_cgroup, cgroup_root, list_pids, read_quietly
from rktd_units.cli import output
from rktd_units.cli.output import Column, Record, format_bytes, format_text
from rktd_units.cli.pods import Host, load_model
from rktd_units.errors import RktdError, UnavailableError

_PERIOD = 0.25  # seconds between the two looks that a processor share is made of


def add_stats_arguments(parser: argparse.ArgumentParser) -> None:
    """[NAME...]"""
    parser.add_argument("names", nargs="*", metavar="NAME", help="pods; without any, all that run")
    output.add_arguments(parser)


def add_top_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME"""
    parser.add_argument("names", nargs="*", metavar="NAME", help="pods; without any, all that run")
    output.add_arguments(parser)


def add_port_arguments(parser: argparse.ArgumentParser) -> None:
    """[NAME...]"""
    parser.add_argument("names", nargs="*", metavar="NAME", help="pods; without any, all")
    output.add_arguments(parser)


def run_stats(arguments: argparse.Namespace) -> int:
    """A record for each app that runs."""
    groups = [(pod["name"], app["name"], _group(pod, app)) for pod in _running(arguments.names) for app in pod["apps"]]
    groups = [entry for entry in groups if list_pids(entry[2])]
    start = time.monotonic()
    before = [_cpu(group) for _, _, group in groups]
    time.sleep(_PERIOD)
    records = []
    for (pod, app, group), used in zip(groups, before, strict=True):
        spent = time.monotonic() - start
        now = _cpu(group)
        memory, limit = read_quietly(f"{group}/memory.current").strip(), read_quietly(f"{group}/memory.max").strip()
        record: Record = {"pod": pod, "app": app, "cpuPercent": round(max(now - used, 0) / spent / 10_000, 1), "cpuNanoseconds": now * 1000}
        record.update(memoryBytes=int(memory) if memory else None, memoryLimitBytes=int(limit) if limit.isdigit() else None)
        record["tasks"] = sum(len(_list(f"/proc/{pid}/task")) for pid in list_pids(group))
        record.update(_io(group))
        records.append(record)
    output.print_records(arguments, records, _STATS, "app")
    return 0


def run_top(arguments: argparse.Namespace) -> int:
    """A record for each process of the apps."""
    records = []
    ticks = os.sysconf("SC_CLK_TCK")
    page = os.sysconf("SC_PAGE_SIZE")
    for pod in _running(arguments.names):
        for app in pod["apps"]:
            for pid in list_pids(_group(pod, app)):
                stat = read_quietly(f"/proc/{pid}/stat").rpartition(")")[2].split()
                if len(stat) < 22:
                    continue  # it has ended meanwhile
                status = dict(line.split(":", 1) for line in read_quietly(f"/proc/{pid}/status").splitlines() if ":" in line)
                words = read_quietly(f"/proc/{pid}/cmdline").rstrip("\0").split("\0")
                record: Record = {"pod": pod["name"], "app": app["name"], "pid": pid, "uid": int(status.get("Uid", "0").split()[0])}
                record.update(state=stat[0], cpuSeconds=(int(stat[11]) + int(stat[12])) / ticks, memoryBytes=int(stat[21]) * page)
                record["command"] = words if words != [""] else [f"[{status.get('Name', '').strip()}]"]
                records.append(record)
    output.print_records(arguments, records, _TOP, "process")
    return 0


def run_port(arguments: argparse.Namespace) -> int:
    """A record for each port that the pod files name."""
    host = Host()
    records = []
    for name in host.require(arguments.names) if arguments.names else host.names():
        if name not in host.entries:
            continue
        try:
            pod = load_model(host.layout, host.entries[name])
        except RktdError:
            if arguments.names:
                raise
            continue
        for container in pod.containers:
            for port in container.ports:
                record: Record = {
                    "pod": name,
                    "app": container.name,
                    "port": port.container_port,
                    "protocol": port.protocol,
                    "name": port.name or None,
                }
                direct = port.container_port if pod.host_network else None
                record.update(hostIp=port.host_ip or None, hostPort=port.host_port or direct)
                records.append(record)
    output.print_records(arguments, records, _PORTS, "port")
    return 0


def _running(names: list[str]) -> list[Record]:
    host = Host()
    records = host.describe(host.require(names) if names else host.names(), ask=False)
    for record in records:
        if names and not record["cgroup"]:
            raise UnavailableError(f"pod {record['name']} does not run: it is {record['state']}", hint=f"podctl start {record['name']}")
        if names and record["stage1"] == "xen":
            message = f"pod {record['name']} is a virtual machine, whose processes are not this host's"
            raise UnavailableError(message, hint=f"podctl exec {record['name']}/APP -- top; xl top")
    return [record for record in records if record["cgroup"]]


def _group(pod: Record, app: Record) -> str:
    return app_cgroup(cgroup_root() + pod["cgroup"], app["name"])


def _cpu(group: str) -> int:
    """µs of processor time."""
    fields = dict(line.split() for line in read_quietly(f"{group}/cpu.stat").splitlines())
    return int(fields.get("usage_usec", 0))


def _io(group: str) -> Record:
    """Bytes read and written, all devices; null where the kernel does not count."""
    text = read_quietly(f"{group}/io.stat")
    counts = {"rbytes": 0, "wbytes": 0}
    for word in text.split():
        key, _, value = word.partition("=")
        if key in counts:
            counts[key] += int(value)
    known = os.path.exists(f"{group}/io.stat")
    return {"readBytes": counts["rbytes"] if known else None, "writtenBytes": counts["wbytes"] if known else None}


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


_STATS = (
    Column("POD", lambda r: str(r["pod"])),
    Column("APP", lambda r: str(r["app"])),
    Column("CPU%", lambda r: f"{r['cpuPercent']:.1f}", right=True),
    Column("MEMORY", lambda r: format_bytes(r["memoryBytes"]), right=True),
    Column("LIMIT", lambda r: format_bytes(r["memoryLimitBytes"]), right=True),
    Column("TASKS", lambda r: str(r["tasks"]), right=True),
    Column("READ", lambda r: format_bytes(r["readBytes"]), right=True),
    Column("WRITTEN", lambda r: format_bytes(r["writtenBytes"]), right=True),
)
_TOP = (
    Column("POD", lambda r: str(r["pod"])),
    Column("APP", lambda r: str(r["app"])),
    Column("PID", lambda r: str(r["pid"]), right=True),
    Column("UID", lambda r: str(r["uid"]), right=True),
    Column("S", lambda r: format_text(r["state"])),
    Column("TIME", lambda r: f"{r['cpuSeconds']:.2f}s", right=True),
    Column("RSS", lambda r: format_bytes(r["memoryBytes"]), right=True),
    Column("COMMAND", lambda r: format_text(" ".join(r["command"]))),
)
_PORTS = (
    Column("POD", lambda r: str(r["pod"])),
    Column("APP", lambda r: str(r["app"])),
    Column("PORT", lambda r: f"{r['port']}/{r['protocol'].lower()}", right=True),
    Column("NAME", lambda r: format_text(r["name"])),
    Column("HOST", lambda r: format_text(f"{r['hostIp'] or ''}:{r['hostPort']}" if r["hostPort"] else None)),
)
