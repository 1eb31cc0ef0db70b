# SPDX-License-Identifier: Apache-2.0
"""`podctl version`."""

import argparse

import rktd_units


def run(arguments: argparse.Namespace) -> int:
    """Prints it."""
    print(f"podctl {rktd_units.__version__}")
    return 0
