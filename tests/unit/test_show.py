# SPDX-License-Identifier: Apache-2.0
"""What podctl show says of a pod's file."""

import json
from pathlib import Path

from rktd_units.cli.show import describe_spec
from rktd_units.podfile.load import load_pod
from rktd_units.podfile.search import PodEntry
from tests.output_schema import check_record

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {a: b}, annotations: {systemd.io/network: back}}
spec:
  initContainers: [{name: first, image: 'a:1'}]
  containers:
  - name: app
    image: a:1
    args: [run]
    env: [{name: TOKEN, value: hunter2}, {name: KEY, valueFrom: {secretKeyRef: {name: s, key: k}}}]
    envFrom: [{configMapRef: {name: c}}]
    ports: [{containerPort: 80, hostPort: 8080}]
    volumeMounts: [{name: data, mountPath: /data}, {name: etc, mountPath: /x, subPath: conf, readOnly: true}, {name: secret, mountPath: /s}]
    resources: {limits: {memory: 1Mi, cpu: 500m}}
    livenessProbe: {exec: {command: [check]}}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: mine}}
  - {name: etc, hostPath: {path: /etc}}
  - {name: scratch, emptyDir: {medium: Memory}}
  - {name: secret, secret: {secretName: s}}
---
{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {k: hunter2}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {B: hunter2}}
"""


def test_spec(tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text(POD)
    pod, faults = load_pod(PodEntry("web", str(path)), ownership=False)
    assert pod, faults
    spec = describe_spec(pod)
    check_record("spec", spec)
    assert (spec["sources"], spec["network"], spec["hostname"]) == ([str(path)], "back", "web")
    assert [tuple(volume.values()) for volume in spec["volumes"]] == [
        ("data", "persistentVolumeClaim", "mine"),
        ("etc", "hostPath", "/etc"),
        ("scratch", "emptyDir", "Memory"),
        ("secret", "projected", None),
    ]
    first, app = spec["containers"]
    assert (first["role"], first["command"], first["args"]) == ("init", None, None)
    assert (app["args"], app["env"], app["envFrom"]) == (["run"], ["TOKEN", "KEY"], ["ConfigMap/c"])
    assert app["ports"] == [{"port": 80, "protocol": "TCP", "name": None, "hostIp": None, "hostPort": 8080}]
    assert app["mounts"][1] == {"volume": "etc", "path": "/x", "subPath": "conf", "readOnly": True}
    assert app["limits"] == {"memoryBytes": 1 << 20, "cpuMillicores": 500, "tasks": None}
    assert app["probes"][0]["kind"] == "liveness"
    assert "hunter2" not in json.dumps(spec)


def test_what_a_pod_shares(tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text(POD.replace("spec:\n", "spec:\n  hostUsers: true\n  hostPID: true\n", 1))
    pod, faults = load_pod(PodEntry("web", str(path)), ownership=False)
    assert pod, faults
    shared = {"hostUsers": True, "hostIPC": False, "hostPID": True, "shareProcessNamespace": False}
    assert {key: value for key, value in describe_spec(pod).items() if key in shared} == shared
