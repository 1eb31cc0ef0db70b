# SPDX-License-Identifier: Apache-2.0
"""fs-verity, for real: Debian's kernel in QEMU's software emulation, since the kernel that tests run on may have none. Takes 30 s."""

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import lack

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("RKTD_TESTBED_CACHE", "/var/cache/rktd-testbed"))
MODULES = "crc32c_generic libcrc32c crc16 mbcache jbd2 ext4 virtio_blk netfs cachefiles erofs loop"
INIT = f"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for m in {MODULES}; do [ ! -e /modules/$m.ko ] || $b insmod /modules/$m.ko; done
$b mount -t erofs -o ro /dev/vda /mnt && $b mount -t ext4 /dev/vdb /mnt/srv
for d in tmp run; do $b mount -t tmpfs $d /mnt/$d; done
$b cp -r /rktd_units /guest.py /mnt/tmp/
for d in dev proc sys; do $b mount --move /$d /mnt/$d; done
$b chroot /mnt /usr/bin/python3 -I /tmp/guest.py
$b poweroff -f
"""


@pytest.fixture(scope="module")
def kernel(require_root: None, require_program: Callable[[str], str]) -> Path:
    """Debian's kernel package, unpacked; downloaded once."""
    if os.uname().machine != "x86_64":
        lack("the virtual machine is an amd64 one")
    for program in ("qemu-system-x86_64", "apt-get", "dpkg-deb", "mkfs.erofs", "mkfs.ext4", "xz"):
        require_program(program)
    directory = CACHE / "kernel"
    if not list(directory.glob("boot/vmlinuz-*")):
        depends = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=False).stdout
        names = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image-" in line]
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        done = subprocess.run(["apt-get", "download", *names[:1]], cwd=directory, capture_output=True, text=True, check=False)
        packages = list(directory.glob("*.deb"))
        if not packages:
            lack(f"needs Debian's package of the kernel: {done.stderr.strip()[-200:]}")
        subprocess.run(["dpkg-deb", "-x", packages[0], directory], check=True)
        packages[0].unlink()
    return directory


@pytest.fixture(scope="module")
def found(kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What verity_guest.py says."""
    rootfs = Path(subprocess.run([CHECKOUT / "tools/testbed", "make"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
    place = tmp_path_factory.mktemp("verity")
    excluded = [f"--exclude-path={path}" for path in ("usr/lib/gcc", "usr/libexec", "usr/share", "usr/bin/podman", "usr/bin/skopeo")]
    subprocess.run(["mkfs.erofs", "--quiet", *excluded, place / "system.img", rootfs], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["truncate", "-s", "96M", place / "store.img"], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-O", "verity", "-b", "4096", place / "store.img"], check=True)
    write_initramfs(place / "root", kernel, rootfs, place / "initramfs")
    argv = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "768", "-nographic", "-no-reboot"]
    for name in ("system", "store"):  # /dev/vda, /dev/vdb
        argv += ["-drive", f"file={place}/{name}.img,format=raw,if=virtio"]
    argv += ["-kernel", str(next(kernel.glob("boot/vmlinuz-*"))), "-initrd", str(place / "initramfs")]
    argv += ["-append", "console=ttyS0 quiet panic=-1"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=240, check=False)
    output = done.stdout.decode(errors="replace")
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    assert lines, output[-3000:]
    result: dict[str, object] = json.loads(lines[0][7:])
    print(result)
    return result


def write_initramfs(directory: Path, kernel: Path, rootfs: Path, target: Path) -> None:
    """busybox, the modules, the guest's program and the package."""
    for name in ("bin", "modules", "proc", "sys", "dev", "mnt"):
        (directory / name).mkdir(parents=True)
    busybox = directory / "bin/busybox"
    shutil.copyfile(rootfs / "usr/bin/busybox", busybox)
    busybox.chmod(0o755)
    for name in MODULES.split():
        for module in kernel.rglob(f"{name}.ko*"):
            data = module.read_bytes()
            if module.suffix == ".xz":
                data = subprocess.run(["xz", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
            (directory / f"modules/{name}.ko").write_bytes(data)
    (directory / "init").write_text(INIT)
    (directory / "init").chmod(0o755)
    shutil.copyfile(CHECKOUT / "tests/integration/verity_guest.py", directory / "guest.py")
    shutil.copytree(CHECKOUT / "rktd_units", directory / "rktd_units", ignore=shutil.ignore_patterns("__pycache__"))
    names = "".join(f"{path.relative_to(directory)}\n" for path in sorted(directory.rglob("*")))
    argv = [str(busybox), "cpio", "-o", "-H", "newc"]
    archive = subprocess.run(argv, input=names.encode(), cwd=directory, capture_output=True, check=True)
    target.write_bytes(gzip.compress(archive.stdout, 1))


def test_layers_are_sealed(found: dict[str, object]) -> None:
    assert found["sealed"]
    assert found["write"] == "EPERM"


def test_a_start_measures_instead_of_hashing(found: dict[str, object]) -> None:
    """Times do not count any more, and nothing is read but the digest."""
    assert found["touched"]
    assert found["after_reboot"]
    assert float(str(found["measure_ms"])) < float(str(found["hash_ms"])) / 5
    assert found["read"] == 16 << 20


def test_bit_rot_is_never_served(found: dict[str, object]) -> None:
    """The kernel finds it when the mounted layer is read; a full hash finds it before, and the layer is made anew."""
    assert found["rotten_start"]
    assert found["rotten_read"] == "EIO"
    assert (found["rotten_hash"], found["rotten_gone"]) == (False, True)


@pytest.mark.parametrize("how", ["plain", "sealed"])
def test_a_replaced_layer_is_found(found: dict[str, object], how: str) -> None:
    assert (found[f"replaced_{how}"], found[f"replaced_{how}_gone"]) == (False, True)


def test_a_restored_layer_is_sealed_again(found: dict[str, object]) -> None:
    assert (found["restored"], found["restored_sealed"]) == (True, True)
