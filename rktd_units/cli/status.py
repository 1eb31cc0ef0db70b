# SPDX-License-Identifier: Apache-2.0
"""`podctl status`: a pod, its stage0 and each of its apps for people, with the last lines of its log."""

import argparse

from rktd_units.cli import output
from rktd_units.cli.output import Record, format_age, format_bytes, format_text, paint, paint_state, seconds_since
from rktd_units.cli.pods import Host
from rktd_units.names import pod_unit, stage0_unit

_RESULTS = {"oom-kill": "out of memory"}  # where systemd's word needs one for people
EX_NOT_RUNNING = 3  # as systemctl status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME..."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="pods; without any, all that run or have failed")
    parser.add_argument("-n", "--lines", type=output.parse_count, default=10, metavar="N", help="lines of the log, 10 by default")
    output.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """0 if all of them run, else 3."""
    host = Host()
    records = host.describe(host.require(arguments.names) if arguments.names else host.names())
    if not arguments.names:
        records = [record for record in records if record["state"] != "inactive"]
    if arguments.output == "table":
        output.write(arguments, "\n".join(_render(record, arguments.lines) for record in records))
    else:
        output.write(arguments, output.render_data(records, arguments.output))
    return 0 if all(record["state"] in ("active", "activating", "reloading") for record in records) else EX_NOT_RUNNING


def _render(record: Record, lines: int) -> str:
    rows = [f"{_dot(record['state'])} {paint(record['name'], 'bold')} - pod of {_count(record)}"]
    rows.append(_row("File", format_text(record["file"]) + _change(record)))
    if record["fault"]:
        rows.append(_row("Fault", paint(record["fault"], "red")))
    rows.append(_row("State", _state(record)))
    stage0 = record["stage0"]
    rows.append(
        _row("Stage0", f"{paint_state(stage0['state'])} ({stage0['subState']})" + (f": {stage0['error']}" if stage0["error"] else ""))
    )
    rows.append(_row("Stage1", f"{format_text(record['stage1'])}" + (f", pid {record['pid']}" if record["pid"] else "")))
    if record["address"]:
        rows.append(_row("Address", record["address"]))
    for app in record["apps"]:
        rows += _render_app(app)
    log = _last_lines(record["name"], lines)
    return "\n".join(rows) + "\n" + (f"\n{log}" if log else "")


def _render_app(app: Record) -> list[str]:
    facts = [f"{paint_state(app['state'])} ({app['subState']})"]
    age = seconds_since(app["since"])
    if app["state"] == "active":
        facts += [f"pid {app['pid'] or '-'}", f"memory {format_bytes(app['memoryBytes'])}", f"tasks {app['tasks'] or '-'}"]
    elif app["exitCode"] is not None:
        facts.append(
            f"exit code {app['exitCode']}"
            + (f" ({_RESULTS.get(app['result'], app['result'])})" if app["result"] not in (None, "success", "exit-code") else "")
        )
    if app["state"] == "active" and not app["ready"]:
        facts.insert(1, paint("not ready", "yellow"))
    if app["restarts"]:
        facts.append(f"restarts {app['restarts']}")
    if age is not None and app["state"] == "active":
        facts.append(f"since {format_age(age)}")
    verified = f"verified by {format_text(app['verifiedBy'])}" if app["verifiedBy"] else "not checked yet"
    rows = [_row("App", f"{_dot(app['state'])} {paint(app['name'], 'bold')}: " + ", ".join(facts))]
    rows.append(_row("", f"  image {format_text(app['image'])}"))
    if app["digest"]:
        rows.append(_row("", f"  {app['digest']}, {verified}"))
    return rows


def _change(record: Record) -> str:
    if not record["changed"]:
        return ""
    text = f"changed on disk: systemctl restart pod@{record['name']} applies it" if record["file"] else "it has been removed"
    return paint(f" ({text})", "yellow")


def _state(record: Record) -> str:
    text = f"{paint_state(record['state'])} ({record['subState']})"
    if record["state"] == "failed":
        text += f", result {record['result']}" + (f", exit code {record['exitStatus']}" if record["exitStatus"] is not None else "")
    if record["since"]:
        text += f" since {record['since']}; {format_age(seconds_since(record['since']))} ago"
    return text


def _count(record: Record) -> str:
    total = record["appsTotal"]
    return "unknown apps" if total is None else f"{total} app{'' if total == 1 else 's'}, {record['appsReady']} ready"


def _row(title: str, text: str) -> str:
    return f"{title + ':' if title else '':>10} {text}".rstrip()


def _dot(state: str) -> str:
    return paint("●" if state == "active" else "✗" if state == "failed" else "○", {"active": "green", "failed": "red"}.get(state, "grey"))


def _last_lines(name: str, count: int) -> str:
    if not count:
        return ""
    from rktd_units.proc import run as run_program

    units = [f"--unit={unit}" for unit in (pod_unit(name), stage0_unit(name))]
    argv = ["journalctl", "--quiet", "--no-pager", "--output=short", f"--lines={count}", *units]
    return run_program(argv, check=False).stdout.decode("utf-8", "replace")
