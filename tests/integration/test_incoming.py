# SPDX-License-Identifier: Apache-2.0
"""`podctl fetch` of those who are not root: by way of the incoming directory, where nothing but bytes of a known digest counts."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.integration.bed import Bed
from tests.integration.pods import Pods

REGISTRY = "127.0.0.1:5004"
CONFIG = f"""version: 0.1
storage: {{filesystem: {{rootdirectory: /srv/incoming-test}}}}
http: {{addr: {REGISTRY}}}
"""
INCOMING = "/var/spool/rktd/incoming"


def start_registry(bed: Bed) -> None:
    bed.start_registry("incoming-registry", "/run/incoming-test.yaml", REGISTRY)


@pytest.fixture(scope="module")
def registry(pods_session: Pods) -> Iterator[Bed]:
    """A registry; mia, who is a member of the group, and eve, who is not."""
    bed = pods_session.bed
    bed.write("/run/incoming-test.yaml", CONFIG)
    start_registry(bed)
    bed.sh("useradd --groups rktd mia; useradd eve")
    yield bed
    bed.sh("systemctl stop incoming-registry; userdel mia; userdel eve", check=False)


@pytest.fixture
def empty(pods: Pods, registry: Bed) -> Iterator[Pods]:
    registry.sh(f"podctl gc --grace=0; rm -rf {INCOMING}/*")
    yield pods
    registry.sh(f"systemctl start rktd-incoming.path; rm -rf {INCOMING}/*")


def push(pods: Pods, name: str) -> str:
    """A pinned reference."""
    pods.make_image(name, {"Cmd": ["/bin/echo", name], "Labels": {"x": name}})
    pods.bed.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:/srv/images/{name}:latest", f"docker://{REGISTRY}/{name}:1")
    inspect = ("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{REGISTRY}/{name}:1")
    return f"{REGISTRY}/{name}:1@{pods.bed.run(*inspect).stdout.strip()}"


def fetch(bed: Bed, user: str, image: str) -> tuple[int, str, str]:
    done = bed.run("runuser", "-u", user, "--", "podctl", "fetch", "--output=json", image, check=False)
    return done.returncode, done.stdout, done.stderr


def wait_taken(bed: Bed) -> None:
    deadline = time.monotonic() + 180  # it is idle work
    while bed.sh(f"ls {INCOMING}").stdout:
        assert time.monotonic() < deadline, "root does not take the delivery over"
        time.sleep(0.1)


def run_image(pods: Pods, image: str, policy: str) -> list[str]:
    pods.write("i", {"restartPolicy": "Never", "containers": [{"name": "app", "image": image, "imagePullPolicy": policy}]})
    pods.start("i")
    pods.wait_end("i")
    return pods.lines("i")


def test_member_fetches_and_root_takes_over(empty: Pods) -> None:
    bed, image = empty.bed, push(empty, "delivered")
    code, out, err = fetch(bed, "mia", image)
    assert (code, json.loads(out)[0]["reference"]) == (0, image)
    assert "root verifies them and takes them over" in err
    wait_taken(bed)
    bed.run("systemctl", "stop", "incoming-registry")
    try:
        assert run_image(empty, image, "Never") == ["delivered"]
    finally:
        start_registry(bed)
    assert bed.sh("find /var/lib/rktd ! -user root").stdout == ""


def test_next_start_takes_what_it_needs(empty: Pods) -> None:
    """Without the path unit, and without the registry."""
    bed, image = empty.bed, push(empty, "needed")
    bed.run("systemctl", "stop", "rktd-incoming.path")
    assert fetch(bed, "mia", image)[0] == 0
    name = bed.sh(f"ls {INCOMING}").stdout.strip()
    assert bed.run("stat", "-c", "%U %a", f"{INCOMING}/{name}").stdout == "mia 700\n"
    bed.run("systemctl", "stop", "incoming-registry")
    try:
        assert run_image(empty, image, "Never") == ["needed"]
    finally:
        start_registry(bed)


def test_what_is_not_trusted_is_not_taken(empty: Pods) -> None:
    bed, image = empty.bed, push(empty, "loose").partition("@")[0]
    assert fetch(bed, "mia", image)[0] == 0
    wait_taken(bed)
    said = "\n".join(e["MESSAGE"] for e in bed.journal("-u", "rktd-incoming", f"--after-cursor={empty.cursor}"))
    assert f"{image}: is not verified" in said
    assert json.loads(bed.run("podctl", "images", "--output=json").stdout) == []
    assert bed.sh("find /var/lib/rktd -type f").stdout == ""


def test_forged_bytes_are_not_taken(empty: Pods) -> None:
    """The name of the tag says nothing, and a blob counts by its hash: the registry's own image runs."""
    bed, image = empty.bed, push(empty, "genuine")
    bed.run("systemctl", "stop", "rktd-incoming.path")
    assert fetch(bed, "mia", image)[0] == 0
    forge = (
        "for f in */blobs/sha256/*; do [ $(stat -c %s $f) -gt 5000 ] && printf X | dd of=$f bs=1 seek=300 conv=notrunc status=none; done"
    )
    bed.sh(f"cd {INCOMING}; {forge}; mkdir x; ln -s /var/lib/rktd/blobs x/blobs; chown -R mia: . || true", check=False)
    bed.sh(f"chown root:rktd {INCOMING}")
    assert run_image(empty, image, "IfNotPresent") == ["genuine"]
    assert json.loads(bed.run("podctl", "image", "verify", "--output=json").stdout)[0]["state"] == "good"


def test_others_may_not(empty: Pods) -> None:
    bed, image = empty.bed, push(empty, "refused")
    code, _, err = fetch(bed, "eve", image)
    assert (code, "only root and members of the group rktd may fetch" in err) == (77, True)
    bed.run("systemctl", "stop", "rktd-incoming.path")
    assert fetch(bed, "mia", image)[0] == 0
    assert bed.run("runuser", "-u", "mia", "--", "ls", INCOMING, check=False).returncode != 0  # nor see what others fetch
    for path in ("/var/lib/rktd/blobs", "/var/lib/rktd/layers", "/run/rktd/pods"):
        assert bed.run("runuser", "-u", "mia", "--", "ls", path, check=False).returncode != 0
    codes = [bed.run("runuser", "-u", user, "--", "podctl", "images", check=False).returncode for user in ("mia", "eve")]
    assert codes == [0, 77]


def test_strange_things_go(empty: Pods) -> None:
    """And what one makes too much of is at the cost of his own, though it be newer than what another has."""
    bed = empty.bed
    strange = "strange/$(printf 'd/%.0s' $(seq 500))"
    bed.run("systemctl", "stop", "rktd-incoming.path")
    bed.sh(f"cd {INCOMING}; mkdir -p .half/blobs/sha256; chown -R eve: .half; touch -d @0 .half")
    bed.sh(f"cd {INCOMING}; mkdir -p {strange} linked .m{{1..150}}; touch file; ln file linked/1; chown -R mia: strange file linked .m*")
    bed.sh(f"systemctl start rktd-incoming.path; touch {INCOMING}/x")
    wait_taken(bed)
    left = bed.sh(f"ls -A {INCOMING}").stdout.split()
    assert (".half" in left, len(left)) == (True, 101)
    assert bed.run("systemctl", "is-active", "rktd-incoming.path").stdout == "active\n"
    bed.sh(f"rm -rf {INCOMING}/.[hm]*")


def test_no_file_of_the_host_is_read_for_a_member(empty: Pods) -> None:
    """Nor a registry asked about a pin: what a reference in the spool says is a stranger's."""
    bed, zeros = empty.bed, "0" * 64
    texts = {"a": f"docker-archive:/etc/shadow@sha256:{zeros}", "b": f"{REGISTRY}/nobody:1@sha256:{zeros}"}
    for name, text in texts.items():
        bed.sh(f"cd {INCOMING}; mkdir -p .{name}/blobs/sha256; echo {text} >.{name}/reference; chown -R mia: .{name}; mv .{name} {name}")
    wait_taken(bed)
    said = "\n".join(e["MESSAGE"] for e in bed.journal("-u", "rktd-incoming", f"--after-cursor={empty.cursor}"))
    assert "docker-archive:/etc/shadow" in said
    assert "is no registry's" in said
    assert f"{REGISTRY}/nobody:1@sha256:{zeros}: is not present, and its pull policy is Never" in said
    assert bed.sh("sha256sum /etc/shadow").stdout.split()[0] not in said


def test_collection_does_not_wait_for_a_slow_registry(empty: Pods) -> None:
    """It takes the connection and says nothing: the fetch hangs, gc does its work, and the fetch ends as it would have."""
    bed = empty.bed
    bed.sh("systemd-run --quiet --unit=slow-registry systemd-socket-activate --listen=127.0.0.1:5019 --accept --inetd /usr/bin/sleep 60")
    bed.sh(f"systemd-run --quiet --unit=slow-fetch podctl fetch --quiet 127.0.0.1:5019/x@sha256:{'0' * 64}")
    try:
        bed.sh("for i in $(seq 100); do systemctl --quiet is-active 'rktd-job-*' && break; sleep 0.05; done; sleep 0.3")
        assert bed.run("podctl", "gc").returncode == 0
        assert bed.run("systemctl", "is-active", "slow-fetch").stdout == "active\n"
    finally:
        bed.sh("systemctl stop slow-fetch slow-registry; systemctl stop 'rktd-job-*'", check=False)
    bed.run("podctl", "gc")  # what the killed fetch left
