# SPDX-License-Identifier: Apache-2.0
"""Layer tars for integration tests: small files, links and device nodes, also such as no honest image has."""

import base64
import io
import tarfile
from typing import NamedTuple

from tests.integration.bed import Bed


class Entry(NamedTuple):
    """One entry of a tar; what it is, is what it has: `link` a symbolic link, `device` a character device, `data` None a directory."""

    path: str
    data: bytes | None = None
    mode: int = 0o755
    ids: tuple[int, int] = (0, 0)
    link: str = ""
    device: tuple[int, int] | None = None
    xattrs: tuple[tuple[str, bytes], ...] = ()


def write_layer(bed: Bed, path: str, *entries: Entry) -> str:
    """Writes the tar to a path inside the testbed, and gives that."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.path)
            info.mode, (info.uid, info.gid) = entry.mode, entry.ids
            # tarfile writes the text of a pax record as UTF-8, but what is in surrogates as the bytes that they stand for.
            info.pax_headers = {f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in entry.xattrs}
            if entry.link:
                info.type, info.linkname = tarfile.SYMTYPE, entry.link
            elif entry.device:
                info.type, (info.devmajor, info.devminor) = tarfile.CHRTYPE, entry.device
            elif entry.data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(entry.data)
            tar.addfile(info, io.BytesIO(entry.data or b""))
    bed.run("sh", "-c", 'mkdir -p "$(dirname "$1")" && base64 -d >"$1"', "sh", path, input=base64.b64encode(buffer.getvalue()).decode())
    return path


def compile_program(bed: Bed, name: str, source: str) -> bytes:
    """A static program of one C file, compiled inside the testbed."""
    bed.write(f"/opt/{name}.c", source)
    bed.run("gcc", "-O1", "-static", "-Wall", "-Werror", "-o", f"/opt/{name}", f"/opt/{name}.c")
    return base64.b64decode(bed.run("base64", f"/opt/{name}").stdout)
