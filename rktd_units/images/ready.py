# SPDX-License-Identifier: Apache-2.0
"""The one call of stage0: from a reference to a verified image whose layers lie in the store. In every pod start: imports next to nothing."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from rktd_units.images.manifest import ImageConfig
from rktd_units.paths import Layout


class TrustSettings(Protocol):
    def is_insecure(self, reference: str) -> bool: ...


class Image(NamedTuple):
    reference: str  # canonical
    manifest_digest: str  # "sha256:HEX" of the platform's manifest
    config: ImageConfig
    layer_keys: tuple[str, ...]  # lowest first: Layout.layers/KEY.erofs
    verified_by: str  # "digest pin" or "insecure"


class ImageRequest(NamedTuple):
    reference: str
    policy: str  # Always, IfNotPresent, Never


def ready_image(reference: str, policy: str, settings: TrustSettings, layout: Layout, progress: Callable[[str], None]) -> Image:
    raise NotImplementedError


def ready_images(
    requests: Sequence[ImageRequest], settings: TrustSettings, layout: Layout, progress: Callable[[str], None]
) -> tuple[Image, ...]:
    raise NotImplementedError
