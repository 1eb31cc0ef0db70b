# SPDX-License-Identifier: Apache-2.0
"""Images on their way into a pod: registry, layouts, archives, pins, damage. Peers are Debian's docker-registry, skopeo and umoci."""

import json
from collections.abc import Iterator

import pytest

from tests.integration.pods import Pods

REGISTRY = "127.0.0.1:5000"
CONFIG = """version: 0.1
storage: {filesystem: {rootdirectory: /srv/registry}, delete: {enabled: true}}
http: {addr: 127.0.0.1:5000}
"""


@pytest.fixture(scope="module")
def registry(pods_session: Pods) -> Iterator[str]:
    """Debian's docker-registry on the testbed's loopback, plain HTTP."""
    bed = pods_session.bed
    bed.write("/run/registry.yaml", CONFIG)
    bed.sh("mkdir -p /srv/registry")
    bed.start_registry("test-registry", "/run/registry.yaml", REGISTRY)
    yield REGISTRY
    bed.run("systemctl", "stop", "test-registry")


def push(pods: Pods, name: str, marker: str) -> str:
    """An image of its own in the registry; gives the digest that a pod file pins."""
    pods.make_image(name, {"Cmd": ["/bin/echo", marker]})
    pods.bed.run("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:/srv/images/{name}:latest", f"docker://{REGISTRY}/{name}:1")
    inspect = ("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{REGISTRY}/{name}:1")
    return pods.bed.run(*inspect).stdout.strip()


def run_image(pods: Pods, image: str, policy: str = "IfNotPresent") -> list[str]:
    """Runs the image's own command to its end in pod `i`."""
    container = {"name": "app", "image": image, "imagePullPolicy": policy}
    pods.write("i", {"restartPolicy": "Never", "containers": [container]})
    pods.start("i")
    pods.wait_end("i")
    return pods.lines("i")


def refusal(pods: Pods, image: str, policy: str = "IfNotPresent") -> str:
    """Why the image does not start, from the status that a person would look at."""
    pods.write("i", {"restartPolicy": "Never", "containers": [{"name": "app", "image": image, "imagePullPolicy": policy}]})
    assert pods.start("i", check=False).returncode == 1
    assert pods.show("i", "ExecMainStatus") == {"ExecMainStatus": "78"}
    return "\n".join(e["MESSAGE"] for e in pods.bed.journal("-u", "pod-stage0@i", f"--after-cursor={pods.cursor}"))


def test_pinned_image_from_a_registry(pods: Pods, registry: str) -> None:
    digest = push(pods, "plain", "from the registry")
    assert run_image(pods, f"{registry}/plain:1@{digest}") == ["from the registry"]
    moved = push(pods, "plain", "the tag has moved")
    assert moved != digest
    assert run_image(pods, f"{registry}/plain:1@{digest}") == ["from the registry"]
    assert run_image(pods, f"{registry}/plain:1@{moved}") == ["the tag has moved"]


def test_present_image_needs_no_registry(pods: Pods, registry: str) -> None:
    digest = push(pods, "offline", "offline")
    image = f"{registry}/offline:1@{digest}"
    assert run_image(pods, image) == ["offline"]
    pods.bed.run("systemctl", "stop", "test-registry")
    try:
        for policy in ("IfNotPresent", "Never"):
            assert run_image(pods, image, policy) == ["offline"]
    finally:
        pods.bed.start_registry("test-registry", "/run/registry.yaml", REGISTRY)


def test_unpinned_is_refused_unless_listed(pods: Pods, registry: str) -> None:
    push(pods, "loose", "loose")
    said = refusal(pods, f"{registry}/loose:1")
    assert f"{registry}/loose:1" in said
    assert "is not verified" in said
    assert f"list {registry}/loose under insecure: in /etc/rktd/rktd.yaml" in said
    try:
        pods.bed.write("/etc/rktd/rktd.yaml", f"insecure: [{registry}/loo]\n")
        assert "insecure" in refusal(pods, f"{registry}/loose:1")  # by whole components
        pods.bed.write("/etc/rktd/rktd.yaml", f"insecure: [{registry}/loose]\n")
        assert run_image(pods, f"{registry}/loose:1") == ["loose"]
    finally:
        pods.bed.run("rm", "/etc/rktd/rktd.yaml")


def test_wrong_digest_and_missing_image(pods: Pods, registry: str) -> None:
    push(pods, "other", "other")
    wrong = "sha256:" + "0" * 64
    assert wrong in refusal(pods, f"{registry}/other:1@{wrong}")
    assert f"{registry}/nowhere" in refusal(pods, f"{registry}/nowhere:1@{wrong}")
    assert "Never" in refusal(pods, f"{registry}/other:1@{wrong}", "Never")


def test_lying_registry(pods: Pods, registry: str) -> None:
    """A blob whose bytes changed in the registry's storage: refused by digest, and nothing of it is kept."""
    digest = push(pods, "lying", "lying")
    manifest = json.loads(pods.bed.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry}/lying@{digest}").stdout)
    config = manifest["config"]["digest"].removeprefix("sha256:")
    blob = f"/srv/registry/docker/registry/v2/blobs/sha256/{config[:2]}/{config}/data"
    pods.bed.sh(f"sed -i 's/lying/LYING/' {blob}")
    said = refusal(pods, f"{registry}/lying:1@{digest}")
    assert config in said
    assert pods.bed.sh(f"ls /var/lib/rktd/work; ls /var/lib/rktd/blobs/sha256 | grep {config} || true").stdout == ""


def test_docker_archive_is_pinned_by_its_file(pods: Pods) -> None:
    pods.make_image("archived", {"Cmd": ["/bin/echo", "from an archive"]})
    pods.bed.sh("rm -f /srv/a.tar; skopeo copy --quiet oci:/srv/images/archived:latest docker-archive:/srv/a.tar:archived:1")
    digest = pods.bed.sh("sha256sum /srv/a.tar").stdout.split()[0]
    assert run_image(pods, f"docker-archive:/srv/a.tar@sha256:{digest}") == ["from an archive"]
    assert f"sha256:{digest}" in refusal(pods, "docker-archive:/srv/a.tar")
    assert "docker-archive:/srv/a.tar" in refusal(pods, f"docker-archive:/srv/a.tar@sha256:{'1' * 64}")


@pytest.mark.parametrize("kind", ["oci-archive", "dir"])
def test_other_local_images_are_pinned_by_their_manifest(pods: Pods, kind: str) -> None:
    """As skopeo makes them; an archive says which of its images by name."""
    pods.make_image(kind, {"Cmd": ["/bin/echo", "from", kind]})
    image = f"{kind}:/srv/{kind}-image{':one' if kind == 'oci-archive' else ''}"
    pods.bed.sh(f"rm -rf /srv/{kind}-image; skopeo copy --quiet oci:/srv/images/{kind}:latest {image}")
    inspect = ("skopeo", "inspect", "--format", "{{.Digest}}", image)
    digest = pods.bed.run(*inspect).stdout.strip()
    assert run_image(pods, f"{image}@{digest}") == [f"from {kind}"]
    said = refusal(pods, image)
    assert f"{image}: is not verified" in said
    assert (f"{image}@{digest}" if kind == "dir" else f"`{' '.join(inspect)}`") in said  # nobody reads an archive for a hint
    wrong = f"sha256:{'1' * 64}"
    assert wrong in refusal(pods, f"{image}@{wrong}")


def test_root_equals_umoci_unpack(pods: Pods, registry: str) -> None:
    """An image of several layers, made by umoci: names, types, modes, owners, sizes, links and contents as umoci unpacks them.

    From its layout, and from a registry when nothing of it is here any more.
    """
    pods.make_image("layered")
    pods.bed.sh(
        "cd /srv/images; rm -rf bundle; umoci unpack --image layered:latest bundle >/dev/null; cd bundle/rootfs; "
        "mkdir -p opt/a/b; echo one >opt/a/one; ln opt/a/one opt/a/two; ln -s ../a opt/a/b/link; chmod 4755 bin/busybox; mkfifo opt/pipe; "
        "chown 7:8 opt/a; cd ../..; umoci repack --image layered:two bundle >/dev/null; cd bundle/rootfs; "
        "rm -r opt/a/b opt/a/two home/app; rm bin/vi; mkdir home/app; echo new >home/app/x; touch -d @99 opt/a/one; cd ../..; "
        "umoci repack --image layered:three bundle >/dev/null; rm -rf bundle; umoci unpack --image layered:three bundle >/dev/null"
    )
    digest = pods.bed.sh("cd /srv/images; umoci stat --image layered:three --json >/dev/null; cat layered/index.json").stdout
    entries = json.loads(digest)["manifests"]
    (pin,) = (e["digest"] for e in entries if e["annotations"]["org.opencontainers.image.ref.name"] == "three")
    listing = (
        (
            "find . -xdev ( -path ./proc -o -path ./sys -o -path ./dev -o -path ./run -o -path ./etc/hosts -o -path ./etc/hostname "
            "-o -path ./etc/resolv.conf ) -prune -o -print"
        )
        .replace("(", "\\(")
        .replace(")", "\\)")
    )
    script = (
        f"cd ROOT; {listing} | sort | while read -r p; do if [ -h $p ]; then echo \"$(stat -c '%n %F %a %u %g' $p) $(readlink $p)\"; "
        "elif [ -f $p ]; then echo \"$(stat -c '%n %F %a %u %g %s %Y %h' $p) $(md5sum <$p)\"; else stat -c '%n %F %a %u %g' $p; fi; done"
    )
    wanted = pods.bed.run("busybox", "sh", "-c", script.replace("ROOT", "/srv/images/bundle/rootfs")).stdout.splitlines()
    pods.bed.run("skopeo", "copy", "-q", "--dest-tls-verify=false", "oci:/srv/images/layered:three", f"docker://{registry}/layered:three")
    for image in (f"oci:/srv/images/layered:three@{pin}", f"{registry}/layered:three@{pin}"):
        container = {"name": "app", "image": image, "command": ["sh", "-c", script.replace("ROOT", "/").replace("$", "$$")]}
        pods.write("i", {"restartPolicy": "Never", "containers": [container]})
        pods.start("i")
        pods.wait_end("i", timeout=60)
        found = pods.lines("i")
        assert [line for line in found if line.split()[0] != "./etc"] == [line for line in wanted if line.split()[0] != "./etc"]
        assert any(line.startswith("./opt/a/one ") for line in found)
        pods.bed.sh(f"rm /etc/pods/i.yaml; podctl image rm {image}")


def test_damaged_layer_is_rebuilt(pods: Pods) -> None:
    """An edited EROFS file is found at the next start, and made anew from the good blob."""
    image = pods.make_image("damaged", {"Cmd": ["/bin/echo", "whole"], "Labels": {"x": "damaged"}})
    assert run_image(pods, image) == ["whole"]
    pods.bed.sh("for f in /var/lib/rktd/layers/*.erofs; do printf XXXX | dd of=$f bs=1 seek=2000 conv=notrunc status=none; done")
    assert run_image(pods, image) == ["whole"]


def test_two_pods_share_a_layer_mount(pods: Pods) -> None:
    for name in ("a", "b"):
        pods.write(name, {"terminationGracePeriodSeconds": 1, "containers": [pods.app(["sleep", "1000"])]})
        pods.start(name)
    mounted = pods.bed.sh("findmnt -rno TARGET -t erofs").stdout.split()
    assert len(mounted) == 1
    pods.stop("a")
    pods.wait_end("a")
    assert pods.bed.sh("findmnt -rno TARGET -t erofs").stdout.split() == mounted
    assert pods.bed.run("systemctl", "-M", "b", "is-active", "app").stdout == "active\n"
    pods.stop("b")
    pods.wait_end("b")
    assert pods.bed.sh("findmnt -rno TARGET -t erofs", check=False).stdout == ""
