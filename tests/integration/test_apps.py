# SPDX-License-Identifier: Apache-2.0
"""What an app gets: program, arguments, environment, user, root file system, network, by pod file and image."""

import json
import re
from typing import Any

import pytest

from tests.integration.layers import Entry, write_layer
from tests.integration.pods import Pods

DUMP = ["od", "-v", "-An", "-tx1"]
ENVIRONMENT = {  # pod file -> what arrives
    "SPACES": ("  a  b ", "  a  b "),
    "QUOTES": ("\"double\" 'single' `back`", "\"double\" 'single' `back`"),
    "DOLLAR": ("$HOME ${HOME} $1 $$x a$", "$HOME ${HOME} $1 $x a$"),
    "PERCENT": ("%n %% %i 100%", "%n %% %i 100%"),
    "LINES": ("one\ntwo\n\tthree\r\n", "one\ntwo\n\tthree\r\n"),
    "BACKSLASH": ("\\ \\n \\x41 end\\", "\\ \\n \\x41 end\\"),
    "SHELL_LIKE": ("; | & > < * ? ~ # ! $(touch /v/env)", "; | & > < * ? ~ # ! $(touch /v/env)"),
    "UNICODE": ("äöü ✓ 🫛 \u0085\u2028", "äöü ✓ 🫛 \u0085\u2028"),
    "CONTROL": ("\x01\x1b[1m\x7f", "\x01\x1b[1m\x7f"),
    "EMPTY": ("", ""),
    "REFERENCE": ("$(SPACES)|$(FROM_IMAGE)|$(LATER)|$$(SPACES)|$(", '  a  b |of "the" image|$(LATER)|$(SPACES)|$('),
    "LATER": ("x", "x"),
    "BOTH": ("pod", "pod"),
    "LANG": ("xx_XX", "xx_XX"),
}
ARGUMENTS = [";", "a;b", ";;", '"', "'", "$(touch /v/args)", "`touch /v/args`", "$HOME", "${HOME}", "%n", "%%", "", " ",
             "\\", "\\n", "-x", "@", ":", "+!",
             "ü✓", "two\nlines", "\t", "#", "*", "=", "<>|&", "{}", "\x7f\x01"]  # fmt: skip


def read_dump(lines: list[str]) -> list[str]:
    """The NUL-separated strings of a file of /proc, from what `od -v -An -tx1` wrote."""
    return bytes.fromhex("".join(lines).replace(" ", "")).decode().split("\0")[:-1]


def write_never(pods: Pods, containers: list[dict[str, Any]], **spec: Any) -> None:
    pods.write("p", {"restartPolicy": "Never", "containers": containers, **spec})


def run_never(pods: Pods, containers: list[dict[str, Any]], **spec: Any) -> None:
    """The pod `p`, until all of its apps have ended: how they ended is not looked at, since systemd 257 may lose that of the quickest."""
    write_never(pods, containers, **spec)
    pods.start("p")
    pods.wait_end("p")


def refusal(pods: Pods) -> str:
    """Starts the pod `p`, which must fail in stage0: what that says."""
    done = pods.start("p", check=False)
    assert done.returncode == 1, done.stderr
    invocation = pods.show("pod-stage0@p.service", "InvocationID")["InvocationID"]
    entries = pods.bed.journal("-u", "pod-stage0@p", f"_SYSTEMD_INVOCATION_ID={invocation}", "-p", "err")
    assert entries, done.stderr
    return "\n".join(e["MESSAGE"] for e in entries)


def test_environment_and_arguments_arrive_exactly(pods: Pods) -> None:
    image = pods.make_image("env", {"Env": ["PATH=/bin", 'FROM_IMAGE=of "the" image', "BOTH=image", "PERCENT_IMAGE=%h $$ $(BOTH)"]})
    volume = [{"name": "v", "mountPath": "/v"}]
    fields = {"POD_NAME": "metadata.name", "POD_UID": "metadata.uid", "POD_IP": "status.podIP", "NODE": "spec.nodeName"}
    env: list[dict[str, Any]] = [{"name": name, "value": value} for name, (value, _) in ENVIRONMENT.items()]
    env += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
    dump_args = ["sh", "-c", "od -v -An -tx1 /proc/1/cmdline; :", "zero"]
    containers: list[dict[str, Any]] = [
        {"name": "env", "image": image, "command": [*DUMP, "/proc/self/environ"], "env": env, "volumeMounts": volume},
        {"name": "command", "image": image, "command": [*dump_args, *ARGUMENTS], "volumeMounts": volume},
        {"name": "args", "image": image, "command": dump_args, "args": [*ARGUMENTS, "$$(BOTH)", "$(BOTH)", "$$"], "volumeMounts": volume},
        {"name": "bare", "image": pods.image, "command": [*DUMP, "/proc/self/environ"]},
    ]
    listing = pods.app("sleep 0.5; ls -A /v; hostname; cat /proc/sys/kernel/hostname /etc/hostname", "volume", volumeMounts=volume)
    run_never(pods, [*containers, listing, pods.app("cat /etc/hosts", "hosts")], volumes=[{"name": "v", "emptyDir": {}}], hostname="other")

    arrived = read_dump(pods.lines("p", "-t", "env"))
    assert len({line.partition("=")[0] for line in arrived}) == len(arrived)
    got = dict(line.split("=", 1) for line in arrived)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", got.pop("POD_UID"))
    address = [line.split("\t")[0] for line in pods.lines("p", "-t", "hosts") if line.endswith("\tother")]
    assert len(address) == 2
    assert got == {
        "PATH": "/bin",
        "HOSTNAME": "other",
        "HOME": "/root",
        "FROM_IMAGE": 'of "the" image',
        "PERCENT_IMAGE": "%h $$ $(BOTH)",
        **{name: value for name, (_, value) in ENVIRONMENT.items()},
        "POD_NAME": "p",
        "POD_IP": address[0],
        "NODE": pods.bed.run("uname", "-n").stdout.strip(),
    }
    assert sorted(read_dump(pods.lines("p", "-t", "bare"))) == ["HOME=/root", "HOSTNAME=other", "PATH=/bin:/usr/bin"]
    assert read_dump(pods.lines("p", "-t", "command")) == [*dump_args, *ARGUMENTS]
    assert read_dump(pods.lines("p", "-t", "args")) == [*dump_args, *ARGUMENTS, "$(BOTH)", "image", "$"]
    assert pods.lines("p", "-t", "volume") == ["other", "other", "other"]  # and no file that a shell would have made


def test_no_shell_is_needed(pods: Pods) -> None:
    """An image of one static program and nothing else: no shell, no directory, no /etc."""
    layer = "/opt/layers/bare.tar"
    pods.bed.sh(f"mkdir -p /opt/layers /opt/bare; cp /bin/busybox /opt/bare/echo; tar -C /opt/bare -cf {layer} --owner=0 --group=0 echo")
    image = pods.make_image("bare", {"Entrypoint": ["/echo"], "Cmd": ["from", "cmd"], "Env": []}, (layer,), "--no-base")
    run_never(
        pods,
        [
            {"name": "one", "image": image},
            {"name": "two", "image": image, "args": ["$HOME; ls"]},
            {"name": "three", "image": image, "command": ["/echo", "only"], "env": [{"name": "PATH", "value": "/"}]},
            {"name": "four", "image": image, "command": ["echo"], "args": ["by path"], "env": [{"name": "PATH", "value": "/nowhere:/"}]},
        ],
    )
    for name, text in (("one", "from cmd"), ("two", "$HOME; ls"), ("three", "only"), ("four", "by path")):
        assert pods.lines("p", "-t", name) == [text]


def test_apps_share_an_empty_dir(pods: Pods) -> None:
    """Both ways, both as different users."""
    wait = "while ! [ -e /v/{0} ]; do sleep 0.02; done; cat /v/{0}"
    mount = [{"name": "v", "mountPath": "/v"}]
    apps = [
        pods.app("echo ping >/v/.a; mv /v/.a /v/a; " + wait.format("b"), "one", volumeMounts=mount),
        pods.app(wait.format("a") + "; echo pong >/v/.b; mv /v/.b /v/b", "two", volumeMounts=mount, securityContext={"runAsUser": 1000}),
    ]
    run_never(pods, apps, volumes=[{"name": "v", "emptyDir": {}}])
    assert pods.lines("p", "-t", "one") == ["pong"]
    assert pods.lines("p", "-t", "two") == ["ping"]


def test_root_file_system_is_fresh_at_each_start(pods: Pods) -> None:
    script = "cat /mark /v/mark; head -n1 /etc/passwd; stat -c %a /tmp; echo x >/mark; echo x >/v/mark; "
    script += "rm /etc/passwd; chmod 700 /tmp; rm -r /var"
    write_never(pods, [pods.app(script, volumeMounts=[{"name": "v", "mountPath": "/v"}])], volumes=[{"name": "v", "emptyDir": {}}])
    for _ in range(2):
        pods.start("p")
        pods.wait_end("p")
        assert pods.lines("p") == ["root:x:0:0:root:/root:/bin/sh", "1777"]


@pytest.mark.parametrize(
    ("config", "fields", "words"),
    [
        pytest.param({}, {"command": ["/bin/absent", "x"]}, ["app app", "/bin/absent", "there is none"], id="no-file"),
        pytest.param({}, {"command": ["absent"]}, ["app app", "'absent'", "PATH '/bin:/usr/bin'"], id="not-in-path"),
        pytest.param({}, {"command": ["/etc/passwd"]}, ["'/etc/passwd' is not executable"], id="not-executable"),
        pytest.param({}, {"command": ["/etc"]}, ["'/etc' is a directory"], id="directory"),
        pytest.param({"Cmd": None}, {}, ["neither the pod file nor the image says what to run"], id="nothing"),
        pytest.param({"User": "mallory"}, {}, ["app app", "user 'mallory'", "/etc/passwd"], id="user"),
        pytest.param({"User": "app:crew"}, {}, ["app app", "group 'crew'", "/etc/group"], id="group"),
        pytest.param({"User": "99999"}, {}, ["99999", "65535"], id="user-id"),
        pytest.param({"StopSignal": "SIGNOPE"}, {}, ["StopSignal 'SIGNOPE'"], id="signal"),
        pytest.param({}, {"securityContext": {"runAsNonRoot": True}}, ["app app", "runAsNonRoot"], id="non-root"),
        pytest.param({"User": "root"}, {"securityContext": {"runAsNonRoot": True}}, ["app app", "runAsNonRoot"], id="non-root-by-name"),
    ],
)
def test_refused_by_stage0(pods: Pods, config: dict[str, Any], fields: dict[str, Any], words: list[str]) -> None:
    image = pods.make_image("refused", config) if config else pods.image
    write_never(pods, [{"name": "app", "image": image, **fields}])
    message = refusal(pods)
    for word in words:
        assert word in message


def test_image_config(pods: Pods) -> None:
    """User in its four forms, WorkingDir, Volumes, Env, ExposedPorts; Entrypoint and Cmd by Kubernetes' table."""
    keep = write_layer(
        pods.bed, "/opt/layers/keep.tar", Entry("keep", ids=(1000, 200), mode=0o2775), Entry("keep/file", b"content\n", 0o640, (1000, 200))
    )
    show_ids = "echo $(id -u) $(id -g) $(id -G); pwd"
    users = {"name": "app", "number": "1000", "both": "app:logs", "numbers": "3000:4000", "root": "", "stranger": "3000"}
    containers: list[dict[str, Any]] = []
    for name, user in users.items():
        image = pods.make_image(
            f"user-{name}", {"User": user, "WorkingDir": "/home/app", "Entrypoint": ["/bin/sh", "-c"], "Cmd": [show_ids]}
        )
        containers.append({"name": name, "image": image})
    words = pods.make_image("words", {"Entrypoint": ["/bin/echo", "entry"], "Cmd": ["cmd"]})
    containers += [
        {"name": "table-image", "image": words},
        {"name": "table-args", "image": words, "args": ["args"]},
        {"name": "table-command", "image": words, "command": ["echo", "command"]},
        {"name": "table-both", "image": words, "command": ["echo", "command"], "args": ["args"]},
    ]
    config = {
        "WorkingDir": "/made/here",
        "Volumes": {"/data": {}, "/keep": {}, "/made/too": {}},
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
    }
    image = pods.make_image("config", config, (keep,))
    script = (
        "pwd; stat -c '%u %g %a %n' /keep /keep/file /made/here; cat /keep/file; "
        "for d in /data /keep /made/too; do echo $d >$d/new && cat $d/new; done; "
        "touch /made/here/x /x 2>&1"
    )
    containers.append(pods.app(script, "volumes", image=image, securityContext={"readOnlyRootFilesystem": True}))
    containers.append(pods.app("pwd; sleep 1", "dir", image=image, workingDir="/var/lib/deep/er"))
    write_never(pods, containers)
    pods.start("p")
    record = json.loads(pods.bed.read("/run/rktd/pods/p/pod.json"))
    pods.wait_end("p")
    ports = {app["name"]: app["exposedPorts"] for app in record["apps"]}
    assert sorted(ports["volumes"]) == ["53/udp", "80/tcp"]
    assert ports["name"] == []
    expected = {
        "name": ["1000 1000 1000 200", "/home/app"],
        "number": ["1000 1000 1000 200", "/home/app"],
        "both": ["1000 200 200", "/home/app"],
        "numbers": ["3000 4000 4000", "/home/app"],
        "root": ["0 0 0", "/home/app"],
        "stranger": ["3000 0 0", "/home/app"],
        "table-image": ["entry cmd"],
        "table-args": ["entry args"],
        "table-command": ["command"],
        "table-both": ["command args"],
        "dir": ["/var/lib/deep/er"],
    }
    assert {name: pods.lines("p", "-t", name) for name in expected} == expected
    assert pods.lines("p", "-t", "volumes") == [
        "/made/here",
        "1000 200 2775 /keep",
        "1000 200 640 /keep/file",
        "0 0 755 /made/here",
        "content",
        "/data",
        "/keep",
        "/made/too",
        "touch: /made/here/x: Read-only file system",
        "touch: /x: Read-only file system",
    ]


@pytest.mark.parametrize("stop_signal", ["SIGUSR1", "USR2", "10", "SIGRTMIN+3"])
def test_stop_signal(pods: Pods, stop_signal: str) -> None:
    image = pods.make_image("stop", {"StopSignal": stop_signal})
    script = 'for s in TERM 10 USR2 37; do trap "echo got $s; exit 0" $s; done; echo up; while :; do sleep 0.05; done'
    write_never(pods, [pods.app(script, image=image)], terminationGracePeriodSeconds=5)
    pods.start("p")
    pods.stop("p")
    got = {"SIGUSR1": "10", "USR2": "USR2", "10": "10", "SIGRTMIN+3": "37"}[stop_signal]
    assert pods.lines("p") == ["up", f"got {got}"]


def test_users_and_groups_of_the_pod_file(pods: Pods) -> None:
    mount = [{"name": "v", "mountPath": "/v"}, {"name": "m", "mountPath": "/m"}]
    show = "echo $(id -u) $(id -g) $(id -G); echo $HOME; stat -c '%u %g %a' /v /m; touch /v/$0 /m/$0; stat -c '%u %g' /v/$0 /m/$0"

    def app(name: str, **security: Any) -> dict[str, Any]:
        return pods.app(show.replace("$0", name), name, volumeMounts=mount, securityContext=security)

    named = pods.make_image("named", {"User": "app:logs"})
    containers = [
        app("default"),
        app("user", runAsUser=1000),
        app("stranger", runAsUser=4321),
        app("group", runAsUser=1000, runAsGroup=77),
        app("only-group", runAsGroup=77),
        app("nobody", runAsUser=65534, runAsNonRoot=True),
        {**app("image", runAsNonRoot=True), "image": named},
        {**app("over", runAsUser=0), "image": named},
    ]
    volumes = [{"name": "v", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory"}}]
    run_never(pods, containers, volumes=volumes, securityContext={"supplementalGroups": [500, 600], "fsGroup": 700})
    directories = ["0 700 2777", "0 700 2777"]
    expected = {
        "default": ["0 0 0 500 600 700", "/root", *directories, "0 700", "0 700"],
        "user": ["1000 1000 1000 200 500 600 700", "/home/app", *directories, "1000 700", "1000 700"],
        "stranger": ["4321 0 0 500 600 700", "/", *directories, "4321 700", "4321 700"],
        "group": ["1000 77 77 200 500 600 700", "/home/app", *directories, "1000 700", "1000 700"],
        "only-group": ["0 77 77 500 600 700", "/root", *directories, "0 700", "0 700"],
        "nobody": ["65534 65534 65534 500 600 700", "/", *directories, "65534 700", "65534 700"],
        "image": ["1000 200 200 500 600 700", "/home/app", *directories, "1000 700", "1000 700"],
        "over": ["0 0 0 500 600 700", "/root", *directories, "0 700", "0 700"],
    }
    got = {name: pods.lines("p", "-t", name) for name in expected}
    assert got == expected


def test_network(pods: Pods) -> None:
    """A name space of its own for all apps of the pod, with eth0 or only `lo`; or the host's."""
    script = "readlink /proc/self/ns/net; ls /sys/class/net; ip -o link show lo | grep -o 'LOOPBACK,UP'; hostname; echo $IP"
    env = [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    apps = [pods.app(script, "one", env=env), pods.app("readlink /proc/self/ns/net", "two")]
    run_never(pods, apps)
    assert pods.lines("p", "-t", "one")[1:4] == ["eth0", "lo", "LOOPBACK,UP"]

    pods.write("p", {"restartPolicy": "Never", "containers": apps}, {"systemd.io/network": "none"})
    pods.start("p")
    pods.wait_end("p")
    own = pods.lines("p", "-t", "one")
    host = pods.bed.run("readlink", "/proc/1/ns/net").stdout.strip()
    assert own[0] != host
    assert own[1:] == ["lo", "LOOPBACK,UP", "p", "127.0.0.1"]
    assert pods.lines("p", "-t", "two") == own[:1]

    run_never(pods, [pods.app(script, "one", env=env)], hostNetwork=True)
    shared = pods.lines("p", "-t", "one")
    assert shared[0] == host
    assert shared[1:-3] == pods.bed.run("ls", "/sys/class/net").stdout.split()
    assert shared[-2] == "p"
    assert re.fullmatch(r"[0-9.]+", shared[-1])


def test_read_only_root_file_system(pods: Pods) -> None:
    """Also after a restart of the app; what is mounted stays writable, unless it is read-only itself."""
    paths = "/x /etc/x /etc/hosts /tmp/x /run/x /root/x /dev/x /proc/x /sys/x /v/x /ro/x /dev/shm/x"
    script = f"for p in {paths}; do if (echo x >>$p) 2>/tmp/e || (echo x >>$p) 2>/dev/shm/e; then echo $p; fi; done; sleep 0.2; exit 1"
    mounts = [{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/ro", "readOnly": True}]
    app = pods.app(script, volumeMounts=mounts, securityContext={"readOnlyRootFilesystem": True})
    other = pods.app("touch /x /run/x && echo fine; sleep 60", "other")
    pods.write("p", {"containers": [app, other], "volumes": [{"name": "v", "emptyDir": {}}]})
    pods.start("p")
    pods.bed.sh("for i in $(seq 60); do [ $(systemctl -M p show app -PNRestarts) -ge 1 ] && exit; sleep 0.1; done; exit 1")
    pods.bed.sh("sleep 0.3")
    assert pods.lines("p", "-t", "app") == ["/v/x", "/dev/shm/x"] * 2
    assert pods.lines("p", "-t", "other") == ["fine"]
    text = "cd /; for p in x etc/x run/x tmp/x ro/x; do touch $p; done 2>&1"
    output = pods.run("q", text, securityContext={"readOnlyRootFilesystem": True})
    assert output.split("\n") == [f"touch: {p}: Read-only file system" for p in ("x", "etc/x", "run/x", "tmp/x")] + [
        "touch: ro/x: No such file or directory"
    ]
