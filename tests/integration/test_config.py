# SPDX-License-Identifier: Apache-2.0
"""ConfigMaps, Secrets, credentials, fields and claims in real pods: every value to the byte, and secrets where nobody else finds them."""

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.pods import Pods
from tests.output_schema import check_record

ODD = "two words\n$HOME ${X} $(Y) `id` \"double\" 'single' back\\slash % %n \t#no;comment\n\n  end \u00e9\u4e2d \r\x01 \\"
BINARY = bytes(range(256)) * 3
SECRET = "geheim-7Rv2-" + "wort"  # in two parts: what is looked for is in no file of the checkout


def document(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **fields}


def encode(data: bytes | str) -> str:
    return base64.b64encode(data if isinstance(data, bytes) else data.encode()).decode()


def write(pods: Pods, name: str, spec: dict[str, Any], *documents: dict[str, Any], **metadata: Any) -> None:
    """A pod under Never and what stands beside it."""
    pod = {**document("Pod", name), "spec": {"restartPolicy": "Never", **spec}}
    pod["metadata"].update(metadata)
    pods.bed.write(f"/etc/pods/{name}.yaml", "\n---\n".join(json.dumps(d, ensure_ascii=False) for d in (pod, *documents)), 0o600)


def run(pods: Pods, name: str, spec: dict[str, Any], *documents: dict[str, Any], **metadata: Any) -> list[str]:
    write(pods, name, spec, *documents, **metadata)
    pods.start(name)
    pods.wait_end(name)
    return pods.lines(name)


def variable(name: str, kind: str, source: str, key: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "valueFrom": {f"{kind}KeyRef": {"name": source, "key": key, **more}}}


@pytest.fixture
def credstores(pods: Pods) -> Iterator[None]:
    pods.bed.sh("mkdir -p -m 700 /etc/credstore /etc/credstore.encrypted /run/credstore")
    yield
    pods.bed.sh("rm -rf /etc/credstore /etc/credstore.encrypted /run/credstore /run/secret-input")


def test_variables(pods: Pods) -> None:
    """Exact values of every source; envFrom with a prefix; what is optional may be missing; later ones win."""
    env = [
        variable("ODD", "configMap", "conf", "odd"),
        variable("HIDDEN", "secret", "sec", "odd"),
        variable("EMPTY", "secret", "sec", "empty"),
        variable("MISSING", "secret", "none", "x", optional=True),
        variable("NOKEY", "configMap", "conf", "x", optional=True),
        {"name": "URL", "value": "db://u:$(HIDDEN)@h"},
        {"name": "P_WON", "value": "later"},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['ex.org/tier']"}}},
        {"name": "ACCOUNT", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.serviceAccountName"}}},
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "0"}}},
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
    ]
    env_from = [
        {"prefix": "P_", "configMapRef": {"name": "more"}},
        {"prefix": "S_", "secretRef": {"name": "sec"}},
        {"secretRef": {"name": "none", "optional": True}},
    ]
    app = pods.app(
        ["sh", "-c", "base64 -w0 </proc/self/environ; echo"],
        env=env,
        envFrom=env_from,
        resources={"limits": {"memory": "64Mi", "cpu": "1500m"}, "requests": {"cpu": "250m"}},
    )
    documents = (
        document("ConfigMap", "conf", data={"odd": ODD}),
        document("ConfigMap", "more", data={"A": "1", "WON": "earlier", "not-a-name": "x"}),
        document("Secret", "sec", data={"odd": encode(ODD), "binary": encode(BINARY)}, stringData={"empty": ""}, type="Opaque"),
    )
    (line,) = run(pods, "v", {"containers": [app]}, *documents, labels={"ex.org/tier": "front"})
    found = dict(item.split("=", 1) for item in base64.b64decode(line).decode().split("\0") if item)
    expected = {
        "ODD": ODD,
        "HIDDEN": ODD,
        "EMPTY": "",
        "URL": f"db://u:{ODD}@h",
        "P_WON": "later",
        "P_A": "1",
        "S_odd": ODD,
        "S_empty": "",
        "NAME": "v",
        "LABEL": "front",
        "ACCOUNT": "default",
        "MEMORY": "64",
        "CPU": "2",
        "CPUS": "250",
    }
    assert {key: found.get(key) for key in expected} == expected
    assert {"MISSING", "NOKEY", "P_not-a-name", "S_binary"} & set(found) == set()
    said = [e["MESSAGE"] for e in pods.bed.journal("-u", "pod-stage0@v", f"--after-cursor={pods.cursor}")]
    assert "app app: ConfigMap more: not-a-name is no variable: its name is not one of letters, digits and underscores" in said
    assert "app app: Secret sec: binary is no variable: its value is not text" in said


def test_files(pods: Pods) -> None:
    """Content to the byte, modes, owners with fsGroup, items, fields; read-only, in memory that is not swapped out; subPath of one file."""
    volumes = [
        {"name": "c", "configMap": {"name": "conf", "defaultMode": 0o640}},
        {"name": "s", "secret": {"secretName": "sec", "items": [{"key": "bin", "path": "deep/er/b", "mode": 0o400}]}},
        {"name": "d", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {
            "name": "p",
            "projected": {
                "defaultMode": 0o444,
                "sources": [
                    {"configMap": {"name": "conf", "items": [{"key": "odd", "path": "conf/odd"}]}},
                    {"secret": {"name": "sec"}},
                    {"secret": {"name": "none", "optional": True}},
                    {
                        "downwardAPI": {
                            "items": [
                                {"path": "mem", "resourceFieldRef": {"containerName": "app", "resource": "limits.memory", "divisor": "1Ki"}}
                            ]
                        }
                    },
                ],
            },
        },
    ]
    mounts: list[dict[str, Any]] = [{"name": v, "mountPath": f"/{v}"} for v in "csdp"]
    mounts.append({"name": "c", "mountPath": "/etc/one.conf", "subPath": "odd"})
    script = (
        "sha256sum /c/* /s/deep/er/b /p/conf/odd /p/bin /p/text /etc/one.conf | cut -d' ' -f1; cat /d/labels; echo; cat /p/mem; echo; "
        "stat -c '%a %u %g' /c/odd /s/deep/er/b /s/deep /p/text; stat -f -c %T /s; grep -c noswap /proc/self/mountinfo; "
        "(echo x >/s/new) 2>&1 | grep -o 'Read-only file system'; ls /p"
    )
    app = pods.app(script, volumeMounts=mounts, resources={"limits": {"memory": "64Mi"}})
    documents = (
        document("ConfigMap", "conf", data={"odd": ODD}, binaryData={"raw": encode(BINARY)}),
        document("Secret", "sec", data={"bin": encode(BINARY)}, stringData={"text": ODD}),
    )
    odd, raw = (hashlib.sha256(d).hexdigest() for d in (ODD.encode(), BINARY))
    labels = {"a": 'say "x"', "b.c/d": "1"}
    lines = run(pods, "f", {"containers": [app], "volumes": volumes}, *documents, labels={"b.c/d": "1", "a": "x"}, annotations=labels)
    assert lines[:7] == [odd, raw, raw, odd, raw, odd, odd]
    assert lines[7:10] == ['a="x"', 'b.c/d="1"', "65536"]
    assert lines[10:14] == ["640 0 0", "400 0 0", "755 0 0", "444 0 0"]
    assert lines[14] == "tmpfs"
    assert int(lines[15]) >= 4
    assert lines[16:] == ["Read-only file system", "bin", "conf", "mem", "text"]
    app = pods.app("id -u; stat -c '%a %u %g' /s/deep /s/deep/er/b; sha256sum </s/deep/er/b | cut -d' ' -f1", volumeMounts=mounts[1:2])
    spec = {"containers": [app], "volumes": volumes[1:2], "securityContext": {"runAsUser": 1000, "runAsGroup": 7, "fsGroup": 2000}}
    assert run(pods, "f", spec, *documents) == ["1000", "2755 0 2000", "440 0 2000", raw]
    assert pods.bed.sh("ls -d /run/rktd/vault 2>&1 || true").stdout.startswith("ls: cannot access"), "gone with the last pod"


def test_drop_ins_change_documents(pods: Pods) -> None:
    part = document("ConfigMap", "conf", data={"b": "changed", "a": None})
    more = document("ConfigMap", "new", data={"n": "new"})
    pods.bed.write("/etc/pods/f.yaml.d/10.yaml", "\n---\n".join(json.dumps(d) for d in (part, more)))
    volumes = [{"name": "c", "projected": {"sources": [{"configMap": {"name": "conf"}}, {"configMap": {"name": "new"}}]}}]
    app = pods.app("cd /c; for f in *; do echo $f; cat $f; echo; done", volumeMounts=[{"name": "c", "mountPath": "/c"}])
    spec = {"containers": [app], "volumes": volumes}
    assert run(pods, "f", spec, document("ConfigMap", "conf", data={"a": "1", "b": "2", "c": "3"})) == [
        "b",
        "changed",
        "c",
        "3",
        "n",
        "new",
    ]


def test_a_secret_is_nowhere_in_clear(pods: Pods, credstores: None) -> None:
    """From an encrypted credential: in the app, and in no unit, argument list, property, journal, or file below /var, /etc, /run."""
    pods.bed.write("/run/secret-input", SECRET, 0o600)
    pods.bed.sh(
        "systemd-creds encrypt --name=db@password /run/secret-input /etc/credstore.encrypted/db@password; rm /run/secret-input; "
        "printf user >/etc/credstore/db@user; printf never >/etc/credstore/db@password; printf other >/etc/credstore/db.x@password"
    )
    script = "echo ${#PASSWORD} ${#URL} $(wc -c </s/password) $(cat /s/user) $(ls /s | wc -l) $(ulimit -Hc); exec sleep 1000"
    app = pods.app(
        script,
        env=[variable("PASSWORD", "secret", "db", "password"), {"name": "URL", "value": "x://$(PASSWORD)"}],
        volumeMounts=[{"name": "s", "mountPath": "/s"}],
    )
    spy = pods.app(
        "grep -r geheim-7 /environment /run /etc /proc/*/environ 2>/dev/null; ls /environment /apps /proc/1/root/environment 2>/dev/null; "
        "echo done",
        "spy",
        securityContext={"runAsUser": 0},
    )
    write(pods, "s", {"containers": [app, spy], "volumes": [{"name": "s", "secret": {"secretName": "db"}}]})
    pods.start("s")
    size = len(SECRET)
    pods.bed.sh("for i in $(seq 100); do journalctl --sync; journalctl -u pod@s -t spy | grep -q done && break; sleep 0.05; done")
    assert pods.lines("s", "-t", "app") == [f"{size} {size + 4} {size} user 2 0"]  # ulimit counts blocks
    assert pods.lines("s", "-t", "spy") == ["done"]
    assert pods.bed.run("podctl", "exec", "s/app", "--", "sh", "-c", "echo ${#URL}").stdout == f"{size + 4}\n"
    limits = pods.bed.run("podctl", "exec", "s/app", "--", "grep", "core", "/proc/self/limits").stdout.split()
    assert limits[-3:-1] == ["1", "1"]
    pods.bed.write("/run/pattern/p", SECRET, 0o600)  # nor in the search's own arguments
    found = pods.bed.sh(
        "grep -rlaFf /run/pattern/p --exclude-dir=vault --exclude-dir=pattern /var /etc /usr/lib/systemd /run 2>/dev/null || true; "
        "for p in /proc/[0-9]*; do grep -laFf /run/pattern/p $p/cmdline; done 2>/dev/null || true; "
        "journalctl --sync; journalctl -o export | grep -caFf /run/pattern/p || true; "
        "systemctl show 'pod*' | grep -cFf /run/pattern/p || true; systemctl -M s show '*' | grep -cFf /run/pattern/p || true; "
        "dmesg | grep -cFf /run/pattern/p || true"
    ).stdout.split()
    assert found == ["0"] * 4
    assert (
        pods.bed.sh("stat -c '%a %U' /run/rktd/vault; grep /run/rktd/vault /proc/self/mountinfo | grep -c noswap").stdout == "700 root\n1\n"
    )
    environments = pods.bed.sh("grep -laFf /run/pattern/p /proc/[0-9]*/environ 2>/dev/null | wc -l").stdout.strip()
    assert environments == "1", "the app's own"
    pods.bed.sh("rm -r /run/pattern")
    pods.stop("s")
    pods.wait_end("s")
    assert pods.bed.sh("ls /run/rktd/vault 2>&1 || true").stdout.startswith("ls: cannot access")


def test_refusals_name_place_and_remedy(pods: Pods, credstores: None) -> None:
    """What only the start can find: missing secrets and keys, a secret for the argument list, a credential that others may write."""

    def refused(app: dict[str, Any], *documents: dict[str, Any], **spec: Any) -> str:
        write(pods, "r", {"containers": [app], **spec}, *documents)
        assert pods.start("r", check=False).returncode == 1
        return pods.bed.run("systemctl", "status", "--full", "--lines=30", "pod@r", check=False).stdout

    wanted = variable("A", "secret", "db", "pass")
    assert "spec.containers[0].env[0].valueFrom.secretKeyRef: there is no Secret 'db'" in (said := refused(pods.app("true", env=[wanted])))
    assert "credentials db@KEY in /etc/credstore or /etc/credstore.encrypted" in said
    pods.bed.sh("printf x >/run/credstore/db@password")
    said = refused(pods.app("true", env=[wanted]))
    assert "Secret 'db' has no key 'pass'" in said
    assert "did you mean 'password'?" in said
    secret = document("Secret", "db", stringData={"pass": SECRET, "x": "y"})
    said = refused({**pods.app("true", env=[wanted]), "command": ["echo", "--p=$(A)"]}, secret)
    assert "app app: $(A) would put a secret into an argument list, which every user of the host can read" in said
    assert SECRET not in said
    pods.bed.sh("chmod 666 /run/credstore/db@password")
    said = refused(pods.app("true", env=[variable("A", "secret", "db", "password")]))
    assert "/run/credstore/db@password: must not be writable by group or others, has mode 0666" in said
    pods.bed.sh("chmod 600 /run/credstore/db@password; printf x >/etc/credstore.encrypted/db@password")
    said = refused(pods.app("true", env=[variable("A", "secret", "db", "password")]))
    assert "/etc/credstore.encrypted/db@password: cannot be decrypted" in said
    mounts = [{"name": "s", "mountPath": "/s", "subPath": "missing"}]
    said = refused(pods.app("true", volumeMounts=mounts), secret, volumes=[{"name": "s", "secret": {"secretName": "db"}}])
    assert "volume s: there is no missing in it" in said
    assert "it has pass, x" in said


def test_a_claim_outlives_its_pods(pods: Pods) -> None:
    """Across restarts and removal, between pods with other ids, with fsGroup; only root can look at it on the host."""
    pods.bed.sh("rm -rf /var/lib/rktd/volumes")
    volumes = [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]
    mounts = [{"name": "d", "mountPath": "/d"}]
    claim = document(
        "PersistentVolumeClaim", "data", spec={"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    )
    script = "stat -c %a /d; cat /d/a 2>/dev/null; echo $HOSTNAME >>/d/a; chmod 600 /d/a; stat -c '%u %g' /d/a"
    user = {"runAsUser": 1000, "runAsGroup": 1000}
    spec = {"containers": [pods.app(script, volumeMounts=mounts, securityContext=user)], "volumes": volumes}
    assert run(pods, "one", spec, claim) == ["777", "1000 1000"]
    assert run(pods, "one", spec, claim) == ["777", "one", "1000 1000"]
    pods.bed.sh("rm /etc/pods/one.yaml")
    assert run(pods, "two", spec) == ["777", "one", "one", "1000 1000"]
    assert (
        pods.bed.sh("stat -c '%u %g %a' /var/lib/rktd/volumes/data/a; stat -c '%u %a' /var/lib/rktd/volumes").stdout
        == "1000 1000 600\n0 700\n"
    )
    app = pods.app("cat /d/a | wc -l; stat -c '%g %a' /d /d/a; (echo x >/d/new) 2>&1 | grep -o Read-only", volumeMounts=mounts)
    spec = {"containers": [app], "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}}]}
    assert run(pods, "three", {**spec, "securityContext": {"fsGroup": 3000}}) == ["3", "3000 2777", "3000 660", "Read-only"]


def test_many_pods_share_the_vault(pods: Pods) -> None:
    """It is mounted once and unmounted by the last of many that come and go at once; a killed pod has its secrets again when it is back."""
    secret = document("Secret", "sec", stringData={"a": "x"})
    app = pods.app(
        "cat /s/a; echo; exec sleep 1000", envFrom=[{"secretRef": {"name": "sec"}}], volumeMounts=[{"name": "s", "mountPath": "/s"}]
    )
    names = [f"m{index}" for index in range(6)]
    for name in names:
        spec = {"restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 1, "containers": [app]}
        write(pods, name, {**spec, "volumes": [{"name": "s", "secret": {"secretName": "sec"}}]}, secret)
    units = " ".join(f"pod@{name}" for name in names)
    for _ in range(2):
        pods.bed.sh(f"systemctl start {units}", timeout=120)
        assert pods.bed.sh("ls /run/rktd/vault; grep -c ' /run/rktd/vault ' /proc/self/mountinfo").stdout.split() == [*names, "1"]
        pods.bed.sh(f"systemctl stop {units}")
        for name in names:
            pods.wait_end(name)
        assert pods.bed.sh("ls /run/rktd/vault 2>&1 || true").stdout.startswith("ls: cannot access")
    pods.start("m0")
    pods.bed.sh("systemctl kill --signal=KILL --kill-whom=main pod@m0; sleep 1")
    pods.wait_state("m0", "active")
    pods.bed.sh("for i in $(seq 100); do journalctl --sync; journalctl -u pod@m0 -o cat -t app -n1 | grep -q x && break; sleep 0.05; done")
    assert pods.lines("m0") == ["x"]
    assert pods.bed.sh("ls /run/rktd/vault").stdout == "m0\n"


def test_sub_paths_by_variable(pods: Pods) -> None:
    """As Kubernetes' own example has it: a directory per pod in a volume that pods share."""
    volumes = [{"name": "d", "persistentVolumeClaim": {"claimName": "logs"}}]
    mounts = [{"name": "d", "mountPath": "/log", "subPathExpr": "$(POD)/log"}, {"name": "d", "mountPath": "/all"}]
    env = [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    for name, seen in (("x", ["x"]), ("y", ["x", "y"])):
        app = pods.app("echo from $POD >/log/f; cd /all; for f in */log/f; do cat $f; done", env=env, volumeMounts=mounts)
        assert run(pods, name, {"containers": [app], "volumes": volumes}) == [f"from {pod}" for pod in seen]
    pods.bed.sh("rm /etc/pods/*; podctl volume rm logs")


def test_volume_verbs(pods: Pods) -> None:
    """list, export and import of the same files, owners and modes; rm and replace, unless somebody needs it."""
    bed = pods.bed
    bed.sh("rm -rf /var/lib/rktd/volumes /srv/out; mkdir /srv/out")
    volumes = [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]
    mounts = [{"name": "d", "mountPath": "/d"}]
    script = (
        "cd /d; echo text >a; chown 1000:5 a; chmod 4750 a; mkdir -p x/y; ln -s /etc/passwd x/link; mkfifo x/fifo; "
        "head -c 300000 /dev/zero >x/y/z; touch up; exec sleep 1000"
    )
    write(pods, "w", {"containers": [pods.app(script, volumeMounts=mounts)], "volumes": volumes})
    pods.start("w")
    bed.sh("for i in $(seq 100); do [ -e /var/lib/rktd/volumes/data/up ] && break; sleep 0.05; done")
    (record,) = json.loads(bed.run("podctl", "volume", "list", "--output=json").stdout)
    check_record("volume", record)
    assert (record["name"], record["path"], record["pods"]) == ("data", "/var/lib/rktd/volumes/data", [{"name": "w", "use": "running"}])
    assert record["bytes"] > 300000
    done = bed.run("podctl", "volume", "rm", "--force", "data", check=False)
    assert (done.returncode, done.stderr) == (69, "podctl: volume data is in use: pod w runs\n  hint: podctl stop w\n")
    bed.run("podctl", "volume", "export", "data", "/srv/out/data.tar")
    bed.sh("podctl volume export data - >/srv/out/piped.tar")
    pods.stop("w")
    pods.wait_end("w")
    bed.run("podctl", "volume", "import", "copy", "/srv/out/data.tar")
    bed.sh("podctl volume import piped - </srv/out/piped.tar")
    listing = "find . -printf '%P %y %m %U %G %s %l\\n' | sort; cat a"
    trees = [bed.sh(f"cd /var/lib/rktd/volumes/{name}; {listing}").stdout for name in ("data", "copy", "piped")]
    assert "a f 4750 1000 5 5 " in trees[0]
    assert trees[0] == trees[1] == trees[2]
    for argv, code, message in (
        (("import", "copy", "/srv/out/data.tar"), 69, "there is a volume 'copy' already"),
        (("import", "bad", "/srv/out/none.tar"), 70, "none.tar: Cannot open: No such file or directory"),
        (("import", "Bad", "/srv/out/data.tar"), 64, "'Bad' is not a valid name"),
        (("rm", "dat"), 66, "there is no volume 'dat'\n  hint: did you mean 'data'?"),
        (("rm", "copy", "data"), 69, "volume data is claimed by the file of pod w"),
    ):
        done = bed.run("podctl", "volume", *argv, check=False)
        assert done.returncode == code, done.stderr
        assert message in done.stderr
    bed.sh("cd /srv/out; mkdir t; echo x >t/x; tar -cf ids.tar -C t --owner=:70000 --numeric-owner .; head -c 100000 data.tar >cut.tar")
    done = bed.run("podctl", "volume", "import", "copy", "--replace", "/srv/out/ids.tar", check=False)
    assert (done.returncode, "which no pod has" in done.stderr) == (1, True)
    assert bed.run("podctl", "volume", "import", "copy", "--replace", "/srv/out/cut.tar", check=False).returncode == 70
    assert bed.sh(f"cd /var/lib/rktd/volumes/copy; {listing}").stdout == trees[0], "as it was"
    bed.sh("cd /srv/out; tar -cf new.tar -C t .; podctl volume import copy --replace new.tar")
    assert bed.sh("ls /var/lib/rktd/volumes/copy").stdout == "x\n"
    hostile = (
        "import io, tarfile; t = tarfile.open('/srv/out/bad.tar', 'w')\n"
        "for name, kind, to in (('a', tarfile.SYMTYPE, '/srv/out/t'), ('a/y', tarfile.REGTYPE, ''), ('../up', tarfile.REGTYPE, ''), "
        "('b', tarfile.LNKTYPE, '/srv/out/t/x')):\n"
        "    i = tarfile.TarInfo(name); i.type = kind; i.linkname = to; t.addfile(i, io.BytesIO())\n"
        "t.close()"
    )
    bed.run("python3", "-c", hostile)
    assert bed.run("podctl", "volume", "import", "bad", "/srv/out/bad.tar", check=False).returncode == 70
    assert (
        bed.sh("ls /srv/out/t /var/lib/rktd/volumes; stat -c %h /srv/out/t/x").stdout
        == "/srv/out/t:\nx\n\n/var/lib/rktd/volumes:\ncopy\ndata\npiped\n1\n"
    )
    bed.run("podctl", "volume", "rm", "copy", "piped")
    bed.run("podctl", "volume", "rm", "--force", "data")
    assert bed.sh("podctl volume list --no-legend; ls -A /var/lib/rktd/volumes | grep -v import || true; rm -r /srv/out").stdout == ""


def test_a_pod_that_a_cluster_printed(pods: Pods) -> None:
    """`kubectl get pod -o yaml` of a pod of a Deployment: it runs, and what has no meaning here is told, each by its place."""
    digest = pods.image.rpartition("@")[2]
    text = CLUSTER_POD.replace("IMAGE", pods.image).replace("DIGEST", digest)
    pods.bed.write("/etc/pods/hello-6b7f9c9d4-x2x7k.yaml", text)
    said = pods.bed.run("podctl", "check", "/etc/pods/hello-6b7f9c9d4-x2x7k.yaml").stdout
    places = {line.split(": ")[2] for line in said.splitlines()}
    assert all(": warning: " in line for line in said.splitlines())
    assert {"status", "metadata.managedFields", "spec.tolerations", "spec.nodeName", "spec.priority", "metadata.ownerReferences"} <= places
    assert "spec.volumes[0].projected.sources[0].serviceAccountToken" in places
    pods.start("hello-6b7f9c9d4-x2x7k")
    pods.wait_end("hello-6b7f9c9d4-x2x7k")
    assert pods.lines("hello-6b7f9c9d4-x2x7k") == ["from hello-6b7f9c9d4-x2x7k", "default", "namespace"]


def test_a_profile_of_the_host(pods: Pods) -> None:
    """Errors by number, a kill, an allow list; what cannot be done exactly is refused by its place; `podctl exec` is held by it, too."""
    bed = pods.bed
    deny: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["sethostname"], "action": "SCMP_ACT_KILL_PROCESS"},
        ],
    }
    bed.write("/etc/rktd/seccomp/deny.json", json.dumps(deny))
    bed.write("/etc/rktd/seccomp/sub/none.json", json.dumps({"defaultAction": "SCMP_ACT_ERRNO"}))
    conditional = {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]}
    bed.write("/etc/rktd/seccomp/args.json", json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [conditional]}))
    script = "mkdir /x 2>&1 | grep -o 'No space.*'; (hostname x); echo $?; unshare -U true && echo own; exec sleep 1000"
    profile = {"seccompProfile": {"type": "Localhost", "localhostProfile": "deny.json"}}
    pods.write("v", {"restartPolicy": "Never", "securityContext": profile, "containers": [pods.app(script)]})
    pods.start("v")
    bed.sh("for i in $(seq 100); do journalctl --sync; [ $(journalctl -u pod@v -t app | wc -l) -ge 3 ] && break; sleep 0.05; done")
    assert pods.lines("v") == ["No space left on device", "159", "own"]  # 128 + SIGSYS
    assert "No space left" in bed.run("podctl", "exec", "v", "--", "mkdir", "/y", check=False).stderr
    pods.stop("v")
    calls = set(json.loads(bed.read("/usr/share/containers/seccomp.json"))["syscalls"][1]["names"]) - {"mkdir", "mkdirat", "sethostname"}
    allow: dict[str, Any] = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38}
    calls.add("arch_prctl")  # podman has it elsewhere, and chroot
    allow["syscalls"] = [{"names": sorted(calls), "action": "SCMP_ACT_ALLOW"}, *deny["syscalls"]]
    bed.write("/etc/rktd/seccomp/allow.json", json.dumps(allow))
    app = pods.app(
        "mkdir /x 2>&1 | grep -o 'No space.*'; (hostname x); echo $?; chroot / true 2>&1 | grep -o 'Function.*'",
        securityContext={"seccompProfile": {"type": "Localhost", "localhostProfile": "allow.json"}},
    )
    pods.write("v", {"restartPolicy": "Never", "containers": [app]})
    pods.start("v")
    pods.wait_end("v")
    assert pods.lines("v") == ["No space left on device", "159", "Function not implemented"]
    for path, said in (
        ("args.json", "/etc/rktd/seccomp/args.json: syscalls[0].args: conditions on arguments are not supported"),
        ("gone.json", "/etc/rktd/seccomp/gone.json: no such file or directory"),
    ):
        app = pods.app("true", securityContext={"seccompProfile": {"type": "Localhost", "localhostProfile": path}})
        pods.write("v", {"restartPolicy": "Never", "containers": [app]})
        assert pods.start("v", check=False).returncode == 1
        assert said in bed.run("systemctl", "status", "--full", "pod@v", check=False).stdout
    bed.sh("chmod 666 /etc/rktd/seccomp/deny.json")
    app = pods.app("true", securityContext=profile)
    pods.write("v", {"restartPolicy": "Never", "containers": [app]})
    assert pods.start("v", check=False).returncode == 1
    assert "must not be writable by group or others" in bed.run("systemctl", "status", "--full", "pod@v", check=False).stdout
    app = pods.app(["ls", "/"], securityContext={"seccompProfile": {"type": "Localhost", "localhostProfile": "sub/none.json"}})
    pods.write("v", {"restartPolicy": "Never", "containers": [app]})
    pods.start("v", check=False)
    assert pods.wait_end("v") == "failed"
    bed.sh("rm -r /etc/rktd/seccomp")


def test_sysctls_and_the_hosts_ipc(pods: Pods) -> None:
    """Sysctls hold in the pod, and not on the host. With hostIPC an app sees the host's segments, queues and /dev/shm, else its own."""
    bed = pods.bed
    names = {"net.ipv4.ip_unprivileged_port_start": "79", "net.ipv4.tcp_rmem": "4096 90000 100000", "net.ipv4.ping_group_range": "0 65535"}
    before = bed.sh(f"cd /proc/sys; cat {' '.join(n.replace('.', '/') for n in names)}").stdout
    script = f"cd /proc/sys; cat {' '.join(n.replace('.', '/') for n in names)} kernel/shm_rmid_forced; "
    script += "nc -l -p 79 -e true & sleep 0.2; kill $! && echo listened"
    app = pods.app(script, securityContext={"runAsUser": 1000})
    sysctls = {"sysctls": [{"name": name, "value": value} for name, value in [*names.items(), ("kernel.shm_rmid_forced", "1")]]}
    pods.write("v", {"restartPolicy": "Never", "securityContext": sysctls, "containers": [app]})
    pods.start("v")
    pods.wait_end("v")
    assert [line.split() for line in pods.lines("v")] == [["79"], ["4096", "90000", "100000"], ["0", "65535"], ["1"], ["listened"]]
    assert bed.read("/proc/sys/kernel/shm_rmid_forced") == "0\n"
    assert bed.sh(f"cd /proc/sys; cat {' '.join(n.replace('.', '/') for n in names)}").stdout == before
    pods.write(
        "v", {"restartPolicy": "Never", "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "-1"}]}, "containers": [app]}
    )
    assert pods.start("v", check=False).returncode == 1
    said = [e["MESSAGE"] for e in bed.journal("-u", "pod@v", "-t", "pod", f"--after-cursor={pods.cursor}")]
    assert "cannot set net.ipv4.tcp_rmem" in said
    bed.sh("echo shared >/dev/shm/rktd-test")
    script = "readlink /proc/self/ns/ipc; cat /dev/shm/rktd-test || echo none"
    own = bed.sh("readlink /proc/self/ns/ipc").stdout.strip()
    pods.write("v", {"restartPolicy": "Never", "hostIPC": True, "hostUsers": True, "containers": [pods.app(script)]})
    pods.start("v")
    pods.wait_end("v")
    assert pods.lines("v") == [own, "shared"]
    pods.write("v", {"restartPolicy": "Never", "hostUsers": True, "containers": [pods.app(script)]})
    pods.start("v")
    pods.wait_end("v")
    (other, none) = pods.lines("v")
    assert other != own
    assert none == "none"
    bed.sh("rm /dev/shm/rktd-test")


CLUSTER_POD = """\
apiVersion: v1
kind: Pod
metadata:
  annotations:
    kubectl.kubernetes.io/restartedAt: "2025-03-04T09:12:44+01:00"
  creationTimestamp: "2025-03-04T08:12:45Z"
  generateName: hello-6b7f9c9d4-
  labels:
    app: hello
    pod-template-hash: 6b7f9c9d4
  managedFields:
  - apiVersion: v1
    fieldsType: FieldsV1
    fieldsV1:
      f:metadata:
        f:annotations:
          .: {}
          f:kubectl.kubernetes.io/restartedAt: {}
        f:generateName: {}
        f:ownerReferences:
          .: {}
          k:{"uid":"4f3c2e35-7a0c-4f3f-9d4a-3d1f0a1b2c3d"}: {}
      f:spec:
        f:containers:
          k:{"name":"hello"}:
            .: {}
            f:env:
              .: {}
              k:{"name":"POD"}:
                .: {}
                f:name: {}
            f:image: {}
    manager: kube-controller-manager
    operation: Update
    time: "2025-03-04T08:12:45Z"
  - apiVersion: v1
    fieldsType: FieldsV1
    fieldsV1:
      f:status:
        f:conditions:
          k:{"type":"Ready"}:
            .: {}
            f:status: {}
        f:podIPs:
          .: {}
          k:{"ip":"10.244.1.7"}:
            .: {}
            f:ip: {}
    manager: kubelet
    operation: Update
    subresource: status
    time: "2025-03-04T08:12:47Z"
  name: hello-6b7f9c9d4-x2x7k
  namespace: default
  ownerReferences:
  - apiVersion: apps/v1
    blockOwnerDeletion: true
    controller: true
    kind: ReplicaSet
    name: hello-6b7f9c9d4
    uid: 4f3c2e35-7a0c-4f3f-9d4a-3d1f0a1b2c3d
  resourceVersion: "128377"
  uid: 0f8bb6a0-9a58-4a51-8d9e-3c4f6f0f3a11
spec:
  containers:
  - args:
    - echo from $$POD; cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; echo; ls /var/run/secrets/kubernetes.io/serviceaccount
    command:
    - sh
    - -c
    env:
    - name: POD
      valueFrom:
        fieldRef:
          apiVersion: v1
          fieldPath: metadata.name
    image: IMAGE
    imagePullPolicy: IfNotPresent
    name: hello
    ports:
    - containerPort: 8080
      name: http
      protocol: TCP
    resources:
      limits:
        cpu: "1"
        memory: 128Mi
      requests:
        cpu: 100m
        memory: 64Mi
    securityContext:
      allowPrivilegeEscalation: false
    terminationMessagePath: /dev/termination-log
    terminationMessagePolicy: File
    volumeMounts:
    - mountPath: /var/run/secrets/kubernetes.io/serviceaccount
      name: kube-api-access-7c2lq
      readOnly: true
  dnsPolicy: ClusterFirst
  enableServiceLinks: true
  nodeName: worker-1
  preemptionPolicy: PreemptLowerPriority
  priority: 0
  restartPolicy: Never
  schedulerName: default-scheduler
  securityContext: {}
  serviceAccount: default
  serviceAccountName: default
  terminationGracePeriodSeconds: 30
  tolerations:
  - effect: NoExecute
    key: node.kubernetes.io/not-ready
    operator: Exists
    tolerationSeconds: 300
  - effect: NoExecute
    key: node.kubernetes.io/unreachable
    operator: Exists
    tolerationSeconds: 300
  volumes:
  - name: kube-api-access-7c2lq
    projected:
      defaultMode: 420
      sources:
      - serviceAccountToken:
          expirationSeconds: 3607
          path: token
      - configMap:
          items:
          - key: ca.crt
            path: ca.crt
          name: kube-root-ca.crt
      - downwardAPI:
          items:
          - fieldRef:
              apiVersion: v1
              fieldPath: metadata.namespace
            path: namespace
status:
  conditions:
  - lastProbeTime: null
    lastTransitionTime: "2025-03-04T08:12:47Z"
    status: "True"
    type: Ready
  containerStatuses:
  - containerID: containerd://3b0c7b2c3f5e0e9a5a1f4ad4d5a3b8a3c6e1f7d2b9c8a7f6e5d4c3b2a1908172
    image: registry.example.org/hello:1
    imageID: registry.example.org/hello@DIGEST
    lastState: {}
    name: hello
    ready: true
    restartCount: 0
    started: true
    state:
      running:
        startedAt: "2025-03-04T08:12:46Z"
  hostIP: 172.18.0.3
  hostIPs:
  - ip: 172.18.0.3
  phase: Running
  podIP: 10.244.1.7
  podIPs:
  - ip: 10.244.1.7
  qosClass: Burstable
  startTime: "2025-03-04T08:12:45Z"
"""
