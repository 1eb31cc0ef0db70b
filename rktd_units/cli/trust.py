# SPDX-License-Identifier: Apache-2.0
"""`podctl trust add | list | remove`: the keys whose signatures count, and for which images."""

import argparse
import os
import sys
from typing import BinaryIO

from rktd_units.cli import output
from rktd_units.errors import PrivilegeError, TrustError, UsageError
from rktd_units.paths import Layout
from rktd_units.trust import admin
from rktd_units.trust.keys import KEY_FILE_MAX

_KINDS = {admin.GPG: "GPG key", admin.COSIGN: "cosign key"}


def add_add_arguments(parser: argparse.ArgumentParser) -> None:
    """--prefix P | --root, --yes, FILE..."""
    _add_scope(parser, required=True)
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("files", nargs="+", metavar="FILE", help="OpenPGP or cosign public keys; - is standard input")


def run_add(arguments: argparse.Namespace) -> int:
    """Shows every key and asks, once; then all of them are trusted."""
    _require_root()
    prefixes = _prefixes(arguments)
    keys = {}
    for name in arguments.files:
        for key in _inspect(name):
            keys[key.fingerprint] = key
    for key in keys.values():
        print(_describe(key))
    scope = ", ".join(prefix or "every name" for prefix in prefixes)
    if not arguments.yes and not _confirm(f"Trust {'this key' if len(keys) == 1 else f'these {len(keys)} keys'} for {scope}?"):
        print("Nothing was changed.")
        return 1
    for prefix in prefixes:
        for key in keys.values():
            print(f"trusted for {prefix or 'every name'}: {admin.add_key(Layout(), prefix, key)}")
    return 0


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of all lists."""
    output.add_arguments(parser)


def run_list(arguments: argparse.Namespace) -> int:
    """Every key, with its state: good, expired, revoked, masked, unreadable."""
    records = [_record(found) for found in admin.list_keys(Layout())]
    columns = (
        output.Column("PREFIX", lambda r: output.format_text(r["prefix"] or "(every name)")),
        output.Column("KIND", lambda r: output.format_text(r["kind"])),
        output.Column("STATE", lambda r: output.paint(r["state"], "green" if r["state"] == admin.GOOD else "red")),
        output.Column("FINGERPRINT", lambda r: output.format_text(r["fingerprint"])),
        output.Column("EXPIRES", lambda r: output.format_text((r["expires"] or "")[:10])),
        output.Column("USER", lambda r: output.format_text(", ".join(r["users"]) or r["fault"])),
        output.Column("FILE", lambda r: output.format_text(r["maskedBy"] or r["path"])),
    )
    output.print_records(arguments, records, columns, "key")
    return 0


def add_remove_arguments(parser: argparse.ArgumentParser) -> None:
    """--prefix P | --root, KEY..."""
    _add_scope(parser, required=False)
    parser.add_argument("keys", nargs="+", metavar="KEY", help="a fingerprint, 8 digits of it at least, or the name of a file")


def run_remove(arguments: argparse.Namespace) -> int:
    """Without a prefix, from all of them. A vendor's key is masked."""
    _require_root()
    for name in arguments.keys:
        for prefix in (*_prefixes(arguments),) or (None,):
            for path in admin.remove_keys(Layout(), prefix, name):
                print(f"{'masked by' if os.path.exists(path) else 'removed'}: {path}")
    return 0


def _add_scope(parser: argparse.ArgumentParser, *, required: bool) -> None:
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--prefix", action="append", default=[], metavar="PREFIX", help="images below HOST[/REPOSITORY], or an ACI's name")
    group.add_argument("--root", action="store_true", help="images of every name")


def _prefixes(arguments: argparse.Namespace) -> list[str]:
    return [""] if arguments.root else list(dict.fromkeys(admin.canonical_prefix(prefix) for prefix in arguments.prefix))


def _require_root() -> None:
    if os.geteuid() != 0:
        raise PrivilegeError("only root may change what is trusted")


def _inspect(name: str) -> list[admin.KeyInfo]:
    try:
        if name == "-":
            data = _read(sys.stdin.buffer)
        else:
            with open(name, "rb") as file:
                data = _read(file)
        return admin.inspect_keys(data)
    except OSError as error:
        raise UsageError(f"{name}: {(error.strerror or str(error)).lower()}") from None
    except TrustError as error:
        raise TrustError(f"{name}: {error}", hint=error.hint) from None


def _read(file: BinaryIO) -> bytes:
    data = file.read(KEY_FILE_MAX + 1)
    if len(data) > KEY_FILE_MAX:
        raise TrustError(f"is larger than {KEY_FILE_MAX >> 10} KiB: too large for keys")
    return data


def _describe(key: admin.KeyInfo) -> str:
    """The fingerprint in groups of four, as people compare it."""
    grouped = " ".join(key.fingerprint[start : start + 4] for start in range(0, len(key.fingerprint), 4))
    lines = [f"{_KINDS[key.kind]} {grouped}", *(f"  {user}" for user in key.users)]
    if key.state != admin.GOOD:
        lines.append(f"  is {key.state}: nothing that it signs counts")
    elif key.expires:
        lines.append(f"  expires {(output.format_time(key.expires * 1_000_000) or '')[:10]}")
    return "\n".join(lines)


def _confirm(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", hint="compare the fingerprints, then say --yes")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _record(found: admin.TrustedKey) -> output.Record:
    key = found.key
    return {
        "prefix": found.prefix or None,
        "kind": key.kind if key else None,
        "fingerprint": key.fingerprint if key else None,
        "users": list(key.users) if key else [],
        "state": found.state,
        "expires": output.format_time(key.expires * 1_000_000) if key else None,
        "path": found.path,
        "vendor": found.vendor,
        "maskedBy": found.masked_by or None,
        "fault": found.fault or None,
    }
