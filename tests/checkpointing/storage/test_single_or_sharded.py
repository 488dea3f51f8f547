"""A checkpoint is the same to whoever uses it, in one file or in shards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fitkit
from fitkit import CheckpointError, CheckpointNotFoundError, DamagedCheckpointError, SaveError
from fitkit.checkpointing import loading, saving
from fitkit.checkpointing.catalog import latest
from fitkit.checkpointing.format import schema, tensor_stubs
from fitkit.checkpointing.storage import atomic_write, safe_load, shard_folder, single_or_sharded
from fitkit.testing import differences

DATA = (torch.ones(8, 2), torch.zeros(8, 1))


def make_handler():
    handler = fitkit.NNHandler(nn.Linear, in_features=2, out_features=1, device="cpu", seed=0)
    handler.set_optimizer(torch.optim.AdamW, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    return handler


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A whole state in one file, and in shards."""
    folder = tmp_path_factory.mktemp("both")
    handler = make_handler()
    handler.fit(DATA, epochs=1, ema_decay=0.9, progress_bar=False)
    handler.save(folder / "one" / "a.pth")
    single_or_sharded.convert(folder / "one" / "a.pth", folder / "shards" / "a.pth", sharded=True)
    return folder


def same(one, other):
    return not list(differences(one, other))


def test_both_forms_hold_the_same(both):
    assert same(*(single_or_sharded.read(both / name / "a.pth") for name in ("one", "shards")))


def test_what_is_spread_over_processes_is_in_shards(both):
    content = torch.load(both / "shards" / "a.pth", weights_only=True)["content"]
    described = tensor_stubs.find_stubs(content)
    assert {key.split(".")[0] for key in described} == {
        "model_state_dict",
        "optimizer_state_dict",
        "ema_state_dict",
    }
    assert "model_state_dict.weight" in described
    assert "optimizer_state_dict.state.0.exp_avg" in described
    assert "ema_state_dict.weights.weight" in described
    assert isinstance(content["rng"]["torch"], torch.Tensor)


@pytest.mark.parametrize("form", ["one", "shards"])
def test_there_and_back(both, tmp_path, form):
    source = both / form / "a.pth"
    for number, sharded in enumerate((True, False, True, True, False, False)):
        target = tmp_path / f"{number}.pth"
        single_or_sharded.convert(source, target, sharded=sharded)
        is_sharded = schema.REFERENCE_KEY in torch.load(target, weights_only=True)
        assert is_sharded is sharded
        source = target
    assert same(single_or_sharded.read(both / "one" / "a.pth"), single_or_sharded.read(source))


def test_in_place(both, tmp_path):
    path = tmp_path / "a.pth"
    atomic_write.duplicate(both / "one" / "a.pth", path)
    expected = single_or_sharded.read(path)
    single_or_sharded.convert(path, path, sharded=True)
    assert same(single_or_sharded.read(path), expected)
    single_or_sharded.convert(path, path, sharded=False)
    assert same(single_or_sharded.read(path), expected)


def test_what_cannot_be_used_is_not_converted(both, tmp_path):
    with pytest.raises(CheckpointNotFoundError):
        single_or_sharded.convert(tmp_path / "none.pth", tmp_path / "a.pth", sharded=True)
    (tmp_path / "damaged.pth").write_bytes((both / "one" / "a.pth").read_bytes()[:700])
    for sharded in (True, False):
        with pytest.raises(DamagedCheckpointError):
            single_or_sharded.convert(tmp_path / "damaged.pth", tmp_path / "a.pth", sharded=sharded)
        (tmp_path / "b.pth").mkdir(exist_ok=True)
        with pytest.raises(SaveError):
            single_or_sharded.convert(both / "one" / "a.pth", tmp_path / "b.pth", sharded=sharded)
    shard_folder.remove_orphans(tmp_path)  # beside a file that cannot be read they stay
    (tmp_path / "damaged.pth").unlink()
    shard_folder.remove_orphans(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"b.pth"}


def test_a_bare_state_dict(tmp_path):
    weights = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    single_or_sharded.convert(tmp_path / "weights.pth", tmp_path / "a.pth", sharded=True)
    found = loading.read_weights(tmp_path / "a.pth")
    assert list(found) == list(weights)
    assert same(dict(found), dict(weights))
    assert found._metadata == weights._metadata
    assert found["1.num_batches_tracked"].shape == ()


@pytest.mark.parametrize("form", ["one", "shards"])
def test_a_handler_goes_on_from_both(both, form):
    handler = fitkit.NNHandler.load(both / form / "a.pth", "cpu")
    history = handler.fit(DATA, epochs=1, ema_decay=0.9, progress_bar=False)
    whole = make_handler()
    whole.fit(DATA, epochs=1, ema_decay=0.9, progress_bar=False)
    assert (
        history.history["loss"]
        == whole.fit(DATA, epochs=1, ema_decay=0.9, progress_bar=False).history["loss"]
    )


def test_a_folder_resume_takes_the_newest_of_either_form(both, tmp_path):
    for form, other in (("one", "shards"), ("shards", "one")):
        folder = tmp_path / form
        single_or_sharded.duplicate(both / form / "a.pth", folder / "old.pth")
        handler = fitkit.NNHandler.load(both / other / "a.pth", "cpu")
        handler.fit(DATA, epochs=1, ema_decay=0.9, progress_bar=False)
        handler.save(folder / "whole.pth")
        single_or_sharded.convert(
            folder / "whole.pth", folder / "new.pth", sharded=other == "shards"
        )
        (folder / "whole.pth").unlink()
        assert latest.find_latest([folder]).path == folder / "new.pth"


def test_damaged_shards_are_passed_over(both, tmp_path):
    single_or_sharded.convert(both / "shards" / "a.pth", tmp_path / "new.pth", sharded=True)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (piece,) = folder.glob("*.distcp")
    data = bytearray(piece.read_bytes())
    data[len(data) // 2] ^= 1
    piece.write_bytes(data)
    found = latest.find_latest([tmp_path])
    assert found.path is None
    assert "new.pth" in found.skipped[0]
    assert not latest.is_at_position(tmp_path / "new.pth", (0, 0, 0, 0))


def test_metadata_without_tensors(both):
    one, other = (loading.read_metadata(both / form / "a.pth") for form in ("one", "shards"))
    assert (one.epoch, one.position, dict(one.metrics)) == (
        other.epoch,
        other.position,
        dict(other.metrics),
    )
    shapes = [
        {
            name: (value.shape, value.dtype)
            for name, value in found.state["model_state_dict"].items()
        }
        for found in (one, other)
    ]
    assert shapes[0] == shapes[1]
    assert set(one.state) == set(other.state)
    on_disk = sum(path.stat().st_size for path in (both / "shards").rglob("*") if path.is_file())
    assert other.size_bytes == on_disk
    assert one.size_bytes == (both / "one" / "a.pth").stat().st_size


def test_it_is_told_without_a_look_at_the_shards(both, tmp_path):
    (tmp_path / "a.pth").write_bytes((both / "shards" / "a.pth").read_bytes())
    found = single_or_sharded.read_without_tensors(tmp_path / "a.pth")
    assert found["model_state_dict"]["weight"].is_meta
    assert single_or_sharded.size_bytes(tmp_path / "a.pth") == (tmp_path / "a.pth").stat().st_size


def test_parts_of_it_in_files_of_their_own(both, tmp_path):
    single_or_sharded.duplicate(both / "shards" / "a.pth", tmp_path / "a.pth")
    saving.save_multi_from_single(tmp_path / "a.pth")
    weights = safe_load.read(tmp_path / "a_model_state_dict.pth")
    expected = single_or_sharded.read(both / "one" / "a.pth")["model_state_dict"]
    assert same(dict(weights), dict(expected))


def test_a_file_that_only_looks_like_a_reference_is_an_ordinary_one(tmp_path):
    content = {schema.REFERENCE_KEY: torch.ones(2), "b": 1}
    torch.save(content, tmp_path / "a.pth")
    single_or_sharded.verify(tmp_path / "a.pth")
    assert same(single_or_sharded.read(tmp_path / "a.pth"), content)


def test_nothing_is_removed_that_is_no_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not a checkpoint" in single_or_sharded.remove(tmp_path / "notes.txt")
    assert single_or_sharded.remove(tmp_path / "gone.pth") is None
    assert single_or_sharded.remove(tmp_path / "no" / "folder.pth") is None


def test_where_a_part_of_each_tensor_goes_is_asked_by_shape_and_type(both):
    asked = []

    def empty(shape, dtype, device):
        asked.append((shape, dtype, device))
        return torch.empty(shape, dtype=dtype, device=device)

    single_or_sharded.read(both / "shards" / "a.pth", empty=empty)
    devices = [
        device for shape, dtype, device in asked if (shape, dtype) == ((1, 2), torch.float32)
    ]
    # memory is taken only when it is known that the folder has the bytes for it
    assert devices == sorted(devices, reverse=True)
    assert set(devices) == {"meta", "cpu"}
    single_or_sharded.read(both / "one" / "a.pth", empty=None)
    with pytest.raises(CheckpointError):
        single_or_sharded.read(both / "one", empty=empty)
