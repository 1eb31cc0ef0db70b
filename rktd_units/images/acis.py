# SPDX-License-Identifier: Apache-2.0
"""The privileged side of ACIs: fetches one and all that it depends on, proves each by its own hash, and has an image made of them.

A dependency is verified as the image is: by the hash that its parent's manifest has for it, or by itself.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from rktd_units.errors import ImageError, RktdError, clean_text
from rktd_units.images.appc import NAME_MAX, Dependency, check_labels
from rktd_units.images.jobs import Limits, Output, finished_job, require_space, work_directory
from rktd_units.images.progress import Event, Progress
from rktd_units.images.reference import Reference, aci_labels, is_identifier, parse_reference
from rktd_units.images.store import Store, copy_hashed, open_regular

_DEPTH_MAX = 16
_OCCURRENCES_MAX = 200
_SLACK = 64 << 20  # bytes that a job may write beyond the image itself
_SIGNATURE_MAX = 256 << 10  # bytes


class Aci(NamedTuple):
    """An ACI that was proven. `path` is that of its uncompressed tar, in a directory of root's."""

    image_id: str  # "sha512-HEX"
    path: str
    name: str
    dependencies: tuple[Dependency, ...]


class Found(NamedTuple):
    """An ACI as it came: the file, its signature's bytes (b"" if there is none), what it calls itself, and its own hash.

    `place` is where the signature was, or should be, for people.
    """

    path: str
    signature: bytes
    place: str
    name: str
    image_id: str


Vouch = Callable[[Reference, Found], bool]  # whether the file must stay; raises TrustError where nobody vouches


class AciSource(NamedTuple):
    """What this module needs of its caller: where jobs run, how much an image may have, what the fetching job gets."""

    store: Store
    limit: int  # bytes
    is_insecure_transport: Callable[[str], bool]
    secrets: Callable[[], Mapping[str, bytes]]  # for the fetching job: certificates, proxies
    report: tuple[Progress, Event]  # as finished_job wants it


@contextmanager
def rendered_aci(source: AciSource, reference: Reference, vouch: Vouch) -> Iterator[tuple[str, tuple[tuple[str, str], ...], Output]]:
    """The image ID of the ACI, reference and image ID of each that it depends on, and the output of the job that made an OCI image of it.

    `value["digest"]` of that names the manifest.

    `vouch` is asked about every ACI, the first one among them; a file that must stay does so until the context ends. Raises ImageError,
    TrustError, TemporaryError.
    """
    with work_directory(source.store) as keep:
        collection = _Collection(source, keep, vouch)
        top = collection.bring(reference, 0, runs=True)
        order: list[tuple[int, tuple[int, ...]]] = []
        _arrange(collection, top, (), order)
        dependencies = collection.list_dependencies(reference)
        request = {"order": order, "dependencies": dependencies}
        inputs = {f"{i}.tar": aci.path for i, aci in enumerate(collection.acis)}
        with finished_job(source.store, "render-aci", request, inputs, Limits(source.limit + _SLACK, image=source.limit)) as output:
            yield collection.acis[top].image_id, dependencies, output


def _arrange(collection: "_Collection", index: int, above: tuple[int, ...], order: list[tuple[int, tuple[int, ...]]]) -> None:
    """Dependencies first, depth first (ace.md, Filesystem Setup); one that is depended on twice is applied twice."""
    aci = collection.acis[index]
    if index in above:
        raise ImageError(f"{aci.name}: depends on itself")
    if len(above) >= _DEPTH_MAX:
        raise ImageError(f"{aci.name}: its dependencies go deeper than {_DEPTH_MAX} levels")
    for dependency in aci.dependencies:
        _arrange(collection, collection.bring_dependency(dependency), (*above, index), order)
    order.append((index, (*above, index)))
    if len(order) > _OCCURRENCES_MAX:
        raise ImageError(f"{aci.name}: more than {_OCCURRENCES_MAX} dependencies")


class _Collection:
    """The ACIs of one image, each fetched once."""

    def __init__(self, source: AciSource, keep: str, vouch: Vouch) -> None:
        self.acis: list[Aci] = []
        self._source = source
        self._keep = keep
        self._vouch = vouch
        self._indexes: dict[str, int] = {}  # by reference, and by image ID
        self._left = source.limit  # bytes that all of them may have together

    def list_dependencies(self, top: Reference) -> tuple[tuple[str, str], ...]:
        """References and image IDs of all but the one that is asked for."""
        brought = ((name, self.acis[index].image_id) for name, index in self._indexes.items())
        return tuple((name, image_id) for name, image_id in brought if name not in (image_id, str(top)))

    def bring_dependency(self, dependency: Dependency) -> int:
        try:
            return self.bring(parse_reference(dependency.reference), dependency.size, runs=False)
        except RktdError as error:
            raise type(error)(f"dependency {dependency.name}: {error}", hint=error.hint) from error

    def bring(self, reference: Reference, size: int, *, runs: bool) -> int:
        """The index of the ACI. `size` is what its parent says that it has, 0 for nothing."""
        known = self._indexes.get(str(reference), -1)
        if known >= 0:
            return known
        path = f"{self._keep}/{len(self._indexes)}.aci"
        limit = min(size or self._left, self._left)
        is_file = reference.path.startswith("/")
        signature, place = self._copy(reference, path) if is_file else self._fetch(reference, path, limit)
        try:
            found, aci, labels = self._open(path, signature, place)
            if reference.digest not in ("", found.image_id):
                raise ImageError(f"the image ID is {found.image_id}, the pinned one is {reference.digest}")
            if size and size not in (os.stat(path).st_size, os.stat(aci.path).st_size):
                raise ImageError(f"has {os.stat(path).st_size} bytes, and {os.stat(aci.path).st_size} uncompressed; it should have {size}")
            if not is_file and "://" not in reference.path:
                if found.name != reference.path:
                    raise ImageError(f"calls itself {found.name}")
                check_labels(labels, aci_labels(reference), runs=runs)
            else:
                check_labels(labels, {}, runs=runs)
        except ImageError as error:
            raise type(error)(f"{reference.unpinned}: {error}", hint=error.hint) from error
        self._left -= os.stat(aci.path).st_size
        if not self._vouch(reference, found):
            os.unlink(path)
        if aci.image_id not in self._indexes:
            self._indexes[aci.image_id] = len(self.acis)
            self.acis.append(aci)
        self._indexes[str(reference)] = self._indexes[aci.image_id]
        return self._indexes[aci.image_id]

    def _copy(self, reference: Reference, path: str) -> tuple[bytes, str]:
        """Copy the file, so that what is read is what was hashed; gives the signature beside it, and its place."""
        place = f"{reference.path}.asc"
        try:
            source = open_regular(os.path.realpath(reference.path))
        except (FileNotFoundError, NotADirectoryError):
            raise ImageError(f"{reference.unpinned}: there is no such file") from None
        try:
            require_space(self._source.store, min(os.fstat(source).st_size, self._left))
            with open(path, "xb") as target:
                os.fchmod(target.fileno(), 0o644)
                copy_hashed(source, target.fileno(), self._left)
        finally:
            os.close(source)
        with suppress(FileNotFoundError), open(open_regular(os.path.realpath(place)), "rb") as file:
            return file.read(_SIGNATURE_MAX), place
        return b"", place

    def _fetch(self, reference: Reference, path: str, limit: int) -> tuple[bytes, str]:
        """Gives the signature, and its URL."""
        insecure = self._source.is_insecure_transport(str(reference))
        request, limits = {"reference": str(reference), "insecure": insecure}, Limits(limit + _SLACK, image=limit)
        report, secrets = self._source.report, self._source.secrets()
        with finished_job(self._source.store, "fetch-aci", request, {}, limits, report=report, secrets=secrets) as output:
            _adopt(output, "image.aci", path)
            place = clean_text(output.value.get("signature", ""), 300)
            try:
                _, fd = output.open("image.aci.asc")
            except ImageError:
                return b"", place
            with open(fd, "rb") as file:
                return file.read(_SIGNATURE_MAX), place

    def _open(self, path: str, signature: bytes, place: str) -> tuple[Found, Aci, Mapping[str, str]]:
        limits, plain = Limits(self._left + _SLACK, image=self._left), f"{path}.tar"
        with finished_job(self._source.store, "open-aci", {}, {"image.aci": path}, limits, report=self._source.report) as output:
            _adopt(output, "plain.tar", plain)
            name, labels, dependencies = _checked_value(output.value)
        image_id = "sha512-" + _hash(plain)
        return Found(path, signature, place, name, image_id), Aci(image_id, plain, name, dependencies), labels


def _adopt(output: Output, name: str, path: str) -> None:
    """Move a file of a job that has ended, which nobody else can write any more, to a path on the same file system."""
    source, fd = output.open(name)
    try:
        os.fchown(fd, os.geteuid(), os.getegid())
        os.fchmod(fd, 0o644)
        os.rename(source, path)
    finally:
        os.close(fd)


def _checked_size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("no size")
    return value


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


def _checked_value(value: Mapping[str, Any]) -> tuple[str, dict[str, str], tuple[Dependency, ...]]:
    """What the job says of the manifest: hostile input. Names go into messages, and into paths of key files."""
    try:
        labels = {str(k): str(v) for k, v in value["labels"].items()}
        dependencies = tuple(
            Dependency(str(name), tuple((str(k), str(v)) for k, v in pairs), str(image_id), _checked_size(size))
            for name, pairs, image_id, size in value["dependencies"]
        )
        name = str(value["name"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ImageError("the sandboxed job's answer makes no sense") from None
    for text in (name, *labels, *(dependency.name for dependency in dependencies)):
        if len(text) > NAME_MAX or not is_identifier(text):
            raise ImageError(f"the sandboxed job's answer makes no sense: {clean_text(text, 200)!r} is no AC identifier")
    return name, labels, dependencies
