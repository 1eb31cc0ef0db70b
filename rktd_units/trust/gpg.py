# SPDX-License-Identifier: Apache-2.0
"""OpenPGP by python-gnupg, in a keyring of its own for each decision: no agent, no dirmngr, no network, no settings of anybody.

Runs in the sandbox, and for the administrator's own key files in podctl. gpg(1), and doc/DETAILS of GnuPG, "Format of the --status-fd
output".
"""

import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import gnupg

from rktd_units.errors import clean_text
from rktd_units.proc import PATH

_OPTIONS = [
    "--no-options",
    "--no-autostart",  # of gpg-agent, dirmngr and keyboxd
    "--disable-dirmngr",
    "--no-auto-key-locate",
    "--no-auto-key-retrieve",
    "--no-auto-key-import",
    "--no-auto-check-trustdb",
    "--trust-model=always",  # which keys are trusted is not gpg's to say
    "--weak-digest=SHA1",
    "--no-secmem-warning",
    "--no-permission-warning",
    "--max-output=1048576",
    "--log-file=/dev/null",  # what is on stderr is the status then, and nothing that a signature could make it say
]
_RESULTS = {
    "GOODSIG": "",
    "EXPSIG": "the signature has expired",
    "EXPKEYSIG": "the key has expired",
    "REVKEYSIG": "the key has been revoked",
    "BADSIG": "the signature does not fit: something was changed after it was made",
    "ERRSIG": "cannot be checked",
}
_MISSING_KEY = "9"  # the reason in ERRSIG
_STATES = {"e": "expired", "r": "revoked", "i": "invalid", "d": "disabled", "n": "invalid"}


class Key(NamedTuple):
    """One public key of a file. `subkeys` are what signatures may be made with, `expires` is by fingerprint: 0 is never."""

    fingerprint: str
    users: tuple[str, ...]
    state: str  # "good", "expired", "revoked", "invalid"
    expires: dict[str, int]


class Signature(NamedTuple):
    """A signature that is good by itself: who is trusted for what is another question."""

    fingerprint: str  # of the primary key
    expires: int  # when the first of signature, key and subkey does; 0 is never


class Verdict(NamedTuple):
    good: tuple[Signature, ...]
    faults: tuple[str, ...]  # one for each signature that is not
    content: bytes  # what was signed, of a signature that holds it; only with a good one


class Keyring:
    """Keys of some files together: a revocation in any of them counts."""

    def __init__(self, home: str) -> None:
        environment = {"PATH": PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "GNUPGHOME": home}
        self._gpg: Any = gnupg.GPG(gnupghome=home, keyring=f"{home}/keys.gpg", options=_OPTIONS, env=environment)

    def add(self, files: Sequence[bytes]) -> list[tuple[str, ...]]:
        """The fingerprints of the primary keys in each file. One may hold only the revocation certificate of a key in another."""
        found = [self._import(data) for data in files]
        return [fingerprints or self._import(data) for fingerprints, data in zip(found, files, strict=True)]

    def _import(self, data: bytes) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._gpg.import_keys(data).fingerprints))

    def keys(self) -> dict[str, Key]:
        """By fingerprint."""
        found = {}
        for entry in self._gpg.list_keys():
            expires = {entry["fingerprint"]: _seconds(entry["expires"])}
            for identifier, _, fingerprint, *_ in entry["subkeys"]:
                expires[fingerprint] = _seconds(entry["subkey_info"][identifier]["expires"])
            users = tuple(clean_text(user, 200) for user in entry["uids"])
            found[entry["fingerprint"]] = Key(entry["fingerprint"], users, _STATES.get(entry["trust"], "good"), expires)
        return found

    def export(self, fingerprint: str) -> str:
        """The armored key."""
        return str(self._gpg.export_keys(fingerprint))

    def verify(self, signature: bytes, data: str = "") -> Verdict:
        """Every signature of the bytes: over the file `data`, or, without one, over the content that they hold (binary, not clear text)."""
        if not data and not signature[:1] >= b"\x80":
            return Verdict((), ("is not a binary OpenPGP message",), b"")
        stream = io.BytesIO(signature)
        result = self._gpg.verify_file(stream, data) if data else self._gpg.verify_file(stream, extra_args=["--output", "-"])
        good, faults = self._judge(parse_status(result.stderr))
        return Verdict(good, faults, bytes(result.data or b"") if good and not data else b"")

    def _judge(self, groups: "list[dict[str, list[str]]]") -> tuple[tuple[Signature, ...], tuple[str, ...]]:
        keys = self.keys()
        good, faults = [], []
        for group in groups:
            fault = find_fault(group)
            valid = group.get("VALIDSIG", [])
            if not fault and (len(valid) < 10 or valid[9] not in keys):
                fault = "gpg does not say which key made it"
            if fault:
                faults.append(fault)
                continue
            expires = keys[valid[9]].expires
            ends = [int(valid[3]), expires[valid[9]], expires.get(valid[0], 0)]
            good.append(Signature(valid[9], min((end for end in ends if end), default=0)))
        return tuple(good), tuple(faults)


def parse_status(text: str) -> list[dict[str, list[str]]]:
    """The status lines of each signature by keyword. None at all when the message as a whole is not what it should be."""
    lines = [line.split(" ")[1:] for line in text.split("\n") if line.startswith("[GNUPG:] ")]
    words = [line[0] for line in lines]
    groups: list[dict[str, list[str]]] = []
    if words.count("PLAINTEXT") > 1 or {"UNEXPECTED", "BADARMOR"} & set(words):
        return [{"MALFORMED": []}]
    for keyword, *arguments in lines:
        if keyword == "NEWSIG":
            groups.append({})
        elif groups and keyword in groups[-1] and keyword in (*_RESULTS, "VALIDSIG"):
            groups[-1]["MALFORMED"] = []
        elif groups:
            groups[-1][keyword] = arguments
    return groups or [{"MALFORMED": []}]


def find_fault(group: dict[str, list[str]]) -> str:
    """Why one signature counts for nothing, or ""."""
    results = [keyword for keyword in _RESULTS if keyword in group]
    if len(results) != 1 or "MALFORMED" in group:
        return "is not an OpenPGP signature"
    keyword, arguments = results[0], group[results[0]]
    if keyword == "GOODSIG":
        return ""
    if keyword == "ERRSIG":
        # keyid, algorithms, class, time, reason, and the fingerprint where the signature tells it
        who = arguments[6] if len(arguments) > 6 and arguments[6] != "-" else (arguments or ["?"])[0]
        if len(arguments) > 5 and arguments[5] == _MISSING_KEY:
            return f"made by an unknown key, {clean_text(who, 60)}"
        return f"made by key {clean_text(who, 60)}: {_RESULTS[keyword]}: weak or unknown algorithm"
    who = group.get("VALIDSIG", arguments)[-1 if "VALIDSIG" in group else 0]
    return f"made by key {clean_text(who, 60)}: {_RESULTS[keyword]}"


@contextmanager
def temporary_keyring() -> Iterator[Keyring]:
    """A keyring that nobody else sees, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="rktd-gpg-") as home:  # of mode 0700
        yield Keyring(home)


def _seconds(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
