# SPDX-License-Identifier: Apache-2.0
"""What a pod's /etc/hosts and /etc/resolv.conf say, and what the network's own systemd-resolved knows. Pure.

As kubelet writes them (pkg/kubelet/kubelet_pods.go, pkg/kubelet/network/dns), but with pods.internal for the cluster's domain, and without
ndots:5.
"""

from rktd_units.network.state import DOMAIN, Attachment, Network, State
from rktd_units.podfile.model import Pod

_NAMESERVERS_MAX = 3  # resolv.conf(5), MAXNS
_SEARCHES_MAX = 32
# DNS only on the bridge; where to ask further is in etc/resolv.conf. No fallback servers: those would be Google's or Cloudflare's.
_RESOLVED = """\
[Resolve]
DNSStubListener=no
FallbackDNS=
LLMNR=no
MulticastDNS=no
DNSSEC=no
"""
_HEADER = "# Written by rktd-units when the pod started.\n"
_HOSTS = f"""\
{_HEADER}127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"""


def own_names(pod: Pod) -> tuple[str, ...]:
    """The pod's DNS names: its own, and with a subdomain that of its host name in there. All of them are in pods.internal."""
    names = [f"{pod.name}.{DOMAIN}", pod.name]
    if pod.subdomain:
        names.append(f"{pod.hostname or pod.name}.{pod.subdomain}.{DOMAIN}")
    return tuple(names)


def full_name(pod: Pod, host: str) -> str:
    return f"{host}.{pod.subdomain}.{DOMAIN}" if pod.subdomain else f"{host}.{DOMAIN}"


def render_hosts(pod: Pod, host: str, attachment: Attachment | None, shared: str) -> str:
    """The apps' /etc/hosts; `host` is the pod's host name, `shared` the text of the host's own one, for a pod with hostNetwork."""
    text = _HOSTS
    if pod.host_network:
        lines = [line for line in shared.split("\n") if line]
        text = _HEADER + "".join(f"{line}\n" for line in (*lines, f"127.0.0.1\t{host}"))
    elif attachment:
        text += "".join(f"{address}\t{full_name(pod, host)}\t{host}\n" for address in attachment.addresses)
    else:
        text = text.replace("localhost\n", f"localhost {host}\n", 1)
    if pod.host_aliases:
        text += "\n# Entries added by HostAliases.\n" + "".join("\t".join((ip, *names)) + "\n" for ip, names in pod.host_aliases)
    return text


def render_resolv_conf(pod: Pod, attachment: Attachment | None, host: str, *, has_names: bool) -> str:
    """The apps' /etc/resolv.conf. `host`: the text of the host's own one; `has_names`: the network has its systemd-resolved."""
    servers, searches, options = parse_resolv_conf(host) if pod.dns_policy != "None" else ([], [], [])
    if attachment and pod.dns_policy != "None":
        servers = [server for server in servers if not server.startswith("127.") and server != "::1"]
        if has_names and (pod.dns_policy != "Default" or not servers):
            servers = [attachment.network.gateway4]
        if pod.dns_policy != "Default":
            own = [f"{pod.subdomain}.{DOMAIN}"] if pod.subdomain else []
            searches = [*own, DOMAIN, *(s for s in searches if s != DOMAIN)]
            options = []  # of the host's stub: edns0, trust-ad
    elif not pod.host_network and pod.dns_policy != "None":
        servers, searches, options = [], [], []
    servers = list(dict.fromkeys([*servers, *pod.dns.nameservers]))[:_NAMESERVERS_MAX]
    searches = list(dict.fromkeys([*searches, *pod.dns.searches]))[:_SEARCHES_MAX]
    merged = {option.partition(":")[0]: option for option in (*options, *pod.dns.options)}
    lines = [f"nameserver {server}" for server in servers]
    lines += [f"search {' '.join(searches)}"] if searches else []
    lines += [f"options {' '.join(merged.values())}"] if merged else []
    return "".join(f"{line}\n" for line in lines)


def parse_resolv_conf(text: str) -> tuple[list[str], list[str], list[str]]:
    """Name servers, search domains (the last line counts) and options of a resolv.conf(5)."""
    servers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    for line in text.split("\n"):
        words = line.split("#")[0].split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            servers.append(words[1])
        elif words[:1] in (["search"], ["domain"]):
            searches = [word for word in words[1:] if word != "."]
        elif words[:1] == ["options"]:
            options += words[1:]
    return servers, searches, options


def render_resolved(network: Network) -> str:
    """resolved.conf(5) of the network's systemd-resolved."""
    return _RESOLVED + "".join(f"DNSStubListenerExtra={gateway}\n" for gateway in network.gateways)


def render_names(state: State, bridge: str) -> str:
    """The hosts file of the network's systemd-resolved."""
    lines = []
    for attachment in state.attachments():
        if attachment.member.bridge == bridge:
            lines += [f"{address}\t{' '.join(attachment.member.names)}\n" for address in attachment.addresses]
    return "".join(lines)
