# SPDX-License-Identifier: Apache-2.0
"""The units inside a pod that is activated by sockets: how its PID 1 passes them to apps, and proxies for apps that do not know of them.

Pure. pod@NAME.socket of the host listens, stage1 passes what it gets from there on, and the pod's PID 1 finds the unit for each by what it
listens on, as it does with the journal's streams.
"""

from typing import NamedTuple

from rktd_units import names
from rktd_units.unitfile import UnitFile, quote_script

MARK = 0x10D2  # of the host's sockets that a pod gets; with no bit of those that Kubernetes, CNI, Docker and Tailscale look at
_OPEN = "/run/rktd-open"  # inside the pod: there once the pod is ready, for its proxies
_PROXY = "/usr/lib/systemd/systemd-socket-proxyd"


class Listener(NamedTuple):
    """A socket that the host's systemd listens on. `key` and `address` are a line of [Socket], by which the pod's PID 1 knows it.

    `proxy`: the port on which the app listens itself; 0 for an app that gets the socket, by `name` in LISTEN_FDNAMES.
    """

    key: str
    address: str
    name: str
    proxy: int = 0


def sockets_unit(app: str) -> str:
    """What the pod's PID 1 has for an app that gets sockets."""
    return f"{app}-in.socket"


def proxy_unit(app: str, port: int) -> str:
    """Without the suffix."""
    return f"Proxy-{app}-{port}"


def proxied_ports(listeners: tuple[Listener, ...]) -> tuple[int, ...]:
    """The ports of an app to which a proxy leads."""
    return tuple(dict.fromkeys(listener.proxy for listener in listeners if listener.proxy))


def app_units(app: str, listeners: tuple[Listener, ...], idle_stop: str) -> dict[str, UnitFile]:
    """The units for one app's listeners."""
    units = {}
    if own := tuple(listener for listener in listeners if not listener.proxy):
        units[sockets_unit(app)] = _passed_socket(own, f"Sink@{app}-in.service")
    for port in proxied_ports(listeners):
        units[f"{proxy_unit(app, port)}.socket"] = _passed_socket(tuple(x for x in listeners if x.proxy == port), "")
        units[f"{proxy_unit(app, port)}.service"] = _proxy_service(app, port, idle_stop)
    return units


def pod_units(idle_stop: str) -> dict[str, UnitFile]:
    """Those that a pod with proxies has once. Ready.target wants the first of them, and the timer."""
    units = {"Open.service": _open_service()}
    if idle_stop:
        units |= {"Proxied.target": _proxied_target(), "Idle.service": _idle_service(), "Idle.timer": _idle_timer(idle_stop)}
    return units


def _passed_socket(listeners: tuple[Listener, ...], service: str) -> UnitFile:
    """Sockets that stage1 passes to the pod's PID 1, found by what they listen on. `service`: see `_sink_service`."""
    unit = UnitFile()
    unit.add_all("Unit", (("DefaultDependencies", "no"), ("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add_all("Socket", tuple((listener.key, listener.address) for listener in listeners))
    unit.add_all("Socket", (("BindIPv6Only", "both"), ("TriggerLimitIntervalSec", 0)))
    if service:
        unit.add("Socket", "Service", service)
    return unit


def _open_service() -> UnitFile:
    """Lets the proxies begin. They do not wait for Ready.target as units do: at a stop they are to outlast the apps."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "The pod is ready"), ("DefaultDependencies", "no"), ("After", "Ready.target")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add_all("Service", (("Type", "oneshot"), ("Slice", "-.slice"), ("ExecStart", f"/usr/bin/touch {_OPEN}")))
    unit.add("Service", "Environment", "SYSTEMD_LOG_TARGET=null")
    return unit


def _proxy_service(app: str, port: int, idle_stop: str) -> UnitFile:
    """Passes connections on once the pod is ready and the app listens (proc_net_tcp: state 0A). Nobody in the pod, with no capability.

    It looks often for some seconds, and then seldom: an app may never listen.
    """
    idle = f" --exit-idle-time={idle_stop}" if idle_stop else ""
    script = (
        f"n=0; until [ -e {_OPEN} ] && grep -Eqs ': [0-9A-F]+:{port:04X} [0-9A-F]+:0000 0A' /proc/net/tcp /proc/net/tcp6; do "
        "n=$((n + 1)); if [ $n -gt 200 ]; then sleep 1; else sleep 0.02; fi; done; "
        f"exec {_PROXY} --connections-max=4096{idle} 127.0.0.1:{port}"
    )
    unit = UnitFile()
    unit.add_all("Unit", (("Description", f"Proxy for port {port} of app {app}"), ("DefaultDependencies", "no")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", f"shutdown.target {names.app_unit(app)}")))
    unit.add("Unit", "StartLimitIntervalSec", 0)
    if idle_stop:
        unit.add_all("Unit", (("Wants", "Proxied.target"), ("After", "Proxied.target")))
    unit.add_all("Service", (("Type", "simple"), ("Slice", "-.slice"), ("Nice", 0), ("ExecStart", f":/bin/sh -c {quote_script(script)}")))
    unit.add_all("Service", (("Restart", "on-failure"), ("RestartSec", "200ms"), ("Environment", "SYSTEMD_LOG_TARGET=null")))
    unit.add_all("Service", (("User", "nobody"), ("CapabilityBoundingSet", ""), ("NoNewPrivileges", "yes"), ("LimitNOFILE", 16384)))
    return unit


def _proxied_target() -> UnitFile:
    """Active while a proxy is; its end is the pod's. By SuccessAction=: no connection comes in between that still starts a proxy here."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "Somebody talks to the pod"), ("DefaultDependencies", "no"), ("StopWhenUnneeded", "yes")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add_all("Unit", (("SuccessAction", "exit"), ("SuccessActionExitStatus", 0)))
    return unit


def _idle_service() -> UnitFile:
    """Has Proxied.target for a moment: that is the end if nobody else has it."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "Nobody has come"), ("DefaultDependencies", "no"), ("Wants", "Proxied.target")))
    unit.add_all("Unit", (("After", "Proxied.target"), ("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add_all("Service", (("Type", "oneshot"), ("Slice", "-.slice"), ("ExecStart", "/bin/true")))
    unit.add("Service", "Environment", "SYSTEMD_LOG_TARGET=null")
    return unit


def _idle_timer(idle_stop: str) -> UnitFile:
    """For a pod that was started by hand: a proxy counts only from its first connection."""
    unit = UnitFile()
    unit.add_all("Unit", (("Description", "Nobody has come"), ("DefaultDependencies", "no"), ("After", "Ready.target")))
    unit.add_all("Unit", (("Conflicts", "shutdown.target"), ("Before", "shutdown.target")))
    unit.add_all("Timer", (("OnActiveSec", idle_stop), ("AccuracySec", "1s"), ("Unit", "Idle.service")))
    return unit
