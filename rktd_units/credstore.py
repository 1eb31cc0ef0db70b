# SPDX-License-Identifier: Apache-2.0
"""Secrets from systemd's credential stores: the key KEY of Secret NAME is the credential `NAME@KEY` (names of either have no `@`).

Encrypted ones are decrypted by systemd-creds, whose answer comes through a pipe; nothing here writes. Directories, in this order, are those
of systemd.exec(5), LoadCredentialEncrypted=: what is encrypted comes before what lies there in clear.
"""

import os
import stat

from rktd_units.errors import CommandError, StateError
from rktd_units.ownership import HINT, find_fault

ENCRYPTED = ("/etc/credstore.encrypted", "/run/credstore.encrypted", "/usr/local/lib/credstore.encrypted", "/usr/lib/credstore.encrypted")
PLAIN = ("/etc/credstore", "/run/credstore", "/usr/local/lib/credstore", "/usr/lib/credstore")
SIZE_MAX = 1 << 20  # CREDENTIAL_SIZE_MAX of systemd
_ENCODED_MAX = 2 * SIZE_MAX


def find_credentials(secret: str, root: str = "") -> dict[str, str]:
    """Key -> path of each credential of a Secret; {} when there is none."""
    found: dict[str, str] = {}
    for directory in (*ENCRYPTED, *PLAIN):
        try:
            names = os.listdir(root + directory)
        except FileNotFoundError:
            continue
        for name in names:
            owner, at, key = name.partition("@")
            if at and owner == secret:
                found.setdefault(key, f"{root}{directory}/{name}")
    return found


def read_credential(path: str) -> bytes:
    """What a credential says. Raises StateError naming the path: it can be changed by others, is too large, cannot be decrypted."""
    status = os.stat(path)
    fault = find_fault(status) if os.geteuid() == 0 else ""
    if fault:
        raise StateError(f"{path}: {fault}", hint=HINT)
    if not stat.S_ISREG(status.st_mode):
        raise StateError(f"{path}: is no regular file")
    with open(path, "rb") as file:
        data = file.read(_ENCODED_MAX + 1)
    encrypted = ".encrypted/" in path
    if encrypted:
        data = _decrypt(path, data)
    if len(data) > SIZE_MAX:
        raise StateError(f"{path}: is larger than {SIZE_MAX >> 20} MiB")
    return data


def _decrypt(path: str, data: bytes) -> bytes:
    from rktd_units.proc import run

    try:
        return run(("systemd-creds", "decrypt", f"--name={os.path.basename(path)}", "-", "-"), input=data).stdout
    except CommandError as error:
        hint = f"systemd-creds encrypt --name={os.path.basename(path)} FILE {path}"
        raise StateError(f"{path}: cannot be decrypted: {error.stderr.strip()[-300:] or error}", hint=hint) from error
