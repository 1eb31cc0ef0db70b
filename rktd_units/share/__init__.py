# SPDX-License-Identifier: Apache-2.0
"""Directories of the host for a Xen guest: a file server (9P2000.L) for the guest's kernel, and the device between the two."""
