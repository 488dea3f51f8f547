from __future__ import annotations

import zipfile

import pytest

from fitkit.checkpointing.catalog import latest, scan
from fitkit.checkpointing.storage import atomic_write, is_checkpoint


def test_a_file_that_torch_wrote_is_recognized_by_its_first_record(tmp_path):
    atomic_write.write({}, tmp_path / "a")
    (tmp_path / "b").write_text("b")
    with zipfile.ZipFile(tmp_path / "c", "w") as archive:
        archive.writestr("word/document.xml", "text")
    assert is_checkpoint.is_torch_file(tmp_path / "a")
    for name in ("b", "c", "gone"):
        assert not is_checkpoint.is_torch_file(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.pth", True),
        ("a.pt", True),
        ("a.ckpt", True),
        ("no_suffix", True),
        ("a.xyz", True),
        (f".0{is_checkpoint.TEMP_SUFFIX}", False),
        (f"x{is_checkpoint.SHARDS_SUFFIX}/a.pth", False),
    ],
)
def test_the_name_decides_where_temporary_files_and_shards_are(tmp_path, name, expected):
    path = tmp_path / name
    atomic_write.write({"a": 1}, path)
    assert is_checkpoint.may_be_checkpoint(path) is expected


def test_listing_loading_and_deleting_agree_on_other_zip_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("array.npy", "values")
    assert scan.scan_folder(tmp_path) == []
    assert latest.find_latest([tmp_path]).skipped == []
    assert "not a checkpoint" in atomic_write.remove(tmp_path / "data.npz")
    assert (tmp_path / "data.npz").exists()


def test_a_suffix_is_enough_to_be_listed_as_damaged(tmp_path):
    (tmp_path / "a.pth").write_text("text")
    (tmp_path / "b.txt").write_text("text")
    assert [file.kind for file in scan.scan_folder(tmp_path)] == ["damaged"]
    assert len(latest.find_latest([tmp_path]).skipped) == 1
