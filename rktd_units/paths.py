# SPDX-License-Identifier: Apache-2.0
"""Every file location and search path, as pure functions of one root."""

import os
from typing import NamedTuple

POD_PATH_VARIABLE = "RKTD_POD_PATH"
LIMITED = "limited"  # in a pod's storage: the sparse files of directories of a limited size
EXEC_DIRECTORY = "/run/rktd-exec"  # inside a pod, out of the apps' sight: where prober and hooks have commands run
POD_DIRECTORIES = ("/etc/pods", "/run/pods", "/usr/local/lib/pods", "/usr/lib/pods")


class Layout(NamedTuple):
    """Where things are. `root` is "" on a real system; tests give a directory."""

    root: str = ""

    @property
    def config(self) -> str:
        return f"{self.root}/etc/rktd/rktd.yaml"

    @property
    def trusted_keys(self) -> str:
        """root.d/NAME and prefix.d/PREFIX/NAME, each file with keys; an empty one masks the vendor's of that name."""
        return f"{self.root}/etc/rktd/trustedkeys"

    @property
    def vendor_keys(self) -> str:
        return f"{self.root}/usr/lib/rktd/trustedkeys"

    @property
    def seccomp_profiles(self) -> str:
        """What localhostProfile is relative to."""
        return f"{self.root}/etc/rktd/seccomp"

    @property
    def state(self) -> str:
        """Persistent: the image store, upper directories, records."""
        return f"{self.root}/var/lib/rktd"

    @property
    def blobs(self) -> str:
        """Content-addressed: blobs/sha256/HEX, as in an OCI layout."""
        return f"{self.state}/blobs/sha256"

    @property
    def images(self) -> str:
        """One record (JSON) per reference that was resolved: what it pointed to, when, and who vouched."""
        return f"{self.state}/images"

    @property
    def vouchers(self) -> str:
        """One file (JSON) per reference whose image was verified by a signature: by which key, and the signature itself."""
        return f"{self.state}/vouchers"

    @property
    def layers(self) -> str:
        """layers/KEY.erofs, KEY.json (the record of its digest and size) and KEY.entries (what layers above it need to know)."""
        return f"{self.state}/layers"

    @property
    def guests(self) -> str:
        """What Xen guests are started with: KEY.cpio, their first root, by a key of the host's files in it; KEY.kernel, one unpacked."""
        return f"{self.state}/xen"

    @property
    def disks(self) -> str:
        """disks/KEY.img: the layers of a pod's images on one disk, for Xen guests."""
        return f"{self.state}/disks"

    @property
    def kept(self) -> str:
        """One file per reference that `podctl image pin` keeps from being collected; the text is the reference."""
        return f"{self.state}/kept"

    @property
    def updates(self) -> str:
        """updates/POD.json: an update that goes on, or was rolled back; what it is to go back to is kept meanwhile."""
        return f"{self.state}/updates"

    def update_state(self, name: str) -> str:
        return f"{self.updates}/{name}.json"

    @property
    def incoming(self) -> str:
        """Where members of the group rktd put what they fetched. Apart from the store, which only root may enter."""
        return f"{self.root}/var/spool/rktd/incoming"

    @property
    def work(self) -> str:
        """One directory per sandboxed job; whatever is in it without a job is garbage."""
        return f"{self.state}/work"

    @property
    def run(self) -> str:
        return f"{self.root}/run/rktd"

    @property
    def secrets(self) -> str:
        """One directory per sandboxed job that is given some."""
        return f"{self.run}/secrets"

    @property
    def pods(self) -> str:
        return f"{self.run}/pods"

    @property
    def shares(self) -> str:
        """In a Xen guest: the directories of the host that its pod has as volumes."""
        return f"{self.run}/shares"

    @property
    def vault(self) -> str:
        """A tmpfs that is never swapped out, there while a pod needs it: files of configuration and secrets, variables that are secrets."""
        return f"{self.run}/vault"

    @property
    def volumes(self) -> str:
        """volumes/CLAIM: what persistentVolumeClaims hold; nothing of ours deletes it but `podctl volume rm`."""
        return f"{self.state}/volumes"

    @property
    def layer_claims(self) -> str:
        """layer-claims/POD: the keys of the layers that a pod needs mounted."""
        return f"{self.run}/layer-claims"

    @property
    def layer_stamps(self) -> str:
        """One file per mounted layer: which file it was mounted from."""
        return f"{self.run}/layer-stamps"

    @property
    def layer_mounts(self) -> str:
        return f"{self.run}/layers"

    @property
    def id_ranges(self) -> str:
        return f"{self.run}/ids"

    @property
    def sockets(self) -> str:
        """sockets/NAME: the drop-in with which pod@NAME.socket listens; there as long as it does."""
        return f"{self.run}/sockets"

    def socket_record(self, name: str) -> str:
        return f"{self.sockets}/{name}"

    @property
    def results(self) -> str:
        """results/NAME.json: what the last run of each pod came to; kept after the pod is gone."""
        return f"{self.run}/results"

    @property
    def network_state(self) -> str:
        """Which networks there are, and the addresses, names and ports of the pods on them."""
        return f"{self.run}/network/state"

    @property
    def passed(self) -> str:
        """One file for each pod that has sockets of the host's network."""
        return f"{self.run}/passed"

    @property
    def network_ports(self) -> str:
        """One file for each port of the host: where it leads to, for the proxy."""
        return f"{self.run}/network/ports"

    def network(self, bridge: str) -> str:
        """What the network's systemd-resolved reads."""
        return f"{self.run}/network/{bridge}"

    def exec_directory(self, pod: str) -> str:
        """Of the socket by which a pod's prober has exec probes run: units/rktd-exec@.socket."""
        return f"{self.run}/exec/{pod}"

    def names_ready(self, bridge: str) -> str:
        """There while the network's systemd-resolved answers: it writes this file as soon as it listens (resolved.c, run)."""
        return f"{self.root}/run/rktd-names/{bridge}/resolv.conf"

    @property
    def image_socket(self) -> str:
        """Tells members of the group rktd what images are here: rktd-images.socket."""
        return f"{self.run}/images.sock"

    def error(self, name: str) -> str:
        """Why stage0 failed, for stage1 to say; gone when it succeeds."""
        return f"{self.run}/errors/{name}"

    @property
    def locks(self) -> str:
        return f"{self.run}/locks"

    @property
    def generator_cache(self) -> str:
        return f"{self.run}/generator.cache"

    @property
    def generator_output(self) -> str:
        return f"{self.root}/run/systemd/generator"

    def parsed(self, name: str) -> str:
        """The cache of a pod file's model: podfile/cache.py."""
        return f"{self.run}/parsed/{name}"

    def domain(self, name: str) -> str:
        """There while a pod may have a domain of Xen: what it is called."""
        return f"{self.run}/domains/{name}"

    def pod(self, name: str) -> str:
        """The pod's runtime directory: pod.json, tree, status."""
        return f"{self.pods}/{name}"

    def pod_storage(self, name: str) -> str:
        """The pod's upper directories and emptyDir volumes: on disk, gone when it stops."""
        return f"{self.state}/pods/{name}"


def pod_search_path(environment: dict[str, str]) -> tuple[str, ...]:
    """The directories of pod files, first wins; RKTD_POD_PATH (colon list of absolute paths) replaces the default."""
    value = environment.get(POD_PATH_VARIABLE, "")
    return tuple(p for p in value.split(":") if p.startswith("/")) if value else POD_DIRECTORIES


def product_stamp() -> tuple[int, int]:
    """Another one after each installation or upgrade: what an older version has cached is not believed."""
    status = os.stat(__file__)
    return status.st_ino, status.st_ctime_ns
