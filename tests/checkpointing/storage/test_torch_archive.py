"""The archive is the one that torch.save writes, byte by byte, and says what went wrong."""

from __future__ import annotations

import io
import tracemalloc
import zipfile

import pytest
import torch
from torch import nn

from fitkit.checkpointing.storage import safe_load, torch_archive


def write(path, content, records=None):
    with path.open("w+b") as file:
        torch_archive.write(content, file, records or {})
    return path


def by_torch(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


BASE = torch.arange(100.0)
CONTENTS = {
    "no tensors": {"a": 1, "b": [1.5, None, "text", (True, b"bytes")], "c": {}},
    "one number": 3,
    "kinds": [torch.ones(3, dtype=kind) for kind in (torch.float64, torch.bool, torch.uint16)],
    "float8": torch.ones(5, dtype=torch.float8_e4m3fn),
    "complex": torch.ones(3, dtype=torch.complex64).conj(),
    "views": {"a": BASE, "b": BASE[3:], "c": BASE.view(10, 10).t(), "again": BASE},
    "empty between others": [torch.ones(2), torch.zeros(0, 3), torch.ones(1)],
    "sparse": torch.eye(3).to_sparse(),
    "a module's state": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict(),
    "a parameter": nn.Parameter(torch.ones(2)),
    "many": {str(n): torch.full((n,), n) for n in range(70)},
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_the_bytes_are_those_of_torch_save_up_to_its_own_records(tmp_path, kind):
    path, expected = write(tmp_path / "a.pth", CONTENTS[kind]), by_torch(CONTENTS[kind])
    own_id = "archive/.data/serialization_id"  # a hash that nothing reads
    end = zipfile.ZipFile(io.BytesIO(expected)).getinfo(own_id).header_offset
    assert path.read_bytes()[:end] == expected[:end]
    names = [n for n in zipfile.ZipFile(io.BytesIO(expected)).namelist() if n != own_id]
    assert zipfile.ZipFile(path).namelist() == names
    safe_load.verify(path)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("group_bytes", [1, 300, 1 << 20])
def test_records_are_written_in_groups_of_any_size(tmp_path, monkeypatch, group_bytes, mmap):
    whole = write(tmp_path / "whole.pth", CONTENTS["many"]).read_bytes()
    monkeypatch.setattr(torch_archive, "_GROUP_BYTES", group_bytes)
    path = write(tmp_path / "groups.pth", CONTENTS["many"])
    assert path.read_bytes() == whole
    found = torch.load(path, weights_only=True, mmap=mmap)
    assert all(torch.equal(found[name], value) for name, value in CONTENTS["many"].items())


def test_further_records_stand_beside_those_of_torch(tmp_path):
    path = write(tmp_path / "a.pth", {"a": torch.ones(3)}, {"mine": b"text", "none": b""})
    archive = zipfile.ZipFile(path)
    assert (archive.read("archive/mine"), archive.read("archive/none")) == (b"text", b"")
    assert torch.load(path, weights_only=True)["a"].tolist() == [1.0] * 3
    assert archive.testzip() is None


def test_records_and_offsets_beyond_4_gib(tmp_path, monkeypatch):
    """With smaller limits, so that readers have to find the large numbers where they belong."""
    content = {"a": torch.arange(50), "b": torch.arange(60.0), "c": torch.ones(1)}
    monkeypatch.setattr(torch_archive, "_MAX_UINT32", 400)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 400)
    path = write(tmp_path / "a.pth", content)
    infos = zipfile.ZipFile(path).infolist()
    assert max(info.header_offset for info in infos) > 400
    found = torch.load(path, weights_only=True, mmap=True)
    assert all(torch.equal(found[name], value) for name, value in content.items())
    for value in found.values():
        assert value.data_ptr() % 64 == 0, "values are aligned in the file"
    safe_load.verify(path)


def test_equal_content_is_equal_bytes(tmp_path):
    first, second = (write(tmp_path / name, CONTENTS["many"]) for name in ("a.pth", "b.pth"))
    assert first.read_bytes() == second.read_bytes()


def test_one_memory_as_two_types_is_refused_as_by_torch(tmp_path):
    content = {"a": BASE, "b": BASE.view(torch.int32)}
    with pytest.raises(RuntimeError, match="view the same data as different types"):
        by_torch(content)
    with pytest.raises(RuntimeError, match="view the same data as different types"):
        write(tmp_path / "a.pth", content)


def test_a_device_is_copied_in_groups(tmp_path, monkeypatch, device):
    content = {str(n): torch.full((1000,), float(n)).to(device) for n in range(20)}
    monkeypatch.setattr(torch_archive, "_GROUP_BYTES", 10_000)
    path = write(tmp_path / "a.pth", content)
    found = torch.load(path, weights_only=True, map_location="cpu")
    assert all(found[name].eq(float(name)).all() for name in content)


def test_values_are_not_copied(tmp_path):
    content = {"a": torch.zeros(1 << 20), "b": torch.zeros(1 << 20)}
    with (tmp_path / "a.pth").open("w+b") as file:
        tracemalloc.start()
        torch_archive.write(content, file, {})
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 1 << 20


def test_an_error_of_the_file_passes_unchanged():
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        torch_archive.write({"a": torch.ones(3)}, Full(), {})
