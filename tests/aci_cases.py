# SPDX-License-Identifier: Apache-2.0
"""ACIs for tests."""

import hashlib
import json
from typing import Any

from rktd_units.images.appc import host_labels
from tests.layer_cases import directory, entry, layer


def image_id(aci: bytes) -> str:
    """An ACI's own hash: `aci` is its uncompressed tar."""
    return "sha512-" + hashlib.sha512(aci).hexdigest()


def labels(**values: str) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def aci_manifest(name: str = "ex.org/app", /, **keys: Any) -> dict[str, Any]:
    """A good one for this host; `keys` are those of the app, or of the manifest where only that has them."""
    top: dict[str, Any] = {"acKind": "ImageManifest", "acVersion": "0.8.11", "name": name, "labels": labels(**host_labels())}
    for key in ("acKind", "acVersion", "labels", "dependencies", "pathWhitelist", "annotations"):
        if key in keys:
            top[key] = keys.pop(key)
    if keys.pop("app", True):
        top["app"] = {"exec": ["/bin/app"], "user": "0", "group": "0", **keys}
    return top


def make_aci(manifest: dict[str, Any] | bytes, *entries: bytes, **files: bytes) -> bytes:
    """An uncompressed ACI: entries are as written, `files` go below rootfs."""
    data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    below = [entry(f"rootfs/{path}", data=content) for path, content in files.items()]
    return layer(entry("manifest", data=data), directory("rootfs/"), *entries, *below)
