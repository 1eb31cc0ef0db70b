# SPDX-License-Identifier: Apache-2.0
"""`podctl show`: all that is known of pods, as records: how they are, and what their files say. Values of variables are in none."""

import argparse
from typing import Any

from rktd_units.cli import output
from rktd_units.cli.output import Record
from rktd_units.cli.pods import Host, load_model
from rktd_units.errors import RktdError
from rktd_units.podfile.model import ClaimVolume, Container, EmptyDir, HostPath, Pod, Probe, Volume

_FORMS = ("yaml", "json", "json-pretty")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME..."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="pods")
    output.add_arguments(parser, formats=_FORMS)


def run(arguments: argparse.Namespace) -> int:
    """Prints the record of one pod, or a list of records."""
    host = Host()
    records = host.describe(host.require(arguments.names))
    for record in records:
        record["spec"] = _find_spec(host, record["name"])
    output.write(arguments, output.render_data(records[0] if len(records) == 1 else records, arguments.output))
    return 0


def _find_spec(host: Host, name: str) -> Record | None:
    """None of a pod whose file is gone, is wrong or may not be read."""
    try:
        return describe_spec(load_model(host.layout, host.entries[name]))
    except (RktdError, OSError, KeyError):
        return None


def describe_spec(pod: Pod) -> Record:
    """What its file and drop-ins say, defaults of the pod file included; what only the image says is null."""
    record: Record = {"sources": list(pod.sources), "labels": dict(pod.labels), "annotations": dict(pod.annotations)}
    record.update(restartPolicy=pod.restart_policy, gracePeriodSeconds=pod.grace_seconds, deadlineSeconds=pod.deadline_seconds)
    record.update(hostname=pod.hostname or pod.name, network="host" if pod.host_network else pod.systemd.network or "default")
    record.update(hostUsers=pod.host_users, hostIPC=pod.host_ipc, hostPID=pod.host_pid, shareProcessNamespace=pod.share_process_namespace)
    record["volumes"] = [_describe_volume(volume) for volume in pod.volumes]
    record["containers"] = [_describe_container(container) for container in pod.containers]
    return record


def _describe_volume(volume: Volume) -> Record:
    kind, source = "projected", None
    if isinstance(volume, EmptyDir):
        kind, source = "emptyDir", volume.medium or None
    elif isinstance(volume, HostPath):
        kind, source = "hostPath", volume.path
    elif isinstance(volume, ClaimVolume):
        kind, source = "persistentVolumeClaim", volume.claim
    return {"name": volume.name, "kind": kind, "source": source}


def _describe_container(container: Container) -> Record:
    resources, security = container.resources, container.security
    record: Record = {"name": container.name, "role": container.role, "image": container.image, "pullPolicy": container.pull_policy}
    record.update(command=_list(container.command), args=_list(container.args), workingDir=container.working_dir or None)
    record["env"] = [variable.name for variable in container.env]
    record["envFrom"] = [f"{group.source.kind}/{group.source.name}" for group in container.env_from]
    record["ports"] = [
        {
            "port": p.container_port,
            "protocol": p.protocol,
            "name": p.name or None,
            "hostIp": p.host_ip or None,
            "hostPort": p.host_port or None,
        }
        for p in container.ports
    ]
    record["mounts"] = [
        {"volume": m.volume, "path": m.path, "subPath": m.sub_path or m.sub_path_expr or None, "readOnly": m.read_only}
        for m in container.mounts
    ]
    record["limits"] = {"memoryBytes": resources.memory_limit, "cpuMillicores": resources.cpu_limit, "tasks": resources.pids_limit}
    record["requests"] = {"memoryBytes": resources.memory_request, "cpuMillicores": resources.cpu_request}
    record["probes"] = [_describe_probe(probe) for probe in container.probes]
    record.update(runAsUser=security.run_as_user, runAsGroup=security.run_as_group)
    record.update(privileged=security.privileged, readOnlyRoot=security.read_only_root)
    return record


def _describe_probe(probe: Probe) -> Record:
    record: Record = {"kind": probe.kind, "handler": probe.handler, "delaySeconds": probe.delay, "periodSeconds": probe.period}
    return {**record, "timeoutSeconds": probe.timeout, "successes": probe.successes, "failures": probe.failures}


def _list(words: tuple[str, ...] | None) -> list[Any] | None:
    return None if words is None else list(words)
