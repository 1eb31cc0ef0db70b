# SPDX-License-Identifier: Apache-2.0
"""rktd-units: a pod manager that is systemd. No work happens at import."""

__version__ = "0.1.0"
