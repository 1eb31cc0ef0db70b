# SPDX-License-Identifier: Apache-2.0
"""What `podctl convert` makes of Compose and Quadlet files runs: each file here is started as it was converted."""

import pytest

from tests.integration.pods import Pods

pytestmark = pytest.mark.integration

COMPOSE = """
services:
  front:
    image: "IMAGE"
    command:
    - sh
    - -c
    - until wget -qO /tmp/page http://back:8080/; do sleep 0.1; done; echo $$GREETING $$(cat /tmp/page); exec httpd -f -p 80 -h /tmp
    environment: {GREETING: front has}
    depends_on: [back]
    ports: ["127.0.0.1:18081:80"]
  back:
    image: "IMAGE"
    command: sh -c 'cp /www/index.html /data/; exec httpd -f -p 8080 -h /data'
    volumes: ["data:/data", "/srv/www:/www:ro"]
    healthcheck: {test: ["CMD", "wget", "-qO", "/dev/null", "http://127.0.0.1:8080/"], interval: 1s}
volumes: {data: {}}
"""
CONTAINER = """
[Unit]
After=pod@back.service
[Container]
Image=IMAGE
Exec=sh -c 'touch /run/pid && echo "$$GREETING"; touch /x; exec httpd -f -p 8082 -h /www'
Environment="GREETING=hello there"
PublishPort=127.0.0.1:18082:8082
Volume=/srv/www:/www:ro
ReadOnly=true
[Install]
WantedBy=multi-user.target
"""
KUBE = """
apiVersion: v1
kind: Pod
metadata: {name: job}
spec:
  restartPolicy: Never
  containers: [{name: app, image: "IMAGE", command: [sh, -c, "echo from kube; exit 3"]}]
"""


def test_converted_files_run(pods: Pods) -> None:
    bed = pods.bed
    files = {"compose.yaml": COMPOSE, "hello.container": CONTAINER, "job.yaml": KUBE, "job.kube": "[Kube]\nYaml=job.yaml\n"}
    bed.run("rm", "-rf", "/srv/old", "/srv/www")
    for name, text in files.items():
        bed.write(f"/srv/old/{name}", text.replace("IMAGE", pods.image))
    bed.write("/srv/www/index.html", "the page\n")
    for name in ("compose.yaml", "hello.container", "job.kube"):
        bed.run("podctl", "convert", "--directory=/etc/pods", f"/srv/old/{name}")
    assert bed.run("ls", "/etc/pods").stdout.split() == ["back.yaml", "front.yaml", "hello.yaml", "job.yaml"]
    assert bed.run("podctl", "check").stderr == ""
    for name in ("back", "front", "hello", "job"):
        pods.verify(name)
    try:
        bed.run("podctl", "start", "front", "hello")
        assert pods.show("back", "ActiveState")["ActiveState"] == "active"  # what Compose calls depends_on
        bed.run("curl", "-sf", "--retry", "50", "--retry-connrefused", "--retry-delay", "1", "http://127.0.0.1:18081/page")
        assert pods.lines("front") == ["front has the page"]
        assert bed.run("curl", "-sf", "http://127.0.0.1:18082/").stdout == "the page\n"
        assert pods.lines("hello") == ["hello there"]
        assert bed.run("cat", "/var/lib/rktd/volumes/data/index.html").stdout == "the page\n"
        pods.start("job")
        assert pods.wait_end("job") == "failed"
        assert pods.show("job", "ExecMainStatus")["ExecMainStatus"] == "3"
    finally:
        pods.clean()
        bed.run("podctl", "volume", "rm", "data", check=False)
