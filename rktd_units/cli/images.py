# SPDX-License-Identifier: Apache-2.0
"""`podctl images` and `podctl image ...`: what is in the store, by reference or by the first digits of a digest."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from rktd_units.cli import output
from rktd_units.disks import drop_damaged_disks
from rktd_units.errors import EX_FAILED, ImageError, PrivilegeError, StateError, TemporaryError, UnavailableError, UsageError
from rktd_units.images import catalog
from rktd_units.images.catalog import SHORT, Entry, Name, find_entries, select_names
from rktd_units.images.records import ImageRecord
from rktd_units.images.store import Store, told_errors
from rktd_units.paths import Layout, pod_search_path
from rktd_units.usage import Usage, find_usage

LAYOUT = Layout()
_ANSWER_SECONDS = 30.0


def _render_age(fetched: str) -> str:
    return output.format_age(output.seconds_since(fetched))


def _find(store: Store, texts: Sequence[str]) -> list[Entry]:
    """What the references and short digests mean, each once, in their order."""
    return list(dict.fromkeys(entry for text in texts for entry in find_entries(store, text)))


def _render_pods(record: dict[str, Any]) -> str:
    """Names of pods, those that only name the image in brackets, and whether it is pinned."""
    names = [p["name"] if p["use"] == "running" else f"({p['name']})" for p in record["pods"]]
    return " ".join([*names, *(["[pinned]"] if record["pinned"] else [])]) or "-"


_COLUMNS = (
    output.Column("REFERENCE", lambda r: output.format_text(r["reference"])),
    output.Column("DIGEST", lambda r: r["digest"][7 : 7 + SHORT]),
    output.Column("SIZE", lambda r: output.format_bytes(r["bytes"]), right=True),
    output.Column("AGE", lambda r: _render_age(r["fetched"]), right=True),
    output.Column("VERIFIED BY", lambda r: output.format_text(r["verifiedBy"])),
    output.Column("PODS", _render_pods),
)
_CHECKS = (
    output.Column("REFERENCE", lambda r: output.format_text(r["reference"])),
    output.Column("DIGEST", lambda r: r["digest"][7 : 7 + SHORT]),
    output.Column("STATE", lambda r: output.paint(r["state"], {"good": "green", "repaired": "yellow", "damaged": "red"}[r["state"]])),
    output.Column("DAMAGE", lambda r: ", ".join(r["damage"]) or "-"),
)


def open_store() -> Store:
    """The store, for root only: nobody else may look into it. Raises PrivilegeError."""
    if os.geteuid() != 0:
        raise PrivilegeError("the images are root's", hint="members of the group rktd may `podctl fetch` and `podctl images`")
    return Store(LAYOUT)


def find_image_usage() -> Usage:
    """Which pods need which images now."""
    return find_usage(LAYOUT, pod_search_path(dict(os.environ)))


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="references or short digests; without any, all images")
    parser.add_argument("-a", "--all", action="store_true", help="all images, as without it")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the digests only")
    output.add_arguments(parser)


def run_list(arguments: argparse.Namespace) -> int:
    """`podctl images`."""
    if os.geteuid() != 0:
        return _list_asked(arguments)
    store = open_store()
    with told_errors():
        found = _find(store, arguments.images) if arguments.images else catalog.list_entries(store)
        if arguments.quiet:
            output.write(arguments, "".join(f"{entry.record.manifest}\n" for entry in found))
            return 0
        usage = find_image_usage()
        records = [_describe(entry, usage) for entry in found]
    output.print_records(arguments, records, _COLUMNS, "image")
    return 0


def _list_asked(arguments: argparse.Namespace) -> int:
    """As root's side has it; all that is to be seen of the store without root."""
    records = ask_root()
    if arguments.images:
        store, names = Store(LAYOUT), {Name(r["reference"], r["digest"], r["pin"]): r for r in records}
        found = dict.fromkeys(name for text in arguments.images for name in select_names(store, tuple(names), text))
        records = [names[name] for name in found]
    if arguments.quiet:
        output.write(arguments, "".join(f"{record['digest']}\n" for record in records))
    else:
        output.print_records(arguments, records, _COLUMNS, "image")
    return 0


def ask_root() -> list[dict[str, Any]]:
    """What `podctl images --output=json` says in rktd-images@.service. Raises PrivilegeError for who is not of the group."""
    import json
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.connect(LAYOUT.image_socket)
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except PermissionError as error:
            raise PrivilegeError(
                "only root and members of the group rktd may see the images", hint="usermod --append --groups rktd USER"
            ) from error
        except OSError as error:
            hint = "systemctl status rktd-images.socket"
            raise UnavailableError(f"nobody tells what images are here: {(error.strerror or str(error)).lower()}", hint=hint) from error
    if not answer:
        raise UnavailableError("nobody tells what images are here", hint="journalctl -u 'rktd-images@*'")
    found: list[dict[str, Any]] = json.loads(answer)
    return found


def add_rm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="reference or short digest")
    parser.add_argument("-f", "--force", action="store_true", help="though a pod runs from it or names it, or it is pinned")


def run_rm(arguments: argparse.Namespace) -> int:
    """`podctl image rm`: all or nothing. What a running pod has mounted stays until it stops."""
    from rktd_units.images.collect import Spared, find_garbage, remove_garbage

    store = open_store()
    with told_errors(), store.alone():
        entries = _find(store, arguments.images)
        usage = find_image_usage()
        for entry in () if arguments.force else entries:
            _check_unused(entry, usage)
        own = {store.blob_path(d) for entry in entries for d in catalog.list_blobs(store, entry.record)}
        own |= {path for entry in entries for key in entry.record.layer_keys for path in store.layer_files(key)}
        for entry in entries:
            catalog.remove_records(store, entry)
        everything = frozenset(r.reference for r in store.list_images())
        spared = Spared(everything, usage.spared().digests, usage.spared().layer_keys)
        garbage = [item for item in find_garbage(store, spared, time.time() + 1) if item.path in own]
        freed = remove_garbage(garbage)
    for entry in entries:
        print(f"removed {entry.record.reference}", file=sys.stderr)
    print(f"{output.format_bytes(freed)} freed", file=sys.stderr)
    return 0


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="references or short digests; without any, all images")
    parser.add_argument("--fetch", action="store_true", help="fetch again what cannot be repaired from what is here")
    parser.add_argument("--no-repair", action="store_true", help="only tell; but what is damaged is deleted, so that it never runs")
    output.add_arguments(parser)


def run_verify(arguments: argparse.Namespace) -> int:
    """`podctl image verify`: 1 if something is damaged and stays so."""
    store = open_store()
    with told_errors():
        found = _find(store, arguments.images) if arguments.images else catalog.list_entries(store)
        usage = find_image_usage()
        damages: dict[Entry, list[str]] = {}
        for entry in found:
            with store.used():  # of each for itself: to hash all takes long, and gc waits
                if catalog.is_listed(store, entry.record):
                    damages[entry] = _find_damage(store, entry.record)
        with store.used():
            keys = {key for entry in damages for key in entry.record.layer_keys}
            for name, layers in drop_damaged_disks(LAYOUT, keys).items():
                for entry in damages:
                    damages[entry] += [] if layers.isdisjoint(entry.record.layer_keys) else [f"disk {name[:SHORT]}"]
        records = [_tell_damage(store, entry, usage, arguments, damage) for entry, damage in damages.items()]
    output.print_records(arguments, records, _CHECKS, "image")
    return EX_FAILED if any(r["state"] == "damaged" for r in records) else 0


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="reference or short digest")
    parser.add_argument("path", metavar="PATH", help="file or directory to make; - is standard output")
    parser.add_argument(
        "--format", choices=("oci-archive", "oci", "docker-archive"), default="oci-archive", help="oci is a directory; default: oci-archive"
    )


def run_export(arguments: argparse.Namespace) -> int:
    """`podctl image export`."""
    from rktd_units.images.export import OCI_LAYOUT, export_image, write_archive

    store = open_store()
    with told_errors(), store.used():
        record = find_entries(store, arguments.image)[0].record
        if arguments.path != "-":
            export_image(store, record, os.path.abspath(arguments.path), arguments.format)
        elif arguments.format == OCI_LAYOUT:
            raise UsageError("a directory cannot be written to standard output", hint="--format=oci-archive")
        elif sys.stdout.isatty():
            raise UsageError("an archive is nothing for a terminal", hint="name a file, or pipe it somewhere")
        else:
            write_archive(store, record, sys.stdout.buffer, arguments.format)
    return 0


def add_cat_manifest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="reference or short digest")
    parser.add_argument("--config", action="store_true", help="the image's configuration instead")


def run_cat_manifest(arguments: argparse.Namespace) -> int:
    """`podctl image cat-manifest`: its sha256 is the digest."""
    from rktd_units.images.export import damaged_blob
    from rktd_units.images.manifest import DOCUMENT_MAX

    store = open_store()
    with told_errors():
        record = find_entries(store, arguments.image)[0].record
        digest = record.config if arguments.config else record.manifest
        try:
            data = store.read_blob(digest, DOCUMENT_MAX)
        except FileNotFoundError:
            raise damaged_blob(record, digest) from None
    sys.stdout.buffer.write(data)
    return 0


def add_pin_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="reference or short digest")


def run_pin(arguments: argparse.Namespace) -> int:
    """`podctl image pin`."""
    store = open_store()
    with told_errors():
        for entry in _find(store, arguments.images):
            catalog.keep_image(store, entry.record.reference)
    return 0


add_unpin_arguments = add_pin_arguments


def run_unpin(arguments: argparse.Namespace) -> int:
    """`podctl image unpin`."""
    store = open_store()
    with told_errors():
        for entry in _find(store, arguments.images):
            if not catalog.let_go(store, entry.record.reference):
                print(f"podctl: {entry.record.reference}: is not pinned", file=sys.stderr)
    return 0


def _describe(entry: Entry, usage: Usage) -> dict[str, Any]:
    record = entry.record
    pods = usage.pods_of(record)
    return {
        "reference": record.reference,
        "digest": record.manifest,
        "pin": record.pin,
        "config": record.config,
        "bytes": entry.size,
        "fetched": output.format_time(record.time * 1_000_000),
        "lastUsed": output.format_time(int(entry.used * 1_000_000)),
        "verifiedBy": record.verified_by,
        "pinned": entry.kept,
        "pods": [{"name": name, "use": use} for name, use in pods],
        "layers": list(record.layer_keys),
    }


def _check_unused(entry: Entry, usage: Usage) -> None:
    reference, pods = entry.record.reference, usage.pods_of(entry.record)
    if pods:
        name, use = pods[0]
        text = "runs from it" if use == "running" else "has it in its file"
        raise UnavailableError(f"{reference}: is in use: pod {name} {text}", hint="stop the pod or remove its file; or --force")
    if entry.kept:
        raise UnavailableError(f"{reference}: is pinned", hint=f"podctl image unpin {reference}; or --force")


def _find_damage(store: Store, record: ImageRecord) -> list[str]:
    """Hash all of one image. What is damaged is deleted as it is found."""
    damage = [f"blob {d[7 : 7 + SHORT]}" for d in sorted(catalog.list_blobs(store, record)) if not store.has_blob(d)]
    for key in record.layer_keys:
        with store.lock(f"layer-{key}"):
            if not store.hash_layer(key):
                damage.append(f"layer {key[:SHORT]}")
    return damage


def _tell_damage(store: Store, entry: Entry, usage: Usage, arguments: argparse.Namespace, damage: list[str]) -> dict[str, Any]:
    """Have what is damaged made again."""
    record, state = entry.record, "good"
    if damage:
        state = "damaged" if arguments.no_repair else _repair(store, entry, fetch=arguments.fetch)
        for pod in sorted(pod for pod, keys in usage.claims.items() if keys & set(record.layer_keys)):
            print(f"podctl: pod {pod} runs from a damaged image: systemctl restart pod@{pod}", file=sys.stderr)
    return {"reference": record.reference, "digest": record.manifest, "state": state, "damage": damage}


def _repair(store: Store, entry: Entry, *, fetch: bool) -> str:
    from rktd_units.images.acquire import acquire_images
    from rktd_units.images.ready import IF_NOT_PRESENT, NEVER, ImageRequest
    from rktd_units.settings import load_settings

    request = ImageRequest(entry.record.reference, IF_NOT_PRESENT if fetch else NEVER)
    try:
        acquire_images([request], load_settings(LAYOUT.config), store, lambda event: None, anew=True)
    except (ImageError, StateError, TemporaryError) as error:
        hint = "" if fetch else "\n  hint: podctl image verify --fetch"
        print(f"podctl: {error}{hint}", file=sys.stderr)
        return "damaged"
    return "repaired"
