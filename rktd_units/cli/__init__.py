# SPDX-License-Identifier: Apache-2.0
"""podctl: the command line, and the only place that prints to standard output."""
