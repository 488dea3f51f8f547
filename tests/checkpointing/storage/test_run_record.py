"""The run record: it is beside the content, and what is no record is none."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch

import fitkit
from fitkit.checkpointing.storage import atomic_write, run_record, safe_load, single_or_sharded
from fitkit.checkpointing.storage.run_record import RunIdentity, RunRecord

RECORD = RunRecord("a" * 32, 3, (1, 2, 0, 5))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.pth"
    atomic_write.write({"w": torch.arange(1000.0), "n": [1]}, path, record=RECORD)
    return path


def test_it_is_read_back_and_the_content_is_what_it_was(file):
    assert run_record.read(file) == RECORD
    for mmap in (False, True):
        found = torch.load(file, weights_only=True, mmap=mmap)
        assert torch.equal(found["w"], torch.arange(1000.0))
    assert safe_load.read(file)["n"] == [1]
    safe_load.verify(file)


def test_a_damaged_record_is_found_as_any_other(file):
    data = bytearray(file.read_bytes())
    data[data.index(b'"branch": 3') + 10] ^= 1
    file.write_bytes(data)
    assert run_record.read(file) is None
    with pytest.raises(fitkit.DamagedCheckpointError, match="fitkit-run"):
        safe_load.verify(file)


def test_copies_links_and_conversions_keep_it(file, tmp_path):
    single_or_sharded.duplicate(file, tmp_path / "b.pth")
    single_or_sharded.convert(file, tmp_path / "c.pth", sharded=True)
    single_or_sharded.convert(tmp_path / "c.pth", tmp_path / "d.pth", sharded=False)
    for name in "bcd":
        assert run_record.read(tmp_path / f"{name}.pth") == RECORD


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "1" * 2000,
        "[" * 900,
        json.dumps({**RECORD._asdict(), "run_id": "../x"}),
        json.dumps({**RECORD._asdict(), "run_id": 5}),
        json.dumps({**RECORD._asdict(), "branch": -1}),
        json.dumps({**RECORD._asdict(), "branch": True}),
        json.dumps({**RECORD._asdict(), "branch": "1"}),
        json.dumps({**RECORD._asdict(), "position": 3}),
        json.dumps({**RECORD._asdict(), "position": [1.5]}),
        json.dumps({**RECORD._asdict(), "more": 1}),
    ],
)
def test_what_is_no_record_is_none(tmp_path, text):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/fitkit-run", text)
    assert run_record.read(tmp_path / "a.pth") is None


def test_a_file_without_a_record_and_no_file(tmp_path):
    torch.save({}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "c.pth").mkdir()
    assert [run_record.read(tmp_path / f"{name}.pth") for name in "abcd"] == [None] * 4


def test_an_identity_is_made_once_and_adopted():
    identity = RunIdentity()
    first = identity.at((1,))
    assert identity.at((2,)) == (first.run_id, 0, (2,))
    assert RunIdentity().at((1,)).run_id != first.run_id
    identity.adopt(RECORD)
    assert identity.at((9,)) == (RECORD.run_id, 3, (9,))
    identity.adopt(None)
    assert identity.at((9,)).run_id not in (first.run_id, RECORD.run_id)
    assert RunRecord("a", 1, (0,)).key > RunRecord("a", 0, (9,)).key
