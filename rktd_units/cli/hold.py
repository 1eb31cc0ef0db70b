# SPDX-License-Identifier: Apache-2.0
"""The foreground of `podctl run -it`: the app is a program that only waits, and the image's command runs in it as `podctl exec` runs one.

So it has a terminal, and is held by all that holds an app. podctl is in a transient scope, `podctl-run-NAME.scope`; when that is empty,
however podctl ended, a transient unit that is bound to it stops the pod.
"""

import argparse
import os
import platform
from typing import Any

from rktd_units.errors import StateError, UsageError
from rktd_units.paths import Layout
from rktd_units.runfiles import write_bytes

DIRECTORY = "/.podctl"  # in the app
PROGRAM = f"{DIRECTORY}/hold"
# A static ELF program of one segment that does nothing but pause(2) or ppoll(2), for ever. There is no other that is in every image.
_CODE = {
    "x86_64": bytes.fromhex("48c7c022000000 0f05 ebf5"),  # mov rax, 34; syscall; jmp back
    "aarch64": b"".join(  # mov x8, 73; mov x0..x4, 0; svc 0; b back
        word.to_bytes(4, "little")
        for word in (0xD2800928, 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800004, 0xD4000001, 0x17FFFFF9)
    ),
}
_MACHINES = {"x86_64": 62, "aarch64": 183}
_BASE, _HEADERS = 0x400000, 64 + 56


def render_program(machine: str) -> bytes:
    """The program for a machine as uname(2) calls it. Raises StateError for one that has none here. elf(5) has the layout."""
    if machine not in _CODE:
        raise StateError(f"there is no `run -it` on {machine}", hint="podctl run -d ..., then podctl exec -it NAME -- sh")
    size = _HEADERS + len(_CODE[machine])

    def pack(*fields: tuple[int, int]) -> bytes:
        return b"".join(value.to_bytes(width, "little") for value, width in fields)

    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = pack((2, 2), (_MACHINES[machine], 2), (1, 4), (_BASE + _HEADERS, 8), (64, 8), (0, 8), (0, 4), (64, 2), (56, 2), (1, 2))
    segment = pack((1, 4), (5, 4), (0, 8), (_BASE, 8), (_BASE, 8), (size, 8), (size, 8), (0x1000, 8))
    return ident + header + bytes(6) + segment + _CODE[machine]


def hold(spec: dict[str, Any], layout: Layout) -> None:
    """Makes the pod's one app the program that waits."""
    container = spec["containers"][0]
    container["command"] = [PROGRAM]
    container.pop("args", None)
    spec.setdefault("volumes", []).append({"name": "hold", "hostPath": {"path": f"{layout.state}/hold", "type": "Directory"}})
    container.setdefault("volumeMounts", []).append({"name": "hold", "mountPath": DIRECTORY, "readOnly": True})


def write_program(layout: Layout) -> None:
    """Where `hold` has it mounted from."""
    os.makedirs(f"{layout.state}/hold", mode=0o755, exist_ok=True)
    write_bytes(f"{layout.state}/hold/hold", render_program(platform.machine()), 0o755)


def find_command(arguments: argparse.Namespace, layout: Layout) -> list[str]:
    """The image's entrypoint with its, or the given, arguments: as the pod file without `hold` would have it."""
    from rktd_units.images.ready import find_image, resolve_reference
    from rktd_units.images.store import Store
    from rktd_units.settings import load_settings

    store = Store(layout)
    image = find_image(resolve_reference(arguments.image, store), "IfNotPresent", load_settings(layout.config), store)
    if image is None:
        raise StateError(f"{arguments.image} is no longer in the store")
    given = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if arguments.entrypoint:
        return [arguments.entrypoint, *given]
    found = [*image.config.entrypoint, *(given or image.config.cmd)]
    if not found:
        raise UsageError(f"{arguments.image} names no program", hint="podctl run -it IMAGE COMMAND")
    return found
