# SPDX-License-Identifier: Apache-2.0
"""registries.conf, certs.d and auth files: what a reference becomes, and what a job is given."""

import base64
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from rktd_units.errors import CommandError, ConfigError, ImageError
from rktd_units.images.credentials import find_credential
from rktd_units.images.reference import parse_reference
from rktd_units.images.registries import ACCESS, expand_short_name, find_access, list_places
from rktd_units.paths import Layout
from rktd_units.settings import Settings

DIGEST = "@sha256:" + "a" * 64


def write(root: Path, path: str, content: str | dict[str, Any], mode: int = 0o600) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    file.chmod(mode)


def places(root: Path, reference: str, conf: str) -> list[str]:
    write(root, "etc/containers/registries.conf", conf)
    found = list_places(parse_reference(reference), Layout(str(root)))
    return [f"{'insecure ' if place.insecure else ''}{place.host}/{place.path}" for place in found]


MIRRORS = """
[[registry]]
prefix = "ex.org"
location = "ex.org"
[[registry.mirror]]
location = "m1:5000/copy"
insecure = true
[[registry.mirror]]
location = "m2.org"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "m3.org"
pull-from-mirror = "tag-only"
"""


@pytest.mark.parametrize(
    ("reference", "conf", "expected"),
    [
        ("ex.org/a/b:1", "", ["ex.org/a/b"]),
        ("ex.org/a/b:1", MIRRORS, ["insecure m1:5000/copy/a/b", "m3.org/a/b", "ex.org/a/b"]),
        (f"ex.org/a/b{DIGEST}", MIRRORS, ["insecure m1:5000/copy/a/b", "m2.org/a/b", "ex.org/a/b"]),
        (f"ex.org/a/b:1{DIGEST}", MIRRORS, ["insecure m1:5000/copy/a/b", "m2.org/a/b", "ex.org/a/b"]),
        ("other.org/a:1", MIRRORS, ["other.org/a"]),
        ("ex.org.evil/a:1", MIRRORS, ["ex.org.evil/a"]),
        ("ex.org:5000/a:1", MIRRORS, ["ex.org:5000/a"]),
        (
            "ex.org/a:1",
            '[[registry]]\nlocation="ex.org"\nmirror-by-digest-only=true\n[[registry.mirror]]\nlocation="m.org"\n',
            ["ex.org/a"],
        ),
        ("ex.org/a:1", '[[registry]]\nprefix="ex.org"\nlocation="re.al/base/"\ninsecure=true', ["insecure re.al/base/a"]),
        (
            "ex.org/a/b:1",
            '[[registry]]\nprefix="ex.org"\nlocation="one.org"\n[[registry]]\nprefix="ex.org/a"\nlocation="two.org/x"',
            ["two.org/x/b"],
        ),
        ("ex.org/ab:1", '[[registry]]\nprefix="ex.org/a"\nlocation="two.org/x"', ["ex.org/ab"]),
        ("x.ex.org/a:1", '[[registry]]\nprefix="*.ex.org"\ninsecure=true', ["insecure x.ex.org/a"]),
        ("x.y.ex.org/a:1", '[[registry]]\nprefix="*.ex.org"\nlocation="m.org/n"', ["m.org/n/a"]),
        ("ex.org/a:1", '[[registry]]\nprefix="*.ex.org"\nlocation="m.org"', ["ex.org/a"]),
        ("o.org/x.ex.org/a:1", '[[registry]]\nprefix="*.ex.org"\nlocation="m.org"', ["o.org/x.ex.org/a"]),
        (
            "busybox",
            '[[registry]]\nlocation="docker.io"\n[[registry.mirror]]\nlocation="m.org/hub"',
            ["m.org/hub/library/busybox", "docker.io/library/busybox"],
        ),
    ],
)
def test_places(tmp_path: Path, reference: str, conf: str, expected: list[str]) -> None:
    assert places(tmp_path, reference, conf) == expected


def test_blocked(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"^ex.org/a:1: ex.org is blocked$") as caught:
        places(tmp_path, "ex.org/a:1", '[[registry]]\nlocation="ex.org"\nblocked=true')
    assert caught.value.hint == f"by {tmp_path}/etc/containers/registries.conf"


def test_drop_ins(tmp_path: Path) -> None:
    """A later file's table replaces an earlier one of the same prefix."""
    write(
        tmp_path,
        "etc/containers/registries.conf.d/50-a.conf",
        '[[registry]]\nlocation="ex.org"\nblocked=true\n[aliases]\na="x.org/a"\nb="x.org/b"',
    )
    write(tmp_path, "etc/containers/registries.conf.d/60-b.conf", '[[registry]]\nprefix="ex.org"\nlocation="m.org"\n[aliases]\na="y.org/a"')
    write(tmp_path, "etc/containers/registries.conf.d/70-c.txt", "no TOML")
    assert places(tmp_path, "ex.org/a:1", '[aliases]\na="z.org/a"') == ["m.org/a"]
    names = [expand_short_name(text, Layout(str(tmp_path))) for text in ("a:1", f"b{DIGEST}", "c", "ex.org/a", "oci:/a:b", f"b:2{DIGEST}")]
    assert names == ["y.org/a:1", f"x.org/b{DIGEST}", "c", "ex.org/a", "oci:/a:b", f"x.org/b:2{DIGEST}"]


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ("[[registry]\n", "is not valid TOML"),
        ("[registries.search]\nregistries=['a']", "is of version 1"),
        ("registry = 1", r"registry: must be \[\[tables\]\]"),
        ("[[registry]]\nblocked=true", "has neither prefix nor location"),
        ('[[registry]]\nprefix="ex.org"', "'ex.org': has no location"),
        ('[[registry]]\nprefix="a.*.org"\nlocation="b"', "a wildcard stands only at the beginning"),
        ('[[registry]]\nlocation="*.org"', "a wildcard stands only at the beginning"),
        ('[[registry]]\nlocation="https://ex.org"', "without a scheme, got 'https://ex.org'"),
        ('[[registry]]\nlocation="ex.org"\nblocked="yes"', "blocked: must be true or false, got 'yes'"),
        ('[[registry]]\nlocation="ex.org"\n[[registry.mirror]]\nlocation="m"\npull-from-mirror="some"', "got 'some'"),
        ('[[registry]]\nlocation="ex.org"\n[[registry.mirror]]\ninsecure=true', "has no plain location"),
        ('[[registry]]\nprefix="ex.org"\nlocation="A B"', "'A B' does not make a reference of ex.org/a:1"),
        ("[aliases]\na=1", r"\[aliases\]: must be names and references"),
    ],
)
def test_faulty_registries_conf(tmp_path: Path, conf: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"registries.conf: .*{message}"):
        places(tmp_path, "ex.org/a:1", conf)


def auth(login: str) -> dict[str, str]:
    return {"auth": base64.b64encode(login.encode()).decode()}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    return tmp_path


def find(root: Path, host: str = "ex.org", path: str = "a/b") -> str:
    login = find_credential(host, path, Layout(str(root)))
    return "" if login is None else f"{login[0]}:{login[1]}:{login[2]} of {login[3].removeprefix(str(root))}"


def test_secrets_of_the_pod_come_first_and_start_no_program(root: Path) -> None:
    write(root, "etc/rktd/auth.json", {"auths": {"ex.org": auth("file:p")}})
    helper = {"credHelpers": {"ex.org": "evil"}, "credsStore": "evil", "auths": {"other.org": auth("x:y")}}
    own = {"auths": {"https://ex.org/v1/": auth("pod:p"), "ex.org/a": auth("longer:p")}}

    def user(*secrets: object) -> str:
        login = find_credential("ex.org", "a/b", Layout(str(root)), tuple(("imagePullSecret s", json.dumps(s).encode()) for s in secrets))
        return login[0] if login else ""

    assert (user(), user(helper), user(helper, own)) == ("file", "file", "longer")
    with pytest.raises(ConfigError, match="imagePullSecret s: must hold one JSON object"):
        user([])


def test_first_file_wins(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("etc/rktd/auth.json", "run/containers/0/auth.json", "root/.config/containers/auth.json", "root/.docker/config.json")
    assert find(root) == ""
    for number, file in reversed(list(enumerate(files))):
        write(root, file, {"auths": {"ex.org": auth(f"u{number}:p:w")}})
        assert find(root) == f"u{number}:p:w: of /{file}"
    write(root, "etc/rktd/auth.json", {"auths": {"other.org": auth("u:p")}})
    assert find(root) == f"u1:p:w: of /{files[1]}"
    write(root, "mine.json", {"auths": {"ex.org": auth("mine:p")}})
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(root / "mine.json"))
    assert find(root) == "mine:p: of /mine.json"


def test_longest_namespace(root: Path) -> None:
    write(
        root,
        "etc/rktd/auth.json",
        {"auths": {"ex.org": auth("host:"), "ex.org/a": auth("a:"), "ex.org/a/b": auth("ab:"), "ex.org/a/bc": auth("no:")}},
    )
    found = [find(root, path=path).partition(":")[0] for path in ("a/b", "a/c", "c", "a/b/c")]
    assert found == ["ab", "a", "host", "ab"]


@pytest.mark.parametrize(
    ("file", "content", "host", "expected"),
    [
        ("root/.docker/config.json", {"auths": {"https://index.docker.io/v1/": auth("u:p")}}, "docker.io", "u:p:"),
        ("root/.docker/config.json", {"auths": {"https://ex.org/v2/": auth("u:p\0\0")}}, "ex.org", "u:p:"),
        (
            "etc/rktd/auth.json",
            {"auths": {"ex.org": {"identitytoken": "t", **auth("0000:")}}},
            "ex.org",
            "0000::t",
        ),
        ("etc/rktd/auth.json", {"auths": {"docker.io": auth("u:p")}}, "docker.io", "u:p:"),
        ("etc/rktd/auth.json", {"auths": {"ex.org": {"username": "u", "password": "p"}}}, "ex.org", "u:p:"),
        ("etc/rktd/auth.json", {"auths": {"ex.org:5000": auth("u:p")}}, "ex.org", ""),
        ("etc/rktd/auth.json", {"auths": {"ex.org": {}}}, "ex.org", ""),
    ],
)
def test_forms(root: Path, file: str, content: dict[str, Any], host: str, expected: str) -> None:
    write(root, file, content)
    assert find(root, host) == (f"{expected} of /{file}" if expected else "")


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        ("{", 0o600, "is not valid JSON"),
        ("[]", 0o600, "must hold one JSON object"),
        ("{}", 0o620, "must be owned by root and not writable by others"),
        ({"auths": []}, 0o600, ""),
        ({"auths": [1]}, 0o600, "auths: must be an object"),
        ({"auths": {"ex.org": 1}}, 0o600, "'ex.org' must be an object"),
        ({"auths": {"ex.org": {"auth": "%"}}}, 0o600, "'ex.org': auth must be the base64 form of USER:PASSWORD"),
        ({"auths": {"ex.org": {"auth": 1}}}, 0o600, "'ex.org': must hold strings"),
        ({"credHelpers": {"ex.org": "../x"}}, 0o600, "bad name of a credential helper, '../x'"),
    ],
)
def test_faulty_auth_file(root: Path, content: str | dict[str, Any], mode: int, message: str) -> None:
    write(root, "etc/rktd/auth.json", content, mode)
    if not message:
        assert find(root) == ""
        return
    with pytest.raises(ConfigError, match=f"auth.json: .*{message}"):
        find(root)


def test_helpers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = '#!/bin/sh\nread -r server; echo "$server" >>"$0.asked"\ncase $server in\n'
    helper += 'ex.org) echo \'{"ServerURL":"x","Username":"u","Secret":"s"}\';;\ntok.org) echo \'{"Username":"<token>","Secret":"s"}\';;\n'
    helper += 'bad.org) echo "[]";;\nbroken.org) echo "no key ring"; exit 1;;\n'
    helper += "*) echo 'credentials not found in native keychain'; exit 1;;\nesac\n"
    write(root, "bin/docker-credential-test", helper, 0o755)
    monkeypatch.setattr("rktd_units.proc.PATH", f"{root}/bin:/usr/bin:/bin")
    write(root, "root/.docker/config.json", {"auths": {"plain.org": auth("u:p"), "ex.org": {}}, "credsStore": "test"})
    assert find(root) == "u:s: of docker-credential-test (" + str(root) + "/root/.docker/config.json)"
    assert find(root, "tok.org").startswith("::s of")
    assert find(root, "plain.org").startswith("u:p:")
    assert find(root, "docker.io") == ""
    write(root, "root/.docker/config.json", {"credHelpers": {"https://index.docker.io/v1/": "test"}})  # as docker itself has it
    assert find(root, "docker.io") == ""
    asked = (root / "bin/docker-credential-test.asked").read_text().split()
    assert asked == ["ex.org", "tok.org", *["https://index.docker.io/v1/"] * 2]
    write(root, "root/.docker/config.json", {"auths": {"plain.org": auth("u:p"), "ex.org": {}}, "credsStore": "test"})
    with pytest.raises(ConfigError, match="docker-credential-test gave no Username and Secret for bad"):
        find(root, "bad.org")
    with pytest.raises(CommandError, match=r"`docker-credential-test get` exited with 1: no key ring"):
        find(root, "broken.org")
    write(root, "etc/rktd/auth.json", {"auths": {"ex.org": auth("u:p")}, "credHelpers": {"ex.org": "none"}})
    with pytest.raises(CommandError, match="`docker-credential-none get` exited with 127: not found"):
        find(root)


def test_access(root: Path) -> None:
    """A job gets the login and the key of the registries that it asks, and of no others; authorities it gets of all."""
    write(root, "etc/rktd/auth.json", {"auths": {"ex.org": auth("u:p"), "other.org": auth("secret:p"), "docker.io": auth("hub:p")}})
    for host in ("ex.org", "other.org", "docker.io"):
        write(root, f"etc/containers/certs.d/{host}/ca.crt", f"ca of {host}")
        write(root, f"etc/containers/certs.d/{host}/c.cert", f"cert of {host}")
        write(root, f"etc/containers/certs.d/{host}/c.key", f"key of {host}")
    settings = Settings(insecure_transport=("ex.org/a",), proxies={"https": "http://proxy"})
    files = find_access(parse_reference("ex.org/a:1"), settings, Layout(str(root)))
    access = json.loads(files.pop(ACCESS))
    assert access["endpoints"] == [["ex.org", "a", True, ["u", "p", "", f"{root}/etc/rktd/auth.json"]]]
    assert access["proxies"] == {"https": "http://proxy"}
    ours = access["tls"]["ex.org"]
    assert [files[name] for name in (*ours["authorities"], ours["certificate"], ours["key"])] == [
        b"ca of ex.org",
        b"cert of ex.org",
        b"key of ex.org",
    ]
    assert ours["verify"] is False
    assert set(access["tls"]["other.org"]) == {"authorities"}
    assert not any(b"key of other" in content for content in files.values())
    hub = find_access(parse_reference("busybox"), settings, Layout(str(root)))
    access = json.loads(hub[ACCESS])
    assert access["endpoints"][0][:3] == ["registry-1.docker.io", "library/busybox", False]
    assert "key" in access["tls"]["registry-1.docker.io"]
    none = json.loads(find_access(None, settings, Layout(str(root)))[ACCESS])
    assert none["endpoints"] == []
    assert all("key" not in entry for entry in none["tls"].values())


def test_certificates_that_are_only_roots(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of the group rktd does without."""

    listdir = os.listdir

    def refuse(path: str) -> list[str]:
        if "certs.d" in path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    access = json.loads(find_access(parse_reference("ex.org/a:1"), Settings(), Layout(str(root)))[ACCESS])
    assert access["tls"] == {}


def test_certificate_without_key(root: Path) -> None:
    write(root, "etc/docker/certs.d/ex.org/c.cert", "x")
    with pytest.raises(ConfigError, match=r"certs.d/ex.org/c.cert: has no key beside it, c.key"):
        find_access(parse_reference("ex.org/a:1"), Settings(), Layout(str(root)))
