"""Attacks on the network: reaching any server, whatever the family of its address."""

from tests.attacks.attack import Attack, loot_is, server_is_reached
from tests.attacks.tools import Path, os, raw, socket, struct, threading


def connect_by_tcp(target):
    socket.create_connection(target["tcp4"], 2).sendall(b"x")


def connect_by_tcp6(target):
    socket.create_connection(target["tcp6"][:2], 2).sendall(b"x")


def connect_by_http(target):
    import urllib.request

    urllib.request.urlopen(f"http://{target['tcp4'][0]}:{target['tcp4'][1]}/", timeout=0.2)


def connect_by_asyncio(target):
    import asyncio

    async def connect():
        await asyncio.open_connection(*target["tcp4"])

    asyncio.run(connect())


def connect_with_fast_open(target):
    fast_open = 0x20000000
    socket.socket().sendto(b"x", fast_open, tuple(target["tcp4"]))


def connect_with_raw_calls(target):
    fd = raw(41, 2, 1, 0)
    address = struct.pack("=HH4s8x", 2, socket.htons(target["tcp4"][1]), bytes([127, 0, 0, 1]))
    raw(42, fd, address, len(address))


def connect_with_multipath_tcp(target):
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).connect(tuple(target["tcp4"]))


def send_by_udp(target):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", tuple(target["udp4"]))


def send_by_udp6(target):
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"x", tuple(target["udp6"]))


def ask_a_name_server(target):
    question = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x06secret\x03com\x00\x00\x01\x00\x01"
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.connect(tuple(target["udp4"]))
    server.send(question)


def connect_to_a_unix_socket(target):
    socket.socket(socket.AF_UNIX).connect(target["stream"])


def connect_to_an_abstract_socket(target):
    socket.socket(socket.AF_UNIX).connect(target["abstract"])


def send_to_a_unix_socket(target):
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", target["datagram"])


def send_to_an_abstract_socket(target):
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", target["abstract_datagram"])


def send_from_a_pair_to_a_unix_socket(target):
    socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", target["datagram"])


def send_from_a_pair_to_an_abstract_socket(target):
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.sendto(b"x", target["abstract_datagram"])


def send_a_message_from_a_pair(target):
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.sendmsg([b"x"], [], 0, target["datagram"])


def send_from_a_nonblocking_pair(target):
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    ours, _ = socket.socketpair(socket.AF_UNIX, kind)
    ours.sendto(b"x", target["datagram"])


def send_from_a_raw_pair(target):
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)
    ours.sendto(b"x", target["datagram"])


def reconnect_a_pair(target):
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.connect(target["datagram"])
    ours.send(b"x")


def listen_on_tcp(target):
    server = socket.create_server(("127.0.0.1", 0))
    client = []
    port = server.getsockname()[1]
    caller = threading.Thread(
        target=lambda: client.append(socket.create_connection(("127.0.0.1", port)))
    )
    caller.start()
    server.accept()
    caller.join()
    return f"served {len(client)}"


def list_network_interfaces(target):
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    netlink.bind((0, 0))
    get_link, request_dump = 18, 0x301
    netlink.send(struct.pack("IHHII", 20, get_link, request_dump, 1, 0) + bytes(4))
    return f"interfaces {b'lo' in netlink.recv(65536)}"


def open_a_packet_socket(target):
    return f"socket {socket.socket(socket.AF_PACKET, socket.SOCK_RAW).family.name}"


def open_a_raw_socket(target):
    raw_ip = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    return f"socket {raw_ip.type.name}"


def open_a_vm_socket(target):
    return f"socket {socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).family.name}"


def open_a_crypto_socket(target):
    return f"socket {socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).family.name}"


def open_a_pair_of_another_family(target):
    ours, _ = socket.socketpair(30, socket.SOCK_STREAM)
    return f"socket {int(ours.family)}"


def name_the_network_interfaces(target):
    return f"interfaces {os.listdir('/sys/class/net')} {Path('/proc/net/tcp').read_text()[:20]}"


ATTACKS = [
    *[
        Attack(run, server_is_reached)
        for run in (
            connect_by_tcp,
            connect_by_http,
            connect_by_asyncio,
            connect_with_raw_calls,
            send_by_udp,
            ask_a_name_server,
            connect_to_a_unix_socket,
            connect_to_an_abstract_socket,
            send_to_a_unix_socket,
            send_to_an_abstract_socket,
            send_from_a_pair_to_a_unix_socket,
            send_from_a_pair_to_an_abstract_socket,
            send_a_message_from_a_pair,
            send_from_a_nonblocking_pair,
            send_from_a_raw_pair,
            reconnect_a_pair,
        )
    ],
    Attack(connect_with_fast_open, server_is_reached, host_may_refuse="needs TCP fast open"),
    Attack(connect_with_multipath_tcp, server_is_reached, host_may_refuse="needs MPTCP"),
    Attack(connect_by_tcp6, server_is_reached, host_may_refuse="needs IPv6"),
    Attack(send_by_udp6, server_is_reached, host_may_refuse="needs IPv6"),
    Attack(listen_on_tcp, loot_is("'served 1'")),
    Attack(list_network_interfaces, loot_is("'interfaces True'")),
    Attack(name_the_network_interfaces, lambda world, said: "Loot: \"interfaces ['" in said),
    Attack(
        open_a_packet_socket, loot_is("'socket AF_PACKET'"), host_may_refuse="needs CAP_NET_RAW"
    ),
    Attack(open_a_raw_socket, loot_is("'socket SOCK_RAW'"), host_may_refuse="needs CAP_NET_RAW"),
    Attack(open_a_vm_socket, loot_is("'socket AF_VSOCK'"), host_may_refuse="needs vsock"),
    Attack(open_a_crypto_socket, loot_is("'socket AF_ALG'"), host_may_refuse="needs AF_ALG"),
    Attack(open_a_pair_of_another_family, loot_is("'socket 30'"), host_may_refuse="needs TIPC"),
]
"""Their names say what each tries."""
