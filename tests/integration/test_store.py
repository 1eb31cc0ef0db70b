# SPDX-License-Identifier: Apache-2.0
"""The store under kill -9, a full disk and an editor: whatever happens, the next start is right or refused."""

import json
import time
from collections.abc import Iterator

import pytest

from rktd_units.events import EVENTS
from tests.integration.bed import Bed
from tests.integration.layers import Entry, write_layer
from tests.integration.pods import Pods

REGISTRY = "127.0.0.1:5003"
CONFIG = f"""version: 0.1
storage: {{filesystem: {{rootdirectory: /srv/store-test}}}}
http: {{addr: {REGISTRY}}}
"""
# All at the same time, after a random time each is killed, or the sandboxed jobs of all are; every now and then the store is emptied, so
# that all of it is done again.
KILLER = """
import random, signal, subprocess, sys, time
names, kills, again, longest = sys.argv[1:], 0, 0, 1.2
random.seed(7)
while kills < 100:
    jobs = [subprocess.Popen(["podctl", "fetch", "--quiet", n], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for n in names]
    ends = sorted((random.uniform(0.05, longest), i) for i in range(len(jobs)))
    start, ours = time.monotonic(), False
    for end, i in ends:
        time.sleep(max(0, start + end - time.monotonic()))
        if random.random() < 0.25:
            subprocess.run(["systemctl", "kill", "--signal=KILL", "rktd-job-*"], stderr=subprocess.DEVNULL)
            ours = True
        elif jobs[i].poll() is None:
            jobs[i].kill()
            kills += 1
    done = [job.wait() for job in jobs]
    assert all(code in (0, -signal.SIGKILL) or (ours and code == 75) for code in done), done
    again += done.count(75)
    if not any(done):
        subprocess.run(["podctl", "gc", "--grace=0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(kills, again)
"""

# To the last block: ext4 keeps some from files that directories still get.
FILLER = """
import os
os.mkdir("/var/lib/rktd/filler")
try:
    with open("/var/lib/rktd/filler/file", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
except OSError:
    os.sync()
try:
    for number in range(100000):
        os.mkdir(f"/var/lib/rktd/filler/{number}")
except OSError as error:
    print(error)
"""


# Of the files of a disk whose blocks are in a file: that is cut where the first of them begins, so that the kernel finds nothing to read.
CUT = """
import os, subprocess, sys
disk, *paths = sys.argv[1:]
os.sync()
starts = []
for path in paths:
    lines = subprocess.run(["filefrag", "-e", "-b1", path], check=True, capture_output=True, text=True).stdout.splitlines()
    starts += [int(line.split(":")[2].split("..")[0]) for line in lines if line.split(":")[0].strip().isdigit()]
os.truncate(disk, min(starts))
for path in paths:
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            while file.read(1 << 16):
                pass
            sys.exit(f"{path} can be read")
        except OSError as error:
            print(error.errno)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
"""


@pytest.fixture(scope="module")
def registry(pods_session: Pods) -> Iterator[Bed]:
    bed = pods_session.bed
    bed.write("/run/store-test.yaml", CONFIG)
    bed.start_registry("store-registry", "/run/store-test.yaml", REGISTRY)
    yield bed
    bed.sh("systemctl stop store-registry")


@pytest.fixture
def empty(pods: Pods, registry: Bed) -> Pods:
    registry.run("podctl", "gc", "--grace=0")
    registry.sh("rm -rf /var/lib/rktd/hold")  # of `podctl run`, in other modules
    return pods


@pytest.fixture
def small_disk(pods: Pods, registry: Bed) -> Iterator[Bed]:
    """The store on an ext4 of 72 MB of its own."""
    registry.sh("truncate -s 72M /srv/disk.img; mkfs.ext4 -q -m0 /srv/disk.img; mount -o loop /srv/disk.img /var/lib/rktd")
    yield registry
    pods.clean()
    registry.sh("umount /var/lib/rktd; rm -f /srv/disk.img")


def push(pods: Pods, name: str, *sizes: int) -> str:
    """An image with layers of random bytes, pinned."""
    layers = []
    for i, size in enumerate(sizes):
        tar = f"/srv/{name}-{i}.tar"
        pods.bed.sh(f"cd $(mktemp -d); head -c {size} /dev/urandom >{name}{i}; tar cf {tar} {name}{i}")
        layers.append(tar)
    pods.make_image(name, {"Cmd": ["/bin/echo", name]}, tuple(layers))
    pods.bed.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:/srv/images/{name}:latest", f"docker://{REGISTRY}/{name}:1")
    inspect = ("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{REGISTRY}/{name}:1")
    return f"{REGISTRY}/{name}:1@{pods.bed.run(*inspect).stdout.strip()}"


def run_image(pods: Pods, image: str, policy: str = "IfNotPresent") -> list[str]:
    pods.write("i", {"restartPolicy": "Never", "containers": [{"name": "app", "image": image, "imagePullPolicy": policy}]})
    pods.start("i")
    pods.wait_end("i")
    return pods.lines("i")


def refusal(pods: Pods, image: str, policy: str) -> str:
    pods.write("i", {"restartPolicy": "Never", "containers": [{"name": "app", "image": image, "imagePullPolicy": policy}]})
    assert pods.start("i", check=False).returncode == 1
    return "\n".join(e["MESSAGE"] for e in pods.bed.journal("-u", "pod-stage0@i", f"--after-cursor={pods.cursor}"))


def verify(bed: Bed) -> set[str]:
    records = json.loads(bed.run("podctl", "image", "verify", "--output=json", check=False).stdout)
    print(records)
    return {record["state"] for record in records}


def test_killed_a_hundred_times(empty: Pods) -> None:
    bed, names = empty.bed, ("killed", "alike", "third")
    made = [push(empty, name, *sizes) for name, sizes in zip(names, ((6 << 20, 3 << 20), (2 << 20,), (1 << 20,)), strict=True)]
    bed.write("/run/killer.py", KILLER)
    kills, again = bed.run("python3", "/run/killer.py", *made, timeout=240).stdout.split()
    assert int(kills) >= 100
    assert int(again) >= 1
    for image, name in zip(made, names, strict=True):
        bed.run("podctl", "fetch", image)
        assert run_image(empty, image, "Never") == [name]
    bed.run("podctl", "gc", "--grace=0", "--no-pager")  # pod file i still names one
    assert verify(bed) == {"good"}
    bed.sh("rm /etc/pods/*")
    bed.run("podctl", "gc", "--grace=0")
    look = "find /var/lib/rktd -path /var/lib/rktd/volumes -prune -o -type f -print"
    assert bed.sh(f"{look}; ls /var/lib/rktd/work; systemctl list-units --no-legend 'rktd-job-*'").stdout == ""


def test_full_disk(empty: Pods, small_disk: Bed) -> None:
    small, large = push(empty, "small", 1 << 20), push(empty, "much", 6 << 20, 6 << 20)
    small_disk.run("podctl", "fetch", small)
    small_disk.sh("head -c 36M /dev/zero >/var/lib/rktd/filler || true")
    done = small_disk.run("podctl", "fetch", large, check=False)
    assert done.returncode == 75
    assert "No space left on device" in done.stderr, done.stderr
    assert verify(small_disk) == {"good"}
    assert run_image(empty, small, "Never") == ["small"]
    small_disk.sh("rm -f /etc/pods/i.yaml /var/lib/rktd/filler")
    assert small_disk.run("podctl", "fetch", large).returncode == 0
    assert run_image(empty, large, "Never") == ["much"]
    assert small_disk.sh("ls /var/lib/rktd/work").stdout == ""


def test_disk_so_full_that_nothing_can_be_made(empty: Pods, small_disk: Bed) -> None:
    """Not even a directory entry: gc still works, for it writes nothing."""
    small = push(empty, "small", 1 << 20)
    small_disk.run("podctl", "fetch", small)
    small_disk.sh("cat /dev/zero >/var/lib/rktd/filler || true", check=False)
    done = small_disk.run("podctl", "fetch", push(empty, "other", 1 << 20), check=False)
    assert (done.returncode, "No space left on device" in done.stderr) == (75, True)
    assert verify(small_disk) == {"good"}
    small_disk.run("podctl", "gc", "--grace=0")
    assert small_disk.sh("find /var/lib/rktd -type f").stdout == "/var/lib/rktd/filler\n"


def test_a_start_waits_for_space(empty: Pods, small_disk: Bed) -> None:
    """The image is here, but not even the pod's own directories can be made: systemd tries again until they can."""
    image = push(empty, "small", 1 << 20)
    small_disk.run("podctl", "fetch", image)
    empty.write("i", {"restartPolicy": "Never", "containers": [{"name": "app", "image": image, "imagePullPolicy": "Never"}]})
    small_disk.run("python3", "-c", FILLER)
    small_disk.run("systemctl", "start", "--no-block", "pod@i")
    deadline = time.monotonic() + 20
    while empty.show("pod-stage0@i.service", "NRestarts") in ({"NRestarts": "0"}, {"NRestarts": "1"}):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert empty.show("i", "ActiveState") in ({"ActiveState": "inactive"}, {"ActiveState": "activating"})
    said = small_disk.journal("-u", "pod-stage0@i", f"MESSAGE_ID={EVENTS['stage0-again']}", f"--after-cursor={empty.cursor}")
    assert said
    assert all(entry["MESSAGE"].startswith("/var/lib/rktd/") for entry in said)
    assert all(entry["MESSAGE"].endswith(": No space left on device") for entry in said)
    small_disk.run("rm", "-r", "/var/lib/rktd/filler")
    deadline = time.monotonic() + 30
    while empty.lines("i") != ["small"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert empty.wait_end("i") == "inactive"


def test_read_errors(empty: Pods, small_disk: Bed) -> None:
    """What the disk does not give back is found, and made again from where it can be had; of a source that is told, with its place."""
    image, archive = push(empty, "eio", 5 << 20), "/var/lib/rktd/eio.tar"
    assert run_image(empty, image) == ["eio"]
    small_disk.sh(f"skopeo copy --quiet oci:/srv/images/eio:latest docker-archive:{archive}:eio:1")
    (layer,) = small_disk.sh("find /var/lib/rktd/layers -name '*.erofs' -size +4M").stdout.split()
    (blob,) = small_disk.sh("find /var/lib/rktd/blobs -type f -size +4M").stdout.split()
    empty.clean()  # unmounts the layer
    assert small_disk.run("python3", "-c", CUT, "/srv/disk.img", layer, blob, archive).stdout.split() == ["5"] * 3
    done = small_disk.run("podctl", "fetch", f"docker-archive:{archive}@sha256:{'0' * 64}", check=False)
    assert done.returncode == 75, done.stderr
    assert f"Input/output error: {archive}" in done.stderr
    assert verify(small_disk) == {"damaged"}
    assert run_image(empty, image) == ["eio"]
    assert verify(small_disk) == {"good"}


def test_edited_layer_is_found_though_its_times_are_kept(empty: Pods) -> None:
    image = push(empty, "edited", 1 << 20)
    assert run_image(empty, image) == ["edited"]
    edit = (
        "for f in /var/lib/rktd/layers/*.erofs; do t=$(stat -c @%.9Y $f); printf XXXX | dd of=$f bs=1 seek=5000 conv=notrunc status=none; "
        "touch -d $t $f; done"
    )
    empty.bed.sh(edit)
    assert run_image(empty, image, "Never") == ["edited"]  # rebuilt, from blobs that are here
    assert verify(empty.bed) == {"good"}
    empty.bed.sh(edit + "; for f in /var/lib/rktd/blobs/sha256/*; do printf XXXX | dd of=$f bs=1 seek=1 conv=notrunc status=none; done")
    assert "is not present" in refusal(empty, image, "Never")
    empty.bed.run("systemctl", "reset-failed")
    assert run_image(empty, image) == ["edited"]  # fetched again


def test_edited_layer_is_not_run_while_another_pod_has_it_mounted(pods: Pods) -> None:
    """It is built and mounted anew for the second pod; the mount that the first one uses is left to that one."""
    layer = write_layer(pods.bed, "/opt/layers/marker.tar", Entry("marker", b"GOODMARK" * 1024))
    image = pods.make_image("marked", {}, (layer,))
    for name, script in (("first", "sleep 1000"), ("second", "head -c 8 /marker; echo; sleep 1000")):
        pods.write(name, {"containers": [{**pods.app(script), "image": image}]})
    pods.start("first")
    edited = pods.bed.sh(
        "n=0; for f in /var/lib/rktd/layers/*.erofs; do for at in $(grep -abo GOODMARK $f | cut -d: -f1); do "
        "printf EVILMARK | dd of=$f bs=1 seek=$at conv=notrunc status=none; n=$((n + 1)); done; done; echo $n"
    )
    assert int(edited.stdout) >= 1024
    pods.start("second")
    assert pods.lines("second") == ["GOODMARK"]


@pytest.mark.parametrize("kind", ["images", "layers"])
def test_damaged_record_is_found(empty: Pods, kind: str) -> None:
    """One digit of a digest in it is another; it still is valid JSON."""
    image = push(empty, "records", 1 << 20)
    assert run_image(empty, image) == ["records"]
    field = {"images": "manifest", "layers": "tar"}[kind]
    flip = f"""/"{field}": "(sha256:)?0/ {{ s/("{field}": "(sha256:)?)0/\\11/; b }}; s/("{field}": "(sha256:)?)./\\10/"""
    before = empty.bed.sh(f"cat /var/lib/rktd/{kind}/*.json").stdout
    empty.bed.sh(f"for f in /var/lib/rktd/{kind}/*.json; do sed -Ei '{flip}' $f; done")
    after = empty.bed.sh(f"cat /var/lib/rktd/{kind}/*.json").stdout
    assert sum(a != b for a, b in zip(before, after, strict=True)) == before.count(f'"{field}": "') >= 1
    assert run_image(empty, image, "Never") == ["records"]
    assert verify(empty.bed) == {"good"}
