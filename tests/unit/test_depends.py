# SPDX-License-Identifier: Apache-2.0
"""The Debian package depends on what rktd_units imports, and on no library beside."""

import ast
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "cryptography": "python3-cryptography",
    "dbus_next": "python3-dbus-next",
    "gnupg": "python3-gnupg",
    "isal": "python3-isal",
    "pystemd": "python3-pystemd",
    "pyxs": "python3-pyxs",
    "tqdm": "python3-tqdm",
    "urllib3": "python3-urllib3",
    "yaml": "python3-yaml",
    "zstandard": "python3-zstandard",
}


def list_imports() -> set[str]:
    """Top-level modules that are neither Python's nor ours, wherever in a file they are imported."""
    found = set()
    for path in sorted((CHECKOUT / "rktd_units").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module", "load_module"):
                found |= {str(word.value).partition(".")[0] for word in node.args[:1] if isinstance(word, ast.Constant)}
    return found - set(sys.stdlib_module_names) - {"rktd_units"}


def test_depends_has_every_import() -> None:
    loader = importlib.machinery.SourceFileLoader("install", str(CHECKOUT / "tools/install"))
    spec = importlib.util.spec_from_loader("install", loader)
    assert spec is not None
    installer = importlib.util.module_from_spec(spec)
    loader.exec_module(installer)
    imports = list_imports()
    assert imports <= set(PACKAGES), "modules of no known package"
    # tools/build-deb makes Depends of this list.
    assert {PACKAGES[name] for name in imports} == {name for name in installer.PACKAGES.split() if name.startswith("python3-")}
