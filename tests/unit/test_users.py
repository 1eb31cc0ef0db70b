# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from rktd_units.errors import ConfigError, ImageError
from rktd_units.users import Account, Accounts, Identity, parse_accounts, resolve_identity

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n7:x:70:71::/seven:/bin/sh\nnohome:x:5:5::rel:/x\n"
GROUP = "root:x:0:\napp:x:1001:\nlogs:x:200:app,other\nwheel:x:10:root,app\n"
ACCOUNTS = parse_accounts(PASSWD, GROUP)


def resolve(user: str = "", accounts: Accounts = ACCOUNTS, **fields: Any) -> Identity:
    given = {"run_as_user": None, "run_as_group": None, "non_root": False, "supplemental": ()}
    return resolve_identity("web", user, accounts, **{**given, **fields})


@pytest.mark.parametrize(
    ("user", "fields", "expected"),
    [
        ("", {}, Identity(0, 0, (10,), "/root")),
        ("root", {}, Identity(0, 0, (10,), "/root")),
        ("app", {}, Identity(1000, 1001, (10, 200), "/home/app")),
        ("1000", {}, Identity(1000, 1001, (10, 200), "/home/app")),
        ("app:logs", {}, Identity(1000, 200, (10,), "/home/app")),
        ("app:5", {}, Identity(1000, 5, (10, 200), "/home/app")),
        ("4242", {}, Identity(4242, 0, (), "/")),
        ("4242:4243", {}, Identity(4242, 4243, (), "/")),
        ("7", {}, Identity(70, 71, (), "/seven")),
        ("nohome", {}, Identity(5, 5, (), "/")),
        ("app:logs", {"run_as_user": 70}, Identity(70, 71, (), "/seven")),
        ("app:logs", {"run_as_group": 3}, Identity(1000, 3, (10, 200), "/home/app")),
        ("gone", {"run_as_user": 9}, Identity(9, 0, (), "/")),
        ("app", {"supplemental": (9, 200, 1001)}, Identity(1000, 1001, (9, 10, 200), "/home/app")),
        ("app", {"non_root": True}, Identity(1000, 1001, (10, 200), "/home/app")),
    ],
    ids=lambda value: str(value) if isinstance(value, str | dict) else "",
)
def test_resolve(user: str, fields: dict[str, Any], expected: Identity) -> None:
    assert resolve(user, **fields) == expected


def test_an_image_without_accounts() -> None:
    assert resolve("", Accounts()) == Identity(0, 0, (), "/")
    assert resolve("12:13", Accounts()) == Identity(12, 13, (), "/")


@pytest.mark.parametrize(
    ("user", "match"),
    [
        ("gone", "app web: the image wants user 'gone', which its /etc/passwd does not have"),
        ("app:gone", "app web: the image wants group 'gone', which its /etc/group does not have"),
        ("65536", "user id 65536 of the image is above 65535"),
        ("0:99999", "group id 99999 of the image is above 65535"),
        ("-1", "user '-1'"),
        ("\u0661", "user '\u0661'"),
    ],
)
def test_refused(user: str, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        resolve(user)


@pytest.mark.parametrize("fields", [{}, {"run_as_user": 0}], ids=["image", "file"])
def test_non_root_forbids_root(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="runAsNonRoot is set, but it would run as root"):
        resolve("root", non_root=True, **fields)


def test_hostile_accounts() -> None:
    lines = [
        "",
        ":x:1:1::/:",
        "a:x:65536:1::/:",
        "b:x:-1:1::/:",
        "c:x:1e1:1::/:",
        "d:x:1",
        "e:x:\u0663:1::/:",
        "f:x:2:2::/a\x1bb:",
        "g:x:3:3::/ok:/s",
    ]
    found = parse_accounts("\n".join(lines), "a:x:70000:\nb:x:1\n:x:1:\nc:x:5:,g,,")
    assert found.users == (Account("f", 2, 2, "/"), Account("g", 3, 3, "/ok"))
    assert found.groups == (("c", 5, ("g",)),)


def test_the_first_entry_counts() -> None:
    twice = parse_accounts("a:x:1:1::/one:/s\na:x:2:2::/two:/s\nb:x:1:9::/three:/s", "")
    assert resolve("a", twice) == Identity(1, 1, (), "/one")
    assert resolve("", twice, run_as_user=1) == Identity(1, 1, (), "/one")
