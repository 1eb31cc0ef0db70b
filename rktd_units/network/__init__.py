# SPDX-License-Identifier: Apache-2.0
"""The networks of pods: bridges, addresses, ports of the host, names. docs/network.md has the data flow."""
