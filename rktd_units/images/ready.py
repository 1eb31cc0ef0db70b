# SPDX-License-Identifier: Apache-2.0
"""The one call of stage0: from a reference to a verified image whose layers lie in the store.

In every pod start: imports next to nothing, and without a look at the image's source if the image is there (acquire.py does the rest).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rktd_units.errors import ImageError, TemporaryError, TrustError
from rktd_units.images.manifest import DOCUMENT_MAX, ImageConfig, parse_config
from rktd_units.images.records import CONVERTER_VERSION, ImageRecord
from rktd_units.images.reference import ACI, Reference, is_short_name, parse_reference
from rktd_units.images.store import Store, told_errors
from rktd_units.paths import Layout

if TYPE_CHECKING:
    from rktd_units.images.progress import Progress

ALWAYS = "Always"
IF_NOT_PRESENT = "IfNotPresent"
NEVER = "Never"

PINNED = "digest pin"
INSECURE = "insecure"
SIGNED = "signature"
_TRIES = 3  # what was fetched may be collected before it is used


class ImageSettings(Protocol):
    """What of the administrator's settings matters here."""

    @property
    def max_image_bytes(self) -> int: ...

    @property
    def stall_timeout(self) -> int: ...

    def is_insecure(self, reference: str) -> bool: ...

    def is_insecure_transport(self, reference: str) -> bool: ...

    def find_proxies(self) -> Mapping[str, str]: ...

    def list_logins(self) -> tuple[tuple[str, bytes], ...]: ...

    def requires_signature(self, reference: str) -> bool: ...


class Image(NamedTuple):
    """An image that is verified and in the store."""

    reference: str  # canonical
    manifest_digest: str  # "sha256:HEX" of the manifest for this host's platform
    config: ImageConfig
    layer_keys: tuple[str, ...]  # lowest first: Layout.layers/KEY.erofs
    verified_by: str  # PINNED, INSECURE, or the signature and its key, for people


class ImageRequest(NamedTuple):
    reference: str
    policy: str  # ALWAYS, IF_NOT_PRESENT or NEVER, as in Kubernetes


def ready_image(reference: str, policy: str, settings: ImageSettings, layout: Layout, progress: "Progress") -> Image:
    """The image, fetched and converted if it must be. `progress` is told how far it is, where it takes time; from any thread.

    Raises TrustError (nobody vouches for it), ImageError (it cannot be had, or is malformed), TemporaryError, StateError. May be called
    by any number of processes and threads at once, and killed at any point.
    """
    return ready_images([ImageRequest(reference, policy)], settings, layout, progress)[0]


def ready_images(requests: Sequence[ImageRequest], settings: ImageSettings, layout: Layout, progress: "Progress") -> tuple[Image, ...]:
    """As ready_image for several, in their order; those that need work are worked on at the same time."""
    with held_images(requests, settings, layout, progress) as images:
        return images


@contextmanager
def held_images(
    requests: Sequence[ImageRequest], settings: ImageSettings, layout: Layout, progress: "Progress"
) -> Iterator[tuple[Image, ...]]:
    """As ready_images; nothing of them is collected until the context ends. While they are fetched, others may collect."""
    store = Store(layout)
    with ExitStack() as held:
        with told_errors():
            held.enter_context(store.used())
            images = {request: _find_requested(request, settings, store) for request in dict.fromkeys(requests)}
            for _ in range(_TRIES):
                absent = [request for request, image in images.items() if image is None]
                if not absent:
                    break
                held.close()
                from rktd_units.images.acquire import acquire_images

                images.update(zip(absent, acquire_images(absent, settings, store, progress), strict=True))
                held.enter_context(store.used())
                images = {request: image if image and _has_layers(image, store) else None for request, image in images.items()}
            ready = tuple(image for image in (images[request] for request in requests) if image)
            if len(ready) < len(requests):
                raise TemporaryError("the image store: images are removed as fast as they come")
        yield ready


def _find_requested(request: ImageRequest, settings: ImageSettings, store: Store) -> Image | None:
    parsed = resolve_reference(request.reference, store)
    if request.policy not in (ALWAYS, IF_NOT_PRESENT, NEVER):
        raise ImageError(f"{parsed}: bad pull policy {request.policy!r}")
    return find_image(parsed, request.policy, settings, store)


def _has_layers(image: Image, store: Store) -> bool:
    return all(store.verify_layer(key) for key in image.layer_keys)


def resolve_reference(text: str, store: Store) -> Reference:
    """The reference that a pod file's text means: a name without a host may be an alias of registries.conf."""
    if is_short_name(text):
        from rktd_units.images.registries import expand_short_name

        text = expand_short_name(text, store.layout)
    return parse_reference(text)


def find_image(reference: Reference, policy: str, settings: ImageSettings, store: Store) -> Image | None:
    """The image if it is trusted, there, good, and the policy does not ask for a look at its source."""
    verified_by = find_rule(reference, settings)
    record = find_record(reference, policy, store)
    if record is not None and verified_by == SIGNED:
        verified_by = _find_signature(reference, record, store)
    image = None if record is None or not verified_by else load_image(reference, record, verified_by, settings, store)
    return image if image and do_dependencies_hold(reference, image.config, settings, store) else None


def do_dependencies_hold(reference: Reference, config: ImageConfig, settings: ImageSettings, store: Store) -> bool:
    """Whether today, too, somebody vouches for each ACI that an ACI's image is made of. Other images may say what they like."""
    for text, image_id in config.appc.dependencies if config.appc and reference.kind == ACI else ():
        dependency = parse_reference(text)
        if find_rule(dependency, settings) == SIGNED:
            from rktd_units.trust.vouchers import find_voucher

            try:
                voucher = find_voucher(store.layout, dependency)
            except TrustError:  # the slow way tells it
                return False
            if voucher is None or voucher.digest != image_id:
                return False
    return True


def is_insecure(reference: Reference, config: ImageConfig, settings: ImageSettings) -> bool:
    """Whether nobody vouches for the image, or for an ACI that an ACI's image is made of: then its layers are its own."""
    dependencies = config.appc.dependencies if config.appc and reference.kind == ACI else ()
    return any(find_rule(r, settings) == INSECURE for r in (reference, *(parse_reference(text) for text, _ in dependencies)))


def find_rule(reference: Reference, settings: ImageSettings) -> str:
    """What vouches for a reference, PINNED or INSECURE, or SIGNED: then a signature must, which nobody has looked for yet.

    Asked again at every start, since the administrator may have changed his mind.
    """
    if settings.requires_signature(str(reference)):
        return SIGNED
    if reference.digest:
        return PINNED
    return INSECURE if settings.is_insecure(str(reference)) else SIGNED


def _find_signature(reference: Reference, record: ImageRecord, store: Store) -> str:
    """The signature that the image was verified by, if that holds today; else ""."""
    from rktd_units.trust.vouchers import describe_voucher, find_voucher, is_fresh

    try:
        voucher = find_voucher(store.layout, reference)
    except TrustError:  # the slow way tells it
        return ""
    return describe_voucher(voucher) if voucher and is_fresh(voucher, reference, record.pin, record.manifest) else ""


def find_record(reference: Reference, policy: str, store: Store) -> ImageRecord | None:
    """What the reference was resolved to. A pin always means the same, so policy ALWAYS asks nobody about it."""
    if reference.digest:
        return store.find_pin(reference.kind, reference.digest)
    return None if policy == ALWAYS else store.find_image(str(reference))


def load_image(reference: Reference, record: ImageRecord, verified_by: str, settings: ImageSettings, store: Store) -> Image | None:
    """The image of a record; None if a part is not there, changed, made by another converter, or made when nobody vouched for it."""
    if record.converter != CONVERTER_VERSION:
        return None
    try:
        config = parse_config(store.read_blob(record.config, DOCUMENT_MAX), record.config)
    except FileNotFoundError:
        return None
    image = Image(str(reference), record.manifest, config, record.layer_keys, verified_by)
    if (record.insecure and not is_insecure(reference, config, settings)) or not _has_layers(image, store):
        return None
    store.touch_image(record)
    return image
