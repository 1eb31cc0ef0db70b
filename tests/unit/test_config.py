# SPDX-License-Identifier: Apache-2.0
"""Documents beside the pod, references to them, and what they come to at a start."""

import base64
from pathlib import Path

import pytest

from rktd_units.confine import Confinement
from rktd_units.credstore import find_credentials, read_credential
from rktd_units.errors import ConfigError, StateError
from rktd_units.images.manifest import ImageConfig
from rktd_units.podfile.load import load_pod
from rktd_units.podfile.model import (
    Claim,
    Container,
    DataMap,
    EnvVar,
    FieldFile,
    Item,
    KeyFiles,
    Pod,
    Projected,
    Reference,
    ResourceRef,
    VolumeMount,
)
from rktd_units.podfile.search import PodEntry
from rktd_units.resolve import Environment, Facts, mounts_secrets, resolve_command, resolve_environment, resolve_mounts
from rktd_units.stage2 import App, render_environment_file
from rktd_units.values import File, Values, find_resource, render_pairs, volume_files

POD = """
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{b: "2", a: "1"}}}}
spec: {{containers: [{{name: app, image: 'a:1'{}}}]{}}}
"""
IMAGE = ImageConfig("linux", "amd64", ())
SECRET = "s3cr3t-value"
DOCUMENTS = f"""---
apiVersion: v1
kind: ConfigMap
metadata: {{name: conf}}
data: {{one: "1", text: "a\\nb"}}
binaryData: {{raw: /wA=}}
---
apiVersion: v1
kind: Secret
metadata: {{name: sec}}
data: {{pass: {base64.b64encode(SECRET.encode()).decode()}, both: eA==}}
stringData: {{both: "y"}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data}}
spec: {{accessModes: [ReadWriteOnce]}}
"""


def load(tmp_path: Path, text: str, *drop_ins: str, mode: int = 0o600) -> tuple[Pod | None, list[str]]:
    paths = []
    for index, content in enumerate((text, *drop_ins)):
        path = tmp_path / ("web.yaml" if index == 0 else f"{index}.yaml")
        path.write_text(content)
        path.chmod(mode)
        paths.append(str(path))
    pod, faults = load_pod(PodEntry("web", paths[0], tuple(paths[1:])), ownership=False)
    return pod, [str(fault).replace(f"{tmp_path}/", "") for fault in faults]


def pod_of(tmp_path: Path, container: str = "", spec: str = "", documents: str = DOCUMENTS) -> Pod:
    pod, faults = load(tmp_path, POD.format(f", {container}" if container else "", f", {spec}" if spec else "") + documents)
    assert faults == []
    assert pod is not None
    return pod


def facts(pod: Pod, root: str = "/nonexistent") -> Facts:
    return Facts(pod, "uid", "node", ("10.0.0.1", "fd00::5"), ("192.0.2.1", "2001:db8::1"), Values(pod, root))


def test_documents(tmp_path: Path) -> None:
    pod = pod_of(tmp_path)
    assert pod.beside.maps == (
        DataMap("ConfigMap", "conf", (("one", b"1"), ("raw", b"\xff\0"), ("text", b"a\nb"))),
        DataMap("Secret", "sec", (("both", b"y"), ("pass", SECRET.encode()))),
    )
    assert pod.beside.claims == (Claim("data"),)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("kind: ConfigMap\nmetadata: {name: c}\ndata: {a: 1}", ['9:11: data.a: must be a string, got 1\n  hint: quote it: "1"']),
        ("kind: ConfigMap\nmetadata: {name: c}\ndata: {a/b: x}", ["9:8: data['a/b']: is not a key"]),
        ("kind: ConfigMap\nmetadata: {name: C}", ["8:18: metadata.name: 'C' is not a valid name"]),
        ("kind: ConfigMap\nmetadata: {name: c}\ndata: {a: x}\nbinaryData: {a: eA==}", ["6:1: binaryData.a: is in data, too"]),
        ("kind: ConfigMap\nmetadata: {name: c}\nbinaryData: {a: '='}", ["9:17: binaryData.a: is not base64: "]),
        ("kind: ConfigMap\nmetadata: {name: c}\nstringData: {}", ["9:1: stringData: unknown field"]),
        (f"kind: Secret\nmetadata: {{name: c}}\ndata: {{a: {SECRET}}}", ["9:11: data.a: is not base64: "]),
        (f"kind: Secret\nmetadata: {{name: c}}\ndata: {SECRET}", ["9:7: data: must be a map, got a single value"]),
        (f"kind: Secret\nmetadata: {{name: c}}\nstringData: {{a: [{SECRET}]}}", ["9:17: stringData.a: must be a string"]),
        ("kind: Secret\nmetadata: {name: c}\nstringData: {a: 5}", ["9:17: stringData.a: must be a string\n  hint: quote it"]),
        (
            "kind: PersistentVolumeClaim\nmetadata: {name: c}\nspec: {volumeMode: Block}",
            ["9:20: spec.volumeMode: 'Block' is not supported"],
        ),
        (
            "kind: PersistentVolumeClaim\nmetadata: {name: c}\nspec: {resources: {requests: {storage: 1Q}}}",
            ["9:40: spec.resources.requests.storage: must be a quantity, got '1Q'"],
        ),
        (
            "kind: ConfigMap\nmetadata: {name: c}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}",
            ["10:1: metadata.name: a second ConfigMap 'c'"],
        ),
    ],
    ids=range(13),
)
def test_wrong_documents(tmp_path: Path, document: str, expected: list[str]) -> None:
    pod, faults = load(tmp_path, POD.format("", "").strip() + "\n---\napiVersion: v1\n" + document)
    assert pod is None
    assert len(faults) == len(expected)
    for fault, start in zip(faults, expected, strict=True):
        assert fault.startswith(f"web.yaml:{start}")
    assert SECRET not in str(faults)


def test_a_secret_that_everybody_can_read_is_told(tmp_path: Path) -> None:
    (fault,) = load(tmp_path, POD.format("", "") + DOCUMENTS, mode=0o644)[1]
    assert fault.endswith("warning: holds a Secret, and every user may read it: it has mode 0644\n  hint: chmod 0600")


def test_drop_ins_change_and_add_documents(tmp_path: Path) -> None:
    change = "kind: ConfigMap\nmetadata: {name: conf}\ndata: {one: null, two: '2'}\n---\nspec: {hostname: h}\n"
    add = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: new}\ndata: {n: x}\n"
    pod, faults = load(tmp_path, POD.format("", "") + DOCUMENTS, change, add)
    assert faults == []
    assert pod is not None
    assert pod.hostname == "h"
    assert [(m.name, [key for key, _ in m.data]) for m in pod.beside.maps if m.kind == "ConfigMap"] == [
        ("conf", ["raw", "text", "two"]),
        ("new", ["n"]),
    ]


@pytest.mark.parametrize(
    ("container", "spec", "expected"),
    [
        (
            "env: [{name: A, valueFrom: {configMapKeyRef: {name: cons, key: x}}}]",
            "",
            "containers[0].env[0].valueFrom.configMapKeyRef: there is no ConfigMap 'cons'\n  hint: did you mean 'conf'?",
        ),
        (
            "env: [{name: A, valueFrom: {secretKeyRef: {name: sec, key: pas}}}]",
            "",
            "containers[0].env[0].valueFrom.secretKeyRef: Secret 'sec' has no key 'pas'\n  hint: did you mean 'pass'?",
        ),
        (
            "envFrom: [{configMapRef: {name: x}}]",
            "",
            "containers[0].envFrom[0].configMapRef: there is no ConfigMap 'x'\n"
            "  hint: a document `kind: ConfigMap` in the same file, or optional: true",
        ),
        ("envFrom: [{prefix: A}]", "", "containers[0].envFrom[0]: must have a configMapRef or a secretRef"),
        ("envFrom: [{prefix: 1A, secretRef: {name: sec}}]", "", "containers[0].envFrom[0].prefix: '1A' is not the name of a variable"),
        ("env: [{name: A, valueFrom: {}}]", "", "containers[0].env[0].valueFrom: must have one of configMapKeyRef, fieldRef, "),
        (
            "env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.labels}}}]",
            "",
            "containers[0].env[0].valueFrom.fieldRef.fieldPath: must be one of metadata.name, ",
        ),
        (
            "env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1Mi}}}]",
            "",
            "containers[0].env[0].valueFrom.resourceFieldRef.divisor: must be one of 0, 1, 1m, got '1Mi'",
        ),
        (
            "env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu, containerName: ap}}}]",
            "",
            "containers[0].env[0].valueFrom.resourceFieldRef.containerName: the pod has no container 'ap'\n  hint: did you mean 'app'?",
        ),
        (
            "volumeMounts: [{name: v, mountPath: /v}]",
            "volumes: [{name: v, configMap: {name: conf, items: [{key: zzz, path: x}]}}]",
            "volumes[0].configMap: ConfigMap 'conf' has no key 'zzz'\n  hint: it has one, raw, text",
        ),
        (
            "volumeMounts: [{name: v, mountPath: /v}]",
            "volumes: [{name: v, secret: {secretName: sec, defaultMode: 644}}]",
            "volumes[0].secret.defaultMode: must be between 0 and 0777, got '644'\n  hint: octal numbers have a leading 0: 0644",
        ),
        (
            "volumeMounts: [{name: v, mountPath: /v}]",
            "volumes: [{name: v, secret: {secretName: sec, items: [{key: pass, path: ../x}]}}]",
            "volumes[0].secret.items[0].path: must not contain '..', got '../x'",
        ),
        (
            "volumeMounts: [{name: v, mountPath: /v}]",
            "volumes: [{name: v, projected: {sources: [{secret: {name: sec}, configMap: {name: conf}}]}}]",
            "volumes[0].projected.sources[0]: must have one of ",
        ),
        (
            "volumeMounts: [{name: v, mountPath: /v}]",
            "volumes: [{name: v, downwardAPI: {items: [{path: x}]}}]",
            "volumes[0].downwardAPI.items[0]: must have a fieldRef or a resourceFieldRef",
        ),
    ],
    ids=range(14),
)
def test_wrong_references(tmp_path: Path, container: str, spec: str, expected: str) -> None:
    pod, (fault,) = load(tmp_path, POD.format(f", {container}", f", {spec}" if spec else "") + DOCUMENTS)
    assert pod is None
    assert fault.split(": ", 1)[1].startswith(f"spec.{expected}")


@pytest.mark.parametrize(("text", "mode"), [("0644", 0o644), ("420", 0o644), ("0o400", 0o400), ("0", 0), ("0777", 0o777), ("511", 0o777)])
def test_modes(tmp_path: Path, text: str, mode: int) -> None:
    pod = pod_of(
        tmp_path, "volumeMounts: [{name: v, mountPath: /v}]", f"volumes: [{{name: v, configMap: {{name: conf, defaultMode: {text}}}}}]"
    )
    (volume,) = pod.volumes
    assert isinstance(volume, Projected)
    assert volume.default_mode == mode


def test_variables(tmp_path: Path) -> None:
    env = (
        "env: [{name: A, valueFrom: {secretKeyRef: {name: sec, key: pass}}}, {name: B, value: 'x$(A)'}, {name: C, value: '$(P_one)$$(A)'},"
        "{name: D, valueFrom: {configMapKeyRef: {name: conf, key: none, optional: true}}}, {name: P_one, value: own},"
        "{name: E, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['a']\"}}}, {name: S_both, value: plain}],"
        "envFrom: [{prefix: P_, configMapRef: {name: conf}}, {prefix: S_, secretRef: {name: sec}}]"
    )
    pod = pod_of(tmp_path, env)
    found = resolve_environment(facts(pod), pod.containers[0], IMAGE, "/")
    plain = dict(found.plain)
    assert {key: plain.get(key) for key in "CDE"} == {"C": "1$(A)", "D": None, "E": "1"}
    assert (plain["P_one"], plain["P_text"], plain["S_both"], "P_raw" in plain) == ("own", "a\nb", "plain", False)
    assert dict(found.secret) == {"A": SECRET, "B": f"x{SECRET}", "S_pass": SECRET}


def test_variables_of_images_that_systemd_does_not_pass_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pod = pod_of(tmp_path)
    image = IMAGE._replace(env=(("discovery.type", "single"), ("KEPT", "1")))
    assert ("KEPT", "1") in resolve_environment(facts(pod), pod.containers[0], image, "/").plain
    said = "<4>app app: discovery.type of its image is no variable: its name is not one of letters, digits and underscores\n"
    assert capsys.readouterr().err == said


def test_addresses(tmp_path: Path) -> None:
    """The first one is IPv4; the plural has all."""
    pod = pod_of(tmp_path)
    fields = ("status.podIP", "status.podIPs", "status.hostIP", "status.hostIPs")
    expected = ["10.0.0.1", "10.0.0.1,fd00::5", "192.0.2.1", "192.0.2.1,2001:db8::1"]
    assert [facts(pod).value(field) for field in fields] == expected


def test_no_secret_in_an_argument_list(tmp_path: Path) -> None:
    pod = pod_of(tmp_path, "command: [run, '--p=$(B)', '$(C)']")
    environment = Environment((("C", "c"),), (("B", SECRET),))
    with pytest.raises(ConfigError, match=r"app app: \$\(B\) would put a secret into an argument list") as refusal:
        resolve_command(pod.containers[0], IMAGE, environment)
    assert SECRET not in str(refusal.value)
    assert resolve_command(pod.containers[0], IMAGE, Environment((("C", "c"),)))[1:] == ("--p=$(B)", "c")


def test_who_has_secrets_as_files(tmp_path: Path) -> None:
    volumes = "volumes: [{name: s, projected: {sources: [{secret: {name: sec}}]}}, {name: c, configMap: {name: conf}}]"
    for name, expected in (("s", True), ("c", False)):
        text = POD.format(f", volumeMounts: [{{name: {name}, mountPath: /v}}]", f", {volumes}") + DOCUMENTS
        pod, _ = load(tmp_path, text)
        assert pod is not None
        assert mounts_secrets(pod, pod.containers[0]) == expected


def test_path_is_no_secret(tmp_path: Path) -> None:
    pod = pod_of(tmp_path, "env: [{name: PATH, valueFrom: {secretKeyRef: {name: sec, key: pass}}}]")
    with pytest.raises(ConfigError, match="PATH must not come from a Secret"):
        resolve_environment(facts(pod), pod.containers[0], IMAGE, "/")


@pytest.mark.parametrize(
    ("expression", "path"),
    [
        ("$(A)/./x", "one/x"),
        ("$$(A)", None),
        ("$(B)", "subPathExpr .* of volume v: 'up/../../x' is no path inside the volume"),
        ("x/$(C)", "names a variable that is not there"),
        ("$(S)", r"\$\(S\) is a secret"),
        ("$(E)", ""),
    ],
    ids=range(6),
)
def test_sub_path_expressions(expression: str, path: str | None) -> None:
    env = (("A", "one"), ("B", "up/../../x"), ("E", "/"))
    app = App("app", "/a", ("a",), env, "/", 0, 0, (), "SIGTERM", Confinement(()), secret_env=(("S", SECRET),))
    container = Container("app", "a:1", "Never", mounts=(VolumeMount("v", "/v", "", False, expression), VolumeMount("w", "/w", "as/is")))
    if path == "one/x":
        assert [mount.sub_path for mount in resolve_mounts(container, app)] == ["one/x", "as/is"]
        return
    with pytest.raises(ConfigError, match=path or "subPathExpr"):
        resolve_mounts(container, app)


def test_environment_file() -> None:
    text = render_environment_file((("A", 'q"b\\d$`\n x '), ("B", "")))
    assert text == 'A="q\\"b\\\\d\\$\\`\n x "\nB=""\n'


def test_files(tmp_path: Path) -> None:
    pod = pod_of(tmp_path)
    volume = Projected(
        "v",
        (
            KeyFiles(Reference("ConfigMap", "conf")),
            KeyFiles(Reference("Secret", "sec"), (Item("pass", "d/p", 0o400), Item("both", "one"))),
            FieldFile("labels", "metadata.labels"),
            FieldFile("cpu", resource=ResourceRef("app", "requests.cpu", 1)),
        ),
        0o640,
    )
    mode = 0o640
    assert volume_files(pod, volume, Values(pod), facts(pod).value) == (
        File("cpu", b"0", mode),
        File("d/p", SECRET.encode(), 0o400),
        File("labels", b'a="1"\nb="2"', mode),
        File("one", b"y", mode),
        File("raw", b"\xff\0", mode),
        File("text", b"a\nb", mode),
    )
    clash = volume._replace(sources=(FieldFile("a", "metadata.name"), FieldFile("a/b", "metadata.name")))
    with pytest.raises(ConfigError, match="volume v: a would be a file and a directory"):
        volume_files(pod, clash, Values(pod), facts(pod).value)


@pytest.mark.parametrize(
    ("resource", "divisor", "expected"),
    [
        ("limits.memory", 1, str(64 << 20)),
        ("limits.memory", 10**6, "68"),
        ("limits.cpu", 1000, "2"),
        ("limits.cpu", 1, "1500"),
        ("requests.cpu", 1, "1500"),
        ("requests.memory", 1 << 20, "32"),
    ],
)
def test_resources(tmp_path: Path, resource: str, divisor: int, expected: str) -> None:
    pod = pod_of(tmp_path, "resources: {limits: {memory: 64Mi, cpu: 1500m}, requests: {memory: 32Mi}}")
    assert find_resource(pod, ResourceRef("app", resource, divisor)) == expected


def test_resources_that_nobody_set(tmp_path: Path) -> None:
    pod = pod_of(tmp_path)
    (app,) = pod.containers
    assert int(find_resource(pod, ResourceRef("", "limits.memory", 1), app)) > 1 << 20
    assert int(find_resource(pod, ResourceRef("", "limits.cpu", 1000), app)) >= 1
    assert find_resource(pod, ResourceRef("", "requests.memory", 1), app) == "0"


def test_pairs_are_quoted_as_go_does() -> None:
    assert render_pairs((("b", 'q"\\\n\x01\u00e9\u200b'), ("a", ""))) == 'a=""\nb="q\\"\\\\\\n\\x01\u00e9\\u200b"'


def test_credentials(tmp_path: Path) -> None:
    for directory, name, text in (
        ("etc/credstore", "db@pass", "etc"),
        ("run/credstore", "db@pass", "run"),
        ("run/credstore", "db@user", "u"),
        ("run/credstore", "db.x@pass", "other"),
        ("run/credstore", "db", "whole"),
    ):
        (tmp_path / directory).mkdir(parents=True, exist_ok=True)
        (tmp_path / directory / name).write_text(text)
        (tmp_path / directory / name).chmod(0o600)
    root = str(tmp_path)
    assert {key: read_credential(path) for key, path in find_credentials("db", root).items()} == {"pass": b"etc", "user": b"u"}
    assert find_credentials("none", root) == {}
    (tmp_path / "etc/credstore.encrypted").mkdir()
    (tmp_path / "etc/credstore.encrypted/db@pass").write_text("x")
    assert find_credentials("db", root)["pass"].endswith("/etc/credstore.encrypted/db@pass")
    (tmp_path / "run/credstore/db@dir").mkdir()
    with pytest.raises(StateError, match="is no regular file"):
        read_credential(str(tmp_path / "run/credstore/db@dir"))


def test_a_secret_of_the_file_hides_credentials(tmp_path: Path) -> None:
    pod = pod_of(tmp_path)
    (tmp_path / "etc/credstore").mkdir(parents=True)
    (tmp_path / "etc/credstore/sec@more").write_text("x")
    assert Values(pod, str(tmp_path)).find(Reference("Secret", "sec", "more", optional=True)) is None
    with pytest.raises(ConfigError, match="there is no Secret 'other'"):
        Values(pod, str(tmp_path)).find_all(Reference("Secret", "other"))


def test_what_a_variable_cannot_hold(tmp_path: Path) -> None:
    pod = pod_of(tmp_path)
    with pytest.raises(ConfigError, match="the value of 'raw' is not text"):
        Values(pod).find_text(Reference("ConfigMap", "conf", "raw"))


def test_the_token_of_a_cluster_is_left_out(tmp_path: Path) -> None:
    spec = (
        "volumes: [{name: t, projected: {defaultMode: 420, sources: [{serviceAccountToken: {expirationSeconds: 3607, path: token}},"
        "{configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}},"
        "{downwardAPI: {items: [{path: namespace, fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}]}}]}}]"
    )
    pod, (fault,) = load(tmp_path, POD.format(", volumeMounts: [{name: t, mountPath: /var/run/secrets}]", f", {spec}"))
    assert fault.endswith("warning: spec.volumes[0].projected.sources[0].serviceAccountToken: has no meaning on a single host, ignored")
    assert pod is not None
    (volume,) = pod.volumes
    assert isinstance(volume, Projected)
    assert volume_files(pod, volume, Values(pod), facts(pod).value) == (File("namespace", b"default", 0o644),)


def test_the_size_of_a_claim_is_told_to_be_no_limit(tmp_path: Path) -> None:
    claim = "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: c}\nspec: {resources: {requests: {storage: 1Gi}}}\n"
    pod, (fault,) = load(tmp_path, POD.format("", "") + claim)
    assert pod is not None
    assert pod.beside.claims == (Claim("c", 1 << 30),)
    assert fault.endswith("warning: spec.resources.requests.storage: limits nothing: a volume may grow to what the file system has")


def test_env_values_stay_as_they_were(tmp_path: Path) -> None:
    pod = pod_of(tmp_path, "env: [{name: A, value: x}, {name: B, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]")
    assert pod.containers[0].env == (EnvVar("A", "x"), EnvVar("B", field="status.podIP"))
