# SPDX-License-Identifier: Apache-2.0
"""Which class a pod is of, and what the kernel's OOM killer thinks of its apps: values as kubelet computes them."""

import pytest

from rktd_units.podfile.model import Container, Resources
from rktd_units.qos import oom_scores, qos_class

GIB = 1 << 30


def containers(*resources: Resources, roles: tuple[str, ...] = ()) -> tuple[Container, ...]:
    return tuple(Container(f"c{i}", "a:1", "Never", resources=r, role=roles[i] if roles else "app") for i, r in enumerate(resources))


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ([Resources()], "BestEffort"),
        ([Resources(pids_limit=5, storage_limit=GIB)], "BestEffort"),
        ([Resources(GIB, None, 500, None)], "Guaranteed"),
        ([Resources(GIB, GIB, 500, 500)], "Guaranteed"),
        ([Resources(GIB, GIB // 2, 500, 500)], "Burstable"),
        ([Resources(GIB, GIB, 500, 100)], "Burstable"),
        ([Resources(GIB, None, None, None)], "Burstable"),
        ([Resources(GIB, None, 500, None), Resources()], "Burstable"),
        ([Resources(None, None, None, 1)], "Burstable"),
    ],
)
def test_class(resources: list[Resources], expected: str) -> None:
    assert qos_class(containers(*resources)) == expected


def test_scores() -> None:
    assert oom_scores(containers(Resources(), Resources()), 4 * GIB) == (1000, 1000)
    assert oom_scores(containers(Resources(GIB, None, 1, None)), 4 * GIB) == (-997,)
    burstable = (Resources(2 * GIB), Resources(2 * GIB, GIB), Resources(), Resources(8 * GIB), Resources(None, 1))
    assert oom_scores(containers(*burstable), 4 * GIB) == (500, 750, 999, 3, 999)


def test_a_sidecar_does_not_die_before_the_apps() -> None:
    found = oom_scores(containers(Resources(), Resources(GIB), Resources(2 * GIB), roles=("sidecar", "app", "app")), 4 * GIB)
    assert found == (500, 750, 500)
