# SPDX-License-Identifier: Apache-2.0
"""Logins to registries, from where people already have them. Privileged side: only the one that is asked for leaves it.

Sources: containers-auth.json(5), docker's config.json, docker-credential-helpers' protocol.
"""

import base64
import binascii
import json
import os
import stat
from typing import Any, NoReturn

from rktd_units.errors import CommandError, ConfigError, clean_text
from rktd_units.images.reference import DEFAULT_HOST
from rktd_units.images.store import read_config
from rktd_units.paths import Layout

_OURS = "/etc/rktd/auth.json"
_CONTAINERS = ("/run/containers/0/auth.json", "/root/.config/containers/auth.json")
_DOCKER_OWN = "/.docker/config.json"
_DOCKER = f"/root{_DOCKER_OWN}"
_HUB_KEY = "https://index.docker.io/v1/"  # what docker calls its hub in its own file, and to helpers
_HUB_NAMES = ("index.docker.io", "registry-1.docker.io")
_HELPER_TIMEOUT = 30.0  # seconds
_TOKEN_USER = "<token>"  # with a helper: its secret is an identity token

Login = tuple[str, str, str, str]  # user, password, identity token, and where it was found; see registry.Credential


def find_credential(host: str, path: str, layout: Layout, secrets: tuple[tuple[str, bytes], ...] = ()) -> Login | None:
    """The login for a repository: of the first file that has one, that of its longest namespace.

    `secrets`: a pod's imagePullSecrets, what to call each and its docker config; they come first, and run no helper. Raises ConfigError for
    a faulty file, or one that others may write: it may name a program to be run.
    """
    for name, data in secrets:
        login = _AuthFile(name, data).find(host, path)
        if login:
            return login
    for file in _list_files(layout):
        if os.path.lexists(file):
            login = _AuthFile(file, _read_file(file), helpers=True).find(host, path)
            if login:
                return login
    return None


def _read_file(path: str) -> bytes:
    data, status = read_config(path)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path}: must be owned by root and not writable by others")
    return data


def _list_files(layout: Layout) -> list[str]:
    """In order of precedence. REGISTRY_AUTH_FILE takes the place of containers' own."""
    named = os.environ.get("REGISTRY_AUTH_FILE", "")
    if os.geteuid() != 0:  # a member of the group rktd, for himself
        home, runtime = os.path.expanduser("~"), os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")
        own = (named,) if named.startswith("/") else (f"{runtime}/containers/auth.json", f"{home}/.config/containers/auth.json")
        return [*own, f"{home}{_DOCKER_OWN}"]
    containers = (named,) if named.startswith("/") else tuple(f"{layout.root}{file}" for file in _CONTAINERS)
    return [f"{layout.root}{_OURS}", *containers, f"{layout.root}{_DOCKER}"]


class _AuthFile:
    """`path`: what to call it. Only with `helpers` the programs count that it names."""

    def __init__(self, path: str, data: bytes, *, helpers: bool = False) -> None:
        self._path = path
        self._is_docker = path.endswith(_DOCKER_OWN)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: is not valid JSON: {error}") from None
        if not isinstance(value, dict):
            self._refuse("must hold one JSON object")
        self._auths = self._table(value, "auths")
        self._helpers = self._table(value, "credHelpers") if helpers else {}
        self._store = value.get("credsStore", "") if helpers else ""

    def find(self, host: str, path: str) -> Login | None:
        """A helper of the host itself comes first, as in containers' and docker's own tools."""
        helper = next((helper for name, helper in self._helpers.items() if self._key(name) == host), None)
        if helper:
            return self._ask_helper(helper, host)
        for key in _list_keys(host, path):
            for name, entry in self._auths.items():
                if self._key(name) == key and (login := self._read_entry(name, entry)):
                    return login
        return self._ask_helper(self._store, host) if self._store else None

    def _key(self, name: str) -> str:
        """A key without the forms that old tools wrote: a scheme, and then a path that means nothing."""
        plain = name.removeprefix("https://").removeprefix("http://")
        host, slash, path = plain.partition("/")
        host = DEFAULT_HOST if host in _HUB_NAMES else host
        return host if plain != name or self._is_docker else f"{host}{slash}{path}".rstrip("/")

    def _read_entry(self, name: str, entry: object) -> Login | None:
        if not isinstance(entry, dict):
            self._refuse(f"auths: {clean_text(name, 100)!r} must be an object")
        token, auth = entry.get("identitytoken") or "", entry.get("auth") or ""
        username, password = entry.get("username") or "", entry.get("password") or ""
        if not all(isinstance(value, str) for value in (token, auth, username, password)):
            self._refuse(f"auths: {clean_text(name, 100)!r}: must hold strings")
        if auth:
            try:
                text = base64.b64decode(auth, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                self._refuse(f"auths: {clean_text(name, 100)!r}: auth must be the base64 form of USER:PASSWORD")
            username, colon, password = text.partition(":")
            if not colon:
                self._refuse(f"auths: {clean_text(name, 100)!r}: auth must be the base64 form of USER:PASSWORD")
            password = password.rstrip("\0")  # docker pads so
        return (username, password, token, self._path) if token or username else None

    def _ask_helper(self, helper: object, host: str) -> Login | None:
        """`docker-credential-NAME get`, run as who we are: its file names it, which nobody else can have written."""
        if not isinstance(helper, str) or not helper.replace("-", "").replace("_", "").isalnum() or not helper.isascii():
            self._refuse(f"bad name of a credential helper, {clean_text(helper, 100)!r}")
        server = _HUB_KEY if host == DEFAULT_HOST and self._is_docker else host
        argv = (f"docker-credential-{helper}", "get")
        home = "/root" if os.geteuid() == 0 else os.path.expanduser("~")
        from rktd_units.proc import run  # 3 ms that most need not pay

        done = run(argv, check=False, input=server.encode(), env={"HOME": home}, timeout=_HELPER_TIMEOUT)
        if done.returncode:
            said = done.stdout.decode("utf-8", "replace").strip()
            if "not found" in said.lower():  # "credentials not found in native keychain"
                return None
            raise CommandError(argv, done.returncode, clean_text(f"{said} {done.stderr}".strip()))
        try:
            value: Any = json.loads(done.stdout)
            username, secret = value["Username"], value["Secret"]
        except (ValueError, TypeError, KeyError, RecursionError):
            username = secret = None
        if not isinstance(username, str) or not isinstance(secret, str):
            raise ConfigError(f"{self._path}: docker-credential-{helper} gave no Username and Secret for {host}")
        source = f"docker-credential-{helper} ({self._path})"
        return ("", "", secret, source) if username == _TOKEN_USER else (username, secret, "", source)

    def _table(self, value: dict[str, Any], key: str) -> dict[str, Any]:
        table = value.get(key) or {}
        if not isinstance(table, dict):
            self._refuse(f"{key}: must be an object")
        return table

    def _refuse(self, reason: str) -> NoReturn:
        raise ConfigError(f"{self._path}: {reason}")


def _list_keys(host: str, path: str) -> list[str]:
    """HOST/A/B, HOST/A, HOST: containers-auth.json(5), FORMAT."""
    parts = [host, *path.split("/")]
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]
