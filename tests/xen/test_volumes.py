# SPDX-License-Identifier: Apache-2.0
"""hostPath volumes and claims of a pod in a Xen guest: one guest, for its start costs half a minute here."""

import base64
import struct
import time

from tests.integration.pods import Pods
from tests.xen.bed import left_overs

# open(argv[1], O_RDWR); mmap(0, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, fd, 0); "mmap" is written there; exit(0): the image has no program
# that writes through a shared mapping. elf(5): one segment, of headers and code.
CODE = bytes.fromhex(
    "488b7c2410 be02000000 b802000000 0f05 4989c0 31ff be00100000 ba03000000 41ba01000000 4531c9 b809000000 0f05 c7006d6d6170 31ff "
    "b83c000000 0f05"
)
SIZE = 120 + len(CODE)
MAPPER = (
    struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, SIZE, SIZE, 4096)
    + CODE
)

LOOK = """
cd /data; cat from-host; echo guest >from-guest; chmod 640 from-guest; chown 1000:200 from-guest; mkdir -m 750 made; mv from-guest made/
ln -s /etc/hostname link; cat link; cat outside 2>&1; ls -n /data/made | tail -1
touch /fixed/x 2>&1; touch /seen/x 2>&1; cat /fixed/file /one; echo kept >/claim/file; cat /claim/sub 2>&1; echo part >/part/file
mount | grep -c ' 9p .*nodev'; mknod /data/null c 1 3 2>&1
/data/mapper /data/mapped; cat /data/mapped
echo ready; until [ -e /data/stop ]; do sleep 0.3; done; cat /data/stop
"""


def test_files_of_the_host_are_the_guests_and_back(pods: Pods) -> None:
    bed = pods.bed
    bed.sh("""
        rm -rf /srv/v; mkdir -p /srv/v/data /srv/v/fixed; cd /srv/v; echo host >data/from-host; echo secret >secret
        ln -s ../secret data/outside
        echo fixed >fixed/file; echo one >one; echo host and more >data/mapped
    """)
    bed.sh(f"cd /srv/v/data; echo {base64.b64encode(MAPPER).decode()} | base64 -d >mapper; chmod 755 mapper")
    mounts = [("data", "/data"), ("fixed", "/fixed"), ("one", "/one"), ("claim", "/claim")]
    listed = [{"name": name, "mountPath": path, "readOnly": name in ("fixed", "one")} for name, path in mounts]
    listed += [{"name": "data", "mountPath": "/seen", "readOnly": True}, {"name": "claim", "mountPath": "/part", "subPath": "sub"}]
    volumes = [
        {"name": "data", "hostPath": {"path": "/srv/v/data", "type": "Directory"}},
        {"name": "fixed", "hostPath": {"path": "/srv/v/fixed"}},
        {"name": "one", "hostPath": {"path": "/srv/v/one", "type": "File"}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "stays"}},
    ]
    app = pods.app(LOOK, volumeMounts=listed)
    off = pods.app("until [ -e /claim/off ]; do sleep 1; done; echo o >/proc/sysrq-trigger; sleep 100", name="off")
    off |= {"volumeMounts": [{"name": "claim", "mountPath": "/claim"}], "securityContext": {"privileged": True}}
    pods.write(
        "shares", {"runtimeClassName": "xen", "restartPolicy": "Never", "hostname": "guest", "containers": [app, off], "volumes": volumes}
    )
    pods.start("shares", timeout=300)
    end = time.monotonic() + 120
    while "ready" not in (lines := pods.lines("shares")) and time.monotonic() < end:
        time.sleep(1)
    assert lines == [
        "host",
        "guest",
        "cat: can't open 'outside': No such file or directory",
        next(line for line in lines if line.startswith("-rw-r-----    1 1000     200 ")),
        "touch: /fixed/x: Read-only file system",
        "touch: /seen/x: Read-only file system",
        "fixed",
        "one",
        "cat: read error: Is a directory",
        "6",
        "mknod: /data/null: Operation not permitted",
        "mmap and more",
        "ready",
    ]
    assert bed.sh("stat -c '%a %u %g' /srv/v/data/made/from-guest /srv/v/data/made; readlink /srv/v/data/link").stdout.split("\n") == [
        "640 1000 200",
        "750 0 0",
        "/etc/hostname",
        "",
    ]
    process = bed.run("pgrep", "-f", "/usr/lib/rktd/share").stdout.strip()
    assert "pod@shares.service" in bed.read(f"/proc/{process}/cgroup")
    assert bed.sh(f"ls /proc/{process}/root /proc/{process}/root/exports; grep CapEff /proc/{process}/status").stdout.split() == [
        f"/proc/{process}/root:",
        "exports",
        "proc",
        f"/proc/{process}/root/exports:",
        "claim",
        "data",
        "fixed",
        "one",
        "CapEff:",
        "000000000000001b",
    ]
    bed.write("/srv/v/data/stop", "seen\n")
    bed.sh("for i in $(seq 300); do [ -s /run/rktd/pods/shares/status/app ] && break; sleep 0.2; done")
    assert pods.lines("shares")[-1] == "seen"
    assert bed.read("/srv/v/data/mapped") == "mmap and more\n"
    assert bed.read("/var/lib/rktd/volumes/stays/file") == "kept\n"
    assert bed.read("/var/lib/rktd/volumes/stays/sub/file") == "part\n"
    # The other app has the guest's kernel power off: nobody knows then how the apps did.
    bed.run("touch", "/var/lib/rktd/volumes/stays/off")
    assert pods.wait_end("shares", timeout=120) == "failed"
    assert pods.show("shares", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "1"}
    status = bed.run("systemctl", "status", "pod@shares", "--no-pager", "--full", check=False).stdout
    assert "the guest has ended without a word of how its apps did" in status
    assert left_overs(bed) == ""
