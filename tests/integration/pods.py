# SPDX-License-Identifier: Apache-2.0
"""Pods as integration tests write, start and look at them, on a testbed."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.integration.bed import Bed

MAKER = Path(__file__).resolve().parents[2] / "tools/busybox-image"
Done = subprocess.CompletedProcess[str]


class Pods:
    """Makes images and pod files inside the testbed; `clean` stops and removes all of them."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        bed.write("/opt/busybox-image", MAKER.read_text(), 0o755)
        self.cursor = ""  # of the journal, where the present test began
        self.image = self.make_image("base")
        self.of_packages: dict[str, str] = {}

    def make_image(self, name: str, config: dict[str, Any] | None = None, layers: tuple[str, ...] = (), *options: str) -> str:
        """An OCI layout from the testbed's busybox, and these layer tars (paths inside); gives the pinned reference."""
        adds = [f"--add={layer}" for layer in layers]
        argv = ("/opt/busybox-image", f"/srv/images/{name}", "--config", json.dumps(config or {}), *adds, *options)
        return self.bed.run(*argv).stdout.strip()

    def make_package_image(self, *packages: str, config: dict[str, Any] | None = None) -> str:
        """As `make_image`, of Debian packages that the testbed has; made once in a session."""
        key = json.dumps([packages, config])
        if key not in self.of_packages:
            options = [f"--package={package}" for package in packages]
            self.of_packages[key] = self.make_image(f"packages-{len(self.of_packages)}", config, (), *options)
        return self.of_packages[key]

    def write(self, name: str, spec: dict[str, Any], annotations: dict[str, str] | None = None, beside: tuple[object, ...] = ()) -> None:
        """/etc/pods/NAME.yaml, with more documents beside the pod; JSON is YAML, but for surrogate pairs."""
        metadata = {"name": name, **({"annotations": annotations} if annotations else {})}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        pairs = re.compile(r"\\ud[89ab]..\\ud[c-f]..")
        text = pairs.sub(
            lambda pair: f"\\U{ord(json.loads(chr(34) + pair[0] + chr(34))):08x}",
            "---\n".join(json.dumps(document, indent=1) + "\n" for document in (pod, *beside)),
        )
        self.bed.write(f"/etc/pods/{name}.yaml", text)

    def app(self, script: str | list[str], name: str = "app", **fields: Any) -> dict[str, Any]:
        """A container of the base image: a list is its command, a text a script for `sh -c` (`$` doubled, as Kubernetes wants it)."""
        command = ["sh", "-c", script.replace("$", "$$")] if isinstance(script, str) else script
        return {"name": name, "image": self.image, "command": command, **fields}

    def verify(self, name: str) -> None:
        """systemd-analyze has nothing to say of the pod's units here, as generated. It exits with 0 on unknown keys and bad values."""
        listing = "cd /run/systemd/generator; for d in pod@$1.*.d; do echo ${d%.d}; done"
        units = self.bed.run("sh", "-c", f"systemctl daemon-reload; {listing}", "sh", name).stdout.split()
        assert f"pod@{name}.service" in units
        options = ("verify", "--man=no", "--recursive-errors=yes")
        done = self.bed.run("env", "SYSTEMD_UNIT_PATH=/run/systemd/generator:", "systemd-analyze", *options, *units, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr

    def verify_inside(self, name: str) -> None:
        """The same for those that the systemd of a running pod has, in its mount name space."""
        leader = self.bed.run("machinectl", "show", "--property=Leader", "--value", name).stdout.strip()
        verify = "systemd-analyze verify --man=no --recursive-errors=yes $(find /etc/systemd/system -maxdepth 1 -type f)"
        done = self.bed.run("nsenter", f"--target={leader}", "--mount", "--root", "--wd", "sh", "-c", verify, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr

    def start(self, name: str, *, check: bool = True, timeout: float = 60) -> Done:
        """`systemctl start pod@NAME`."""
        return self.bed.run("systemctl", "start", f"pod@{name}", check=check, timeout=timeout)

    def stop(self, name: str) -> Done:
        return self.bed.run("systemctl", "stop", f"pod@{name}", timeout=60)

    def run(self, name: str, script: str, **fields: Any) -> str:
        """A pod of one app that runs a script to its end under Never; gives what it wrote to stdout, whatever its exit code."""
        self.write(name, {"restartPolicy": "Never", "containers": [self.app(script, **fields)]})
        self.start(name)
        self.wait_end(name)
        return "\n".join(self.lines(name))

    def show(self, name: str, *properties: str) -> dict[str, str]:
        """Properties of pod@NAME."""
        unit = name if "." in name else f"pod@{name}.service"
        options = [f"--property={p}" for p in properties]
        output = self.bed.run("systemctl", "show", unit, *options).stdout
        return dict(line.split("=", 1) for line in output.splitlines())

    def wait_state(self, name: str, *states: str, timeout: float = 30) -> str:
        """Waits until ActiveState of pod@NAME is one of `states`."""
        deadline = time.monotonic() + timeout
        while (state := self.show(name, "ActiveState")["ActiveState"]) not in states:
            assert time.monotonic() < deadline, f"pod@{name} is {state}, not {states}"
            time.sleep(self.bed.pause)
        return state

    def wait_end(self, name: str, timeout: float = 30) -> str:
        """Waits until the pod has ended by itself, and until stage0 has released it."""
        state = self.wait_state(name, "inactive", "failed", timeout=timeout)
        self.wait_state(f"pod-stage0@{name}.service", "inactive", "failed", timeout=timeout)
        return state

    def lines(self, name: str, *matches: str, stream: int | None = 6) -> list[str]:
        """The apps' own lines of the pod's last run, by default of standard output."""
        transports = ("_TRANSPORT=stdout", "_TRANSPORT=journal")  # the second is that of a guest's supervisor, and of others
        entries = self.bed.journal("-u", f"pod@{name}", *transports, f"--after-cursor={self.cursor}", *matches)
        entries = [e for e in entries if e["_TRANSPORT"] == "stdout" or "RKTD_GUEST_TIME_USEC" in e]
        last = entries[-1].get("_SYSTEMD_INVOCATION_ID") if entries else None
        entries = [e for e in entries if e.get("_SYSTEMD_INVOCATION_ID") == last]
        own = [e for e in entries if e.get("SYSLOG_IDENTIFIER") not in ("kernel", "pod", "systemd-nspawn")]
        return [e["MESSAGE"] for e in own if stream is None or e["PRIORITY"] == str(stream)]

    def result(self, name: str) -> dict[str, Any]:
        """The record of the pod's last end."""
        record: dict[str, Any] = json.loads(self.bed.read(f"/run/rktd/results/{name}.json"))
        return record

    def clean(self) -> None:
        """Stops every pod, removes every file, and waits until nothing of them is left."""
        script = (
            "rm -rf /etc/pods/* /run/pods; systemctl stop 'pod@*' 'pod-stage0@*'; "
            'for i in $(seq 100); do [ -z "$(ls /run/rktd/pods 2>/dev/null)" ] && break; sleep 0.05; done; '
            "systemctl reset-failed; rm -rf /run/rktd/results; systemctl daemon-reload"
        )
        self.bed.sh(script, check=False)
        self.mark()

    def begin(self) -> None:
        """As `clean`, if there is anything of before; to look costs a tenth of it."""
        files = "find /etc/pods /run/pods /run/rktd/pods /run/rktd/results -mindepth 1 ! -name '.*' -print -quit 2>/dev/null"
        if self.bed.sh(f"{files}; systemctl list-units --failed --no-legend --plain 'pod*'", check=False).stdout:
            self.clean()
        else:
            self.mark()

    def mark(self) -> None:
        """What the journal has until now is not the present test's."""
        self.cursor = self.bed.journal("-n1")[0]["__CURSOR"]
