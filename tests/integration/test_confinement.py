# SPDX-License-Identifier: Apache-2.0
"""What an app cannot do: capabilities, system calls, siblings, devices, the host. The app plays the attacker."""

from typing import Any

import pytest

from tests.integration.pods import Pods

STATUS = "grep -E '^(CapPrm|CapEff|CapBnd|NoNewPrivs)' /proc/self/status | tr -d '\\t' | tr '\\n' ' '"
WAIT = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
PROBE = r"""
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "id")) return !printf("%d %d\n", getuid(), geteuid());
    long r = syscall(SYS_keyctl, 0, -3, 0, 0, 0);
    printf("keyctl %s\n", r < 0 ? strerrorname_np(errno) : "ok");
    r = syscall(SYS_bpf, 0, 0, 0);
    printf("bpf %s\n", r < 0 ? strerrorname_np(errno) : "ok");
    r = syscall(SYS_mount, "x", "/tmp", "tmpfs", 0, 0);
    printf("mount %s\n", r < 0 ? strerrorname_np(errno) : "ok");
    r = syscall(SYS_unshare, 0x10000000);
    printf("unshare %s\n", r < 0 ? strerrorname_np(errno) : "ok");
    r = syscall(SYS_io_uring_setup, 1, 0);
    printf("io_uring %s\n", r < 0 ? strerrorname_np(errno) : "ok");
    return 0;
}
"""


ATTACK = [
    "echo processes $(ls /proc | grep -c '^[0-9]')",
    "kill -9 -1 2>/dev/null; for p in $(seq 2 400); do kill -9 $p 2>/dev/null && [ $p != $$ ] && echo killed $p; done",
    "mknod /tmp/null c 1 3 2>&1 | grep -o 'not permitted'",
    "(cat /devices/zero | head -c1) 2>&1 | grep -o 'ermission denied'",
    "(cat /devices/disk | head -c1) 2>&1 | grep -o -E 'ermission denied|No such'",
    "for d in $(find /dev -type c -o -type b | grep -v -E '^/dev/(null|zero|full|random|urandom|tty|ptmx|pts/ptmx)$'); "
    "do (: <$d) 2>/dev/null && echo opened $d; done",
    "for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/kernel/uevent_helper /dev/x /sys/fs/cgroup/cgroup.procs "
    "/sys/fs/cgroup/cgroup.kill; do (echo 1 >$f) 2>/dev/null && echo wrote $f; done",
    "mkdir /sys/fs/cgroup/x 2>/dev/null && echo cgroup made",
    "rm -f /dev/null 2>/dev/null && echo removed",
    "for f in /proc/kcore /proc/keys /proc/kallsyms /proc/timer_list /proc/interrupts; "
    'do [ -n "$(head -c1 $f 2>/dev/null)" ] && echo read $f; done',
    "ls /run/systemd/journal /dev/log /run/dbus /run/systemd/private /run/systemd/notify 2>/dev/null",
    "chroot /proc/1/root ls /apps 2>/dev/null",
    "cat /proc/1/cgroup | grep '^0::' ; id -u; umount /etc/hosts 2>/dev/null; mount -o remount,rw /sys 2>/dev/null && echo rw",
    "echo done",
]


@pytest.fixture(scope="module")
def probe_image(pods_session: Pods) -> str:
    """The base image with a static probe: once plain, once set-user-ID root; and device nodes."""
    bed = pods_session.bed
    bed.write("/opt/probe.c", PROBE)
    bed.sh("gcc -D_GNU_SOURCE -static -o /opt/probe /opt/probe.c")
    bed.sh(
        "rm -rf /opt/tree && mkdir -p /opt/tree/bin /opt/tree/devices && "
        "cp /opt/probe /opt/tree/bin/probe && cp /opt/probe /opt/tree/bin/suid && "
        "chmod 4755 /opt/tree/bin/suid && mknod -m 666 /opt/tree/devices/zero c 1 5 && mknod -m 666 /opt/tree/devices/disk b 254 0 && "
        "tar -C /opt/tree -cf /opt/layers-probe.tar ."
    )
    return pods_session.make_image("probe", {}, ("/opt/layers-probe.tar",))


def contexts(pods: Pods, script: str, variants: dict[str, dict[str, Any]], **fields: Any) -> dict[str, list[str]]:
    """One pod, one app for each security context; gives each app's output."""
    apps = [pods.app(script, name, securityContext=context, **fields) for name, context in variants.items()]
    pods.write("c", {"restartPolicy": "Never", "containers": apps})
    pods.start("c")
    pods.wait_end("c")
    return {name: [line.strip() for line in pods.lines("c", "-t", name)] for name in variants}


def caps(effective: str, bounding: str, no_new_privileges: int) -> list[str]:
    return [f"CapPrm:{effective} CapEff:{effective} CapBnd:{bounding} NoNewPrivs:{no_new_privileges}"]


def test_capability_masks(pods: Pods) -> None:
    """The usual 14 are a80425fb; NET_ADMIN is bit 12; nobody but root has them in effect."""
    found = contexts(
        pods,
        STATUS,
        {
            "default": {},
            "none": {"capabilities": {"drop": ["ALL"]}},
            "one": {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}},
            "added": {"capabilities": {"add": ["NET_ADMIN", "SYS_TIME"]}},
            "dropped": {"capabilities": {"drop": ["CHOWN"]}},
            "user": {"runAsUser": 1000},
            "escalating": {"allowPrivilegeEscalation": True},
            "privileged": {"privileged": True},
        },
    )
    full = "000001ffffffffff"
    zero = "0" * 16
    assert found == {
        "default": caps("00000000a80425fb", "00000000a80425fb", 1),
        "none": caps(zero, zero, 1),
        "one": caps("0000000000000400", "0000000000000400", 1),
        "added": caps("00000000aa0435fb", "00000000aa0435fb", 1),
        "dropped": caps("00000000a80425fa", "00000000a80425fa", 1),
        "user": caps(zero, "00000000a80425fb", 1),
        "escalating": caps("00000000a80425fb", "00000000a80425fb", 0),
        "privileged": caps(full, full, 0),
    }


def test_set_user_id_helper(pods: Pods, probe_image: str) -> None:
    found = contexts(
        pods,
        "suid id",
        {"default": {"runAsUser": 1000}, "allowed": {"runAsUser": 1000, "allowPrivilegeEscalation": True}},
        image=probe_image,
    )
    assert found == {"default": ["1000 1000"], "allowed": ["1000 0"]}


def test_denied_system_calls_give_their_errno(pods: Pods, probe_image: str) -> None:
    pods.bed.write("/etc/rktd/seccomp/audit.json", '{"defaultAction": "SCMP_ACT_LOG"}')
    logged = {"seccompProfile": {"type": "Localhost", "localhostProfile": "audit.json"}}
    found = contexts(
        pods,
        "probe",
        {"default": {}, "unconfined": {"seccompProfile": {"type": "Unconfined"}}, "privileged": {"privileged": True}, "logged": logged},
        image=probe_image,
    )
    assert found["logged"] == found["unconfined"]
    assert found["default"] == ["keyctl EPERM", "bpf EPERM", "mount EPERM", "unshare EPERM", "io_uring EPERM"]
    assert "unshare ok" in found["unconfined"]
    assert "mount EPERM" in found["unconfined"]  # of the app's first name space: no CAP_SYS_ADMIN there
    assert "mount ok" in found["privileged"]


def test_what_has_no_filter_of_its_own_has_the_pods(pods: Pods, probe_image: str) -> None:
    """The calls that no pod needs, refused to its PID 1 too; it is the only filter there."""
    found = contexts(pods, "probe", {"unconfined": {"seccompProfile": {"type": "Unconfined"}}}, image=probe_image)
    assert found["unconfined"][:2] == ["keyctl EPERM", "bpf EPERM"]
    assert "unshare ok" in found["unconfined"]
    pods.write("plain", {"containers": [pods.app(WAIT)], "terminationGracePeriodSeconds": 1})
    pods.start("plain")
    leader = pods.bed.run("machinectl", "show", "plain", "-PLeader").stdout.strip()
    script = f"grep Seccomp_filters /proc/1/status /proc/{leader}/status | cut -f 2"
    host, inside = pods.bed.sh(script).stdout.split()  # the testbed may be under filters itself
    assert int(inside) == int(host) + 1


def test_ranges_are_disjoint_and_root_is_not_root(pods: Pods) -> None:
    """Container root is nobody on the host; two pods share no id; hostUsers: true is the host's root."""
    for name, more in (("one", {}), ("two", {}), ("real", {"hostUsers": True})):
        pods.write(name, {"containers": [pods.app(WAIT)], "terminationGracePeriodSeconds": 1, **more})
        pods.start(name)
    bases = {}
    for name in ("one", "two", "real"):
        pid = pods.bed.run("systemctl", "show", f"pod@{name}", "-PMainPID").stdout.strip()
        assert pid != "0"
        processes = f"$(cat $(find /sys/fs/cgroup/pods.slice/pod@{name}.service/payload -name cgroup.procs))"
        owners = pods.bed.sh(f"for p in {processes}; do stat -c %u /proc/$p 2>/dev/null || true; done").stdout
        bases[name] = {int(uid) for uid in owners.split()}
    assert bases["real"] == {0}
    (one,), (two,) = bases["one"], bases["two"]
    assert min(one, two) >= 0x70000000
    assert abs(one - two) >= 65536


def test_root_in_an_app_against_its_sibling_the_pod_and_the_host(pods: Pods, probe_image: str) -> None:
    """Default capabilities, uid 0 in the container: sees, signals, opens and writes nothing that is not its own."""
    attack = "; ".join(ATTACK)
    apps = [pods.app(attack, "attacker", image=probe_image), pods.app("echo up; sleep 3; echo alive", "sibling")]
    pods.write("p", {"restartPolicy": "Never", "containers": apps})
    pods.start("p")
    pods.wait_end("p")
    lines = pods.lines("p", "-t", "attacker")
    assert lines[-1] == "done"
    assert int(lines[0].split()[1]) <= 6
    assert lines[1:-1] == ["not permitted", "ermission denied", "ermission denied", "0::/", "0"]
    assert pods.lines("p", "-t", "sibling") == ["up", "alive"]
    assert pods.show("p", "Result") == {"Result": "success"}


def test_no_journal_socket_but_on_request(pods: Pods) -> None:
    places = "/run/systemd/journal/socket /run/systemd/journal/stdout /dev/log"
    script = f"for f in {places}; do [ ! -e $f ] || echo $f; done; (echo by-syslog; sleep 1) | logger; echo done"
    assert pods.run("p", script) == "done"
    pods.write("q", {"restartPolicy": "Never", "containers": [pods.app(script)]}, {"systemd.io/journal-socket": "app"})
    pods.start("q")
    pods.wait_end("q")
    assert {"/run/systemd/journal/socket", "/dev/log"} <= set(pods.lines("q"))
    assert [e["MESSAGE"] for e in pods.bed.journal("-u", "pod@q", "_TRANSPORT=syslog", f"--after-cursor={pods.cursor}")] == ["by-syslog"]


def test_shared_process_name_space(pods: Pods) -> None:
    """shareProcessNamespace: true shows the siblings, as asked."""
    script = "sleep 0.3; cat /proc/[0-9]*/comm | grep -c '^sleep$'; exit 0"
    for share, least in ((False, 0), (True, 1)):
        apps = [pods.app(script, "one"), pods.app(["sleep", "2"], "two")]
        pods.write("p", {"restartPolicy": "Never", "shareProcessNamespace": share, "containers": apps})
        pods.start("p")
        pods.wait_end("p")
        assert min(int(pods.lines("p", "-t", "one")[0]), 1) == least


def test_limits_of_the_app_are_in_its_unit(pods: Pods) -> None:
    resources = {"limits": {"memory": "25Mi", "cpu": "800m"}, "requests": {"memory": "10Mi", "cpu": "100m"}}
    pods.write("p", {"containers": [pods.app(WAIT, resources=resources)], "terminationGracePeriodSeconds": 1})
    pods.start("p")
    keys = ("MemoryMax", "MemoryLow", "CPUQuotaPerSecUSec", "CPUWeight")
    shown = pods.bed.run("systemctl", "-M", "p", "show", "app", *(f"-p{k}" for k in keys)).stdout
    inside = dict(line.split("=") for line in shown.splitlines())
    assert inside == {"MemoryMax": "26214400", "MemoryLow": "10485760", "CPUQuotaPerSecUSec": "800ms", "CPUWeight": "4"}
    outside = pods.show("p", "MemoryMax", "CPUQuotaPerSecUSec")
    assert outside == {"MemoryMax": str(26214400 + 32 * 1024 * 1024), "CPUQuotaPerSecUSec": "800ms"}
    group = "/sys/fs/cgroup/pods.slice/pod@p.service"
    if "memory" in pods.bed.read("/sys/fs/cgroup/cgroup.controllers").split():
        assert pods.bed.read(f"{group}/payload/system.slice/app.service/memory.max") == "26214400\n"


def test_apparmor(pods: Pods) -> None:
    """The runtime's default is fine without it, a profile of the host's is not; where the host has it, one must be loaded."""
    script = "cat /proc/self/attr/apparmor/current 2>/dev/null; echo done"
    assert pods.run("p", script, securityContext={"appArmorProfile": {"type": "RuntimeDefault"}}).split()[-1] == "done"
    profile = {"appArmorProfile": {"type": "Localhost", "localhostProfile": "gone"}}
    pods.write("p", {"restartPolicy": "Never", "containers": [pods.app(script, securityContext=profile)]})
    assert pods.start("p", check=False).returncode == 1
    status = pods.bed.run("systemctl", "status", "pod@p", "--no-pager", "--full", check=False).stdout
    enabled = pods.bed.sh("cat /sys/module/apparmor/parameters/enabled 2>/dev/null || echo N").stdout.strip() == "Y"
    assert f"app app: AppArmor profile gone{' is not loaded' if enabled else ': this machine has no AppArmor'}" in status


def test_selinux_where_there_is_none(pods: Pods) -> None:
    """As with Kubernetes, the options are ignored; `podctl check` and each start say so. tests/xen has a host with it."""
    if pods.bed.sh("[ -e /sys/fs/selinux/enforce ]", check=False).returncode == 0:
        pytest.skip("this kernel has SELinux")
    assert pods.run("p", "echo runs", securityContext={"seLinuxOptions": {"level": "s0:c1,c2"}}) == "runs"
    warning = "seLinuxOptions are ignored: this host has no SELinux"
    (entry,) = pods.bed.journal("-u", "pod-stage0@p", "-g", "seLinuxOptions", f"--after-cursor={pods.cursor}")
    assert (entry["MESSAGE"], entry["PRIORITY"]) == (warning, "4")
    assert pods.bed.run("podctl", "check").stdout == f"/etc/pods/p.yaml: warning: {warning}\n"
