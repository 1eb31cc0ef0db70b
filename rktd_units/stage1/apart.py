# SPDX-License-Identifier: Apache-2.0
"""In a Xen guest: an interpreter of its own for what enters apps from the guest's first root, whose files can be written to.

It is executed once from a read-only detached mount (mounts.execute_apart), as proc.become_module does on a host; who enters is its child.
What it says is told as the pod's, by guestlog.py, since it goes to the kernel's log.
"""

import os
import sys
from typing import NoReturn

from rktd_units import mounts


def become(module: str, call: str) -> NoReturn:
    """Replaces this process by a call of a module's function, under the module's name. Inheritable descriptors stay. Raises OSError."""
    script = os.memfd_create("script", 0)
    os.write(script, render_script(script, module, call).encode("ascii"))
    mounts.execute_apart(os.path.realpath(sys.executable), [sys.executable, "-IS", f"/proc/self/fd/{script}"], dict(os.environ))


def render_script(descriptor: int, module: str, call: str) -> str:
    """What the interpreter runs. `-c` instead would need modules that are not in the guest's first root (linecache, since Python 3.13)."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    name, function = module.rpartition(".")[2], call.partition("(")[0]
    return f"""\
import os, sys
os.close({descriptor})
try:
    os.dup2(os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC), 2)
except OSError:
    pass
with open("/proc/self/comm", "w") as comm:
    comm.write({name!r})
sys.path += [{package!r}]
from {module} import {function}
{call}
"""
