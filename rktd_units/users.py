# SPDX-License-Identifier: Apache-2.0
"""Who an app runs as: names of the image's own /etc/passwd and /etc/group, which are hostile input, resolved to ids.

Never the host's name service. Rules: OCI image-spec config.md (`User`), Kubernetes SecurityContext, as containerd applies them.
"""

from typing import NamedTuple

from rktd_units.errors import ConfigError, ImageError

ID_MAX = 65535


class Account(NamedTuple):
    """One line of passwd(5)."""

    name: str
    uid: int
    gid: int
    home: str


class Identity(NamedTuple):
    """Ids as in the container; `groups` the supplementary ones, sorted, without the primary one."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


class Accounts(NamedTuple):
    """What the image says: accounts, and per group its gid and members."""

    users: tuple[Account, ...] = ()
    groups: tuple[tuple[str, int, tuple[str, ...]], ...] = ()

    def find_user(self, key: str) -> Account | None:
        """By name, or by number."""
        return next((u for u in self.users if u.name == key or str(u.uid) == key), None)

    def find_group(self, key: str) -> int | None:
        return next((gid for name, gid, _ in self.groups if name == key), None)


def parse_accounts(passwd: str, group: str) -> Accounts:
    """Lines of another form, and ids out of range, are passed over, as the C library does."""
    users, groups = [], []
    for line in passwd.split("\n"):
        fields = line.split(":")
        if len(fields) >= 6 and fields[0] and is_id(fields[2]) and is_id(fields[3]):
            home = fields[5] if fields[5].startswith("/") and fields[5].isprintable() else "/"
            users.append(Account(fields[0], int(fields[2]), int(fields[3]), home))
    for line in group.split("\n"):
        fields = line.split(":")
        if len(fields) >= 4 and fields[0] and is_id(fields[2]):
            groups.append((fields[0], int(fields[2]), tuple(m for m in fields[3].split(",") if m)))
    return Accounts(tuple(users), tuple(groups))


def is_id(text: str) -> bool:
    """A decimal id that a pod's range has."""
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= ID_MAX


def resolve_identity(
    app: str,
    image_user: str,
    accounts: Accounts,
    *,
    run_as_user: int | None,
    run_as_group: int | None,
    non_root: bool,
    supplemental: tuple[int, ...],
) -> Identity:
    """The pod file's numbers, else the image's User ("user[:group]", names or numbers), else root.

    Raises ImageError for a name that the image does not know, ConfigError where runAsNonRoot forbids root.
    """
    user, _, group = image_user.partition(":")
    account: Account | None = None
    if run_as_user is not None:
        uid, group = run_as_user, ""
        account = accounts.find_user(str(uid))
    else:
        account = accounts.find_user(user) if user else accounts.find_user("0")
        uid = account.uid if account else _number(app, user or "0", "user", "/etc/passwd")
    gid = account.gid if account else 0
    if run_as_group is not None:
        gid = run_as_group
    elif group:
        found = accounts.find_group(group)
        gid = found if found is not None else _number(app, group, "group", "/etc/group")
    if non_root and uid == 0:
        hint = "set securityContext.runAsUser, or use an image with another user"
        raise ConfigError(f"app {app}: runAsNonRoot is set, but it would run as root", hint=hint)
    member_of = {g for _, g, members in accounts.groups if account and account.name in members}
    groups = tuple(sorted((member_of | set(supplemental)) - {gid}))
    return Identity(uid, gid, groups, account.home if account else "/")


def _number(app: str, text: str, kind: str, file: str) -> int:
    if is_id(text):
        return int(text)
    if text.isascii() and text.isdigit():
        raise ImageError(f"app {app}: {kind} id {text} of the image is above {ID_MAX}, the last id of a pod")
    raise ImageError(
        f"app {app}: the image wants {kind} {text!r}, which its {file} does not have", hint="set securityContext.runAsUser and runAsGroup"
    )
