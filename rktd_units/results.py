# SPDX-License-Identifier: Apache-2.0
"""How a pod's apps ended: what they wrote down in the pod, and what is kept of it in results/NAME.json when the pod is gone."""

import os

from rktd_units.paths import Layout
from rktd_units.runfiles import read_text, read_untrusted, write_text

End = dict[str, str]  # code (exited, killed or dumped), status, result


def read_end(layout: Layout, name: str, app: str) -> End | None:
    """The last end of an app whose pod is there, also when it runs again: hostile text of known form, or nothing."""
    words = read_untrusted(f"{layout.pod(name)}/status/{app}").split()
    if len(words) != 3 or not all(word.isascii() and word.replace("-", "").isalnum() for word in words):
        return None
    return {"code": words[0], "status": words[1], "result": words[2]}


def save_result(layout: Layout, name: str) -> dict[str, End]:
    """Keeps the last end of each app, if there are any, and returns them."""
    apps = sorted(read_text(f"{layout.pod(name)}/apps").split())
    ends = {app: end for app in apps if (end := read_end(layout, name, app))}
    if ends:
        import json

        os.makedirs(layout.results, mode=0o755, exist_ok=True)
        write_text(f"{layout.results}/{name}.json", json.dumps({"version": 1, "pod": name, "apps": ends}, indent=2) + "\n")
    return ends


def load_result(layout: Layout, name: str) -> dict[str, End]:
    """The ends of the last run; nothing where they are missing or damaged."""
    import json

    try:
        apps = json.loads(read_text(f"{layout.results}/{name}.json") or "{}").get("apps", {})
        return {app: {key: str(end[key]) for key in ("code", "status", "result")} for app, end in apps.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}
