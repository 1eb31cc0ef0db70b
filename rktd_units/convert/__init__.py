# SPDX-License-Identifier: Apache-2.0
"""From what other tools run containers by to pod files: Quadlet, Compose, rkt. What cannot be said in a pod file is told, never dropped."""
