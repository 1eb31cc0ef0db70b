# SPDX-License-Identifier: Apache-2.0
"""What test_verity.py runs inside its virtual machine, as root, with an ext4 that has fs-verity on /srv. Prints one JSON object."""

import errno
import json
import os
import subprocess
import sys
import time
from typing import Any

sys.path.insert(0, "/tmp")

from rktd_units.images.layers import LayerInput, convert_layers
from rktd_units.images.records import LayerRecord, load_record
from rktd_units.images.store import Store, hash_file, hash_image
from rktd_units.images.verity import enable_verity
from rktd_units.paths import Layout

DISK = "/dev/vdb"
KEY = "a" * 64
LAYOUT = Layout("/srv")
STORE = Store(LAYOUT)
TAR = "application/vnd.oci.image.layer.v1.tar"
PATH = STORE.layer_path(KEY)


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def remount(change: tuple[int, int] | None = None) -> None:
    """Forget what is cached; between the mounts flip a bit of one block of the disk."""
    run("umount", "/srv")
    if change:
        block, index = change
        disk = os.open(DISK, os.O_RDWR)
        data = bytearray(os.pread(disk, 4096, block * 4096))
        data[index] ^= 1
        os.pwrite(disk, data, block * 4096)
        os.close(disk)
    run("mount", "-t", "ext4", DISK, "/srv")


def adopt(data: bytes = b"", tree: str = "") -> None:
    work = f"{LAYOUT.work}/layer"
    if tree:
        run("tar", "cf", "/tmp/tree.tar", "-C", tree, ".")
        with open("/tmp/tree.tar", "rb") as file:
            (made,) = convert_layers([LayerInput(file.name, TAR, f"sha256:{hash_file(file.fileno())}")], [0], LAYOUT.work, 1 << 30)
        os.rename(made.path, work)
    else:
        with open(work, "wb") as file:
            file.write(data)
    fd = os.open(work, os.O_RDONLY)
    with STORE.lock(f"layer-{KEY}"):
        STORE.adopt_layer(work, fd, KEY, hash_image(fd, 0))
    os.close(fd)


def find_block(offset: int) -> int:
    """The block of the disk that holds this offset of the layer."""
    for line in run("filefrag", "-b4096", "-v", PATH).splitlines():
        words = line.replace(".", " ").replace(":", " ").split()
        if len(words) > 5 and words[0].isdigit() and int(words[1]) <= offset // 4096 <= int(words[2]):
            return int(words[3]) + offset // 4096 - int(words[1])
    raise AssertionError("no such block")


def read_mounted() -> int | str:
    """Bytes of the file in the mounted layer, or the name of the error."""
    os.makedirs("/run/layer", exist_ok=True)
    run("mount", "-t", "erofs", "-o", "ro", PATH, "/run/layer")
    try:
        with open("/run/layer/big", "rb") as file:
            return len(file.read())
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        run("umount", "/run/layer")


def replace(data: bytes) -> None:
    os.unlink(PATH)
    with open(PATH, "wb") as file:
        file.write(data)


def hash_all() -> bool:
    with STORE.lock(f"layer-{KEY}"):
        return STORE.hash_layer(KEY)


def main() -> dict[str, Any]:
    found: dict[str, Any] = {"kernel": os.uname().release}
    STORE.prepare()
    os.makedirs("/tmp/tree")
    with open("/tmp/tree/big", "wb") as big:
        big.write(os.urandom(16 << 20))
    adopt(tree="/tmp/tree")
    record = load_record(f"{LAYOUT.layers}/{KEY}.json", LayerRecord)
    found["sealed"] = bool(record and record.verity.startswith("1:"))
    try:
        os.close(os.open(PATH, os.O_RDWR))
        found["write"] = "done"
    except OSError as error:
        found["write"] = errno.errorcode[error.errno or 0]
    os.utime(PATH)
    start = time.monotonic()
    found["touched"] = STORE.verify_layer(KEY)
    found["measure_ms"] = (time.monotonic() - start) * 1000
    with open(PATH, "rb") as layer:
        start = time.monotonic()
        hash_file(layer.fileno())
        found["hash_ms"] = (time.monotonic() - start) * 1000
    remount()
    found["after_reboot"] = STORE.verify_layer(KEY)
    found["read"] = read_mounted()
    block = find_block(8 << 20)
    remount((block, 100))
    found["rotten_start"] = STORE.verify_layer(KEY)
    found["rotten_read"] = read_mounted()
    found["rotten_hash"] = hash_all()
    found["rotten_gone"] = not os.path.exists(PATH)
    for how in ("plain", "sealed"):
        adopt(b"good" * 5000)
        replace(b"evil" * 5000)
        if how == "sealed":
            enable_verity(PATH)
        found[f"replaced_{how}"] = STORE.verify_layer(KEY)
        found[f"replaced_{how}_gone"] = not os.path.exists(PATH)
    adopt(b"good" * 5000)
    replace(b"good" * 5000)
    found["restored"] = STORE.verify_layer(KEY)
    record = load_record(f"{LAYOUT.layers}/{KEY}.json", LayerRecord)
    found["restored_sealed"] = bool(record and record.verity)
    return found


if __name__ == "__main__":
    print(f"RESULT {json.dumps(main())}", flush=True)
