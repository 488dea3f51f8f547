"""The files in the folder of a run, and the newest checkpoint among them."""

from __future__ import annotations

import os

import pytest
import torch

from fitkit import CheckpointNotFoundError, DamagedCheckpointError
from fitkit.reporting.run_folder import find_checkpoints, find_logs, newest_metadata, newest_usable


def flip_a_weight(path):
    weight = torch.load(path, weights_only=True)["model_state_dict"]["weight"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weight)] ^= 1
    path.unlink()  # the other names of the file stay whole
    path.write_bytes(content)


def by_name(files, folder):
    return {file.path.relative_to(folder).as_posix(): file for file in files}


def test_files_in_the_order_of_the_run(run_folder):
    found = find_checkpoints(run_folder, verify=True)
    steps = [one.metadata.global_step for one in found]
    assert steps == sorted(steps)
    assert {"best.pth", "all/01.pth"} <= set(by_name(found, run_folder))
    assert all(file.problem is None for file in found)
    assert newest_usable(found) is found[-1]
    assert set(find_logs(run_folder)) == {"log.csv", "log.jsonl"}


def test_a_flipped_bit_is_seen_when_all_is_verified(run_folder):
    flip_a_weight(run_folder / "all" / "02.pth")
    damaged = by_name(find_checkpoints(run_folder, verify=True), run_folder)["all/02.pth"]
    assert "checksum" in damaged.problem
    assert damaged.metadata.epoch == 2  # only a tensor is damaged
    unseen = by_name(find_checkpoints(run_folder, verify=False), run_folder)["all/02.pth"]
    assert unseen.problem is None


def test_the_newest_is_whole(run_folder):
    folder = run_folder / "all"
    flip_a_weight(find_checkpoints(folder, verify=True)[-1].path)
    found = find_checkpoints(folder, verify=True)
    assert found[-1].problem is not None
    assert newest_usable(found).metadata.global_step < found[-1].metadata.global_step


def test_all_kinds_of_other_files(run_folder):
    (run_folder / "cut.pth").write_bytes((run_folder / "best.pth").read_bytes()[:500])
    (run_folder / "text.pth").write_text("no checkpoint")
    torch.save({"weight": torch.ones(2)}, run_folder / "weights.pt")
    torch.save([1, 2], run_folder / "other.zip")
    (run_folder / ".hidden").mkdir()
    (run_folder / ".hidden" / "x.pth").write_text("")
    (run_folder / "left.fitkit-tmp").write_bytes((run_folder / "best.pth").read_bytes())
    os.link(run_folder / "best.pth", run_folder / "named otherwise")
    found = by_name(find_checkpoints(run_folder, verify=True), run_folder)
    assert {name for name, one in found.items() if one.problem} == {"cut.pth", "text.pth"}
    assert found["weights.pt"].metadata is None
    assert found["named otherwise"].metadata is not None
    assert not {"other.zip", ".hidden/x.pth", "left.fitkit-tmp"} & set(found)


def test_the_newest_of_a_folder_or_the_file_itself(run_folder, tmp_path):
    assert newest_metadata(run_folder).path == find_checkpoints(run_folder, verify=False)[-1].path
    assert newest_metadata(run_folder / "all" / "01.pth").epoch == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointNotFoundError, match="empty"):
        newest_metadata(tmp_path / "empty")
    (tmp_path / "empty" / "x.pth").write_text("nothing")
    with pytest.raises(DamagedCheckpointError, match=r"x\.pth"):
        newest_metadata(tmp_path / "empty")
    with pytest.raises(CheckpointNotFoundError):
        newest_metadata(tmp_path / "missing")
