# SPDX-License-Identifier: Apache-2.0
"""Who vouches for an image: simple signing and cosign, keys by prefix, and what becomes of an image when its key goes.

Peers are Debian's docker-registry, skopeo, gpg and cosign.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.pods import Pods
from tests.integration.signing import HOME, LOOKASIDE, WEB, Signer, agents
from tests.integration.test_images import refusal, registry, run_image  # noqa: F401 - a fixture

CONFIG = f"""default-docker: {{lookaside: "file://{LOOKASIDE}"}}
docker:
  127.0.0.1:5000/web: {{lookaside: "http://{WEB}/sigs", lookaside-staging: "file:///srv/web/sigs"}}
"""


@pytest.fixture(scope="module")
def signer_session(pods_session: Pods, registry: str) -> Iterator[Signer]:  # noqa: F811
    signer = Signer(pods_session, registry)
    signer.configure(CONFIG)
    yield signer
    signer.forget()
    signer.bed.sh("rm -rf /etc/containers/registries.d/test.yaml")


@pytest.fixture
def signer(signer_session: Signer, pods: Pods) -> Iterator[Signer]:
    signer_session.forget()
    yield signer_session
    assert agents(signer_session.bed) == ""
    assert signer_session.bed.sh("ls /tmp | grep gpg; ls -A /root/.gnupg 2>/dev/null", check=False).stdout == ""


def image(signer: Signer, name: str, tag: str = "1") -> str:
    return f"{signer.registry}/{name}:{tag}"


def test_signed_by_skopeo(signer: Signer) -> None:
    pods = signer.pods
    digest = signer.push("signed", by="one")
    said = signer.trust("one", prefix="signed")
    assert "One <one@ex.org>" in said
    assert run_image(pods, image(signer, "signed")) == ["signed"]
    voucher = f"signature of GPG key {signer.keys['one']}, trusted for {signer.registry}/signed"
    pods.write("i", {"containers": [{"name": "app", "image": image(signer, "signed"), "command": ["sleep", "inf"]}]})
    pods.start("i")
    app = json.loads(pods.bed.read("/run/rktd/pods/i/pod.json"))["apps"][0]
    assert (app["verifiedBy"], app["digest"]) == (voucher, digest)
    (listed,) = json.loads(pods.bed.sh("podctl images --output=json").stdout)
    assert listed["verifiedBy"] == voucher


def test_present_needs_nobody_and_always_asks_once(signer: Signer) -> None:
    pods = signer.pods
    signer.push("there", by="one")
    signer.trust("one")
    assert run_image(pods, image(signer, "there")) == ["there"]
    pods.bed.run("systemctl", "stop", "test-registry")
    pods.bed.sh(f"mv {LOOKASIDE} {LOOKASIDE}.away")
    try:
        assert run_image(pods, image(signer, "there")) == ["there"]
        assert run_image(pods, image(signer, "there"), "Never") == ["there"]
    finally:
        pods.bed.sh(f"mv {LOOKASIDE}.away {LOOKASIDE}")
        pods.bed.start_registry("test-registry", "/run/registry.yaml", "127.0.0.1:5000")
    cursor = pods.bed.run("journalctl", "--lines=0", "--show-cursor", "--quiet").stdout.split()[-1]
    assert run_image(pods, image(signer, "there"), "Always") == ["there"]
    pods.bed.wait_for(f"journalctl -qu test-registry -o cat --after-cursor={cursor!r} | grep -q /v2/there/")
    asked = "\n".join(str(e["MESSAGE"]) for e in pods.bed.journal("-u", "test-registry", f"--after-cursor={cursor}"))
    assert re.findall(r'"([A-Z]+ /v2/there/\S+)', asked) == ["HEAD /v2/there/manifests/1"], asked


@pytest.mark.parametrize("case", ["no key", "unsigned", "unknown", "other prefix", "wrong key", "sibling", "expired", "revoked", "flipped"])
def test_refused(signer: Signer, case: str) -> None:
    name = f"ref-{case.replace(' ', '-')}"
    keys = signer.keys
    signer.push(name, by="" if case in ("unsigned", "expired", "revoked") else "one")
    config = "/etc/rktd/rktd.yaml"
    wanted = f"{image(signer, name)}: is not verified: the reference has no digest, no prefix under insecure: in {config} covers it, and"
    if case == "no key":
        reason = [f"no key is trusted for {signer.registry}/{name}"]
    elif case == "unsigned":
        signer.trust("one", prefix=name)
        signer.trust("cosign.pub", prefix=name)
        reason = ["it has no signature", f"looked in file://{LOOKASIDE}/{name}@sha256=", f"looked in {signer.registry}/{name}:sha256-"]
        reason += [f"trusted: {keys['one']}, /etc/rktd/trustedkeys/prefix.d/{signer.registry}/{name}/{keys['one']}.asc"]
    elif case in ("unknown", "wrong key"):
        signer.trust("two", prefix=name if case == "wrong key" else "")
        reason = ["none of its 1 signatures counts", f"signature-1: made by an unknown key, {keys['one']}", f"trusted: {keys['two']}"]
    elif case == "other prefix":
        signer.trust("one", prefix="elsewhere")
        reason = [f"no key is trusted for {signer.registry}/{name}"]
    elif case == "sibling":
        signer.trust("one", prefix="ref-sib")
        reason = [f"no key is trusted for {signer.registry}/{name}"]
    elif case == "expired":
        signer.trust("expired")
        signer.sign(name, "expired", time="20200110T000000!")
        reason = [f"made by key {keys['expired']}: the key has expired"]
    elif case == "revoked":
        fingerprint = signer.make_key("revoked")
        signer.sign(name, "revoked")
        signer.revoke("revoked")
        assert "is revoked: nothing that it signs counts" in signer.trust("revoked")
        reason = [f"made by key {fingerprint}: the key has been revoked"]
    else:
        signer.trust("one")
        path = signer.sign(name, "one")
        signer.bed.sh(f"sed -i s/docker-manifest-digest/docker-manifest-Digest/ {path}")
        reason = ["none of its 1 signatures counts", f"made by key {keys['one'][-16:]}: the signature does not fit"]
    said = refusal(signer.pods, image(signer, name))
    for text in (wanted, *reason, f"podctl trust add --prefix {signer.registry}/{name} KEYFILE", f"under insecure: in {config}"):
        assert text in said
    if case not in ("no key", "other prefix", "sibling"):
        assert f"pin what is there now, {image(signer, name)}@{signer.digest(name)}" in said
    assert signer.bed.sh("ls /var/lib/rktd/blobs/sha256", check=False).stdout.count(signer.digest(name)[7:]) == 0


@pytest.mark.parametrize("case", ["parent prefix", "host", "root", "two in one file", "second signature", "two in one message", "vendor"])
def test_accepted(signer: Signer, case: str) -> None:
    name = f"team/ok-{case.replace(' ', '-')}"
    keys = signer.keys
    signer.push(name, by="two" if case == "two in one file" else "one")
    expected, prefix = keys["one"], f"{signer.registry}/{name}"
    if case in ("parent prefix", "host", "root"):
        prefix = {"parent prefix": f"{signer.registry}/team", "host": signer.registry, "root": ""}[case]
        scope = f"--prefix {prefix}" if prefix else "--root"
        signer.bed.sh(f"podctl trust add --yes {scope} {HOME}/one.asc")
    elif case == "two in one file":
        signer.bed.sh(f"d=/etc/rktd/trustedkeys/prefix.d/{prefix}; mkdir -p $d; cp {HOME}/both.asc $d/both")
        expected = keys["two"]
    elif case == "vendor":
        signer.bed.sh(f"d=/usr/lib/rktd/trustedkeys/prefix.d/{prefix}; mkdir -p $d; gpg --dearmor <{HOME}/one.asc >$d/one.gpg")
    else:
        signer.trust("two", prefix=name)
        expected = keys["two"]
        if case == "second signature":
            signer.sign(name, "two", number=2)
        else:
            signer.sign(name, "one+two")
    assert run_image(signer.pods, image(signer, name)) == [name]
    record = json.loads(signer.bed.sh("cat /var/lib/rktd/vouchers/*.json").stdout)
    assert (record["fingerprint"], record["prefix"], record["form"]) == (expected, prefix, "simple")
    if case == "vendor":
        assert "masked by" in signer.bed.sh(f"podctl trust remove {keys['one']}").stdout
        assert json.loads(signer.bed.sh("podctl trust list -o json").stdout)[0]["state"] == "masked"
        assert f"no key is trusted for {prefix}" in refusal(signer.pods, image(signer, name))


def test_identity(signer: Signer) -> None:
    """A signature of another image, of another tag, of another repository; by a digest alone the tag does not matter."""
    signer.trust("one")
    signer.make_image("idother")
    digest = signer.push("ident")
    cases: list[tuple[str, dict[str, Any]]] = [
        (f"is of another image, {signer.digest('idother')}", {"of": "idother"}),
        (f"is for another name, '{signer.registry}/ident:2'", {"reference": f"{signer.registry}/ident:2"}),
        (f"is for another name, '{signer.registry}/ident'", {"reference": f"{signer.registry}/ident"}),
        (f"is for another name, '{signer.registry}/ident-evil:1'", {"reference": f"{signer.registry}/ident-evil:1"}),
    ]
    for fault, options in cases:
        signer.sign("ident", "one", **options)
        said = refusal(signer.pods, image(signer, "ident"))
        assert f"made by key {signer.keys['one']}: {fault}" in said
    signer.bed.write("/etc/rktd/rktd.yaml", f"requireSignature: [{signer.registry}]\n")
    signer.sign("ident", "one", reference=f"{signer.registry}/ident:7")
    assert run_image(signer.pods, f"{signer.registry}/ident@{digest}") == ["ident"]
    assert "is for another name" in refusal(signer.pods, f"{signer.registry}/ident:1@{digest}")


def test_required_signature(signer: Signer) -> None:
    """A pin is not enough where a signature is demanded; the longest prefix counts; a tag that moves under a pin changes nothing."""
    digest = signer.push("req/app")
    pinned = f"{signer.registry}/req/app:1@{digest}"
    assert run_image(signer.pods, pinned) == ["req/app"]
    signer.bed.write("/etc/rktd/rktd.yaml", f"requireSignature: [{signer.registry}/req]\n")
    said = refusal(signer.pods, pinned)
    assert f"{pinned}: is not verified: requireSignature: in /etc/rktd/rktd.yaml demands a signature, and no key is trusted" in said
    assert "pin what" not in said
    signer.trust("one", prefix="req")
    assert "demands a signature, and it has no signature" in refusal(signer.pods, pinned)
    signer.sign("req/app", "one")
    assert run_image(signer.pods, pinned) == ["req/app"]
    signer.push("req/app", source="req-moved")
    assert run_image(signer.pods, pinned) == ["req/app"]
    assert "it has no signature" in refusal(signer.pods, image(signer, "req/app"), "Always")
    signer.bed.write("/etc/rktd/rktd.yaml", f"requireSignature: ['*']\ninsecure: [{signer.registry}/req/app]\n")
    assert run_image(signer.pods, image(signer, "req/app"), "Always") == ["req-moved"]
    said = refusal(signer.pods, signer.pods.image)
    assert "an image that lies on this host can have no signature" in said


def test_pin_that_does_not_match(signer: Signer) -> None:
    """A pin is the very digest, whatever the tag beside it stands for and whoever has signed that."""
    signer.push("pin", by="one")
    signer.trust("one")
    wrong = "sha256:" + "1" * 64
    assert f"{signer.registry}/pin: has no image {wrong}" in refusal(signer.pods, f"{image(signer, 'pin')}@{wrong}")


@pytest.mark.parametrize("part", ["manifest", "layer"])
def test_signed_image_that_the_registry_changes(signer: Signer, part: str) -> None:
    """One byte, in the registry's own storage; the signature stays good, and is of what was there before."""
    bed, name = signer.bed, f"changed-{part}"
    digest = signer.push(name, by="one")
    signer.trust("one")
    layer = json.loads(bed.read(f"/srv/images/{name}/blobs/sha256/{digest[7:]}"))["layers"][0]["digest"]
    victim = digest if part == "manifest" else layer
    path = f"/srv/registry/docker/registry/v2/blobs/sha256/{victim[7:9]}/{victim[7:]}/data"
    bed.sh(f"rm -f /var/lib/rktd/blobs/sha256/{layer[7:]} /var/lib/rktd/layers/*; cp {path} /srv/good")
    # Of the manifest the first digit of the last digest, so that it still is a manifest; of the layer whatever is in its middle.
    place = "d.rfind(b'sha256:') + 7" if part == "manifest" else "len(d) // 2"
    bed.run(
        "python3", "-c", f"d = bytearray(open({path!r}, 'rb').read()); i = {place}; d[i] = 48 + (d[i] == 48); open({path!r}, 'wb').write(d)"
    )
    try:
        for reference in (image(signer, name), f"{image(signer, name)}@{digest}"):
            said = refusal(signer.pods, reference)
            if part == "layer":
                assert f"blobs/{layer}: the server sent other bytes, sha256:" in said
            elif "@" in reference:
                assert f"manifest {digest}: the registry sent other bytes, sha256:" in said
            else:
                assert f"the registry says that it is {digest}, but its bytes have the digest sha256:" in said
        assert bed.sh("podctl images --output=json").stdout.strip() in ("", "[]")
        assert bed.sh(f"ls /var/lib/rktd/blobs/sha256/{victim[7:]}", check=False).returncode != 0
    finally:
        bed.sh(f"cp /srv/good {path}")
    assert run_image(signer.pods, image(signer, name)) == [name]


@pytest.mark.parametrize("change", ["removed", "masked", "revoked", "expires", "more keys"])
def test_key_that_changes_later(signer: Signer, change: str) -> None:
    """What was verified once is asked again at the next start."""
    name, bed, pods = f"later-{change.replace(' ', '-')}", signer.bed, signer.pods
    key = f"k{change[:4]}".replace(" ", "")
    fingerprint = signer.make_key(key)
    signer.push(name, by=key)
    if change == "masked":
        bed.sh(f"mkdir -p /usr/lib/rktd/trustedkeys/root.d; cp {HOME}/{key}.asc /usr/lib/rktd/trustedkeys/root.d")
    else:
        signer.trust(key)
    assert run_image(pods, image(signer, name)) == [name]
    if change == "more keys":
        signer.trust("two")
        assert run_image(pods, image(signer, name), "Never") == [name]  # verified again, from what is kept
        return
    if change == "removed":
        assert f"removed: /etc/rktd/trustedkeys/root.d/{fingerprint}.asc" in bed.sh(f"podctl trust remove --root {fingerprint}").stdout
        fault = f"no key is trusted for {signer.registry}/{name}"
    elif change == "masked":
        bed.sh(f"podctl trust remove {key}.asc")
        fault = f"no key is trusted for {signer.registry}/{name}"
    elif change == "revoked":
        signer.revoke(key)
        bed.sh(f"cp {HOME}/{key}.rev /etc/rktd/trustedkeys/root.d/revocation")
        fault = f"made by key {fingerprint}: the key has been revoked"
    else:
        bed.sh(f"cd {HOME}; gpg --homedir . -q --batch --passphrase '' --quick-set-expire {fingerprint} seconds=1; sleep 2")
        bed.sh(f"cd {HOME}; gpg --homedir . --armor --export {key}@ex.org >/etc/rktd/trustedkeys/root.d/{fingerprint}.asc")
        signer.stop_agents()
        fault = f"made by key {fingerprint}: the key has expired"
    assert fault in refusal(pods, image(signer, name))
    assert fault in refusal(pods, image(signer, name), "Never")


def test_an_update_and_the_way_back_are_verified(signer: Signer) -> None:
    """A signed image that is bad, one that nobody signed, one that is good: what runs is always signed, the one gone back to as well."""
    pods, wait = signer.pods, "trap 'exit 0' TERM; while :; do sleep 0.05; done"
    first = signer.push("moves", by="one", script=f"echo one; {wait}")
    signer.trust("one", prefix="moves")
    voucher = f"signature of GPG key {signer.keys['one']}, trusted for {signer.registry}/moves"
    app = {"name": "app", "image": image(signer, "moves"), "imagePullPolicy": "Always"}
    pods.write("m", {"containers": [app]}, {"systemd.io/auto-update": "registry"})
    pods.start("m")

    def update() -> tuple[str, str, str]:
        """How it went, what runs then, and who vouches for that."""
        (record,) = json.loads(pods.bed.run("podctl", "update", "--output=json", "--quiet", check=False).stdout)
        found = json.loads(pods.bed.read("/run/rktd/pods/m/pod.json"))["apps"][0]
        return record["state"], found["digest"], found["verifiedBy"]

    signer.push("moves", by="one", script="echo bad; sleep 0.3; exit 7")
    assert update() == ("rolledBack", first, voucher)
    signer.push("moves", script=f"echo evil; {wait}")
    assert update() == ("refused", first, voucher)
    second = signer.push("moves", by="one", script=f"echo two; {wait}")
    assert update() == ("updated", second, voucher)
    said = [entry["MESSAGE"] for entry in pods.bed.journal("-u", "pod@m", "-t", "app", f"--after-cursor={pods.cursor}")]
    assert "evil" not in said


def test_lookaside_by_http(signer: Signer) -> None:
    signer.bed.sh("mkdir -p /srv/web/sigs; systemd-run -q --unit=test-web python3 -m http.server -b 127.0.0.1 -d /srv/web 5081")
    try:
        signer.push("web/app", by="one")
        signer.trust("one")
        assert run_image(signer.pods, image(signer, "web/app")) == ["web/app"]
        signer.push("web/bare")
        assert f"looked in http://{WEB}/sigs/web/bare@sha256=" in refusal(signer.pods, image(signer, "web/bare"))
    finally:
        signer.bed.run("systemctl", "stop", "test-web")


def test_cosign(signer: Signer) -> None:
    pods = signer.pods
    digest = signer.push("cos")
    signer.trust("other.pub", prefix="cos")
    assert "it has no signature" in refusal(pods, image(signer, "cos"))
    signer.cosign("cos", digest)
    assert "made by an unknown key, or over something else" in refusal(pods, image(signer, "cos"))
    said = signer.trust("cosign.pub", prefix="cos")
    assert "ECDSA secp256r1" in said
    assert run_image(pods, image(signer, "cos")) == ["cos"]
    record = json.loads(signer.bed.sh("cat /var/lib/rktd/vouchers/*.json").stdout)
    assert (record["form"], record["prefix"]) == ("cosign", f"{signer.registry}/cos")
    # Cosign's other form: no tag, a referrer.
    digest = signer.push("referred")
    signer.trust("cosign.pub", prefix="referred")
    signer.cosign("referred", digest, "--registry-referrers-mode=oci-1-1")
    assert run_image(pods, image(signer, "referred")) == ["referred"]
    digest = signer.digest("cos")
    # Its signature, under another repository's name: the registry's own trick.
    signer.push("cos-evil", source="cos")
    tag = f"{digest.replace(':', '-')}.sig"
    copy = f"docker://{signer.registry}/cos:{tag} docker://{signer.registry}/cos-evil:{tag}"
    signer.bed.sh(f"skopeo copy -q --src-tls-verify=false --dest-tls-verify=false {copy}")
    signer.trust("cosign.pub", prefix="cos-evil")
    assert f"is for another name, '{signer.registry}/cos'" in refusal(pods, image(signer, "cos-evil"))


def test_aci(signer: Signer) -> None:
    """An `.asc` of two signatures, the second of which is trusted; keys stand under the ACI's own name."""
    bed, pods = signer.bed, signer.pods
    manifest = {
        "acKind": "ImageManifest",
        "acVersion": "0.8.11",
        "name": "ex.org/hello",
        "labels": [{"name": "os", "value": "linux"}, {"name": "arch", "value": bed.sh("dpkg --print-architecture").stdout.strip()}],
        "app": {"exec": ["/bin/echo", "an ACI"], "user": "0", "group": "0"},
    }
    bed.write("/srv/aci/manifest", json.dumps(manifest))
    bed.sh("cd /srv/aci; mkdir -p rootfs/bin; cp /bin/busybox rootfs/bin/echo; tar -czf hello.aci manifest rootfs")
    users = f"-u {signer.keys['one']} -u {signer.keys['two']}"
    bed.sh(f"cd /srv/aci; gpg --homedir {HOME} -q --batch --yes --passphrase '' {users} --armor --detach-sign hello.aci")
    signer.stop_agents()
    aci = "aci:/srv/aci/hello.aci"
    assert "no key is trusted for ex.org/hello" in refusal(pods, aci)
    bed.sh(f"podctl trust add --yes --prefix ex.org/hello-evil {HOME}/two.asc")
    assert "no key is trusted for ex.org/hello" in refusal(pods, aci)
    bed.sh(f"podctl trust add --yes --prefix ex.org/hello {HOME}/two.asc")
    assert run_image(pods, aci) == ["an ACI"]
    voucher = json.loads(bed.sh("cat /var/lib/rktd/vouchers/*.json").stdout)
    assert (voucher["form"], voucher["fingerprint"], voucher["prefix"]) == ("detached", signer.keys["two"], "ex.org/hello")
    bed.sh(f"podctl trust remove --prefix ex.org/hello {signer.keys['two']}; podctl trust add --yes --root {HOME}/expired.asc")
    said = refusal(pods, aci)
    assert f"made by an unknown key, {signer.keys['one']}" in said
    assert f"made by an unknown key, {signer.keys['two']}" in said
    signer.trust("one")
    bed.sh("cd /srv/aci; echo more >>rootfs/more; tar -czf hello.aci manifest rootfs")
    assert f"made by key {signer.keys['one'][-16:]}: the signature does not fit" in refusal(pods, aci, "Always")
    bed.sh("rm /srv/aci/hello.aci.asc")
    assert "it has no signature, /srv/aci/hello.aci.asc" in refusal(pods, aci, "Always")


def test_others_may_write_keys(signer: Signer) -> None:
    signer.push("perm", by="one")
    signer.trust("one")
    signer.bed.sh("chmod g+w /etc/rktd/trustedkeys/root.d")
    said = refusal(signer.pods, image(signer, "perm"))
    assert "/etc/rktd/trustedkeys/root.d: must not be writable by group or others, has mode 0775" in said
    signer.bed.sh(f"chmod 755 /etc/rktd/trustedkeys/root.d; chown 1 /etc/rktd/trustedkeys/root.d/{signer.keys['one']}.asc")
    assert "must be owned by root, is owned by uid 1" in refusal(signer.pods, image(signer, "perm"))


def test_podctl_trust(signer: Signer) -> None:
    bed = signer.bed
    done = bed.sh(f"podctl trust add --root {HOME}/both.asc", check=False)
    assert (done.returncode, "there is no terminal to ask on" in done.stderr) == (64, True)
    assert not bed.sh("ls /etc/rktd", check=False).stdout
    done = bed.sh(f"podctl trust add --yes --root {HOME}/cosign.key", check=False)
    assert "holds a private key" in done.stderr
    signer.trust("both")
    signer.trust("expired", prefix="a")
    signer.trust("cosign.pub", prefix="a/b")
    listed = {(r["prefix"], r["fingerprint"]): r["state"] for r in json.loads(bed.sh("podctl trust list -o json").stdout)}
    keys, host = signer.keys, signer.registry
    assert listed.pop((None, keys["one"])) == listed.pop((None, keys["two"])) == "good"
    assert listed.pop((f"{host}/a", keys["expired"])) == "expired"
    assert [prefix for prefix, _ in listed] == [f"{host}/a/b"]
    table = bed.sh("podctl trust list").stdout
    assert "Two <two@ex.org>" in table
    assert "4 keys listed." in table
    done = bed.sh("podctl trust remove 00000000", check=False)
    assert "no key '00000000' is trusted" in done.stderr
    bed.sh(f"podctl trust remove {keys['two'][-16:]}; podctl trust remove --prefix {host}/a {keys['expired']}")
    assert len(json.loads(bed.sh("podctl trust list -o json").stdout)) == 2


@pytest.mark.parametrize(("answer", "trusted"), [("y", True), ("Yes", True), ("n", False), ("", False), ("yellow", False)])
def test_podctl_trust_asks_on_a_terminal(signer: Signer, answer: str, trusted: bool) -> None:
    command = ("script", "--quiet", "--return", "--command", f"podctl trust add --root {HOME}/one.asc", "/dev/null")
    done = signer.bed.run(*command, input=f"{answer}\n", check=False)
    assert "One <one@ex.org>" in done.stdout
    assert signer.keys["one"] in done.stdout.replace(" ", "")
    assert "Trust this key for every name? [y/N]" in done.stdout
    assert ("Nothing was changed." in done.stdout, done.returncode) == ((False, 0) if trusted else (True, 1))
    assert len(json.loads(signer.bed.sh("podctl trust list -o json").stdout)) == trusted
