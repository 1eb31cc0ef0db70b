# SPDX-License-Identifier: Apache-2.0
"""The kernel's own language for what every start does: interfaces (rtnetlink(7)) and elements of nftables sets.

`ip` and `nft` would do it too, but each costs 5 ms and the import of subprocess 10 more; those are for what is rare. Numbers are of
include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,if_bridge}.h and netfilter/{nfnetlink,nf_tables}.h.
"""

import _socket  # `socket` costs 8 ms more
import errno
import os
from struct import pack, unpack_from

_ROUTE, _NETFILTER = 0, 12  # NETLINK_*
_ERROR = 2  # NLMSG_ERROR
_REQUEST, _ACK, _REPLACE, _EXCL, _CREATE = 1, 4, 0x100, 0x200, 0x400  # NLM_F_*
_NESTED = 0x8000  # NLA_F_NESTED
_NEWLINK, _DELLINK, _NEWADDR, _NEWNEIGH = 16, 17, 20, 28  # RTM_*
_UP = 1  # IFF_UP
_BRIDGE = 7  # AF_BRIDGE
_ADDRESS, _NAME, _MTU, _MASTER, _LINKINFO = 1, 3, 4, 10, 18  # IFLA_*
_KIND, _DATA, _SLAVE_KIND, _SLAVE_DATA = 1, 2, 4, 5  # IFLA_INFO_*
_FORWARD_DELAY, _STP, _SNOOPING = 1, 5, 23  # IFLA_BR_*
_HAIRPIN, _LEARNING, _FLOOD = 4, 8, 9  # IFLA_BRPORT_MODE, _LEARNING, _UNICAST_FLOOD
_STATIC, _OF_MASTER = 0x40, 4  # NUD_NOARP, NTF_MASTER
_PEER = 1  # VETH_INFO_PEER
_NO_DAD = 2  # IFA_F_NODAD
_TABLES = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 16, 17  # NFNL_MSG_BATCH_*
_DELTABLE, _NEWSETELEM, _DELSETELEM = 2, 12, 14  # NFT_MSG_*
FAMILIES = {"inet": 1, "bridge": 7}  # NFPROTO_*


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute: length and type of two bytes each, padded to four."""
    return pack("HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(parts))


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, pack("I", value))


def _link(index: int = 0, flags: int = 0) -> bytes:
    """struct ifinfomsg."""
    return pack("BxHiII", 0, 0, index, flags, flags)


class Route:
    """A connection to rtnetlink. Every call waits for the kernel's answer and raises OSError with the interface as file name."""

    def __init__(self) -> None:
        self._socket = _open(_ROUTE)

    def close(self) -> None:
        self._socket.close()

    def add_bridge(self, name: str, mac: bytes, mtu: int) -> None:
        """A bridge without spanning tree or snooping, not up yet."""
        data = nested(_DATA, _number(_FORWARD_DELAY, 0), _number(_STP, 0), attribute(_SNOOPING, b"\0"))
        info = nested(_LINKINFO, _text(_KIND, "bridge"), data)
        self._ask(_NEWLINK, _CREATE | _EXCL, _link() + _text(_NAME, name) + attribute(_ADDRESS, mac) + _number(_MTU, mtu) + info, name)

    def add_pair(self, name: str, peer: str, mac: bytes, mtu: int) -> None:
        """Two ends of one cable; `mac` is the peer's."""
        other = nested(_PEER, _link(), _text(_NAME, peer), attribute(_ADDRESS, mac), _number(_MTU, mtu))
        info = nested(_LINKINFO, _text(_KIND, "veth"), nested(_DATA, other))
        self._ask(_NEWLINK, _CREATE | _EXCL, _link() + _text(_NAME, name) + _number(_MTU, mtu) + info, name)

    def enslave(self, name: str, bridge: str, mac: bytes) -> None:
        """On a bridge, and up. Frames for `mac` go there, and for no other: the bridge learns nothing from what comes out of a pod.

        (A frame to a link-local group address passes no nftables hook, and would teach it any MAC: br_handle_local_finish.)
        Frames may leave where they came in, for a pod that asks for its own port of the host.
        """
        index = _socket.if_nametoindex(name)
        self._ask(_NEWLINK, 0, _link(index) + _number(_MASTER, _socket.if_nametoindex(bridge)), name)
        settings = attribute(_HAIRPIN, b"\1") + attribute(_LEARNING, b"\0") + attribute(_FLOOD, b"\0")
        self._ask(_NEWLINK, 0, _link(index) + nested(_LINKINFO, _text(_SLAVE_KIND, "bridge"), nested(_SLAVE_DATA, settings)), name)
        entry = pack("BxxxiHBB", _BRIDGE, index, _STATIC, _OF_MASTER, 0)
        self._ask(_NEWNEIGH, _CREATE | _REPLACE, entry + attribute(2, mac), name)  # NDA_LLADDR
        self._ask(_NEWLINK, 0, _link(index, _UP), name)

    def set_up(self, name: str) -> None:
        self._ask(_NEWLINK, 0, _link(_socket.if_nametoindex(name), _UP), name)

    def remove(self, name: str) -> None:
        """Nothing where there is none."""
        try:
            self._ask(_DELLINK, 0, _link() + _text(_NAME, name), name)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def add_address(self, name: str, address: bytes, prefix: int) -> None:
        """4 or 16 bytes. One that is there already is fine."""
        family = _socket.AF_INET if len(address) == 4 else _socket.AF_INET6
        head = pack("BBBBi", family, prefix, _NO_DAD, 0, _socket.if_nametoindex(name))
        try:
            self._ask(_NEWADDR, _CREATE | _EXCL, head + attribute(2, address) + attribute(1, address), name)  # IFA_LOCAL, IFA_ADDRESS
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise

    def _ask(self, kind: int, flags: int, body: bytes, what: str) -> None:
        self._socket.send(pack("IHHII", len(body) + 16, kind, flags | _REQUEST | _ACK, 1, 0) + body)
        _raise_answer(self._socket, what)


def set_elements(table: str, elements: tuple[tuple[str, bytes, bytes], ...], *, remove: bool = False) -> None:
    """Adds (set, key, data) to the sets of both our tables, or removes them; all or none. `table`: FAMILY NAME.

    Raises OSError: ENOENT when there is no such table, or, when removing, no such element.
    """
    if not elements:
        return
    family, name = table.split(" ")
    messages = [_batch(_BATCH_BEGIN)]
    for sequence, (to, key, data) in enumerate(elements, 1):
        parts = nested(1, attribute(1, key))  # NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE
        if data:
            parts += nested(2, attribute(1, data))  # NFTA_SET_ELEM_DATA
        body = pack("BBH", FAMILIES[family], 0, 0) + _text(1, name) + _text(2, to) + nested(3, nested(1, parts))
        messages.append(_netfilter(_DELSETELEM if remove else _NEWSETELEM, 0 if remove else _CREATE, body, sequence))
    _commit(messages, len(elements), f"nftables {table}")


def remove_table(table: str) -> None:
    """Nothing where there is none."""
    family, name = table.split(" ")
    body = pack("BBH", FAMILIES[family], 0, 0) + _text(1, name)
    try:
        _commit([_batch(_BATCH_BEGIN), _netfilter(_DELTABLE, 0, body, 1)], 1, f"nftables {table}")
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _netfilter(kind: int, flags: int, body: bytes, sequence: int) -> bytes:
    return pack("IHHII", len(body) + 16, _TABLES << 8 | kind, flags | _REQUEST | _ACK, sequence, 0) + body


def _batch(kind: int) -> bytes:
    """struct nfgenmsg with the subsystem as resource id, big endian."""
    return pack("IHHII", 20, kind, _REQUEST, 0, 0) + pack(">BBH", 0, 0, _TABLES)


def _commit(messages: list[bytes], count: int, what: str) -> None:
    door = _open(_NETFILTER)
    try:
        door.send(b"".join((*messages, _batch(_BATCH_END))))
        for _ in range(count):
            _raise_answer(door, what)
    finally:
        door.close()


def _open(protocol: int) -> _socket.socket:
    return _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)


def _raise_answer(door: _socket.socket, what: str) -> None:
    """One acknowledgement, or the error that it tells (struct nlmsgerr)."""
    answer = door.recv(65536)
    while answer:
        length, kind = unpack_from("IH", answer)
        if kind == _ERROR:
            (code,) = unpack_from("i", answer, 16)
            if code:
                raise OSError(-code, os.strerror(-code), what)
        answer = answer[(length + 3) & ~3 :]
