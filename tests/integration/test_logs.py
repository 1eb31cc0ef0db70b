# SPDX-License-Identifier: Apache-2.0
"""What apps write reaches the journal whole, under pod@NAME, and little else does: DESIGN section 6, on a real journald."""

import json
import time
from typing import Any

from tests.integration.layers import Entry, write_layer
from tests.integration.pods import Pods

WAIT = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"


def texts(pods: Pods, name: str, *matches: str) -> list[str]:
    """The messages alone: many are there in no time."""
    pods.bed.run("journalctl", "--sync")
    return pods.bed.run("journalctl", "-u", f"pod@{name}", "--output=cat", "--no-pager", "--quiet", *matches).stdout.splitlines()


def test_every_line_of_many_is_there(pods: Pods) -> None:
    """Floods, children that are gone before journald looks, and a sibling that logs meanwhile."""
    flood = 'seq 1 100000; for i in $(seq 1 500); do /bin/printf "child %s\\n" $i; done; echo end'
    sibling = "for i in $(seq 1 100); do seq -s, 1 $i; sleep 0.02; done"
    pods.write("flood", {"restartPolicy": "Never", "containers": [pods.app(flood), pods.app(sibling, "other")]})
    pods.start("flood")
    assert pods.wait_end("flood", timeout=60) == "inactive"
    found = texts(pods, "flood", "-t", "app", "_TRANSPORT=stdout")
    assert found[:100000] == [str(n) for n in range(1, 100001)]
    assert found[100000:] == [f"child {n}" for n in range(1, 501)] + ["end"]
    assert texts(pods, "flood", "-t", "other", "_TRANSPORT=stdout") == [",".join(str(n) for n in range(1, i + 1)) for i in range(1, 101)]
    children = [e for e in pods.bed.journal("-u", "pod@flood", "-t", "app", "-n", "501") if e["MESSAGE"].startswith("child ")]
    assert len({entry["_PID"] for entry in children}) == 500
    assert not any("uppressed" in line for line in texts(pods, "flood"))


def test_streams_levels_and_fields(pods: Pods) -> None:
    script = (
        "echo out; echo err >&2; echo '<4>warned'; echo '<2>critical' >&2; echo '<9>no level'; "
        "/bin/ash -c 'echo child; sleep 0.5; :'; printf 'no line end'; exec 1>&-"
    )
    pods.write("fields", {"restartPolicy": "Never", "containers": [pods.app(script), pods.app("echo other", "two")]})
    pods.start("fields")
    pods.wait_end("fields")
    entries = [e for e in pods.bed.journal("-u", "pod@fields", "-t", "app") if e["_TRANSPORT"] == "stdout"]
    assert {e["MESSAGE"]: e["PRIORITY"] for e in entries} == {
        "out": "6",
        "err": "3",
        "warned": "4",
        "critical": "2",
        "<9>no level": "6",
        "child": "6",
        "no line end": "6",
    }
    assert {e["POD"] for e in entries} == {"fields"}
    assert {e["_SYSTEMD_UNIT"] for e in entries} == {"pod@fields.service"}
    by_text = {e["MESSAGE"]: e for e in entries}
    assert by_text["child"]["_COMM"] == "ash"
    assert by_text["out"].get("_COMM", "sh") == "sh"
    assert by_text["child"]["_PID"] != by_text["out"]["_PID"]
    matched = {e["MESSAGE"] for e in pods.bed.journal("POD=fields", "_TRANSPORT=stdout")}
    assert {"out", "err", "other"} <= matched
    assert [e["MESSAGE"] for e in pods.bed.journal("-u", "pod@fields", "-t", "two", "_TRANSPORT=stdout")] == ["other"]


def test_a_restart_of_journald_loses_nothing(pods: Pods) -> None:
    script = "trap 'echo end; exit 0' TERM; i=0; while :; do i=$((i + 1)); echo tick $i; echo tock $i >&2; sleep 0.02; done"
    pods.write("x", {"containers": [pods.app(script)]})
    pods.start("x")
    for _ in range(2):
        time.sleep(0.3)
        pods.bed.run("systemctl", "restart", "systemd-journald")
    time.sleep(0.5)
    pods.stop("x")
    out, err = pods.lines("x"), pods.lines("x", stream=3)
    assert out == [f"tick {n}" for n in range(1, len(out))] + ["end"]
    assert err == [f"tock {n}" for n in range(1, len(err) + 1)]
    assert len(out) > 20


def test_an_app_can_open_no_journal_socket(pods: Pods) -> None:
    script = (
        "for f in /dev/log /run/systemd/journal/socket /run/systemd/journal/stdout /run/systemd/journal/dev-log /run/log /var/log/journal; "
        "do [ -e $f ] && echo there: $f; done; logger -t sshd forged-by-app; "
        "grep -o '[^ ]*journal.*' /proc/net/unix | sed 's/^/abstract: /'; find / -xdev -type s 2>/dev/null | sed 's/^/socket: /'; echo end"
    )
    assert pods.run("x", script).splitlines() == ["end"]
    assert not [e for e in pods.bed.journal("-t", "sshd") if "forged-by-app" in e["MESSAGE"]]


def test_the_last_line_before_a_stop_is_there(pods: Pods) -> None:
    script = "trap 'seq 1 2000; echo last; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    pods.write("last", {"containers": [pods.app(script), pods.app(script, "two")]})
    pods.start("last")
    pods.stop("last")
    expected = ["up", *(str(n) for n in range(1, 2001)), "last"]
    assert texts(pods, "last", "-t", "app", "_TRANSPORT=stdout") == expected
    assert texts(pods, "last", "-t", "two", "_TRANSPORT=stdout") == expected


def test_few_lines_are_our_own(pods: Pods) -> None:
    name = f"quiet{time.time_ns() % 1000000}"  # else an earlier run's would count
    pods.write(name, {"containers": [pods.app(WAIT), pods.app(WAIT, "two")]})
    pods.start(name)
    pods.stop(name)
    entries = pods.bed.journal("-u", f"pod@{name}")
    own = [e for e in entries if e.get("SYSLOG_IDENTIFIER") not in ("app", "two")]
    assert len(entries) - len(own) == 4
    shown = "\n".join(f"{e.get('SYSLOG_IDENTIFIER')}: {e['MESSAGE']}" for e in own)
    print(shown)
    assert len(own) <= 8, shown
    for complaint in ("multiple trigger source", "not mounted", "Failed to", "ailed", "warning"):
        assert complaint not in shown
    assert all(int(e["PRIORITY"]) > 4 for e in own), shown
    stage0: list[dict[str, Any]] = pods.bed.journal("-u", f"pod-stage0@{name}")
    assert len(stage0) <= 8, json.dumps([e["MESSAGE"] for e in stage0])


def test_images_that_link_their_logs_to_the_standard_streams(pods: Pods) -> None:
    """As nginx's does: its log files can be opened, also by another user than root, and every line arrives, at a stop and a restart too."""
    links = [Entry(f"var/log/web/{name}.log", link=f"/dev/{stream}") for name, stream in (("access", "stdout"), ("error", "stderr"))]
    layer = write_layer(pods.bed, "/run/links.tar", Entry("var/log/"), Entry("var/log/web/"), *links)
    image = pods.make_image("links", {}, (layer,))
    script = (
        "seq 1 20000 >/var/log/web/access.log; echo wrong >>/var/log/web/error.log; echo direct; echo on | cat >/proc/self/fd/1; exit 3"
    )
    app = {**pods.app(script, securityContext={"runAsUser": 1000}), "image": image}
    last = {
        **pods.app("trap 'seq 1 5000 >/var/log/web/access.log; exit' TERM; echo up; while :; do sleep 0.05; done", "last"),
        "image": image,
    }
    pods.write("links", {"restartPolicy": "Never", "containers": [app]})
    pods.start("links")
    pods.wait_end("links")
    assert texts(pods, "links", "-t", "app", "-p", "6..6") == [*(str(n) for n in range(1, 20001)), "direct", "on"]
    assert texts(pods, "links", "-t", "app", "-p", "3..3") == ["wrong"]
    assert pods.show("links", "ExecMainStatus") == {"ExecMainStatus": "3"}
    pods.write("last", {"containers": [last, {**app, "name": "again"}]})
    pods.start("last")
    time.sleep(2.5)
    pods.stop("last")
    assert texts(pods, "last", "-t", "last", "-p", "6..6") == ["up", *(str(n) for n in range(1, 5001))]
    assert texts(pods, "last", "-t", "again", "-p", "6..6").count("on") >= 2


def test_log_pipe_by_annotation(pods: Pods) -> None:
    pods.write(
        "piped",
        {
            "restartPolicy": "Never",
            "containers": [pods.app("echo x >/proc/self/fd/1; echo y >/dev/stderr"), pods.app("echo z >/dev/stdout", "plain")],
        },
        {"systemd.io/log-pipe": "app"},
    )
    pods.start("piped")
    pods.wait_end("piped")
    assert sorted(texts(pods, "piped", "-t", "app", "_TRANSPORT=stdout")) == ["x", "y"]  # of two streams: no order
    assert "No such device or address" in texts(pods, "piped", "-t", "plain")[0]
