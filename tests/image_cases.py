# SPDX-License-Identifier: Apache-2.0
"""Small images for tests, and a sandbox that is none."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rktd_units.images import manifest, worker
from rktd_units.systemd import Property, ServiceResult


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def dump(value: object) -> bytes:
    return json.dumps(value).encode()


def make_tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


class MadeImage(NamedTuple):
    blobs: dict[str, bytes]  # by digest
    digest: str  # of the manifest
    config: bytes
    layers: tuple[bytes, ...]  # plain tars

    @property
    def manifest(self) -> bytes:
        return self.blobs[self.digest]

    @property
    def diff_ids(self) -> list[str]:
        return [sha256(tar) for tar in self.layers]


def make_image(
    *layers: dict[str, bytes],
    config: dict[str, Any] | None = None,
    architecture: str = "",
    top: dict[str, Any] | None = None,
    diff_ids: Sequence[str] = (),
) -> MadeImage:
    """An OCI image of gzipped layers, for this host unless another architecture is named.

    `top`: more of the configuration document. `diff_ids`: what it says of the layers, if not the truth.
    """
    tars = tuple(make_tar(files) for files in layers or ({"etc/motd": b"hello\n"},))
    document = {
        "os": "linux",
        "architecture": architecture or manifest.host_platform().architecture,
        "config": {"Cmd": ["/bin/sh"]} if config is None else config,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids) or [sha256(t) for t in tars]},
        **(top or {}),
    }
    packed = [gzip.compress(t, mtime=0) for t in tars]
    config_data = dump(document)
    described = dump(
        {
            "schemaVersion": 2,
            "mediaType": manifest.OCI_MANIFEST,
            "config": describe(config_data, manifest.OCI_CONFIG),
            "layers": [describe(p, manifest.LAYER_GZIP) for p in packed],
        }
    )
    blobs = {sha256(data): data for data in (described, config_data, *packed)}
    return MadeImage(blobs, sha256(described), config_data, tars)


def describe(data: bytes, media_type: str, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}


def make_index(*images: tuple[MadeImage, dict[str, str]]) -> bytes:
    """An index of images with their platforms."""
    entries = [describe(image.manifest, manifest.OCI_MANIFEST, platform=platform) for image, platform in images]
    return dump({"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": entries})


def write_layout(path: Path, images: dict[str, MadeImage]) -> Path:
    """An OCI layout directory with images by name."""
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True)
    for image in images.values():
        for digest, data in image.blobs.items():
            (blobs / digest[7:]).write_bytes(data)
    entries = [
        describe(image.manifest, manifest.OCI_MANIFEST, annotations={manifest.REF_NAME: name} if name else {})
        for name, image in images.items()
    ]
    (path / "index.json").write_bytes(dump({"schemaVersion": 2, "manifests": entries}))
    (path / "oci-layout").write_bytes(b'{"imageLayoutVersion": "1.0.0"}')
    return path


def write_archive(path: Path, image: MadeImage) -> Path:
    """A docker-archive, as `docker save` writes it."""
    names = [f"{i}/layer.tar" for i, _ in enumerate(image.layers)]
    listing = dump([{"Config": "config.json", "RepoTags": ["a:b"], "Layers": names}])
    path.write_bytes(make_tar({"config.json": image.config, **dict(zip(names, image.layers, strict=True)), "manifest.json": listing}))
    return path


class Bench:
    """Stands in for systemd: runs the worker in this process."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.result = ServiceResult("success", 1, 0)
        self.noted: list[list[str]] = []  # of each conversion: the layers that were given as entries
        self.lacks = False  # whether entries do not do
        self.sizes: object = ""  # of layers, instead of those that the worker states

    def run_service(self, name: str, properties: Sequence[Property], timeout: float, progress: Callable[[], object]) -> ServiceResult:
        settings = {p.name: p.value for p in properties}
        root = Path(settings["RootDirectory"])
        for source, target, *_ in settings["BindReadOnlyPaths"]:
            if target.startswith("/in/"):
                if Path(source).is_file():
                    shutil.copyfile(source, root / target[1:])
                else:  # a directory that fills, or a pipe
                    (root / target[1:]).symlink_to(source)
        request = json.loads((root / "in/request.json").read_text())
        self.kinds.append(request["kind"])
        if request["kind"] == "convert-layers":
            self.noted.append([layer["entries"] for layer in request["layers"]])
            for layer in request["layers"]:
                assert layer["coming"] or (root / "in" / (layer["entries"] or layer["blob"])).exists()
            if self.lacks and any(self.noted[-1]):
                (root / "out/result.json").write_text('{"value": {"lacking": "a file"}}')
                return self.result
        worker.main(["worker", str(root)])
        if request["kind"] == "convert-layers" and self.sizes != "":
            (root / "out/result.json").write_text(json.dumps({"value": {"sizes": self.sizes}}))
        return self.result
