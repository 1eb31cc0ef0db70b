# SPDX-License-Identifier: Apache-2.0
"""Images: references, where they come from, the store, and the sandboxed jobs that fetch and convert."""
