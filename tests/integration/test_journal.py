# SPDX-License-Identifier: Apache-2.0
"""What systemctl --failed, systemctl status and journalctl -x say of pods that do not come up, and of those that do."""

import re

from tests.integration.pods import Pods


def explain(pods: Pods, name: str) -> str:
    """journalctl -x of the pod's unit."""
    pods.bed.run("journalctl", "--sync")
    return pods.bed.run("journalctl", "-x", "--no-pager", "-u", f"pod@{name}", f"--after-cursor={pods.cursor}").stdout


def test_failures_are_explained(pods: Pods) -> None:
    """Each kind by its own text of the catalog, below the line that says what it is this time; under the unit of the pod."""
    bed = pods.bed
    never = {"restartPolicy": "Never"}
    pods.write("invalid", {"containers": [pods.app("true")], "restartPolicy": "Nver"})
    pods.write("unsigned", {**never, "containers": [pods.app("true", image="oci:/srv/images/base")]})
    pods.write("gone", {**never, "containers": [pods.app("true", image=f"oci:/srv/images/none@sha256:{'0' * 64}")]})
    bed.run("systemd-run", "--quiet", "--unit=listener", "busybox", "nc", "-l", "-p", "8099")
    pods.write("port", {**never, "containers": [pods.app("true", ports=[{"containerPort": 80, "hostPort": 8099}])]})
    volumes = [{"name": "v", "hostPath": {"path": "/srv"}}]  # on an overlay here, which cannot be id-mapped
    pods.write("volume", {**never, "containers": [pods.app("true", volumeMounts=[{"name": "v", "mountPath": "/v"}])], "volumes": volumes})
    pods.write("five", {**never, "containers": [pods.app("exit 5", name="worker")]})
    names = ("invalid", "unsigned", "gone", "port", "volume", "five")
    try:
        bed.run("systemctl", "start", *(f"pod@{name}" for name in names), check=False)
        for name in names:
            pods.wait_end(name)
        failed = bed.run("systemctl", "--failed", "--no-legend", "--plain").stdout
        assert {f"pod@{name}.service" for name in names} <= set(failed.split())
        for name, line, subject in (
            ("invalid", "must be one of Always", "its file is not valid"),
            ("unsigned", "oci:/srv/images/base", "nobody vouches for an image"),
            ("gone", "/srv/images/none", "an image cannot be had"),
            ("port", "8099", "a port of the host is taken"),
            ("volume", "cannot set up pod volume: /srv", "could not be set up"),
            ("five", "app worker has failed: exit code 5", "app worker has failed"),
        ):
            text = explain(pods, name)
            found = re.search(rf"{re.escape(line)}.*?^░░ Subject: Pod {name}:? {re.escape(subject)}$", text, re.MULTILINE | re.DOTALL)
            assert found, text
            assert "Defined-By: rktd-units" in text
            assert "@POD@" not in text
    finally:
        bed.run("systemctl", "stop", "listener", check=False)


def test_a_pod_that_runs(pods: Pods) -> None:
    """`systemctl status` says what it is, of which file, and how it is; a stop is no failure."""
    script = "trap 'exit 143' TERM; while :; do sleep 0.1; done"
    pods.write("web", {"containers": [pods.app(script, name="server")], "terminationGracePeriodSeconds": 5})
    pods.start("web")
    status = pods.bed.run("systemctl", "status", "--no-pager", "pod@web").stdout
    assert "● pod@web.service - Pod web" in status
    assert "Docs: man:pod@.service(8)" in status
    assert re.search(r"^ +Status: \"", status, re.MULTILINE), status
    shown = pods.show("web", "SourcePath", "Description", "Documentation", "StatusText")
    assert shown["SourcePath"] == "/etc/pods/web.yaml"
    assert shown["Documentation"] == '"man:pod@.service(8)"'
    assert pods.show("pod-stage0@web.service", "StatusText")["StatusText"] == "Pod web is ready to run"
    pods.stop("web")
    pods.wait_end("web")
    assert "has failed" not in explain(pods, "web")
