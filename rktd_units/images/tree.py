# SPDX-License-Identifier: Apache-2.0
"""The merged file tree of an image, in memory: layers are applied to it entry by entry, as OCI image-spec layer.md and umoci do it.

Nothing here touches a file. Every path is cleaned and then resolved inside the tree, so that neither `..` nor a symbolic link leaves it.
After each layer the tree knows what that layer changed: `touched` nodes, `removed` names and `opaque` directories.
"""

import stat
import threading
from collections.abc import Iterator

from rktd_units.errors import ImageError, TooLargeError
from rktd_units.images.attributes import DEFAULT_ACL, Attributes, checked_attributes
from rktd_units.images.tarball import HARD_LINK, Content, Member, show_path

MAX_ENTRIES = 2_000_000  # of all layers, implied directories included
MAX_NAME = 255
MAX_PATH = 4095
MAX_LINKS = 40  # symbolic links followed for one path, as in path_resolution(7)
WHITEOUT = b".wh."
OPAQUE = b".wh..opq"  # after WHITEOUT


class Budget:
    """What an image may still take: bytes, and entries."""

    def __init__(self, size: int, entries: int = MAX_ENTRIES) -> None:
        self.limits = size, entries
        self.size, self.entries = self.limits
        self._lock = threading.Lock()  # layers are inflated in parallel

    def take(self, size: int, entries: int = 0) -> None:
        """Raises ImageError once more is taken than there was."""
        with self._lock:
            self.size -= size
            self.entries -= entries
        if self.size < 0:
            raise TooLargeError(f"image is too large: more than {self.limits[0]} bytes unpacked")
        if self.entries < 0:
            raise ImageError(f"image is too large: more than {self.limits[1]} files")


class Inode:
    """What a name stands for; hard links share it."""

    __slots__ = ("attributes", "content", "device", "kind", "layer", "nodes", "target")

    def __init__(self, kind: int, attributes: Attributes, layer: int) -> None:
        self.kind = kind  # stat.S_IF*
        self.attributes = attributes
        self.layer = layer
        self.target = b""  # of a symbolic link
        self.device = (0, 0)
        self.content: Content | None = None
        self.nodes: list[Node] | None = None  # every name that it ever had, once it has two


class Node:
    """A name in a directory. `born`, `upper` and `touched` are layer numbers.

    born: made by it. upper: the last that had an entry at or below it (a whiteout of the same layer spares it).
    touched: the last whose delta holds it; that of a node is that of all its parents, too.
    """

    __slots__ = ("born", "children", "inode", "length", "name", "parent", "touched", "upper")

    def __init__(self, name: bytes, parent: "Node | None", inode: Inode, born: int) -> None:
        self.name = name
        self.parent: Node = parent if parent is not None else self
        self.inode = inode
        self.children: dict[bytes, Node] | None = {} if inode.kind == stat.S_IFDIR else None
        self.length: int = parent.length + 1 + len(name) if parent is not None else 0
        self.born = born
        self.upper = self.touched = -1

    def path(self) -> bytes:
        """The path from the root, without a slash before it; empty for the root."""
        names = []
        node = self
        while node.parent is not node:
            names.append(node.name)
            node = node.parent
        return b"/".join(reversed(names))

    def is_alive(self) -> bool:
        """Whether the tree still has it: removed nodes are only cut off."""
        node = self
        while node.parent is not node:
            if node.parent.children is None or node.parent.children.get(node.name) is not node:
                return False
            node = node.parent
        return True


class Tree:
    """The root file system after the layers applied so far."""

    def __init__(self, budget: Budget, *, replaces: bool = False) -> None:
        """`replaces`: where a layer wants a directory, what else a lower one has there gives way, links to directories too (appc)."""
        self.budget = budget
        self.replaces = replaces
        self.layer = -1
        self.root = Node(b"", None, Inode(stat.S_IFDIR, Attributes(0o755, 0, 0, 0), 0), 0)
        self.removed: dict[Node, set[bytes]] = {}  # names of lower layers that this layer removed or replaced
        self.opaque: set[Node] = set()
        self._relinked: set[Inode] = set()
        self._directories: dict[bytes, Node] = {}  # resolved parents
        self._swept: set[Node] = set()  # directories below which this layer's whiteouts have left nothing of lower layers

    def apply(self, members: Iterator[Member]) -> None:
        """Applies one more layer. Raises ImageError for what umoci would refuse and for what cannot be shown by an overlay."""
        self.layer += 1
        self.removed, self.opaque, self._relinked = {}, set(), set()
        self._directories.clear()
        self._swept.clear()
        self._touch(self.root)
        for member in members:
            self.budget.take(0, 1)
            self._add(member)
        for inode in self._relinked:
            # An overlay does not link across layers: the file is written again, under each of its names.
            inode.nodes = [node for node in inode.nodes or () if node.is_alive()]
            for node in inode.nodes:
                self._touch(node)

    def _add(self, member: Member) -> None:
        parts = clean_path(member.path)
        place = show_path(b"/".join(parts)) or "/"
        for part in (*parts[:-1], *(part.removeprefix(WHITEOUT) for part in parts[-1:])):  # of a whiteout the name that it removes
            if len(part) > MAX_NAME:
                raise ImageError(f"{place}: a name of more than {MAX_NAME} bytes")
        if not parts:
            if member.kind != stat.S_IFDIR:
                raise ImageError(f"{place}: the root must stay a directory")
            self.root.inode = self._new_inode(member, place)
            self.root.upper = self.layer
            return
        name = parts.pop()
        base, missing = self._resolve(parts, place, self.replaces)
        if name.startswith(WHITEOUT):
            self._white_out(base, missing, name[len(WHITEOUT) :], place)
            return
        parent = self._make_parents(base, missing, place)
        self._put(parent, name, member, place)

    def _put(self, parent: Node, name: bytes, member: Member, place: str) -> None:
        assert parent.children is not None
        node = parent.children.get(name)
        if node is not None and node.children is not None and member.kind == stat.S_IFDIR:
            node.inode = self._new_inode(member, place)
        else:
            if node is not None:
                self._remove(node)
            inode = self._link_target(member, place) if member.kind == HARD_LINK else self._new_inode(member, place)
            node = self._attach(parent, name, inode, place)
            if member.kind == HARD_LINK:
                assert inode.nodes is not None
                inode.nodes.append(node)
                if inode.layer < self.layer:
                    self._relinked.add(inode)
        self._touch(node)
        while node.upper != self.layer:
            node.upper = self.layer
            node = node.parent

    def _new_inode(self, member: Member, place: str) -> Inode:
        inode = Inode(member.kind, checked_attributes(member, place), self.layer)
        if member.kind == stat.S_IFLNK:
            if not member.link or len(member.link) > MAX_PATH:
                raise ImageError(f"{place}: a symbolic link's target must have 1 to {MAX_PATH} bytes, got {len(member.link)}")
            inode.target = member.link
        inode.device = member.device
        if (content := member.content) is not None:
            # What the tar stores is paid for already, holes are not.
            self.budget.take(content.size - sum(length for _, _, length in content.segments))
            inode.content = content
        return inode

    def _link_target(self, member: Member, place: str) -> Inode:
        where = f"{place}: hard link to {show_path(member.link)}"
        parts = clean_path(member.link)
        name = parts.pop() if parts else b""
        base, missing = self._resolve(parts, where)
        node = None if missing or base.children is None else base.children.get(name)
        if node is None:
            raise ImageError(f"{where}, which does not exist" if name else f"{where}, which is a directory")
        if node.children is not None:
            raise ImageError(f"{where}, which is a directory")
        if node.inode.nodes is None:
            node.inode.nodes = [node]
        return node.inode

    def changes(self, node: Node, below: bool) -> list[tuple[bytes, Node | None]]:
        """What the last layer says of a directory's names, sorted; None is a deleted one. `below`: lower ones show through there."""
        assert node.children is not None
        names: dict[bytes, Node | None] = {name: child for name, child in node.children.items() if child.touched == self.layer}
        if below:
            names.update((name, None) for name in self.removed.get(node, ()) if name not in node.children)
        return sorted(names.items())

    def covers(self, node: Node, below: bool) -> tuple[bool, bool]:
        """Whether a directory of the last layer needs overlayfs's mark that hides those below it, and whether they show through in it.

        `below`: they do where it lies.
        """
        replaced = node.born == self.layer and node is not self.root
        covers = below and (node in self.opaque or (replaced and node.name in self.removed.get(node.parent, ())))
        return covers, below and not covers and not replaced

    def find(self, path: bytes) -> Inode | None:
        """What a path leads to, links followed."""
        node, missing = self._resolve(clean_path(path), show_path(path))
        return None if missing else node.inode

    def _resolve(self, parts: list[bytes], place: str, replaces: bool = False) -> tuple[Node, list[bytes]]:
        """Follows `parts` inside the root, links included: the last node that exists, and the names that do not."""
        key = b"/".join(parts)
        if (found := self._directories.get(key)) is not None:
            return found, []
        node, missing, links = self.root, list[bytes](), 0
        pending = parts[::-1]
        while pending:
            part = pending.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if missing:
                    missing.pop()
                else:
                    node = node.parent
                continue
            child = node.children.get(part) if node.children is not None and not missing else None
            if child is not None and replaces and child.children is None and child.inode.layer < self.layer:
                self._remove(child)
                child = None
            if child is None:
                missing.append(part)
            elif child.inode.kind == stat.S_IFLNK:
                links += 1
                if links > MAX_LINKS:
                    raise ImageError(f"{place}: more than {MAX_LINKS} symbolic links on the way")
                target = child.inode.target
                if target.startswith(b"/"):
                    node = self.root
                pending += target.split(b"/")[::-1]
            else:
                node = child
        if not missing and node.children is not None:
            self._directories[key] = node
        return node, missing

    def _make_parents(self, node: Node, missing: list[bytes], place: str) -> Node:
        """Makes the directories that the layer does not name, as mkdir(2) of root would: a set-group-id bit is handed down."""
        if node.children is None:
            raise ImageError(f"{place}: {show_path(node.path())} is not a directory")
        for name in missing:
            above = node.inode.attributes
            if any(key == DEFAULT_ACL for key, _ in above.xattrs):
                raise ImageError(f"{place}: the layer leaves out parents below {show_path(node.path())}, which has a default ACL")
            inherits = above.mode & stat.S_ISGID
            attributes = Attributes(0o755 | inherits, 0, above.gid if inherits else 0, 0)
            self.budget.take(0, 1)
            node = self._attach(node, name, Inode(stat.S_IFDIR, attributes, self.layer), place)
        return node

    def _attach(self, parent: Node, name: bytes, inode: Inode, place: str) -> Node:
        node = Node(name, parent, inode, self.layer)
        if len(name) > MAX_NAME or node.length > MAX_PATH:
            raise ImageError(f"{place}: name or path is too long once its links are followed")
        assert parent.children is not None
        parent.children[name] = node
        return node

    def _touch(self, node: Node) -> None:
        while node.touched != self.layer:
            node.touched = self.layer
            node = node.parent

    def _remove(self, node: Node) -> None:
        """Cuts the node and all below it off the tree."""
        parent = node.parent
        assert parent.children is not None
        del parent.children[node.name]
        if node.born < self.layer:
            self.removed.setdefault(parent, set()).add(node.name)
            self._touch(parent)
        if node.inode.kind in (stat.S_IFDIR, stat.S_IFLNK):
            self._directories.clear()

    def _white_out(self, base: Node, missing: list[bytes], name: bytes, place: str) -> None:
        """Removes what lower layers have there, but nothing of this layer; nothing there is no fault. layer.md, Whiteouts."""
        if name in (b"", b".", b".."):
            raise ImageError(f"{place}: a whiteout of nothing")
        if missing or base.children is None:
            return
        if name == OPAQUE:
            # overlayfs does not look at the mark on its root: there each name gets its own.
            if base.born < self.layer and base is not self.root:
                self.opaque.add(base)
                self._touch(base)
            top: Node | None = base
        else:
            top = base.children.get(name)
        pending = [top] if top is not None else []
        while pending:
            node = pending.pop()
            if node.upper != self.layer and not (name == OPAQUE and node is base):
                self._remove(node)
            elif node.children and node.born < self.layer and node not in self._swept:
                self._swept.add(node)
                pending += node.children.values()


def clean_path(path: bytes) -> list[bytes]:
    """The names of a path of a tar, `.` and `..` taken out by the letter, before any link is followed, as umoci does."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part and part != b".":
            parts.append(part)
    return parts
