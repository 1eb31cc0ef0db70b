# SPDX-License-Identifier: Apache-2.0
"""podctl's verbs on real pods: what they print, to whom, with which exit code."""

import json
import time
from typing import Any

import pytest
import yaml

from tests.integration.pods import Done, Pods
from tests.output_schema import check_record

pytestmark = pytest.mark.integration
STAY = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done"


def podctl(pods: Pods, *argv: str, code: int = 0, timeout: float = 60) -> Done:
    done = pods.bed.run("podctl", *argv, check=False, timeout=timeout)
    assert done.returncode == code, f"podctl {argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def records(pods: Pods, kind: str, *argv: str) -> list[dict[str, Any]]:
    """The records that a verb prints as JSON, checked against the documented schema."""
    found = json.loads(podctl(pods, *argv, "--output=json").stdout)
    found = found if isinstance(found, list) else [found]
    for record in found:
        check_record(kind, record)
    return found


def as_nobody(pods: Pods, *argv: str) -> Done:
    return pods.bed.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "podctl", *argv, check=False)


@pytest.fixture
def web(pods: Pods) -> Pods:
    apps = [
        pods.app(STAY, "server", ports=[{"containerPort": 8080, "name": "http"}], securityContext={"runAsUser": 1000}),
        pods.app("echo once; exit 3", "2nd"),
    ]
    pods.write("web", {"restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 2, "containers": apps})
    return pods


def test_list_status_show(web: Pods) -> None:
    web.write("idle", {"containers": [web.app(STAY)]})
    web.bed.write("/etc/pods/broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: broken}\nspec: {containres: []}\n")
    web.start("web")
    time.sleep(2.5)
    found = {record["name"]: record for record in records(web, "pod", "list")}
    assert sorted(found) == ["broken", "idle", "web"]
    pod = found["web"]
    assert (pod["state"], pod["stage1"], pod["appsTotal"], pod["file"]) == ("active", "nspawn", 2, "/etc/pods/web.yaml")
    assert pod["restarts"] >= 1
    server, second = pod["apps"]
    assert (server["name"], server["state"], server["uid"], server["restarts"]) == ("server", "active", 1000, 0)
    assert web.bed.read(f"/proc/{server['pid']}/cmdline").startswith("sh\0-c\0")
    assert server["verifiedBy"] == "digest pin"
    assert server["digest"] in server["image"]
    assert (second["exitCode"], second["restarts"] >= 1) == (3, True)  # only the pod's systemd counts them
    assert (found["idle"]["state"], found["idle"]["appsTotal"], found["idle"]["appsReady"]) == ("inactive", 1, 0)
    assert found["broken"]["fault"].startswith("/etc/pods/broken.yaml:4:")
    table = podctl(web, "list", "--no-legend").stdout.splitlines()
    assert table[0].split()[:3] == ["broken", "-", "broken"]
    assert table[2].split()[:3] == ["web", "nspawn", "active"]
    assert yaml.safe_load(podctl(web, "show", "web").stdout)["name"] == "web"
    assert len(records(web, "shown", "show", "web", "idle")) == 2
    status = ""
    for _ in range(10):  # for a moment at a time it runs again
        status = podctl(web, "status", "pod@web.service").stdout
        if "exit code 3" in status:
            break
    for text in (
        "● web - pod of 2 apps",
        "server: active (running), pid",
        "exit code 3",
        server["digest"],
        "verified by digest pin",
        "server[",  # of the last log lines
    ):
        assert text in status, text
    assert podctl(web, "status", "idle", code=3).stdout.startswith("○ idle")
    web.stop("web")
    web.wait_end("web")
    (pod,) = records(web, "pod", "list", "web")
    assert pod["apps"][0]["exitCode"] == 0


def test_list_is_fast(web: Pods) -> None:
    """Under 100 ms of processor time: wall time is the machine's."""
    web.start("web")
    script = "TIMEFORMAT='%U %S'; for i in 1 2 3 4 5; do { time podctl list >/dev/null; } 2>&1; done"
    best = min(sum(map(float, line.split())) for line in web.bed.sh(script).stdout.splitlines())
    assert best < 0.1


def test_a_corrupt_directory_hides_no_other(web: Pods) -> None:
    web.start("web")
    web.bed.sh("mkdir /run/rktd/pods/torn; echo '{' >/run/rktd/pods/torn/pod.json; echo 7 >/run/rktd/pods/file")
    try:
        found = {record["name"]: record for record in records(web, "pod", "list")}
        assert found["web"]["state"] == "active"
        assert "damaged" in found["torn"]["fault"]
        assert podctl(web, "status", "torn", code=3).stdout
        for text in (
            "[]",
            '{"version": 1}',
            '{"version": 1, "apps": [7]}',
            '{"version": 1, "stage1": "x", "apps": [{}]}',
            '{"version": 1, "stage1": "x", "apps": [], "network": {"addresses": []}}',
            "\\xff",
        ):
            web.bed.sh(f"printf '%b' '{text}' >/run/rktd/pods/torn/pod.json")
            assert {record["name"]: record["fault"] for record in records(web, "pod", "list")}["torn"], text
    finally:
        web.bed.sh("rm -r /run/rktd/pods/torn /run/rktd/pods/file")


def test_names_that_do_not_exist(web: Pods) -> None:
    for verb in (
        ["status"],
        ["show"],
        ["cat"],
        ["start"],
        ["stop"],
        ["restart"],
        ["enable"],
        ["logs"],
        ["wait"],
        ["top"],
        ["stats"],
        ["port"],
    ):
        done = podctl(web, *verb, "wbe", code=66)
        assert "not found" in done.stderr
        assert "did you mean 'web'?" in done.stderr
    assert "did you mean 'server'?" in podctl(web, "logs", "web/srever", code=66).stderr
    assert "did you mean 'status'?" in podctl(web, "staatus", code=64).stderr
    assert podctl(web, "stop", "../x", code=66).stderr


def test_start_stop_restart(web: Pods) -> None:
    done = podctl(web, "start", "--wait", "web")
    assert "web: " in done.stderr
    assert web.show("web", "ActiveState")["ActiveState"] == "active"
    first = web.show("web", "InvocationID")
    podctl(web, "restart", "web")
    assert web.show("web", "InvocationID") != first
    podctl(web, "wait", "web", "--for=stopped", "--timeout=0.2", code=75)
    podctl(web, "stop", "web")
    podctl(web, "wait", "web", "--for=stopped")
    web.bed.run("rm", "/etc/pods/web.yaml")
    podctl(web, "wait", "web", "--for=deleted", "--timeout=5")
    web.write("bad", {"restartPolicy": "Never", "containers": [web.app(["/no/such"])]})
    done = podctl(web, "start", "bad", code=1)
    assert "pod bad" in done.stderr
    web.write("none", {"containers": [{"name": "a", "image": "oci:/srv/none@sha256:" + "0" * 64}]})
    done = podctl(web, "start", "none", code=1)
    assert "/srv/none" in done.stderr
    web.bed.write("/etc/pods/wrong.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: wrong}\nspec: {containres: []}\n")
    assert "/etc/pods/wrong.yaml:4:" in podctl(web, "start", "wrong", code=78).stderr


def test_wait_for_ready(web: Pods) -> None:
    web.write("slow", {"containers": [web.app(STAY)]})
    podctl(web, "start", "--no-block", "slow")
    podctl(web, "wait", "slow", "--timeout=30")
    assert records(web, "shown", "show", "slow")[0]["appsReady"] == 1


def test_enable_disable(web: Pods) -> None:
    link = "/etc/systemd/system/pods.target.wants/pod@web.service"
    podctl(web, "enable", "web", "--now")
    assert web.bed.run("readlink", link).stdout
    assert web.show("web", "ActiveState")["ActiveState"] == "active"
    podctl(web, "disable", "--now", "web")
    assert web.bed.run("test", "-e", link, check=False).returncode == 1
    assert web.show("web", "ActiveState")["ActiveState"] == "inactive"


def test_reload(web: Pods) -> None:
    web.bed.write("/etc/pods/wrong.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: wrong}\nspec: {containres: []}\n")
    assert "/etc/pods/wrong.yaml:4:" in podctl(web, "reload", code=78).stdout


def test_logs(web: Pods) -> None:
    web.start("web")
    time.sleep(1.0)
    web.bed.run("journalctl", "--sync")
    assert set(podctl(web, "logs", "web/server", "--current").stdout.split()) == {"up"}
    assert "once" in podctl(web, "logs", "web/2nd", "-n", "1").stdout
    for words in ("web 2nd --tail=1", "web -c 2nd --tail 1", "--tail=1 --container=2nd web"):
        assert podctl(web, "logs", *words.split()).stdout == "once\n", words
    assert "two apps are named" in podctl(web, "logs", "web/2nd", "server", code=64).stderr
    both = podctl(web, "logs", "web", "--current").stdout
    assert "server[" in both
    assert "2nd[" in both
    found = [json.loads(line) for line in podctl(web, "logs", "web/server", "-o", "json", "-n", "5").stdout.splitlines()]
    assert {entry["_SYSTEMD_UNIT"] for entry in found} == {"pod@web.service"}
    assert podctl(web, "logs", "web", "--since=2099-01-01", "--no-pager").stdout == ""
    script = "timeout 2 podctl logs -f -n1 web/server || true"
    assert web.bed.sh(script).stdout == "up\n"
    assert "Starting" in podctl(web, "logs", "web", "--all-units").stdout


def test_cat_generate(web: Pods) -> None:
    idle = podctl(web, "cat", "web").stdout
    assert "# /etc/pods/web.yaml\n" in idle
    assert "# /usr/lib/systemd/system/pod@.service\n" in idle
    web.start("web")
    running = podctl(web, "cat", "web").stdout
    assert "/system/server.service\n" in running
    assert "/run/rktd/pods/web/plan\n" in running
    dropin = web.bed.read("/run/systemd/generator/pod@web.service.d/50-pod.conf")
    assert dropin in podctl(web, "generate", "/etc/pods/web.yaml").stdout
    assert "no/such.yaml" in podctl(web, "generate", "/no/such.yaml", code=78).stderr


def test_top_stats_port_info(web: Pods) -> None:
    web.write(
        "web",
        {"containers": [web.app("while :; do :; done", "busy"), web.app(STAY, "idle", ports=[{"containerPort": 80, "name": "http"}])]},
    )
    assert records(web, "use", "stats") == []
    podctl(web, "top", "web", code=69)
    web.start("web")
    busy, idle = records(web, "use", "stats", "web")
    assert busy["cpuPercent"] > 5 > idle["cpuPercent"] or busy["cpuPercent"] > 2 * idle["cpuPercent"]
    found = records(web, "process", "top")
    assert {(p["app"], p["command"][0]) for p in found} >= {("busy", "sh"), ("idle", "sh")}
    assert podctl(web, "top").stdout.splitlines()[-1].endswith("processes listed.")
    assert records(web, "port", "port") == [
        {"pod": "web", "app": "idle", "port": 80, "protocol": "TCP", "name": "http", "hostIp": None, "hostPort": None}
    ]
    (info,) = records(web, "info", "info")
    assert info["pods"] == {"known": 1, "running": 1, "failed": 0}


def test_addresses_and_ports(web: Pods) -> None:
    ports = [{"containerPort": 80, "hostPort": 18080, "hostIP": "127.0.0.1"}]
    web.write("net", {"containers": [web.app(STAY, ports=ports)]})
    web.start("net")
    (pod,) = records(web, "pod", "list", "net")
    assert f"inet {pod['address']}/" in podctl(web, "exec", "net", "--", "ip", "-4", "addr").stdout
    assert pod["address"] in podctl(web, "list", "net").stdout
    (port,) = records(web, "port", "port", "net")
    assert (port["hostIp"], port["hostPort"], port["port"]) == ("127.0.0.1", 18080, 80)


def test_without_root(web: Pods) -> None:
    """What file modes, the journal and polkit allow; all else is refused in words, with 77, and changes nothing."""
    web.start("web")
    done = as_nobody(web, "list", "-o", "json")
    assert done.returncode == 0, done.stderr
    (pod,) = json.loads(done.stdout)
    check_record("pod", pod)
    assert (pod["name"], pod["state"], pod["apps"][0]["state"], pod["appsTotal"]) == ("web", "active", "active", 2)
    assert "server: active" in as_nobody(web, "status", "web").stdout
    assert "# /etc/pods/web.yaml" in as_nobody(web, "cat", "web").stdout
    for verb in ("show web", "check", "generate /etc/pods/web.yaml", "top", "stats", "port", "info", "trust list", "version"):
        assert as_nobody(web, *verb.split()).returncode == 0, verb
    done = as_nobody(web, "stop", "web")
    assert (done.returncode, "polkit" in done.stderr) == (77, True), done.stderr
    assert web.show("web", "ActiveState")["ActiveState"] == "active"
    image = web.image
    for verb in (
        *("start web", "restart web", "enable web", "disable web", "reload", "exec web/server -- true", "cp web/server:/etc/passwd /tmp/x"),
        *(f"run {image} true", "logs web", "logs -f web", "attach web/server", "events", "gc", "update", "volume list", "volume rm x"),
        *(f"image rm {image}", f"image pin {image}", "image verify", f"image export {image} /tmp/x", "images", f"fetch {image}"),
        *("trust add --prefix x y", "trust remove x"),
    ):
        done = as_nobody(web, *verb.split())
        assert (done.returncode, done.stdout) == (77, ""), (verb, done.stdout, done.stderr)
        assert "podctl: " in done.stderr, verb
    assert web.show("web", "ActiveState", "MainPID")["ActiveState"] == "active"


def test_members_of_groups(web: Pods) -> None:
    """rktd: what images are here; systemd-journal: what apps have logged."""
    web.start("web")

    def ask(group: str, *argv: str) -> Done:
        return web.bed.run("setpriv", "--reuid=65534", "--regid=65534", f"--groups={group}", "podctl", *argv, check=False)

    mine, theirs = records(web, "image", "images"), ask("rktd", "images", "--output=json")
    assert theirs.returncode == 0, theirs.stderr
    assert json.loads(theirs.stdout) == mine
    assert mine[0]["reference"] in ask("rktd", "images").stdout
    digest = mine[0]["digest"]
    assert ask("rktd", "images", "-q", digest[7:19]).stdout == f"{digest}\n"
    assert ask("rktd", "images", "-q", mine[0]["pin"], mine[0]["reference"]).stdout == f"{digest}\n"
    for wrong, code in (("nothing-like-it", 66), (digest[7:12], 64), ("0" * 12, 66)):
        theirs, own = ask("rktd", "images", wrong), web.bed.run("podctl", "images", wrong, check=False)
        assert (theirs.returncode, theirs.stderr) == (own.returncode, own.stderr)
        assert theirs.returncode == code, theirs.stderr
    assert ask("systemd-journal", "logs", "--current", "web/server").stdout == "up\n"
    assert ask("rktd", "logs", "web/server").returncode == 77
    assert ask("systemd-journal", "images").returncode == 77


def test_a_pod_that_does_not_answer(web: Pods) -> None:
    """PID 1 of one pod stands still: the others' states are told, and nobody waits for long."""
    web.write("other", {"containers": [web.app(STAY)]})
    web.start("web")
    web.start("other")
    leader = web.bed.sh(". /run/systemd/machines/web; echo $LEADER").stdout.strip()
    web.bed.run("kill", "-STOP", leader)
    try:
        start = time.monotonic()
        found = {record["name"]: record for record in records(web, "pod", "list")}
        assert time.monotonic() - start < 3
        assert found["web"]["state"] == found["other"]["state"] == "active"
        assert found["web"]["apps"][0]["restarts"] is None  # only it could say that
        assert found["web"]["apps"][0]["state"] == "active"  # its cgroup says that
        assert found["other"]["apps"][0]["restarts"] == 0
        start = time.monotonic()
        podctl(web, "exec", "web/server", "--", "true", code=69)
        assert time.monotonic() - start < 20  # ten seconds of patience, as a busy machine needs them
    finally:
        web.bed.run("kill", "-CONT", leader)
