"""A file is there whole, or what was there before is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hf_distill.files import read_json, whole, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_has_its_name_only_once_it_is_whole(tmp_path):
    with whole(tmp_path / "a.txt") as file:
        file.write("all of ")
        file.flush()
        assert not (tmp_path / "a.txt").exists()
        file.write("it ☃\n")
    assert (tmp_path / "a.txt").read_bytes() == "all of it ☃\n".encode()
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "of before"])
def test_what_was_there_stays_where_writing_fails(tmp_path, error, before):
    path = tmp_path / "a.txt"
    if before is not None:
        path.write_text(before)
    with pytest.raises(error), whole(path) as file:
        file.write("half of")
        raise error
    assert names(tmp_path) == ([] if before is None else ["a.txt"])
    assert before is None or path.read_text() == before


def test_what_cannot_be_written_as_json_leaves_the_file(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"b": object()})
    assert (tmp_path / "a.json").read_text() == '{"b": 1}\n' and names(tmp_path) == ["a.json"]


def test_the_machine_may_stop_before_the_name_is_given(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "of before")

    def stop(*args):
        raise OSError("stopped")

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(OSError, match="stopped"):
        write_text(tmp_path / "a.txt", "new")
    monkeypatch.undo()
    assert (tmp_path / "a.txt").read_text() == "of before" and names(tmp_path) == ["a.txt"]


def test_two_writers_at_once_each_write_whole_files(tmp_path):
    path = tmp_path / "a.txt"
    with whole(path) as first, whole(path) as second:
        first.write("first")
        second.write("second")
    assert path.read_text() == "first" and names(tmp_path) == ["a.txt"]  # the last that was finished


@pytest.mark.skipif(os.name != "posix", reason="rights are POSIX's")
def test_rights_are_those_of_any_new_file_or_of_the_former_one(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new.txt", "")
        (tmp_path / "old.txt").touch()
        (tmp_path / "old.txt").chmod(0o604)
        write_text(tmp_path / "old.txt", "again")
    finally:
        os.umask(before)
    assert (tmp_path / "new.txt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "old.txt").stat().st_mode & 0o777 == 0o604


def test_the_mask_of_new_files_is_not_touched(tmp_path, monkeypatch):
    # It is the whole process's: another thread's file would be open to everybody, and two threads could leave it so.
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("all threads would feel it"))
    write_text(tmp_path / "new.txt", "")
    write_text(tmp_path / "new.txt", "again")
    assert (tmp_path / "new.txt").read_text() == "again"


def test_folders_are_made_and_bytes_stay_as_they_are(tmp_path):
    path = tmp_path / "made" / "of" / "a.bin"
    with whole(path, "wb") as file:
        file.write(b"\r\n\x00")
    assert path.read_bytes() == b"\r\n\x00"
    write_json(str(tmp_path / "made" / "a.json"), {"ä": [1, None]}, indent=1, ensure_ascii=False)
    assert json.loads((tmp_path / "made" / "a.json").read_text(encoding="utf-8")) == {"ä": [1, None]}


@pytest.mark.parametrize(
    "content", ["{", "[]", "null", '{"format": 3}', '{"format": "2"}', '{"format": null}']
)
def test_what_is_read_has_a_known_format(tmp_path, content):
    write_json(tmp_path / "a.json", {"format": 2, "b": 1})
    assert read_json(tmp_path / "a.json", 2) == ({"b": 1}, 2)
    write_json(tmp_path / "a.json", {"b": 1})
    assert read_json(tmp_path / "a.json", 2) == ({"b": 1}, 1)
    write_text(tmp_path / "a.json", content)
    with pytest.raises(
        ValueError, match="Expecting|no mapping|its format is .*, and this version .* reads 1 to 2"
    ):
        read_json(tmp_path / "a.json", 2)
