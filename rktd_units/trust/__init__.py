# SPDX-License-Identifier: Apache-2.0
"""Who may vouch for an image, and whether somebody did: docs/trust.md."""
