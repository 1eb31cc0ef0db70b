# SPDX-License-Identifier: Apache-2.0
"""Which addresses a network and a pod get: by a hash of the name where that is free, so that they stay the same. Pure.

Nothing is kept for a pod that does not run: the hash is what makes its address stable.
"""

import zlib

from rktd_units.errors import ConfigError, StateError
from rktd_units.network.state import COMMON_BRIDGE, GATEWAY, Member, Network, State, ipv4_number, ipv4_text
from rktd_units.settings import AddressPool

_HINT = "choose another pool: network.ipv4 in /etc/rktd/rktd.yaml"


def choose_network(state: State, pool: AddressPool, bridge: str, taken: tuple[tuple[int, int], ...], ipv6: int, mtu: int) -> Network:
    """A network for a bridge that has none. `taken`: (address, prefix length) of the host's own IPv4 networks; `ipv6`: a /48, or 0.

    The common network is always the first one of the pool, so that others can rely on it; it raises ConfigError when that is the host's.
    """
    count = 1 << (pool.size - pool.prefix)
    start = 0 if bridge == COMMON_BRIDGE or count == 1 else 1 + zlib.crc32(bridge.encode()) % (count - 1)
    used = {n.ipv4 for n in state.networks}
    for step in range(1 if bridge == COMMON_BRIDGE else count):
        index = (start + step) % count
        base = pool.base + (index << (32 - pool.size))
        clash = next((t for t in taken if _overlap((base, pool.size), t)), None)
        if clash and bridge == COMMON_BRIDGE:
            message = f"network {ipv4_text(base)}/{pool.size} of pods overlaps {ipv4_text(clash[0])}/{clash[1]}, which this host has"
            raise ConfigError(message, hint=_HINT)
        if not clash and base not in used and (index or bridge == COMMON_BRIDGE):
            return Network(bridge, base, pool.size, ipv6 and ipv6 + (index << 64), mtu)
    raise StateError(f"no network of the pool {ipv4_text(pool.base)}/{pool.prefix} is free for {bridge}", hint=_HINT)


def choose_number(state: State, network: Network, pod: str, wanted: str) -> int:
    """The pod's number in its network. `wanted`: the IPv4 address that its file asks for, or "".

    Raises ConfigError for one that is taken or not of the network, StateError when none is left.
    """
    taken = {m.number: m for m in state.members_of(network.bridge)}
    first = GATEWAY + 1
    if wanted:
        number = ipv4_number(wanted) - network.ipv4
        if not first <= number <= network.last:
            span = f"{ipv4_text(network.ipv4 + first)} to {ipv4_text(network.ipv4 + network.last)}"
            raise ConfigError(f"pod {pod} asks for the address {wanted}, but {network.bridge} has {span}")
        holder: Member | None = taken.get(number)
        if holder:
            hint = f"stop it, or ask for it there too: systemd.io/address in the file of {holder.pod}"
            raise ConfigError(f"pod {pod} asks for the address {wanted}, which pod {holder.pod} has", hint=hint)
        return number
    count = network.last - first + 1
    start = zlib.crc32(pod.encode()) % count
    for step in range(count):
        number = first + (start + step) % count
        if number not in taken:
            return number
    raise StateError(f"all {count} addresses of {network.bridge} are taken", hint="network.size in /etc/rktd/rktd.yaml")


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    shift = 32 - min(one[1], other[1])
    return one[0] >> shift == other[0] >> shift
