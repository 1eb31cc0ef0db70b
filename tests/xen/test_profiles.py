# SPDX-License-Identifier: Apache-2.0
"""AppArmor profiles of apps: dom0 has Debian's own kernel, which starts AppArmor. The pods are containers there, not guests."""

from collections.abc import Iterator

import pytest

from tests.integration.pods import Pods

PROFILE = """\
profile rktd-held flags=(attach_disconnected) {
  file, capability, network, signal, unix,
  deny /srv/kept w,
  deny /srv/secret r,
}
"""
TRY = "cat /proc/self/attr/apparmor/current; { echo new >/srv/kept; cat /srv/kept /srv/secret; } 2>&1"
HELD = [
    "rktd-held (enforce)",
    "sh: can't create /srv/kept: Permission denied",
    "old",
    "cat: can't open '/srv/secret': Permission denied",
]
FREE = ["unconfined", "new", "hidden"]
START = 120.0  # seconds


def localhost(name: str) -> dict[str, dict[str, str]]:
    return {"appArmorProfile": {"type": "Localhost", "localhostProfile": name}}


@pytest.fixture(scope="module")
def image(pods_session: Pods) -> Iterator[str]:
    """One with the two files; the profile is loaded meanwhile."""
    bed = pods_session.bed
    assert bed.read("/sys/module/apparmor/parameters/enabled") == "Y\n"
    bed.write("/srv/held.profile", PROFILE)
    bed.run("apparmor_parser", "--replace", "--skip-cache", "/srv/held.profile")
    bed.sh("mkdir -p /srv/two/srv; cd /srv/two; echo old >srv/kept; echo hidden >srv/secret; tar -cf /srv/two.tar srv")
    yield pods_session.make_image("two", None, ("/srv/two.tar",))
    bed.run("apparmor_parser", "--remove", "/srv/held.profile")


@pytest.mark.parametrize("name", ["own-users", pytest.param("host-users", marks=pytest.mark.slow)])
def test_a_profile_holds_its_app_and_no_other(pods: Pods, image: str, name: str) -> None:
    """Nor what is executed in another. In one pod it is an app's alone; in the other it is the pod's, from which an app is exempt."""
    script = f"{TRY}; echo done; exec sleep 1000"
    held, free = ({**pods.app(script, app), "image": image} for app in ("held", "free"))
    pod = {"hostUsers": name == "host-users", "terminationGracePeriodSeconds": 2, "containers": [held, free]}
    if name == "host-users":
        pod["securityContext"] = localhost("rktd-held")
        free["securityContext"] = {"appArmorProfile": {"type": "Unconfined"}}
    else:
        held["securityContext"] = localhost("rktd-held")
    pods.write(name, pod)
    pods.start(name, timeout=START)
    pods.bed.wait_for(f"[ $(journalctl -u pod@{name} -o cat -g '^done$' | wc -l) = 2 ]", timeout=START)
    for app, expected in (("held", HELD), ("free", FREE)):
        assert pods.lines(name, f"SYSLOG_IDENTIFIER={app}") == [*expected, "done"]
        assert pods.bed.run("podctl", "exec", f"{name}/{app}", "sh", "-c", TRY, check=False).stdout.splitlines() == expected


def test_a_profile_that_is_not_loaded(pods: Pods) -> None:
    pods.write("p", {"containers": [pods.app("true", securityContext=localhost("gone"))]})
    assert pods.start("p", check=False, timeout=START).returncode == 1
    status = pods.bed.run("systemctl", "status", "pod@p", "--no-pager", "--full", check=False).stdout
    assert "app app: AppArmor profile gone is not loaded" in status
