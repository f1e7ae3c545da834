import os
import stat

import pytest

from diffuseg.errors import InputError
from diffuseg.files import atomic_path


def test_the_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "er" / "a.txt"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".txt"
        temporary.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    assert os.listdir(target.parent) == ["a.txt"]


def test_nothing_is_left_when_the_block_fails(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("before")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_nested_paths_appear_together_or_not_at_all(tmp_path):
    def fail() -> None:
        with atomic_path(tmp_path / "a") as first, atomic_path(tmp_path / "b") as second:
            first.write_text("1")
            second.write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == []


def test_an_existing_file_is_replaced_and_strings_will_do(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_path(str(target)) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_the_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic_path(tmp_path / "ours") as temporary:
        temporary.write_text("")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_folder_is_refused(tmp_path):
    with (
        pytest.raises(InputError, match=r"must be a file name\n  got: the folder .*\n  fix: add"),
        atomic_path(tmp_path),
    ):
        pass


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="folder of the output must exist or be makeable"),
        atomic_path(tmp_path / "file" / "a.txt"),
    ):
        pass


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    # Root may write everywhere, so the permission bits alone would not do.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with (
        pytest.raises(InputError, match=r"must be writable\n  got: .*\n  fix: choose"),
        atomic_path(tmp_path / "a.txt"),
    ):
        pass
