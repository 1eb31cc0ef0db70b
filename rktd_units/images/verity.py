# SPDX-License-Identifier: Apache-2.0
"""fs-verity (Linux, Documentation/filesystems/fsverity.rst): the kernel checks each block of a file as it is read, against one digest.

The file is read-only for everybody from then on. In every pod start: imports next to nothing.
"""

import errno
import fcntl
import os
import struct

_ENABLE = 0x40806685  # FS_IOC_ENABLE_VERITY: _IOW('f', 133, struct fsverity_enable_arg)
_MEASURE = 0xC0046686  # FS_IOC_MEASURE_VERITY: _IOWR('f', 134, struct fsverity_digest)
_SHA256 = 1  # FS_VERITY_HASH_ALG_SHA256
_BLOCK = 4096
# The file system or the kernel has none: xfs and tmpfs, ext4 without its `verity` feature, a kernel without CONFIG_FS_VERITY.
_ABSENT = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def enable_verity(path: str) -> str:
    """Turn it on for a file that nobody has open for writing; gives what `measure_verity` gives. Raises OSError, ETXTBSY among them."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        argument = struct.pack("=IIIIQIIQ88x", 1, _SHA256, _BLOCK, 0, 0, 0, 0, 0)
        try:
            fcntl.ioctl(fd, _ENABLE, argument)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno in _ABSENT:
                return ""
            raise
        return measure_verity(fd)
    finally:
        os.close(fd)


def measure_verity(fd: int) -> str:
    """The digest, "ALGORITHM:HEX", by which the kernel checks what is read from the file; "" if it does not check."""
    buffer = bytearray(struct.pack("=HH", 0, 64) + bytes(64))
    try:
        fcntl.ioctl(fd, _MEASURE, buffer)
    except OSError as error:
        if error.errno in _ABSENT | {errno.ENODATA}:
            return ""
        raise
    algorithm, size = struct.unpack_from("=HH", buffer)
    return f"{algorithm}:{buffer[4 : 4 + size].hex()}"
