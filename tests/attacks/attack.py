"""What an escape attempt is, and the world that it is aimed at."""

import inspect
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rft.graders.sandbox import Outcome
from tests.attacks import tools

VICTIM = """
import signal, sys, time
signal.signal(signal.SIGURG, lambda *_: open(sys.argv[1], "w").close())
print(flush=True)
while True:
    open(sys.argv[2]).close()
    time.sleep(0.01)
"""
"""A process that says when SIGURG reaches it, and opens a file again and again."""


class World:
    """What lies around a grading process and must stay as it is: files, servers, a process.

    All of it is real: whether an attack succeeded is read off here, never off what the attack says,
    but for what it stole, which it must show.
    """

    def __init__(self) -> None:
        # short: the address of a socket holds 107 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="rft-world-", dir="/tmp"))
        self.secret = secrets.token_hex(12)
        self.data = self.folder / "data"
        self.data.mkdir()
        self.file = self.data / "answers.csv"
        self.file.write_text(f"answer\n{self.secret}\n")
        self.numbers = self.data / "numbers.txt"
        self.number = 10**14 + secrets.randbelow(10**14)
        self.numbers.write_text(f"{self.number}\n")
        self.key = self.data / "id_ed25519"
        self.key.write_text(self.secret)
        self.key.chmod(0o600)
        (self.data / "stolen.py").write_text(f"ANSWER = {self.secret!r}\n")
        self.has_attributes = set_attribute(self.file, self.secret)
        self.library = Path(sysconfig.get_path("purelib")) / f"{self.folder.name}.txt"
        self.library.write_text("a file that graders may read")
        self.servers = {
            "tcp4": listen(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "udp4": listen(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "tcp6": listen(socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
            "udp6": listen(socket.AF_INET6, socket.SOCK_DGRAM, ("::1", 0)),
            "stream": listen(socket.AF_UNIX, socket.SOCK_STREAM, str(self.folder / "stream")),
            "datagram": listen(socket.AF_UNIX, socket.SOCK_DGRAM, str(self.folder / "datagram")),
            "abstract": listen(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{self.folder}/stream"),
            "abstract_datagram": listen(
                socket.AF_UNIX, socket.SOCK_DGRAM, f"\0{self.folder}/datagram"
            ),
        }
        self.ipc_key = 1 + secrets.randbelow(2**31 - 1)
        self._terminals = os.openpty()
        self._victim: subprocess.Popen[str] | None = None
        self._before = self.look()

    @cached_property
    def victim(self) -> "subprocess.Popen[str]":
        """A process of the same user that has the secret in its environment and its standard input."""
        watched = self.folder / "watched"
        watched.write_text("")
        command = [sys.executable, "-I", "-S", "-c", VICTIM, str(self.signalled), str(watched)]
        with self.file.open() as file:
            self._victim = subprocess.Popen(
                command,
                stdin=file,
                stdout=subprocess.PIPE,
                env={"VICTIM_SECRET": self.secret},
                cwd=self.data,
                text=True,
            )
        assert self._victim.stdout is not None
        self._victim.stdout.readline()
        return self._victim

    @property
    def signalled(self) -> Path:
        """There once SIGURG has reached the victim."""
        return self.folder / "signalled"

    def target(self, needs_victim: bool) -> dict[str, Any]:
        """What an attack knows: an attacker is assumed to know every path, port and pid."""
        addresses = {
            name: server.getsockname() if server is not None else None
            for name, server in self.servers.items()
        }
        victim = {}
        if needs_victim:
            stat = Path(f"/proc/{self.victim.pid}/stat").read_text().rsplit(")", 1)[1].split()
            victim = {"victim": self.victim.pid, "victim_environment": int(stat[47])}
        return {
            "folder": str(self.folder),
            "data": str(self.data),
            "file": str(self.file),
            "numbers": str(self.numbers),
            "key": str(self.key),
            "library": str(self.library),
            "project": str(Path(__file__).parents[2]),
            "name": self.folder.name,
            "terminal": os.ttyname(self._terminals[1]),
            "key_of_ipc": self.ipc_key,
            **{k: v.decode() if isinstance(v, bytes) else v for k, v in addresses.items()},
            **victim,
        }

    def look(self) -> dict[str, tuple[object, ...]]:
        """All that can be changed of the files, the folders and the library file."""
        paths = [self.data, *sorted(self.data.rglob("*")), self.library]
        paths += [path for path in self.folder.iterdir() if path.name.startswith("new")]
        return {str(path): look_at(path) for path in paths if os.path.lexists(path)}

    @property
    def is_changed(self) -> bool:
        return self.look() != self._before

    @property
    def received(self) -> list[str]:
        """The servers that something has reached."""
        return [name for name, server in self.servers.items() if server and has_visitor(server)]

    @property
    def typed(self) -> bytes:
        """What somebody typed into the terminal."""
        os.set_blocking(self._terminals[1], False)
        try:
            return os.read(self._terminals[1], 100)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        if self._victim is not None:
            self._victim.kill()
            self._victim.communicate()
        for server in self.servers.values():
            if server is not None:
                server.close()
        for terminal in self._terminals:
            os.close(terminal)
        if os.path.ismount(self.data):
            subprocess.run(["umount", str(self.data)], check=True)
        shared = Path("/dev/shm", self.folder.name)
        for path in (self.library, self.library.with_suffix(".pth"), shared):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.folder)


def set_attribute(path: Path, value: str) -> bool:
    try:
        os.setxattr(path, "user.answer", value.encode())
    except OSError:
        return False
    return True


def listen(family: int, kind: int, address: Any) -> socket.socket | None:
    """A server; None where the machine lacks the family."""
    try:
        server = socket.socket(family, kind)
        server.bind(address)
    except OSError:
        return None
    if kind == socket.SOCK_STREAM:
        server.listen()
    server.setblocking(False)
    return server


def has_visitor(server: socket.socket) -> bool:
    try:
        if server.type == socket.SOCK_DGRAM:
            return bool(server.recv(4096))
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def look_at(path: Path) -> tuple[object, ...]:
    """A file's content and attributes, as far as somebody else could change them."""
    stat = path.lstat()
    content = path.read_bytes() if path.is_file() and stat.st_mode & 0o400 else b""
    attributes = {}
    if path.is_file():
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    return (
        content, stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime_ns, stat.st_nlink, stat.st_ino,
        stat.st_dev, attributes, flags_of(path),
    )  # fmt: skip


def flags_of(path: Path) -> int:
    """What `chattr` changes; 0 where the file system has no such flags."""
    if not path.is_file():
        return 0
    with path.open() as file:
        try:
            return tools.file_flags(file.fileno())
        except OSError:
            return 0


@dataclass(frozen=True)
class Attack:
    """One escape attempt."""

    run: Callable[[dict[str, Any]], object]
    """Runs in the grading process, sent there as source; what it returns is its loot."""
    is_seen: Callable[[World, str], bool]
    """Whether it achieved something, from the world and from what the process said at its end."""
    needs_victim: bool = False
    host_may_refuse: str = ""
    """Why a machine may refuse it although no layer is on."""

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def is_raw(self) -> bool:
        """Whether it speaks to one kind of processor."""
        return any(word in self.source for word in ("raw(", "machine_code("))

    @property
    def source(self) -> str:
        return inspect.getsource(self.run)

    def request(self, world: World) -> bytes:
        item = {
            "attack": self.source,
            "name": self.name,
            "target": world.target(self.needs_victim),
        }
        return json.dumps({"sample": {}, "item": item}).encode()

    def grader_of_top_level(self, world: World) -> str:
        """A source that makes the attempt when it is loaded."""
        target = world.target(self.needs_victim)
        shown = f"raise Loot(repr({self.name}({target!r})))"
        return f"{inspect.getsource(tools)}\n{self.source}\n{shown}\n\ndef grade(s, i): return 1"


GRADER = f"""{inspect.getsource(tools)}

def grade(sample, item):
    exec(compile(item["attack"], "attack.py", "exec"), globals())
    raise Loot(repr(globals()[item["name"]](item["target"])))
"""
"""A grader that makes the attempt its item names, and shows what it got."""


def secret_is_shown(world: World, said: str) -> bool:
    return world.secret in said or str(world.number) in said


def world_is_changed(world: World, said: str) -> bool:
    return world.is_changed


def server_is_reached(world: World, said: str) -> bool:
    return bool(world.received)


def victim_is_dead(world: World, said: str) -> bool:
    return world.victim.poll() is not None


def victim_is_signalled(world: World, said: str) -> bool:
    return world.signalled.exists()


def loot_is(expected: str) -> Callable[[World, str], bool]:
    """For what leaves no trace outside: the attack itself must have seen its effect."""
    return lambda world, said: f"Loot: {expected}" in said


def said_by(outcome: Outcome) -> str:
    return f"{outcome.kind} {outcome.reward} {outcome.details}"
