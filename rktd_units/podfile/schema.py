# SPDX-License-Identifier: Apache-2.0
"""From YAML nodes to a Pod, or to all that is wrong with them: every field of Kubernetes' v1 Pod and PodSpec, and what becomes of it.

Defaults that differ from Kubernetes: hostUsers and allowPrivilegeEscalation are false unless the file says true.
"""

from collections.abc import Iterator
from typing import Any

from rktd_units.errors import Diagnostic
from rktd_units.fields import (
    Faults,
    Place,
    Table,
    ignored,
    items_of,
    not_supported,
    not_yet,
    not_yet_true,
    place_of,
    read_boolean,
    read_choice,
    read_integer,
    read_list,
    read_mapping,
    read_table,
    read_text,
    refuse_repeated,
    suggest,
    text_of,
)
from rktd_units.podfile.annotations import PREFIX, metadata_table, read_systemd
from rktd_units.podfile.containers import build_container, read_container, read_id, read_init_container, read_label, read_seccomp
from rktd_units.podfile.environment import read_pull_secret
from rktd_units.podfile.model import KINDS, Container, Dns, Documents, Pod, Systemd
from rktd_units.podfile.network import PortRules, check_dns, check_ports, read_dns_config, read_host_aliases
from rktd_units.podfile.profiles import confine_by_annotations, read_apparmor, read_selinux, require_one_label
from rktd_units.podfile.references import check_references
from rktd_units.podfile.sysctls import OF_IPC, read_sysctl
from rktd_units.podfile.volumes import check_huge_pages, read_volume
from rktd_units.strictyaml import Mapping, Node

_HAVE_TEMPLATES = ("Deployment", "DaemonSet", "StatefulSet", "ReplicaSet", "Job", "CronJob", "ReplicationController", "PodTemplate")


def read_pod(documents: tuple[Node, ...], name: str, source: str, sources: tuple[str, ...]) -> tuple[Pod | None, tuple[Diagnostic, ...]]:
    """The pod `name` of a file's documents, or None with all faults, sorted by place; warnings come with either."""
    faults = Faults()
    document = _pick_pod(faults, documents, source)
    pod = _read_document(faults, document, name, source, sources) if document else None
    beside = _read_beside(faults, tuple(found for found in documents if found is not document and text_of(found, "kind") in KINDS))
    if pod and beside is not None:
        pod = pod._replace(beside=beside)
        faults.found += check_references(pod)
    failed = any(found.severity == "error" for found in faults.found)
    return None if failed else pod, tuple(sorted(faults.found))


def find_pod_document(documents: tuple[Node, ...]) -> int | None:
    """The index of the document that is the pod: the first of that kind, or the only one."""
    for index, document in enumerate(documents):
        if text_of(document, "kind") == "Pod":
            return index
    return 0 if len(documents) == 1 else None


def _pick_pod(faults: Faults, documents: tuple[Node, ...], source: str) -> Node | None:
    chosen = find_pod_document(documents)
    for index, document in enumerate(documents):
        if index != chosen and text_of(document, "kind") not in KINDS:
            _refuse_document(faults, document)
    if chosen is not None:
        return documents[chosen]
    if all(text_of(document, "kind") in KINDS for document in documents):
        faults.found.append(Diagnostic(source, 0, 0, "", "holds no pod"))
    return None


def _read_beside(faults: Faults, documents: tuple[Node, ...]) -> Documents | None:
    """None where one is wrong: then what it should hold is not missed, too."""
    if not documents:
        return Documents()
    from rktd_units.podfile.documents import read_beside  # only for files that have some

    own = Faults()
    beside = read_beside(own, documents)
    faults.found += own.found
    return None if any(found.severity == "error" for found in own.found) else beside


def _refuse_document(faults: Faults, document: Node) -> None:
    kind = text_of(document, "kind")
    at = (document.get("kind") if isinstance(document, Mapping) else None) or document
    if kind == "Pod":
        faults.error(at, (None, "kind"), "a second Pod in one file", "give it a file of its own")
    elif not kind:
        faults.error(document, (None, "kind"), "is required")
    else:
        hint = "what is under spec.template is a pod" if kind in _HAVE_TEMPLATES else suggest(kind, ("Pod", *KINDS))
        faults.error(at, (None, "kind"), f"must be Pod, got '{kind}'", hint)


def _read_document(faults: Faults, document: Node, name: str, source: str, sources: tuple[str, ...]) -> Pod | None:
    kind = text_of(document, "kind")
    if kind and kind != "Pod":
        _refuse_document(faults, document)  # its other fields would only give unknown ones
        return None
    values = read_mapping(faults, document, None, _POD, required=("apiVersion", "kind", "metadata", "spec"))
    if not isinstance(document, Mapping):
        return None
    metadata, spec = values.get("metadata", {}), values.get("spec", {})
    metadata_node, spec_node = document.get("metadata"), document.get("spec")
    if metadata.get("name", name) != name and isinstance(metadata_node, Mapping):
        at = metadata_node.get("name") or metadata_node
        faults.error(at, ((None, "metadata"), "name"), f"must be '{name}' as the file is called, got '{metadata['name']}'")
    place: Place = (None, "spec")
    pod_security = spec.get("securityContext", {})
    containers = tuple(
        build_container(faults, draft, ((place, key), index), pod_security, is_init=key == "initContainers")
        for key in _CONTAINER_LISTS
        for index, draft in enumerate(spec.get(key, ()))
    )
    if isinstance(spec_node, Mapping):
        _refuse_shared_names(faults, spec_node)
    annotations = metadata_node.get("annotations") if isinstance(metadata_node, Mapping) else None
    apps = frozenset(container.name for container in containers)
    here: Place = ((None, "metadata"), "annotations")
    systemd = read_systemd(faults, annotations, here, apps)
    containers = confine_by_annotations(faults, annotations, here, containers)
    if spec_node is not None:
        require_one_label(faults, spec_node, (place, "securityContext"), containers)
    if systemd.activation or systemd.idle_stop:
        from rktd_units.podfile.activation import activate_ports  # only for pods that use it

        containers = activate_ports(faults, annotations, here, systemd, containers, host_network=spec.get("hostNetwork", False))
    if isinstance(spec_node, Mapping):
        _check_volumes(faults, spec_node)
        sizes = frozenset(size for container in containers for size, _ in container.resources.huge_pages)
        check_huge_pages(faults, items_of(spec_node, "volumes"), (place, "volumes"), sizes)
        _check_network(faults, spec_node, spec, systemd, annotations)
        _check_host_namespaces(faults, spec_node, spec)
        if spec.get("runtimeClassName") == "xen":
            from rktd_units.podfile.machines import check_machine  # only for files that need it

            check_machine(faults, spec_node, annotations)
    pod = _build_pod(spec, name, source, sources, containers)
    return pod._replace(labels=metadata.get("labels", ()), annotations=metadata.get("annotations", ()), systemd=systemd)


def _build_pod(spec: dict[str, Any], name: str, source: str, sources: tuple[str, ...], containers: tuple[Container, ...]) -> Pod:
    security = spec.get("securityContext", {})
    return Pod(
        name=name,
        source=source,
        sources=sources,
        containers=containers,
        volumes=tuple(spec.get("volumes", ())),
        runtime_class=spec.get("runtimeClassName", "nspawn"),
        restart_policy=spec.get("restartPolicy", "Always"),
        grace_seconds=spec.get("terminationGracePeriodSeconds", 30),
        deadline_seconds=spec.get("activeDeadlineSeconds"),
        hostname=spec.get("hostname", ""),
        subdomain=spec.get("subdomain", ""),
        dns_policy=spec.get("dnsPolicy", "ClusterFirst"),
        dns=spec.get("dnsConfig", Dns()),
        host_aliases=tuple(spec.get("hostAliases", ())),
        host_network=spec.get("hostNetwork", False),
        host_users=spec.get("hostUsers", False),
        share_process_namespace=spec.get("shareProcessNamespace", False),
        supplemental_groups=tuple(security.get("supplementalGroups", ())),
        fs_group=security.get("fsGroup"),
        sysctls=tuple(security.get("sysctls", ())),
        pull_secrets=tuple(spec.get("imagePullSecrets", ())),
        host_ipc=spec.get("hostIPC", False),
        host_pid=spec.get("hostPID", False),
        fs_group_on_mismatch=security.get("fsGroupChangePolicy") == "OnRootMismatch",
    )


def _all_containers(spec: Mapping) -> Iterator[tuple[Node, Place]]:
    for key in _CONTAINER_LISTS:
        for index, container in enumerate(items_of(spec, key)):
            yield container, (((None, "spec"), key), index)


def _refuse_shared_names(faults: Faults, spec: Mapping) -> None:
    """Each list is checked for itself by `_read_containers`; here the one against the other."""
    first = {text_of(container, "name"): container for container in items_of(spec, "initContainers")}
    for index, container in enumerate(items_of(spec, "containers")):
        other = first.get(text_of(container, "name") or "")
        at = container.get("name") if isinstance(container, Mapping) else None
        if other is not None and at:
            place: Place = ((((None, "spec"), "containers"), index), "name")
            faults.error(at, place, f"'{text_of(container, 'name')}' is repeated, first in {place_of(other, container)}")


def _check_volumes(faults: Faults, spec: Mapping) -> None:
    """What is mounted is declared, and what is declared is mounted. On nodes, so that one fault does not make others."""
    declared = {text_of(volume, "name"): volume for volume in items_of(spec, "volumes")}
    used = set()
    for container, here in _all_containers(spec):
        for position, mount in enumerate(items_of(container, "volumeMounts")):
            name = text_of(mount, "name")
            used.add(name)
            at = mount.get("name") if isinstance(mount, Mapping) else None
            if at and name not in declared:
                place: Place = ((here, "volumeMounts"), position)
                faults.error(at, (place, "name"), f"the pod has no volume '{name}'", suggest(name, declared))
    for index, (name, volume) in enumerate(declared.items()):
        if name and name not in used:
            faults.warning(volume, (((None, "spec"), "volumes"), index), f"no container mounts the volume '{name}'")


def _check_host_namespaces(faults: Faults, node: Mapping, spec: dict[str, Any]) -> None:
    """What hostIPC and hostPID want of other fields; a guest's own rules are machines.py's."""
    for key, what in (("hostIPC", "objects"), ("hostPID", "processes")):
        at = node.get(key)
        if at and spec.get(key) and not spec.get("hostUsers", False):
            faults.error(at, ((None, "spec"), key), f"needs hostUsers: true: the host's {what} have ids that a pod's user namespace lacks")
    shared = node.get("shareProcessNamespace")
    if shared and spec.get("shareProcessNamespace") and spec.get("hostPID"):
        message = "cannot be with hostPID: true, by which the apps see each other's processes, too"
        faults.error(shared, ((None, "spec"), "shareProcessNamespace"), message, "leave it out")


def _check_network(faults: Faults, node: Mapping, spec: dict[str, Any], systemd: Systemd, annotations: Node | None) -> None:
    host_network = spec.get("hostNetwork", False)
    activated = frozenset(port for port, _ in systemd.activation)
    rules = PortRules(host_network, spec.get("hostUsers", False), isolated=systemd.network == "none", activated=activated)
    check_ports(faults, _all_containers(node), rules)
    check_dns(faults, node, spec.get("dnsPolicy", ""), spec.get("dnsConfig", Dns()), host_network=host_network)
    security = node.get("securityContext")
    sysctls = security.get("sysctls") if isinstance(security, Mapping) else None
    refuse_repeated(faults, sysctls, (((None, "spec"), "securityContext"), "sysctls"), ("name",))
    names = {name for name, _ in (spec.get("securityContext") or {}).get("sysctls", ())}
    for is_shared, found, what in (
        (host_network, names - OF_IPC, "network: hostNetwork is true"),
        (spec.get("hostIPC"), names & OF_IPC, "IPC objects: hostIPC is true"),
    ):
        if sysctls and is_shared and found:
            faults.error(sysctls, (((None, "spec"), "securityContext"), "sysctls"), f"would change the host's {what}")
    for key in ("network", "address"):
        at = annotations.get(PREFIX + key) if isinstance(annotations, Mapping) else None
        place: Place = (((None, "metadata"), "annotations"), PREFIX + key)
        if at and host_network:
            faults.error(at, place, "the pod has the host's network: hostNetwork is true")
        elif at and key == "address" and systemd.network == "none":
            faults.error(at, place, "the pod has no network: systemd.io/network is none")


def _read_containers(faults: Faults, node: Node, place: Place) -> list[Any] | None:
    drafts: list[Any] | None = _CONTAINERS(faults, node, place)
    if drafts == []:
        faults.error(node, place, "must have one container at least")
    refuse_repeated(faults, node, place, ("name",))
    return drafts


def _read_init_containers(faults: Faults, node: Node, place: Place) -> list[Any] | None:
    refuse_repeated(faults, node, place, ("name",))
    drafts: list[Any] | None = _INIT_CONTAINERS(faults, node, place)
    return drafts


def _read_volumes(faults: Faults, node: Node, place: Place) -> list[Any] | None:
    refuse_repeated(faults, node, place, ("name",))
    volumes: list[Any] | None = _VOLUMES(faults, node, place)
    return volumes


_CONTAINER_LISTS = ("initContainers", "containers")  # in the order of Pod.containers
_CONTAINERS = read_list(read_container)
_INIT_CONTAINERS = read_list(read_init_container)
_VOLUMES = read_list(read_volume)
_SECURITY: Table = {
    "appArmorProfile": read_apparmor,
    "fsGroup": read_id,
    "fsGroupChangePolicy": read_choice("Always", "OnRootMismatch"),
    "runAsGroup": read_id,
    "runAsNonRoot": read_boolean,
    "runAsUser": read_id,
    "seLinuxChangePolicy": not_yet,
    "seLinuxOptions": read_selinux,
    "seccompProfile": read_seccomp,
    "supplementalGroups": read_list(read_id),
    "supplementalGroupsPolicy": read_choice("Merge", later=("Strict",)),
    "sysctls": read_list(read_sysctl),
    "windowsOptions": ignored,
}
_SPEC: Table = {
    "activeDeadlineSeconds": read_integer(1, 2**31 - 1),
    "affinity": ignored,
    "automountServiceAccountToken": ignored,
    "containers": _read_containers,
    "dnsConfig": read_dns_config,
    "dnsPolicy": read_choice("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    "enableServiceLinks": ignored,
    "ephemeralContainers": not_supported,
    "hostAliases": read_host_aliases,
    "hostIPC": read_boolean,
    "hostNetwork": read_boolean,
    "hostPID": read_boolean,
    "hostUsers": read_boolean,
    "hostname": read_label,
    "hostnameOverride": not_yet,
    "imagePullSecrets": read_list(read_pull_secret),
    "initContainers": _read_init_containers,
    "nodeName": ignored,
    "nodeSelector": ignored,
    "os": read_table({"name": read_choice("linux")}, required=("name",)),
    "overhead": ignored,
    "preemptionPolicy": ignored,
    "priority": ignored,
    "priorityClassName": ignored,
    "readinessGates": ignored,
    "resourceClaims": not_supported,
    "resources": not_yet,
    "restartPolicy": read_choice("Always", "OnFailure", "Never"),
    "runtimeClassName": read_choice("nspawn", "xen"),
    "schedulerName": ignored,
    "schedulingGates": ignored,
    "securityContext": read_table(_SECURITY),
    "serviceAccount": ignored,
    "serviceAccountName": ignored,
    "setHostnameAsFQDN": not_yet_true,
    "shareProcessNamespace": read_boolean,
    "subdomain": read_label,
    "terminationGracePeriodSeconds": read_integer(0, 2**31 - 1),
    "tolerations": ignored,
    "topologySpreadConstraints": ignored,
    "volumes": _read_volumes,
    "workloadRef": ignored,
}
_METADATA: Table = metadata_table(read_text)
_POD: Table = {
    "apiVersion": read_choice("v1"),
    "kind": read_choice("Pod"),
    "metadata": read_table(_METADATA, required=("name",)),
    "spec": read_table(_SPEC, required=("containers",)),
    "status": ignored,
}
