# SPDX-License-Identifier: Apache-2.0
"""`podctl volume ...`: what persistentVolumeClaims hold, which no end of a pod takes away.

Archives are tars of the whole volume with the pods' own ids (0 to 65535), written and read by GNU tar. A new volume appears whole or not
at all.
"""

import argparse
import os
import sys
from typing import Any

from rktd_units import proc, volumes
from rktd_units.cli import output
from rktd_units.cli.pods import load_run
from rktd_units.errors import EX_FAILED, CommandError, FailedError, NotFoundError, PrivilegeError, UnavailableError, UsageError
from rktd_units.fields import suggest
from rktd_units.paths import Layout, pod_search_path
from rktd_units.podfile.environment import is_subdomain
from rktd_units.podfile.load import load_pod
from rktd_units.podfile.model import ClaimVolume
from rktd_units.podfile.search import find_pods
from rktd_units.runfiles import list_names, lock

LAYOUT = Layout()
_LAST_ID = 65535
_TAR_CHANGED = 1  # "some files differ": they changed while they were read (tar(1))
_COLUMNS = (
    output.Column("NAME", lambda r: output.format_text(r["name"])),
    output.Column("SIZE", lambda r: output.format_bytes(r["bytes"]), right=True),
    output.Column("PODS", lambda r: " ".join(p["name"] if p["use"] == "running" else f"({p['name']})" for p in r["pods"]) or "-"),
)


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """[VOLUME...]"""
    parser.add_argument("volumes", nargs="*", metavar="VOLUME", help="names; without any, all volumes")
    output.add_arguments(parser)


def run_list(arguments: argparse.Namespace) -> int:
    """Names, what they take on disk, and the pods that claim them: those that do not run in brackets."""
    _require_root()
    names = [_find(name) for name in arguments.volumes] or volumes.list_volumes(LAYOUT)
    claims = find_claims()
    output.print_records(arguments, [_describe(name, claims) for name in dict.fromkeys(names)], _COLUMNS, "volume")
    return 0


def add_rm_arguments(parser: argparse.ArgumentParser) -> None:
    """VOLUME..."""
    parser.add_argument("volumes", nargs="+", metavar="VOLUME", help="names")
    parser.add_argument("-f", "--force", action="store_true", help="also those that a pod file claims; never those of a running pod")


def run_rm(arguments: argparse.Namespace) -> int:
    """All that is in them is gone; none is, if one of them is in use."""
    _require_root()
    names = list(dict.fromkeys(_find(name) for name in arguments.volumes))
    with lock(LAYOUT, "volumes"):
        claims = find_claims()
        for name in names:
            _check_unused(name, claims, force=arguments.force)
        for name in names:
            volumes.remove_volume(LAYOUT, name)
            print(f"removed {name}", file=sys.stderr)
    return 0


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """VOLUME FILE"""
    parser.add_argument("volume", metavar="VOLUME", help="its name")
    parser.add_argument("path", metavar="FILE", help="the tar to write; - is standard output")


def run_export(arguments: argparse.Namespace) -> int:
    """1 if files changed while they were read: then the archive is there, but may hold what never was at one time."""
    _require_root()
    name, path = _find(arguments.volume), arguments.path
    argv = ("tar", "--create", f"--directory={LAYOUT.volumes}/{name}", "--numeric-owner", "--xattrs", "--acls", "--sparse")
    if path == "-":
        if sys.stdout.isatty():
            raise UsageError("an archive is nothing for a terminal", hint="name a file, or pipe it somewhere")
        proc.become((*argv, "--file=-", "."))
    temporary = f"{os.path.dirname(os.path.abspath(path))}/.{os.path.basename(path)}.new"
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))  # it may hold secrets
    done = proc.run((*argv, f"--file={temporary}", "."), check=False)
    if done.returncode not in (0, _TAR_CHANGED):
        os.unlink(temporary)
        raise CommandError(done.argv, done.returncode, done.stderr)
    os.rename(temporary, path)
    if done.returncode:
        print(f"podctl: {name} changed while it was read; stop its pods for a copy that is of one moment\n{done.stderr}", file=sys.stderr)
    return EX_FAILED if done.returncode else 0


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """VOLUME FILE"""
    parser.add_argument("volume", metavar="VOLUME", help="the name that it gets")
    parser.add_argument("path", metavar="FILE", help="the tar to read; - is standard input")
    parser.add_argument("--replace", action="store_true", help="take the place of the volume that has the name, and all that is in it")


def run_import(arguments: argparse.Namespace) -> int:
    """A volume of what is in a tar. What is there stays as it is unless all went well."""
    _require_root()
    name, path = arguments.volume, arguments.path
    if not is_subdomain(name):
        raise UsageError(f"'{name}' is not a valid name", hint="lower case letters, digits, dashes and dots, 253 characters at most")
    if path == "-" and sys.stdin.isatty():
        raise UsageError("an archive does not come from a terminal", hint="name a file, or pipe it in")
    with lock(LAYOUT, "volume-import"):
        _check_free(name, replace=arguments.replace)
        fresh = volumes.new_volume(LAYOUT, ".import")
        file = "-" if path == "-" else os.path.abspath(path)
        proc.run(
            ("tar", "--extract", f"--file={file}", f"--directory={fresh}", "--numeric-owner", "--same-owner", "-p", "--xattrs", "--acls"),
            stdin=sys.stdin.fileno() if path == "-" else None,
        )
        _check_ids(fresh)
        with lock(LAYOUT, "volumes"):
            _check_free(name, replace=arguments.replace)
            if os.path.lexists(f"{LAYOUT.volumes}/{name}"):
                volumes.remove_volume(LAYOUT, name)
            os.rename(fresh, f"{LAYOUT.volumes}/{name}")
    return 0


def find_claims() -> dict[str, list[tuple[str, str]]]:
    """By volume: (pod, "running" or "configured") of each pod that claims it, sorted."""
    found: dict[str, dict[str, str]] = {}
    for entry in find_pods(pod_search_path(dict(os.environ))).entries:
        pod, _ = load_pod(entry, ownership=False)
        for volume in pod.volumes if pod else ():
            if isinstance(volume, ClaimVolume):
                found.setdefault(volume.claim, {})[entry.name] = "configured"
    for name in list_names(LAYOUT.pods):
        try:
            run = load_run(LAYOUT, name)
        except FileNotFoundError:
            continue
        for claim in run.get("claims", ()):
            found.setdefault(claim, {})[name] = "running"
    return {claim: sorted(pods.items()) for claim, pods in found.items()}


def _require_root() -> None:
    if os.geteuid() != 0:
        raise PrivilegeError("volumes are root's")


def _find(name: str) -> str:
    known = volumes.list_volumes(LAYOUT)
    if name not in known:
        raise NotFoundError(f"there is no volume '{name}'", hint=suggest(name, known) or "podctl volume list")
    return name


def _describe(name: str, claims: dict[str, list[tuple[str, str]]]) -> dict[str, Any]:
    path = f"{LAYOUT.volumes}/{name}"
    done = proc.run(("du", "--summarize", "--one-file-system", "--block-size=1", path), check=False)  # 1 where files go meanwhile
    size = done.stdout.split(b"\t")[0]
    pods = [{"name": pod, "use": use} for pod, use in claims.get(name, ())]
    return {"name": name, "path": path, "bytes": int(size) if size.isdigit() else None, "pods": pods}


def _check_unused(name: str, claims: dict[str, list[tuple[str, str]]], *, force: bool) -> None:
    for pod, use in claims.get(name, ()):
        if use == "running":
            raise UnavailableError(f"volume {name} is in use: pod {pod} runs", hint=f"podctl stop {pod}")
        if not force:
            raise UnavailableError(f"volume {name} is claimed by the file of pod {pod}", hint="remove the file, or --force")


def _check_free(name: str, *, replace: bool) -> None:
    if name in volumes.list_volumes(LAYOUT):
        if not replace:
            raise UnavailableError(f"there is a volume '{name}' already", hint="--replace takes its place; or podctl volume rm")
        _check_unused(name, find_claims(), force=True)


def _check_ids(directory: str) -> None:
    """Ids that no pod has would belong to nobody in it."""
    argv = ("find", directory, "(", "-uid", f"+{_LAST_ID}", "-o", "-gid", f"+{_LAST_ID}", ")", "-printf", "%P %U %G", "-quit")
    found = proc.run(argv).stdout.decode("utf-8", "replace")
    if found:
        path, uid, gid = found.rsplit(" ", 2)
        hint = f"tar --owner and --group, or --owner-map, give it others; a pod has the ids 0 to {_LAST_ID}"
        raise FailedError(f"{path!r} belongs to user {uid} and group {gid}, which no pod has", hint=hint)
