# SPDX-License-Identifier: Apache-2.0
"""Which of the pods and apps of a host the kernel kills first when memory runs out: Kubernetes' classes and scores. Pure.

k8s.io/kubernetes: pkg/apis/core/v1/helper/qos/qos.go, pkg/kubelet/qos/policy.go.
"""

from rktd_units.podfile.model import Container, Resources

GUARANTEED_SCORE = -997
BEST_EFFORT_SCORE = 1000


def qos_class(containers: tuple[Container, ...]) -> str:
    """Guaranteed, Burstable or BestEffort."""
    needs = [container.resources for container in containers]
    if all(r.memory_limit and r.cpu_limit and memory_request(r) == r.memory_limit and r.cpu_request in (None, r.cpu_limit) for r in needs):
        return "Guaranteed"
    asked = (amount for r in needs for amount in (r.memory_limit, r.memory_request, r.cpu_limit, r.cpu_request))
    return "Burstable" if any(asked) else "BestEffort"


def memory_request(resources: Resources) -> int:
    """Bytes: the limit where the file asks for nothing else."""
    return (resources.memory_limit if resources.memory_request is None else resources.memory_request) or 0


def oom_scores(containers: tuple[Container, ...], memory: int) -> tuple[int, ...]:
    """OOMScoreAdjust= of each container on a host with `memory` bytes."""
    kind = qos_class(containers)
    if kind != "Burstable":
        return (GUARANTEED_SCORE if kind == "Guaranteed" else BEST_EFFORT_SCORE,) * len(containers)
    scores = [_burstable_score(container.resources, memory) for container in containers]
    least = min(score for container, score in zip(containers, scores, strict=True) if container.role == "app")
    return tuple(min(score, least) if c.role == "sidecar" else score for c, score in zip(containers, scores, strict=True))


def _burstable_score(resources: Resources, memory: int) -> int:
    """The less of the host's memory it asked for the higher; always between those of the other classes."""
    return min(max(1000 - 1000 * memory_request(resources) // memory, 1000 + GUARANTEED_SCORE), BEST_EFFORT_SCORE - 1)
