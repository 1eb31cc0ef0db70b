# SPDX-License-Identifier: Apache-2.0
"""podctl convert: tests/convert/CASE/* becomes expected/*, byte for byte; what cannot be converted is told, each thing with its place.

RKTD_UPDATE_GOLDEN=1 writes expected/ anew.
"""

import os
from pathlib import Path

import pytest

from rktd_units.cli.main import main
from rktd_units.convert import compose, keys
from rktd_units.convert.emit import render_documents
from rktd_units.convert.load import Converted, check_pod, convert_files
from rktd_units.convert.words import escape_variables, parse_ports, parse_seconds, parse_size, split_words
from rktd_units.expand import expand_references
from rktd_units.strictyaml import parse_yaml

CASES = Path(__file__).resolve().parents[1] / "convert"
INPUTS = (".container", ".pod", ".kube", ".json")
DIGEST = "@sha256:" + "1" * 64
# All keys of podman-systemd.unit(5), Podman 6.0-dev.
QUADLET = {
    "Container": """
        AddCapability AddDevice AddHost Annotation AppArmor AutoUpdate CgroupsMode ContainerName
        ContainersConfModule DNS DNSOption DNSSearch DropCapability Entrypoint Environment EnvironmentFile
        EnvironmentHost Exec ExposeHostPort GIDMap GlobalArgs Group GroupAdd HealthCmd HealthInterval
        HealthLogDestination HealthMaxLogCount HealthMaxLogSize HealthOnFailure HealthRetries
        HealthStartPeriod HealthStartupCmd HealthStartupInterval HealthStartupRetries HealthStartupSuccess
        HealthStartupTimeout HealthTimeout HostName HttpProxy IP IP6 Image Label LogDriver LogOpt Mask Memory
        Mount Network NetworkAlias NoNewPrivileges Notify PidsLimit Pod PodmanArgs PublishPort Pull ReadOnly
        ReadOnlyTmpfs ReloadCmd ReloadSignal RemapUsers RemapUid RemapGid RemapUidSize Retry RetryDelay Rootfs
        RunInit SeccompProfile Secret SecurityLabelDisable SecurityLabelFileType SecurityLabelLevel
        SecurityLabelNested SecurityLabelType ServiceName ShmSize StartWithPod StopSignal StopTimeout
        SubGIDMap SubUIDMap Sysctl Timezone Tmpfs UIDMap Ulimit Unmask User UserNS VolatileTmp Volume
        WorkingDir
    """,
    "Pod": """
        AddHost ContainersConfModule DNS DNSOption DNSSearch ExitPolicy GIDMap GlobalArgs HostName IP IP6
        Label Network NetworkAlias PodName PodmanArgs PublishPort RemapUsers RemapUid RemapGid RemapUidSize
        ServiceName ShmSize StopTimeout SubGIDMap SubUIDMap UIDMap UserNS Volume
    """,
    "Kube": """
        AutoUpdate ConfigMap ContainersConfModule ExitCodePropagation GlobalArgs KubeDownForce LogDriver
        LogOpt Network PodmanArgs PublishPort RemapUsers RemapUid RemapGid RemapUidSize ServiceName
        SetWorkingDirectory UserNS Yaml
    """,
}
# Services in the Compose specification, but for what only Windows and swarm have.
COMPOSE = """
    annotations attach build cap_add cap_drop cgroup_parent command configs container_name depends_on
    deploy develop devices dns dns_opt dns_search domainname entrypoint env_file environment expose
    extends external_links extra_hosts group_add healthcheck hostname image init ipc isolation labels
    links logging mac_address mem_limit mem_reservation network_mode networks oom_score_adj pid pids_limit
    platform ports post_start pre_stop privileged profiles pull_policy read_only restart runtime scale
    secrets security_opt shm_size stdin_open stop_grace_period stop_signal sysctls tmpfs tty ulimits user
    userns_mode volumes volumes_from working_dir
"""


def list_inputs(case: Path) -> list[str]:
    """Those that are pods; what they name lies beside them."""
    return [os.fspath(path) for path in sorted(case.iterdir()) if path.suffix in INPUTS or "compose" in path.name]


@pytest.mark.parametrize("case", sorted(path for path in CASES.iterdir()), ids=lambda case: case.name)
def test_case(case: Path) -> None:
    converted = convert_files(list_inputs(case), {})
    assert not converted.lost
    actual = {f"{name}.yaml": text.replace(os.fspath(case), "/CASE") for name, text in converted.pods}
    actual["messages"] = "".join(f"{fault}\n" for fault in converted.faults).replace(os.fspath(case), "/CASE")
    expected = case / "expected"
    if os.environ.get("RKTD_UPDATE_GOLDEN") == "1":
        expected.mkdir(exist_ok=True)
        for name, text in actual.items():
            (expected / name).write_text(text)
    assert {path.name: path.read_text() for path in expected.iterdir()} == actual
    for name, text in converted.pods:
        assert check_pod(name, text) == []
        assert "cannot be converted" not in actual["messages"]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return os.fspath(path)


def convert_container(tmp_path: Path, lines: str) -> Converted:
    return convert_files([write(tmp_path / "web.container", f"[Container]\nImage=example.org/web{DIGEST}\n{lines}\n")], {})


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("PodmanArgs=--privileged", "PodmanArgs: cannot be converted: there is no podman"),
        ("AddDevice=/dev/kvm", "AddDevice: cannot be converted: devices of the host"),
        ("UserNS=keep-id", "UserNS: cannot be converted: 'keep-id'"),
        ("User=www-data", "User: cannot be converted: must be UID[:GID] in digits, got 'www-data'"),
        ("PublishPort=80", ""),
        ("PublishPort=127.0.0.1::80", "PublishPort: cannot be converted: '127.0.0.1::80' leaves the port of the host to chance"),
        ("Volume=/a:/b:U", "Volume: cannot be converted: the option 'U' of a volume"),
        ("Volume=%h/x:/x", "cannot be converted: '%h/x:/x' has a specifier of systemd"),
        ("Exec=echo $HOME", "Exec: cannot be converted: '$HOME': systemd would put a variable of the unit there"),
        ("AutoUpdate=daily", "AutoUpdate: must be registry or local, got 'daily'"),
        (
            "AutoUpdate=local\nLabel=io.containers.autoupdate=registry",
            "Label: cannot be converted: all images of a pod are updated from one",
        ),
        ("StopSignal=SIGQUIT", ""),
        ("Network=pasta", "Network: cannot be converted: the network 'pasta'"),
        ("Network=much-too-long-name.network", "Network: cannot be converted: 'much-too-long-name'"),
        ("SeccompProfile=/etc/x.json", "SeccompProfile: cannot be converted: profiles of pods are below /etc/rktd/seccomp"),
        ("EnvironmentFile=/nonexistent", "EnvironmentFile: cannot be converted: '/nonexistent' cannot be read: no such file"),
        ("Pod=x.pod", "Container.Pod: x.pod is not among the files"),
        ("Imagee=x", "Container.Imagee: unknown key\n  hint: did you mean 'Image'?"),
        (
            "[Service]\nExecStartPre=/bin/true",
            "Service.ExecStartPre: cannot be converted: a setting of the unit\n  hint: keep it in a drop-in",
        ),
        ("[Unit]\nConditionPathExists=/x", "Unit.ConditionPathExists: cannot be converted: a setting of the unit"),
        ("[Unit]\nWants=redis.container", "Unit.Wants: cannot be converted: a pod file has requires, not wants"),
        ("[Install]\nAlias=x.service", "Install.Alias: cannot be converted"),
        ("[Service]\nRestart=on-watchdog", "Service.Restart: cannot be converted"),
        ("[Serwice]\nRestart=no", "unknown section [Serwice]\n  hint: did you mean 'Service'?"),
        ("oops", "web.container:3:1: must be KEY=VALUE in a [Section], got 'oops'"),
        ('Exec="open', 'has a quote " that is not closed'),
    ],
)
def test_what_quadlet_has_and_pods_have_not(tmp_path: Path, lines: str, reason: str) -> None:
    """Each is an error, at its line, and never silence."""
    converted = convert_container(tmp_path, lines)
    told = [str(found) for found in (*converted.lost, *converted.faults) if found.severity == "error"]
    if reason:
        assert len(told) == 1, told
        assert reason in told[0]
        assert told[0].startswith(os.fspath(tmp_path))
    else:
        assert told == []


@pytest.mark.parametrize(
    ("lines", "policy"),
    [("AutoUpdate=registry", "registry"), ("AutoUpdate=local", "local"), ("Label=io.containers.autoupdate=image", "registry")],
)
def test_updates_of_images(tmp_path: Path, lines: str, policy: str) -> None:
    """Of .container, of .kube, and of its YAML."""
    converted = convert_container(tmp_path, lines)
    assert not converted.lost + converted.faults
    assert f"    systemd.io/auto-update: {policy}\n" in converted.pods[0][1]
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, annotations: {%s}}\nspec: {containers: [{name: a, image: example.org/b%s}]}\n"
    kube = "[Kube]\nYaml=x.yaml\n"
    for annotation, line in ((f"io.containers.autoupdate/a: {policy}", ""), ("", f"AutoUpdate=a/{policy}")):
        write(tmp_path / "x.yaml", pod % (annotation, DIGEST))
        converted = convert_files([write(tmp_path / "x.kube", kube + line)], {})
        assert not converted.lost
        assert f"    systemd.io/auto-update: {policy}\n" in converted.pods[0][1]


def test_drop_ins_of_quadlet(tmp_path: Path) -> None:
    """They go on with the file; the more special one of a name counts, and what is wrong has its own place."""
    for name, text in {
        "container.d/10.conf": "[Container]\nEnvironment=A=common\nHostName=common\n",
        "web-.container.d/10.conf": "[Container]\nEnvironment=A=web\n",
        "web-1.container.d/20.conf": "[Container]\nEnvironment=\nEnvironment=B=one\n[Service]\nRestart=always\n",
        "web-1.container.d/not-this": "oops",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, text)
    path = write(tmp_path / "web-1.container", f"[Container]\nImage=example.org/web{DIGEST}\n")
    converted = convert_files([path], {})
    assert not converted.lost + converted.faults
    text = converted.pods[0][1]
    assert ("name: A" in text, "name: B" in text, "hostname" in text, "restartPolicy: Always" in text) == (False, True, False, True)
    write(tmp_path / "web-1.container.d/30.conf", "[Container]\nUlimit=nofile=1:1\n")
    (lost,) = convert_files([path], {}).lost
    assert str(lost).startswith(f"{tmp_path}/web-1.container.d/30.conf:2:1: Container.Ulimit: cannot be converted")


def test_the_volume_of_a_mount_has_the_name_that_its_file_says(tmp_path: Path) -> None:
    write(tmp_path / "data.volume", "[Volume]\nVolumeName=mine\n")
    for line in ("Mount=type=volume,source=data.volume,destination=/data", "Volume=data.volume:/data"):
        assert "claimName: mine\n" in convert_container(tmp_path, line).pods[0][1]


COMPOSED = "services:\n  web:\n    image: example.org/web" + DIGEST + "\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("    build: .", "services.web.build: cannot be converted: building images"),
        ("    devices: [/dev/dri]", "services.web.devices: cannot be converted: devices of the host"),
        ("    network_mode: service:db", "network_mode: cannot be converted: the network of another container"),
        ("    deploy: {replicas: 3}", "services.web.deploy.replicas: cannot be converted: there is one pod of a name"),
        ("    depends_on: {db: {condition: service_completed_successfully}}", "depends_on.db: cannot be converted: waiting for the end"),
        ("    networks: {back: {aliases: [www]}}", "aliases: cannot be converted: other pods know this one as 'web'"),
        ("    networks: [front, back]", "services.web.networks: cannot be converted: a pod is in one network"),
        ("    privliged: true", "services.web.privliged: unknown key\n  hint: did you mean 'privileged'?"),
        ("    environment: [HOME]", "cannot be converted: the variable 'HOME' is to come from who starts the container"),
        ("    command: $NOT_SET", "the variable 'NOT_SET' is not set"),
        ("    restart: on-failure:3", "services.web.restart: cannot be converted: an end of the restarts"),
        ("    healthcheck: {interval: 5s}", "services.web.healthcheck: cannot be converted: what the image itself checks"),
        ("    secrets: [x]", "there is no 'x' in secrets"),
        ("    user: nobody", "services.web.user: cannot be converted"),
        ("    tty: true", "services.web.tty: cannot be converted"),
        ("    sysctls: {kernel.shmmax: 1}", "kernel.shmmax"),
        ("    pid: service:db", "services.web.pid: cannot be converted: process name spaces of others, got 'service:db'"),
        ("volumes: {data: {driver: nfs}}", "volumes.data.driver: cannot be converted"),
        ("include: [x.yaml]", "include: cannot be converted"),
    ],
)
def test_what_compose_has_and_pods_have_not(tmp_path: Path, text: str, reason: str) -> None:
    converted = convert_files([write(tmp_path / "compose.yaml", f"{COMPOSED}{text}\n")], {})
    told = [str(found) for found in (*converted.lost, *converted.faults) if found.severity == "error"]
    assert len(told) == 1, told
    assert reason in told[0]


def test_the_processes_of_the_host(tmp_path: Path) -> None:
    converted = convert_files([write(tmp_path / "compose.yaml", f"{COMPOSED}    pid: host\n")], {})
    assert not converted.lost
    assert {"  hostPID: true", "  hostUsers: true"} < set(converted.pods[0][1].split("\n"))
    assert ["root in the pod is root of the host" in str(found) for found in converted.faults] == [True]


def test_each_value_of_compose_is_expanded_once(tmp_path: Path) -> None:
    """An alias is the same value once more, not what came of it: else it doubles with each."""
    write(tmp_path / ".env", "A=$A$A\n")
    aliases = "".join(f"      A{n}: *a\n" for n in range(10))
    text = f"{COMPOSED}    environment:\n      A: &a $A\n{aliases}"
    converted = convert_files([write(tmp_path / "compose.yaml", text)], {})
    assert not converted.lost + converted.faults
    assert "A$A" in converted.pods[0][1]
    assert "A$A$A" not in converted.pods[0][1].replace("$$", "$")


@pytest.mark.parametrize(
    "text",
    [
        "    command: [" + "$A" * 100_000 + "]",
        "    command: [" + "$A, " * 1000 + "]",
        "    command: [&a " + "x" * 100_000 + ", *a" * 50 + "]",
    ],
)
def test_what_becomes_of_compose_is_bounded(tmp_path: Path, text: str) -> None:
    write(tmp_path / ".env", f"A={'x' * 10_000}\n")
    converted = convert_files([write(tmp_path / "compose.yaml", f"{COMPOSED}{text}\n")], {})
    assert converted.pods == ()
    (told,) = converted.faults
    assert "the file has more than 4 MiB of text once its variables and aliases are expanded" in str(told)


def test_a_value_of_compose_has_one_fault(tmp_path: Path) -> None:
    converted = convert_files([write(tmp_path / "compose.yaml", f"{COMPOSED}    command: ['{'${ ' * 100_000}']\n")], {})
    (told,) = converted.faults
    assert "has a $ that begins nothing" in str(told)


def test_what_only_root_reads_stays_so(tmp_path: Path) -> None:
    """What stands in an environment file, or in a variable, stands in the pod file then."""
    Path(write(tmp_path / "secret.env", "PASSWORD=hunter2\n")).chmod(0o600)
    path = write(tmp_path / "web.container", f"[Container]\nImage=example.org/web{DIGEST}\nEnvironmentFile=secret.env\n")
    mask = os.umask(0o022)
    try:
        assert main(["convert", path, "-d", os.fspath(tmp_path)]) == 0
    finally:
        os.umask(mask)
    file = tmp_path / "web.yaml"
    assert "hunter2" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_rkt_has_and_pods_have_not(tmp_path: Path) -> None:
    text = (CASES / "rkt/etcd.json").read_text()
    for old, new, reason in (
        (
            '"supplementaryGIDs": [500]',
            '"eventHandlers": [{"name": "pre-start", "exec": ["/x"]}]',
            "apps[0].app.eventHandlers: cannot be converted: hooks",
        ),
        ("capabilities-retain-set", "oom-score-adj", "the isolator os/linux/oom-score-adj"),
        ('"readOnly": false', '"mode": "0755"', "volumes[0].mode: cannot be converted"),
        ('"hostPort": 2379', '"hostPort": 2379, "x": 1', ""),
        ('"name": "client", "hostPort"', '"name": "klient", "hostPort"', "no app has a port called 'klient'"),
        ("PodManifest", "ImageManifest", "acKind: must be PodManifest, got 'ImageManifest'"),
    ):
        assert old in text
        converted = convert_files([write(tmp_path / "etcd.json", text.replace(old, new))], {})
        told = [str(found) for found in (*converted.lost, *converted.faults) if found.severity == "error"]
        if reason:
            assert len(told) == 1, told
            assert reason in told[0]


@pytest.mark.parametrize("section", QUADLET)
def test_every_key_of_quadlet_is_known(section: str) -> None:
    tables = {"Container": keys.CONTAINER, "Pod": keys.POD, "Kube": keys.KUBE}
    assert set(QUADLET[section].split()) <= set(tables[section])


def test_every_key_of_compose_is_known() -> None:
    assert set(COMPOSE.split()) <= set(compose.SERVICE)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written when something is lost; --partial says it in the file, too; no file is replaced."""
    path = write(tmp_path / "web.container", f"[Container]\nImage=example.org/web{DIGEST}\nUlimit=nofile=1:1\n")
    out = tmp_path / "pods"
    out.mkdir()
    assert main(["convert", path, "--directory", os.fspath(out)]) == 78
    assert "web.container:3:1: Container.Ulimit: cannot be converted" in capsys.readouterr().err
    assert not list(out.iterdir())
    assert main(["convert", "--partial", path, "-d", os.fspath(out)]) == 0
    assert "warning: Container.Ulimit: cannot be converted" in capsys.readouterr().err
    text = (out / "web.yaml").read_text()
    assert text.startswith(f"# {path}:3:1: Container.Ulimit: cannot be converted")
    assert main(["check", os.fspath(out / "web.yaml")]) == 0
    assert main(["convert", "--partial", path, "-d", os.fspath(out)]) == 70
    assert main(["convert", os.fspath(CASES / "compose/compose.yaml")]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("# ")] == ["# app.yaml", "# db.yaml", "# web.yaml"]
    assert main(["convert", os.fspath(out / "web.yaml")]) == 78
    assert "pod files are the same" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "a", "$", "$$", "$(A)", "$$(A)", "$$$", "a$b", "${A}", "$()$$(A)$"])
def test_escaped_text_arrives(text: str) -> None:
    assert expand_references(escape_variables(text), {"A": "no"}) == text


@pytest.mark.parametrize(
    "value",
    [
        "",
        "a b",
        "no",
        "1",
        "0x1",
        "~",
        " a",
        "a: b",
        "a #b",
        "- a",
        "---",
        "é",
        "a\nb",
        "a\nb\n",
        "\n",
        " a\nb",
        "a\n\n",
        "tab\t",
        "\x7f",
        '"',
        "\\",
        "a:",
    ],
)
def test_yaml_is_read_back(value: str) -> None:
    """By the strict reader, and by PyYAML."""
    import yaml

    text = render_documents([{"a": {"b": value, "c": [value, {"d": value}]}}])
    assert yaml.safe_load(text) == {"a": {"b": value, "c": [value, {"d": value}]}}
    documents, faults = parse_yaml(text.encode(), "x")
    assert not faults
    assert documents


def test_words() -> None:
    assert split_words("a 'b c' \"d\\te\" f\\sg ''") == ["a", "b c", "d\te", "f g", ""]
    assert [parse_seconds(text) for text in ("30", "1m30s", "500ms", "1h 1s")] == [30, 90, 1, 3601]
    assert [parse_size(text) for text in ("256m", "1g", "64Mi", "100", "512b", "1GB")] == ["256Mi", "1Gi", "64Mi", "100", "512", "1Gi"]
    assert parse_ports("[::1]:80:8080/udp") == [{"containerPort": 8080, "hostPort": 80, "hostIP": "::1", "protocol": "UDP"}]
    for call, text, message in (
        (split_words, "'a", "not closed"),
        (parse_seconds, "5x", "not a time"),
        (parse_size, "5x", "not a size"),
        (parse_ports, "1-3:1-2", "different lengths"),
        (parse_ports, "0:1", "1 to 65535"),
    ):
        with pytest.raises(ValueError, match=message):
            call(text)
