# SPDX-License-Identifier: Apache-2.0
"""Two Xen guests and a container at once: one start of them serves all of it, the ends of both guests included.

`one` serves, is probed, and has apps that fail or eat too much; `two` has an image of more layers than Xen has letters for disks, and is
hostile; `three` is a container.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.pods import Pods
from tests.xen.bed import left_overs

START = 400.0  # seconds
LAYERS = 30
SERVE = (
    "mkdir -p /www; echo this is NAME >/www/index.html; sleep 3; httpd -f -p 80 -h /www & trap 'echo bye; exit 0' TERM; echo up; "
    "until [ -e /shared/end ]; do [ -e /say ] && { cat /say; rm /say; }; sleep 1 & wait $!; done"
)
ASK = (
    "for name in NAMES; do for i in $(seq 60); do wget -q -T 5 -O - http://$name && break; sleep 2; done; "
    "nslookup $name 2>&1 | grep -q 'Address.*10\\.' && echo known $name; done; while :; do sleep 1; FLOOD; done"
)
FLOOD = "if [ -e /go ]; then while [ -e /go ]; do echo flood flood flood flood flood flood flood flood; done; echo calm; fi"
REST = "until [ -e /shared/end ]; do sleep 1; done; exit 0"
FAILS = f"echo run; n=$(cat /shared/runs 2>/dev/null || echo 0); echo $((n+1)) >/shared/runs; [ $n -lt 2 ] && exit 3; {REST}"
EATS = f"echo up; [ -e /shared/eaten ] || {{ touch /shared/eaten; exec tail /dev/zero; }}; {REST}"
# What root of the guest can do to the console: fields that nobody may choose, JSON that is none, lines without end, a terminal's sequences.
FORGE = r"""
mkdir -p /dev0; mount -t devtmpfs none /dev0; exec >/dev0/hvc0
echo; echo '{"n":4000000,"app":"app","p":0,"pid":1,"t":1,"m":"forged line",TRUSTED}'
echo '{"n":4000001,"app":"web","p":3,"pid":1,"t":1,"m":"of another pod"}'
echo '{"n":4000002,"app":"sshd","p":3,"pid":99999999999,"t":-1,"m":["x"]}'
echo '{"n":4000003,"app":"app","m":"a\nSYSLOG_IDENTIFIER=sshd\nPRIORITY=0"}'
echo '{"n":4000004,"app":"web","result":"exited 9 exit-code"}'; echo '{"n":4000005,"app":"web","up":1}'
echo '{"n":4000006,"app":"web","probe":"unready"}'; echo '{"n":4000007,"app":"app","result":"exited 9"}'; echo '{"n":4000008,"exit":256}'
echo '{"n":4000009,"app":"app'; echo '{"n":[[[[[[[['; echo '}{'; echo '{"n":99999999999999999999999999,"exit":0}'
printf '\033]0;title\007\033[2J\033[31mred\033c\n'; printf '\200\377\n'
head -c 3000000 /dev/zero | tr '\0' 'A'; echo; echo end of the forgery
"""
# Fields by which journald, or who reads it, knows whose a line is: each with another value than it has.
TRUSTED = {
    **dict.fromkeys(("_PID", "_UID", "_GID", "_AUDIT_LOGINUID", "OBJECT_PID", "COREDUMP_PID", "COREDUMP_UID"), "4711"),
    **dict.fromkeys(("_COMM", "_EXE", "_CMDLINE", "_HOSTNAME", "_MACHINE_ID", "_BOOT_ID", "_CAP_EFFECTIVE", "_SELINUX_CONTEXT"), "forged"),
    **dict.fromkeys(
        ("_SYSTEMD_UNIT", "_SYSTEMD_CGROUP", "_SYSTEMD_SLICE", "_SYSTEMD_INVOCATION_ID", "UNIT", "USER_UNIT"), "forged.service"
    ),
    **dict.fromkeys(("MESSAGE", "SYSLOG_IDENTIFIER", "POD", "_TRANSPORT", "_MESSAGE", "MESSAGE_ID", "COREDUMP_EXE", "TID"), "forged"),
    **dict.fromkeys(("PRIORITY", "RKTD_GUEST_PID", "RKTD_GUEST_TIME_USEC", "SYSLOG_FACILITY"), "0"),
}


@pytest.fixture(scope="module")
def pods(pods_session: Pods) -> Iterator[Pods]:
    """All three run."""
    found = pods_session
    found.clean()
    bed = found.bed
    make = "mkdir -p $i/layer; echo $i >$i/layer/$i; echo $i >$i/last; tar -C $i -cf $i.tar ."
    bed.sh(f"mkdir -p /srv/l; cd /srv/l; for i in $(seq {LAYERS}); do {make}; done")
    image = found.make_image("many", None, tuple(f"/srv/l/{i}.tar" for i in range(1, LAYERS + 1)))
    limits = {"limits": {"memory": "40Mi"}}
    shared = [{"name": "shared", "mountPath": "/shared"}]
    probe = {"httpGet": {"port": 80}, "periodSeconds": 5}
    first = {"exec": {"command": ["test", "-e", "/www/index.html"]}, "periodSeconds": 2, "failureThreshold": 100}
    port = [{"containerPort": 80, "hostPort": 8080}]
    found.write(
        "one",
        {
            "runtimeClassName": "xen",
            "restartPolicy": "OnFailure",
            "terminationGracePeriodSeconds": 5,
            "containers": [
                found.app(
                    SERVE.replace("NAME", "one"),
                    "web",
                    resources=limits,
                    startupProbe=first,
                    readinessProbe=probe,
                    ports=port,
                    volumeMounts=shared,
                ),
                found.app(FAILS, "fails", resources=limits, volumeMounts=shared),
                found.app(EATS, "eats", resources=limits, volumeMounts=shared),
            ],
            "volumes": [{"name": "shared", "emptyDir": {}}],
        },
    )
    asks = found.app(ASK.replace("NAMES", "one three").replace("FLOOD", FLOOD), securityContext={"privileged": True}) | {"image": image}
    hostile = {"runtimeClassName": "xen", "restartPolicy": "Never", "terminationGracePeriodSeconds": 2, "containers": [asks]}
    found.write("two", hostile | {"shareProcessNamespace": True})
    web = found.app(SERVE.replace("NAME", "three"), "web")
    found.write(
        "three",
        {"terminationGracePeriodSeconds": 2, "containers": [web, found.app(ASK.replace("NAMES", "one").replace("FLOOD", "true"), "app")]},
    )
    bed.run("systemctl", "start", "pod@three", "pod@one", "pod@two", timeout=2 * START)
    yield found
    found.clean()
    assert left_overs(bed) == ""


def records(pods: Pods, pod: str, app: str) -> list[dict[str, Any]]:
    return pods.bed.journal("-u", f"pod@{pod}", f"SYSLOG_IDENTIFIER={app}", f"--after-cursor={pods.cursor}")


def lines(pods: Pods, pod: str, app: str) -> list[str]:
    return [str(entry["MESSAGE"]) for entry in records(pods, pod, app)]


def wait_for(condition: Callable[[], bool], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1)


def inside(pods: Pods, target: str, script: str) -> str:
    return pods.bed.run("podctl", "exec", target, "--", "sh", "-c", script, timeout=180).stdout


def test_each_reaches_the_others(pods: Pods) -> None:
    """By name, both ways between guest, guest and container; the host by address and by its own port, and who is outside by that one."""
    wait_for(lambda: {"this is one", "known one", "this is three", "known three"} <= set(lines(pods, "two", "app")))
    wait_for(lambda: {"this is one", "known one"} <= set(lines(pods, "three", "app")))
    outside = (
        "ip netns add outside; ip link add up0 type veth peer name eth0 netns outside; ip addr add 192.0.2.1/24 dev up0; "
        "ip link set up0 up; "
        "ip -n outside addr add 192.0.2.2/24 dev eth0; ip -n outside link set eth0 up; "
    )
    ask = "busybox wget -q -T 20 -O - "
    script = f"""{outside} a=$(python3 -c 'import json; print(json.load(open("/run/rktd/pods/one/pod.json"))["network"]["addresses"][0])')
        {ask} http://${{a%/*}}; {ask} http://127.0.0.1:8080; ip netns exec outside {ask} http://192.0.2.1:8080; ip netns del outside"""
    assert pods.bed.sh(script).stdout == "this is one\n" * 3


def test_who_tells_of_the_apps_outlives_them(pods: Pods) -> None:
    """The guest's logger and the agent of `podctl exec`; a command that this executes is killed as soon as its app is."""
    names = "-e init -e guestexec -e guestprobes"
    look = (
        f'for p in $(grep -lx {names} /proc/[0-9]*/comm); do cat "${{p%comm}}oom_score_adj"; done | sort -u; cat /proc/self/oom_score_adj'
    )
    assert inside(pods, "two/app", look) == "-1000\n1000\n"


def test_all_layers_are_there(pods: Pods) -> None:
    assert inside(pods, "two/app", "ls /layer | wc -l; cat /last /layer/1") == f"{LAYERS}\n{LAYERS}\n1\n"


def test_what_commands_say(pods: Pods) -> None:
    bed = pods.bed
    domains = {line.split()[0]: int(line.split()[2]) for line in bed.run("xl", "list").stdout.splitlines()[2:]}
    assert domains == {"rktd-one": 3 * 40 + 3 + 128, "rktd-two": 256}  # 3: 2 % of that
    machines = [line.split()[:3] for line in bed.run("machinectl", "list", "--no-legend").stdout.splitlines()]
    assert sorted(machines) == [["one", "vm", "rktd"], ["three", "container", "systemd-nspawn"], ["two", "vm", "rktd"]]
    status = bed.run("systemctl", "status", "--no-pager", "--full", "pod@two").stdout
    assert "active (running)" in status
    assert "All apps run in domain" in status
    assert bed.run("journalctl", "-u", "pod@two", "-t", "app", "-o", "cat").stdout.split("\n").count("this is one") == 1
    # Else Debian's xendomains would save guests, with their secrets, to a disk when dom0 goes down.
    after = bed.run("systemctl", "show", "--property=After", "pod@two", "pod-stage0@two").stdout.replace("=", " ").split()
    assert [after.count(unit) for unit in ("xen.service", "xendomains.service")] == [2, 2]


def test_failing_apps_start_again_alone(pods: Pods) -> None:
    """With back-off; one that takes more memory than its limit is told so. Probes are asked in the guest."""
    wait_for(lambda: len(records(pods, "one", "fails")) == 3 and lines(pods, "one", "eats") == ["up", "up"])
    first, second, third = (int(entry["RKTD_GUEST_TIME_USEC"]) / 1e6 for entry in records(pods, "one", "fails"))
    assert second - first > 0.9  # seconds; more on a busy machine
    assert third - second > 1.7
    said = lines(pods, "one", "pod")
    assert said.count("app fails failed: exited 3 exit-code") == 2
    assert any("eats" in line and ("oom" in line or "memory" in line) for line in said)
    assert "app web is ready" in said
    assert lines(pods, "one", "web") == ["up"]
    expected = {"one": ["xen", "active", "3/3", "3"], "two": ["xen", "active", "1/1", "0"], "three": ["nspawn", "active", "2/2", "0"]}
    wait_for(
        lambda: {words[0]: words[1:5] for words in map(str.split, pods.bed.run("podctl", "list").stdout.splitlines()[1:4])} == expected
    )
    assert pods.show("one", "NRestarts", "ActiveState") == {"NRestarts": "0", "ActiveState": "active"}


def test_a_forged_console(pods: Pods) -> None:
    """Of what root of the guest writes there, an app's name, message, pid and time are believed, and only in fields of their own."""
    forge = FORGE.replace("TRUSTED", json.dumps(TRUSTED, separators=(",", ":"))[1:-1])
    before = json.loads(pods.bed.read("/run/rktd/pods/two/states"))
    pods.bed.run("podctl", "exec", "two/app", "--", "sh", "-c", forge, timeout=240)
    wait_for(lambda: "end of the forgery" in lines(pods, "two", "kernel"))
    entries = pods.bed.journal("-u", "pod@two", f"--after-cursor={pods.cursor}")
    (forged,) = (entry for entry in entries if entry["MESSAGE"] == "forged line")
    fields = {"MESSAGE": "forged line", "PRIORITY": "1", "RKTD_GUEST_PID": "1", "RKTD_GUEST_TIME_USEC": "1"}
    assert {key: forged[key] for key in fields} == fields
    assert (forged["_SYSTEMD_UNIT"], forged["POD"], forged["SYSLOG_IDENTIFIER"]) == ("pod@two.service", "two", "app")
    plain = next(entry for entry in entries if entry["MESSAGE"] == "this is one")
    others = {*TRUSTED, *(key for key in plain if not key.startswith("__"))} - {*fields, "_SOURCE_REALTIME_TIMESTAMP"}
    assert {key: forged.get(key) for key in others} == {key: plain.get(key) for key in others}
    assert {entry["SYSLOG_IDENTIFIER"] for entry in entries if entry.get("_SYSTEMD_UNIT") == "pod@two.service"} == {"app", "kernel", "pod"}
    (several,) = (entry for entry in entries if "SYSLOG_IDENTIFIER=sshd" in str(entry["MESSAGE"]))
    assert several["MESSAGE"] == "a\nSYSLOG_IDENTIFIER=sshd\nPRIORITY=0"
    assert several["PRIORITY"] == "6"
    kernel = lines(pods, "two", "kernel")
    assert "of another pod" in kernel
    assert '{"n":[[[[[[[[' in kernel
    assert "red" in kernel
    assert max(len(line) for line in kernel) <= 2048
    assert not any("\x1b" in line for line in kernel)
    assert "of another pod" not in lines(pods, "one", "web")
    assert [line for line in kernel if line.startswith('{"n":400000')] == [
        '{"n":4000002,"app":"sshd","p":3,"pid":99999999999,"t":-1,"m":["x"]}',
        '{"n":4000004,"app":"web","result":"exited 9 exit-code"}',
        '{"n":4000005,"app":"web","up":1}',
        '{"n":4000006,"app":"web","probe":"unready"}',
        '{"n":4000007,"app":"app","result":"exited 9"}',
        '{"n":4000008,"exit":256}',
        '{"n":4000009,"app":"app',
    ]
    assert json.loads(pods.bed.read("/run/rktd/pods/two/states")) == before
    assert pods.show("two", "ActiveState")["ActiveState"] == "active"


def test_a_flood_harms_nobody(pods: Pods) -> None:
    """While one guest writes as fast as it can, the other one and the container are heard, the flood's own guest as well."""
    inside(pods, "two/app", "mkdir /go")

    def last(pod: str, app: str) -> str:  # `journalctl --sync` waits until journald has nothing to do
        return pods.bed.run("journalctl", "-u", f"pod@{pod}", "-t", app, "-n", "1", "-o", "cat").stdout

    wait_for(lambda: "flood" in last("two", "app"))
    began = time.monotonic()
    assert inside(pods, "one/web", "echo heard >/say; echo answered") == "answered\n"
    inside(pods, "three/web", "echo heard >/say")
    wait_for(lambda: last("one", "web") == last("three", "web") == "heard\n")
    assert int(pods.show("two", "MemoryPeak")["MemoryPeak"]) < 200 << 20
    inside(pods, "two/app", "rmdir /go")
    wait_for(lambda: last("two", "app") == "calm\n", 240)
    assert time.monotonic() - began < 300  # not longer and longer: what is written meanwhile is not kept anywhere


def test_a_panic(pods: Pods) -> None:
    """The guest dies by its own hand; the reason is the unit's, its last words are in the journal."""
    pods.bed.run("podctl", "exec", "two/app", "--", "sh", "-c", "echo c >/proc/sysrq-trigger", check=False, timeout=120)
    pods.wait_end("two", timeout=120)
    assert pods.show("two", "ActiveState", "Result", "ExecMainStatus") == {
        "ActiveState": "failed",
        "Result": "exit-code",
        "ExecMainStatus": "1",
    }
    assert any("Kernel panic - not syncing: sysrq triggered crash" in line for line in lines(pods, "two", "kernel"))
    assert any(line.startswith("the guest's kernel has crashed: Kernel panic") for line in lines(pods, "two", "pod"))
    assert "rktd-two" not in pods.bed.run("xl", "list").stdout
    assert "two" not in pods.bed.run("machinectl", "list", "--no-legend").stdout.split()


def test_a_killed_supervisor_and_the_next_domain(pods: Pods) -> None:
    """The pod starts again, in a new domain. When all its apps end with 0 then, under OnFailure it is done."""
    number = pods.bed.run("xl", "domid", "rktd-one").stdout
    pods.bed.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "pod@one")
    wait_for(lambda: pods.bed.run("xl", "domid", "rktd-one", check=False).stdout not in ("", number))
    assert pods.show("one", "NRestarts")["NRestarts"] == "1"
    pods.wait_state("one", "active", timeout=START)
    inside(pods, "one/fails", "touch /shared/end")
    pods.wait_end("one", timeout=120)
    assert pods.show("one", "ActiveState", "Result", "ExecMainStatus") == {
        "ActiveState": "inactive",
        "Result": "success",
        "ExecMainStatus": "0",
    }
