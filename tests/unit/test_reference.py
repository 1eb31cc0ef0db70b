# SPDX-License-Identifier: Apache-2.0
"""Image references."""

import pytest

from rktd_units.errors import ImageError
from rktd_units.images.reference import Reference, aci_labels, parse_reference

D = "sha256:" + "0" * 64
ID = "sha512-" + "0" * 128


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("a/b", "docker.io/a/b:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/a/b", "docker.io/a/b:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("127.0.0.1:5000/repo:tag", "127.0.0.1:5000/repo:tag"),
        ("[::1]:5000/x:y", "[::1]:5000/x:y"),
        (f"ghcr.io/a/b@{D}", f"ghcr.io/a/b@{D}"),
        (f"ghcr.io/a/b:t@{D}", f"ghcr.io/a/b:t@{D}"),
        ("ex.org/a__b/c--d/e.f", "ex.org/a__b/c--d/e.f:latest"),
        ("oci:/srv/img", "oci:/srv/img"),
        (f"oci:/srv/img:v1.0@{D}", f"oci:/srv/img:v1.0@{D}"),
        (f"docker-archive:/srv/a.tar@{D}", f"docker-archive:/srv/a.tar@{D}"),
        (f"oci-archive:/srv/a.tar:one@{D}", f"oci-archive:/srv/a.tar:one@{D}"),
        (f"dir:/srv/a@{D}", f"dir:/srv/a@{D}"),
        ("aci:/srv/a.aci", "aci:/srv/a.aci"),
        (f"aci:/srv/a.aci@{ID}", f"aci:/srv/a.aci@{ID}"),
        (f"aci:https://ex.org:8443/a/b%20c-1.aci@{ID}", f"aci:https://ex.org:8443/a/b%20c-1.aci@{ID}"),
        ("aci:ex.org/a/~b_c", "aci:ex.org/a/~b_c"),
        ("aci:ex.org/a,os=linux,arch=amd64", "aci:ex.org/a,arch=amd64,os=linux"),
        (f"aci:ex.org/a:v1.2.3,os=linux,arch=amd64@{ID}", f"aci:ex.org/a:v1.2.3,arch=amd64,os=linux@{ID}"),
    ],
)
def test_canonical(text: str, canonical: str) -> None:
    assert str(parse_reference(text)) == canonical
    assert parse_reference(canonical) == parse_reference(text)


def test_parts() -> None:
    reference = parse_reference(f"ex.org:443/a/b:t@{D}")
    assert reference == Reference("registry", "ex.org:443", "a/b", "t", D)
    assert (reference.name, reference.unpinned) == ("ex.org:443/a/b", "ex.org:443/a/b:t")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "1 to 4096 printable"),
        ("a\n", "1 to 4096 printable"),
        ("a" * 5000, "1 to 4096 printable"),
        ("Busybox", "bad repository"),
        ("a b", "bad repository"),
        ("a:", "bad tag"),
        ("a:" + "t" * 129, "bad tag"),
        ("a@sha256:abc", "digest must be"),
        ("a@" + D.upper(), "digest must be"),
        ("a@sha512:" + "0" * 128, "digest must be"),
        ("a//b", "bad repository"),
        ("a/../b", "bad repository"),
        ("a___b", "bad repository"),
        ("x.y:70000/z", "bad registry host"),
        ("x.y:/z", "bad registry host"),
        ("-x.y/z", "bad registry host"),
        ("[::1/z:1]/z", "bad (registry host|tag|repository)"),
        ("docker://busybox", "not a form of reference"),
        ("https://ex.org/x", "not a form of reference"),
        ("aci:", "is not the name of an ACI"),
        ("aci:x.aci", "is not the name of an ACI"),
        ("aci:/a:b", "takes no name"),
        ("aci:/a/../b", "must be absolute and plain"),
        (f"aci:/a@{D}", "pinned by sha512-"),
        ("aci:ftp://ex.org/a", "bad URL"),
        ("aci:https://ex.org", "bad URL"),
        ("aci:https://u:p@ex.org/a", "pinned by sha512-"),
        ("aci:https://ex.org/../a", "bad URL"),
        ("aci:https://ex.org/a?b", "bad URL"),
        ("aci:ex.org/A", "is not the name of an ACI"),
        ("aci:ex.org/a:", "bad version or label"),
        ("aci:ex.org/a:1,os", "bad version or label"),
        ("aci:ex.org/a:1,os=l,os=m", "label is repeated"),
        ("aci:ex.org/a,version=1", "called name or version"),
        ("dir:/a:b", "takes no name"),
        ("oci:img", "must be absolute"),
        ("oci:/a/../b", "must be absolute and plain"),
        ("oci:/", "must be absolute and plain"),
        ("oci:/a:", "bad image name"),
        ("oci:/a:b c", "bad image name"),
        ("docker-archive:/a:b", "takes no name"),
    ],
)
def test_refused(text: str, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        parse_reference(text)


def test_labels_of_an_aci() -> None:
    assert aci_labels(parse_reference("aci:ex.org/a:1,os=linux,x=y")) == {"version": "1", "os": "linux", "x": "y"}
    assert aci_labels(parse_reference("aci:ex.org/a,os=linux")) == {"os": "linux"}
    assert aci_labels(parse_reference("aci:ex.org/a")) == {}
