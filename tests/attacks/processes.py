"""Attacks on processes: making some, running programs, and reaching into the engine or the worker."""

from tests.attacks.attack import (
    Attack,
    World,
    loot_is,
    secret_is_shown,
    victim_is_dead,
    victim_is_signalled,
)
from tests.attacks.tools import (
    call_32bit,
    checked,
    ctypes,
    fcntl,
    forked,
    libc,
    machine_code,
    os,
    raw,
    read_all,
    resource,
    signal,
    socket,
    struct,
    subprocess,
)

# Making processes


def fork(target):
    reader, writer = os.pipe()
    return forked(os.fork(), reader, writer)


def fork_with_a_terminal(target):
    reader, writer = os.pipe()
    return forked(os.forkpty()[0], reader, writer)


def fork_with_the_raw_call(target):
    reader, writer = os.pipe()
    return forked(raw(57), reader, writer)


def fork_with_raw_clone(target):
    reader, writer = os.pipe()
    return forked(raw(56, signal.SIGCHLD, 0, 0, 0, 0), reader, writer)


def fork_beside_the_worker(target):
    reader, writer = os.pipe()
    clone_parent = 0x8000
    return forked(raw(56, clone_parent | signal.SIGCHLD, 0, 0, 0, 0), reader, writer)


def fork_with_raw_clone3(target):
    reader, writer = os.pipe()
    arguments = struct.pack("11Q", *([0] * 4), signal.SIGCHLD, *([0] * 6))
    return forked(raw(435, arguments, len(arguments)), reader, writer)


def fork_with_high_bits(target):
    reader, writer = os.pipe()
    return forked(raw(56 | 1 << 32, signal.SIGCHLD, 0, 0, 0, 0), reader, writer)


def fork_with_32bit_call(target):
    reader, writer = os.pipe()
    return forked(call_32bit(2), reader, writer)


def fork_with_raw_vfork(target):
    # mov eax, 58; syscall; test eax, eax; jnz over; mov eax, 60; xor edi, edi; syscall; over: cdqe; ret
    pid = machine_code(
        b"\xb8\x3a\0\0\0\x0f\x05\x85\xc0\x75\x09\xb8\x3c\0\0\0\x31\xff\x0f\x05\x48\x98\xc3"
    )
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return f"alive in {os.waitpid(pid, 0)[0]}"


def start_a_pool(target):
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1) as pool:
        return f"alive in {pool.submit(os.getpid).result(3)}"


def run_a_program(target):
    return subprocess.run(["echo", "alive", "in"], capture_output=True, text=True).stdout


def run_a_program_with_spawn(target):
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "echo alive in $$"], {})
    return os.waitpid(pid, 0)


def run_a_program_with_system(target):
    if os.system("echo alive in $$") != 0:
        raise PermissionError("no shell")


def become_a_program(target):
    os.execve("/bin/echo", ["echo", "alive in"], {})


def become_a_program_in_memory(target):
    fd = os.memfd_create("program", 0)
    os.write(fd, b"#!/bin/sh\necho alive in $$\n")
    at_empty_path = 0x1000
    raw(322, fd, b"", (ctypes.c_char_p * 2)(b"x", None), None, at_empty_path)


def become_a_program_of_its_own(target):
    with open("program", "w", opener=lambda path, flags: os.open(path, flags, 0o700)) as file:
        file.write("#!/bin/sh\necho alive in $$\n")
    os.execve("./program", ["program"], {})


# Signals


def kill_the_engine(target):
    os.kill(target["victim"], signal.SIGKILL)


def kill_by_thread_group(target):
    raw(234, target["victim"], target["victim"], signal.SIGKILL)


def kill_by_thread(target):
    raw(200, target["victim"], signal.SIGKILL)


def kill_by_queue(target):
    information = struct.pack("iii", signal.SIGTERM, 0, -1) + bytes(116)
    raw(129, target["victim"], signal.SIGTERM, information)


def kill_by_thread_queue(target):
    information = struct.pack("iii", signal.SIGTERM, 0, -1) + bytes(116)
    raw(297, target["victim"], target["victim"], signal.SIGTERM, information)


def kill_by_descriptor(target):
    signal.pidfd_send_signal(os.pidfd_open(target["victim"]), signal.SIGKILL)


def kill_with_32bit_call(target):
    call_32bit(37, target["victim"], signal.SIGKILL)


def kill_by_pipe(target):
    reader, writer = os.pipe()
    set_signal = 10
    fcntl.fcntl(reader, set_signal, signal.SIGKILL)
    fcntl.fcntl(reader, fcntl.F_SETOWN, target["victim"])
    flags = fcntl.fcntl(reader, fcntl.F_GETFL)
    fcntl.fcntl(reader, fcntl.F_SETFL, flags | os.O_ASYNC)
    os.write(writer, b"x")


def kill_by_owner_of_pipe(target):
    reader, writer = os.pipe()
    set_owner, set_signal, of_process = 15, 10, 1
    fcntl.fcntl(reader, set_signal, signal.SIGKILL)
    fcntl.fcntl(reader, set_owner, struct.pack("ii", of_process, target["victim"]))
    fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)
    os.write(writer, b"x")


def signal_by_socket(target):
    ours, theirs = socket.socketpair()
    set_owner = 0x8901
    fcntl.ioctl(ours.fileno(), set_owner, struct.pack("i", target["victim"]))
    flags = fcntl.fcntl(ours, fcntl.F_GETFL)
    fcntl.fcntl(ours, fcntl.F_SETFL, flags | os.O_ASYNC)
    theirs.send(b"x")


def signal_everybody(target):
    os.kill(-1, signal.SIGURG)


def probe_the_engine(target):
    os.kill(target["victim"], 0)
    return "it is there"


def kill_the_worker(target):
    os.kill(os.getppid(), signal.SIGKILL)


def kill_the_worker_by_pipe(target):
    reader, writer = os.pipe()
    set_signal = 10
    fcntl.fcntl(reader, set_signal, signal.SIGKILL)
    fcntl.fcntl(reader, fcntl.F_SETOWN, os.getppid())
    fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)
    os.write(writer, b"x")


# Memory, descriptors and settings of other processes


def trace_the_engine(target):
    attach, peek = 16, 2
    checked(libc.ptrace(attach, target["victim"], None, None))
    os.waitpid(target["victim"], 0)
    libc.ptrace.restype = ctypes.c_long
    words = [
        libc.ptrace(
            peek, target["victim"], ctypes.c_void_p(target["victim_environment"] + at), None
        )
        for at in range(0, 80, 8)
    ]
    return b"".join(struct.pack("q", word) for word in words)


def seize_the_worker(target):
    seize = 0x4206
    checked(libc.ptrace(seize, os.getppid(), None, None))
    return "seized"


def read_memory_across(target):
    own = ctypes.create_string_buffer(100)
    ours = struct.pack("QQ", ctypes.addressof(own), 100)
    theirs = struct.pack("QQ", target["victim_environment"], 100)
    raw(310, target["victim"], ours, 1, theirs, 1, 0)
    return own.raw


def write_memory_across(target):
    own = ctypes.create_string_buffer(b"OVERWRITTEN")
    ours = struct.pack("QQ", ctypes.addressof(own), 11)
    theirs = struct.pack("QQ", target["victim_environment"], 11)
    raw(311, target["victim"], ours, 1, theirs, 1, 0)


def write_memory_through_its_file(target):
    with open(f"/proc/{target['victim']}/mem", "wb", 0) as memory:
        memory.seek(target["victim_environment"])
        memory.write(b"OVERWRITTEN")


def take_a_descriptor(target):
    fd = raw(438, os.pidfd_open(target["victim"]), 0, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    return read_all(fd)


def enter_its_namespaces(target):
    new_uts = 0x04000000
    raw(308, os.pidfd_open(target["victim"]), new_uts)
    return "entered"


def advise_its_memory(target):
    memory = struct.pack("QQ", target["victim_environment"] & ~4095, 4096)
    raw(440, os.pidfd_open(target["victim"]), memory, 1, 20, 0)
    return "advised"


def compare_with_the_engine(target):
    of_file = 0
    return f"compared {raw(312, os.getpid(), target['victim'], of_file, 0, 0) in range(4)}"


def limit_the_engine(target):
    resource.prlimit(target["victim"], resource.RLIMIT_NOFILE, (7, 7))


def slow_the_engine(target):
    os.setpriority(os.PRIO_PROCESS, target["victim"], 19)


def slow_its_disk(target):
    raw(251, 1, target["victim"], 3 << 13)


def pin_the_engine(target):
    os.sched_setaffinity(target["victim"], {min(os.sched_getaffinity(0))})


def idle_the_engine(target):
    os.sched_setscheduler(target["victim"], os.SCHED_IDLE, os.sched_param(0))


def schedule_the_engine(target):
    attributes = struct.pack("IIQiIQQQ", 48, os.SCHED_BATCH, 0, 5, 0, 0, 0, 0)
    raw(314, target["victim"], attributes, 0)


def environment_is_overwritten(world: World, said: str) -> bool:
    with open(f"/proc/{world.victim.pid}/environ", "rb") as file:
        return b"OVERWRITTEN" in file.read()


def victim_is_limited(world: World, said: str) -> bool:
    import resource

    return resource.prlimit(world.victim.pid, resource.RLIMIT_NOFILE) == (7, 7)


def disk_priority_is_idle(world: World, said: str) -> bool:
    return bool(raw(252, 1, world.victim.pid) == 3 << 13)


SPAWNING = (
    fork,
    fork_with_a_terminal,
    fork_with_the_raw_call,
    fork_with_raw_clone,
    fork_beside_the_worker,
    fork_with_raw_vfork,
    start_a_pool,
    run_a_program,
    run_a_program_with_spawn,
    run_a_program_with_system,
    become_a_program,
    become_a_program_in_memory,
    become_a_program_of_its_own,
)

ATTACKS = [
    *[Attack(run, lambda world, said: "alive in" in said) for run in SPAWNING],
    Attack(
        fork_with_raw_clone3,
        lambda world, said: "alive in" in said,
        host_may_refuse="container runtimes answer as a kernel without clone3",
    ),
    Attack(
        fork_with_high_bits,
        lambda world, said: "alive in" in said,
        host_may_refuse="the kernel reads whole numbers",
    ),
    Attack(
        fork_with_32bit_call,
        lambda world, said: "alive in" in said,
        host_may_refuse="the kernel may lack 32-bit calls",
    ),
    *[
        Attack(run, victim_is_dead, needs_victim=True)
        for run in (
            kill_the_engine,
            kill_by_thread_group,
            kill_by_thread,
            kill_by_queue,
            kill_by_thread_queue,
            kill_by_descriptor,
            kill_by_pipe,
            kill_by_owner_of_pipe,
        )
    ],
    Attack(
        kill_with_32bit_call,
        victim_is_dead,
        needs_victim=True,
        host_may_refuse="the kernel may lack 32-bit calls",
    ),
    Attack(signal_everybody, victim_is_signalled, needs_victim=True),
    Attack(
        signal_by_socket,
        # SIGIO ends a process that does not expect it
        victim_is_dead,
        needs_victim=True,
    ),
    Attack(probe_the_engine, loot_is("'it is there'"), needs_victim=True),
    Attack(kill_the_worker, lambda world, said: said.startswith("sandbox")),
    Attack(kill_the_worker_by_pipe, lambda world, said: said.startswith("sandbox")),
    *[
        Attack(
            run,
            secret_is_shown,
            needs_victim=True,
            host_may_refuse="ptrace may be limited to one's own children",
        )
        for run in (trace_the_engine, read_memory_across, take_a_descriptor)
    ],
    *[
        Attack(
            run,
            environment_is_overwritten,
            needs_victim=True,
            host_may_refuse="ptrace may be limited to one's own children",
        )
        for run in (write_memory_across, write_memory_through_its_file)
    ],
    Attack(seize_the_worker, loot_is("'seized'"), host_may_refuse="ptrace may be limited"),
    Attack(
        enter_its_namespaces,
        loot_is("'entered'"),
        needs_victim=True,
        host_may_refuse="needs CAP_SYS_ADMIN",
    ),
    Attack(
        advise_its_memory,
        loot_is("'advised'"),
        needs_victim=True,
        host_may_refuse="needs CAP_SYS_NICE",
    ),
    Attack(
        compare_with_the_engine,
        loot_is("'compared True'"),
        needs_victim=True,
        host_may_refuse="ptrace may be limited, and the kernel may lack kcmp",
    ),
    Attack(limit_the_engine, victim_is_limited, needs_victim=True),
    Attack(
        slow_the_engine,
        lambda world, said: os.getpriority(os.PRIO_PROCESS, world.victim.pid) == 19,
        needs_victim=True,
    ),
    Attack(slow_its_disk, disk_priority_is_idle, needs_victim=True),
    Attack(
        pin_the_engine,
        lambda world, said: (
            len(os.sched_getaffinity(world.victim.pid)) < len(os.sched_getaffinity(0))
        ),
        needs_victim=True,
        host_may_refuse="there is one processor",
    ),
    Attack(
        idle_the_engine,
        lambda world, said: os.sched_getscheduler(world.victim.pid) == os.SCHED_IDLE,
        needs_victim=True,
    ),
    Attack(
        schedule_the_engine,
        lambda world, said: os.sched_getscheduler(world.victim.pid) == os.SCHED_BATCH,
        needs_victim=True,
    ),
]
"""Their names say what each tries."""
