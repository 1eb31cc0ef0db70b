# SPDX-License-Identifier: Apache-2.0
"""The registry client against Debian's docker-registry, plain, by TLS and with logins, and through a proxy of ours that misbehaves.

registry.test is this machine by an address that is not loopback.
"""

import base64
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import lack
from tests.integration.pods import Pods

if TYPE_CHECKING:
    from tests.integration.bed import Bed

PLAIN, LOGIN, CERTIFICATES, PROXY, OTHER = 5100, 5101, 5102, 5105, 5106
HOST = "registry.test"
FETCH = """
import json, sys
sys.path[:0] = ["/usr/lib/rktd", "/usr/lib/python3/dist-packages"]
from rktd_units.errors import RktdError
from rktd_units.images import acquire
from rktd_units.images.ready import ready_image
from rktd_units.paths import Layout
from rktd_units.settings import load_settings
acquire._STALL = float(sys.argv[3])
try:
    image = ready_image(sys.argv[1], sys.argv[2], load_settings(), Layout(), lambda event: None)
    print(json.dumps({"reference": image.reference, "manifest": image.manifest_digest, "layers": len(image.layer_keys)}))
except RktdError as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error), "hint": error.hint}))
"""
SETUP = r"""
ip address replace 10.99.0.1/32 dev lo
grep -q registry.test /etc/hosts || echo '10.99.0.1 registry.test' >>/etc/hosts
mkdir -p /srv/tls; cd /srv/tls
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=test-authority -keyout ca.key -out ca.crt 2>/dev/null
for name in registry.test client; do
  openssl req -newkey rsa:2048 -nodes -subj /CN=$name -keyout $name.key -out $name.csr 2>/dev/null
  printf 'subjectAltName=DNS:%s,IP:127.0.0.1\n' $name >$name.ext
  openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile $name.ext -out $name.crt 2>/dev/null
done
perl -e 'print "user:", crypt("word", "\$2b\$05\$abcdefghijklmnopqrstuv"), "\n"' >/srv/tls/htpasswd
"""
STORAGE = "version: 0.1\nstorage: {filesystem: {rootdirectory: /srv/registry-x}, delete: {enabled: true}}\n"
TLS = "certificate: /srv/tls/registry.test.crt, key: /srv/tls/registry.test.key"
REGISTRIES = {
    PLAIN: f"{STORAGE}http: {{addr: ':{PLAIN}'}}\n",
    LOGIN: f"{STORAGE}http: {{addr: ':{LOGIN}', tls: {{{TLS}}}}}\nauth: {{htpasswd: {{realm: test, path: /srv/tls/htpasswd}}}}\n",
    CERTIFICATES: f"{STORAGE}http: {{addr: ':{CERTIFICATES}', tls: {{{TLS}, clientcas: [/srv/tls/ca.crt]}}}}\n",
}
SIZE = 5 << 20  # bytes of the layer that gets into trouble


class Site:
    """The registries, an image `big` whose layer is random, and the proxies in front: PROXY of all, OTHER of what PROXY redirects."""

    def __init__(self, pods: Pods) -> None:
        self.bed: Bed = pods.bed
        bed = self.bed
        bed.sh(SETUP)
        for port, text in REGISTRIES.items():
            bed.write(f"/run/registry-{port}.yaml", text)
            bed.run("systemd-run", "--quiet", f"--unit=test-registry-{port}", "docker-registry", "serve", f"/run/registry-{port}.yaml")
        bed.write("/opt/faulty_proxy.py", (Path(__file__).parent / "faulty_proxy.py").read_text())
        for port in (PROXY, OTHER):
            command = ("python3", "/opt/faulty_proxy.py", "0.0.0.0", str(port), f"127.0.0.1:{PLAIN}", f"/run/proxy-{port}")
            bed.run("systemd-run", "--quiet", f"--unit=test-proxy-{port}", *command)
        for port in (PLAIN, PROXY, OTHER):
            bed.wait_for_registry(f"127.0.0.1:{port}")
        bed.write("/opt/fetch.py", FETCH)
        bed.sh(f"mkdir -p /srv/big && head -c {SIZE} /dev/urandom >/srv/big/random && tar -C /srv/big -cf /srv/big.tar random")
        pods.make_image("big", {"Cmd": ["/bin/true"]}, ("/srv/big.tar",))
        self.digest = self.push("big", "big")
        self.manifest: dict[str, Any] = json.loads(self.curl(f"big/manifests/{self.digest}"))
        self.layer = max(self.manifest["layers"], key=lambda layer: layer["size"])

    def push(self, image: str, name: str, *options: str, tag: str = "1") -> str:
        target = f"127.0.0.1:{PLAIN}/{name}:{tag}"
        copy = ("skopeo", "copy", "--quiet", "--dest-tls-verify=false", *options)
        self.bed.run(*copy, f"oci:/srv/images/{image}:latest", f"docker://{target}")
        return self.bed.run("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{target}").stdout.strip()

    def curl(self, path: str, *options: str) -> str:
        accept = "Accept: application/vnd.oci.image.manifest.v1+json"
        return self.bed.run("curl", "-sSf", "-H", accept, *options, f"http://127.0.0.1:{PLAIN}/v2/{path}").stdout

    def put(self, name: str, tag: str, document: dict[str, Any]) -> None:
        """A manifest that no tool would make."""
        kind = f"Content-Type: {document['mediaType']}"
        self.curl(f"{name}/manifests/{tag}", "-X", "PUT", "-H", kind, "-d", json.dumps(document))

    def fetch(self, reference: str, policy: str = "IfNotPresent", patience: float = 600) -> dict[str, Any]:
        """What becomes of a reference: the image, or the error. `patience`: seconds in which a pull may bring nothing."""
        value: dict[str, Any] = json.loads(self.bed.run("python3", "-IS", "/opt/fetch.py", reference, policy, str(patience)).stdout)
        return value

    def refuse(self, reference: str, pattern: str, kind: str = "ImageError", policy: str = "IfNotPresent") -> dict[str, Any]:
        """Fetching must fail so, and leave nothing, but for blobs where it may go on."""
        found = self.fetch(reference, policy)
        assert found.get("error") == kind, found
        assert re.search(pattern, found["text"]), found
        left = self.left()
        assert not [path for path in left.splitlines() if kind != "TemporaryError" or path not in self.blobs()], found
        return found

    def blobs(self) -> list[str]:
        """The blobs that are here and are what their names say."""
        script = "cd /var/lib/rktd/blobs/sha256 2>/dev/null && sha256sum * | awk '$1 == $2 {print \"/var/lib/rktd/blobs/sha256/\" $1}'"
        return self.bed.sh(script, check=False).stdout.splitlines()

    def left(self) -> str:
        """What is in the store, jobs' directories, and the directory of secrets; locks and marks aside."""
        places = "/var/lib/rktd/blobs /var/lib/rktd/layers /var/lib/rktd/images /var/lib/rktd/work /run/rktd/secrets"
        return self.bed.sh(f"find {places} -mindepth 1 ! -path /var/lib/rktd/blobs/sha256", check=False).stdout

    def set_faults(self, *faults: dict[str, Any], port: int = PROXY) -> None:
        self.bed.sh(f"cd /run/proxy-{port}; rm -f used log faults.json")
        self.bed.write(f"/run/proxy-{port}/faults.json", json.dumps(faults))

    def log(self, port: int = PROXY) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.bed.sh(f"cat /run/proxy-{port}/log || true").stdout.splitlines()]

    def connections(self) -> int:
        return len(self.bed.sh(f"cat /run/proxy-{PROXY}/connections").stdout)

    def forget(self) -> None:
        """No image, no configuration, no fault."""
        self.bed.sh(
            "rm -rf /var/lib/rktd/images /var/lib/rktd/layers /var/lib/rktd/blobs /var/lib/rktd/work/* /etc/rktd/rktd.yaml "
            "/etc/rktd/auth.json /root/.docker /etc/containers/certs.d /etc/containers/registries.conf.d/50-test.conf /run/rktd/secrets; "
            "mkdir -p /run/rktd/secrets"
        )
        for port in (PROXY, OTHER):
            self.set_faults(port=port)


@pytest.fixture(scope="module")
def sites(pods_session: Pods) -> Iterator[Site]:
    site = Site(pods_session)
    yield site
    units = [f"test-registry-{port}" for port in REGISTRIES] + [f"test-proxy-{port}" for port in (PROXY, OTHER)]
    site.forget()
    site.bed.run("systemctl", "stop", *units)


@pytest.fixture
def site(sites: Site) -> Site:
    sites.forget()
    return sites


def by_proxy(site: Site, host: str = "127.0.0.1") -> str:
    return f"{host}:{PROXY}/big:1@{site.digest}"


def auth(login: str) -> str:
    return json.dumps({"auths": {f"{HOST}:{LOGIN}": {"auth": base64.b64encode(login.encode()).decode()}}})


def test_login_by_tls_with_a_private_authority(site: Site) -> None:
    image = f"{HOST}:{LOGIN}/big:1@{site.digest}"
    found = site.refuse(image, rf"https://{HOST}:{LOGIN}/v2/big/manifests/\S+: its certificate is refused: .*certificate")
    assert found["hint"].endswith(f"/etc/containers/certs.d/{HOST}:{LOGIN}/ca.crt")
    site.bed.sh(f"mkdir -p /etc/containers/certs.d/{HOST}:{LOGIN}; cp /srv/tls/ca.crt /etc/containers/certs.d/{HOST}:{LOGIN}/")
    found = site.refuse(image, rf"{HOST}:{LOGIN}/big: refuses anonymous access.*: authentication required")
    assert found["hint"] == f"skopeo login --authfile /etc/rktd/auth.json {HOST}:{LOGIN}"
    site.bed.write("/etc/rktd/auth.json", auth("user:wrong"), 0o600)
    site.refuse(image, rf"{HOST}:{LOGIN}/big: refuses the login of /etc/rktd/auth.json")
    site.bed.write("/etc/rktd/auth.json", auth("user:word"), 0o600)
    assert site.fetch(image)["manifest"] == site.digest


def test_pull_secrets_of_a_pod(site: Site, pods: Pods) -> None:
    """A Secret beside the pod is its login; a wrong one is named; without one the image is asked for without, and a warning says so."""
    site.bed.sh(f"mkdir -p /etc/containers/certs.d/{HOST}:{LOGIN}; cp /srv/tls/ca.crt /etc/containers/certs.d/{HOST}:{LOGIN}/")
    spec = {"restartPolicy": "Never", "imagePullSecrets": [{"name": "regcred"}]}
    spec["containers"] = [{"name": "app", "image": f"{HOST}:{LOGIN}/big:1@{site.digest}"}]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}

    def start(login: str) -> str:
        config = {".dockerconfigjson": base64.b64encode(auth(login).encode()).decode()}
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "regcred"},
            "type": "kubernetes.io/dockerconfigjson",
            "data": config,
        }
        site.bed.write("/etc/pods/p.yaml", "\n---\n".join(json.dumps(d) for d in ((pod, secret) if login else (pod,))), 0o600)
        done = pods.start("p", check=False)
        pods.wait_end("p")
        said = "\n".join(e["MESSAGE"] for e in site.bed.journal("-u", "pod-stage0@p", f"--after-cursor={pods.cursor}"))
        return "started" if done.returncode == 0 else said

    said = start("")
    assert "imagePullSecret regcred: there is no such Secret; images are fetched without it" in said
    assert "refuses anonymous access" in said
    assert f"{HOST}:{LOGIN}/big: refuses the login of imagePullSecret regcred" in start("user:wrong")
    assert start("user:word") == "started"


def test_what_skopeo_login_writes_and_a_helper_gives(site: Site) -> None:
    site.bed.sh(f"mkdir -p /etc/containers/certs.d/{HOST}:{LOGIN}; cp /srv/tls/ca.crt /etc/containers/certs.d/{HOST}:{LOGIN}/")
    image = f"{HOST}:{LOGIN}/big:1@{site.digest}"
    login = ("skopeo", "login", "--authfile", "/root/.docker/config.json", "--username", "user", "--password", "word", f"{HOST}:{LOGIN}")
    site.bed.run("mkdir", "-p", "/root/.docker")
    site.bed.run(*login)
    assert site.fetch(image)["manifest"] == site.digest
    site.forget()
    site.bed.sh(f"mkdir -p /etc/containers/certs.d/{HOST}:{LOGIN}; cp /srv/tls/ca.crt /etc/containers/certs.d/{HOST}:{LOGIN}/")
    site.bed.write("/root/.docker/config.json", json.dumps({"credsStore": "test"}))
    helper = '#!/bin/sh\nread -r server; echo "$server $(id -u)" >/run/helper-asked; echo \'{"Username":"user","Secret":"word"}\'\n'
    site.bed.write("/usr/local/bin/docker-credential-test", helper, 0o755)
    assert site.fetch(image)["manifest"] == site.digest
    assert site.bed.read("/run/helper-asked") == f"{HOST}:{LOGIN} 0\n"


def test_proxy(site: Site) -> None:
    """TLS by CONNECT, with the proxy's own login; plain HTTP as it is; and neither for what `no:` names."""
    site.bed.sh(f"mkdir -p /etc/containers/certs.d/{HOST}:{LOGIN}; cp /srv/tls/ca.crt /etc/containers/certs.d/{HOST}:{LOGIN}/")
    site.bed.write("/etc/rktd/auth.json", auth("user:word"), 0o600)
    proxy, settings = (
        f"http://way:out@127.0.0.1:{PROXY}",
        f"insecure: ['{HOST}:{LOGIN}', '{HOST}:{PLAIN}']\ninsecureTransport: ['{HOST}:{PLAIN}']\n",
    )
    by_tls, plain = f"{HOST}:{LOGIN}/big:1", f"{HOST}:{PLAIN}/big:1"

    def fetch(image: str, proxies: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What becomes of the image, and what the proxy saw of that."""
        site.set_faults()
        site.bed.write("/etc/rktd/rktd.yaml", f"{settings}proxies: {json.dumps(proxies)}\n")
        return site.fetch(image, "Always"), site.log()

    found, log = fetch(by_tls, {"https": proxy})
    assert found["manifest"] == site.digest
    assert {(entry["path"], entry["status"]) for entry in log} == {(f"{HOST}:{LOGIN}", 200)}
    assert {entry["authorization"] for entry in log} == {f"Basic {base64.b64encode(b'way:out').decode()}"}
    found, log = fetch(plain, {"http": proxy})
    assert found["manifest"] == site.digest
    assert f"http://{HOST}:{PLAIN}/v2/big/manifests/1" in {entry["path"] for entry in log if entry["status"] == 200}
    for image in (by_tls, plain):
        found, log = fetch(image, {"https": proxy, "http": proxy, "no": ["test"]})
        assert (found["manifest"], log) == (site.digest, [])
    found, log = fetch(by_tls, {"https": "http://127.0.0.1:1"})
    assert (found["error"], log) == ("TemporaryError", [])


def test_client_certificate(site: Site) -> None:
    image, directory = f"{HOST}:{CERTIFICATES}/big:1@{site.digest}", f"/etc/containers/certs.d/{HOST}:{CERTIFICATES}"
    site.bed.sh(f"mkdir -p {directory}; cp /srv/tls/ca.crt {directory}/")
    # The server closes when it has told why; what arrives is its word, or that it has closed.
    said = site.fetch(image)
    assert re.search(r"the server refuses the connection \(TLSV13_ALERT_CERTIFICATE_REQUIRED\)|reset|EOF|closed|pipe", said["text"])
    site.bed.sh(f"cp /srv/tls/client.crt {directory}/client.cert; install -m600 /srv/tls/client.key {directory}/client.key")
    assert site.fetch(image)["manifest"] == site.digest
    # The key is the job's alone as long as it lasts, and gone after it.
    assert site.bed.run("ls", "-A", "/run/rktd/secrets").stdout == ""


def test_plain_http_only_where_it_is_listed(site: Site) -> None:
    image = f"{HOST}:{PLAIN}/big:1@{site.digest}"
    site.refuse(image, r"does not speak TLS", "TemporaryError")
    site.bed.write("/etc/rktd/rktd.yaml", f"insecureTransport: ['{HOST}:{PLAIN}/bi']\n")
    site.refuse(image, r"does not speak TLS", "TemporaryError")
    site.bed.write("/etc/rktd/rktd.yaml", f"insecureTransport: ['{HOST}:{PLAIN}/big']\n")
    assert site.fetch(image)["manifest"] == site.digest
    # That says nothing of trust.
    assert "is not verified" in site.fetch(f"{HOST}:{PLAIN}/big:1")["text"]
    site.forget()
    site.bed.write("/etc/containers/registries.conf.d/50-test.conf", f"[[registry]]\nlocation = '{HOST}:{PLAIN}'\ninsecure = true\n")
    assert site.fetch(image)["manifest"] == site.digest


def test_registries_conf(site: Site) -> None:
    """A dead mirror, then one that has it, stand for a registry that is not there; blocked; an alias."""
    conf = f"""
[[registry]]
prefix = "gone.test/team"
location = "127.0.0.1:1/x"
[[registry.mirror]]
location = "127.0.0.1:{PLAIN}/nowhere"
[[registry.mirror]]
location = "127.0.0.1:{PLAIN}"
[[registry]]
prefix = "*.evil.test"
blocked = true
[aliases]
"short-big" = "127.0.0.1:{PLAIN}/big"
"""
    site.bed.write("/etc/containers/registries.conf.d/50-test.conf", conf)
    assert site.fetch(f"gone.test/team/big:1@{site.digest}")["reference"] == f"gone.test/team/big:1@{site.digest}"
    assert site.fetch(f"short-big:1@{site.digest}")["reference"] == f"127.0.0.1:{PLAIN}/big:1@{site.digest}"
    found = site.fetch(f"a.evil.test/x@sha256:{'0' * 64}")
    assert (found["text"].endswith(r"*.evil.test is blocked"), found["hint"]) == (True, "by /etc/containers/registries.conf.d/50-test.conf")
    missing = site.fetch(f"gone.test/team/none:1@sha256:{'0' * 64}")["text"]
    assert missing.count("has no image") == 2
    assert "127.0.0.1:1/" in missing


def test_docker_schema_2(site: Site) -> None:
    digest = site.push("big", "schema2", "--format=v2s2")
    assert site.fetch(f"127.0.0.1:{PLAIN}/schema2:1@{digest}")["manifest"] == digest


def test_image_of_podman_build(site: Site) -> None:
    """What podman builds and pushes: gzip, and zstd."""
    site.bed.write("/srv/build/Containerfile", 'FROM scratch\nCOPY random /data/\nENV A=b\nCMD ["/data/random"]\n')
    name = f"127.0.0.1:{PLAIN}/built"
    push = "podman push --quiet --tls-verify=false --force-compression --compression-format"
    site.bed.sh(f"cd /srv/build; cp /srv/big/random .; podman build --quiet --isolation=chroot -t {name} .")
    site.bed.sh(f"{push}=gzip {name} {name}:gzip; {push}=zstd {name} {name}:zstd")
    site.bed.write("/etc/rktd/rktd.yaml", f"insecure: [{name}]\n")
    found = [site.fetch(f"{name}:{form}") for form in ("gzip", "zstd")]
    assert [image.get("layers") for image in found] == [1, 1], found
    heads = site.bed.sh("for f in /var/lib/rktd/blobs/sha256/*; do head -c4 $f | od -An -tx1; done").stdout
    assert " 28 b5 2f fd" in heads
    assert " 1f 8b 08" in heads


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_image_of_buildah(site: Site, pods: Pods, form: str) -> None:
    """Made step by step, in both forms of manifest; the pod runs what was added, with the configuration that was set."""
    name = f"127.0.0.1:{PLAIN}/stepwise:{form}"
    entrypoint, command = ["/opt/busybox", "sh", "-c"], ["/opt/busybox id -u; echo $WHO; /opt/busybox stat -c %u:%g /opt/busybox"]
    config = f"--env WHO={form} --user 7:8 --entrypoint '{json.dumps(entrypoint)}' --cmd '{json.dumps(command)}'"
    site.bed.sh(
        f"c=$(buildah from scratch); buildah add --quiet --chown 5:6 $c /bin/busybox /opt/busybox; buildah config {config} $c; "
        f"buildah commit --quiet --format={form} --rm $c {name}; buildah push --quiet --tls-verify=false --digestfile=/run/stepwise {name}"
    )
    image = f"{name}@{site.bed.read('/run/stepwise')}"
    pods.write("i", {"restartPolicy": "Never", "containers": [{"name": "app", "image": image}]})
    pods.start("i")
    pods.wait_end("i")
    assert pods.lines("i") == ["7", form, "5:6"]


def test_indexes(site: Site) -> None:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[site.bed.run("uname", "-m").stdout.strip()]
    kind = "application/vnd.oci.image.manifest.v1+json"
    ours = {"mediaType": kind, "digest": site.digest, "size": len(site.curl(f"big/manifests/{site.digest}"))}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}
    platforms = [
        {"os": "windows", "architecture": machine},
        {"os": "linux", "architecture": "m68k"},
        {"os": "linux", "architecture": machine},
    ]
    site.put("big", "index", {**index, "manifests": [{**ours, "platform": platform} for platform in platforms]})
    site.bed.write("/etc/rktd/rktd.yaml", f"insecure: ['127.0.0.1:{PLAIN}']\n")
    assert site.fetch(f"127.0.0.1:{PLAIN}/big:index")["manifest"] == site.digest
    site.put("big", "none", {**index, "manifests": [{**ours, "platform": platform} for platform in platforms[:2]]})
    assert re.search(
        rf"has no image for linux/{machine}; it has: linux/m68k, windows/{machine}", site.fetch(f"127.0.0.1:{PLAIN}/big:none")["text"]
    )


def test_foreign_layer(site: Site) -> None:
    foreign = {**site.layer, "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "urls": ["https://x.test/l"]}
    site.set_faults({"path": "manifests/", "body": json.dumps({**site.manifest, "layers": [foreign]}), "status": 200})
    site.bed.write("/etc/rktd/rktd.yaml", f"insecure: ['127.0.0.1:{PROXY}']\n")
    site.refuse(f"127.0.0.1:{PROXY}/big:foreign", r"layers\[0\]: is a foreign layer, which registries do not hold")


def test_cut_off_layers_go_on_where_they_were(site: Site) -> None:
    path = f"blobs/{site.layer['digest']}"
    site.set_faults({"path": path, "times": 3, "cut": 1 << 20})
    assert site.fetch(by_proxy(site))["manifest"] == site.digest
    tries = [entry for entry in site.log() if path in entry["path"]]
    assert [entry["range"] for entry in tries] == ["", *(f"bytes={n << 20}-" for n in (1, 2, 3))]
    assert [entry["status"] for entry in tries] == [200, 206, 206, 206]
    assert sum(entry["sent"] for entry in tries) == site.layer["size"]


def test_stalled_layers_go_on_where_they_were(site: Site) -> None:
    site.bed.write("/etc/rktd/rktd.yaml", "stallTimeout: 1\n")
    path = f"blobs/{site.layer['digest']}"
    site.set_faults({"path": path, "times": 2, "cut": 1 << 20, "stall": 60})
    began = time.monotonic()
    assert site.fetch(by_proxy(site))["manifest"] == site.digest
    assert time.monotonic() - began < 30
    assert [entry["range"] for entry in site.log() if path in entry["path"]] == ["", *(f"bytes={n << 20}-" for n in (1, 2))]


def test_nothing_but_stalls(site: Site) -> None:
    site.bed.write("/etc/rktd/rktd.yaml", "stallTimeout: 1\n")
    site.set_faults({"path": f"blobs/{site.layer['digest']}", "cut": 1000, "stall": 60})
    site.refuse(by_proxy(site), rf"blobs/{site.layer['digest']}: .*(timed out|stalled)", "TemporaryError")


def test_a_pull_may_take_long_as_long_as_it_gets_on(site: Site) -> None:
    path = f"blobs/{site.layer['digest']}"
    site.set_faults({"path": path, "rate": 1 << 20})
    began = time.monotonic()
    assert site.fetch(by_proxy(site), patience=1.5)["manifest"] == site.digest
    assert time.monotonic() - began > 4


def test_layers_are_converted_while_another_is_on_its_way(site: Site) -> None:
    """In a sandbox of their own, without the network; and the store has none of them before all are there."""
    site.set_faults({"path": f"blobs/{site.layer['digest']}", "rate": 1 << 20})
    fetch = ("python3", "-IS", "/opt/fetch.py", by_proxy(site), "IfNotPresent", "600")
    site.bed.run("systemd-run", "--quiet", "--unit=test-ahead", "--property=Type=oneshot", "--no-block", "--remain-after-exit", *fetch)
    site.bed.sh(
        "for i in $(seq 200); do find /var/lib/rktd/work -path '*/root/out/0.erofs' -size +4k | grep -q . && break; sleep 0.05; done; "
        "test $i -lt 200"
    )
    found = site.bed.sh(
        "systemctl show --property=Description,PrivateNetwork 'rktd-job-*'; find /var/lib/rktd/layers -name '*.erofs'"
    ).stdout
    jobs = {tuple(sorted(job.splitlines())) for job in found.strip().split("\n\n")}
    assert jobs == {
        ("Description=rktd-units image job: convert-layers", "PrivateNetwork=yes"),
        ("Description=rktd-units image job: pull-image", "PrivateNetwork=no"),
    }
    site.bed.sh("for i in $(seq 300); do systemctl is-active -q test-ahead && break; sleep 0.1; done; systemctl stop test-ahead")
    assert [request["path"].rpartition("/")[2] for request in site.log()].count(site.layer["digest"]) == 1
    left = site.left().splitlines()
    assert sum(path.endswith(".erofs") for path in left) == len(site.manifest["layers"])
    assert not [path for path in left if "/work/" in path]


def test_a_pull_that_does_not_get_on_is_ended_and_what_came_is_kept(site: Site) -> None:
    path = f"blobs/{site.layer['digest']}"
    site.set_faults({"path": path, "times": 1, "cut": 1000, "stall": 60})
    found = site.fetch(by_proxy(site), patience=1.5)
    assert "the sandboxed job pull-image took too long: it did not get on for 1.5 seconds" in found.get("text", ""), found
    assert found["error"] == "TemporaryError"
    others = {layer["digest"][7:] for layer in site.manifest["layers"]} - {site.layer["digest"][7:]}
    assert others <= {blob.rpartition("/")[2] for blob in site.blobs()}
    assert site.bed.sh("ls /var/lib/rktd/work; systemctl list-units --no-legend 'rktd-job-*'").stdout == ""
    site.set_faults()
    assert site.fetch(by_proxy(site))["manifest"] == site.digest
    asked = {entry["path"].rpartition("/")[2] for entry in site.log() if "/blobs/" in entry["path"]}
    assert asked == {site.layer["digest"], site.manifest["config"]["digest"]}


def test_whoever_gives_up_ends_the_jobs(site: Site, pods: Pods) -> None:
    """Ctrl-C at a fetch of one image and of two at once, a terminal that goes, and a pod that is stopped while its image is pulled."""
    bed, jobs = site.bed, "systemctl list-units --no-legend 'rktd-job-*' | grep -c pull-image"
    site.set_faults({"path": f"blobs/{site.layer['digest']}", "cut": 1000, "stall": 600})
    ended = "test -z \"$(systemctl list-units --no-legend 'rktd-job-*'; ls /var/lib/rktd/work)\""
    images = (by_proxy(site), f"127.0.0.1:{PROXY}/big@{site.digest}")
    for count, number in ((1, "INT"), (2, "INT"), (1, "HUP")):
        run = ("systemd-run", "--quiet", "--unit=test-fetch", "--property=CollectMode=inactive-or-failed", "--no-block", "--collect")
        bed.run(*run, "--property=SuccessExitStatus=130", "podctl", "fetch", *images[:count])
        bed.wait_for(f"test $({jobs}) = {count}")
        bed.run("systemctl", "kill", f"--signal={number}", "test-fetch")
        bed.wait_for("! systemctl is-active -q test-fetch")
        assert bed.sh(ended, check=False).returncode == 0
    pods.write("i", {"containers": [{"name": "app", "image": images[0]}]})
    bed.run("systemctl", "start", "--no-block", "pod@i")
    bed.wait_for(f"test $({jobs}) = 1")
    bed.run("systemctl", "stop", "pod@i")
    bed.wait_for("! systemctl is-active -q pod-stage0@i")
    bed.wait_for(ended)


def test_link_local_addresses_are_closed(site: Site) -> None:
    """By a name that leads there; a registry that is named by such an address is meant."""
    asked = ("curl", "-sf", "--max-time", "2", f"http://127.0.0.1:{PLAIN}/v2/")  # what is denied is dropped: nobody answers
    if site.bed.run("systemd-run", "-q", "--wait", "-p", "IPAddressDeny=any", *asked, check=False).returncode == 0:
        lack("the kernel of the testbed has no BPF for control groups")
    site.bed.sh("ip address replace 169.254.77.1/32 dev lo; grep -q near.test /etc/hosts || echo '169.254.77.1 near.test' >>/etc/hosts")
    try:
        site.bed.write("/etc/rktd/rktd.yaml", f"insecureTransport: ['near.test:{PLAIN}', '169.254.77.1:{PLAIN}']\n")
        site.refuse(f"near.test:{PLAIN}/big:1@{site.digest}", "Operation not permitted|timed out", "TemporaryError")
        assert site.fetch(f"169.254.77.1:{PLAIN}/big:1@{site.digest}")["manifest"] == site.digest
    finally:
        site.bed.sh("ip address del 169.254.77.1/32 dev lo")


def test_changed_validator_starts_anew(site: Site) -> None:
    path = f"blobs/{site.layer['digest']}"
    site.set_faults({"path": path, "times": 1, "cut": 1 << 20, "headers": {"Etag": '"another"'}})
    assert site.fetch(by_proxy(site))["manifest"] == site.digest
    tries = [entry for entry in site.log() if path in entry["path"]]
    assert [(entry["status"], entry["sent"]) for entry in tries] == [(200, 1 << 20), (200, site.layer["size"])]


def test_nothing_but_cuts(site: Site) -> None:
    site.set_faults({"path": f"blobs/{site.layer['digest']}", "cut": 100})
    site.refuse(by_proxy(site), rf"blobs/{site.layer['digest']}: .*(IncompleteRead|Connection broken)", "TemporaryError")


@pytest.mark.parametrize(
    ("fault", "pattern"),
    [
        ({"path": "blobs/LAYER", "flip": 4000000}, "blobs/LAYER: the server sent other bytes, sha256:"),
        ({"path": "manifests/", "flip": 20}, "manifest DIGEST: the registry sent other bytes, sha256:"),
        (
            {"path": "blobs/LAYER", "headers": {"Content-Length": "99999999999"}},
            "the server says it has 99999999999 bytes, it should have SIZE",
        ),
        ({"path": "blobs/LAYER", "headers": {"Content-Length": "7"}}, "the server says it has 7 bytes, it should have SIZE"),
        (
            {"path": "manifests/", "headers": {"Content-Length": "9999999"}, "body": " " * 5000000},
            "the server sent more than 4194304 bytes",
        ),
        ({"path": "manifests/", "headers": {"Docker-Content-Digest": "sha256:" + "1" * 64}}, "the registry says that it is sha256:1111"),
        ({"path": "manifests/", "headers": {"Content-Type": "text/html"}}, "the registry sent 'text/html', which is no manifest"),
        (
            {"path": "manifests/", "headers": {"Content-Type": "application/vnd.oci.image.index.v1+json"}},
            "the registry says 'application/vnd.oci.image.index.v1.json', the manifest itself 'application/vnd.oci.image.manifest",
        ),
        (
            {"path": "manifests/", "status": 404, "body": '{"errors":[{"message":"gone\\u001b[31m away"}]}'},
            r"has no image DIGEST: gone\?\[31m away",
        ),
        ({"path": "blobs/LAYER", "status": 404}, "has no blob LAYER"),
        ({"path": "blobs/LAYER", "status": 302, "headers": {"Location": "/v2/big/blobs/LAYER"}}, "is redirected too often"),
        ({"path": "blobs/LAYER", "status": 302, "headers": {"Location": "file:///etc/shadow"}}, "is redirected to a bad URL"),
    ],
    ids=lambda value: "" if isinstance(value, str) else re.sub(r"[^a-zA-Z0-9]+", "-", json.dumps(value))[:60],
)
def test_lies(site: Site, fault: dict[str, Any], pattern: str) -> None:
    words = {"LAYER": site.layer["digest"], "DIGEST": site.digest, "SIZE": str(site.layer["size"])}
    text = json.dumps(fault)
    for word, value in words.items():
        text, pattern = text.replace(word, value), pattern.replace(word, value)
    site.set_faults(json.loads(text))
    site.refuse(by_proxy(site), pattern)


def test_busy_registry(site: Site) -> None:
    site.set_faults({"path": "manifests/", "times": 1, "status": 429, "headers": {"Retry-After": "2"}})
    assert site.fetch(by_proxy(site))["manifest"] == site.digest
    first, second = (entry["time"] for entry in site.log() if "manifests" in entry["path"])
    assert 2 <= second - first < 10
    site.forget()
    site.set_faults({"path": "manifests/", "status": 429, "headers": {"Retry-After": "600"}, "body": '{"errors":[{"message":"too many"}]}'})
    site.refuse(by_proxy(site), "answered 429 Too Many Requests: too many; it asks to wait 600 seconds", "TemporaryError")
    assert len([entry for entry in site.log() if "manifests" in entry["path"]]) == 1


def test_tokens_and_logins_do_not_follow_a_redirect(site: Site) -> None:
    """The proxy wants a token, which it gives for a login, and sends its blobs off to another server."""
    path, host = f"blobs/{site.layer['digest']}", f"127.0.0.1:{PROXY}"
    login = {"auths": {host: {"auth": base64.b64encode(b"user:word").decode()}}}
    site.bed.write("/etc/rktd/auth.json", json.dumps(login), 0o600)
    moved = {"status": 307, "headers": {"Location": f"http://127.0.0.2:{OTHER}/v2/big/{path}?X-Signature=secret"}}
    site.set_faults({"path": path, **moved, "token": "the-token"}, {"path": "/v2/.+|/token", "token": "the-token"})
    assert site.fetch(by_proxy(site))["manifest"] == site.digest
    ours, others = site.log(), site.log(OTHER)
    assert {entry["authorization"] for entry in ours if path in entry["path"]} == {"Bearer the-token"}
    assert [entry["path"] for entry in others] == [f"/v2/big/{path}?X-Signature=secret"]
    assert [entry["authorization"] for entry in others] == [""]
    assert site.bed.sh("journalctl --no-pager | grep -c the-token || true").stdout == "0\n"


def test_a_remote_registry_leads_nowhere_nearer(site: Site) -> None:
    """Neither a redirect nor the realm of a token makes us ask this machine's own services."""
    site.bed.write("/etc/rktd/rktd.yaml", f"insecureTransport: ['{HOST}:{PROXY}']\n")
    moved = {"status": 302, "headers": {"Location": f"http://127.0.0.1:{OTHER}/v2/big/blobs/x"}}
    site.set_faults({"path": "blobs/", **moved})
    site.refuse(by_proxy(site, HOST), r"leads to 127.0.0.1 \(this machine\), which is nearer to this host than itself: refused")
    challenge = {"WWW-Authenticate": f'Bearer realm="http://localhost:{OTHER}/token"'}
    site.set_faults({"path": "manifests/", "status": 401, "headers": challenge})
    site.refuse(by_proxy(site, HOST), r"leads to localhost \(this machine\), which is nearer")
    assert site.log(OTHER) == []


def test_policies_and_the_network(site: Site) -> None:
    """Never, and IfNotPresent of what is there, ask nobody; Always asks for the tag, and fetches only what is new."""
    site.bed.write("/etc/rktd/rktd.yaml", f"insecure: ['127.0.0.1:{PROXY}']\n")
    image = f"127.0.0.1:{PROXY}/big:1"
    before = site.connections()
    assert "its pull policy is Never" in site.fetch(image, "Never")["text"]
    assert site.connections() == before
    assert site.fetch(image)["manifest"] == site.digest
    before = site.connections()
    assert before > 0
    for policy, reference in (("IfNotPresent", image), ("Never", image), ("Always", f"{image}@{site.digest}")):
        assert site.fetch(reference, policy)["manifest"] == site.digest
    assert site.connections() == before
    site.set_faults()
    assert site.fetch(image, "Always")["manifest"] == site.digest
    assert [(entry["method"], entry["path"]) for entry in site.log() if "/big/" in entry["path"]] == [("HEAD", "/v2/big/manifests/1")]
    site.bed.sh(f"rm /var/lib/rktd/blobs/sha256/{site.layer['digest'][7:]} /var/lib/rktd/layers/*")
    assert site.fetch(image, "Always")["manifest"] == site.digest  # what is lacking comes, though the tag has not moved
    moved = site.push("base", "big")
    try:
        assert site.fetch(image)["manifest"] == site.digest
        assert site.fetch(image, "Always")["manifest"] == moved
        assert site.fetch(image)["manifest"] == moved
    finally:
        site.push("big", "big")
