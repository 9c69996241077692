"""What is made once is made again only when it is damaged or of another source."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rft.errors import MachineError
from rft.models.cache import make_once, models_cache


@pytest.fixture
def made() -> list[Path]:
    """The folders `make` was asked to fill."""
    return []


@pytest.fixture
def make(made: list[Path]) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.1)
        (folder / "weights").write_bytes(b"12345")

    return fill


def damage_nothing(folder: Path) -> None:
    pass


def cut(folder: Path) -> None:
    (folder / "weights").write_bytes(b"123")


def remove(folder: Path) -> None:
    (folder / "weights").unlink()


def unlist(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "num_made"), [(damage_nothing, 1), (cut, 2), (remove, 2), (unlist, 2)]
)
def test_a_damaged_folder_is_made_again(
    cache: Path,
    make: Callable[[Path], None],
    made: list[Path],
    damage: Callable[[Path], None],
    num_made: int,
) -> None:
    damage(make_once(cache / "m", make, "0" * 64))
    folder = make_once(cache / "m", make, "0" * 64)
    assert (folder / "weights").read_bytes() == b"12345"
    assert len(made) == num_made


def test_another_source_makes_it_again(
    cache: Path, make: Callable[[Path], None], made: list[Path]
) -> None:
    make_once(cache / "m", make, "0" * 64)
    make_once(cache / "m", make, "1" * 64)
    assert len(made) == 2


def test_two_at_once_make_it_once(
    cache: Path, make: Callable[[Path], None], made: list[Path]
) -> None:
    threads = [
        threading.Thread(target=make_once, args=(cache / "m", make, "0" * 64)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_failure_leaves_nothing(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"1")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        make_once(cache / "m", fail, "0" * 64)
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_what_a_killed_process_left_is_removed(
    cache: Path, make: Callable[[Path], None], made: list[Path]
) -> None:
    (cache / ".tmp-m-left").mkdir(parents=True)
    make_once(cache / "m", make, "0" * 64)
    assert sorted(path.name for path in cache.iterdir()) == [".lock", "m"]


def test_a_file_where_the_cache_should_be(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "cache").write_bytes(b"")
    with pytest.raises(MachineError, match="RFT_CACHE"):
        make_once(models_cache() / "m", make, "0" * 64)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_cache() == tmp_path / "rft" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_cache() == tmp_path / ".cache" / "rft" / "models"
