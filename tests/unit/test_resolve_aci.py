# SPDX-License-Identifier: Apache-2.0
"""What an app becomes that is an ACI: the pod file wins, and the image gets no more than the pod file's silence gives."""

from collections.abc import Callable
from typing import Any

import pytest

from rktd_units.errors import ConfigError, ImageError
from rktd_units.images.manifest import Appc, ImageConfig
from rktd_units.podfile.model import Container, Pod, Resources, Security
from rktd_units.resolve import Facts, resolve_app
from rktd_units.stage2 import App, Handler, PodSettings, render_units
from rktd_units.values import Values

APPC = Appc(pre_start=("pre", "-x"), post_stop=("/bin/post",), groups=(400, 500), oom_score_adjust=99)


class FakeRoot:
    """Programs in /bin, and some directories."""

    directories = ("/", "/bin", "/opt/work")

    def read_text(self, path: str) -> str:
        return {"etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home:/bin/sh\n", "etc/group": "staff:x:50:\n"}.get(path, "")

    def links_logs(self) -> bool:
        return False

    @property
    def kind(self) -> Callable[[str], str]:
        return lambda path: "directory" if path in self.directories else "executable" if path.startswith("/bin/") else "missing"


def resolve(appc: Appc = APPC, config: dict[str, Any] | None = None, **fields: Any) -> App:
    container = Container("app", "aci:/a.aci", "Never", **fields)
    pod = Pod("web", "/etc/pods/web.yaml", ("/etc/pods/web.yaml",), (container,))
    about = {"entrypoint": ("/bin/app",), "user": "app:staff", **(config or {})}
    return resolve_app(
        Facts(pod, "u", "n", ("",), ("",), Values(pod)), container, ImageConfig("linux", "amd64", (), appc=appc, **about), FakeRoot()
    )


def test_app() -> None:
    app = resolve()
    assert (app.uid, app.gid, app.groups, app.oom_score_adjust) == (1000, 50, (400, 500), 99)
    assert (app.pre_start, app.post_stop) == (Handler("/bin/pre", ("pre", "-x"), 0, 0), Handler("/bin/post", ("/bin/post",), 0, 0))
    assert {("AC_APP_NAME", "app"), ("container", "rktd")} <= set(app.env)
    assert resolve(security=Security(run_as_non_root=True)).pre_start == Handler("/bin/pre", ("pre", "-x"), 1000, 50)


def test_handler_must_be_there() -> None:
    with pytest.raises(ConfigError, match="cannot run '/sbin/pre'"):
        resolve(Appc(pre_start=("/sbin/pre",)))


def test_working_directory_must_be_there() -> None:
    assert resolve(config={"working_dir": "/opt/work"}).working_dir == "/opt/work"
    with pytest.raises(ImageError, match="the image's workingDirectory '/gone' is missing"):
        resolve(config={"working_dir": "/gone"})
    with pytest.raises(ImageError, match="workingDirectory '/bin/x' is no directory"):
        resolve(config={"working_dir": "/bin/x"})
    assert resolve(config={"working_dir": "/gone"}, working_dir="/opt/other").working_dir == "/opt/other"


def test_resources() -> None:
    appc = Appc(memory_limit=1000, memory_request=500, cpu_limit=250, cpu_request=100)
    assert resolve(appc).resources == Resources(1000, 500, 250, 100)
    assert resolve(appc, resources=Resources(memory_limit=300, cpu_request=7)).resources == Resources(300, 300, 250, 7)


def test_capabilities() -> None:
    assert resolve(Appc(capabilities=("KILL", "CHOWN"))).confinement.capabilities == ("CHOWN", "KILL")
    assert resolve(Appc(capabilities=())).confinement.capabilities == ()
    with pytest.raises(ConfigError, match="app app: the image wants NET_ADMIN, SYS_ADMIN, which no app has") as caught:
        resolve(Appc(capabilities=("SYS_ADMIN", "KILL", "NET_ADMIN")))
    assert "add: [NET_ADMIN, SYS_ADMIN]" in caught.value.hint
    granted = resolve(Appc(capabilities=("SYS_ADMIN",)), security=Security(drop_capabilities=("ALL",), add_capabilities=("KILL",)))
    assert granted.confinement.capabilities == ("KILL",)
    assert resolve(Appc(capabilities=("SYS_ADMIN",)), security=Security(privileged=True)).confinement.privileged


def filters(appc: Appc, **security: Any) -> list[str]:
    lines = resolve(appc, security=Security(**security)).confinement.lines()
    return [f"{value}" for key, value in lines if key in ("SystemCallFilter", "SystemCallErrorNumber")]


def test_seccomp_only_closes() -> None:
    default = filters(Appc())
    removed = filters(Appc(seccomp_mode="remove", seccomp_calls=("mkdir", "@clock"), seccomp_errno="ENOSYS"))
    assert removed == [*default[:-1], "~mkdir @clock", "ENOSYS"]
    assert filters(Appc(seccomp_mode="remove", seccomp_calls=("mkdir",)))[-1] == "kill"
    retained = filters(Appc(seccomp_mode="retain", seccomp_calls=("read", "mount", "chroot"), seccomp_errno="EPERM"))
    assert retained[0] == "read mount chroot write"
    assert retained[1].startswith("~@keyring @mount ")
    assert "@module" in retained[1]
    assert retained[2:] == ["chroot", "EPERM"]  # which SYS_CHROOT, a default capability, stands for
    assert filters(Appc(seccomp_mode="retain", seccomp_calls=("read",)), seccomp="Unconfined") == []


@pytest.mark.parametrize("policy", ["Never", "OnFailure", "Always"])
def test_handlers_units(policy: str) -> None:
    units = dict(render_units(PodSettings("web", policy, 7, False, "/io"), (resolve(),)))
    app, pre, post = (units[name] for name in ("app.service", "Pre-app.service", "Post-app.service"))
    assert "Requires=Pre-app.service\nAfter=Pre-app.service\n" in app
    assert "\nOnSuccess=Success@app.service Post-app.service" in app
    assert "\nOnFailure=Failure@app.service Post-app.service" in app
    assert "User=1000\nGroup=50\n" in app
    for handler in (pre, post):
        assert "User=" not in handler
        assert "RootDirectory=/apps/app/rootfs\n" in handler
        assert "OOMScoreAdjust=99\n" in handler
    assert ("RestartMode=direct" in pre) == (policy != "Never")
    assert "Restart=" not in post
    assert "Before=Pre-app.service final.target Exit.service Abort.service\n" in post
    assert "Conflicts=" not in post + units["app-out.socket"]
    plain = dict(render_units(PodSettings("web", policy, 7, False, "/io"), (resolve(Appc()),)))
    assert not {"Pre-app.service", "Post-app.service"} & set(plain)
    assert "Conflicts=shutdown.target" in plain["app-out.socket"]
