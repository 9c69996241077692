"""Emptying a folder that a hostile process filled: nothing outside it is ever touched."""

import os

import pytest

from rft.graders.sandbox_folder import ScratchFolder, remove_folder


@pytest.fixture
def treasure(tmp_path):
    """A folder beside the scratch folder, with things that links will point at."""
    folder = tmp_path / "treasure"
    (folder / "inner").mkdir(parents=True)
    (folder / "file").write_text("gold")
    (folder / "inner" / "deep").write_text("gold")
    yield folder
    assert sorted(os.listdir(folder)) == ["file", "inner"]
    assert (folder / "file").read_text() == (folder / "inner" / "deep").read_text() == "gold"
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "inner").stat().st_mode & 0o777 == 0o755


@pytest.fixture
def scratch(tmp_path):
    folder = ScratchFolder(str(tmp_path / "scratch"))
    yield folder
    os.close(folder.fd)


def test_links_go_and_what_they_point_at_stays(scratch, treasure):
    os.chmod(treasure, 0o755)
    os.chmod(treasure / "inner", 0o755)
    os.makedirs(f"{scratch.path}/a/b/c")
    for place in ("link", "a/link", "a/b/link", "a/b/c/link"):
        os.symlink(treasure, f"{scratch.path}/{place}")
        os.symlink(treasure / "file", f"{scratch.path}/{place}-file")
        os.link(treasure / "file", f"{scratch.path}/{place}-hard")
    assert scratch.is_emptied()
    assert os.listdir(scratch.path) == []


def test_a_link_in_the_place_of_the_folder_is_not_followed(scratch, treasure):
    os.chmod(treasure, 0o755)
    os.chmod(treasure / "inner", 0o755)
    os.rmdir(scratch.path)
    os.symlink(treasure, scratch.path)
    assert not scratch.is_emptied()
    remove_folder(scratch.path)
    assert os.path.islink(scratch.path)


def test_another_folder_in_its_place_is_left_alone(scratch, tmp_path):
    os.rename(scratch.path, tmp_path / "moved")
    os.mkdir(scratch.path)
    (tmp_path / "scratch" / "kept").write_text("")
    assert not scratch.is_emptied()
    assert os.listdir(scratch.path) == ["kept"]


def test_deep_wide_and_closed_folders_go(scratch):
    deep = os.open(scratch.path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=deep)
        inner = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = inner
    os.close(deep)
    os.makedirs(f"{scratch.path}/closed/inner/inmost")
    for index in range(200):
        open(f"{scratch.path}/file-{index}", "w").close()
    for path in ("closed/inner/inmost", "closed/inner", "closed", "."):
        os.chmod(f"{scratch.path}/{path}", 0)
    assert scratch.is_emptied()
    assert os.listdir(scratch.path) == []


def test_too_much_is_given_up(scratch):
    for index in range(50):
        open(f"{scratch.path}/{index}", "w").close()
    assert not scratch.is_emptied(20)
    assert scratch.is_emptied(1000)


def test_bytes_are_those_on_disk(scratch):
    os.makedirs(f"{scratch.path}/a/b")
    for place in ("x", "a/x", "a/b/x"):
        with open(f"{scratch.path}/{place}", "wb") as file:
            file.write(os.urandom(1 << 20))
    with open(f"{scratch.path}/sparse", "wb") as file:
        file.truncate(1 << 30)
    assert 3 << 20 <= scratch.num_bytes(1000) < 4 << 20


def test_what_cannot_be_measured_is_without_bound(scratch):
    os.makedirs(scratch.path + "/d" * 40)
    assert scratch.num_bytes(1000) == float("inf")
    assert scratch.is_emptied()
    for index in range(50):
        os.mkdir(f"{scratch.path}/{index}")
        open(f"{scratch.path}/{index}/file", "w").close()
    assert scratch.num_bytes(100) < float("inf")
    assert scratch.num_bytes(99) == float("inf")


def test_a_whole_folder_is_removed(tmp_path):
    os.makedirs(tmp_path / "gone" / "a" / "b")
    remove_folder(str(tmp_path / "gone"))
    assert not (tmp_path / "gone").exists()
    remove_folder(str(tmp_path / "never-there"))
