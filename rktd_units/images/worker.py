# SPDX-License-Identifier: Apache-2.0
"""What runs inside the sandbox of a job: reads BASE/in, writes BASE/out, has no privileges and nothing to steal.

BASE/in/request.json says what to do; BASE/out/result.json is {"value": ...} or {"error": {"kind", "text", "hint"}}; the kind is permanent,
temporary or large.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from rktd_units.errors import PASSING, CommandError, ImageError, RktdError, TemporaryError, TooLargeError
from rktd_units.imports import placeholders

# In BASE/in of a job that fetches while another one converts: a pipe for the names of blobs that are whole, one that tells the other job of
# them, in lines of HEX, and the directory in which it finds them.
WHOLE, ARRIVALS, BLOBS = "whole", "arrivals", "blobs"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_EXPECTED = (*_FULL, errno.EFBIG)


def main(argv: list[str]) -> int:
    """argv[1], if there is one, is BASE instead of the root directory. The exit status is 0 if a result was written."""
    base = argv[1].rstrip("/") if len(argv) > 1 else ""
    with open(f"{base}/in/request.json", encoding="utf-8") as file:
        request = json.load(file)
    result = run_request(request, f"{base}/in", f"{base}/out")
    with open(f"{base}/out/result.json", "w", encoding="utf-8") as file:
        json.dump(result, file)
    return 0


def run_request(request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    """Do one job; our own errors become part of the result, others are bugs and end the process."""
    try:
        return {"value": _JOBS[request["kind"]](request, source, target)}
    except (RktdError, MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _EXPECTED:
            import traceback

            traceback.print_exc()  # to the journal: the sandbox forbids what the job needs, or a bug
        return {"error": _describe(error)}


def _describe(error: BaseException) -> dict[str, str]:
    if isinstance(error, OSError):
        kind = "temporary" if error.errno in PASSING else "permanent"
        if error.errno == errno.EFBIG:
            return {"kind": "large", "text": "a file of it is larger than the limit for images", "hint": ""}
        return {"kind": kind, "text": f"{error.strerror}: {os.path.basename(str(error.filename or ''))}", "hint": ""}
    if isinstance(error, CommandError) and os.strerror(errno.ENOSPC) in error.stderr:
        return {"kind": "temporary", "text": str(error), "hint": ""}
    kind = "temporary" if isinstance(error, TemporaryError) else "large" if isinstance(error, TooLargeError) else "permanent"
    return {"kind": kind, "text": str(error) or type(error).__name__, "hint": getattr(error, "hint", "")}


def _limit(request: dict[str, Any]) -> int:
    """Bytes that the image may have: as many as it may, and as there is space for."""
    return min(int(request["limit"]), int(request["space"]))


def _measure(target: str, name: str) -> Callable[[int, int], None]:
    """Tells how much is done of something that has no digest yet."""
    from rktd_units.images.manifest import digest_of
    from rktd_units.images.meter import Meter

    meter, digest = Meter(f"{target}/progress"), digest_of(name.encode())
    return lambda done, total: meter.update(digest, done, total)


def _import_client() -> ModuleType:
    """registry.py, without what its libraries need for HTTP/2 and for compressed answers only: 12 ms."""
    with placeholders({"importlib.metadata": {"version": None}, "zstandard": None, "brotlicffi": None, "brotli": None}):
        from rktd_units.images import registry

        return registry


def _find_digest(request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    from rktd_units.images.layout import find_digest

    with open(f"{source}/index.json", "rb") as file:
        return {"digest": find_digest(file.read(), request["name"])}


def _unpack_archive(request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    from rktd_units.images.layout import unpack_archive

    return {"digest": unpack_archive(f"{source}/archive", target, _limit(request), _measure(target, "archive"))}


def _unpack_layout(request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    from rktd_units.images.layout import unpack_layout

    progress = _measure(target, "archive")
    return {"digest": unpack_layout(f"{source}/archive", target, request["name"], request["digest"], _limit(request), progress)}


def _pull_image(request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    from rktd_units.images.meter import Meter
    from rktd_units.images.reference import parse_reference

    registry = _import_client()
    with registry.open_access(source) as (_, registries):
        reference, meter = parse_reference(request["reference"]), Meter(f"{target}/progress")
        have, limit, space = frozenset(request["have"]), request["limit"], request["space"]
        fd = os.open(f"{source}/{WHOLE}", os.O_WRONLY | os.O_CLOEXEC)

        def tell(digest: str) -> None:
            os.write(fd, f"{digest[7:]}\n".encode())

        try:
            return {"digest": registry.pull_image(reference, registries, have, target, limit, meter.update, space, tell, request["known"])}
        finally:
            os.close(fd)


def _find_manifest(request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    from rktd_units.images.reference import parse_reference

    registry = _import_client()
    with registry.open_access(source) as (_, registries):
        return {"digest": registry.find_manifest(parse_reference(request["reference"]), registries, target, request["known"])}


def _find_signatures(request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    from rktd_units.images.reference import parse_reference
    from rktd_units.trust.fetch import find_signatures

    registry = _import_client()
    with registry.open_access(source) as (client, registries):
        return find_signatures(parse_reference(request["reference"]), registries, client, request)


def _verify_signatures(request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    from rktd_units.trust.verify import verify_signatures

    return verify_signatures(request, f"{source}/data")


def _fetch_aci(request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    from rktd_units.images.discovery import fetch_aci
    from rktd_units.images.reference import parse_reference

    registry = _import_client()
    with registry.open_access(source) as (client, _):
        reference = parse_reference(request["reference"])
        progress = _measure(target, request["reference"])
        endpoint = fetch_aci(client, reference, insecure=request["insecure"], limit=_limit(request), target=target, progress=progress)
    return {"signature": endpoint.signature}


def _open_aci(request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    from rktd_units.images.rendering import open_aci

    found = open_aci(f"{source}/image.aci", target, _limit(request), _measure(target, "ACI"))
    return {"name": found.name, "labels": dict(found.labels), "dependencies": found.dependencies}


def _render_aci(request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    from rktd_units.images.rendering import Occurrence, render_image

    order = [Occurrence(number, tuple(above)) for number, above in request["order"]]
    sources = [f"{source}/{index}.tar" for index in range(max(o.number for o in order) + 1)]
    return {"digest": render_image(sources, order, target, _limit(request), request["dependencies"])}


def _noted_size(path: str) -> int:
    from rktd_units.images.entries import read_entries

    with open(path, "rb") as file:
        return read_entries(file)[0]


def _convert_layers(request: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    from rktd_units.images.entries import EntriesError
    from rktd_units.images.layers import LayerInput, convert_layers
    from rktd_units.images.meter import Meter

    def read_arrivals() -> Iterator[str]:
        with open(f"{source}/{ARRIVALS}", "rb") as names:
            for line in iter(names.readline, b"\n"):
                if not line:
                    return
                yield line.decode().strip()

    inputs = [
        LayerInput(
            f"{source}/{BLOBS}/{layer['blob']}" if layer["coming"] else f"{source}/{layer['blob']}",
            layer["media_type"],
            layer["diff_id"],
            layer["entries"] and f"{source}/{layer['entries']}",
            layer["coming"],
        )
        for layer in request["layers"]
    ]
    if any("/" in layer["blob"] for layer in request["layers"]):
        raise ImageError("bad blob name")
    arrivals = read_arrivals() if any(layer.coming for layer in inputs) else ()
    try:
        # What is only noted of a layer counts as a part of the image, but needs no space.
        noted = sum(_noted_size(i.entries) for index, i in enumerate(inputs) if i.entries and index not in request["wanted"])
        limit = _limit({**request, "space": request["space"] + noted})
        outputs = convert_layers(inputs, request["wanted"], target, limit, Meter(f"{target}/progress").update, arrivals)
    except EntriesError as error:
        return {"lacking": str(error)}
    return {"sizes": [output.size for output in outputs]}


_JOBS = {
    "find-digest": _find_digest,
    "unpack-archive": _unpack_archive,
    "unpack-layout": _unpack_layout,
    "pull-image": _pull_image,
    "find-manifest": _find_manifest,
    "fetch-aci": _fetch_aci,
    "open-aci": _open_aci,
    "render-aci": _render_aci,
    "convert-layers": _convert_layers,
    "find-signatures": _find_signatures,
    "verify-signatures": _verify_signatures,
}
