"""Which addresses a grader may call: public ones, so that no job reaches into a private network.

A host is resolved once, every address found is checked, and the connection goes to a checked
address itself: a name server that answers differently the second time is never asked again.
"""

import queue
import socket
import threading
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

Address = IPv4Address | IPv6Address

SPECIAL_NETWORKS: tuple[tuple[IPv4Network | IPv6Network, str], ...] = tuple(
    (ip_network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "an unspecified address"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a private address"),
        ("127.0.0.0/8", "a loopback address"),
        ("168.63.129.16/32", "a cloud's metadata address"),
        ("169.254.0.0/16", "a link-local address"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "a reserved address"),
        ("192.0.2.0/24", "a reserved address"),
        ("192.88.99.0/24", "a reserved address"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "a reserved address"),
        ("198.51.100.0/24", "a reserved address"),
        ("203.0.113.0/24", "a reserved address"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("::/128", "an unspecified address"),
        ("::1/128", "a loopback address"),
        ("fc00::/7", "a private address"),
        ("fe80::/10", "a link-local address"),
        ("ff00::/8", "a multicast address"),
        ("2001::/23", "a reserved address"),
        ("2001:db8::/32", "a reserved address"),
        ("2002::/16", "a reserved address"),
        ("3fff::/20", "a reserved address"),
    )
)
"""IANA's special-purpose registries, spelled out because Python's own idea of them has changed from
release to release."""

PUBLIC_IPV6 = IPv6Network("2000::/3")
EMBEDS_IPV4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
"""IPv4-mapped and NAT64: what counts is the IPv4 address in the last four bytes."""
NAMES_OF_THIS_MACHINE = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
POLL_SECONDS = 0.1


class AddressRefused(Exception):
    """A host has an address that may not be called."""


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """Where a socket connects to, as `socket.getaddrinfo` gives it."""

    family: int
    address: tuple[Any, ...]


def canonical_host(host: str) -> str:
    """A host as it is compared: lower case, no brackets, no final dot, an address in its usual form."""
    host = host.lower().removeprefix("[").removesuffix("]").removesuffix(".")
    literal = literal_address(host)
    return host if literal is None else str(literal)


def literal_address(host: str) -> Address | None:
    """The address that a host spells out, in any form the system reads: 127.1, 0x7f000001, ::1."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def kind_if_not_public(address: Address) -> str | None:
    """What an address is when it is not a public one, in words."""
    if isinstance(address, IPv6Address) and any(address in network for network in EMBEDS_IPV4):
        address = IPv4Address(address.packed[-4:])
    for network, kind in SPECIAL_NETWORKS:
        if address in network:
            return kind
    if isinstance(address, IPv6Address) and address not in PUBLIC_IPV6:
        return "a reserved address"
    return None


def kind_if_surely_private(host: str) -> str | None:
    """What a host is when its mere spelling says that it is not public; nothing is resolved."""
    host = canonical_host(host)
    if host in NAMES_OF_THIS_MACHINE or host.endswith(".localhost"):
        return "this machine"
    literal = literal_address(host)
    return None if literal is None else kind_if_not_public(literal)


def checked_addresses(
    host: str,
    port: int,
    private_hosts: Container[str],
    deadline: float,
    is_closed: Callable[[], bool],
) -> list[SocketAddress]:
    """The addresses of a host, all of them public unless the host is listed.

    `deadline`: an instant of time.monotonic(). Raises AddressRefused, TimeoutError, OSError.
    """
    addresses = resolve(host, port, deadline, is_closed)
    if canonical_host(host) in private_hosts:
        return addresses
    for found in addresses:
        literal = str(found.address[0])
        if kind := kind_if_not_public(ip_address(literal)):
            what = literal if literal == host else f"{host} has the address {literal}, which"
            raise AddressRefused(f"{what} is {kind}")
    return addresses


def resolve(
    host: str, port: int, deadline: float, is_closed: Callable[[], bool]
) -> list[SocketAddress]:
    """What the system's resolver says, in a thread of its own as it heeds no deadline.

    Raises TimeoutError past the deadline, OSError when the host is unknown or `is_closed`.
    """
    answers: queue.SimpleQueue[list[SocketAddress] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put([SocketAddress(entry[0], entry[4]) for entry in found])
        except (OSError, UnicodeError) as error:
            answers.put(error if isinstance(error, OSError) else OSError(str(error)))

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    while not is_closed():
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{host} was not resolved in time")
        try:
            answer = answers.get(timeout=min(left, POLL_SECONDS))
        except queue.Empty:
            continue
        if isinstance(answer, OSError):
            raise answer
        return answer
    raise OSError("closed")
