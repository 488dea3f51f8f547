"""Outlines: what a list of checkpoints shows is what the whole content holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fitkit
from fitkit.checkpointing.catalog.metadata import read_metadata, verify
from fitkit.checkpointing.catalog.scan import scan_folder
from fitkit.checkpointing.format import schema
from fitkit.checkpointing.storage import atomic_write, outline, safe_load, single_or_sharded
from fitkit.checkpointing.storage.outline import OPAQUE, read_outline
from fitkit.core.errors import DamagedCheckpointError, UnsafeCheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"


class Keeps(fitkit.Callback):
    """Has a state with a tensor, and with the name of the key behind the listed ones."""

    state_fields = ("model_kwargs", "history", "tensor", "deep")

    def __init__(self):
        self.model_kwargs, self.history, self.tensor = {"a": 1}, None, torch.ones(3)
        self.deep = [1, {"b": [2]}]


def save(path: Path, callbacks=(), **options) -> None:
    handler = fitkit.NNHandler(nn.Linear, in_features=2, out_features=1, seed=0, **options)
    handler.set_optimizer(torch.optim.Adam, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    data = (torch.ones(4, 2), torch.ones(4, 1))
    handler.fit(data, epochs=3, batch_size=2, callbacks=list(callbacks), progress_bar=False)
    handler.save(path)


def assert_agrees(found, whole, levels: int) -> None:
    """Whether a value of an outline is that of the whole content, as far as it has it."""
    if found is OPAQUE:
        assert not isinstance(whole, (str, int, float, type(None)))
        assert isinstance(whole, torch.Tensor) or not levels
    elif isinstance(found, dict):
        assert list(found) == list(whole)
        for key, value in found.items():
            assert_agrees(value, whole[key], levels - 1)
    elif isinstance(found, (list, tuple)):
        assert len(found) == len(whole)
        assert type(found) is type(whole)
        for one, other in zip(found, whole, strict=True):
            assert_agrees(one, other, levels - 1)
    else:
        assert repr(found) == repr(whole)
        assert type(found) is type(whole)


def assert_outlines(path: Path) -> None:
    whole = single_or_sharded.read_without_tensors(path)
    found = read_outline(path)
    assert found.kind == "checkpoint"
    assert list(found.state) == list(schema.LISTED_KEYS)
    for key, value in found.state.items():
        assert_agrees(value, whole[key], 3 if key == "callback_states" else 100)


@pytest.fixture
def sizes_run(monkeypatch):
    """How many bytes of pickles are run."""
    sizes, real = [], outline.check_pickle

    def run(pickled, *args, **options):
        sizes.append(len(pickled))
        return real(pickled, *args, **options)

    monkeypatch.setattr(outline, "check_pickle", run)
    return sizes


@pytest.mark.parametrize("name", ["plain", "rich"])
def test_files_of_earlier_versions(name):
    assert_outlines(GOLDEN / f"{name}.pth")


def test_of_a_file_only_the_beginning_is_run(tmp_path, sizes_run):
    save(tmp_path / "a.pth", [fitkit.EarlyStopping("loss", restore_best_weights=True)])
    assert_outlines(tmp_path / "a.pth")
    (size,) = sizes_run
    assert size < 0.5 * (tmp_path / "a.pth").stat().st_size
    assert read_metadata(tmp_path / "a.pth").epoch == 3


def test_a_callback_that_has_the_key_behind_the_listed_ones(tmp_path, sizes_run):
    save(tmp_path / "a.pth", [Keeps()])
    assert_outlines(tmp_path / "a.pth")
    assert len(sizes_run) == 2, "then the beginning is not known, and all of it is run"
    state = read_metadata(tmp_path / "a.pth").callbacks["Keeps"]
    assert (state["model_kwargs"], state["deep"]) == ({"a": 1}, [1, {"b": [2]}])


def test_a_converted_file_of_an_earlier_version_begins_with_what_is_listed(tmp_path, sizes_run):
    for is_sharded in (False, True):
        path = tmp_path / f"{is_sharded}.pth"
        single_or_sharded.convert(GOLDEN / "rich.pth", path, sharded=is_sharded)
        assert_outlines(path)
    assert len(sizes_run) == 2, "of each only the beginning"


def test_a_sharded_checkpoint(tmp_path, sizes_run):
    save(tmp_path / "a.pth", [Keeps(), fitkit.EarlyStopping("loss")])
    single_or_sharded.convert(tmp_path / "a.pth", tmp_path / "b.pth", sharded=True)
    assert_outlines(tmp_path / "b.pth")
    assert read_outline(tmp_path / "b.pth").is_sharded
    one, other = (read_metadata(tmp_path / name) for name in ("a.pth", "b.pth"))
    assert (one.metrics, one.position) == (other.metrics, other.position)
    assert other.size_bytes == single_or_sharded.size_bytes(tmp_path / "b.pth") > 2000


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)).state_dict(), "weights"),
        ({"a": torch.ones(1), "b_extra_state": 3}, "weights"),
        ({"a": torch.ones(1), "b": 3}, "other"),
        ({1: torch.ones(1)}, "other"),
        ({"_metadata": {}}, "other"),
        ({}, "other"),
        ([1], "other"),
        (torch.ones(2), "other"),
        ({"model_state_dict": {}, "model_kwargs": 1}, "other"),
    ],
)
@pytest.mark.parametrize("is_sharded", [False, True])
def test_kinds(tmp_path, content, kind, is_sharded):
    path = tmp_path / "a.pth"
    atomic_write.write(content, path)
    if is_sharded:
        single_or_sharded.convert(path, tmp_path / "b.pth", sharded=True)
        path = tmp_path / "b.pth"
    whole = single_or_sharded.read_without_tensors(path)
    assert schema.is_weights(whole) == (kind == "weights")
    assert read_outline(path)[:2] == (kind, {})


# ---- hostile files ------------------------------------------------------------------------------


def spoil(path: Path, **changes) -> Path:
    """A checkpoint with other values, and without the checks of fitkit's own writer."""
    save(path)
    torch.save({**safe_load.read(path), **changes}, path)
    return path


def test_code_in_the_beginning_is_refused_by_name_and_not_run(tmp_path):
    path = spoil(tmp_path / "a.pth", history=os.getcwd)
    with pytest.raises(UnsafeCheckpointError, match=r"it names (posix|nt)\.getcwd"):
        read_outline(path)
    (listed,) = scan_folder(tmp_path)
    assert (listed.kind, listed.metadata) == ("damaged", None)
    for content in ([os.getcwd], {"a": torch.ones(1), "b_extra_state": os.getcwd}):
        torch.save(content, path)
        with pytest.raises(UnsafeCheckpointError):
            read_outline(path)


def test_what_is_behind_the_beginning_is_looked_at_before_it_is_used(tmp_path):
    path = spoil(tmp_path / "a.pth", zz=os.getcwd)
    metadata = read_metadata(path)
    assert metadata.epoch == 3
    for use in (lambda: metadata.state, lambda: verify(path), lambda: fitkit.NNHandler.load(path)):
        with pytest.raises(UnsafeCheckpointError):
            use()
    assert [file.kind for file in scan_folder(tmp_path)] == ["checkpoint"]
    assert [file.kind for file in scan_folder(tmp_path, verify=True)] == ["damaged"]


def test_traps_in_the_beginning(tmp_path):
    nested: list = []
    for _ in range(300):
        nested = [nested]
    shared: list = [0] * 1000
    for _ in range(4):
        shared = [shared] * 100
    for value in (nested, shared):
        path = spoil(tmp_path / "a.pth", progress={"state": value})
        with pytest.raises(DamagedCheckpointError):
            read_outline(path)


def test_a_file_whose_directory_has_no_pickle(tmp_path):
    save(tmp_path / "a.pth")
    data = (tmp_path / "a.pth").read_bytes().replace(b"data.pkl", b"data.pkx")
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=r"it has no data\.pkl"):
        read_outline(tmp_path / "a.pth")


# ---- without torch ------------------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_list_imports_neither_torch_nor_numpy(tmp_path, arguments):
    save(tmp_path / "a.pth", [Keeps()])
    (tmp_path / "old.pth").write_bytes((GOLDEN / "plain.pth").read_bytes())
    torch.save(nn.Linear(2, 1).state_dict(), tmp_path / "weights.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:2000])
    code = (
        "import sys\nfrom fitkit.cli.all_commands import main\n"
        f"main(['ls', {str(tmp_path)!r}, *{arguments!r}], standalone_mode=False)\n"
        "assert not {'torch', 'numpy', 'tqdm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"{name}.pth" in done.stdout for name in ("a", "old", "weights", "cut"))
