# SPDX-License-Identifier: Apache-2.0
"""The manifest of an ACI."""

import json
import os
from typing import Any

import pytest

from rktd_units.errors import ImageError
from rktd_units.images import appc
from rktd_units.images.appc import AciManifest, parse_aci_manifest
from tests.aci_cases import aci_manifest, labels

ID = "sha512-" + "a" * 128


def parse(manifest: dict[str, Any]) -> AciManifest:
    return parse_aci_manifest(json.dumps(manifest).encode())


def isolate(*pairs: tuple[str, Any]) -> dict[str, Any]:
    """What becomes of isolators, without what is empty."""
    found = parse(aci_manifest(isolators=[{"name": name, "value": value} for name, value in pairs])).appc
    return {key: value for key, value in found.items() if key not in ("groups",)}


def test_whole_manifest() -> None:
    """The example of the specification, in short."""
    found = parse(
        aci_manifest(
            "example.com/reduce-worker",
            exec=["/usr/bin/reduce-worker", "--quiet"],
            user="100",
            group="300",
            supplementaryGIDs=[400, 500],
            eventHandlers=[{"name": "pre-start", "exec": ["/usr/bin/get"]}, {"name": "post-stop", "exec": ["/usr/bin/put", "-v"]}],
            workingDirectory="/opt/work",
            environment=[{"name": "DEBUG", "value": "true"}],
            mountPoints=[{"name": "work", "path": "/var/lib/work", "readOnly": False}],
            ports=[{"name": "health", "port": 4000, "protocol": "tcp"}, {"name": "ftp", "port": 20000, "count": 1000, "protocol": "udp"}],
            dependencies=[{"imageName": "example.com/base", "imageID": ID, "labels": labels(version="1", os="linux"), "size": 22}],
            pathWhitelist=["/etc/ca/crt", "/etc/systemd/system/"],
        )
    )
    assert found.name == "example.com/reduce-worker"
    assert (found.user, found.group) == ("100", "300")
    assert [(d.reference, d.size) for d in found.dependencies] == [(f"aci:example.com/base:1,os=linux@{ID}", 22)]
    assert found.whitelist == {b"etc/ca/crt", b"etc/systemd/system"}
    assert found.config == {
        "Entrypoint": ["/usr/bin/reduce-worker", "--quiet"],
        "Env": ["DEBUG=true"],
        "WorkingDir": "/opt/work",
        "Volumes": {"/var/lib/work": {}},
        "ExposedPorts": {"4000/tcp": {}, "20000-20999/udp": {}},
    }
    assert found.appc == {
        "groups": ["400", "500"],
        "preStart": ["/usr/bin/get"],
        "postStop": ["/usr/bin/put", "-v"],
        "isolators": [],
    }


def test_image_without_app() -> None:
    found = parse(aci_manifest(app=False))
    assert (found.config, found.appc, found.user) == ({}, {}, "")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"acKind": "PodManifest"}, "acKind must be ImageManifest, got 'PodManifest'"),
        ({"acVersion": ""}, "acVersion is missing"),
        ({"user": ""}, "app: user is missing"),
        ({"group": ""}, "app: group is missing"),
        ({"labels": labels(name="x")}, r"labels\[0\]: label 'name' is repeated, or not allowed"),
        ({"labels": labels(os="a") * 2}, r"labels\[1\]: label 'os' is repeated"),
        ({"labels": labels(Os="a")}, "'Os' is no AC identifier"),
        ({"dependencies": [{"imageName": "ex.org/a", "imageID": "sha512-abc"}]}, "imageID 'sha512-abc' is not"),
        ({"dependencies": [{"imageName": "EX"}]}, "imageName 'EX' is no AC identifier"),
        ({"dependencies": [{"imageName": "ex.org/a"}] * 101}, "has 101 dependencies"),
        ({"pathWhitelist": ["etc"]}, "must be absolute paths without .., got 'etc'"),
        ({"pathWhitelist": ["/a/../b"]}, "must be absolute paths"),
        ({"workingDirectory": "work"}, "workingDirectory must be absolute"),
        ({"environment": [{"name": "A", "value": "1"}] * 2}, "a variable is repeated"),
        ({"environment": [{"value": "1"}]}, r"app.environment\[0\]: name is missing"),
        ({"mountPoints": [{"name": "a", "path": "../a"}]}, "absolute paths without"),
        ({"ports": [{"port": 0, "protocol": "tcp"}]}, "must be tcp, udp or sctp ports"),
        ({"ports": [{"port": 65535, "count": 2, "protocol": "tcp"}]}, "must be tcp, udp or sctp ports"),
        ({"ports": [{"port": 1, "protocol": "icmp"}]}, "got 'icmp'"),
        ({"supplementaryGIDs": [65536]}, "a pod has no other ids"),
        ({"eventHandlers": [{"name": "post-start", "exec": ["a"]}]}, "one pre-start or post-stop with an exec, got 'post-start'"),
        ({"eventHandlers": [{"name": "pre-start", "exec": ["a"]}] * 2}, r"eventHandlers\[1\]: must be one pre-start"),
        ({"eventHandlers": [{"name": "pre-start", "exec": []}]}, "with an exec"),
        ({"exec": "/bin/sh"}, "exec must be a list"),
    ],
)
def test_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        parse(aci_manifest(**keys))


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"a":1,"a":2}', b"\xff", b"[" * 100000])
def test_not_json(data: bytes) -> None:
    with pytest.raises(ImageError, match="manifest: is not"):
        parse_aci_manifest(data)


@pytest.mark.parametrize(
    ("pair", "expected", "outcome"),
    [
        (("resource/memory", {"limit": "1G", "request": "512Mi"}), {"memoryLimit": 10**9, "memoryRequest": 512 << 20}, "enforced"),
        (("resource/memory", {"limit": "2K"}), {"memoryLimit": 2000}, "enforced"),
        (("resource/cpu", {"limit": "500m", "request": 1}), {"cpuLimit": 500, "cpuRequest": 1000}, "enforced"),
        (("os/linux/cpu-shares", 512), {"cpuRequest": 500}, "enforced"),
        (("os/linux/oom-score-adj", 99), {"oomScoreAdjust": "99"}, "enforced"),
        (("os/linux/oom-score-adj", -50), {"oomScoreAdjust": "0"}, "modified: an image does not put itself above the host's services"),
        (("os/linux/no-new-privileges", True), {}, "enforced"),
        (("os/linux/no-new-privileges", False), {}, "modified: it is on unless the pod file says allowPrivilegeEscalation"),
        (("os/linux/capabilities-retain-set", {"set": ["CAP_NET_ADMIN", "CAP_KILL"]}), {"capabilities": ["KILL", "NET_ADMIN"]}, "enforced"),
        (
            ("os/linux/seccomp-remove-set", {"set": ["reboot", "@systemd/clock"], "errno": "ENOSYS"}),
            {"seccompMode": "remove", "seccompCalls": ["reboot", "@clock"], "seccompErrno": "ENOSYS"},
            "enforced",
        ),
        (("os/linux/seccomp-remove-set", {"set": ["@appc.io/empty", "reboot"]}), {}, "enforced"),
        (
            ("os/linux/seccomp-retain-set", {"set": ["read", "write"]}),
            {"seccompMode": "retain", "seccompCalls": ["read", "write"], "seccompErrno": ""},
            "modified: the default filter's calls stay blocked too",
        ),
        (("os/linux/seccomp-retain-set", {"set": ["@appc.io/all"]}), {}, "modified: the default filter stays"),
        (("os/linux/seccomp-retain-set", {"set": ["@docker/default-whitelist"]}), {}, "enforced"),
        (("resource/network-bandwidth", {"default": True, "limit": "1G"}), {}, "ignored: not supported"),
        (("example.com/odd", None), {}, "ignored: not supported"),
    ],
)
def test_isolators(pair: tuple[str, Any], expected: dict[str, Any], outcome: str) -> None:
    assert isolate(pair) == {**expected, "isolators": [{"name": pair[0], "outcome": outcome}]}


def test_removed_capabilities_are_taken_from_the_default() -> None:
    left = isolate(("os/linux/capabilities-remove-set", {"set": ["CAP_MKNOD", "CAP_SYS_ADMIN"]}))["capabilities"]
    assert len(left) == 13
    assert "MKNOD" not in left


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("os/linux/capabilities-retain-set", {"set": []})], "must name capabilities"),
        ([("os/linux/capabilities-retain-set", {"set": ["CAP_FLY"]})], "must name capabilities, got 'CAP_FLY'"),
        ([(f"os/linux/capabilities-{k}-set", {"set": ["CAP_KILL"]}) for k in ("retain", "remove")], "both capabilities-retain-set and"),
        ([(f"os/linux/seccomp-{k}-set", {"set": ["read"]}) for k in ("retain", "remove")], "both seccomp-retain-set and"),
        ([("os/linux/seccomp-retain-set", {"set": []})], "needs a set"),
        ([("os/linux/seccomp-retain-set", {"set": ["a"], "errno": "EVIL"})], "an errno that Linux has, got 'EVIL'"),
        ([("os/linux/seccomp-remove-set", {"set": ["a b"]})], "'a b' is no system call"),
        ([("os/linux/seccomp-remove-set", {"set": ["read\nUser=root"]})], "is no system call"),
        ([("os/linux/seccomp-remove-set", {"set": ["@clock"]})], "'@clock' is no system call"),
        ([("os/linux/seccomp-remove-set", {"set": ["@systemd/default"]})], "'@systemd/default' is not supported"),
        ([("os/linux/apparmor-profile", {"profile": "x"})], "isolator os/linux/apparmor-profile is not supported"),
        ([("os/unix/sysctl", {"net.a": "1"})], "isolator os/unix/sysctl is not supported"),
        ([("os/linux/oom-score-adj", 1001)], "must be -1000 to 1000"),
        ([("os/linux/cpu-shares", 1)], "must be 2 to 262144"),
        ([("os/linux/no-new-privileges", "true")], "must be true or false"),
        ([("resource/memory", {"limit": "0"})], "limit must be more than 0"),
        ([("resource/memory", {"limit": "lots"})], "resource/memory: limit: must be a quantity"),
        ([("resource/cpu", {"limit": "1"})] * 2, "isolator resource/cpu is repeated"),
    ],
)
def test_bad_isolators(pairs: list[tuple[str, Any]], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        isolate(*pairs)


def test_labels_must_match(monkeypatch: pytest.MonkeyPatch) -> None:
    class Uname:
        machine = "aarch64"

    monkeypatch.setattr(os, "uname", Uname)
    here = {"os": "linux", "arch": "aarch64"}
    assert appc.host_labels() == here
    appc.check_labels({**here, "version": "1"}, {"version": "1"}, runs=True)
    appc.check_labels({}, {}, runs=False)
    for labels_, wanted, message in (
        ({"os": "linux"}, {}, "has no label arch"),
        ({"arch": "aarch64"}, {}, "has no label os"),
        ({"os": "freebsd", "arch": "aarch64"}, {}, "label os is 'freebsd', this host needs 'linux'"),
        ({"os": "linux", "arch": "amd64"}, {}, "label arch is 'amd64', this host needs 'aarch64'"),
        (here, {"version": "1"}, "label version was asked to be '1', the image has no such label"),
        ({**here, "version": "2"}, {"version": "1"}, "label version was asked to be '1', the image has '2'"),
    ):
        with pytest.raises(ImageError, match=message):
            appc.check_labels(labels_, wanted, runs=True)
    with pytest.raises(ImageError, match="label arch is 'amd64'"):
        appc.check_labels({"arch": "amd64"}, {}, runs=False)
