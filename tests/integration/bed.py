# SPDX-License-Identifier: Apache-2.0
"""A testbed as integration tests see it. It does nothing that tools/testbed cannot do, but calls need not start that each time."""

import hashlib
import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TESTBED = Path(__file__).resolve().parents[2] / "tools/testbed"


def own_name(purpose: str) -> str:
    """Of a testbed that one module needs for itself. Several workers of pytest-xdist can have tests of it: each makes its own."""
    return "-".join(filter(None, (os.environ.get("RKTD_TESTBED_NAME", "tests")[:16], purpose, os.environ.get("PYTEST_XDIST_WORKER"))))


class Bed:
    """A running testbed. Paths and commands are those inside it, always as root."""

    pause = 0.05  # seconds between two looks at it

    def __init__(self, name: str) -> None:
        self.name = name
        self.prefix: list[str] = []

    def boot(self, *, install: bool = True) -> None:
        """Boot it afresh, with the product installed or without."""
        options = [] if install else ["--no-install"]
        self._testbed("exec", "--fresh", f"--name={self.name}", *options, "--", "true")
        self.prefix = json.loads(self._testbed("prefix", f"--name={self.name}"))
        if install:
            self.mask_generators()

    def mask_generators(self) -> None:
        """Until it boots again. Each reload runs all of them: others' found at the boot what they find, and are a fifth of all work."""
        self.sh("""
            mkdir -p /run/systemd/system-generators
            for path in /usr/lib/systemd/system-generators/*; do
                case $path in *rktd* | *podman*) ;; *) ln -sf /dev/null "/run/systemd/system-generators/${path##*/}" ;; esac
            done
        """)

    def stop(self) -> None:
        self._testbed("stop", f"--name={self.name}")
        self.prefix = []

    def add_packages(self, *packages: str) -> None:
        """Install more Debian packages inside."""
        with tempfile.TemporaryDirectory() as directory:
            self._bind_packages(Path(directory), packages)
            self.sh("DEBIAN_FRONTEND=noninteractive dpkg --install /srv/debs/*.deb; umount /srv/debs", timeout=300)

    def offer_packages(self, directory: Path, *packages: str) -> None:
        """Make them, and what they depend on, all that apt inside finds. `directory` is an empty one, which must stay."""
        self._bind_packages(directory, packages)
        self.sh("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*; echo 'deb [trusted=yes] file:/srv/debs ./' >/etc/apt/sources.list")

    def _bind_packages(self, directory: Path, packages: Sequence[str]) -> None:
        """At /srv/debs, with an index. A testbed has no network: this machine's apt fetches them, and what they depend on."""
        (directory / "status").write_text(self.read("/var/lib/dpkg/status"), encoding="utf-8")
        debs = directory / "debs"
        (debs / "partial").mkdir(parents=True)
        options = (f"Dir::State::Status={directory}/status", f"Dir::Cache::Archives={debs}", "APT::Sandbox::User=root")
        fetch = (
            "apt-get",
            "install",
            "--yes",
            "--quiet",
            "--download-only",
            "--no-install-recommends",
            *(f"--option={o}" for o in options),
        )

        def run(*argv: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)

        if run(*fetch, *packages).returncode:  # package lists absent or old
            run("apt-get", "update", "--quiet")
            done = run(*fetch, *packages)
            assert done.returncode == 0, done.stderr
        index = []
        for deb in sorted(debs.glob("*.deb")):
            digest = hashlib.sha256(deb.read_bytes()).hexdigest()
            place = f"Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n"
            index.append(run("dpkg-deb", "--field", os.fspath(deb)).stdout + place)
        (debs / "Packages").write_text("\n".join(index), encoding="utf-8")
        self.bind(debs, "/srv/debs", read_only=True)

    def bind(self, host: Path | str, guest: str, *, read_only: bool = False) -> None:
        """Make a directory or file of this machine appear at a path inside."""
        option = f"--bind={os.fspath(host)}:{guest}{':ro' if read_only else ''}"
        self._testbed("exec", "--no-install", f"--name={self.name}", option, "--", "true")

    def run(self, *argv: str, check: bool = True, input: str | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:  # noqa: A002
        """Run a command inside; without `input` it has no stdin. With `check`, a failure is an AssertionError that shows its output."""
        done = subprocess.run(
            [*self.prefix, *argv],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=timeout,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{shlex.join(argv)}: exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done

    def sh(self, script: str, *, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a script of bash inside; with `check`, it ends at the first command that fails."""
        return self.run("bash", "-ec" if check else "-c", script, check=check, timeout=timeout)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file, by rename, with its directories."""
        script = 'mkdir -p "$(dirname "$1")" && t=$(mktemp "$(dirname "$1")/.XXXXXX") && cat >"$t" && chmod "$2" "$t" && mv -T "$t" "$1"'
        self.run("sh", "-c", script, "sh", path, f"{mode:o}", input=text)

    def read(self, path: str) -> str:
        return self.run("cat", "--", path).stdout

    def journal(self, *arguments: str) -> list[dict[str, Any]]:
        """The entries that journalctl ARGUMENTS finds, all that was logged until now, oldest first."""
        query = shlex.join(("journalctl", "--output=json", "--all", "--no-pager", "--quiet", *arguments))
        return [json.loads(line) for line in self.sh(f"journalctl --sync; {query}").stdout.splitlines()]

    def start_registry(self, unit: str, config: str, address: str) -> None:
        """Debian's docker-registry with a configuration file of the testbed, as a unit; it serves HTTP at `address` (HOST:PORT) then."""
        self.run("systemd-run", "--quiet", f"--unit={unit}", "docker-registry", "serve", config)
        self.wait_for_registry(address)

    def wait_for(self, condition: str, timeout: float = 30) -> None:
        """Until a test of the shell holds."""
        deadline = time.monotonic() + timeout
        while self.sh(condition, check=False).returncode:
            assert time.monotonic() < deadline, f"never came true: {condition}"
            time.sleep(0.1)

    def wait_for_registry(self, address: str) -> None:
        """Until a registry, or a proxy in front of one, answers."""
        self.sh(f"for i in $(seq 100); do curl -sf http://{address}/v2/ >/dev/null && break; sleep 0.05; done")

    def _testbed(self, *argv: str) -> str:
        """tools/testbed on this machine. Its output; it tells its progress on stderr itself."""
        done = subprocess.run([os.fspath(TESTBED), *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0, f"tools/testbed {shlex.join(argv)}: exit code {done.returncode}\n{done.stdout}"
        return done.stdout
