# SPDX-License-Identifier: Apache-2.0
"""Ways out that a program in C has: file capabilities, other system call tables, chroot, terminals, sockets, the pod's PID 1."""

import struct
from typing import Any

import pytest

from tests.integration.layers import Entry, compile_program, write_layer
from tests.integration.pods import Pods

CAP_NET_RAW = 13
PROGRAM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *what, long result) { printf("%s %s\n", what, result < 0 ? strerrorname_np(errno) : "ok"); }

static int child(void *nothing) { return 0; }

static void system_calls(void) {
    static char stack[65536];
    say("add_key", syscall(SYS_add_key, "user", "x", "x", 1, -3));
    say("setns", setns(open("/proc/self/ns/net", O_RDONLY), 0));
    say("userfaultfd", syscall(SYS_userfaultfd, 0));
    say("perf", syscall(SYS_perf_event_open, 0, 0, 0, -1, 0));
    say("handle", syscall(SYS_open_by_handle_at, -100, 0, 0));
    say("reboot", syscall(SYS_reboot, 0xfee1dead, 672274793, 0, 0));
    say("module", syscall(SYS_init_module, 0, 0, ""));
    say("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    say("pivot", syscall(SYS_pivot_root, "/", "/"));
    say("clone", clone(child, stack + sizeof stack, CLONE_NEWUSER | SIGCHLD, 0));
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "0"(310), "b"(CLONE_NEWUSER) : "memory");  /* unshare of i386 */
    printf("i386 %s\n", result < 0 ? strerrorname_np(-result) : "ok");
    __asm__ volatile("int $0x80" : "=a"(result) : "0"(20) : "memory");  /* getpid of i386: programs of 32 bits run */
    printf("getpid386 %s\n", result == getpid() ? "ok" : "no");
    say("x32", syscall(0x40000000 | SYS_unshare, CLONE_NEWUSER));
#endif
}

static void escape(void) {  /* the classic way out of a chroot */
    mkdir("/tmp/jail", 0755);
    int root = open("/", O_RDONLY);
    say("chroot", chroot("/tmp/jail"));
    fchdir(root);
    for (int i = 0; i < 64; i++)
        if (chdir("..")) break;
    say("out", chroot("."));
    say("apps", access("/apps", F_OK));
    say("rktd", access("/etc/rktd", F_OK));
    say("own", access("/bin/busybox", F_OK));
}

static void terminals(void) {  /* what other apps of the pod, and its PID 1, could have open */
    char path[64];
    int opened = 0;
    for (int i = 0; i < 16; i++) {
        snprintf(path, sizeof path, "/dev/pts/%d", i);
        opened += open(path, O_WRONLY | O_NOCTTY) >= 0;
    }
    int pty = posix_openpt(O_RDWR | O_NOCTTY);
    printf("foreign %d\n", opened);
    say("own", pty < 0 || grantpt(pty) || unlockpt(pty) ? -1 : open(ptsname(pty), O_RDWR | O_NOCTTY));
}

static void init(void) {  /* of a pod that shares its process name space: in sight, not in reach */
    say("attach", ptrace(PTRACE_SEIZE, 1, 0, 0));
    say("root", access("/proc/1/root/etc", F_OK));
    say("cwd", access("/proc/1/cwd/etc", F_OK));
    say("memory", open("/proc/1/mem", O_RDWR));
    say("environment", open("/proc/1/environ", O_RDONLY));
    say("kill", kill(1, SIGKILL));
    usleep(100000);
    say("alive", kill(1, 0));
}

int main(int argc, char **argv) {
    setbuf(stdout, 0);
    if (!strcmp(argv[1], "calls")) system_calls();
    if (!strcmp(argv[1], "escape")) escape();
    if (!strcmp(argv[1], "terminals")) terminals();
    if (!strcmp(argv[1], "init")) init();
    if (!strcmp(argv[1], "caps")) {
        char line[256];
        FILE *status = fopen("/proc/self/status", "r");
        while (fgets(line, sizeof line, status))
            if (!strncmp(line, "Cap", 3) && strncmp(line, "CapInh", 6)) printf("%.3s %s", line + 3, strchr(line, '\t') + 1);
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def image(pods_session: Pods) -> str:
    """The base image with the program, once plain, once with cap_net_raw=ep (struct vfs_cap_data of linux/capability.h, revision 2)."""
    program = compile_program(pods_session.bed, "isolation", PROGRAM)
    capability = struct.pack("<5I", 0x02000001, 1 << CAP_NET_RAW, 0, 0, 0)
    entries = (Entry("bin/isolation", program), Entry("bin/raw", program, xattrs=(("security.capability", capability),)))
    return pods_session.make_image("isolation", {}, (write_layer(pods_session.bed, "/opt/layers/isolation.tar", *entries),))


def outputs(pods: Pods, apps: list[dict[str, Any]], **spec: Any) -> dict[str, list[str]]:
    """What each app of the pod `p` wrote to standard output."""
    pods.write("p", {"restartPolicy": "Never", "containers": apps, **spec})
    pods.start("p")
    pods.wait_end("p")
    return {app["name"]: pods.lines("p", "-t", app["name"]) for app in apps}


def app(image: str, name: str, *command: str, **security: Any) -> dict[str, Any]:
    return {"name": name, "image": image, "command": list(command), "securityContext": security}


def test_system_calls_and_roots(pods: Pods, image: str) -> None:
    apps = [
        app(image, "default", "isolation", "calls"),
        app(image, "added", "isolation", "calls", capabilities={"add": ["SYS_ADMIN"]}),
        app(image, "escape", "isolation", "escape"),
        app(image, "terminals", "isolation", "terminals"),
        app(image, "sockets", "sh", "-c", "find / -type s 2>/dev/null; find / -name '*.sock*' -path '*/run/*' 2>/dev/null; echo end"),
    ]
    found = outputs(pods, apps)
    names = ["add_key", "setns", "userfaultfd", "perf", "handle", "reboot", "module", "fsopen", "pivot", "clone", "i386", "x32"]
    default = dict(line.split() for line in found["default"])
    assert default.pop("getpid386", "ok") == "ok"
    if "x32" in default:  # mostly killed by it
        assert default.pop("x32") in ("EPERM", "ENOSYS")
    assert default == dict.fromkeys((n for n in names if n in default), "EPERM")
    assert len(default) >= 10
    added = dict(line.split() for line in found["added"])
    assert {n: added[n] for n in ("setns", "fsopen", "clone", "add_key", "module", "reboot")} == {
        **dict.fromkeys(("setns", "fsopen", "clone"), "ok"),
        **dict.fromkeys(("add_key", "module", "reboot"), "EPERM"),
    }
    assert found["escape"] == ["chroot ok", "out ok", "apps ENOENT", "rktd ENOENT", "own ok"]
    assert found["terminals"] == ["foreign 0", "own ok"]
    assert found["sockets"] == ["end"]


def test_file_capabilities(pods: Pods, image: str) -> None:
    """Nothing is gained by default; with allowPrivilegeEscalation what the file says, as far as the bounding set has it."""
    drop = {"drop": ["NET_RAW"]}
    apps = [
        app(image, "root", "isolation", "caps"),
        app(image, "default", "raw", "caps", runAsUser=1000),
        app(image, "allowed", "raw", "caps", runAsUser=1000, allowPrivilegeEscalation=True),
        app(image, "plain", "isolation", "caps", runAsUser=1000, allowPrivilegeEscalation=True),
        app(image, "dropped", "sh", "-c", "raw caps 2>&1; true", runAsUser=1000, allowPrivilegeEscalation=True, capabilities=drop),
    ]
    found = outputs(pods, apps)
    none, usual, raw = "0" * 16, "00000000a80425fb", f"{1 << CAP_NET_RAW:016x}"

    def caps(permitted: str, bounding: str) -> list[str]:
        return [f"Prm {permitted}", f"Eff {permitted}", f"Bnd {bounding}", f"Amb {none}"]

    assert found["root"] == caps(usual, usual)
    assert found["default"] == caps(none, usual)
    assert found["allowed"] == caps(raw, usual)
    assert found["plain"] == caps(none, usual)
    assert found["dropped"] == ["sh: raw: Operation not permitted"]  # execve(2): the file wants more than the bounding set has


def test_init_of_a_pod_with_one_process_name_space(pods: Pods, image: str) -> None:
    found = outputs(pods, [app(image, "app", "isolation", "init")], shareProcessNamespace=True)
    attack = dict(line.split() for line in found["app"])
    assert attack.pop("kill") == "ok"  # the kernel drops it: signal(7), a name space's init
    assert attack.pop("alive") == "ok"
    assert set(attack.values()) <= {"EACCES", "EPERM"}
    assert set(attack) == {"attach", "root", "cwd", "memory", "environment"}


def test_a_privileged_app_has_no_hand_in_the_devices_of_its_siblings(pods: Pods, image: str) -> None:
    """Nor one with CAP_SYS_ADMIN: what it can change of /dev, by whatever mounts, is its own."""
    attack = (
        "for o in remount,ro remount,rw remount,rw,bind; do for d in /dev /dev/shm /dev/pts; do mount -o $o $d; done; "
        "mount -o $o,ptmxmode=0 /dev/pts; rm -f /dev/null /dev/zero; mv /dev/full /dev/urandom; chmod 0 /dev/random /dev/pts/ptmx; "
        "echo text >/dev/new; mkdir /dev/dir; done 2>/dev/null; mount -t tmpfs x /dev; umount -l /dev; touch /dev/shm/done; echo end"
    )
    victim = (
        "while ! [ -e /dev/shm/done ]; do sleep 0.02; done; (echo >/dev/new) 2>&1 | grep -o 'Read-only'; ls -A /dev | tr '\\n' ' '; "
        "for d in full null random tty urandom zero ptmx; do stat -L -c '%F %a' /dev/$d; done | sort -u; "
        "head -c1 /dev/zero | wc -c; echo >/dev/null; touch /dev/shm/x && echo shared; isolation terminals"
    )
    names = "fd full log mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    for context in ({"privileged": True}, {"capabilities": {"add": ["SYS_ADMIN"]}}):
        apps = [
            app(image, "attacker", "sh", "-c", f"sleep 0.1; {attack}".replace("$", "$$"), **context),
            app(image, "victim", "sh", "-c", victim.replace("$", "$$")),
        ]
        found = outputs(pods, apps)
        assert found["attacker"] == ["end"]
        assert found["victim"] == ["Read-only", names, "character special file 666", "1", "shared", "foreign 0", "own ok"]
