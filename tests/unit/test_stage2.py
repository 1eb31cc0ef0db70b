# SPDX-License-Identifier: Apache-2.0
"""The units inside a pod. Golden text: stage2.golden, written anew by RKTD_UPDATE_GOLDEN=1."""

import os
from pathlib import Path

import pytest

from rktd_units.confine import Confinement, bounding_set
from rktd_units.errors import RktdError
from rktd_units.podfile.model import Probe, Resources
from rktd_units.podsockets import Listener
from rktd_units.stage2 import App, Check, PodSettings, is_environment_name, render_hooks, render_probes, render_units

GOLDEN = Path(__file__).parent / "stage2.golden"
POD = PodSettings("web", "Always", 30, False, "/run/rktd/pods/web/io")
PLAIN = App("app", "/bin/app", ("app",), (), "/", 0, 0, (), "SIGTERM", Confinement(bounding_set((), ())))
RICH = App(
    name="server",
    program="/opt/my server/run%n",
    argv=("run", "a b", 'say "hi"', "100%", "$HOME ${X} $(Y)", ";", "line\nbreak", "tab\t", "back\\slash", "", "'", "caf\u00e9", "\x01"),
    env=(("PATH", "/bin"), ("HOME", "/srv"), ("MULTI", 'a "b"\n$c %d \\'), ("EMPTY", "")),
    working_dir="/srv/100%",
    uid=1000,
    gid=1001,
    groups=(10, 200),
    stop_signal="SIGQUIT",
    confinement=Confinement(bounding_set(("SYS_TIME", "NET_ADMIN"), ("CHOWN",)), no_new_privileges=False, apparmor="web//server"),
    resources=Resources(memory_limit=1 << 20, memory_request=4096, cpu_limit=1500, cpu_request=250),
    journal_socket=True,
    proc_files=("/proc/meminfo",),
    checks=(Check(Probe("exec", "liveness", ("check", "100%"), timeout=3), "/bin/check"),),
    hooks=(Check(Probe("sleep", "postStart", timeout=5)), Check(Probe("exec", "preStop", ("bye", "100%")), "/bin/bye")),
)
STARTUP = Probe("http", "startup", port=80, path="/a", tls=True, headers=(("A", "b\t%"),), delay=2, period=5, failures=30, grace=9)
INIT = PLAIN._replace(name="first", role="init")
SIDECAR = PLAIN._replace(name="beside", role="sidecar", notify="30s", log_pipe=True, checks=(Check(STARTUP),))
LISTENERS = (
    Listener("ListenStream", "8080", "http"),
    Listener("ListenDatagram", "[::1]:53", "53"),
    Listener("ListenStream", "8443", "tls", 443),
    Listener("ListenStream", "192.0.2.1:9443", "more", 443),
)
ACTIVATED = PLAIN._replace(name="woken", log_pipe=True, listeners=LISTENERS)
PRIVILEGED = PLAIN._replace(name="all", confinement=Confinement(bounding_set(("ALL",), ()), False, False, False, True), gid=5)


def units(pod: PodSettings, *apps: App) -> dict[str, str]:
    return dict(render_units(pod, apps))


def values(text: str, key: str) -> list[str]:
    return [line.split("=", 1)[1] for line in text.split("\n") if line.startswith(f"{key}=")]


def test_golden() -> None:
    found = render_units(
        POD._replace(restart_policy="OnFailure", grace_seconds=7, idle_stop="5min"), (INIT, SIDECAR, RICH, PLAIN, ACTIVATED, PRIVILEGED)
    )
    text = "".join(f"### {name}\n{unit}\n" for name, unit in found)
    if os.environ.get("RKTD_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    assert [name for name, _ in found] == sorted(name for name, _ in found)


def test_what_the_prober_is_told() -> None:
    grpc = PLAIN._replace(checks=(Check(Probe("grpc", "readiness", port=5000, path="db")),), stop_signal="SIGCHLD")
    assert render_probes(POD._replace(restart_policy="Never"), (INIT, SIDECAR, RICH, grpc)).split("\n") == [
        "version\t1",
        "app\tbeside\tAlways\t15\tyes\t30\tno\tno",
        "probe\tstartup\thttp\t2\t5\t1\t1\t30\t9\t127.0.0.1\t80\tyes\t/a\tA\tb%09%25",
        "app\tserver\tNever\t3\tyes\t30\tno\tyes",
        "probe\tliveness\texec\t0\t10\t3\t1\t3\t-1\tProbe-liveness-server.service",
        "app\tapp\tNever\t17\tno\t30\tno\tno",
        "probe\treadiness\tgrpc\t0\t10\t1\t1\t3\t-1\t127.0.0.1\t5000\tdb",
        "",
    ]


def test_what_a_hook_is_told() -> None:
    web = Probe("http", "preStop", port=80, path="/a", headers=(("A", "b\t"),))
    assert render_hooks(POD, (RICH, PLAIN, PLAIN._replace(name="web", hooks=(Check(web),)))).split("\n") == [
        "version\t1",
        "server\tpostStart\tsleep\t5",
        "server\tpreStop\texec\tHook-preStop-server.service",
        "web\tpreStop\thttp\t127.0.0.1\t80\tno\t/a\tA\tb%09",
        "",
    ]
    entered = POD._replace(enters=True)
    assert render_hooks(entered, (RICH,)).split("\n")[2] == "server\tpreStop\tenter\tno"
    assert render_hooks(entered._replace(share_process_namespace=True), (RICH,)).split("\n")[2] == "server\tpreStop\tenter\tyes"
    found = units(entered, RICH)
    assert "Hook-preStop-server.service" not in found
    assert values(found["PreStop-server.service"], "CapabilityBoundingSet") == ["CAP_SYS_PTRACE"]


def test_no_prober_without_probes() -> None:
    assert not [name for name in units(POD, PLAIN) if name.startswith("Probe")]


@pytest.mark.parametrize(("policy", "restart"), [("Always", "always"), ("OnFailure", "on-failure"), ("Never", "no")])
def test_restart(policy: str, restart: str) -> None:
    text = units(POD._replace(restart_policy=policy), PLAIN)["app.service"]
    assert values(text, "Restart") == [restart]
    assert bool(values(text, "RestartSteps")) == (policy != "Never")


def test_own_process_name_space_unless_shared() -> None:
    assert values(units(POD, PLAIN)["app.service"], "PrivatePIDs") == ["yes"]
    assert values(units(POD._replace(share_process_namespace=True), PLAIN)["app.service"], "PrivatePIDs") == []


def test_a_user_manager_runs_what_another_would() -> None:
    """Slice, umask and keys are the defaults of a system manager, and nothing of the manager's own environment gets to an app."""
    own, user = POD._replace(share_process_namespace=True), POD._replace(share_process_namespace=True, is_user=True)
    plain, found = units(own, PLAIN, RICH), units(user, PLAIN, RICH)
    assert plain.keys() == found.keys()
    for name, text in found.items():
        if name.endswith(".service"):
            assert (values(text, "UMask"), values(text, "KeyringMode")) == (["0022"], ["private"])
    assert values(found["app.service"], "Slice") == ["system.slice"]
    kept = PLAIN._replace(env=(("XDG_RUNTIME_DIR", "/x"),))
    (unset,) = values(units(user, kept)["app.service"], "UnsetEnvironment")
    assert {"SYSTEMD_IGNORE_CHROOT", "DBUS_SYSTEM_BUS_ADDRESS", "container"} < set(unset.split())
    assert "XDG_RUNTIME_DIR" not in unset.split()


def test_helpers_that_apps_see_cannot_be_traced() -> None:
    """They are root before the apps' eyes: one without CAP_SYS_PTRACE cannot trace what has it."""
    for shared, capabilities in ((False, ""), (True, "CAP_SYS_PTRACE")):
        found = units(POD._replace(share_process_namespace=shared), RICH._replace(log_pipe=True))
        for name in ("Pipe-server-out.service", "PreStop-server.service"):
            assert values(found[name], "CapabilityBoundingSet") == [capabilities]


def test_no_journal_socket_unless_asked_for() -> None:
    assert values(units(POD, PLAIN)["app.service"], "BindLogSockets") == ["no"]
    assert values(units(POD, RICH)["server.service"], "BindLogSockets") == ["yes"]


def test_every_app_is_started_and_reported() -> None:
    found = units(POD, PLAIN, RICH)
    assert values(found["Ready.target"], "Requires") == ["app.service server.service Executed.service Probes.service"]
    for name in ("app", "server"):
        assert values(found[f"{name}.service"], "StandardOutput") == [f"fd:{name}-out"]
        assert values(found[f"{name}.service"], "StandardError") == [f"fd:{name}-err"]
    assert [values(found[f"{n}.socket"], "ListenStream") for n in ("app-out", "app-err", "server-out", "server-err")] == [
        [f"/run/rktd/pods/web/io/{n}"] for n in ("0out", "0err", "1out", "1err")
    ]


def test_what_the_image_says_is_not_unset() -> None:
    (unset,) = values(units(POD, RICH)["server.service"], "UnsetEnvironment")
    assert "HOME" not in unset.split()
    assert "INVOCATION_ID" in unset.split()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"env": (("a-b", "x"),)}, "app app: environment variable 'a-b' cannot be set"),
        ({"env": (("A", "\udcff"),)}, "environment variable A: its value is not UTF-8"),
        ({"env": (("A", "x\0"),)}, "NUL"),
        ({"working_dir": "rel"}, "working directory must be an absolute path"),
        ({"working_dir": "/a\nb"}, "working directory must be an absolute path on one line"),
        ({"argv": ()}, "a command needs"),
        ({"argv": ("a", "x" * (1 << 20))}, r"Service\.ExecStart= is longer than systemd reads"),
    ],
    ids=["name", "bytes", "nul", "relative", "line-break", "no-argv", "long"],
)
def test_what_no_unit_can_say(change: dict[str, object], match: str) -> None:
    with pytest.raises(RktdError, match=match):
        units(POD, PLAIN._replace(**change))  # type: ignore[arg-type]


def test_what_has_secrets_leaves_no_core() -> None:
    secret = PLAIN._replace(secret_env=(("A", "geheim"),), has_secrets=True)
    text = units(POD, secret)["app.service"]
    assert (values(text, "LimitCORE"), values(text, "EnvironmentFile"), "geheim" in text) == (["1"], ["/environment/app"], False)
    assert values(units(POD, PLAIN)["app.service"], "LimitCORE") == []


def test_sysctls_are_set_before_any_app() -> None:
    found = units(POD._replace(sysctls=(("net.ipv4.tcp_rmem", "4096 87380 6291456"),)), PLAIN)
    (command,) = values(found["Network.service"], "ExecStart")
    assert command.startswith(""":/bin/sh -c "echo '4096 87380 6291456' >/proc/sys/net/ipv4/tcp_rmem || """)
    assert "Network.service" in values(found["app.service"], "Requires")
    assert "Network.service" not in units(POD, PLAIN)


@pytest.mark.parametrize(("name", "good"), [("A", True), ("_a1", True), ("", False), ("1A", False), ("A.B", False), ("\u00c4", False)])
def test_environment_names(name: str, good: bool) -> None:
    assert is_environment_name(name) == good
