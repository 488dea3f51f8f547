from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import fitkit
from fitkit import CheckpointError, DamagedCheckpointError
from fitkit.checkpointing.catalog import latest
from fitkit.checkpointing.format import schema
from fitkit.checkpointing.storage import atomic_write, is_checkpoint
from fitkit.distributed.world import World


@pytest.fixture(scope="module")
def states():
    """The whole state after each of three epochs."""
    handler = fitkit.NNHandler(nn.Linear(2, 1))
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    found = []
    for _ in range(3):
        handler.fit((torch.ones(4, 2), torch.ones(4, 1)), progress_bar=False)
        found.append(handler.get_state_dict())
    return found


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_newest_is_the_furthest_in_the_run_not_the_youngest_file(tmp_path, states):
    for number, name in enumerate(["z.pth", "a.pth", "m.pth"]):
        atomic_write.write(states[number], tmp_path / name)
        os.utime(tmp_path / name, (1e9 - number, 1e9 - number))
    found = latest.find_latest([tmp_path])
    assert found.path == tmp_path / "m.pth"
    assert found.skipped == []


def test_among_files_of_one_place_the_first_by_name(tmp_path, states):
    for name in ("b.pth", "a.pth"):
        atomic_write.write(states[0], tmp_path / name)
    assert latest.find_latest([tmp_path]).path.name == "a.pth"


def test_what_is_damaged_is_passed_over_and_named(tmp_path, states):
    for number, name in enumerate(["1.pth", "2.pth", "3.pth"]):
        atomic_write.write(states[number], tmp_path / name)
    damage(tmp_path / "3.pth")
    (tmp_path / "2.pth").write_bytes((tmp_path / "2.pth").read_bytes()[:500])
    (tmp_path / "empty.pth").touch()
    found = latest.find_latest([tmp_path])
    assert found.path.name == "1.pth"
    assert len(found.skipped) == 3
    for name in ("2.pth", "3.pth", "empty.pth"):
        assert any(name in sentence for sentence in found.skipped)


def test_other_files_are_left_alone(tmp_path, states):
    atomic_write.write(states[0], tmp_path / "full")
    atomic_write.write(states[2]["model_state_dict"], tmp_path / "weights.pth")
    atomic_write.write({"a": 1}, tmp_path / "part.pt")
    atomic_write.write(states[2], tmp_path / f".x{is_checkpoint.TEMP_SUFFIX}")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "folder.pth").mkdir()
    atomic_write.write(states[2], tmp_path / "folder.pth" / "deep.pth")
    (tmp_path / "gone.pth").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.pth")
    found = latest.find_latest([tmp_path])
    assert found.path.name == "full"
    assert found.skipped == []


def test_hostile_files_are_passed_over(tmp_path, states):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    atomic_write.write(states[0], tmp_path / "good.pth")
    torch.save({"model_state_dict": {}, "progress": Evil()}, tmp_path / "evil.pth")
    for number, junk in enumerate(["abc", None, -1, 1.5, [], {}, True]):
        bad = {
            **states[1],
            "progress": {"state": {**states[1]["progress"]["state"], "epoch": junk}},
        }
        atomic_write.write(bad, tmp_path / f"bad{number}.pth")
    found = latest.find_latest([tmp_path])
    assert found.path.name == "good.pth"
    assert len(found.skipped) == 8


def test_a_newer_format_is_passed_over_by_name_in_a_folder_and_refused_alone(tmp_path, states):
    path = tmp_path / "future.pth"
    atomic_write.write({**states[1], "format_version": schema.FORMAT_VERSION + 1}, path)
    with pytest.raises(CheckpointError, match=r"future\.pth.*format version 2.*upgrade fitkit"):
        latest.read_full(path)
    assert any("upgrade fitkit" in one for one in latest.find_latest([tmp_path]).skipped)


def test_a_key_that_a_newer_minor_version_adds_does_not_matter(tmp_path, states):
    atomic_write.write({**states[1], "added_later": {"a": 1}}, tmp_path / "a.pth")
    assert latest.read_full(tmp_path / "a.pth")["added_later"] == {"a": 1}


@pytest.mark.parametrize("key", schema.KEYS)
def test_every_key_is_needed_and_its_type_checked(states, key):
    full = states[0]
    schema.validate(full, "x")
    with pytest.raises(CheckpointError, match=rf"{key}|not a checkpoint of fitkit"):
        schema.validate({**full, key: object()}, "x.pth")
    kind = schema.KEYS[key]
    may_be_missing = isinstance(kind, tuple) and type(None) in kind
    rest = {name: value for name, value in full.items() if name != key}
    if not may_be_missing:
        with pytest.raises(DamagedCheckpointError):
            schema.validate(rest, "x.pth")


@pytest.mark.parametrize("version", [0, -1, "1", None, True, 1.0])
def test_a_version_that_is_none(states, version):
    with pytest.raises(DamagedCheckpointError, match="no valid format_version"):
        schema.validate({**states[0], "format_version": version}, "x.pth")


def test_no_folder_and_an_empty_one(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        found = latest.find_latest([folder])
        assert found.path is None
        assert found.skipped == []


def test_the_same_folder_by_two_names_is_looked_at_once(tmp_path, states):
    atomic_write.write(states[0], tmp_path / "a.pth")
    damage(tmp_path / "a.pth")
    found = latest.find_latest([tmp_path, tmp_path / "x" / ".."])
    assert len(found.skipped) == 1


def test_at_a_place(tmp_path, states):
    atomic_write.write(states[1], tmp_path / "a.pth")
    assert latest.is_at_position(tmp_path / "a.pth", schema.run_position(states[1]))
    assert not latest.is_at_position(tmp_path / "a.pth", schema.run_position(states[2]))
    assert not latest.is_at_position(tmp_path / "gone.pth", schema.run_position(states[2]))
    assert schema.run_position(states[0]) < schema.run_position(states[1])


def test_damage_among_the_tensors_is_noticed_before_a_file_is_taken(tmp_path, states):
    """The place of a file is read without its tensors; whether it is whole is not."""
    for number in range(3):
        atomic_write.write(states[number], tmp_path / f"{number}.pth")
    data = bytearray((tmp_path / "2.pth").read_bytes())
    weight = states[2]["model_state_dict"]["weight"].numpy().tobytes()
    data[data.index(weight)] ^= 1
    (tmp_path / "2.pth").write_bytes(data)
    found = latest.find_latest([tmp_path])
    assert found.path == tmp_path / "1.pth"
    assert len(found.skipped) == 1
    assert "2.pth" in found.skipped[0]
    assert torch.equal(
        found.state["model_state_dict"]["weight"], states[1]["model_state_dict"]["weight"]
    )
    assert not latest.is_at_position(tmp_path / "2.pth", schema.run_position(states[2]))


def test_only_the_furthest_file_is_read_with_its_tensors(tmp_path, states, monkeypatch):
    for number in range(3):
        atomic_write.write(states[number], tmp_path / f"{number}.pth")
    read, real = [], latest.read_full
    monkeypatch.setattr(
        latest, "read_full", lambda path, *rest: read.append(path.name) or real(path, *rest)
    )
    assert latest.find_latest([tmp_path]).path.name == "2.pth"
    assert read == ["2.pth"]


def test_a_file_that_is_replaced_after_it_was_found_is_still_the_one_found(tmp_path, states):
    """Weights stay in the file until they are copied; the file is replaced, not written into."""
    atomic_write.write(states[0], tmp_path / "a.pth")
    found = latest.read_full(tmp_path / "a.pth")
    atomic_write.write(states[2], tmp_path / "a.pth")
    expected = states[0]["model_state_dict"]["weight"]
    assert torch.equal(found["model_state_dict"]["weight"], expected)


@pytest.mark.parametrize("key", schema.KEYS)
def test_a_file_without_one_of_the_keys_is_passed_over_or_can_be_loaded(tmp_path, states, key):
    state = {name: value for name, value in states[0].items() if name != key}
    atomic_write.write(state, tmp_path / "a.pth")
    try:
        fitkit.NNHandler.load(tmp_path / "a.pth", model_class=nn.Linear(2, 1))
    except CheckpointError:
        assert latest.find_latest([tmp_path]).path is None


class OneOfTwo(World):
    """A process; what the other one says is given."""

    size = 2

    def __init__(self, *theirs):
        self._theirs = list(theirs)
        self.said = []

    def gather_all(self, value):
        self.said.append(value)
        return [value, self._theirs.pop(0)]


def test_what_another_process_cannot_read_is_passed_over_by_all(tmp_path, states):
    for number in range(3):
        atomic_write.write(states[number], tmp_path / f"{number}.pth")
    places = [schema.run_position(state) for state in reversed(states)]
    world = OneOfTwo(places, "rank 1 has damaged pieces", None)
    found = latest.find_latest([tmp_path], world=world)
    assert found.path.name == "1.pth"
    assert found.skipped == ["rank 1 has damaged pieces"]
    assert world.said == [places, None, None]


def test_what_this_process_cannot_read_is_told_to_all(tmp_path, states):
    for number in range(2):
        atomic_write.write(states[number], tmp_path / f"{number}.pth")
    damage(tmp_path / "1.pth")
    places = [schema.run_position(state) for state in (states[1], states[0])]
    world = OneOfTwo(places, None, None)
    found = latest.find_latest([tmp_path], world=world)
    assert found.path.name == "0.pth"
    assert len(found.skipped) == 1
    assert "1.pth" in world.said[1]


@pytest.mark.parametrize("theirs", [[], [(9, 9, 9, 9)]])
def test_a_process_that_sees_other_checkpoints_is_an_error(tmp_path, states, theirs):
    atomic_write.write(states[0], tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"rank 1 would resume from .* a folder that all"):
        latest.find_latest([tmp_path], world=OneOfTwo(theirs))


def test_nobody_sees_anything(tmp_path):
    assert latest.find_latest([tmp_path], world=OneOfTwo([])).path is None
