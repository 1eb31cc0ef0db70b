# SPDX-License-Identifier: Apache-2.0
"""ACIs as pods: made with plain tar, from files and from a web server of ours on the testbed, found by meta discovery; signed by gpg."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.aci_cases import aci_manifest, labels
from tests.integration.pods import Pods
from tests.integration.signing import HOME, Signer
from tests.integration.test_images import refusal
from tests.integration.test_registry import HOST, SETUP

WEB = "/srv/acweb"
ACIS = "/srv/acis"
SETTINGS = "/etc/rktd/rktd.yaml"
PACKERS = {"cat": "cat", "gzip": "gzip -n"}
PACKERS |= {  # neither bzip2 nor xz is on the testbed
    name: f"python3 -c 'import {name}, sys; sys.stdout.buffer.write({name}.compress(sys.stdin.buffer.read()))'" for name in ("bz2", "lzma")
}
PAGE = (
    """<html><head><meta name="ac-discovery" content="localhost http://localhost/files/{name}-{version}-{os}-{arch}.{ext}"></head></html>"""
)

HTTPS = f"""
import functools, http.server, ssl
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="{WEB}")
server = http.server.ThreadingHTTPServer(("0.0.0.0", 443), handler)
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain("/srv/tls/{HOST}.crt", "/srv/tls/{HOST}.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


class Acis:
    """Makes ACIs inside the testbed; a static web server on port 80 serves WEB."""

    def __init__(self, pods: Pods) -> None:
        self.pods, self.bed = pods, pods.bed

    def make(self, name: str, manifest: dict[str, Any], script: str = "", *, base: bool = True, pack: str = "gzip -n") -> str:
        """ACIS/NAME.aci with what `script` puts into its root; `base`: busybox is there too. Gives its image ID."""
        directory = f"{ACIS}/{name}"
        busybox = "mkdir -p bin etc tmp dev proc sys; cp /bin/busybox bin; for a in sh echo id cat ls sleep env stat kill touch nproc; do "
        busybox += "ln -s busybox bin/$a; done; printf 'root:x:0:0::/root:/bin/sh\\napp:x:1000:1000::/:/bin/sh\\n' >etc/passwd; "
        busybox += "printf 'root:x:0:\\napp:x:1000:\\nstaff:x:50:\\n' >etc/group; chmod 1777 tmp; "
        self.bed.sh(f"rm -rf {directory}")
        self.bed.write(f"{directory}/manifest", json.dumps(manifest))
        self.bed.sh(
            f"mkdir -p {directory}/rootfs; cd {directory}/rootfs; {busybox if base else ''}{script or 'true'}\ncd ..\n"
            f"tar --owner=0 --group=0 --numeric-owner --sort=name -cf ../{name}.tar manifest rootfs; {pack} <../{name}.tar >../{name}.aci"
        )
        return "sha512-" + self.bed.sh(f"sha512sum <{ACIS}/{name}.tar").stdout.split()[0]

    def publish(self, name: str, path: str) -> None:
        """Serve ACIS/NAME.aci, and its signature if there is one, at a path of the web server."""
        self.bed.sh(
            f"mkdir -p $(dirname {WEB}/{path}); cp {ACIS}/{name}.aci {WEB}/{path}; cp {ACIS}/{name}.aci.asc {WEB}/{path}.asc || true"
        )

    def run(self, image: str, *, policy: str = "IfNotPresent", **fields: Any) -> list[str]:
        """The lines of the image's own command, which runs to its end."""
        spec = {"restartPolicy": "Never", "containers": [{"name": "app", "image": image, "imagePullPolicy": policy, **fields}]}
        self.pods.write("i", spec)
        self.pods.start("i")
        self.pods.wait_end("i")
        return self.pods.lines("i")


def app(script: str, **keys: Any) -> dict[str, Any]:
    """The manifest of a shell script."""
    name = keys.pop("name", "localhost/app")
    return aci_manifest(name, **{"exec": ["/bin/sh", "-c", script], **keys})


@pytest.fixture(scope="module")
def acis_session(pods_session: Pods) -> Iterator[Acis]:
    bed = pods_session.bed
    bed.sh(f"rm -rf {WEB} {ACIS}; mkdir -p {WEB} {ACIS}")
    bed.run("systemd-run", "--quiet", "--unit=test-acweb", "busybox", "httpd", "-f", "-p", "127.0.0.1:80", "-h", WEB)
    yield Acis(pods_session)
    bed.run("systemctl", "stop", "test-acweb")


@pytest.fixture
def acis(acis_session: Acis, pods: Pods) -> Iterator[Acis]:
    yield acis_session
    pods.bed.sh(f"rm -rf {SETTINGS} {WEB}/*")


@pytest.mark.parametrize("pack", ["cat", "gzip", "bz2", "lzma"])
def test_file(acis: Acis, pack: str) -> None:
    """Run by its own hash; the sha512 of the uncompressed tar, however it is packed."""
    image_id = acis.make(pack, app(f'echo "hello from {pack}"; echo $AC_APP_NAME $container'), pack=PACKERS[pack])
    image = f"aci:{ACIS}/{pack}.aci@{image_id}"
    assert acis.run(image) == [f"hello from {pack}", "app rktd"]
    acis.bed.sh(f"rm {ACIS}/{pack}.aci")
    assert acis.run(image, policy="Never") == [f"hello from {pack}", "app rktd"]
    assert image in acis.bed.run("podctl", "images", "--output=json").stdout


def test_everything_that_a_manifest_says(acis: Acis) -> None:
    script = "id; pwd; echo $GREETING; stat -c '%U %a' /data; cat /proc/self/oom_score_adj; cat /tmp/pre; while read -r k v; do "
    script += "case $k in CapBnd:|Seccomp:|NoNewPrivs:) echo $k $v;; esac; done </proc/self/status"
    manifest = app(
        script,
        user="app",
        group="staff",
        supplementaryGIDs=[400, 500],
        workingDirectory="/opt/work",
        environment=[{"name": "GREETING", "value": "good day $HOME"}],
        mountPoints=[{"name": "data", "path": "/data"}],
        ports=[{"name": "http", "port": 80, "protocol": "tcp"}],
        eventHandlers=[
            {"name": "pre-start", "exec": ["/bin/sh", "-c", "id -u >/tmp/pre; echo pre-start"]},
            {"name": "post-stop", "exec": ["/bin/sh", "-c", "echo post-stop $(id -u) $(cat /tmp/pre)"]},
        ],
        isolators=[
            {"name": "os/linux/capabilities-retain-set", "value": {"set": ["CAP_NET_BIND_SERVICE", "CAP_KILL"]}},
            {"name": "os/linux/oom-score-adj", "value": 999},
            {"name": "resource/memory", "value": {"limit": "64Mi"}},
            {"name": "resource/cpu", "value": {"limit": "500m"}},
            {"name": "resource/network-bandwidth", "value": {"default": True, "limit": "1G"}},
        ],
    )
    image_id = acis.make("all", manifest, "mkdir -p opt/work")
    lines = acis.run(f"aci:{ACIS}/all.aci@{image_id}", resources={"requests": {"memory": "1Gi"}})  # which comes to less than 999
    assert lines == [
        "pre-start",
        "uid=1000(app) gid=50(staff) groups=50(staff),400,500",
        "/opt/work",
        "good day $HOME",
        "root 755",
        "999",
        "0",
        "CapBnd: 0000000000000420",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "post-stop 0 0",
    ]
    told = "\n".join(e["MESSAGE"] for e in acis.bed.journal("-u", "pod-stage0@i", f"--after-cursor={acis.pods.cursor}"))
    assert "resource/network-bandwidth of its image: ignored: not supported" in told


def test_pod_file_wins(acis: Acis) -> None:
    script = "while read -r k v; do case $k in CapBnd:) echo $v;; esac; done </proc/self/status; id -u; pwd"
    retain = {"name": "os/linux/capabilities-retain-set", "value": {"set": ["CAP_NET_ADMIN"]}}
    image_id = acis.make("wins", app(script, isolators=[retain]), "mkdir opt")
    image = f"aci:{ACIS}/wins.aci@{image_id}"
    assert "the image wants NET_ADMIN, which no app has unless the pod file says so" in refusal(acis.pods, image)
    granted = {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}, "runAsUser": 7}
    assert acis.run(image, securityContext=granted, workingDir="/opt") == ["0000000000001000", "7", "/opt"]


@pytest.mark.parametrize(("error", "expected"), [("EXFULL", "code 1"), ("", "code 159")], ids=["errno", "SIGSYS"])
def test_seccomp_remove(acis: Acis, error: str, expected: str) -> None:
    remove = {"name": "os/linux/seccomp-remove-set", "value": {"set": ["mkdir", "mkdirat"], "errno": error}}
    image_id = acis.make("remove", app("/bin/busybox mkdir /tmp/d 2>&1; echo code $?", isolators=[remove]))
    lines = acis.run(f"aci:{ACIS}/remove.aci@{image_id}")
    assert lines[-1] == expected
    assert ("Exchange full" in lines[0]) == (error == "EXFULL")


def test_seccomp_retain(acis: Acis) -> None:
    """Only what is listed; what runs is a static program that needs little."""
    calls = "read write exit_group brk mmap mprotect arch_prctl set_tid_address set_robust_list rseq prlimit64 readlink readlinkat uname "
    calls += "getrandom fstat getuid geteuid getpid ioctl newfstatat rt_sigprocmask prctl close open openat utimensat utimes futex munmap"
    retain = {"name": "os/linux/seccomp-retain-set", "value": {"set": calls.split(), "errno": "EXFULL"}}
    image_id = acis.make("retain", aci_manifest("localhost/app", exec=["/bin/busybox", "touch", "/tmp/new"], isolators=[retain]))
    acis.run(f"aci:{ACIS}/retain.aci@{image_id}")
    assert acis.pods.lines("i", stream=3) == []
    image_id = acis.make("retain2", aci_manifest("localhost/app", exec=["/bin/busybox", "mkdir", "/tmp/new"], isolators=[retain]))
    acis.run(f"aci:{ACIS}/retain2.aci@{image_id}")
    assert "Exchange full" in acis.pods.lines("i", stream=3)[0]


def test_handlers_run_at_each_start(acis: Acis) -> None:
    """Before and after every run of an app that is restarted, and after a stop."""
    manifest = app(
        "trap 'exit 0' TERM; n=$(cat /tmp/n); echo run $n; [ $n = 1 ] && exit 3; sleep 1000 & wait",
        eventHandlers=[
            {
                "name": "pre-start",
                "exec": ["/bin/sh", "-c", "n=$(cat /tmp/n 2>/dev/null || echo 0); n=$((n + 1)); echo $n >/tmp/n; echo pre $n"],
            },
            {"name": "post-stop", "exec": ["/bin/sh", "-c", "echo post $(cat /tmp/n)"]},
        ],
    )
    image_id = acis.make("handlers", manifest)
    container = {"name": "app", "image": f"aci:{ACIS}/handlers.aci@{image_id}"}
    acis.pods.write("i", {"restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 5, "containers": [container]})
    acis.pods.start("i")
    acis.bed.sh(
        "for i in $(seq 100); do journalctl --sync; journalctl -qu pod@i -o cat --since -1min | grep -qx 'run 2' && break; sleep 0.1; done"
    )
    acis.pods.stop("i")
    assert acis.pods.lines("i") == ["pre 1", "run 1", "post 1", "pre 2", "run 2", "post 2"]


def test_pre_start_that_fails_ends_the_pod(acis: Acis) -> None:
    manifest = app("echo never", eventHandlers=[{"name": "pre-start", "exec": ["/bin/sh", "-c", "echo no; exit 7"]}])
    image_id = acis.make("pre", manifest)
    acis.pods.write("i", {"restartPolicy": "Never", "containers": [{"name": "app", "image": f"aci:{ACIS}/pre.aci@{image_id}"}]})
    assert acis.pods.start("i", check=False).returncode == 1
    assert acis.pods.lines("i") == ["no"]


def test_dependencies_and_whitelist(acis: Acis) -> None:
    """The base by discovery, pinned by its parent; what no whitelist names is not there."""
    base = acis.make(
        "base", aci_manifest("localhost/base", app=False, labels=[]), "echo secret >etc/secret; echo base >etc/who; ln -s tmp link"
    )
    arch = {label["name"]: label["value"] for label in aci_manifest()["labels"]}
    acis.bed.write(f"{WEB}/index.html", PAGE)
    acis.publish("base", f"files/localhost/base-7-{arch['os']}-{arch['arch']}.aci")
    base_tag = acis.make(
        "base7",
        aci_manifest("localhost/base", app=False, labels=labels(version="7")),
        "echo base >etc/who; echo secret >etc/secret; ln -s tmp link",
    )
    acis.publish("base7", f"files/localhost/base-7-{arch['os']}-{arch['arch']}.aci")
    assert base != base_tag
    script = "cat /etc/who; ls /etc; cat /link/mine"
    dependency = {"imageName": "localhost/base", "imageID": base_tag, "labels": labels(version="7")}
    keep = [
        "/etc/who",
        "/etc/passwd",
        "/link/mine",
        *(f"/bin/{p}" for p in ("busybox", "sh", "cat", "ls")),
        "/tmp",
        "/dev",
        "/proc",
        "/sys",
    ]
    manifest = app(script, dependencies=[dependency], pathWhitelist=keep)
    image_id = acis.make("top", manifest, "mkdir etc link; echo top >etc/who; echo mine >link/mine", base=False)
    lines = acis.run(f"aci:{ACIS}/top.aci@{image_id}")
    assert lines[0] == "top"
    assert set(lines[1:-1]) == {"passwd", "who", "hosts", "hostname", "resolv.conf"}
    assert lines[-1] == "mine"


def test_discovery(acis: Acis) -> None:
    """By name, version and labels, from the page of a parent; the name and the labels must then be the image's."""
    arch = {label["name"]: label["value"] for label in aci_manifest()["labels"]}
    suffix = f"{arch['os']}-{arch['arch']}.aci"
    acis.bed.write(f"{WEB}/index.html", PAGE)
    acis.bed.write(SETTINGS, "insecure: ['aci:localhost/found']\n")
    own = labels(version="1.2.3", **arch)
    acis.make("found", app("echo found by name", name="localhost/found/app", labels=own))
    acis.publish("found", f"files/localhost/found/app-1.2.3-{suffix}")
    assert acis.run("aci:localhost/found/app:1.2.3") == ["found by name"]
    assert acis.run(f"aci:localhost/found/app:1.2.3,os=linux,arch={arch['arch']}") == ["found by name"]
    assert "localhost/found/app: is not found by discovery" not in refusal(acis.pods, "aci:localhost/found/app:9")
    acis.publish("found", f"files/localhost/found/app-latest-{suffix}")
    assert acis.run("aci:localhost/found/app") == ["found by name"]
    acis.publish("found", f"files/localhost/found/app-2-{suffix}")
    assert "label version was asked to be '2', the image has '1.2.3'" in refusal(acis.pods, "aci:localhost/found/app:2")
    acis.publish("found", f"files/localhost/found/other-1-{suffix}")
    assert "calls itself localhost/found/app" in refusal(acis.pods, "aci:localhost/found/other:1")
    acis.bed.sh(f"rm {WEB}/index.html")
    assert "is not found by discovery" in refusal(acis.pods, "aci:localhost/found/app:3")


def test_url_and_wrong_host(acis: Acis) -> None:
    image_id = acis.make("web", app("echo from the web"))
    acis.publish("web", "web.aci")
    assert acis.run(f"aci:http://127.0.0.1/web.aci@{image_id}") == ["from the web"]
    text = refusal(acis.pods, f"aci:http://ex.org/web.aci@sha512-{'0' * 128}")
    assert "http://ex.org/web.aci: plain HTTP is refused" in text
    assert "404" in refusal(acis.pods, f"aci:http://127.0.0.1/absent.aci@sha512-{'0' * 128}")
    wrong = acis.make("vax", app("true", labels=labels(os="linux", arch="vax")))
    assert "label arch is 'vax'" in refusal(acis.pods, f"aci:{ACIS}/vax.aci@{wrong}")
    none = acis.make("none", app("true", labels=[]))
    assert "has no label os" in refusal(acis.pods, f"aci:{ACIS}/none.aci@{none}")
    acis.bed.sh(f"cp {ACIS}/none.aci {ACIS}/other.aci")
    pinned = image_id[:-1] + ("1" if image_id.endswith("0") else "0")
    assert f"the image ID is {none}, the pinned one is {pinned}" in refusal(acis.pods, f"aci:{ACIS}/other.aci@{pinned}")


@pytest.fixture
def https(acis: Acis) -> Iterator[str]:
    """A web server that speaks TLS alone serves WEB, for HOST and 127.0.0.1, by a certificate of an authority of our own. Gives certs.d."""
    acis.bed.sh(SETUP)
    acis.bed.run("systemd-run", "--quiet", "--unit=test-acweb-tls", "python3", "-c", HTTPS)
    acis.bed.sh("for i in $(seq 100); do curl -sko /dev/null https://127.0.0.1/ && break; sleep 0.05; done")
    yield "/etc/containers/certs.d"
    acis.bed.sh("systemctl stop test-acweb-tls; rm -rf /etc/containers/certs.d")


def test_https(acis: Acis, https: str) -> None:
    """By URL and by discovery, both only from whom a believed authority vouches for; discovery asks nothing of port 80."""
    by_url = f"aci:https://127.0.0.1/tls.aci@{acis.make('tls', app('echo by TLS'))}"
    acis.publish("tls", "tls.aci")
    assert "https://127.0.0.1/tls.aci: its certificate is refused" in refusal(acis.pods, by_url)
    acis.bed.sh(f"mkdir -p {https}/127.0.0.1; cp /srv/tls/ca.crt {https}/127.0.0.1/")
    assert acis.run(by_url) == ["by TLS"]

    assert acis.bed.run("curl", "-s", f"http://{HOST}/", check=False).returncode == 7  # nobody listens there
    arch = {label["name"]: label["value"] for label in aci_manifest()["labels"]}
    acis.bed.write(f"{WEB}/index.html", PAGE.replace("http://localhost", f"https://{HOST}").replace("localhost", HOST))
    image_id = acis.make("found", app("echo found by TLS", name=f"{HOST}/app", labels=labels(version="1", **arch)))
    acis.publish("found", f"files/{HOST}/app-1-{arch['os']}-{arch['arch']}.aci")
    by_name = f"aci:{HOST}/app:1@{image_id}"
    assert f"https://{HOST}/app: its certificate is refused" in refusal(acis.pods, by_name)
    acis.bed.sh(f"mkdir -p {https}/{HOST}; cp /srv/tls/ca.crt {https}/{HOST}/")
    assert acis.run(by_name) == ["found by TLS"]


@pytest.fixture(scope="module")
def signer(pods_session: Pods) -> Iterator[Signer]:
    signer = Signer(pods_session, "")
    yield signer
    signer.forget()


def sign(acis: Acis, signer: Signer, name: str, *keys: str) -> None:
    """ACIS/NAME.aci.asc by some keys, all in one."""
    users = " ".join(f"-u {signer.keys[key]}" for key in keys)
    path = f"{ACIS}/{name}.aci"
    acis.bed.sh(f"gpg --homedir {HOME} -q --batch --yes --passphrase '' {users} --armor --detach-sign --output {path}.asc {path}")
    signer.stop_agents()


def test_signatures(acis: Acis, signer: Signer) -> None:
    """A detached signature by a key that is trusted for the image's own name; asked again at each start; found beside a URL too.

    What a URL leads to needs a key that is trusted for the URL: not one for the name that it gives itself.
    """
    signer.forget()
    image = f"aci:{ACIS}/signed.aci"
    trust = f"podctl trust add --yes --prefix localhost/signed {HOME}/"
    image_id = acis.make("signed", app("echo signed", name="localhost/signed/app"))
    acis.bed.sh(f"rm -f {ACIS}/signed.aci.asc")
    assert "no key is trusted for localhost/signed/app" in refusal(acis.pods, image)
    acis.bed.sh(f"{trust}two.asc")
    text = refusal(acis.pods, image)
    assert f"it has no signature, {ACIS}/signed.aci.asc" in text
    assert f"pin what is there now, {image}@{image_id}" in text
    sign(acis, signer, "signed", "one")
    text = refusal(acis.pods, image)
    assert "no trusted key has signed it" in text
    assert f"{ACIS}/signed.aci.asc: made by an unknown key" in text
    sign(acis, signer, "signed", "one", "two")
    assert acis.run(image) == ["signed"]
    acis.publish("signed", "signed.aci")
    assert "no key is trusted for 127.0.0.1/signed.aci" in refusal(acis.pods, "aci:http://127.0.0.1/signed.aci")
    acis.bed.sh(f"podctl trust add --yes --prefix 127.0.0.1/signed.aci {HOME}/one.asc")
    assert acis.run("aci:http://127.0.0.1/signed.aci") == ["signed"]
    acis.bed.sh(f"mv {ACIS}/signed.aci {ACIS}/away.aci; rm {WEB}/signed.aci")
    assert acis.run(image) == ["signed"]
    verified = acis.bed.run("podctl", "images", "--output=json").stdout
    assert f"signature of GPG key {signer.keys['two']}, trusted for localhost/signed" in verified
    acis.bed.sh("touch /etc/rktd/trustedkeys/prefix.d/localhost/signed/*; podctl gc --grace=1h")
    assert acis.run(image, policy="Never") == ["signed"]  # verified again, by the file that is kept
    acis.bed.sh("rm -rf /etc/rktd/trustedkeys/prefix.d/localhost")
    text = refusal(acis.pods, image)
    assert "no key is trusted for localhost/signed/app" in text
    assert "there is no such file" in text
    acis.bed.sh(f"mv {ACIS}/away.aci {ACIS}/signed.aci; podctl trust add --yes --prefix localhost/sign {HOME}/two.asc")
    assert "no key is trusted for localhost/signed/app" in refusal(acis.pods, image)
    acis.bed.sh(f"{trust}two.asc; printf x >>{ACIS}/signed.aci")
    assert acis.run(image) == ["signed"]
    text = refusal(acis.pods, image, "Always")
    assert "no trusted key has signed it" in text or "damaged" in text


def test_signature_is_demanded_of_a_pinned_image(acis: Acis, signer: Signer) -> None:
    signer.forget()
    image_id = acis.make("demanded", app("echo demanded", name="localhost/demanded"))
    image = f"aci:{ACIS}/demanded.aci@{image_id}"
    acis.bed.sh(f"rm -f {ACIS}/demanded.aci.asc")
    acis.bed.write(SETTINGS, f"requireSignature: ['aci:{ACIS}']\n")
    acis.bed.sh(f"podctl trust add --yes --prefix localhost {HOME}/one.asc")
    assert f"requireSignature: in {SETTINGS} demands a signature, and it has no signature" in refusal(acis.pods, image)
    sign(acis, signer, "demanded", "one")
    assert acis.run(image) == ["demanded"]


def test_signed_dependency(acis: Acis, signer: Signer) -> None:
    """By discovery, its signature where the template says; when its key goes, the image that is made of it does not start."""
    signer.forget()
    arch = {label["name"]: label["value"] for label in aci_manifest()["labels"]}
    acis.bed.write(f"{WEB}/index.html", PAGE)
    acis.make("below", aci_manifest("localhost/below", app=False), "echo below >etc/who")
    sign(acis, signer, "below", "one")
    acis.publish("below", f"files/localhost/below-latest-{arch['os']}-{arch['arch']}.aci")
    top = app("cat /etc/who", dependencies=[{"imageName": "localhost/below"}])
    image = f"aci:{ACIS}/above.aci@{acis.make('above', top, base=False)}"
    wanted = "dependency localhost/below: aci:localhost/below: is not verified: its parent has no imageID for it"
    assert wanted in refusal(acis.pods, image)
    acis.bed.sh(f"podctl trust add --yes --prefix localhost/below {HOME}/one.asc")
    assert acis.run(image) == ["below"]
    acis.bed.sh(f"rm -r {WEB}/files; podctl gc")
    assert acis.run(image) == ["below"]
    acis.bed.sh(f"podctl trust add --yes --root {HOME}/two.asc")
    assert acis.run(image, policy="Never") == ["below"]
    acis.bed.sh("rm -rf /etc/rktd/trustedkeys")
    assert "aci:localhost/below: is not verified: its parent has no imageID for it" in refusal(acis.pods, image, "Never")
    assert "aci:localhost/below: " in refusal(acis.pods, image)
