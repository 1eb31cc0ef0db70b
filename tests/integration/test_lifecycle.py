# SPDX-License-Identifier: Apache-2.0
"""How pods start, end and stop: docs/lifecycle.md, on a real systemd."""

import pytest

from tests.integration.pods import Pods


def test_never_ends_with_the_first_failure(pods: Pods) -> None:
    apps = [pods.app("exit 0", "one"), pods.app("sleep 0.3; exit 5", "two"), pods.app("exit 6", "three")]
    pods.write("p", {"restartPolicy": "Never", "containers": apps})
    pods.start("p")
    assert pods.wait_end("p") == "failed"
    assert pods.show("p", "Result", "ExecMainStatus") == {"Result": "exit-code", "ExecMainStatus": "5"}
    assert {name: app["status"] for name, app in pods.result("p")["apps"].items()} == {"one": "0", "two": "5", "three": "6"}
