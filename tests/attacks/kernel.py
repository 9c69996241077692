"""Attacks on the kernel's rarer doors, on who the process is, and on what outlives it."""

from collections.abc import Callable
from pathlib import Path

from tests.attacks.attack import Attack, World, loot_is
from tests.attacks.tools import (
    checked,
    contextlib,
    ctypes,
    fcntl,
    inherited_descriptors,
    libc,
    os,
    raw,
    signal,
    stat,
    struct,
    subprocess,
)


def open_io_uring(target):
    return f"descriptor {stat.S_IFMT(os.fstat(raw(425, 4, bytes(120))).st_mode) >= 0}"


def load_a_bpf_map(target):
    array, create = 2, 0
    attributes = struct.pack("IIII", array, 4, 4, 1) + bytes(112)
    return f"descriptor {raw(321, create, attributes, len(attributes)) > 2}"


def handle_page_faults(target):
    return f"descriptor {raw(323, 0) > 2}"


def handle_page_faults_of_user_mode(target):
    return f"descriptor {raw(323, 1) > 2}"


def count_cpu_events(target):
    software, cpu_clock = 1, 0
    attributes = struct.pack("IIQ", software, 112, cpu_clock) + bytes(96)
    fd = raw(298, attributes, 0, -1, -1, 0)
    return f"counted {len(os.read(fd, 8))}"


def keep_a_key(target):
    user_keyring = -4
    raw(248, b"user", target["name"].encode(), b"left", 4, user_keyring)


def list_own_keys(target):
    get_keyring_id, session = 0, -3
    return f"keyring {raw(250, get_keyring_id, session, 1) > 0}"


def unshare_the_user(target):
    raw(272, 0x10000000)
    return "own namespace"


def unshare_the_network(target):
    raw(272, 0x40000000)
    return "own namespace"


def clone_into_a_namespace(target):
    pid = raw(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return f"own namespace {os.waitpid(pid, 0)[1]}"


def mount_over_a_folder(target):
    checked(libc.mount(b"tmpfs", target["data"].encode(), b"tmpfs", 0, None))


def open_a_file_system(target):
    return f"descriptor {raw(430, b'tmpfs', 0) > 2}"


def copy_a_tree_of_mounts(target):
    clone = 1
    return f"descriptor {raw(428, -100, target['data'].encode(), clone) > 2}"


def change_the_root(target):
    os.chroot(target["data"])
    return f"root {os.path.exists('/answers.csv')}"


def become_another_user(target):
    os.setuid(65534)
    return f"user {os.getuid()}"


def leave_all_groups(target):
    os.setgroups([65533])
    return f"groups {os.getgroups()}"


def become_the_same_user_again(target):
    # harmless in itself; but it also clears the wish to end with the parent
    os.setresuid(os.getuid(), os.getuid(), os.getuid())
    return "same user"


def hold_capabilities(target):
    header = struct.pack("Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    raw(125, header, data)
    effective, permitted, _ = struct.unpack_from("III", data.raw)
    if not effective | permitted:
        raise PermissionError("none is left")
    return "capabilities"


def turn_off_random_addresses(target):
    no_randomize = 0x0040000
    checked(libc.personality(no_randomize))
    return f"personality {bool(libc.personality(0xFFFFFFFF) & no_randomize)}"


def become_traceable(target):
    set_dumpable, get_dumpable = 4, 3
    checked(libc.prctl(set_dumpable, 1, 0, 0, 0))
    return f"dumpable {libc.prctl(get_dumpable, 0, 0, 0, 0)}"


def outlive_the_parent(target):
    set_death_signal = 1
    checked(libc.prctl(set_death_signal, 0, 0, 0, 0))
    return "lives on"


def be_heir_of_orphans(target):
    set_subreaper = 36
    checked(libc.prctl(set_subreaper, 1, 0, 0, 0))
    return "heir"


def type_into_a_terminal(target):
    terminal = os.open(target["terminal"], os.O_RDWR | os.O_NOCTTY)
    for letter in b"rm -rf /\n":
        fcntl.ioctl(terminal, 0x5412, bytes([letter]))


def read_the_kernel_log(target):
    read_all = 3
    text = ctypes.create_string_buffer(1000)
    return f"log {checked(libc.klogctl(read_all, text, 1000)) > 0}"


def command_the_io_ports(target):
    raw(172, 3)
    return "ports"


def rename_the_machine(target):
    name = os.uname().nodename.encode()
    checked(libc.sethostname(name, len(name)))
    return "renamed"


def account_for_processes(target):
    checked(libc.acct(None))
    return "accounting"


def read_physical_memory(target):
    with open("/dev/mem", "rb", 0) as memory:
        return f"memory {len(memory.read(16))}"


def open_the_graphics_card(target):
    return f"card {os.open('/dev/nvidia0', os.O_RDWR)} {os.open('/dev/nvidiactl', os.O_RDWR)}"


def open_the_virtual_machine_device(target):
    return f"device {os.open('/dev/kvm', os.O_RDWR) > 2}"


def listen_to_the_terminal(target):
    return f"terminal {os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY) > 2}"


def leave_shared_memory(target):
    create = 0o1000
    checked(libc.shmget(target["key_of_ipc"], 4096, create | 0o600))


def leave_a_message(target):
    create = 0o1000
    queue = checked(libc.msgget(target["key_of_ipc"], create | 0o600))
    checked(libc.msgsnd(queue, struct.pack("q4s", 1, b"left"), 4, 0))


def leave_a_semaphore(target):
    create = 0o1000
    checked(libc.semget(target["key_of_ipc"], 1, create | 0o600))


def leave_a_posix_message(target):
    queue = raw(240, target["name"].encode(), os.O_CREAT | os.O_RDWR, 0o600, None)
    raw(242, queue, b"left", 4, 0, None)


def leave_a_posix_semaphore(target):
    from multiprocessing import shared_memory

    shared_memory.SharedMemory(f"{target['name']}-memory", create=True, size=100)
    os._exit(0)


def fill_memory_past_the_limit(target):
    written = 0
    while written < 1 << 30:
        fd = os.memfd_create("bomb")
        for _ in range(4):
            written += os.write(fd, bytes(16 << 20))
    return f"wrote {written >> 20} MB"


def write_to_every_descriptor(target):
    """Anything beyond pipes and sockets of one's own would come from the engine."""
    found = []
    for fd, kind in inherited_descriptors():
        is_own = stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)
        with contextlib.suppress(OSError):
            found += [(fd, oct(kind))] * (not is_own)
    if not found:
        raise PermissionError("nothing was inherited")
    return f"inherited {found}"


def look_for_keys_in_the_environment(target):
    with contextlib.suppress(OSError):
        subprocess.run(["true"])
    found = [name for name in os.environ if "SECRET" in name]
    if not found:
        raise PermissionError("no keys")
    return f"keys {found}"


def change_the_limits(target):
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard * 2, hard * 2))
    return "more memory"


def change_the_limits_with_raw_call(target):
    limit = struct.pack("QQ", 1 << 40, 1 << 40)
    raw(302, 0, 9, limit, None)
    return "more memory"


def ipc_is_left(kind: str) -> Callable[[World, str], bool]:
    def is_seen(world: World, said: str) -> bool:
        lines = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
        left = [line.split()[1] for line in lines if int(line.split()[0]) == world.ipc_key]
        for number in left:
            option = {"shm": "-m", "msg": "-q", "sem": "-s"}[kind]
            subprocess.run(["ipcrm", option, number], check=True)
        return bool(left)

    return is_seen


def key_is_left(world: World, said: str) -> bool:
    user_keyring, search, unlink = -4, 10, 9
    try:
        key = raw(250, search, user_keyring, b"user", world.folder.name.encode(), 0)
    except OSError:
        return False
    raw(250, unlink, key, user_keyring)
    return True


def posix_message_is_left(world: World, said: str) -> bool:
    name = world.folder.name.encode()
    try:
        queue = raw(240, name, os.O_RDWR, 0, None)
    except OSError:
        return False
    os.close(queue)
    raw(241, name)
    return True


def shared_memory_is_left(world: World, said: str) -> bool:
    left = Path("/dev/shm", f"{world.folder.name}-memory")
    if not left.exists():
        return False
    left.unlink()
    return True


def text_is_typed(world: World, said: str) -> bool:
    return world.typed == b"rm -rf /\n"


ADMIN = "needs CAP_SYS_ADMIN"
ATTACKS = [
    Attack(open_io_uring, loot_is("'descriptor True'"), host_may_refuse="io_uring may be off"),
    Attack(load_a_bpf_map, loot_is("'descriptor True'"), host_may_refuse="needs CAP_BPF"),
    Attack(
        handle_page_faults, loot_is("'descriptor True'"), host_may_refuse="needs CAP_SYS_PTRACE"
    ),
    Attack(
        handle_page_faults_of_user_mode,
        loot_is("'descriptor True'"),
        host_may_refuse="the kernel may lack userfaultfd",
    ),
    Attack(count_cpu_events, loot_is("'counted 8'"), host_may_refuse="needs CAP_PERFMON"),
    Attack(keep_a_key, key_is_left, host_may_refuse="the kernel may lack keys"),
    Attack(list_own_keys, loot_is("'keyring True'"), host_may_refuse="the kernel may lack keys"),
    Attack(
        unshare_the_user, loot_is("'own namespace'"), host_may_refuse="user namespaces may be off"
    ),
    Attack(unshare_the_network, loot_is("'own namespace'"), host_may_refuse=ADMIN),
    Attack(
        clone_into_a_namespace,
        loot_is("'own namespace 0'"),
        host_may_refuse="user namespaces may be off",
    ),
    Attack(
        mount_over_a_folder, lambda world, said: os.path.ismount(world.data), host_may_refuse=ADMIN
    ),
    Attack(open_a_file_system, loot_is("'descriptor True'"), host_may_refuse=ADMIN),
    Attack(copy_a_tree_of_mounts, loot_is("'descriptor True'"), host_may_refuse=ADMIN),
    Attack(change_the_root, loot_is("'root True'"), host_may_refuse="needs CAP_SYS_CHROOT"),
    Attack(become_another_user, loot_is("'user 65534'"), host_may_refuse="needs CAP_SETUID"),
    Attack(become_the_same_user_again, loot_is("'same user'")),
    Attack(leave_all_groups, loot_is("'groups [65533]'"), host_may_refuse="needs CAP_SETGID"),
    Attack(hold_capabilities, loot_is("'capabilities'"), host_may_refuse="only root has some"),
    Attack(turn_off_random_addresses, loot_is("'personality True'")),
    Attack(become_traceable, loot_is("'dumpable 1'")),
    Attack(outlive_the_parent, loot_is("'lives on'")),
    Attack(be_heir_of_orphans, loot_is("'heir'")),
    Attack(
        type_into_a_terminal, text_is_typed, host_may_refuse="dev.tty.legacy_tiocsti may be off"
    ),
    Attack(
        read_the_kernel_log,
        loot_is("'log True'"),
        host_may_refuse="kernel.dmesg_restrict may be on",
    ),
    Attack(command_the_io_ports, loot_is("'ports'"), host_may_refuse="needs CAP_SYS_RAWIO"),
    Attack(rename_the_machine, loot_is("'renamed'"), host_may_refuse=ADMIN),
    Attack(account_for_processes, loot_is("'accounting'"), host_may_refuse="needs CAP_SYS_PACCT"),
    Attack(
        read_physical_memory, loot_is("'memory 16'"), host_may_refuse="there may be no /dev/mem"
    ),
    Attack(
        open_the_graphics_card,
        lambda world, said: "Loot: 'card" in said,
        host_may_refuse="there may be no card",
    ),
    Attack(
        open_the_virtual_machine_device,
        loot_is("'device True'"),
        host_may_refuse="there may be no /dev/kvm",
    ),
    Attack(listen_to_the_terminal, loot_is("'terminal True'"), host_may_refuse="needs a /dev/ptmx"),
    Attack(
        leave_shared_memory, ipc_is_left("shm"), host_may_refuse="the kernel may lack System V IPC"
    ),
    Attack(leave_a_message, ipc_is_left("msg"), host_may_refuse="the kernel may lack System V IPC"),
    Attack(
        leave_a_semaphore, ipc_is_left("sem"), host_may_refuse="the kernel may lack System V IPC"
    ),
    Attack(
        leave_a_posix_message,
        posix_message_is_left,
        host_may_refuse="the kernel may lack POSIX queues",
    ),
    Attack(leave_a_posix_semaphore, shared_memory_is_left),
    Attack(fill_memory_past_the_limit, loot_is("'wrote 1024 MB'")),
    Attack(change_the_limits, loot_is("'more memory'"), host_may_refuse="needs CAP_SYS_RESOURCE"),
    Attack(
        change_the_limits_with_raw_call,
        loot_is("'more memory'"),
        host_may_refuse="needs CAP_SYS_RESOURCE",
    ),
]
"""Their names say what each tries."""

NEVER_POSSIBLE = [
    Attack(write_to_every_descriptor, lambda world, said: "Loot: 'inherited" in said),
    Attack(look_for_keys_in_the_environment, lambda world, said: "Loot: 'keys" in said),
]
"""What no tier lets through: descriptors and variables are kept from the process, not guarded."""
