# SPDX-License-Identifier: Apache-2.0
"""README as a new user has it: on a machine without anything of ours, from apt install to the first log line, command by command.

Each command of its code blocks is run here, or by the test that is named below with it: one that is new, or reads otherwise, fails here.
"""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.bed import Bed, own_name
from tests.integration.pods import Done, Pods

CHECKOUT = Path(__file__).resolve().parents[2]
README = CHECKOUT / "README.md"
START_XEN = "tests/xen/test_policies.py::test_one_file_restarts_and_stops_alike"
# Command -> the test, or the file, that runs it, and how that reads there.
ELSEWHERE = {
    "sudo tools/demo": ("tests/integration/test_demo.py::test_demo", 'bed.run("/opt/rktd-units/tools/demo"'),
    "sudo tools/test": (".ci/run", "\ntools/test\n"),
    # what makes dom0 of the Xen testbed, in which all of tests/xen is run
    "apt install xen-hypervisor-4.20-amd64 xen-utils-4.20": ("tools/testbed-xen", "xen-hypervisor-4.20-amd64 xen-utils-4.20"),
    "systemctl start pod@web": (START_XEN, "pods.start(runtime"),  # once more, of a Xen pod
}
SERVER = "mkdir -p /var/log/web; echo up; while :; do echo GET / >>/var/log/web/access.log; sleep 0.2; done"


class Readme:
    """Its commands, each without its comment; `take` marks one as run."""

    def __init__(self) -> None:
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        self.files = [text for language, text in blocks if language == "yaml"]
        lines = [line for language, text in blocks if language == "sh" for line in text.splitlines()]
        self.left = [command for line in lines if (command := re.split(r"\s+# ", line)[0].strip())]

    def take(self, command: str) -> str:
        assert command in self.left, f"README has no command '{command}' any more"
        self.left.remove(command)
        return command


def read_source(where: str) -> str:
    """Of a file, with its version of Xen filled in; of a test in it: FILE::TEST."""
    path, _, test = where.partition("::")
    text = (CHECKOUT / path).read_text(encoding="utf-8")
    if test:
        (found,) = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == test)
        return ast.get_source_segment(text, found) or ""
    xen = re.search(r'^XEN = "(.*?)"', text, re.MULTILINE)
    return text.replace("{XEN}", xen[1]) if xen else text


@pytest.fixture(scope="module")
def bare(require_root: None) -> Iterator[Bed]:
    bed = Bed(own_name("readme"))
    bed.boot(install=False)
    yield bed
    bed.stop()


def test_readme(bare: Bed, tmp_path: Path, require_program: Callable[[str], str]) -> None:
    readme = Readme()
    assert bare.sh("ls /usr/bin/podctl /etc/pods", check=False).stdout == ""
    require_program("go-md2man")
    subprocess.run([CHECKOUT / readme.take("tools/build-deb")], cwd=tmp_path, stdout=subprocess.DEVNULL, check=True)
    bare.bind(tmp_path, "/srv/here")
    install = readme.take("sudo apt install ./rktd-units_*_all.deb").removeprefix("sudo ")  # the testbed has no sudo: it is root
    bare.sh(f"cd /srv/here; DEBIAN_FRONTEND=noninteractive {install} </dev/null")

    # The pod file, with images that are here; the server is one that logs.
    pods = Pods(bare)
    pods.clean()
    server = pods.make_image("server", {"Cmd": ["sh", "-c", SERVER]})
    pod_file, settings, *rest = readme.files
    assert not rest
    text = pod_file.replace("registry.example.org/web:1.4@sha256:...", server).replace("oci:/srv/images/busybox@sha256:...", pods.image)
    assert "..." not in text
    bare.write("/etc/pods/web.yaml", text)
    assert bare.run("podctl", "check").stdout == ""

    def run(command: str) -> Done:
        return bare.sh(f"cd /srv/here; {readme.take(command)}", timeout=60)

    run("systemctl start pod@web")
    bare.run("journalctl", "--sync")
    assert " server[" in run("journalctl -u pod@web").stdout
    run("systemctl stop pod@web")
    assert pods.show("web", "ActiveState")["ActiveState"] == "inactive"

    key = "export GNUPGHOME=$(mktemp -d); gpg -q --batch --passphrase '' --quick-gen-key release@example.org default default never"
    bare.sh(f"{key}; gpg --armor --export >/srv/here/release-key.asc; gpgconf --kill all")
    command = readme.take("podctl trust add --prefix registry.example.org release-key.asc")
    bare.sh(f"cd /srv/here; (sleep 1; echo y) | script -qec '{command}' /dev/null")
    assert "registry.example.org" in bare.run("podctl", "trust", "list").stdout
    bare.write("/etc/rktd/rktd.yaml", settings)

    run("podctl start --wait web")
    assert " web " in f" {run('podctl list').stdout}".replace("\n", " ")
    assert "server: active" in run("podctl status web").stdout
    follow = readme.take("podctl logs -f web/server")
    assert bare.sh(f"timeout 2 {follow}", check=False).stdout.startswith("up\n")
    shell = readme.take("podctl exec -it web/server -- sh")
    assert "uid=1000" in bare.sh(f"(sleep 1; echo id; echo exit) | script -qec '{shell}' /dev/null").stdout
    run("podctl cp web/server:/etc/passwd .")
    assert "app:x:1000" in (tmp_path / "passwd").read_text()
    adhoc = readme.take("podctl run --rm -it IMAGE sh").replace("IMAGE", pods.image)
    done = bare.sh(f"(sleep 2; echo 'exit 7') | script -qec '{adhoc}' /dev/null", check=False)
    assert done.returncode == 7, done.stdout

    for command, (where, text) in ELSEWHERE.items():
        readme.take(command)
        assert text in read_source(where), f"{where} does not run '{command}'"
    assert readme.left == [], "commands of README that no test runs"
