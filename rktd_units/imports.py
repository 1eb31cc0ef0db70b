# SPDX-License-Identifier: Apache-2.0
"""Imports of what takes longer than what it is needed for, because it imports much that is not: in programs that run for 50 ms."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def placeholders(modules: Mapping[str, Mapping[str, Any] | None]) -> Iterator[None]:
    """Modules that are not imported yet are, to what is imported meanwhile, only the names given, or not there (None). One thread only."""
    absent = [name for name in modules if name not in sys.modules]
    for name in absent:
        names = modules[name]
        module = None if names is None else ModuleType(name)
        if module and names:
            module.__dict__.update(names)
        sys.modules[name] = module  # type: ignore[assignment]  # then an import of it fails
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
