"""Which addresses a grader may call."""

import socket
import threading
import time
from ipaddress import ip_address

import pytest

from rft.graders.addresses import (
    AddressRefused,
    canonical_host,
    checked_addresses,
    kind_if_not_public,
    kind_if_surely_private,
    resolve,
)

THIS_MACHINE = "this machine"
LOOPBACK = "a loopback address"
PRIVATE = "a private address"
LINK_LOCAL = "a link-local address"
RESERVED = "a reserved address"
UNSPECIFIED = "an unspecified address"
MULTICAST = "a multicast address"

SURELY_PRIVATE = [
    ("localhost", THIS_MACHINE),
    ("localhost.", THIS_MACHINE),
    ("LocalHost", THIS_MACHINE),
    ("a.b.localhost", THIS_MACHINE),
    ("localhost.localdomain", THIS_MACHINE),
    ("ip6-localhost", THIS_MACHINE),
    ("127.0.0.1", LOOPBACK),
    ("127.0.0.1.", LOOPBACK),
    ("127.255.255.254", LOOPBACK),
    ("127.1", LOOPBACK),
    ("2130706433", LOOPBACK),
    ("0x7f000001", LOOPBACK),
    ("0x7f.0x0.0x0.0x1", LOOPBACK),
    ("0177.0.0.1", LOOPBACK),
    ("017700000001", LOOPBACK),
    ("0", UNSPECIFIED),
    ("0.0.0.0", UNSPECIFIED),
    ("0.1.2.3", UNSPECIFIED),
    ("10.0.0.1", PRIVATE),
    ("10.255.255.255", PRIVATE),
    ("172.16.0.1", PRIVATE),
    ("172.31.255.255", PRIVATE),
    ("192.168.1.1", PRIVATE),
    ("192.168.257", PRIVATE),
    ("100.64.0.1", PRIVATE),
    ("100.100.100.200", PRIVATE),
    ("169.254.169.254", LINK_LOCAL),
    ("0xa9fea9fe", LINK_LOCAL),
    ("2852039166", LINK_LOCAL),
    ("168.63.129.16", "a cloud's metadata address"),
    ("192.0.0.192", RESERVED),
    ("192.0.2.1", RESERVED),
    ("198.18.0.1", RESERVED),
    ("198.51.100.1", RESERVED),
    ("203.0.113.1", RESERVED),
    ("224.0.0.1", MULTICAST),
    ("239.255.255.250", MULTICAST),
    ("240.0.0.1", RESERVED),
    ("255.255.255.255", RESERVED),
    ("[::1]", LOOPBACK),
    ("::1", LOOPBACK),
    ("0:0:0:0:0:0:0:1", LOOPBACK),
    ("::", UNSPECIFIED),
    ("::ffff:127.0.0.1", LOOPBACK),
    ("::ffff:7f00:1", LOOPBACK),
    ("::ffff:169.254.169.254", LINK_LOCAL),
    ("::ffff:10.0.0.1", PRIVATE),
    ("::127.0.0.1", RESERVED),
    ("64:ff9b::127.0.0.1", LOOPBACK),
    ("64:ff9b::a9fe:a9fe", LINK_LOCAL),
    ("64:ff9b:1::808:808", RESERVED),
    ("2002:7f00:1::", RESERVED),
    ("2001:0:53aa:64c:0:fbff:80ff:fffe", RESERVED),
    ("2001:db8::1", RESERVED),
    ("3fff::1", RESERVED),
    ("fe80::1", LINK_LOCAL),
    ("fec0::1", RESERVED),
    ("fc00::1", PRIVATE),
    ("fd00:ec2::254", PRIVATE),
    ("ff02::1", MULTICAST),
    ("100::1", RESERVED),
    ("4000::1", RESERVED),
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "134744072",
    "2606:4700:4700::1111",
    "2001:4860:4860::8888",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]


@pytest.mark.parametrize(("host", "kind"), SURELY_PRIVATE)
def test_hosts_whose_spelling_says_that_they_are_private(host: str, kind: str) -> None:
    assert kind_if_surely_private(host) == kind


@pytest.mark.parametrize(
    "host", [*PUBLIC, "example.com", "localhost.example.com", "notlocalhost", "127.0.0.1.nip.io"]
)
def test_hosts_that_may_be_public(host: str) -> None:
    assert kind_if_surely_private(host) is None


@pytest.mark.parametrize(
    ("host", "canonical"),
    [
        ("Grader.Example.COM.", "grader.example.com"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("127.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("10", "0.0.0.10"),
        ("a_b-c", "a_b-c"),
    ],
)
def test_canonical_hosts(host: str, canonical: str) -> None:
    assert canonical_host(host) == canonical


def answer_with(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Makes the resolver give these addresses for every name; the list of names asked."""
    asked = []

    def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        families = [socket.AF_INET6 if ":" in text else socket.AF_INET for text in addresses]
        pairs = zip(families, addresses, strict=True)
        return [(family, socket.SOCK_STREAM, 6, "", (text, port)) for family, text in pairs]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def checked(host: str, private_hosts: tuple[str, ...] = ()) -> list[str]:
    deadline = time.monotonic() + 5
    found = checked_addresses(host, 80, private_hosts, deadline, lambda: False)
    return [target.address[0] for target in found]


def test_every_address_of_a_name_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(monkeypatch, "8.8.8.8", "2606:4700::1111")
    assert checked("grader.example") == ["8.8.8.8", "2606:4700::1111"]
    assert asked == ["grader.example"]
    for private in ("10.0.0.7", "127.0.0.1", "::1", "::ffff:10.0.0.7", "fe80::1%lo"):
        answer_with(monkeypatch, "8.8.8.8", private)
        with pytest.raises(AddressRefused, match=r"^grader\.example has the address .*, which is"):
            checked("grader.example")
        assert checked("grader.example", ("grader.example",)) == ["8.8.8.8", private]
        with pytest.raises(AddressRefused):
            checked("grader.example", ("other.example", private))


def test_a_refusal_names_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "169.254.169.254")
    with pytest.raises(AddressRefused) as raised:
        checked("meta.example")
    assert str(raised.value) == (
        "meta.example has the address 169.254.169.254, which is a link-local address"
    )
    with pytest.raises(AddressRefused) as raised:
        checked("169.254.169.254")
    assert str(raised.value) == "169.254.169.254 is a link-local address"


@pytest.mark.parametrize("host", [host for host, kind in SURELY_PRIVATE if kind != THIS_MACHINE])
def test_what_the_resolver_makes_of_a_private_literal_is_refused(host: str) -> None:
    """Decimal, octal and hexadecimal spellings reach the check as the addresses they are."""
    with pytest.raises((AddressRefused, OSError)) as raised:
        checked(host.strip("[]"))
    if isinstance(raised.value, OSError):
        assert isinstance(raised.value, socket.gaierror)  # this system cannot call it at all


def test_a_resolver_that_hangs_is_left_at_the_deadline_and_on_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(10) and [])
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"slow\.example was not resolved in time"):
        resolve("slow.example", 80, started + 0.3, lambda: False)
    assert 0.3 <= time.monotonic() - started < 3
    with pytest.raises(OSError, match="closed"):
        resolve("slow.example", 80, started + 60, lambda: time.monotonic() > started + 0.5)
    assert time.monotonic() - started < 6
    release.set()


def test_a_name_that_no_resolver_takes_is_an_os_error() -> None:
    with pytest.raises(OSError, match="label"):
        resolve("a" * 64 + ".example", 80, time.monotonic() + 5, lambda: False)


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses(text: str) -> None:
    if text.isdigit():
        text = str(ip_address(int(text)))
    assert kind_if_not_public(ip_address(text)) is None
