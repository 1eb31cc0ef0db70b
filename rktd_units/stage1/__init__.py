# SPDX-License-Identifier: Apache-2.0
"""Stage1: what runs the pod. Each kind renders its settings (pure); `launch` is what pod@NAME.service executes."""
