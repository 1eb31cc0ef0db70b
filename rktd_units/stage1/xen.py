# SPDX-License-Identifier: Apache-2.0
"""Stage1 `xen`: the pod as a domain of Xen. Renders its xl configuration; pure. What a guest does with it: stage1/guest.py, docs/xen.md."""

from typing import NamedTuple

PREFIX = "rktd-"  # of our domains' names: the administrator's own ones are not ours to destroy
DISK = "xvda"
HOTPLUG = "/usr/lib/rktd/rktd_units/stage1/hotplug.sh"
INITIAL_ARGUMENTS = (
    "console=hvc0",
    "rdinit=/init",
    "loglevel=4",
    # Of systemd; what nspawn's PID 1 has as arguments.
    "systemd.show_status=false",
    "systemd.default_standard_output=null",
    "systemd.crash_action=poweroff",
)
MIB = 1 << 20
OVERHEAD_BYTES = 128 * MIB  # of the guest's kernel, its root and its PID 1, beyond what the apps have
_PER_BYTE = 50  # one more for so many: struct page is 1/64 of what it describes, page tables and the table of machine pages twice 1/512
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 !#$%&()*+,-./:;<=>?@[]^_`{|}~")


class Interface(NamedTuple):
    """A network interface; `name` is its name on the host, where the supervisor puts it on `bridge`."""

    bridge: str
    mac: str
    name: str
    mtu: int = 1500


class Domain(NamedTuple):
    """One domain. `kind`: pv or pvh; `memory` in MiB; `cap` in percent of one processor, 0 for none; `disks`: read-only raw images."""

    name: str
    uuid: str
    kind: str
    kernel: str
    ramdisk: str
    memory: int
    vcpus: int = 1
    cap: int = 0
    weight: int = 0
    disks: tuple[str, ...] = ()
    interface: Interface | None = None
    arguments: tuple[str, ...] = INITIAL_ARGUMENTS
    more: tuple[tuple[str, tuple[str, ...]], ...] = ()  # further lists, such as p9


def domain_name(pod: str) -> str:
    return PREFIX + pod


def disk_name(index: int) -> str:
    """xvda .. xvdz, xvdaa ..: as Xen's docs/misc/vbd-interface.txt counts them."""
    name = ""
    number = index + 1
    while number:
        number, letter = divmod(number - 1, 26)
        name = chr(ord("a") + letter) + name
    return f"xvd{name}"


def domain_memory(apps: int, least: int) -> int:
    """MiB of a domain whose apps together have `apps` bytes; `least`: of the whole domain."""
    return -(-max(apps + OVERHEAD_BYTES + apps // _PER_BYTE, least) // MIB)


def processors(apps: int, *, is_limit: bool) -> tuple[int, int]:
    """(vcpus, cap in percent of one processor, 0 for none) for what the apps together have, in millicores."""
    return max(-(-apps // 1000), 1), 0 if apps % 1000 == 0 or not is_limit else max(apps // 10, 1)


def render_config(domain: Domain) -> str:
    """The text for `xl create`. A domain that has ended is kept, so that its console can be read to its end: the supervisor destroys it."""
    values: list[tuple[str, str | int | tuple[str, ...]]] = [
        ("name", domain.name),
        ("uuid", domain.uuid),
        ("type", domain.kind),
        ("kernel", domain.kernel),
        ("ramdisk", domain.ramdisk),
        ("extra", " ".join(domain.arguments)),
        ("memory", domain.memory),
        ("maxmem", domain.memory),
        ("vcpus", domain.vcpus),
    ]
    values += [(key, value) for key, value in (("cap", domain.cap), ("cpu_weight", domain.weight)) if value]
    values += [(f"on_{event}", "preserve") for event in ("poweroff", "reboot", "crash", "watchdog")]
    disks = tuple(f"format=raw,vdev={disk_name(i)},access=ro,script={HOTPLUG},target={path}" for i, path in enumerate(domain.disks))
    if disks:
        values.append(("disk", disks))
    if domain.interface:
        bridge, mac, name, mtu = domain.interface
        values.append(("vif", (f"mac={mac},mtu={mtu},bridge={bridge},vifname={name},script={HOTPLUG}",)))
    values += domain.more
    return "".join(f"{key} = {_render_value(value)}\n" for key, value in values)


def _render_value(value: str | int | tuple[str, ...]) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(quote_string(text) for text in value) + "]"
    return quote_string(value)


def quote_string(text: str) -> str:
    """A string of xl.cfg(5): what could end it, or is not plain, by its bytes in hexadecimal (libxlu_cfg.c, xlu__cfgl_dequote)."""
    data = text.encode("utf-8", "surrogateescape")
    return '"' + "".join(chr(byte) if chr(byte) in _PLAIN else f"\\x{byte:02x}" for byte in data) + '"'
