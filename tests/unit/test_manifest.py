# SPDX-License-Identifier: Apache-2.0
"""Manifests, indexes and configurations: what is taken, and what is refused by the digest's name."""

import json
from typing import Any

import pytest

from rktd_units.errors import ImageError
from rktd_units.images import manifest
from rktd_units.images.manifest import Platform
from tests.image_cases import dump, make_image, make_index, sha256

HOST = manifest.host_platform()
D = "sha256:" + "0" * 64


def config_of(config: Any = None, **more: Any) -> manifest.ImageConfig:
    value = {"os": "linux", "architecture": HOST.architecture, "config": config, "rootfs": {"type": "layers", "diff_ids": [D]}, **more}
    data = dump(value)
    return manifest.parse_config(data, sha256(data))


def test_good_image() -> None:
    image = make_image({"a": b""}, {"b": b""})
    parsed = manifest.parse_manifest(image.manifest, image.digest)
    config = manifest.parse_config(image.config, parsed.config.digest)
    manifest.check_layers(parsed, config)
    assert len(parsed.layers) == 2
    assert config.cmd == ("/bin/sh",)


def test_other_bytes_are_refused_before_they_are_read() -> None:
    with pytest.raises(ImageError, match=f"{D}: the bytes have another digest"):
        manifest.parse_manifest(b"{", D)


def test_config_fields() -> None:
    config = config_of(
        {
            "Entrypoint": ["/e"],
            "Cmd": None,
            "Env": ["A=1", "B=x=y", "A=2"],
            "User": "7:8",
            "WorkingDir": "srv",
            "Volumes": {"/b": {}, "/a": {}},
            "StopSignal": "quit",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000-8001": {}},
            "Labels": {"k": "v"},
            "Unknown": 1,
        }
    )
    assert config.entrypoint == ("/e",)
    assert config.cmd == ()
    assert config.env == (("A", "2"), ("B", "x=y"))
    assert (config.user, config.working_dir, config.stop_signal) == ("7:8", "/srv", "SIGQUIT")
    assert config.volumes == ("/a", "/b")
    assert config.exposed_ports == ((53, "udp"), (80, "tcp"), (8000, "tcp"), (8001, "tcp"))
    assert config.labels == (("k", "v"),)


def test_null_is_absent() -> None:
    config = config_of(dict.fromkeys(("Entrypoint", "Cmd", "Env", "User", "WorkingDir", "Volumes", "StopSignal", "ExposedPorts", "Labels")))
    assert config == config_of(None)
    assert config.env == ()


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"Env": ["A"]}, "must be NAME=VALUE"),
        ({"Env": ["=x"]}, "must be NAME=VALUE"),
        ({"Env": ["A\nB=x"]}, "must be NAME=VALUE"),
        ({"Env": ["A=\0"]}, "holds a NUL"),
        ({"Env": "A=1"}, "Env must be a list"),
        ({"Cmd": [1]}, r"Cmd\[0\] must be a string"),
        ({"User": 0}, "User must be a string"),
        ({"User": "\ud800"}, "not valid Unicode"),
        ({"Volumes": {"a": {}}}, "absolute paths"),
        ({"Volumes": {"/a/../b": {}}}, "absolute paths"),
        ({"Volumes": ["/a"]}, "Volumes must be an object"),
        ({"ExposedPorts": {"0/tcp": {}}}, "must be PORT/PROTOCOL"),
        ({"ExposedPorts": {"80/icmp": {}}}, "must be PORT/PROTOCOL"),
        ({"ExposedPorts": {"80-70/tcp": {}}}, "must be PORT/PROTOCOL"),
        ({"StopSignal": "a b"}, "is no signal"),
        ({"StopSignal": "65"}, "is no signal"),
        ({"Labels": {"a": 1}}, "a must be a string"),
        ({"Env": [f"A{i}=" for i in range(10_001)]}, "too many"),
        ([], "config must be an object"),
    ],
)
def test_bad_config(config: Any, match: str) -> None:
    with pytest.raises(ImageError, match=f"image configuration sha256:[0-9a-f]+: .*{match}"):
        config_of(config)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"architecture": "m68k"}, "is for 'linux'/'m68k', this host is"),
        ({"os": "windows"}, "is for 'windows'/"),
        ({"os": None}, r"is for ''/"),
        ({"rootfs": None}, "type must be 'layers'"),
        ({"rootfs": {"type": "layers", "diff_ids": ["sha256:x"]}}, "bad diff id"),
    ],
)
def test_bad_config_document(more: dict[str, Any], match: str) -> None:
    with pytest.raises(ImageError, match=match):
        config_of(None, **more)


def changed(**more: Any) -> bytes:
    return dump({**json.loads(make_image().manifest), **more})


LAYER = json.loads(make_image().manifest)["layers"][0]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        (b" " * (manifest.DOCUMENT_MAX + 1), "larger than"),
        (b"{}", "schemaVersion must be"),
        (changed(schemaVersion=1), "schema version 2"),
        (changed(manifests=[]), "both manifests and layers"),
        (changed(mediaType=manifest.OCI_INDEX), "is not that of an image manifest"),
        (changed(layers=[]), "has no layers"),
        (changed(layers=None), "no config or no layers"),
        (changed(layers=[LAYER] * 501), "at most 500"),
        (changed(layers=[{**LAYER, "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}]), "foreign layer"),
        (changed(layers=[{**LAYER, "mediaType": "text/html"}]), "'text/html' is not supported"),
        (changed(layers=[{**LAYER, "size": -1}]), "size must be a whole number"),
        (changed(layers=[{**LAYER, "size": True}]), "size must be a whole number"),
        (changed(layers=[{**LAYER, "digest": "sha256:../../etc"}]), "bad digest"),
        (changed(layers=[1]), r"layers\[0\] must be an object"),
        (changed(config={**LAYER, "mediaType": "application/vnd.cncf.helm.config.v1+json"}), "not that of a container image"),
        (changed(config={**LAYER, "mediaType": manifest.OCI_CONFIG, "size": 1 << 40}), "config: is larger"),
        (dump({"schemaVersion": 2, "manifests": []}), "is an index of manifests"),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else "",
)
def test_bad_manifest(data: bytes, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        manifest.parse_manifest(data, sha256(data))


def test_layer_counts_must_agree() -> None:
    image = make_image()
    parsed = manifest.parse_manifest(image.manifest, image.digest)
    with pytest.raises(ImageError, match="has 1 layers, its configuration 0"):
        manifest.check_layers(parsed, manifest.ImageConfig("linux", "amd64", ()))


def test_docker_media_types() -> None:
    data = changed(mediaType=manifest.DOCKER_MANIFEST, layers=[{**LAYER, "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip"}])
    assert manifest.parse_manifest(data, sha256(data)).layers[0].media_type == manifest.LAYER_GZIP


ARM = Platform("linux", "arm", ("v7", "v6", "v5"))


def test_platform_choice() -> None:
    one, two, three = make_image({"1": b""}), make_image({"2": b""}), make_image({"3": b""})
    data = make_index(
        (one, {"os": "linux", "architecture": "arm", "variant": "v6"}),
        (two, {"os": "linux", "architecture": "arm", "variant": "v7"}),
        (three, {"os": "linux", "architecture": "amd64"}),
    )
    index = manifest.parse_index(data, sha256(data))
    assert manifest.choose_platform(index, ARM).digest == two.digest
    assert manifest.choose_platform(index, Platform("linux", "amd64", ("v1",))).digest == three.digest
    with pytest.raises(ImageError, match="no image for linux/s390x; it has: linux/amd64, linux/arm/v6, linux/arm/v7"):
        manifest.choose_platform(index, Platform("linux", "s390x", ()))


def test_too_new_variant_is_not_chosen() -> None:
    data = make_index((make_image(), {"os": "linux", "architecture": "amd64", "variant": "v4"}))
    with pytest.raises(ImageError, match="no image for linux/amd64"):
        manifest.choose_platform(manifest.parse_index(data, sha256(data)), Platform("linux", "amd64", ("v1",)))
