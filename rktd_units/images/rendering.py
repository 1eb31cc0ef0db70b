# SPDX-License-Identifier: Apache-2.0
"""From ACIs to an OCI image: each becomes one layer, its dependencies being those below it. Parses hostile files: sandbox only.

The rules are those of appc spec, ace.md, Filesystem Setup: dependencies depth first, each whitelist on its own image and all below it,
and what an image has replaces what was there, links to directories too. Layers come out in canonical form: same files, same bytes.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from rktd_units.errors import ImageError
from rktd_units.images import manifest
from rktd_units.images.appc import AciManifest, parse_aci_manifest
from rktd_units.images.canonical import build_delta, send_delta
from rktd_units.images.inflate import inflate_aci
from rktd_units.images.tarball import HARD_LINK, Member, read_members, show_path
from rktd_units.images.tree import WHITEOUT, Budget, Inode, Node, Tree, clean_path


def open_aci(source: str, target: str, limit: int, progress: Callable[[int, int], None] = lambda done, size: None) -> AciManifest:
    """Write the uncompressed tar of an ACI file as target/plain.tar, and give its manifest. `limit` is in bytes. Raises ImageError.

    `progress` is told how many of the file's bytes are done, and how many there are.
    """
    plain = f"{target}/plain.tar"
    inflate_aci(source, plain, Budget(limit), progress)
    with open(plain, "rb") as file:
        for member in read_members(file.fileno()):
            if clean_path(member.path) == [b"manifest"]:
                return parse_aci_manifest(_read_manifest(member))
    raise ImageError("is no ACI: it has no manifest")


class Occurrence(NamedTuple):
    """An ACI in the order of layers. `number` is its place in the sources; `above` are the places of those whose dependency it is here,

    itself among them.
    """

    number: int
    above: tuple[int, ...]


def render_image(
    sources: Sequence[str], order: Sequence[Occurrence], target: str, limit: int, dependencies: Sequence[tuple[str, str]] = ()
) -> str:
    """Write the image that uncompressed ACIs are together as blobs target/HEX; gives the digest of its manifest.

    `sources` are paths; `order` has the lowest first, and last the one whose app it is; `dependencies` are told in the configuration
    (manifest.Appc). Raises ImageError that says which ACI is wrong.
    """
    budget = Budget(limit)
    with ExitStack() as stack:
        acis = []
        for path in sources:
            file = stack.enter_context(open(path, "rb"))
            acis.append(_Aci(file.fileno(), budget))
        merged = Tree(budget, replaces=True)
        layers = []
        for index, above in order:
            whitelists = [_Whitelist(acis[i].manifest.whitelist) for i in above if acis[i].manifest.whitelist]
            try:
                merged.apply(acis[index].members(whitelists))
                layers.append(_write_layer(merged, target))
            except ImageError as error:
                raise type(error)(f"{acis[index].manifest.name}: {error}", hint=error.hint) from error
        told = [{"reference": reference, "imageID": image_id} for reference, image_id in dependencies]
        return _write_image(acis[order[-1].number].manifest, merged, layers, target, told)


class _Whitelist:
    """Paths that may be, and the directories on the way to them."""

    def __init__(self, paths: frozenset[bytes]) -> None:
        self._paths = paths
        self._parents = {b""}
        for path in paths:
            while (path := path.rpartition(b"/")[0]) not in self._parents:
                self._parents.add(path)

    def allows(self, path: bytes, is_directory: bool) -> bool:
        return path in self._paths or (is_directory and path in self._parents)


class _Aci:
    """One ACI, its root file system as a tree of its own."""

    def __init__(self, spool: int, budget: Budget) -> None:
        self._named: set[Node] = set()  # directories that the tar has an entry for; others are there for what is in them
        self._tree = Tree(budget)
        found: list[AciManifest] = []
        directories: list[bytes] = []

        def rootfs() -> Iterator[Member]:
            for member in read_members(spool):
                top, *parts = clean_path(member.path) or [b""]
                if top == b"rootfs":
                    _check_names(parts, member)
                    if member.kind == stat.S_IFDIR:
                        directories.append(b"/".join(parts))
                    yield member._replace(path=b"/".join(parts), link=_strip_link(member))
                elif top == b"manifest" and not parts:
                    found.append(parse_aci_manifest(_read_manifest(member)))
                elif top:
                    raise ImageError(f"{show_path(member.path)}: an ACI has nothing but its manifest and what is below rootfs")

        self._tree.apply(rootfs())
        if not found:
            raise ImageError("is no ACI: it has no manifest")
        self.manifest = found[-1]
        named = {id(inode) for path in directories if (inode := self._tree.find(path)) is not None}
        self._named = {node for node in _walk(self._tree.root) if node.children is not None and id(node.inode) in named}

    def members(self, whitelists: Sequence[_Whitelist]) -> Iterator[Member]:
        """Entries as a tar would have them, sorted and parents first, of what all whitelists allow."""
        first: dict[Inode, bytes] = {}
        for node in _walk(self._tree.root):
            path, is_directory = node.path(), node.children is not None
            if (is_directory and node not in self._named) or not all(w.allows(path, is_directory) for w in whitelists):
                continue
            inode = node.inode
            if inode.nodes is not None and first.setdefault(inode, path) is not path:
                yield Member(path, HARD_LINK, 0, 0, 0, 0, first[inode], (0, 0), {}, None)
                continue
            mode, uid, gid, mtime, xattrs = inode.attributes
            yield Member(path, inode.kind, mode, uid, gid, mtime, inode.target, inode.device, dict(xattrs), inode.content)


def _walk(root: Node) -> Iterator[Node]:
    pending = [root]
    while pending:
        node = pending.pop()
        yield node
        pending += (node.children[name] for name in sorted(node.children or (), reverse=True)) if node.children else ()


def _check_names(parts: Sequence[bytes], member: Member) -> None:
    for part in parts:
        if part.startswith(WHITEOUT):
            raise ImageError(f"{show_path(member.path)}: a name that begins with .wh. cannot be: in layers it marks a deleted file")


def _strip_link(member: Member) -> bytes:
    if member.kind != HARD_LINK:
        return member.link
    top, *parts = clean_path(member.link) or [b""]
    if top != b"rootfs":
        raise ImageError(f"{show_path(member.path)}: hard link to {show_path(member.link)}, which is not below rootfs")
    return b"/".join(parts)


def _read_manifest(member: Member) -> bytes:
    content = member.content
    if content is None or content.size > manifest.DOCUMENT_MAX:
        raise ImageError(f"manifest: must be a regular file of at most {manifest.DOCUMENT_MAX} bytes")
    data = bytearray(content.size)
    for offset, start, size in content.segments:
        data[offset : offset + size] = os.pread(content.spool, size, start)
    return bytes(data)


def _write_layer(tree: Tree, target: str) -> dict[str, Any]:
    """What the tree took last, without the marks of an overlay: an entry of a layer replaces what is not a directory below it anyway."""
    tree.removed, tree.opaque = {}, set()
    temporary = f"{target}/layer"
    delta = build_delta(tree, target)
    try:
        with open(temporary, "w+b", buffering=0) as file:
            send_delta(delta, file.fileno())
            size = file.tell()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    finally:
        delta.headers.close()
    os.rename(temporary, f"{target}/{digest}")
    return {"mediaType": manifest.LAYER_TAR, "digest": f"sha256:{digest}", "size": size}


def _write_image(aci: AciManifest, tree: Tree, layers: Sequence[Mapping[str, Any]], target: str, told: Sequence[Mapping[str, str]]) -> str:
    here = manifest.host_platform()
    config: dict[str, Any] = dict(aci.config)
    if aci.user:
        config["User"] = f"{_find_owner(tree, aci.user, 'user')}:{_find_owner(tree, aci.group, 'group')}"
    document = {
        "architecture": here.architecture,
        "os": here.os,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        "appc": {"name": aci.name, "dependencies": list(told), **aci.appc},
    }
    described = _write_json(document, manifest.OCI_CONFIG, target)
    top = {"schemaVersion": 2, "mediaType": manifest.OCI_MANIFEST, "config": described, "layers": list(layers)}
    return str(_write_json(top, manifest.OCI_MANIFEST, target)["digest"])


def _write_json(value: Mapping[str, Any], media_type: str, target: str) -> dict[str, Any]:
    data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    digest = manifest.digest_of(data)
    with open(f"{target}/{digest[7:]}", "wb") as file:
        file.write(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _find_owner(tree: Tree, text: str, key: str) -> str:
    """A path stands for the owner of what is there; anything else is looked up when the app starts. aci.md, user and group."""
    if not text.startswith("/"):
        if ":" in text:
            raise ImageError(f"manifest: app: {key} {text[:100]!r} cannot be the name of one")
        return text
    inode = tree.find(text.encode())
    if inode is None:
        raise ImageError(f"manifest: app: {key} is the owner of {text[:200]!r}, which is not there")
    return str(inode.attributes.uid if key == "user" else inode.attributes.gid)
