# SPDX-License-Identifier: Apache-2.0
"""What makes a Xen guest, as far as it is pure: configuration, archive, disk, plan."""

import errno
import os
import re
import stat
import struct
import subprocess
import zlib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rktd_units import disks, guests, initrd, proc, stage2
from rktd_units.confine import Confinement, bounding_set
from rktd_units.errors import ConfigError, RktdError, StateError, TemporaryError
from rktd_units.guests import choose_kind
from rktd_units.images.store import Store
from rktd_units.paths import Layout
from rktd_units.podfile.model import Container, Pod, Resources
from rktd_units.podtree import Start
from rktd_units.runfiles import write_text
from rktd_units.settings import XenSettings
from rktd_units.share import device
from rktd_units.stage1 import cpio, supervisor, xen
from rktd_units.stage2 import App

SCRIPT = "script=/usr/lib/rktd/rktd_units/stage1/hotplug.sh"
GOLDEN = f"""\
name = "rktd-web"
uuid = "00000000-0000-0000-0000-000000000001"
type = "pv"
kernel = "/boot/vmlinuz-6.12"
ramdisk = "/run/rktd/vault/web/initrd"
extra = "console=hvc0 quiet"
memory = 384
maxmem = 384
vcpus = 2
cap = 150
cpu_weight = 512
on_poweroff = "preserve"
on_reboot = "preserve"
on_crash = "preserve"
on_watchdog = "preserve"
disk = ["format=raw,vdev=xvda,access=ro,{SCRIPT},target=/a,b.erofs", "format=raw,vdev=xvdb,access=ro,{SCRIPT},target=/c"]
vif = ["mac=02:70:0a:70:00:02,mtu=1400,bridge=pods0,vifname=vpod0a700002,{SCRIPT}"]
p9 = ["tag=x"]
"""


def test_configuration() -> None:
    domain = xen.Domain(
        name=xen.domain_name("web"),
        uuid="00000000-0000-0000-0000-000000000001",
        kind="pv",
        kernel="/boot/vmlinuz-6.12",
        ramdisk="/run/rktd/vault/web/initrd",
        memory=384,
        vcpus=2,
        cap=150,
        weight=512,
        disks=("/a,b.erofs", "/c"),
        interface=xen.Interface("pods0", "02:70:0a:70:00:02", "vpod0a700002", 1400),
        arguments=("console=hvc0", "quiet"),
        more=(("p9", ("tag=x",)),),
    )
    assert xen.render_config(domain) == GOLDEN


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("/boot/vmlinuz", '"/boot/vmlinuz"'),
        ('a"b', '"a\\x22b"'),
        ("a'b\\c", '"a\\x27b\\x5cc"'),
        ("a\nextra = 1", '"a\\x0aextra = 1"'),
        ("ü\udcff", '"\\xc3\\xbc\\xff"'),
    ],
    ids=["plain", "quote", "other-quote", "line", "bytes"],
)
def test_quoting(text: str, quoted: str) -> None:
    assert xen.quote_string(text) == quoted


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_string_ends_early(text: str) -> None:
    quoted = xen.quote_string(text)
    assert quoted[0] == quoted[-1] == '"'
    assert not set(quoted[1:-1]) & set("\"'\n\r")
    assert quoted[1:-1].encode("ascii").decode("unicode_escape").encode("latin-1").decode() == text


def test_names_of_disks() -> None:
    assert [xen.disk_name(i) for i in (0, 25, 26, 27, 701, 702)] == ["xvda", "xvdz", "xvdaa", "xvdab", "xvdzz", "xvdaaa"]


@pytest.mark.parametrize(
    ("limit", "memory"),
    [(50 << 20, 179), ((50 << 20) + 1, 180), (16 << 20, 145), (16 << 30, 16384 + 128 + 328)],
    ids=["50Mi", "rounded-up", "16Mi", "16Gi"],
)
def test_memory(limit: int, memory: int) -> None:
    """What the kernel needs to describe memory grows with it."""
    assert xen.domain_memory(limit, 0) == memory


@pytest.mark.parametrize(("limit", "expected"), [(500, (1, 50)), (1000, (1, 0)), (1500, (2, 150)), (4000, (4, 0)), (1, (1, 1))])
def test_processors(limit: int, expected: tuple[int, int]) -> None:
    assert xen.processors(limit, is_limit=True) == expected


MI = 1 << 20


@pytest.mark.parametrize(
    ("apps", "expected"),
    [
        ([("app", Resources())], (256, 1, 0)),
        ([("app", Resources(64 * MI, cpu_limit=500))], (194, 1, 50)),
        ([("app", Resources(1024 * MI, cpu_limit=3500)), ("app", Resources())], (1173, 4, 0)),
        ([("app", Resources(None, 512 * MI, None, 1500)), ("app", Resources(64 * MI, cpu_limit=1000))], (716, 3, 0)),
        ([("app", Resources(64 * MI, cpu_limit=500)), ("app", Resources(None, 16 * MI))], (256, 1, 0)),
        ([("init", Resources()), ("app", Resources(1024 * MI, cpu_limit=2000))], (1173, 2, 0)),
        ([("init", Resources(512 * MI, cpu_limit=4000)), ("app", Resources(64 * MI, cpu_limit=1000))], (651, 4, 0)),
        ([("init", Resources(32 * MI, cpu_limit=1000)), ("app", Resources(64 * MI, cpu_limit=1000))], (194, 1, 0)),
        ([("sidecar", Resources(32 * MI, cpu_limit=100)), ("init", Resources(96 * MI, cpu_limit=100))], (259, 1, 20)),
    ],
    ids=[
        "none",
        "one",
        "one of two has none",
        "request and limit",
        "little",
        "init has none",
        "init has more",
        "init has less",
        "sidecar and init",
    ],
)
def test_size_of_a_domain(apps: list[tuple[str, Resources]], expected: tuple[int, int, int]) -> None:
    """What is known of the apps counts, whatever else is not; one without a limit may use all of it."""
    containers = tuple(Container(f"c{i}", "a:1", "Never", resources=of, role=role) for i, (role, of) in enumerate(apps))
    bounds = Confinement(bounding_set((), ()))
    resolved = tuple(App(c.name, "/a", ("a",), (), "/", 0, 0, (), "SIGTERM", bounds, c.resources, role=c.role) for c in containers)
    pod = Pod("web", "/etc/pods/web.yaml", (), containers)
    start = Start(pod, resolved, (), (), None, "", "0" * 32, "")
    domain = guests._domain(start, XenSettings(), "/k", "/r", "/d")
    assert (domain.memory, domain.vcpus, domain.cap) == expected


@pytest.mark.parametrize(
    ("said", "is_left"),
    [
        ((0, b"3\n", ""), False),
        ((1, b"", "Can't get domid of domain name 'rktd-web', maybe this domain does not exist.\n"), False),
        ((1, b"", "libxl: error: libxl_domain.c:1: getting domain info list\nCan't get domid of domain name 'rktd-web', maybe"), True),
        ((1, b"", "cannot init xl context\n"), True),
    ],
    ids=["there", "gone", "libxl fails", "xl fails"],
)
def test_a_mark_of_a_domain_goes_when_xl_knows_of_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: tuple[int, bytes, str], is_left: bool
) -> None:
    """A supervisor that was killed while it destroyed its domain has left the mark alone: the pod must start again."""

    def answer(argv: tuple[str, ...], **_: object) -> proc.Completed:
        return proc.Completed(argv, *(said if argv[1] == "domid" else (0, b"", "")))

    layout = Layout(str(tmp_path))
    write_text(layout.domain("web"), "rktd-web\n")
    monkeypatch.setattr(proc, "run", answer)
    monkeypatch.setattr(device, "remove_nodes", lambda _: None)
    with pytest.raises(StateError, match="xl does not say") if is_left else nullcontext():
        guests.remove_guest(layout, "web")
    assert os.path.exists(layout.domain("web")) == is_left


@pytest.mark.parametrize(
    ("mark", "answers", "removed"),
    [
        ("rktd-web\n", {"domid": (1, "Can't get domid of domain name 'rktd-web'"), "domname": (1, "")}, []),
        ("rktd-web\n5\n", {"domid": (1, "Can't get domid of domain name 'rktd-web'"), "domname": (1, "")}, [5]),
        ("rktd-web\n5\n", {"domid": (1, "Can't get domid of domain name 'rktd-web'"), "domname": (0, "")}, []),
        ("rktd-web\n", {"domid": (0, "")}, [9]),
    ],
    ids=["an older version's", "destroyed already", "the number is another's", "there"],
)
def test_nodes_of_a_domain_that_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, answers: dict[str, tuple[int, str]], removed: list[int]
) -> None:
    """Its supervisor was killed between the domain's end and that of its device in xenstore, which is known by the number alone."""

    def answer(argv: tuple[str, ...], **_: object) -> proc.Completed:
        code, errors = answers.get(argv[1], (0, ""))
        return proc.Completed(argv, code, b"9\n", errors)

    found: list[int] = []
    layout = Layout(str(tmp_path))
    write_text(layout.domain("web"), mark)
    monkeypatch.setattr(proc, "run", answer)
    monkeypatch.setattr(device, "remove_nodes", found.append)
    guests.remove_guest(layout, "web")
    assert (found, os.path.exists(layout.domain("web"))) == (removed, False)


def test_an_initrd_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"^no initrd for Xen guests: .*/none: No such file or directory$") as caught:
        guests.check_initrd(str(tmp_path / "none"))
    assert caught.value.hint == "xen.initrd in /etc/rktd/rktd.yaml"
    with pytest.raises(StateError, match="Is a directory"):
        guests.check_initrd(str(tmp_path))


HOST = {
    "machine": "x86_64",
    "/sys/hypervisor/type": "xen",
    "/usr/sbin/xl": "",
    "/proc/xen/capabilities": "control_d",
    "/run/xenstored/socket": "",
}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"machine": "aarch64"}, ConfigError, "needs an amd64 machine, and this one is aarch64"),
        ({"/sys/hypervisor/type": None}, ConfigError, "this host does not run on Xen"),
        ({"/sys/hypervisor/type": "kvm"}, ConfigError, "this host does not run on Xen"),
        ({"/usr/sbin/xl": None, "/proc/xen/capabilities": None}, ConfigError, "there is no /usr/sbin/xl"),
        ({"/proc/xen/capabilities": None}, TemporaryError, "there is no /proc/xen/capabilities: xen.service has not run"),
        ({"/proc/xen/capabilities": ""}, ConfigError, "this host is a guest of Xen itself, not its control domain"),
        ({"/run/xenstored/socket": None}, TemporaryError, "xenstored does not run"),
    ],
    ids=["no amd64", "no Xen", "another", "no tools", "tools have not run", "a guest", "no xenstored"],
)
def test_what_a_host_lacks(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], kind: type[RktdError], message: str) -> None:
    """What the services of Xen bring may come yet: only that is tried again."""
    there = {path: text for path, text in (HOST | changes).items() if text is not None}
    monkeypatch.setattr(guests, "read_text", lambda path: there.get(path, ""))
    monkeypatch.setattr(os.path, "exists", there.__contains__)
    monkeypatch.setattr(os, "access", lambda path, _: path in there)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=there.get("machine")))
    with pytest.raises(kind, match=f"^runtimeClassName: xen: {message}$"):
        guests.check_host(Pod("web", "/etc/pods/web.yaml", (), ()))


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("rktd-web        3   256     1     r-----      12.3", ""),
        ("rktd-web        3   256     1     -b----      12.3", ""),
        ("rktd-web        3   256     1     ---s--      12.3", "shutdown"),
        ("rktd-web        3   256     1     ---sc-      12.3", "crashed"),
        ("rktd-web        3   256     1     ----c-      12.3", "crashed"),
    ],
    ids=["runs", "blocked", "shutdown", "crashed", "crash"],
)
def test_states(line: str, state: str) -> None:
    assert supervisor.parse_state(f"Name   ID   Mem VCPUs\tState\tTime(s)\n{line}\n") == state


@pytest.mark.parametrize(
    ("capabilities", "kind"),
    [
        ("xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64", "pvh"),
        ("xen-3.0-x86_64 xen-3.0-x86_32p", "pv"),
        ("hvm-3.0-x86_32", "pv"),
        ("", "pv"),
    ],
)
def test_the_kind_of_a_domain_is_what_the_host_can_do(capabilities: str, kind: str) -> None:
    assert choose_kind(capabilities) == kind


def test_archive(tmp_path: Path) -> None:
    entries = [
        cpio.directory("a/b", 0o700, 5, 6, 7),
        cpio.file("a/b/c", b"text", 0o400),
        cpio.link("l", "a/b/c"),
        cpio.Entry("p", stat.S_IFIFO | 0o622),
        cpio.file("a/b/c", b"again"),
    ]
    data = b"".join(cpio.pack_archive(entries))
    assert len(data) % 4 == 0
    names = []
    at = 0
    while True:
        fields = [int(data[at + 6 + i * 8 : at + 14 + i * 8], 16) for i in range(13)]
        assert data[at : at + 6] == b"070701"
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = at + (110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            break
        names.append((name, oct(fields[1]), fields[2], fields[3], fields[5], data[start : start + fields[6]]))
        at = start + (fields[6] + 3) // 4 * 4
    assert names == [
        ("a", "0o40755", 0, 0, 0, b""),
        ("a/b", "0o40700", 5, 6, 7, b""),
        ("a/b/c", "0o100400", 0, 0, 0, b"text"),
        ("l", "0o120777", 0, 0, 0, b"a/b/c"),
        ("p", "0o10622", 0, 0, 0, b""),
        ("a/b/c", "0o100644", 0, 0, 0, b"again"),
    ]


def test_times_that_the_format_has_not() -> None:
    """An image may say any; a field that is wider would shift all that follows."""
    times = []
    for mtime in (-5, 1 << 32, (1 << 32) - 1, 7):
        data = next(iter(cpio.pack_archive([cpio.directory("a", mtime=mtime)])))
        assert len(data) == 112
        times.append(int(data[46:54], 16))
    assert times == [0, (1 << 32) - 1, (1 << 32) - 1, 7]


def test_another_recipe_makes_another_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe"
    recipe.write_text("one")
    monkeypatch.setattr(initrd, "_RECIPE", (str(recipe),))
    monkeypatch.setattr(initrd, "_unit_paths", lambda: ())
    first = initrd._stamp([("a", __file__)])
    assert initrd._stamp([("a", __file__)]) == first
    recipe.write_text("other")
    assert initrd._stamp([("a", __file__)]) != first


def test_partitions() -> None:
    """The table's checksums hold, at both ends, and each layer begins where it says."""
    sizes = [4096 * n for n in (3, 1, 200)]
    first, last, begins = disks.render_table(sizes)
    assert len(first) == begins[0] * disks.SECTOR
    for table, header_at, table_at in ((first, 512, 1024), (last, len(last) - 512, 0)):
        header = table[header_at : header_at + 92]
        assert header[:8] == b"EFI PART"
        blank = header[:16] + bytes(4) + header[20:]
        assert struct.unpack_from("<I", header, 16)[0] == zlib.crc32(blank)
        count, size, checksum = struct.unpack_from("<III", header, 80)
        entries = table[table_at : table_at + count * size]
        assert checksum == zlib.crc32(entries)
        spans = [struct.unpack_from("<QQ", entries, i * size + 32) for i in range(len(sizes))]
        assert [(begin, (end - begin + 1) * 512) for begin, end in spans] == list(zip(begins, sizes, strict=True))
    assert len(disks.render_table([4096] * 300)[2]) == 300


def test_disk_is_made_once_and_again_when_touched(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    Store(layout).prepare()
    for key in ("one", "two"):
        Path(f"{layout.layers}/{key}.erofs").write_bytes(key.encode() * 4096)
    assert disks.ready_disk(layout, ["one"]) == (f"{layout.layers}/one.erofs", ("",))
    path, partitions = disks.ready_disk(layout, ["one", "two"])
    assert partitions == ("1", "2")
    before = Path(path).stat().st_ino
    assert disks.ready_disk(layout, ["one", "two"])[0] == path
    assert Path(path).stat().st_ino == before
    data = Path(path).read_bytes()
    assert data[40 * 512 :][:12] == b"one" * 4
    assert data.count(b"two" * 4096) == 1
    with open(path, "r+b") as file:
        file.write(b"evil")
    assert disks.ready_disk(layout, ["one", "two"])[0] == path
    assert Path(path).read_bytes() == data
    Path(f"{layout.layers}/two.erofs").unlink()
    disks.forget_disks(layout)
    assert list(Path(layout.disks).iterdir()) == []


def test_disk_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(str(tmp_path))
    Store(layout).prepare()
    for key in ("one", "two"):
        Path(f"{layout.layers}/{key}.erofs").write_bytes(key.encode() * 4096)

    def fail(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "copy_file_range", fail)
        with pytest.raises(OSError, match="No space left"):
            disks.ready_disk(layout, ["one", "two"])
    assert os.listdir(layout.disks) == []
    with monkeypatch.context() as patched:
        patched.setattr(os, "statvfs", lambda path: SimpleNamespace(f_blocks=1 << 30, f_frsize=1, f_bavail=5))
        with pytest.raises(TemporaryError, match="at least 24576 bytes are needed"):
            disks.ready_disk(layout, ["one", "two"])
    Path(f"{layout.disks}/.new").write_bytes(b"of a killed one")
    disks.forget_disks(layout)
    assert os.listdir(layout.disks) == []


@pytest.mark.parametrize("place", [600, 21000, -600], ids=["table", "layer", "second table"])
def test_damaged_disk_is_found_and_dropped(tmp_path: Path, place: int) -> None:
    """Though its times say nothing: bit rot."""
    layout = Layout(str(tmp_path))
    Store(layout).prepare()
    for key in ("one", "two", "three"):
        Path(f"{layout.layers}/{key}.erofs").write_bytes(key.encode() * 4096)
    path, _ = disks.ready_disk(layout, ["one", "two"])
    other, _ = disks.ready_disk(layout, ["one", "three"])
    assert disks.drop_damaged_disks(layout, {"one"}) == {}
    with open(path, "r+b") as file:
        file.seek(place, os.SEEK_SET if place > 0 else os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    assert disks.drop_damaged_disks(layout, {"three"}) == {}
    assert disks.drop_damaged_disks(layout, {"one"}) == {Path(path).stem: frozenset({"one", "two"})}
    assert {name.partition(".")[0] for name in os.listdir(layout.disks)} == {Path(other).stem}


def test_libraries_are_what_the_linker_says() -> None:
    """Of the interpreter that runs this, against readelf."""
    needed = initrd.read_needed("/usr/bin/python3")
    said = subprocess.run(["readelf", "-d", "/usr/bin/python3"], capture_output=True, text=True, check=True).stdout
    assert needed.libraries == tuple(line.split("[")[1].rstrip("]") for line in said.splitlines() if "(NEEDED)" in line)
    assert needed.interpreter.startswith("/lib")
    assert initrd.read_needed(__file__) == initrd.Needed("", (), ())


def test_guests_have_all_programs_of_our_units() -> None:
    """What stage2's units execute, by their text."""
    source = Path(stage2.__file__).read_text(encoding="utf-8")
    used = set(re.findall(r'[ :"](/(?:usr/)?s?bin/[a-z0-9]+|/usr/lib/rktd/[a-z]+)[ "]', source))
    assert {"/bin/bash", "/usr/sbin/ip", "/usr/lib/rktd/prober"} <= used  # else this test sees nothing
    there = {f"/usr{path}" if path.startswith("/bin/") else path for path in used}
    assert there <= set(initrd.PROGRAMS)
