# SPDX-License-Identifier: Apache-2.0
"""The slow way of ready.py: bring an image's blobs into the store from wherever it is, and have its layers converted.

This side is privileged. It parses only what has the digest that was asked for, and moves only bytes whose digest it has computed itself.
"""

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rktd_units.errors import ImageError, RktdError, TemporaryError, TrustError
from rktd_units.images.ahead import Ahead, Conversion
from rktd_units.images.incoming import Incoming
from rktd_units.images.jobs import Limits, Output, end_jobs, finished_job, remove_stale, require_space, work_directory
from rktd_units.images.manifest import (
    DOCUMENT_MAX,
    Contents,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    check_layers,
    choose_platform,
    parse_config,
    parse_document,
    parse_manifest,
)
from rktd_units.images.progress import CONVERTING, FETCHING, READY, Event, Progress
from rktd_units.images.ready import (
    ALWAYS,
    IF_NOT_PRESENT,
    NEVER,
    SIGNED,
    Image,
    ImageRequest,
    ImageSettings,
    do_dependencies_hold,
    find_image,
    find_record,
    find_rule,
    is_insecure,
    load_image,
    resolve_reference,
)
from rktd_units.images.records import CONVERTER_VERSION, VERSION, ImageRecord, Voucher, chain_ids, layer_key, reference_name
from rktd_units.images.reference import ACI, DIR, DOCKER_ARCHIVE, OCI, OCI_ARCHIVE, REGISTRY, Reference, is_digest, parse_reference
from rktd_units.images.registries import find_access
from rktd_units.images.store import Store, copy_hashed, hash_file, hash_image, open_regular, told_errors
from rktd_units.images.threads import map_threads

if TYPE_CHECKING:
    from rktd_units.images.acis import Found

_SLACK = 64 << 20  # bytes that a job may write beyond the image itself
_STALL = 600.0  # seconds in which a pull brings nothing: longer than all the tries of http.py

Take = Callable[[Sequence[tuple[str, int]]], None]  # digests and size limits of blobs that the store shall have


class _AbsentError(Exception):
    """A blob is not in the store, or was damaged."""


def acquire_images(
    requests: Sequence[ImageRequest], settings: ImageSettings, store: Store, progress: Progress, *, anew: bool = False
) -> list[Image]:
    """The images, in the order of the requests, none of which the fast path could answer. Raises what the first one raises that fails.

    `anew`: what is there is no answer; each blob and layer is looked at again, and those that are missing are made or fetched.
    """
    acquisitions = [_Acquisition(resolve_reference(r.reference, store), r.policy, settings, store, progress) for r in requests]
    store.prepare()
    remove_stale(store)
    return map_threads(lambda acquisition: acquisition.run(anew=anew), acquisitions, lambda: end_jobs(store))


def find_remote_digest(reference: Reference, settings: ImageSettings, store: Store) -> str:
    """The manifest that a registry has under a tag now. Only said by the sandboxed job: to compare, not to rely on."""
    store.prepare()
    access, record = find_access(reference, settings, store.layout), store.find_image(str(reference))
    request = {"reference": str(reference), "known": [record.pin, record.manifest] if record else []}
    with told_errors(), finished_job(store, "find-manifest", request, {}, Limits(_SLACK, 60), secrets=access) as output:
        return _stated_digest(output)


class _Acquisition:
    def __init__(self, reference: Reference, policy: str, settings: ImageSettings, store: Store, progress: Progress) -> None:
        self._reference = reference
        self._source = reference  # with the digest that was signed, once that is known
        self._signed = ""  # the digest that a signature is of, once one was found
        self._policy = policy
        self._settings = settings
        self._store = store
        self._progress = progress
        self._incoming = Incoming(store.layout)
        self._vouchers: dict[Reference, Voucher] = {}  # of ACIs, as far as signatures had to vouch
        self._signed_files: dict[str, str] = {}  # their files, by digest
        self._held = ExitStack()  # Store.used(), from the first blob that is taken on
        self._opened = ExitStack()
        self._is_lacking = False  # something of what was thought to be here
        self._ahead: Ahead | None = None  # what was converted while the image was fetched

    def run(self, *, anew: bool) -> Image:
        # Not of the pin alone: a slow registry must not keep the image of that digest from those who name another.
        lock = f"image-{reference_name(str(self._reference))}"
        with told_errors(), self._store.lock(lock), self._opened, self._held:
            # Another process may have been faster.
            with self._store.used():
                image = None if anew else find_image(self._reference, self._policy, self._settings, self._store)
            if image:
                return image
            verified_by = find_rule(self._reference, self._settings)
            if verified_by == SIGNED:
                return self._make_signed_aci(anew) if self._reference.kind == ACI else self._make_signed(anew)
            return self._make(verified_by)

    def _hold(self) -> None:
        """From here on nothing is collected, until this acquisition ends or waits for the source again."""
        self._held.close()
        self._held.enter_context(self._store.used())

    def _make_signed(self, anew: bool) -> Image:
        """The signature first, then the layers: those of the very digest that was signed."""
        from rktd_units.trust.vouchers import describe_voucher, save_voucher

        voucher = self._find_proof()
        verified_by = describe_voucher(voucher)
        if not self._reference.digest:
            self._source = self._reference._replace(digest=voucher.digest)
        self._signed = voucher.digest
        image = None if anew else self._find_signed(verified_by)
        image = image or self._make(verified_by)
        save_voucher(self._store.layout, voucher)
        return image

    def _find_signed(self, verified_by: str) -> Image | None:
        """The image if the store has what was signed, under whatever name."""
        self._hold()
        record = find_record(self._source, self._policy, self._store)
        image = load_image(self._reference, record, verified_by, self._settings, self._store) if record else None
        if record and image:
            self._check_signed(record.pin, record.manifest)
            self._store.write_image(record._replace(reference=str(self._reference), verified_by=verified_by, time=int(time.time())))
        return image

    def _check_signed(self, pin: str, manifest: str) -> None:
        """Before anything is noted: what is here is what was signed."""
        if self._signed not in ("", pin, manifest):
            raise TrustError(f"{self._reference}: the signature is of {self._signed}, the image is {manifest}")

    def _make_signed_aci(self, anew: bool) -> Image:
        """An ACI's signature is of its file, which is kept with it; where that does not do, it is fetched and verified again."""
        from rktd_units.trust.vouchers import describe_voucher, is_fresh, save_voucher

        lost = ""
        if record := find_record(self._reference, self._policy, self._store):
            try:
                voucher = self._find_detached(self._reference, anew)
            except TrustError as error:
                lost = str(error)
            else:
                if voucher and is_fresh(voucher, self._reference, record.pin):
                    return self._make(describe_voucher(voucher))
        if self._policy == NEVER:
            raise self._refusal(lost or "there is no signature of it here that holds, and its pull policy is Never", "")
        try:
            pin, contents = self._from_source()
        except TrustError:
            raise
        except (ImageError, TemporaryError) as error:
            if lost:  # refused, whatever its place has: not a thing to wait for
                raise self._refusal(f"{lost}\n  another one cannot be looked for: {error}", record.pin if record else "") from error
            raise
        voucher = self._vouchers[self._reference]
        image = self._finish(pin, contents, describe_voucher(voucher))
        save_voucher(self._store.layout, voucher)
        return image

    def _find_detached(self, reference: Reference, anew: bool = False) -> Voucher | None:
        """The voucher of an ACI that holds today; by what is kept, if keys were touched. Raises TrustError if they do not accept that."""
        from rktd_units.trust.decide import renew_detached
        from rktd_units.trust.vouchers import find_voucher, save_voucher

        voucher = find_voucher(self._store.layout, reference)
        if voucher and not (anew and voucher.payload and not self._store.has_blob(voucher.payload)):
            return voucher
        self._hold()
        voucher = renew_detached(self._store, reference)
        if voucher:
            save_voucher(self._store.layout, voucher)
        return voucher

    def _do_dependencies_hold(self, config: ImageConfig) -> bool:
        """As the fast path asks it, and with another look at signatures that are kept."""
        from rktd_units.trust.vouchers import detached_scope, load_voucher

        for text, image_id in config.appc.dependencies if config.appc and self._reference.kind == ACI else ():
            dependency = parse_reference(text)
            if find_rule(dependency, self._settings) != SIGNED:
                continue
            try:
                self._find_detached(dependency)
            except TrustError as error:
                kept = load_voucher(self._store.layout, text)
                if self._policy == NEVER and kept:
                    raise self._refusal(str(error), image_id, dependency, detached_scope(dependency, kept.identity)) from error
                return False
        return do_dependencies_hold(self._reference, config, self._settings, self._store)

    def _make(self, verified_by: str) -> Image:
        pin, contents = self._from_store() or self._from_source()
        try:
            return self._finish(pin, contents, verified_by)
        except _AbsentError:  # a blob that was needed after all was damaged; now it is deleted
            return self._finish(*self._from_source(), verified_by)

    def _finish(self, pin: str, contents: Contents, verified_by: str) -> Image:
        self._check_signed(pin, contents.manifest.digest)
        keys = self._convert(contents)
        record = ImageRecord(
            version=VERSION,
            reference=str(self._reference),
            pin=pin,
            manifest=contents.manifest.digest,
            config=contents.manifest.config.digest,
            layer_keys=keys,
            insecure=is_insecure(self._reference, contents.config, self._settings),
            converter=CONVERTER_VERSION,
            verified_by=verified_by,
            time=int(time.time()),
        )
        # What is verified stays what the pin stands for.
        known = self._store.find_pin(self._reference.kind, pin) if record.insecure else None
        self._store.write_image(record, with_pin=known is None or known.insecure)
        self._progress(Event(READY, record.reference))
        return Image(record.reference, record.manifest, contents.config, keys, verified_by)

    # Where the blobs come from

    def _from_store(self) -> tuple[str, Contents] | None:
        """All that the store can give without the source: layers may be missing, blobs not."""
        record = find_record(self._source, self._policy, self._store)
        if record is None and (not self._source.digest or self._source.kind in (DOCKER_ARCHIVE, ACI)):
            return None
        pin = record.pin if record else self._source.digest
        start = record.manifest if record else pin
        try:
            contents = self._gather(start, self._require)
        except (_AbsentError, FileNotFoundError):
            return None
        return (pin, contents) if self._do_dependencies_hold(contents.config) else None

    def _from_source(self) -> tuple[str, Contents]:
        if self._policy == NEVER:
            raise ImageError(
                f"{self._reference}: is not present, and its pull policy is Never",
                hint="fetch it first, or use the policy IfNotPresent",
            )
        self._held.close()
        self._progress(Event(FETCHING, str(self._reference)))
        source = {
            REGISTRY: self._pull,
            OCI: self._copy_layout,
            DIR: self._copy_layout,
            OCI_ARCHIVE: self._unpack_layout,
            DOCKER_ARCHIVE: self._unpack_archive,
            ACI: self._render_aci,
        }[self._reference.kind]
        try:
            return source()
        except _AbsentError:  # a blob that the fetching job left out, since we have it, was damaged; now it is deleted
            self._held.close()
            self._is_lacking = True
        try:
            return source()
        except _AbsentError as missing:
            raise ImageError(f"{self._reference}: the sandboxed job did not bring {missing}") from None

    def _gather(self, digest: str, take: Take) -> Contents:
        """Have `take` bring what the digest stands for into the store, and give what it is."""
        self._hold()
        take([(digest, DOCUMENT_MAX)])
        document = parse_document(self._store.read_blob(digest, DOCUMENT_MAX), digest)
        if isinstance(document, Index):
            digest = choose_platform(document).digest
            take([(digest, DOCUMENT_MAX)])
            document = parse_manifest(self._store.read_blob(digest, DOCUMENT_MAX), digest)
        take([(document.config.digest, document.config.size)])
        config = parse_config(self._store.read_blob(document.config.digest, DOCUMENT_MAX), document.config.digest)
        check_layers(document, config)
        self._check_total(document.layers)
        if needed := self._needed_layers(document, config):
            take([(layer.digest, layer.size) for layer in needed])
        for descriptor in (document.config, *document.layers):
            size = os.stat(self._store.blob_path(descriptor.digest)).st_size
            if size != descriptor.size:
                raise ImageError(f"manifest {document.digest}: says {descriptor.digest} has {descriptor.size} bytes, it has {size}")
        return Contents(document, config)

    def _needed_layers(self, document: Manifest, config: ImageConfig) -> list[Descriptor]:
        """The layers whose blobs are not there, or must be looked into: they are not converted, or layers above need more than is noted."""
        store, keys = self._store, self._layer_keys(config)
        lacking = [index for index, key in enumerate(keys) if not store.verify_layer(key)]
        below = range(max(lacking, default=0))
        needed = {*lacking, *(index for index in below if index not in lacking and not store.find_entries(keys[index]))}
        return [layer for index, layer in enumerate(document.layers) if index in needed or not self._seems_whole(layer)]

    def _layer_keys(self, config: ImageConfig) -> tuple[str, ...]:
        insecure = is_insecure(self._reference, config, self._settings)
        return tuple(layer_key(chain_id, insecure=insecure) for chain_id in chain_ids(config.diff_ids))

    def _seems_whole(self, descriptor: Descriptor) -> bool:
        try:
            return os.stat(self._store.blob_path(descriptor.digest)).st_size == descriptor.size
        except FileNotFoundError:
            return False

    def _check_total(self, layers: Iterable[Descriptor]) -> None:
        total = sum({layer.digest: layer.size for layer in layers}.values())
        if total > self._settings.max_image_bytes:
            raise ImageError(f"{self._reference}: its layers have {total} bytes, the limit is {self._settings.max_image_bytes}")

    def _require(self, blobs: Sequence[tuple[str, int]]) -> None:
        # Of all, since each damaged one must go.
        missing = [digest for digest, limit in blobs if not self._store.has_blob(digest) and not self._copy_incoming(digest, limit)]
        if missing:
            raise _AbsentError(", ".join(missing))

    def _copy_incoming(self, digest: str, limit: int) -> bool:
        return self._source.kind == REGISTRY and self._incoming.copy(self._store, digest, limit)

    def _copy_layout(self) -> tuple[str, Contents]:
        from rktd_units.images import layout as layouts  # costs 10 ms, which pulls need not pay

        open_blob = layouts.open_directory_blob if self._reference.kind == DIR else layouts.open_blob
        pin = self._reference.digest
        if not pin or self._reference.tag:
            pin = self._find_layout_digest()
            try:
                layouts.check_name(self._reference.tag, pin, self._reference.digest)
            except ImageError as error:
                raise ImageError(f"{self._reference.unpinned}: {error}", hint=error.hint) from error
        with work_directory(self._store) as work:

            def take_one(blob: tuple[str, int]) -> None:
                digest, limit = blob
                if self._store.has_blob(digest):
                    return
                source = open_blob(self._reference.path, digest)
                try:
                    self._store.copy_blob(source, digest, limit, work)
                except ImageError as error:
                    raise ImageError(f"{self._reference.unpinned}: {error}") from error
                finally:
                    os.close(source)

            def take(blobs: Sequence[tuple[str, int]]) -> None:
                map_threads(take_one, dict(blobs).items())

            return pin, self._gather(pin, take)

    def _find_layout_digest(self) -> str:
        from rktd_units.images import layout as layouts

        if self._reference.kind == DIR:
            return layouts.hash_manifest(self._reference.path)
        data = layouts.read_index(self._reference.path)
        with work_directory(self._store) as work:
            path = f"{work}/index.json"
            with open(path, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), 0o644)
            request = {"name": self._reference.tag}
            try:
                with finished_job(self._store, "find-digest", request, {"index.json": path}, Limits(_SLACK, 60), work) as output:
                    return _stated_digest(output)
            except ImageError as error:
                raise ImageError(f"oci:{self._reference.path}: {error}", hint=error.hint) from error

    def _unpack_layout(self) -> tuple[str, Contents]:
        limit = self._settings.max_image_bytes
        with work_directory(self._store) as work:
            path = f"{work}/archive"
            self._copy_archive(path, limit)
            request, limits = {"name": self._reference.tag, "digest": self._reference.digest}, Limits(limit + _SLACK, image=limit, copies=2)
            try:
                with finished_job(
                    self._store, "unpack-layout", request, {"archive": path}, limits, work, report=self._fetching()
                ) as output:
                    pin = self._reference.digest or _stated_digest(output)
                    return pin, self._gather(pin, self._taker(output))
            except ImageError as error:
                raise ImageError(f"{self._reference.unpinned}: {error}", hint=error.hint) from error

    def _unpack_archive(self) -> tuple[str, Contents]:
        """The pin of a docker-archive is the sha256 of its file: nothing inside it names the whole."""
        limit = self._settings.max_image_bytes
        with work_directory(self._store) as work:
            path = f"{work}/archive"
            pin = self._copy_archive(path, limit)
            if self._reference.digest not in ("", pin):
                raise ImageError(f"{self._reference.unpinned}: the file's digest is {pin}, the pinned one is {self._reference.digest}")
            record = self._store.find_pin(DOCKER_ARCHIVE, pin)
            if record is not None:
                try:
                    return pin, self._gather(record.manifest, self._require)
                except (_AbsentError, FileNotFoundError):
                    pass
            limits = Limits(limit + _SLACK, image=limit, copies=2)
            try:
                with finished_job(self._store, "unpack-archive", {}, {"archive": path}, limits, work, report=self._fetching()) as output:
                    return pin, self._gather(_stated_digest(output), self._taker(output))
            except ImageError as error:
                raise ImageError(f"{self._reference.unpinned}: {error}", hint=error.hint) from error

    def _fetching(self) -> tuple[Progress, Event]:
        """What jobs that bring the image's bytes report."""
        return self._progress, Event(FETCHING, str(self._reference))

    def _copy_archive(self, path: str, limit: int) -> str:
        """Copy the archive, so that what is read is what was hashed."""
        source = _open_archive(self._reference)
        try:
            require_space(self._store, min(os.fstat(source).st_size, limit))
            target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                os.fchmod(target, 0o644)
                return "sha256:" + copy_hashed(source, target, limit)[0]
            except ImageError as error:
                raise ImageError(f"{self._reference.unpinned}: {error}") from error
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _pull(self) -> tuple[str, Contents]:
        limit = self._settings.max_image_bytes
        request: dict[str, Any] = {"reference": str(self._source), "known": self._whole_pin()}
        request["have"] = [*self._store.blob_names(), *self._incoming.digests()]
        access = find_access(self._source, self._settings, self._store.layout)
        limits = Limits(limit + _SLACK, _STALL, limit)
        with work_directory(self._store) as work:
            have, converting = frozenset(request["have"]), Event(CONVERTING, str(self._reference))
            plan = functools.partial(self._plan_ahead, have=have)
            ahead = Ahead(self._store, work, self._source.digest, plan, (self._report_ahead, converting))
            self._opened.callback(ahead.close)
            try:
                job = finished_job(self._store, "pull-image", request, ahead.inputs, limits, work, report=self._fetching(), secrets=access)
                with job as output:
                    pin = _stated_digest(output)
                    if self._source.digest not in ("", pin):
                        raise ImageError(f"{self._source}: the registry sent {pin}")
                    ahead.stop()
                    contents = self._gather(pin, self._taker(output, ahead.taken))
            except TemporaryError:  # the next try has less to do
                ahead.stop()
                ahead.settle()
                raise
            self._ahead = ahead
            return pin, contents

    def _whole_pin(self) -> str:
        """What the tag stood for, if that is here: "" asks for all of it that is not."""
        if self._source.digest or self._is_lacking:
            return ""
        with self._store.used():
            record = find_record(self._source, IF_NOT_PRESENT, self._store)
            return record.pin if record and load_image(self._reference, record, "", self._settings, self._store) else ""

    def _render_aci(self) -> tuple[str, Contents]:
        from rktd_units.images.acis import AciSource, rendered_aci

        def secrets() -> dict[str, bytes]:
            return find_access(None, self._settings, self._store.layout)

        limit, is_insecure = self._settings.max_image_bytes, self._settings.is_insecure_transport
        source = AciSource(self._store, limit, is_insecure, secrets, self._fetching())
        with rendered_aci(source, self._reference, self._vouch) as (image_id, dependencies, output):
            contents = self._gather(_stated_digest(output), self._taker(output))
            for digest, path in self._signed_files.items():
                self._store.settle_blob(path, digest)
        if not contents.config.appc or contents.config.appc.dependencies != dependencies:
            raise ImageError(f"{self._reference}: the sandboxed job names other dependencies than those that were proven")
        for reference, voucher in self._vouchers.items():
            from rktd_units.trust.vouchers import save_voucher

            if reference != self._reference:
                save_voucher(self._store.layout, voucher)
        return image_id, contents

    def _vouch(self, reference: Reference, found: "Found") -> bool:
        """Of the ACI and of each that it depends on. Whether a signature had to: then its file is kept, to be asked about again."""
        from rktd_units.trust.decide import UnprovenError, verify_detached
        from rktd_units.trust.vouchers import detached_scope

        if find_rule(reference, self._settings) != SIGNED:
            return False
        name = detached_scope(reference, found.name)
        try:
            voucher = verify_detached(self._store, str(reference), name, found.path, found.image_id, found.signature, found.place)
        except UnprovenError as error:
            raise self._refusal(str(error), found.image_id, reference, name) from error
        self._vouchers[reference] = voucher
        self._signed_files[voucher.payload] = found.path
        return True

    def _taker(self, output: Output, taken: Mapping[str, str] = {}) -> Take:
        """`taken`: paths of blobs that were taken from the job before, by digest."""

        def take_one(blob: tuple[str, int]) -> str:
            """The digest if neither the job nor a member of the group rktd brought it."""
            digest, limit = blob
            if self._store.has_blob(digest):
                return ""
            if digest in taken:
                self._store.settle_blob(taken[digest], digest)
                return ""
            try:
                path, fd = output.open(digest[7:])
            except ImageError:
                return "" if self._copy_incoming(digest, limit) else digest
            try:
                self._store.adopt_blob(path, fd, digest)
            finally:
                os.close(fd)
            return ""

        def take(blobs: Sequence[tuple[str, int]]) -> None:
            missing = [digest for digest in map_threads(take_one, dict(blobs).items()) if digest]  # they are hashed
            if missing:
                raise _AbsentError(", ".join(missing))

        return take

    # Layers

    def _convert(self, contents: Contents) -> tuple[str, ...]:
        """The keys of all layers, lowest first; those that the store lacks are made now."""
        store, keys = self._store, self._layer_keys(contents.config)
        with store.lock(*(f"layer-{key}" for key in keys)):
            wanted = [i for i, key in enumerate(keys) if not store.verify_layer(key, locked=True)]
            if not wanted:
                return keys
            noted = self._find_noted(keys, wanted)
            self._progress(Event(CONVERTING, str(self._reference)))
            try:
                if not self._adopt_ahead(contents, keys, wanted) and not self._make_layers(contents, keys, wanted, noted):
                    self._make_layers(contents, keys, wanted, {})
            except (ImageError, TemporaryError) as error:
                raise type(error)(f"{self._reference}: {error}", hint=error.hint) from error
        return keys

    def _report_ahead(self, event: Event) -> None:
        """How far the conversion is, once that is all that is waited for."""
        if self._ahead:
            self._progress(event)

    def _find_noted(self, keys: Sequence[str], wanted: Sequence[int]) -> dict[int, str]:
        """What is noted of the layers below those that are wanted, by index: their blobs should not be needed."""
        return {index: path for index in range(wanted[-1]) if index not in wanted and (path := self._store.find_entries(keys[index]))}

    def _plan_ahead(self, contents: Contents, have: frozenset[str]) -> Conversion | None:
        """What can be converted while blobs are still on their way. None if nothing can; then all is judged later."""
        keys = self._layer_keys(contents.config)
        self._check_total(contents.manifest.layers)
        wanted = [index for index, key in enumerate(keys) if not self._store.verify_layer(key)]
        if not wanted:
            return None
        coming = {layer.digest: layer.size for layer in contents.manifest.layers if layer.digest not in have}
        try:
            return self._plan(contents, wanted, self._find_noted(keys, wanted), coming)
        except _AbsentError:
            return None

    def _plan(self, contents: Contents, wanted: Sequence[int], noted: Mapping[int, str], coming: Mapping[str, int] = {}) -> Conversion:
        """The conversion of the layers of the indexes in `wanted`. `noted`: the entries of layers whose blobs should not be needed."""
        store = self._store
        layers, request, inputs = contents.manifest.layers[: wanted[-1] + 1], [], {}
        for index, layer in enumerate(layers):
            name, is_coming = layer.digest[7:], index not in noted and layer.digest in coming
            if index in noted:
                inputs[f"{index}.entries"] = noted[index]
            elif not is_coming:
                if not store.has_blob(layer.digest):
                    raise _AbsentError(layer.digest)
                inputs[name] = store.blob_path(layer.digest)
            entries, diff_id = f"{index}.entries" if index in noted else "", contents.config.diff_ids[index]
            told = {"blob": name, "media_type": layer.media_type, "diff_id": diff_id, "entries": entries}
            request.append({**told, "coming": layer.size if is_coming else 0})
        # That nothing gets smaller when it is unpacked is as good as certain.
        least = sum({layer.digest: layer.size for index, layer in enumerate(layers) if index not in noted}.values())
        limit = self._settings.max_image_bytes
        limits = Limits(limit + _SLACK, image=limit, least=least, others=sum(coming.values()))
        return Conversion(contents, tuple(wanted), {"layers": request, "wanted": list(wanted)}, inputs, limits, coming)

    def _make_layers(self, contents: Contents, keys: Sequence[str], wanted: Sequence[int], noted: Mapping[int, str]) -> bool:
        """Convert the layers of the indexes in `wanted`. False if blobs are needed of which there is only what was noted."""
        plan = self._plan(contents, wanted, noted)
        report = self._progress, Event(CONVERTING, str(self._reference))
        with finished_job(self._store, "convert-layers", plan.request, plan.inputs, plan.limits, report=report) as output:
            if noted and "lacking" in output.value:
                return False
            self._adopt_layers(output, contents, keys, wanted, wanted)
        return True

    def _adopt_ahead(self, contents: Contents, keys: Sequence[str], wanted: Sequence[int]) -> bool:
        """Take what was converted while the image was fetched. False if that does not do."""
        found = self._ahead.result() if self._ahead else None
        if found is None:
            return False
        plan, output = found
        if plan.contents != contents or not set(wanted) <= set(plan.made):
            return False
        self._adopt_layers(output, contents, keys, plan.made, wanted)
        return True

    def _adopt_layers(self, output: Output, contents: Contents, keys: Sequence[str], made: Sequence[int], wanted: Sequence[int]) -> None:
        """Of the layers that were made those that are still wanted; or none, if any is wrong: a layer is made of those below it, too."""
        diff_ids, sizes = contents.config.diff_ids, output.value.get("sizes")
        if not isinstance(sizes, list) or len(sizes) != len(made) or not all(type(size) is int and size >= 0 for size in sizes):
            raise ImageError("the sandboxed job states no sizes")
        with ExitStack() as opened:
            images = [output.open(f"{index}.erofs") for index in made]
            for _, fd in images:
                opened.callback(os.close, fd)
            hashes = map_threads(lambda image: hash_image(image[0][1], image[1]), zip(images, sizes, strict=True))
            for index, size, found in zip(made, sizes, hashes, strict=True):
                place = f"layer {index + 1} of {len(diff_ids)}"
                if found.tar_size != size:
                    raise ImageError(f"{place}: the sandboxed job states a tar of {size} bytes, but its image ends after {found.tar_size}")
                if f"sha256:{found.tar}" != diff_ids[index]:
                    raise ImageError(f"{place}: content is sha256:{found.tar}, but the image says {diff_ids[index]}")

            def adopt(number: int) -> None:
                entries = output.open(f"{made[number]}.entries")
                try:
                    self._store.adopt_layer(*images[number], keys[made[number]], hashes[number], entries)
                finally:
                    os.close(entries[1])

            map_threads(adopt, (number for number, index in enumerate(made) if index in wanted))

    # Trust

    def _find_proof(self) -> Voucher:
        from rktd_units.trust.decide import UnprovenError, find_proof

        try:
            return find_proof(self._reference, self._policy == NEVER, self._policy == ALWAYS, self._store, self._find_signatures)
        except UnprovenError as error:
            raise self._refusal(str(error), error.known) from error
        except TrustError as error:
            raise TrustError(f"{self._reference}: {error}", hint=error.hint) from error

    def _find_signatures(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._progress(Event(FETCHING, str(self._reference)))
        access = find_access(self._reference, self._settings, self._store.layout)
        asked = {"reference": str(self._reference), **request}
        with finished_job(self._store, "find-signatures", asked, {}, Limits(_SLACK, 300), secrets=access) as output:
            return output.value

    def _refusal(self, reason: str, known: str, reference: Reference | None = None, name: str = "") -> TrustError:
        """Names the image, or an ACI that it depends on, what was looked for, and the ways out. `name` is what keys are trusted for."""
        own, config = self._reference, self._store.layout.config
        reference, name = reference or own, name or _scope_name(own)
        trust = f"trust whoever signed it, podctl trust add --prefix {name or 'NAME'} KEYFILE"
        trust += "" if name else ", NAME being that in its manifest"
        if self._settings.requires_signature(str(reference)):
            hint = f"{trust}; or take it out of requireSignature: in {config}"
            return TrustError(f"{reference}: is not verified: requireSignature: in {config} demands a signature, and {reason}", hint=hint)
        known = known or (self._known_digest() if self._policy != NEVER else "")
        if reference != own:
            ways = [f"have its parent name it with imageID {known}"]
        elif known:
            ways = [f"pin what is there now, {reference.unpinned}@{known}"]
        elif reference.kind in (REGISTRY, OCI_ARCHIVE):
            place = f"docker://{reference}" if reference.kind == REGISTRY else str(reference)
            ways = [f"pin it, {reference.unpinned}@DIGEST with DIGEST as `skopeo inspect --format {{{{.Digest}}}} {place}` tells"]
        elif reference.kind == ACI:
            ways = [f"pin it by its image ID, the sha512 of the uncompressed tar, {reference.unpinned}@sha512-..."]
        else:
            ways = [f"pin it, {reference.unpinned}@sha256:..."]
        if reference.kind in (REGISTRY, ACI):
            ways.append(trust)
        ways.append(f"list {reference.name} under insecure: in {config}")
        digest = "the reference has no digest" if reference == own else "its parent has no imageID for it"
        text = f"{reference}: is not verified: {digest}, no prefix under insecure: in {config} covers it, and {reason}"
        return TrustError(text, hint="; or ".join(ways))

    def _known_digest(self) -> str:
        """The digest that the reference stands for now, where that can be told without asking the network; else ""."""
        try:
            if self._reference.kind in (OCI, DIR):
                return self._find_layout_digest()
            if self._reference.kind == DOCKER_ARCHIVE:
                fd = _open_archive(self._reference)
                try:
                    return f"sha256:{hash_file(fd)}"
                finally:
                    os.close(fd)
        except (RktdError, OSError):
            return ""
        record = find_record(self._reference, IF_NOT_PRESENT, self._store)
        return record.pin if record else ""


def _scope_name(reference: Reference) -> str:
    """What keys are trusted for, as far as the reference tells it; "" of an ACI's path."""
    if reference.kind != ACI:
        return reference.name
    return reference.path.partition("://")[2] or ("" if reference.path.startswith("/") else reference.path)


def _open_archive(reference: Reference) -> int:
    try:
        return open_regular(os.path.realpath(reference.path))
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"{reference.unpinned}: there is no such file") from None


def _stated_digest(output: Output) -> str:
    """The digest that the worker states: only a place to look, for whatever is found there is hashed."""
    digest = output.value.get("digest")
    if not isinstance(digest, str) or not is_digest(digest):
        raise ImageError("the sandboxed job states no digest")
    return digest
