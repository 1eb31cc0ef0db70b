# SPDX-License-Identifier: Apache-2.0
"""Stage0's part in a pod that runs as a Xen guest: whether this host can, and what the supervisor is given to start it."""

import json
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress

from rktd_units import guesttree
from rktd_units.disks import ready_disk
from rktd_units.errors import ConfigError, Diagnostic, StateError, TemporaryError
from rktd_units.initrd import ready_initrd
from rktd_units.kernels import find_kernel, ready_image
from rktd_units.paths import Layout
from rktd_units.podfile.model import Pod
from rktd_units.podtree import Start
from rktd_units.runfiles import read_text, write_text
from rktd_units.settings import XenSettings
from rktd_units.stage1 import xen
from rktd_units.translate import cpu_weight, effective_amount
from rktd_units.vault import open_vault, write_variables

DOMAIN_VERSION = 1
_SEED_SIZE = 64  # bytes
_NO_DOMAIN = "Can't get domid of domain name"  # of `xl domid`, of a name that nobody has; after an error of libxl's it means nothing
XL = "/usr/sbin/xl"
_DOMID_TIMEOUT, _DESTROY_TIMEOUT = 20.0, 60.0  # seconds; together less than TimeoutStopSec= of pod-stage0@
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
    """The ramdisk, in the vault, since secrets are in it; the domain's configuration and the supervisor's orders, in `directory`.

    `record`: the text of pod.json, which the guest gets, too.
    """
    pod = start.pod
    with suppress(OSError):  # loads the driver: without it the unit's DeviceAllow=block-loop would mean nothing
        os.close(os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC))
    kernel = find_kernel(settings.kernel)
    base = ready_initrd(layout, kernel)
    disk, partitions = ready_disk(layout, guesttree.layer_keys(start))
    plan = guesttree.render_guest_plan(start, partitions, base.modules)
    vault = open_vault(layout, pod.name)
    write_variables(vault, {app.name: app.secret_env for app in start.apps})
    ramdisk = f"{vault}/initrd"
    _join(ramdisk, settings.initrd or base.path, guesttree.pack_guest(start, roots, plan, record, os.urandom(_SEED_SIZE), int(time.time())))
    domain = _domain(start, settings, ready_image(layout, kernel), ramdisk, disk)
    orders = {
        "version": DOMAIN_VERSION,
        "domain": domain.name,
        "machineId": start.machine_id,
        "ramdisk": ramdisk,
        "graceSeconds": pod.grace_seconds,
        "apps": [app.name for app in start.apps],
        "exports": guesttree.render_exports(layout, start),
        "interface": domain.interface._asdict() if domain.interface else None,
    }
    write_text(f"{directory}/domain.cfg", xen.render_config(domain))
    write_text(f"{directory}/domain.json", json.dumps(orders, indent=2) + "\n")


def remove_guest(layout: Layout, pod: str) -> None:
    """Ends a domain that a killed supervisor has left. Its mark is there from before `xl create` until after `xl destroy`."""
    mark = layout.domain(pod)
    if not read_text(mark):
        return
    from rktd_units.proc import run
    from rktd_units.share import device

    name = xen.domain_name(pod)
    found = run((XL, "domid", name), check=False, timeout=_DOMID_TIMEOUT)
    if found.returncode == 0:
        run((XL, "destroy", name), timeout=_DESTROY_TIMEOUT)
        device.remove_nodes(int(found.stdout))
    elif not found.stderr.startswith(_NO_DOMAIN):
        raise StateError(f"whether there still is a domain {name}, xl does not say: {found.stderr.strip()}")
    with suppress(FileNotFoundError):
        os.unlink(mark)


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


def _join(path: str, base: str, own: bytes) -> None:
    """The base archive and the pod's own, at a multiple of four bytes."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        with open(base, "rb") as source:
            while part := source.read(1 << 20):
                file.write(part)
        file.write(bytes(-file.tell() % 4))
        file.write(own)


def _read(path: str) -> str:
    try:
        return read_text(path).strip()
    except OSError:
        return ""
