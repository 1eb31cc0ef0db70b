# SPDX-License-Identifier: Apache-2.0
"""podctl's verbs for images, gc and its timers, on a real store; peers are docker-registry, skopeo and umoci."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.bed import Bed
from tests.integration.pods import Pods

REGISTRY = "127.0.0.1:5001"
SLOW = "127.0.0.1:5002"
CONFIG = f"""version: 0.1
storage: {{filesystem: {{rootdirectory: /srv/verbs}}}}
http: {{addr: {REGISTRY}}}
"""
# Between client and registry: so many bytes a second, for all connections together.
SLOW_PROXY = """
import asyncio, sys
RATE = int(sys.argv[1])
async def copy(reader, writer, step):
    while data := await reader.read(step):
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(len(data) / RATE if step < 65536 else 0)
    writer.close()
async def serve(reader, writer):
    there, back = await asyncio.open_connection("127.0.0.1", 5001)
    await asyncio.gather(copy(reader, back, 65536), copy(there, writer, 32768), return_exceptions=True)
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", 5002) as server:
        await server.serve_forever()
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def registry(pods_session: Pods) -> Iterator[Bed]:
    """A registry, the same slowly, and a settings file that trusts both."""
    bed = pods_session.bed
    bed.write("/run/verbs.yaml", CONFIG)
    bed.write("/run/slow.py", SLOW_PROXY)
    bed.write("/etc/rktd/rktd.yaml", f"insecure: [{REGISTRY}, {SLOW}]\n")
    bed.start_registry("verbs-registry", "/run/verbs.yaml", REGISTRY)
    bed.sh("systemd-run --quiet --unit=verbs-slow python3 /run/slow.py 3000000")
    bed.wait_for_registry(SLOW)
    yield bed
    bed.sh("systemctl stop verbs-registry verbs-slow; rm -f /etc/rktd/rktd.yaml")


@pytest.fixture
def empty(pods: Pods, registry: Bed) -> Pods:
    """No image but what pods use, which is none."""
    registry.sh("podctl image unpin $(podctl images -q) 2>/dev/null; podctl gc --grace=0", check=False)
    return pods


def push(pods: Pods, name: str, size: int = 0, parts: int = 1) -> str:
    """An image with `parts` layers of random bytes; gives the digest of its manifest."""
    layers = []
    for i in range(parts if size else 0):
        tar = f"/srv/{name}-{i}.tar"
        pods.bed.sh(f"cd $(mktemp -d); head -c {size} /dev/urandom >data{i}; tar cf {tar} data{i}")
        layers.append(tar)
    pods.make_image(name, {"Cmd": ["/bin/echo", name]}, tuple(layers))
    pods.bed.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:/srv/images/{name}:latest", f"docker://{REGISTRY}/{name}:1")
    inspect = ("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{REGISTRY}/{name}:1")
    return pods.bed.run(*inspect).stdout.strip()


def images(bed: Bed, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(bed.run("podctl", "images", "--output=json", *arguments).stdout)
    return found


def run_image(pods: Pods, image: str, **more: Any) -> list[str]:
    pods.write("i", {"restartPolicy": "Never", "containers": [{"name": "app", "image": image, **more}]})
    pods.start("i")
    pods.wait_end("i")
    return pods.lines("i")


def test_fetch_tells_how_far_it_is(empty: Pods) -> None:
    digest = push(empty, "large", 4 << 20, 2)
    done = empty.bed.run("podctl", "fetch", "--output=json", f"{SLOW}/large:1")
    lines = done.stderr.splitlines()
    assert lines[0] == f"fetching {SLOW}/large:1"
    assert f"converting {SLOW}/large:1" in lines
    assert lines[-1] == f"ready {SLOW}/large:1"
    assert json.loads(done.stdout) == [{"reference": f"{SLOW}/large:1", "digest": digest, "verifiedBy": "insecure"}]
    assert empty.bed.run("podctl", "fetch", f"{SLOW}/large:1").stderr == f"fetching {SLOW}/large:1\nready {SLOW}/large:1\n"  # tag unmoved
    pinned = f"{SLOW}/large:1@{digest}"  # verified images share no layers with insecure ones
    assert empty.bed.run("podctl", "fetch", pinned).stderr == f"converting {pinned}\nready {pinned}\n"
    assert empty.bed.run("podctl", "fetch", pinned).stderr == ""


def test_bars_on_a_terminal(empty: Pods) -> None:
    push(empty, "bars", 3 << 20, 2)
    shown = empty.bed.run(
        "script", "--quiet", "--return", "--command", f"stty cols 100 rows 40; podctl fetch {SLOW}/bars:1", "/dev/null"
    ).stdout
    bars = re.findall(r"fetch +([0-9a-f]{12}) [█▏▎▍▌▋▊▉ ]{20,} ([\d.]+[kM]?)/3.00M +[\d.?]+[kM]?B/s", shown)
    assert len({digest for digest, _ in bars}) == 2
    assert len(set(bars)) > 6
    assert "ready" in shown or "insecure" in shown


def test_status_of_stage0_tells_how_far_it_is(empty: Pods) -> None:
    push(empty, "status", 6 << 20, 2)
    container = {"name": "app", "image": f"{SLOW}/status:1"}
    empty.write("i", {"restartPolicy": "Never", "containers": [container]})
    empty.bed.run("systemctl", "start", "--no-block", "pod@i")
    seen, deadline = set(), time.monotonic() + 30
    while time.monotonic() < deadline and empty.show("pod-stage0@i.service", "ActiveState")["ActiveState"] != "active":
        seen.add(empty.show("pod-stage0@i.service", "StatusText")["StatusText"])
        time.sleep(0.1)
    told = [s for s in seen if re.fullmatch(rf"fetching {SLOW}/status:1: [\d.]+[KM] of 1\d\.\dM, \d of \d blobs, [\d.]+[KM]/s", s)]
    assert len(told) > 3, seen
    empty.wait_end("i")
    assert empty.lines("i") == ["status"]


def test_images_are_listed_with_their_pods(empty: Pods) -> None:
    digest = push(empty, "listed")
    sleep = {"name": "a", "image": f"{REGISTRY}/listed:1", "command": ["/bin/busybox", "sleep", "99"]}
    empty.write("i", {"terminationGracePeriodSeconds": 1, "containers": [sleep]})
    empty.start("i")
    (record,) = images(empty.bed, digest[7:15])
    assert record["pods"] == [{"name": "i", "use": "running"}]
    assert record["verifiedBy"] == "insecure"
    assert record["bytes"] > 1 << 20
    table = empty.bed.run("podctl", "images").stdout
    assert re.search(rf"^{REGISTRY}/listed:1 +{digest[7:19]} +\d+\.\dM +\d+s +insecure +i$", table, re.MULTILINE)
    done = empty.bed.run("podctl", "image", "rm", f"{REGISTRY}/listed:1", check=False)
    assert (done.returncode, "pod i runs from it" in done.stderr) == (69, True)


def test_short_digests(empty: Pods) -> None:
    digest = push(empty, "short")
    empty.bed.run("podctl", "fetch", f"{REGISTRY}/short:1")
    assert empty.bed.run("podctl", "image", "cat-manifest", digest[7:17]).stdout.startswith("{")
    for text, code, said in ((digest[7:10], 64, "too short"), ("0123456789ab", 66, "no image has a digest")):
        done = empty.bed.run("podctl", "image", "cat-manifest", text, check=False)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_gc_spares_what_pods_and_people_need(empty: Pods) -> None:
    for name in ("running", "configured", "kept", "spare"):
        push(empty, name)
        empty.bed.run("podctl", "fetch", "--quiet", f"{REGISTRY}/{name}:1")
    sleep = {"name": "a", "image": f"{REGISTRY}/running:1", "command": ["/bin/busybox", "sleep", "99"]}
    empty.write("i", {"terminationGracePeriodSeconds": 1, "containers": [sleep]})
    empty.start("i")
    empty.bed.run("rm", "/etc/pods/i.yaml")
    empty.write("j", {"containers": [{"name": "a", "image": f"{REGISTRY}/configured:1"}]})
    empty.bed.run("podctl", "image", "pin", f"{REGISTRY}/kept:1")
    assert json.loads(empty.bed.run("podctl", "gc", "--output=json").stdout) == []  # all of it was used lately
    empty.bed.run("podctl", "gc", "--grace=0")
    assert {r["reference"].split("/")[1] for r in images(empty.bed)} == {"running:1", "configured:1", "kept:1"}
    assert empty.bed.run("podctl", "image", "verify", "--output=json").returncode == 0
    empty.bed.run("podctl", "image", "unpin", f"{REGISTRY}/kept:1")
    empty.bed.run("podctl", "gc", "--grace=0")
    assert {r["reference"].split("/")[1] for r in images(empty.bed)} == {"running:1", "configured:1"}
    empty.stop("i")
    empty.wait_end("i")
    empty.bed.run("rm", "/etc/pods/j.yaml")
    empty.bed.run("podctl", "gc", "--grace=0")
    assert empty.bed.sh("find /var/lib/rktd -type f").stdout == ""


def test_timers_run(registry: Bed) -> None:
    timers = registry.run("systemctl", "list-timers", "--no-legend", "rktd-*").stdout
    assert "rktd-gc.service" in timers
    assert "rktd-verify.service" in timers
    for unit in ("rktd-gc.service", "rktd-verify.service"):
        registry.run("systemctl", "start", unit)
        assert registry.run("systemctl", "show", "--property=Result", unit).stdout == "Result=success\n"


def test_leftovers_of_a_crashed_host(empty: Pods) -> None:
    """/run is empty after a crash, /var is not."""
    left = "/var/lib/rktd/pods/gone/apps/app/upper"
    empty.bed.sh(f"mkdir -p {left}/$(printf 'd/%.0s' $(seq 2000)) /var/lib/rktd/work/0123456789abcdef/root; touch {left}/file")
    empty.write("i", {"terminationGracePeriodSeconds": 1, "containers": [empty.app(["sleep", "99"])]})
    empty.start("i")
    empty.bed.run("systemctl", "start", "rktd-gc.service")
    assert empty.bed.sh("ls /var/lib/rktd/pods /var/lib/rktd/work /run/rktd/storage 2>/dev/null", check=False).stdout.split() in (
        ["/run/rktd/storage:", "i", "/var/lib/rktd/pods:", "/var/lib/rktd/work:"],
        ["/var/lib/rktd/pods:", "i", "/var/lib/rktd/work:"],
    )
    assert empty.bed.run("systemctl", "-M", "i", "is-active", "app").stdout == "active\n"


@pytest.mark.parametrize("form", ["oci-archive", "oci", "docker-archive"])
def test_export_is_what_skopeo_reads(empty: Pods, form: str) -> None:
    digest = push(empty, "exported", 1 << 20)
    bed = empty.bed
    bed.run("podctl", "fetch", "--quiet", f"{REGISTRY}/exported:1")
    bed.sh("rm -rf /srv/export /srv/copy")
    bed.run("podctl", "image", "export", f"--format={form}", f"{REGISTRY}/exported:1", "/srv/export")
    bed.run("skopeo", "copy", "--quiet", f"{form}:/srv/export" + ("" if form == "docker-archive" else ":1"), "oci:/srv/copy:x")
    if form == "docker-archive":
        layouts = ("oci:/srv/copy:x", "oci:/srv/images/exported:latest")
        theirs, ours = (json.loads(bed.run("skopeo", "inspect", "--config", layout).stdout) for layout in layouts)
        assert theirs["rootfs"] == ours["rootfs"]
    else:
        assert bed.run("skopeo", "inspect", "--format", "{{.Digest}}", "oci:/srv/copy:x").stdout.strip() == digest
        if form == "oci":
            assert run_image(empty, f"oci:/srv/export@{digest}") == ["exported"]
    assert bed.run("bash", "-c", f"podctl image cat-manifest {REGISTRY}/exported:1 | sha256sum").stdout[:64] == digest[7:]
