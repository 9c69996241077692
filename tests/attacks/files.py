"""Attacks on files: reading what is not the grader's, and changing anything outside its folder."""

from tests.attacks.attack import (
    Attack,
    loot_is,
    secret_is_shown,
    world_is_changed,
)
from tests.attacks.tools import (
    AT_FDCWD,
    FS_IOC_SETFLAGS,
    NO_DUMP,
    Path,
    call_32bit,
    checked,
    ctypes,
    fcntl,
    file_flags,
    libc,
    low_memory,
    mmap,
    os,
    raw,
    read_all,
    select,
    stat,
    struct,
)

# reading


def read_passwd(target):
    return Path("/etc/passwd").read_text()[:200]


def read_the_data_set(target):
    return Path(target["file"]).read_text()


def list_system_settings(target):
    return os.listdir("/etc")


def read_a_private_key(target):
    return Path(target["key"]).read_text()


def read_the_project(target):
    return Path(target["project"], "pyproject.toml").read_text()[:200]


def list_a_folder(target):
    return os.listdir(target["data"])


def list_all_processes(target):
    return [name for name in os.listdir("/proc") if name.isdigit()]


def read_environment_of_the_engine(target):
    return Path(f"/proc/{target['victim']}/environ").read_text()


def read_memory_of_the_engine(target):
    with open(f"/proc/{target['victim']}/mem", "rb", 0) as memory:
        memory.seek(target["victim_environment"])
        return memory.read(200)


def read_memory_map_of_the_engine(target):
    return Path(f"/proc/{target['victim']}/maps").read_text()[-300:]


def read_memory_map_of_the_worker(target):
    return Path(f"/proc/{os.getppid()}/maps").read_text()[-300:]


def read_what_the_engine_has_open(target):
    return Path(f"/proc/{target['victim']}/fd/0").read_text()


def read_names_of_what_the_engine_has_open(target):
    return os.readlink(f"/proc/{target['victim']}/fd/0")


def read_folder_of_the_engine(target):
    return Path(f"/proc/{target['victim']}/cwd/answers.csv").read_text()


def read_root_of_the_engine(target):
    return Path(f"/proc/{target['victim']}/root{target['file']}").read_text()


def read_upwards(target):
    return Path("../" * 40 + target["file"]).read_text()


def read_through_a_symlink(target):
    os.symlink(target["file"], "link")
    return Path("link").read_text()


def read_through_a_symlinked_folder(target):
    os.symlink(target["data"], "link")
    return Path("link/answers.csv").read_text()


def read_through_a_hard_link(target):
    os.link(target["file"], "link")
    return Path("link").read_text()


def read_after_a_rename(target):
    os.rename(target["file"], "mine")
    return Path("mine").read_text()


def read_from_a_bare_descriptor(target):
    fd = os.open(target["file"], os.O_PATH)
    return Path(f"/proc/self/fd/{fd}").read_text()


def read_below_a_bare_folder(target):
    folder = os.open(target["data"], os.O_PATH | os.O_DIRECTORY)
    return read_all(os.open("answers.csv", os.O_RDONLY, dir_fd=folder))


def read_below_another_current_folder(target):
    os.chdir(target["data"])
    return Path("answers.csv").read_text()


def read_through_c(target):
    libc.fopen.restype = ctypes.c_void_p
    file = libc.fopen(target["file"].encode(), b"r")
    if not file:
        raise OSError(ctypes.get_errno(), "fopen")
    libc.fgets.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]
    line = ctypes.create_string_buffer(100)
    libc.fgets(line, 100, file)
    libc.fgets(line, 100, file)
    return line.value


def read_with_raw_open(target):
    return read_all(raw(2, target["file"].encode(), 0))


def read_with_raw_openat(target):
    return read_all(raw(257, AT_FDCWD, target["file"].encode(), 0))


def read_with_raw_openat2(target):
    how = struct.pack("QQQ", 0, 0, 0)
    return read_all(raw(437, AT_FDCWD, target["file"].encode(), how, len(how)))


def read_with_x32_open(target):
    return read_all(raw(0x40000000 | 2, target["file"].encode(), 0))


def read_with_32bit_open(target):
    return read_all(call_32bit(5, low_memory(target["file"].encode() + b"\0")))


def read_by_handle(target):
    handle = bytearray(struct.pack("Ii", 128, 0) + bytes(128))
    in_c = (ctypes.c_char * len(handle)).from_buffer(handle)
    mount = ctypes.c_int()
    raw(303, AT_FDCWD, target["file"].encode(), in_c, ctypes.byref(mount), 0)
    folder = os.open(target["folder"], os.O_RDONLY)
    return read_all(raw(304, folder, in_c, os.O_RDONLY))


def name_a_file_by_handle(target):
    handle = bytearray(struct.pack("Ii", 128, 0) + bytes(128))
    in_c = (ctypes.c_char * len(handle)).from_buffer(handle)
    raw(303, AT_FDCWD, target["file"].encode(), in_c, ctypes.byref(ctypes.c_int()), 0)
    return f"handle of {struct.unpack_from('I', handle)[0] > 0}"


def read_an_attribute(target):
    return os.getxattr(target["file"], "user.answer")


def list_attributes(target):
    return f"attributes {os.listxattr(target['file'])}"


def read_with_numpy(target):
    import numpy

    numpy.savetxt("own.txt", [1.0])
    assert numpy.genfromtxt("own.txt") == 1.0
    return int(numpy.genfromtxt(target["numbers"]))


def read_with_numpy_fromfile(target):
    import numpy

    return numpy.fromfile(target["file"], dtype=numpy.uint8).tobytes()


def read_with_numpy_memmap(target):
    import numpy

    return numpy.memmap(target["file"], mode="r").tobytes()


def read_with_pandas(target):
    import pandas

    return pandas.read_csv(target["file"]).to_csv()


def read_with_arrow(target):
    import pyarrow.csv

    return pyarrow.csv.read_csv(target["file"]).to_pylist()


def read_with_arrow_memory_map(target):
    import pyarrow

    return pyarrow.memory_map(target["file"]).read()


def read_with_sqlite(target):
    import sqlite3

    own = sqlite3.connect("own.db")
    own.execute("create table t (x)")
    sqlite3.connect(f"{target['folder']}/new.db").execute("create table t (x)")
    return "made"


def read_with_the_import_system(target):
    from importlib.machinery import SourceFileLoader

    return SourceFileLoader("stolen", f"{target['data']}/stolen.py").load_module().ANSWER


def read_with_linecache(target):
    import linecache

    lines = linecache.getlines(target["file"])
    if not lines:
        raise PermissionError("linecache finds nothing")
    return lines


def read_with_mmap(target):
    fd = os.open(target["file"], os.O_RDONLY)
    return mmap.mmap(fd, 0, prot=mmap.PROT_READ)[:]


def watch_a_file(target):
    fd = checked(libc.inotify_init())
    seen_open = 0x20
    checked(libc.inotify_add_watch(fd, f"{target['folder']}/watched".encode(), seen_open))
    if select.select([fd], [], [], 2)[0]:
        return "opened by another"
    return "nothing"


def watch_a_folder_of_the_machine(target):
    fd = checked(libc.fanotify_init(0, 0))
    seen_open = 0x20
    libc.fanotify_mark.argtypes = [
        ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p,
    ]  # fmt: skip
    checked(libc.fanotify_mark(fd, 1, seen_open, AT_FDCWD, f"{target['folder']}/watched".encode()))
    if select.select([fd], [], [], 2)[0]:
        return "opened by another"
    return "nothing"


# writing


def write_a_file_elsewhere(target):
    Path(target["folder"], "new").write_text("x")


def change_a_file(target):
    with open(target["file"], "a") as file:
        file.write("x")


def change_an_installed_package(target):
    Path(target["library"]).write_text("x")


def add_to_the_installed_packages(target):
    Path(target["library"]).with_suffix(".pth").write_text("import os")


def write_upwards(target):
    Path("../" * 40 + target["folder"], "new").write_text("x")


def write_through_a_symlink(target):
    os.symlink(target["file"], "link")
    Path("link").write_text("x")


def write_through_a_hard_link(target):
    os.link(target["file"], "link")
    Path("link").write_text("x")


def write_by_renaming(target):
    Path("mine").write_text("x")
    os.rename("mine", f"{target['folder']}/new")


def write_by_exchanging(target):
    Path("mine").write_text("x")
    exchange = 2
    raw(316, AT_FDCWD, b"mine", AT_FDCWD, target["file"].encode(), exchange)


def write_by_linking_out(target):
    Path("mine").write_text("x")
    os.link("mine", f"{target['folder']}/new")


def make_a_folder_elsewhere(target):
    os.mkdir(f"{target['folder']}/new")


def make_a_symlink_elsewhere(target):
    os.symlink("/proc", f"{target['folder']}/new")


def make_a_fifo_elsewhere(target):
    os.mkfifo(f"{target['folder']}/new")


def make_a_socket_elsewhere(target):
    os.mknod(f"{target['folder']}/new", 0o600 | stat.S_IFSOCK)


def make_a_device(target):
    os.mknod("disk", 0o600 | stat.S_IFBLK, os.stat(target["folder"]).st_dev)
    return f"a device: {stat.S_ISBLK(os.stat('disk').st_mode)}"


def remove_a_file(target):
    os.unlink(target["file"])


def move_a_folder(target):
    os.rename(target["data"], f"{target['folder']}/new")


def truncate_a_file(target):
    os.truncate(target["file"], 0)


def truncate_by_opening(target):
    os.open(target["library"], os.O_RDONLY | os.O_TRUNC)


def chmod_a_file(target):
    os.chmod(target["file"], 0o777)


def chmod_by_descriptor(target):
    os.fchmod(os.open(target["library"], os.O_RDONLY), 0o777)


def chmod_with_fchmodat2(target):
    raw(452, AT_FDCWD, target["file"].encode(), 0o777, 0)


def chmod_with_32bit_call(target):
    call_32bit(15, low_memory(target["file"].encode() + b"\0"), 0o777)


def chown_a_file(target):
    os.chown(target["file"], -1, 65534)


def chown_by_descriptor(target):
    os.fchown(os.open(target["library"], os.O_RDONLY), -1, 65534)


def date_a_file(target):
    os.utime(target["file"], (0, 0))


def date_by_descriptor(target):
    os.utime(os.open(target["library"], os.O_RDONLY), (0, 0))


def set_an_attribute(target):
    os.setxattr(target["file"], "user.x", b"x")


def set_an_attribute_by_descriptor(target):
    os.setxattr(os.open(target["library"], os.O_RDONLY), "user.x", b"x")


def set_an_attribute_with_the_young_call(target):
    value = ctypes.create_string_buffer(b"x")
    arguments = struct.pack("QII", ctypes.addressof(value), 1, 0)
    name = b"user.x"
    raw(463, AT_FDCWD, target["file"].encode(), 0, name, arguments, len(arguments))


def remove_an_attribute(target):
    os.removexattr(target["file"], "user.answer")


def set_flags_of_a_file(target):
    fd = os.open(target["library"], os.O_RDONLY)
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("i", file_flags(fd) | NO_DUMP))


def set_flags_of_a_file_with_xfs_call(target):
    fd = os.open(target["library"], os.O_RDONLY)
    attributes = bytearray(28)
    fcntl.ioctl(fd, 0x801C581F, attributes)
    no_dump = 0x80
    struct.pack_into("I", attributes, 0, struct.unpack_from("I", attributes)[0] | no_dump)
    fcntl.ioctl(fd, 0x401C5820, bytes(attributes))


def set_flags_of_a_file_with_the_young_call(target):
    attributes = ctypes.create_string_buffer(24)
    raw(468, AT_FDCWD, target["file"].encode(), attributes, 24, 0)
    no_dump = 0x80
    changed = struct.pack("Q", struct.unpack_from("Q", attributes)[0] | no_dump)
    ctypes.memmove(attributes, changed, 8)
    raw(469, AT_FDCWD, target["file"].encode(), attributes, 24, 0)


def leave_a_file_in_shared_memory(target):
    Path(f"/dev/shm/{target['name']}").write_text("x")


ATTACKS = [
    Attack(
        read_passwd,
        lambda world, said: "root:" in said,
        host_may_refuse="small images have no such file",
    ),
    Attack(list_system_settings, lambda world, said: "Loot: ['" in said),
    Attack(read_the_project, lambda world, said: "[build-system]" in said),
    Attack(list_a_folder, lambda world, said: world.key.name in said),
    Attack(list_all_processes, lambda world, said: "Loot: ['1'" in said),
    Attack(read_memory_map_of_the_engine, lambda world, said: "[stack]" in said, needs_victim=True),
    Attack(read_memory_map_of_the_worker, lambda world, said: "[stack]" in said),
    Attack(
        read_names_of_what_the_engine_has_open,
        lambda world, said: f"Loot: '{world.file}'" in said,
        needs_victim=True,
    ),
    *[
        Attack(run, secret_is_shown, needs_victim=True)
        for run in (
            read_environment_of_the_engine,
            read_memory_of_the_engine,
            read_what_the_engine_has_open,
            read_folder_of_the_engine,
            read_root_of_the_engine,
        )
    ],
    *[
        Attack(run, secret_is_shown)
        for run in (
            read_the_data_set,
            read_a_private_key,
            read_upwards,
            read_through_a_symlink,
            read_through_a_symlinked_folder,
            read_after_a_rename,
            read_from_a_bare_descriptor,
            read_below_a_bare_folder,
            read_below_another_current_folder,
            read_through_c,
            read_with_raw_open,
            read_with_raw_openat,
            read_with_raw_openat2,
            read_with_numpy,
            read_with_numpy_fromfile,
            read_with_numpy_memmap,
            read_with_pandas,
            read_with_arrow,
            read_with_arrow_memory_map,
            read_with_the_import_system,
            read_with_linecache,
            read_with_mmap,
        )
    ],
    Attack(read_through_a_hard_link, secret_is_shown, host_may_refuse="protected_hardlinks"),
    Attack(
        read_with_x32_open, secret_is_shown, host_may_refuse="kernels seldom have the x32 calls"
    ),
    Attack(
        read_with_32bit_open, secret_is_shown, host_may_refuse="the kernel may lack 32-bit calls"
    ),
    Attack(read_by_handle, secret_is_shown, host_may_refuse="needs CAP_DAC_READ_SEARCH"),
    Attack(name_a_file_by_handle, loot_is("'handle of True'"), host_may_refuse="needs handles"),
    Attack(read_an_attribute, secret_is_shown, host_may_refuse="needs extended attributes"),
    Attack(
        list_attributes,
        lambda world, said: "user.answer" in said,
        host_may_refuse="needs extended attributes",
    ),
    Attack(watch_a_file, loot_is("'opened by another'"), needs_victim=True),
    Attack(
        watch_a_folder_of_the_machine,
        loot_is("'opened by another'"),
        needs_victim=True,
        host_may_refuse="needs CAP_SYS_ADMIN",
    ),
    Attack(read_with_sqlite, lambda world, said: (world.folder / "new.db").exists()),
    *[
        Attack(run, world_is_changed)
        for run in (
            write_a_file_elsewhere,
            change_a_file,
            change_an_installed_package,
            write_upwards,
            write_through_a_symlink,
            write_by_renaming,
            write_by_exchanging,
            write_by_linking_out,
            make_a_folder_elsewhere,
            make_a_symlink_elsewhere,
            make_a_fifo_elsewhere,
            make_a_socket_elsewhere,
            remove_a_file,
            move_a_folder,
            truncate_a_file,
            truncate_by_opening,
            chmod_a_file,
            chmod_by_descriptor,
            date_a_file,
            date_by_descriptor,
        )
    ],
    Attack(
        add_to_the_installed_packages,
        lambda world, said: world.library.with_suffix(".pth").exists(),
    ),
    Attack(write_through_a_hard_link, world_is_changed, host_may_refuse="protected_hardlinks"),
    Attack(make_a_device, loot_is("'a device: True'"), host_may_refuse="needs CAP_MKNOD"),
    Attack(chmod_with_fchmodat2, world_is_changed, host_may_refuse="younger than Linux 6.6"),
    Attack(
        chmod_with_32bit_call, world_is_changed, host_may_refuse="the kernel may lack 32-bit calls"
    ),
    Attack(chown_a_file, world_is_changed, host_may_refuse="needs CAP_CHOWN"),
    Attack(chown_by_descriptor, world_is_changed, host_may_refuse="needs CAP_CHOWN"),
    Attack(set_an_attribute, world_is_changed, host_may_refuse="needs extended attributes"),
    Attack(
        set_an_attribute_by_descriptor,
        world_is_changed,
        host_may_refuse="needs extended attributes",
    ),
    Attack(
        set_an_attribute_with_the_young_call,
        world_is_changed,
        host_may_refuse="younger than Linux 6.13",
    ),
    Attack(remove_an_attribute, world_is_changed, host_may_refuse="needs extended attributes"),
    Attack(set_flags_of_a_file, world_is_changed, host_may_refuse="needs flags of files"),
    Attack(
        set_flags_of_a_file_with_xfs_call, world_is_changed, host_may_refuse="needs flags of files"
    ),
    Attack(
        set_flags_of_a_file_with_the_young_call,
        world_is_changed,
        host_may_refuse="younger than Linux 6.17",
    ),
    Attack(
        leave_a_file_in_shared_memory,
        lambda world, said: Path("/dev/shm", world.folder.name).exists(),
    ),
]
"""Their names say what each tries."""
