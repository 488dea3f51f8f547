"""A version is that of one file as it is now."""

from __future__ import annotations

import os

from fitkit.checkpointing.storage.file_version import FileVersion


def test_it_is_the_same_while_nothing_happens(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"a")
    version = FileVersion.of(path)
    os.link(path, tmp_path / "b.pth")
    path.read_bytes()
    assert FileVersion.of(path) == version == FileVersion.of(tmp_path / "b.pth")


def test_a_change_or_another_file_differs(tmp_path):
    path, other = tmp_path / "a.pth", tmp_path / "b.pth"
    path.write_bytes(b"a")
    other.write_bytes(b"a")
    version = FileVersion.of(path)
    os.utime(path, ns=(version.modified_ns, version.modified_ns + 1))
    assert FileVersion.of(path) != version
    os.utime(path, ns=(version.modified_ns, version.modified_ns))
    assert FileVersion.of(path) == version
    path.write_bytes(b"ab")
    os.utime(path, ns=(version.modified_ns, version.modified_ns))
    assert FileVersion.of(path) != version
    os.replace(other, path)
    os.utime(path, ns=(version.modified_ns, version.modified_ns))
    assert FileVersion.of(path) != version


def test_there_is_none_without_a_file(tmp_path):
    assert FileVersion.of(tmp_path / "a.pth") is None
    assert FileVersion.of(tmp_path / "\0") is None
