"""Temporary files and folders are held by who writes them, and litter when nobody does."""

from __future__ import annotations

import os
import threading

import pytest

from fitkit.checkpointing.storage import is_checkpoint, temp_files


def litter(folder):
    return [path for path in folder.iterdir() if path.name.endswith(is_checkpoint.TEMP_SUFFIX)]


def test_a_folder_is_held_until_it_is_done(tmp_path):
    with temp_files.temp_folder(tmp_path / "deep" / "er") as folder:
        (folder / "piece").write_text("x")
        temp_files.remove_stale(folder.parent)
        assert temp_files.try_lock(folder) is None
        assert (folder / "piece").exists()
    assert litter(folder.parent) == []


def test_what_was_given_another_name_stays_and_is_held_meanwhile(tmp_path):
    with temp_files.temp_folder(tmp_path) as folder:
        (folder / "piece").write_text("x")
        folder.rename(tmp_path / "kept")
        assert temp_files.try_lock(tmp_path / "kept") is None
    assert (tmp_path / "kept" / "piece").read_text() == "x"
    descriptor = temp_files.try_lock(tmp_path / "kept")
    assert descriptor is not None
    os.close(descriptor)


def test_an_error_leaves_nothing(tmp_path):
    def fail():
        with temp_files.temp_folder(tmp_path) as folder:
            (folder / "piece").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert litter(tmp_path) == []


def test_abandoned_folders_and_files_go_with_the_next_one(tmp_path):
    abandoned = temp_files.unique_path(tmp_path)
    abandoned.mkdir()
    (abandoned / "piece").write_text("x")
    temp_files.unique_path(tmp_path).write_text("x")
    with temp_files.temp_folder(tmp_path) as folder:
        assert litter(tmp_path) == [folder]


def test_names_of_others_stay(tmp_path):
    for name in (f"mine{is_checkpoint.TEMP_SUFFIX}", ".hidden", "x.pth"):
        (tmp_path / name).write_text("x")
    temp_files.remove_stale(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_gone_cannot_be_held(tmp_path):
    assert temp_files.try_lock(tmp_path / "none") is None
    temp_files.remove_stale(tmp_path / "none")


def test_many_at_once_in_one_folder(tmp_path):
    lost = []

    def work():
        for _ in range(30):
            with temp_files.temp_folder(tmp_path) as folder:
                (folder / "piece").write_text("x")
                temp_files.remove_stale(tmp_path)
                if not (folder / "piece").exists():
                    lost.append(folder)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost
    assert litter(tmp_path) == []
