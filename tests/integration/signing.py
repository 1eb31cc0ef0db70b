# SPDX-License-Identifier: Apache-2.0
"""Keys and signatures as people make them: gpg, skopeo and cosign, inside the testbed."""

import json
from typing import Any

from tests.integration.bed import Bed
from tests.integration.pods import Pods

HOME = "/root/signer"  # of gpg
LOOKASIDE = "/srv/lookaside"
WEB = "127.0.0.1:5081"  # serves a lookaside by HTTP


class Signer:
    """GPG keys by name, each also as a file NAME.asc in HOME; a cosign key pair of each kind."""

    def __init__(self, pods: Pods, registry: str) -> None:
        self.pods, self.bed, self.registry = pods, pods.bed, registry
        self.keys: dict[str, str] = {}
        self.bed.sh(f"rm -rf {HOME} {LOOKASIDE}; mkdir -p -m 700 {HOME} {LOOKASIDE}")  # each module makes its own
        for name in ("one", "two"):
            self.make_key(name)
        self.make_key("expired", "20200101T000000!", "2020-02-01")
        self.bed.sh(f"cd {HOME}; cat one.asc two.asc >both.asc")
        other = "openssl ecparam -name prime256v1 -genkey -noout | openssl ec -pubout -out other.pub"
        self.bed.sh(f"cd {HOME}; COSIGN_PASSWORD= cosign generate-key-pair 2>/dev/null; {other} 2>/dev/null")
        self.stop_agents()

    def make_key(self, name: str, time: str = "", expires: str = "never") -> str:
        """A signing key; gives its fingerprint."""
        faked = f"--faked-system-time {time}" if time else ""
        gpg = f"gpg --homedir {HOME} -q --batch"
        user = f"'{name.title()} <{name}@ex.org>'"
        self.bed.sh(f"{gpg} {faked} --passphrase '' --quick-gen-key {user} ed25519 sign {expires}")
        listed = self.bed.sh(
            f"{gpg} --with-colons --list-keys {name}@ex.org; {gpg} --armor --export {name}@ex.org >{HOME}/{name}.asc"
        ).stdout
        self.keys[name] = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))
        return self.keys[name]

    def revoke(self, name: str) -> None:
        """NAME.rev is the certificate then, and NAME.asc the key with it."""
        script = f"sed s/^:--/--/ openpgp-revocs.d/{self.keys[name]}.rev >{name}.rev; gpg --homedir . -q --batch --import {name}.rev"
        self.bed.sh(f"cd {HOME}; {script}; gpg --homedir . --armor --export {name}@ex.org >{name}.asc")

    def stop_agents(self) -> None:
        """The agent of these keys, which gpg and skopeo start to sign."""
        self.bed.sh(f"gpgconf --homedir {HOME} --kill all")

    def configure(self, text: str) -> None:
        """containers-registries.d(5), for skopeo and for us."""
        self.bed.write("/etc/containers/registries.d/test.yaml", text)

    def make_image(self, name: str, marker: str = "") -> str:
        """An image of its own, as a layout; gives the digest of its manifest."""
        return self.pods.make_image(name, {"Cmd": ["/bin/echo", marker or name]}).rpartition("@")[2]

    def push(self, name: str, *, tag: str = "1", by: str = "", source: str = "", script: str = "") -> str:
        """Push the image, one that runs `script` if there is one, signed by skopeo if a key is named; gives the digest."""
        if script:
            digest = self.pods.make_image(name, {"Entrypoint": ["/bin/sh", "-c", script]}).rpartition("@")[2]
        else:
            digest = self.make_image(source or name)
        sign = f"--sign-by {self.keys[by]}" if by else ""
        target = f"docker://{self.registry}/{name}:{tag}"
        self.bed.sh(f"GNUPGHOME={HOME} skopeo copy -q --dest-tls-verify=false {sign} oci:/srv/images/{source or name}:latest {target}")
        self.stop_agents()
        return digest

    def sign(self, name: str, by: str, *, reference: str = "", of: str = "", number: int = 1, time: str = "", path: str = "") -> str:
        """A simple signature by hand, of image `of` under `reference`, laid beside image `name`; gives its path."""
        digest = self.digest(name)
        claim = {
            "critical": {
                "identity": {"docker-reference": reference or f"{self.registry}/{name}:1"},
                "image": {"docker-manifest-digest": self.digest(of or name)},
                "type": "atomic container signature",
            },
            "optional": {"creator": "test"},
        }
        path = path or f"{LOOKASIDE}/{name}@{digest.replace(':', '=')}/signature-{number}"
        users = " ".join(f"-u {self.keys[key]}" for key in by.split("+"))
        faked = f"--faked-system-time {time}" if time else ""
        self.bed.sh(f"mkdir -p $(dirname {path})")
        options = f"--homedir {HOME} -q --batch --yes {faked} --passphrase '' -z 0 {users}"
        self.bed.run("sh", "-c", f"gpg {options} --sign --output {path}", input=json.dumps(claim))
        self.stop_agents()
        return path

    def digest(self, name: str) -> str:
        """The digest of an image that make_image made."""
        index: dict[str, Any] = json.loads(self.bed.read(f"/srv/images/{name}/index.json"))
        return str(index["manifests"][0]["digest"])

    def cosign(self, name: str, digest: str, *options: str, key: str = "cosign.key") -> None:
        """Sign with Debian's cosign, without a transparency log."""
        target = f"{self.registry}/{name}@{digest}"
        sign = f"cosign sign --yes --key {key} --tlog-upload=false --allow-http-registry {' '.join(options)} {target}"
        self.bed.sh(f"cd {HOME}; COSIGN_PASSWORD= COSIGN_EXPERIMENTAL=1 {sign} 2>/dev/null")

    def trust(self, key: str, *, prefix: str = "") -> str:
        """podctl trust add; "" is every name. Gives its output."""
        scope = f"--prefix {self.registry}/{prefix}" if prefix else "--root"
        file = key if "." in key else f"{key}.asc"
        return self.bed.sh(f"podctl trust add --yes {scope} {HOME}/{file}").stdout

    def forget(self) -> None:
        """Trust nobody, and know no image."""
        self.bed.sh("rm -rf /etc/rktd /usr/lib/rktd/trustedkeys /var/lib/rktd/images /var/lib/rktd/vouchers; mkdir -p /etc/rktd")


def agents(bed: Bed) -> str:
    """The daemons of GnuPG that run."""
    return bed.sh("pgrep -a 'gpg-agent|dirmngr|keyboxd|scdaemon'", check=False).stdout
