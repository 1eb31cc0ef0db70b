# SPDX-License-Identifier: Apache-2.0
"""The foreground of `podctl run`: the app is a program that only waits, and the image's command runs in it as `podctl exec` runs one.

So it has podctl's streams or its terminal, and is held by all that holds an app. podctl is in a transient scope, `podctl-run-NAME.scope`;
when that is empty, however podctl ended, a transient unit that is bound to it stops the pod.
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
# A static ELF program of one segment; there is no other that is in every image. The assembly of both machines:
#   if getpid() == 1: for signal in 64..1: rt_sigaction(signal, {pass_on}); rt_sigaction(SIGCHLD, {SIG_IGN})
#   for ever: pause() or ppoll()
#   pass_on(signal): until kill(-1, signal) is -ESRCH: nanosleep(20 ms), signal = 0; then exit_group(0)
# So a stop of the pod reaches the command, and lasts until that and what it started have ended.
_CODE = {
    "x86_64": bytes.fromhex(
        "b8270000000f0583f8017532bf40000000488d356800000031d241ba08000000b80d0000000f05ffcf75f5bf11000000488d3569000000b8"
        "0d0000000f05b8220000000f05ebf789fe48c7c7ffffffffb83e0000000f054883f8fd7414488d3d5c00000031f6b8230000000f0531f6eb"
        "d831ffb8e70000000f05660f1f440000bf004000000000000000000400000000780040000000000000000000000000000100000000000000"
        "0000000000000000000000000000000000000000000000000000000000000000002d310100000000"
    ),
    "aarch64": bytes.fromhex(
        "881580d2010000d41f0400f1a1010054130880d2e00313aa41040010020080d2030180d2c81080d2010000d4730600f121ffff54200280d2"
        "41040010010000d4000080d2010080d2020080d2030080d2040080d2280980d2010000d4f9ffff17f30300aa00008092e10313aa281080d2"
        "010000d41f0c00b1e000005420030010010080d2a80c80d2010000d4130080d2f5ffff17000080d2c80b80d2010000d4d800400000000000"
        "0000000000000000000000000000000000000000000000000100000000000000000000000000000000000000000000000000000000000000"
        "0000000000000000002d310100000000"
    ),
}
_MACHINES = {"x86_64": 62, "aarch64": 183}
_BASE, _HEADERS = 0x400000, 64 + 56


def render_program(machine: str) -> bytes:
    """The program for a machine as uname(2) calls it. Raises StateError for one that has none here. elf(5) has the layout."""
    if machine not in _CODE:
        raise StateError(f"there is no run in the foreground on {machine}", hint="podctl run --detach")
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
    path, program = f"{layout.state}/hold/hold", render_program(platform.machine())
    os.makedirs(f"{layout.state}/hold", mode=0o755, exist_ok=True)
    if read_bytes(path) != program:
        temporary = f"{path}.{os.getpid()}"  # several may do this at once
        write_bytes(temporary, program, 0o755)
        os.rename(temporary, path)


def read_bytes(path: str) -> bytes:
    """Of a file; none where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


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
        raise UsageError(f"{arguments.image} names no program", hint="podctl run IMAGE COMMAND")
    return found
