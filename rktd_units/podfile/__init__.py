# SPDX-License-Identifier: Apache-2.0
"""Pod files: Kubernetes `v1 Pod` YAML, read strictly, into an immutable model."""
