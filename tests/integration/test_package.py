# SPDX-License-Identifier: Apache-2.0
"""The Debian package on a machine of its own: what is in it, installation, an upgrade while a pod runs, removal, purge."""

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.bed import Bed, own_name
from tests.integration.pods import Pods

CHECKOUT = Path(__file__).resolve().parents[2]
# Where something of ours can be, but for what the administrator has written.
PLACES = "/usr /etc /var/lib/rktd /var/spool /var/lib/systemd /run"
LEFT = rf"""
    find {PLACES} -mindepth 1 \( -name '*rktd*' -o -name 'pod@*' -o -name 'pod-stage0@*' -o -name 'pods*' -o -name '*podctl*' \) \
        ! -path '/run/host/*' ! -path '/run/systemd/generator*' -print
    find /var/lib/rktd /run/systemd/generator* -mindepth 1 -name '*pod*'
    awk '$5 ~ /rktd|pods/ && $5 !~ "^/run/host/" && $5 != "/var/lib/rktd"' /proc/self/mountinfo
    getent group rktd || true
    systemctl list-units --all --plain --no-legend 'pod*' 'rktd*'
    ls /run/systemd/machines /sys/class/net | grep pod || true
    nft list tables
    dpkg-query --show --showformat='${{db:Status-Status}}\n' rktd-units 2>/dev/null || true
"""


@pytest.fixture(scope="module")
def packages(require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The package in two versions."""
    require_program("go-md2man")
    directory = tmp_path_factory.mktemp("packages")
    return {version: build(directory, version) for version in ("0.1.0", "0.1.1~test")}


@pytest.fixture(scope="module")
def bare(require_root: None) -> Iterator[Bed]:
    """A machine without the product."""
    bed = Bed(own_name("package"))
    bed.boot(install=False)
    yield bed
    bed.stop()


def build(directory: Path, version: str, **environment: str) -> Path:
    argv = [os.fspath(CHECKOUT / "tools/build-deb"), f"--version={version}", f"--output={directory}"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, env=os.environ | environment, check=True)
    return Path(done.stdout.strip())


def install(bed: Bed, package: Path) -> str:
    """As the README has it, from what is on the machine already: it has no network."""
    bed.bind(package.parent, "/srv/packages", read_only=True)
    return bed.run("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", f"/srv/packages/{package.name}").stdout


def test_lintian(packages: dict[str, Path], require_program: Callable[[str], str]) -> None:
    argv = [require_program("lintian"), "--fail-on=error,warning", "--allow-root", os.fspath(packages["0.1.0"])]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_is_the_same_each_time(packages: dict[str, Path], tmp_path: Path) -> None:
    """Another directory, another hash seed, a umask, another time zone."""
    again = build(tmp_path, "0.1.0", PYTHONHASHSEED="7", TZ="Asia/Tokyo", LC_ALL="C")
    assert again.read_bytes() == packages["0.1.0"].read_bytes()


def test_what_is_in_it(packages: dict[str, Path]) -> None:
    """Nothing that depends on the machine that built it, everything root's."""
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", packages["0.1.0"]], stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {member.name: member for member in archive}
    assert {(member.uname, member.gname) for member in members.values()} == {("root", "root")}
    assert all(not member.mode & 0o7022 for member in members.values() if not member.issym())
    assert not [name for name in members if "__pycache__" in name or name.endswith(".installed")]
    conffiles = subprocess.run(["dpkg-deb", "--info", packages["0.1.0"], "conffiles"], stdout=subprocess.PIPE, check=True).stdout
    assert conffiles == b"/etc/rktd/rktd.yaml\n"
    for path in (
        "etc/rktd/rktd.yaml",
        "usr/bin/podctl",
        "usr/lib/systemd/system-generators/rktd-generator",
        "usr/share/man/man5/rktd.pod.5.gz",
    ):
        assert f"./{path}" in members


def test_destdir(packages: dict[str, Path], tmp_path: Path) -> None:
    """tools/install --destdir lays out the same files, but for Debian's own; --uninstall leaves nothing of them."""
    root = tmp_path / "root"
    subprocess.run([CHECKOUT / "tools/install", f"--destdir={root}"], check=True)
    manifest = (root / "usr/lib/rktd/.installed").read_text().split()
    ours = {path for path in manifest if "__pycache__" not in path and not path.endswith(".installed")}
    listing = subprocess.run(["dpkg-deb", "--fsys-tarfile", packages["0.1.0"]], stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(listing)) as archive:
        theirs = {member.name[1:] for member in archive if not member.isdir()}
    debian = ("/usr/share/doc/", "/usr/share/lintian/", "/usr/share/python3/")
    assert {re.sub(r"^(/usr/share/man/.*)\.gz$", r"\1", path) for path in theirs if not path.startswith(debian)} == ours
    subprocess.run([CHECKOUT / "tools/install", f"--destdir={root}", "--uninstall"], check=True)
    assert [path.name for path in root.rglob("*")] == ["etc"]


def test_life_of_the_package(bare: Bed, packages: dict[str, Path]) -> None:
    """Over the tree of tools/install; a pod runs through an upgrade; nothing of ours is left at the end."""
    bare.bind(CHECKOUT, "/opt/checkout", read_only=True)
    bare.run("/opt/checkout/tools/install")
    pods = Pods(bare)
    pods.clean()  # notes where the journal is
    bare.sh("echo 'stallTimeout: 61' >>/etc/rktd/rktd.yaml")
    pods.write("web", {"containers": [pods.app("exec sleep infinity")]})
    pods.start("web")
    bare.run("/opt/checkout/tools/install", "--uninstall")  # what runs ends first, as on removal of the package
    assert bare.run("systemctl", "is-active", "pod@web", check=False).stdout == "inactive\n"
    assert bare.sh("ls -A /run/rktd/pods /run/systemd/machines; ls -d /usr/lib/rktd 2>/dev/null || true").stdout.split() == [
        "/run/rktd/pods:",
        "/run/systemd/machines:",
    ]
    bare.run("/opt/checkout/tools/install")
    assert "stallTimeout" in bare.sh("cat /etc/rktd/rktd.yaml; cp /opt/checkout/units/rktd.yaml /etc/rktd/").stdout
    install(bare, packages["0.1.0"])
    assert bare.sh("cat /usr/lib/rktd/.installed", check=False).returncode
    assert "installed as a Debian package" in bare.run("/opt/checkout/tools/install", check=False).stderr
    assert bare.run("podctl", "version").stdout == "podctl 0.1.0\n"
    assert bare.run("systemctl", "is-active", "pods.path", "rktd-gc.timer", "pods.target").stdout.split() == ["active"] * 3
    assert bare.run("stat", "-c", "%U:%G %a", "/var/spool/rktd/incoming").stdout == "root:rktd 1730\n"
    assert bare.sh("find /usr/lib/rktd -name '*.pyc' | wc -l").stdout != "0\n"

    bare.sh("echo 'stallTimeout: 61' >>/etc/rktd/rktd.yaml")  # kept by the upgrade below
    pods.write("web", {"containers": [pods.app("echo up; exec sleep infinity", ports=[{"containerPort": 80, "hostPort": 8080}])]})
    pods.write("other", {"containers": [pods.app("exec sleep infinity")]})
    bare.run("systemctl", "enable", "--now", "pod@web", "pod@other")
    bare.run("systemctl", "enable", "pod@other.socket")
    lazy = pods.app("exec sleep infinity", ports=[{"containerPort": 81, "hostPort": 8081}])
    pods.write("lazy", {"containers": [lazy]}, {"systemd.io/socket-activation": "81=proxy"})
    bare.sh("systemctl daemon-reload; systemctl enable --now pod@lazy.socket; ss -Hltn sport = :8081 | grep -q .")
    before = pods.show("web", "MainPID", "ExecMainStartTimestampMonotonic", "NRestarts")

    install(bare, packages["0.1.1~test"])
    assert bare.run("dpkg-query", "--show", "--showformat=${Version}", "rktd-units").stdout == "0.1.1~test"
    assert pods.show("web", "MainPID", "ExecMainStartTimestampMonotonic", "NRestarts") == before
    assert pods.show("web", "ActiveState")["ActiveState"] == "active"
    assert pods.lines("web") == ["up"]
    assert "stallTimeout: 61" in bare.read("/etc/rktd/rktd.yaml")
    bare.run("systemctl", "restart", "pod@other")
    bare.run("systemctl", "kill", "--signal=KILL", "pod@other")
    pods.wait_state("other", "active")

    bare.run("apt-get", "remove", "--yes", "--quiet", "rktd-units")
    assert not bare.sh("ls -d /usr/lib/rktd /usr/bin/podctl /usr/lib/systemd/system/pod@.service", check=False).stdout
    assert bare.sh("ls -d /var/lib/rktd/blobs /etc/pods/web.yaml").stdout
    assert bare.run("systemctl", "is-active", "pod@web", check=False).stdout == "inactive\n"
    assert not bare.sh("ls -A /run/rktd/pods").stdout
    assert not bare.sh("ss -Hltn sport = :8081").stdout  # what waits for a first connection, too

    bare.sh("mkdir -p /etc/rktd/trustedkeys/root.d; touch /etc/rktd/trustedkeys/root.d/key")
    bare.run("apt-get", "purge", "--yes", "--quiet", "rktd-units")
    assert bare.sh("ls -A /etc/pods").stdout == "lazy.yaml\nother.yaml\nweb.yaml\n"
    bare.sh("rm -r /etc/pods; umount /srv/packages /opt/checkout")
    assert bare.sh(LEFT).stdout == ""
    assert bare.run("systemctl", "is-system-running", check=False).stdout == "running\n"


def test_fresh_machine(bare: Bed, packages: dict[str, Path]) -> None:
    """Without anything of ours before: installed, removed and installed again, then purged in one step."""
    for _ in range(2):
        install(bare, packages["0.1.0"])
        assert bare.run("podctl", "list", "--no-legend").stdout == ""
        assert bare.run("systemctl", "is-active", "pods.path", "rktd-gc.timer", "pods.target").stdout.split() == ["active"] * 3
        verify_units(bare)
        bare.run("apt-get", "remove", "--yes", "--quiet", "rktd-units")
    install(bare, packages["0.1.0"])
    bare.run("apt-get", "purge", "--yes", "--quiet", "rktd-units")
    bare.sh("umount /srv/packages")
    assert bare.sh(LEFT).stdout == ""


def verify_units(bed: Bed) -> None:
    """systemd-analyze exits with 0 on unknown keys and bad values: it must have nothing to say."""
    listing = bed.sh("dpkg -L rktd-units | grep -E '/systemd/system/[^/]*[.](service|socket|path|timer|target|slice)$'").stdout
    # pod@.socket listens on nothing without the generator's drop-in.
    units = [path.replace("@.", "@1.") for path in listing.split() if not path.endswith("/pod@.socket")]
    done = bed.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *units, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(units) > 10


def test_pip(tmp_path: Path, require_program: Callable[[str], str]) -> None:
    """`pip install .` gives the library with its types, and podctl; the libraries are the distribution's."""
    venv, source = tmp_path / "venv", tmp_path / "source"
    files = subprocess.run([require_program("git"), "-C", CHECKOUT, "ls-files", "-z"], stdout=subprocess.PIPE, check=True).stdout
    for name in filter(None, files.decode().split("\0")):
        if name.startswith("rktd_units/") or name in ("pyproject.toml", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((CHECKOUT / name).read_bytes())
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--system-site-packages", venv], check=True)
    subprocess.run([venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", source], check=True)
    said = subprocess.run([venv / "bin/podctl", "version"], stdout=subprocess.PIPE, text=True, check=True, cwd=tmp_path).stdout
    assert said == "podctl 0.1.0\n"
    script = "import os, rktd_units; d = os.path.dirname(rktd_units.__file__); print(d, os.path.exists(d + '/py.typed'))"
    where = subprocess.run([venv / "bin/python", "-c", script], stdout=subprocess.PIPE, text=True, check=True, cwd=tmp_path).stdout
    assert where.startswith(str(venv))
    assert where.endswith(" True\n")
