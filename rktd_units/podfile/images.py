# SPDX-License-Identifier: Apache-2.0
"""What a pod file may write for `image`: the form alone. What is behind it is stage0's business."""

from rktd_units.errors import ImageError
from rktd_units.fields import Faults, Place, read_text
from rktd_units.images.reference import parse_reference
from rktd_units.strictyaml import Node

_LOCAL = ("oci:", "oci-archive:", "dir:", "docker-archive:")
_REPOSITORY = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-/")
_TAG = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_HEX = frozenset("0123456789abcdef")


def read_image(faults: Faults, node: Node, place: Place) -> str | None:
    """A reference, with a digest or without: [HOST/]REPOSITORY[:TAG], oci: or oci-archive:PATH[:REF], dir: or docker-archive:PATH, aci:...

    The forms of aci: are those of `images.reference`.
    """
    text = read_text(faults, node, place)
    if text is None:
        return None
    message, hint = _check(text)
    if message:
        faults.error(node, place, message, hint)
        return None
    return text


def default_pull_policy(image: str) -> str:
    """Kubernetes': Always for the tag `latest`, said or implied; a digest, a URL or a local file cannot change under a name."""
    name, at, _ = image.partition("@")
    if at or image.startswith((*_LOCAL, "aci:/", "aci:http:", "aci:https:")):
        return "IfNotPresent"
    if name.startswith("aci:"):
        name = name.removeprefix("aci:").partition(",")[0]
    _, _, tag = name.rpartition("/")[2].partition(":")
    return "Always" if tag in ("", "latest") else "IfNotPresent"


def _check(text: str) -> tuple[str, str]:
    """What is wrong, and a hint."""
    if not text or not text.isprintable() or " " in text:
        return f"'{text}' is not an image reference", ""
    if text.startswith("aci:"):
        return _check_aci(text)
    if "://" in text:
        scheme, _, rest = text.partition("://")
        return f"'{text}' is not an image reference", f"write {rest}" if scheme in ("docker", "http", "https") else ""
    name, at, digest = text.partition("@")
    if at and not (digest.startswith("sha256:") and len(digest) == 71 and set(digest[7:]) <= _HEX):
        return f"'{digest}' is not a digest", "sha256: and 64 lower case hexadecimal digits"
    if text.startswith(_LOCAL):
        return _check_local(name)
    return _check_registry(name)


def _check_aci(text: str) -> tuple[str, str]:
    try:
        parse_reference(text)
    except ImageError as error:
        return f"'{text}' is not an image reference: " + str(error).partition(": ")[2], error.hint
    return "", ""


def _check_local(name: str) -> tuple[str, str]:
    kind, _, rest = name.partition(":")
    path, colon, reference = rest.partition(":")
    if not path.startswith("/"):
        return f"the path must be absolute, got '{path}'", ""
    if any(part in ("", ".", "..") for part in path.split("/")[1:]):
        return f"the path must be plain, without '//', '.' and '..', got '{path}'", ""
    if colon and kind in ("docker-archive", "dir"):
        return f"a {kind} takes no name after its path: it must hold one image", ""
    if colon and not (reference.isascii() and reference[:1].isalnum() and all(c.isalnum() or c in "-._:+/" for c in reference)):
        return f"'{reference}' is not the name of an image in a layout", ""
    return "", ""


def _check_registry(name: str) -> tuple[str, str]:
    host, slash, rest = name.partition("/")
    if not (slash and ("." in host or ":" in host or host == "localhost")):
        rest = name
    repository, colon, tag = rest.partition(":")
    if not set(repository) <= _REPOSITORY or not all(repository.split("/")):
        lower = repository.lower()
        return f"'{repository}' is not a repository name", f"it must be lower case: {lower}" if set(lower) <= _REPOSITORY else ""
    if colon and not (0 < len(tag) <= 128 and set(tag) <= _TAG and tag[0] not in ".-"):
        return f"'{tag}' is not a tag", ""
    return "", ""
