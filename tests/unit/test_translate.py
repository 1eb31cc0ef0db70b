# SPDX-License-Identifier: Apache-2.0
import pytest

from rktd_units.podfile.model import Container, Pod, Resources, Systemd
from rktd_units.translate import POD_OVERHEAD_BYTES, cpu_weight, render_cpu_quota, render_dropin, translate_pod

MIB = 1024 * 1024


def pod(*resources: Resources, **fields: object) -> Pod:
    containers = tuple(Container(f"c{i}", "a:1", "Never", resources=r) for i, r in enumerate(resources or (Resources(),)))
    return Pod("web", "/etc/pods/web.yaml", ("/etc/pods/web.yaml",), containers)._replace(**fields)  # type: ignore[arg-type]


def lines(subject: Pod) -> dict[str, str]:
    return dict(line.split("=", 1) for line in render_dropin(subject).split("\n") if "=" in line)


def test_a_limit_only_where_all_have_one() -> None:
    both = lines(pod(Resources(memory_limit=MIB, cpu_limit=100), Resources(memory_limit=2 * MIB, cpu_limit=55)))
    assert both["MemoryMax"] == str(3 * MIB + POD_OVERHEAD_BYTES)
    assert both["CPUQuota"] == "15.5%"
    one = lines(pod(Resources(memory_limit=MIB, cpu_limit=100), Resources()))
    assert not {"MemoryMax", "CPUQuota"} & set(one)


def test_a_limit_of_nothing_is_a_limit() -> None:
    assert lines(pod(Resources(memory_limit=0)))["MemoryMax"] == str(POD_OVERHEAD_BYTES)


def test_requests_are_summed() -> None:
    found = lines(pod(Resources(memory_request=MIB, cpu_request=500), Resources(memory_request=MIB), Resources()))
    assert found["MemoryLow"] == str(2 * MIB)
    assert found["CPUWeight"] == str(cpu_weight(500))
    assert not {"MemoryLow", "CPUWeight"} & set(lines(pod()))


def test_init_containers_need_theirs_one_after_the_other() -> None:
    """KEP-753: the greatest init container with the sidecars before it, or all sidecars and apps."""
    roles = ("init", "sidecar", "init", "app")

    def limit(*sizes: int) -> int:
        subject = pod(*(Resources(memory_limit=size * MIB) for size in sizes))
        containers = tuple(c._replace(role=role) for c, role in zip(subject.containers, roles, strict=True))
        return (int(lines(subject._replace(containers=containers))["MemoryMax"]) - POD_OVERHEAD_BYTES) // MIB

    assert limit(1, 2, 3, 4) == 6
    assert limit(9, 2, 3, 4) == 9
    assert limit(1, 2, 7, 4) == 9


def test_a_deadline_ends_the_pod_for_good() -> None:
    found = lines(pod(deadline_seconds=60))
    assert (found["Restart"], found["TimeoutStartSec"], found["RuntimeMaxSec"]) == ("no", "100", "100")


def test_a_sum_that_systemd_would_drop() -> None:
    huge = Resources(memory_limit=(1 << 63) - 1, memory_request=(1 << 63) - 1)
    found = lines(pod(huge, huge, huge))
    assert found["MemoryMax"] == found["MemoryLow"] == str((1 << 63) - 1)


@pytest.mark.parametrize(("millicores", "text"), [(1, "0.1%"), (10, "1%"), (55, "5.5%"), (1000, "100%"), (12345, "1234.5%")], ids=str)
def test_cpu_quota(millicores: int, text: str) -> None:
    assert render_cpu_quota(millicores) == text


def test_cpu_weight_is_in_the_range_of_systemd_and_grows() -> None:
    found = [cpu_weight(m) for m in range(0, 300_000, 10)]
    assert found == sorted(found)
    assert (found[0], cpu_weight(1000), found[-1]) == (1, 39, 10000)


def test_restart_by_policy() -> None:
    assert "RestartSec" not in lines(pod(restart_policy="Never"))
    assert lines(pod(restart_policy="Never"))["Restart"] == "no"
    for policy in ("Always", "OnFailure"):
        assert lines(pod(restart_policy=policy))["Restart"] == "on-failure"


def test_annotations() -> None:
    systemd = Systemd(("a.target", "b.target"), ("x.service", "y.service"), ("y.service",), "s.slice", ("192.0.2.1",), ("any",))
    subject = pod(systemd=systemd)
    found = lines(subject)
    assert [found[k] for k in ("After", "Requires", "Slice", "IPAddressAllow", "IPAddressDeny")] == [
        "x.service y.service",
        "y.service",
        "s.slice",
        "192.0.2.1",
        "any",
    ]
    output = translate_pod(subject)
    assert [path for path, _ in output.links] == ["a.target.wants/pod@web.service", "b.target.wants/pod@web.service"]
    assert [path for path, _ in output.files] == ["pod@web.service.d/50-pod.conf"]


def test_a_path_with_a_percent_sign_is_not_expanded() -> None:
    assert lines(pod(source="/etc/%n/web.yaml"))["SourcePath"] == "/etc/%%n/web.yaml"
