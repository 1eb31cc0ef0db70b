# SPDX-License-Identifier: Apache-2.0
"""Stage0's part in a pod that runs as a Xen guest: whether this host can, and what the supervisor is given to start it."""

import json
import os
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress

from rktd_units import guesttree
from rktd_units.disks import ready_disk
from rktd_units.errors import ConfigError, Diagnostic, RktdError, StateError, TemporaryError
from rktd_units.initrd import ready_initrd
from rktd_units.kernels import find_kernel, ready_image
from rktd_units.paths import Layout
from rktd_units.podfile.model import Pod
from rktd_units.podtree import Start
from rktd_units.runfiles import read_text, write_bytes, write_text
from rktd_units.settings import XenSettings
from rktd_units.stage1 import xen
from rktd_units.translate import cpu_weight, effective_amount
from rktd_units.vault import open_vault, write_variables

DOMAIN_VERSION = 2
_SEED_SIZE = 64  # bytes
_NO_DOMAIN = "Can't get domid of domain name"  # of `xl domid`, of a name that nobody has; after an error of libxl's it means nothing
XL = "/usr/sbin/xl"
# Seconds; with twice share.device's for nodes together less than TimeoutStopSec= of pod-stage0@.
_DOMID_TIMEOUT, _DESTROY_TIMEOUT = 20.0, 60.0
_CAPABILITIES = "/proc/xen/capabilities"
_START_XEN = "systemctl start xen"
_HVM = "hvm-3.0-x86_64"  # in what the hypervisor can run
_MACHINE = "x86_64"


def check_host(pod: Pod) -> None:
    """Raises ConfigError where there is no Xen to run the pod on, TemporaryError where its services are not up."""
    reason, hint = "", "install xen-system-amd64, and boot it: rktd-xen(7)"
    if (machine := os.uname().machine) != _MACHINE:  # xenring.py
        reason, hint = f"needs an amd64 machine, and this one is {machine}", "leave runtimeClassName away, or run the pod elsewhere"
    elif _read("/sys/hypervisor/type") != "xen":
        reason = "this host does not run on Xen"
    elif not os.access(XL, os.X_OK):
        reason, hint = f"there is no {XL}", "install xen-system-amd64"
    elif not os.path.exists(_CAPABILITIES):
        raise TemporaryError(f"runtimeClassName: xen: there is no {_CAPABILITIES}: xen.service has not run", hint=_START_XEN)
    elif "control_d" not in _read(_CAPABILITIES):
        reason, hint = "this host is a guest of Xen itself, not its control domain", "run the pod on the control domain (dom0)"
    elif not os.path.exists("/run/xenstored/socket"):
        raise TemporaryError("runtimeClassName: xen: xenstored does not run", hint=_START_XEN)
    if reason:
        message = f"runtimeClassName: xen: {reason}"
        raise ConfigError(message, (Diagnostic(pod.source, 0, 0, "spec.runtimeClassName", message, hint),))


def write_guest(layout: Layout, start: Start, roots: Sequence[os.stat_result], settings: XenSettings, directory: str, record: str) -> None:
    """The pod's own archive, in the vault, since secrets are in it; the domain's configuration and the supervisor's orders, in `directory`.

    The supervisor makes the ramdisk of it and the guests' first root, just before xl reads it: of pods that wait for their turn there may
    be many. `record`: the text of pod.json, which the guest gets, too.
    """
    pod = start.pod
    with suppress(OSError):  # loads the driver: without it the unit's DeviceAllow=block-loop would mean nothing
        os.close(os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC))
    kernel = find_kernel(settings.kernel)
    base = ready_initrd(layout, kernel)
    if settings.initrd:
        check_initrd(settings.initrd)
    disk, partitions = ready_disk(layout, guesttree.layer_keys(start))
    plan = guesttree.render_guest_plan(start, partitions, base.modules)
    vault = open_vault(layout, pod.name)
    write_variables(vault, {app.name: app.secret_env for app in start.apps})
    ramdisk, archive = f"{vault}/initrd", f"{vault}/archive"
    write_bytes(archive, guesttree.pack_guest(start, roots, plan, record, os.urandom(_SEED_SIZE), int(time.time())), 0o600)
    domain = _domain(start, settings, ready_image(layout, kernel), ramdisk, disk)
    orders = {
        "version": DOMAIN_VERSION,
        "domain": domain.name,
        "machineId": start.machine_id,
        "ramdisk": ramdisk,
        "base": settings.initrd or base.path,
        "archive": archive,
        "graceSeconds": pod.grace_seconds,
        "apps": [app.name for app in start.apps],
        "exports": guesttree.render_exports(layout, start),
        "interface": domain.interface._asdict() if domain.interface else None,
    }
    write_text(f"{directory}/domain.cfg", xen.render_config(domain))
    write_text(f"{directory}/domain.json", json.dumps(orders, indent=2) + "\n")


def remove_guest(layout: Layout, pod: str) -> None:
    """Ends a domain that a killed supervisor has left. Its mark is there from before `xl create` until nothing of it is left.

    In the mark are the domain's name and, if it ever came so far, its number, under which its device may outlive it in xenstore.
    """
    mark = layout.domain(pod)
    words = read_text(mark).split()
    if not words:
        return
    from rktd_units.proc import run
    from rktd_units.share import device

    name, number = xen.domain_name(pod), -1
    found = run((XL, "domid", name), check=False, timeout=_DOMID_TIMEOUT)
    if found.returncode == 0:
        run((XL, "destroy", name), timeout=_DESTROY_TIMEOUT)
        number = int(found.stdout)
    elif not found.stderr.startswith(_NO_DOMAIN):
        raise StateError(f"whether there still is a domain {name}, xl does not say: {found.stderr.strip()}")
    elif len(words) > 1 and run((XL, "domname", words[1]), check=False, timeout=_DOMID_TIMEOUT).returncode:  # nobody else has it now
        number = int(words[1])
    try:
        if number >= 0:
            device.remove_nodes(number)
    except RktdError as error:  # the domain is no more, so all else of the pod can go
        sys.stderr.write(f"<4>the device of the pod's volumes stays in xenstore until its next start or stop: {error}\n")
        return
    with suppress(FileNotFoundError):
        os.unlink(mark)


def check_initrd(path: str) -> None:
    """Raises StateError for an administrator's choice that cannot be read."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        hint = "xen.initrd in /etc/rktd/rktd.yaml"
        raise StateError(f"no initrd for Xen guests: {path}: {error.strerror}", hint=hint) from error


def choose_kind(capabilities: str) -> str:
    """Of a domain: with hardware virtualisation PVH, which has less of Xen's own code between guest and machine. `capabilities`: Xen's."""
    return "pvh" if _HVM in capabilities.split() else "pv"


def _domain(start: Start, settings: XenSettings, kernel: str, ramdisk: str, disk: str) -> xen.Domain:
    containers, attachment = start.pod.containers, start.attachment
    resources = [app.resources for app in start.apps]
    memory = xen.domain_memory(
        effective_amount(containers, [of.memory_limit or of.memory_request or 0 for of in resources]) or 0,
        0 if all(of.memory_limit for of in resources) else settings.memory,
    )
    processors = effective_amount(containers, [of.cpu_limit or of.cpu_request or 0 for of in resources]) or 0
    vcpus, cap = xen.processors(processors, is_limit=all(of.cpu_limit for of in resources))
    request = effective_amount(containers, [app.resources.cpu_request or 0 for app in start.apps])
    interface = None
    if attachment:
        mac = ":".join(f"{byte:02x}" for byte in attachment.mac)
        interface = xen.Interface(attachment.member.bridge, mac, attachment.port, attachment.network.mtu)
    return xen.Domain(
        name=xen.domain_name(start.pod.name),
        uuid=str(uuid.UUID(start.machine_id)),
        kind=settings.kind or choose_kind(_read("/sys/hypervisor/properties/capabilities")),
        kernel=kernel,
        ramdisk=ramdisk,
        memory=memory,
        vcpus=vcpus,
        cap=cap,
        weight=min(cpu_weight(request) * 256 // 39, 65535) if request else 0,  # Xen's default is 256, ours for a whole processor 39
        disks=(disk,),
        interface=interface,
    )


def _read(path: str) -> str:
    try:
        return read_text(path).strip()
    except OSError:
        return ""
