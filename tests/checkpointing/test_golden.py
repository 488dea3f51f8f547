"""Golden files: checkpoints that an earlier fitkit wrote can be read for good."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import fitkit
from fitkit import CheckpointError, NNHandler
from fitkit.checkpointing.catalog import latest
from fitkit.checkpointing.catalog.metadata import read_metadata
from fitkit.checkpointing.format import schema
from fitkit.checkpointing.storage import atomic_write, safe_load, single_or_sharded

REPOSITORY = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
SHARDED = Path(__file__).parent / "golden_sharded"
RUNS = ["plain", "rich"]


@pytest.fixture(scope="module")
def script():
    """The script that wrote the files, for the runs that they are of."""
    path = REPOSITORY / "tests" / "scripts" / "make_golden.py"
    specification = importlib.util.spec_from_file_location("make_golden", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def facts_of(name):
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def load(script, name):
    path = GOLDEN / f"{name}.pth"
    return NNHandler.load(path, model_class=script.Net if name == "rich" else None)


def test_the_files_are_there_and_small():
    assert sorted(path.name for path in GOLDEN.iterdir()) == [
        "plain.json", "plain.pth", "rich.json", "rich.pth", "weights.json", "weights.pth"
    ]  # fmt: skip
    for path in GOLDEN.glob("*.pth"):
        assert path.stat().st_size < 40_000
        safe_load.verify(path)


@pytest.mark.parametrize("name", [*RUNS, "weights"])
def test_a_file_holds_what_the_run_held(script, name):
    assert script.summarize_value(safe_load.read(GOLDEN / f"{name}.pth")) == facts_of(name)["holds"]


@pytest.mark.parametrize("name", RUNS)
def test_every_key_of_version_one_is_in_it(name):
    state = safe_load.read(GOLDEN / f"{name}.pth")
    assert state["format_version"] == 1
    assert set(schema.KEYS) <= set(state)


def test_the_rich_file_is_rich():
    """Inside an epoch and an accumulation window, with everything that has a state."""
    state = safe_load.read(GOLDEN / "rich.pth")
    progress = state["progress"]
    assert (progress["state"]["epoch"], progress["state"]["batch"]) == (1, 1)
    assert progress["window"]["gradients"]
    assert progress["meters"]["train"]["loss"]
    assert state["ema_state_dict"]["num_averaged"] == 2
    assert state["scheduler_state_dict"]["last_epoch"] == 2
    assert {"EarlyStopping", "ReduceLROnPlateau", "Seen", "AutoSaver", "ModelCheckpoint_4"} <= set(
        state["callback_states"]
    )


@pytest.mark.parametrize("name", RUNS)
def test_a_loaded_handler_is_what_was_saved(script, name):
    handler = load(script, name)
    found, expected = script.summarize_value(handler.get_state_dict()), facts_of(name)["holds"]
    assert [key for key in found if key in expected] == list(expected)  # later keys are added
    for key in expected:
        assert found[key] == expected[key], key
    assert handler.state.global_step == {"plain": 8, "rich": 5}[name]
    assert repr(handler.history.history["loss"]) == ", ".join(
        expected["'history'"]["'history'"]["'loss'"]["list"]
    ).join("[]")


@pytest.mark.parametrize("name", RUNS)
def test_metadata(name):
    found, state = read_metadata(GOLDEN / f"{name}.pth"), safe_load.read(GOLDEN / f"{name}.pth")
    assert (found.format_version, found.epoch) == (1, {"plain": 2, "rich": 1}[name])
    assert found.metrics["loss"] == state["history"]["history"]["loss"][-1]
    assert set(found.callbacks) == set(state["callback_states"])


def assert_ended(handler, name):
    """Numbers may differ in their last bits from machine to machine."""
    end = facts_of(name)["end"]
    assert list(handler.module.state_dict()) == list(end["weights"])
    for key, value in handler.module.state_dict().items():
        expected = torch.tensor(end["weights"][key], dtype=value.dtype)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert list(handler.history.history) == list(end["history"])
    history = dict(handler.history.history)
    # 0.2 logged the rate after the epoch's last step, where it changes with each step
    rates = history.pop("lr")
    is_per_step = handler.parts.scheduler_interval == "step"
    assert rates == pytest.approx(
        [0.0441511110, 0.0375, 0.0206587956] if is_per_step else end["history"]["lr"]
    )
    for key, values in history.items():
        assert values == pytest.approx(end["history"][key], rel=1e-5, abs=1e-6, nan_ok=True), key


@pytest.mark.parametrize("how", ["file", "folder", "load"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_to_its_end(script, tmp_path, name, how):
    file = tmp_path / script.GOLDEN[name][1]
    shutil.copy(GOLDEN / f"{name}.pth", file)
    handler, options = getattr(script, name)(tmp_path)
    if how == "load":
        handler = load(script, name)
        handler.add_metric("accuracy", fitkit.Accuracy())
        if name == "rich":
            handler.auto_save(1, tmp_path / "auto", "{epoch:02d}", overwrite=True)
        done = handler.state.epoch
        script.fit(handler, {**options, "epochs": options["epochs"] - done})
    else:
        script.fit(handler, options, resume=file if how == "file" else tmp_path)
    assert_ended(handler, name)
    latest.read_full(tmp_path / "3.pth" if name == "plain" else tmp_path / "auto" / "03.pth")


def test_other_metrics_after_a_file_at_the_end_of_an_epoch(script, tmp_path):
    """That file holds the sums of the epoch, which fitkit 0.2 still saved."""
    file = tmp_path / script.GOLDEN["plain"][1]
    shutil.copy(GOLDEN / "plain.pth", file)
    handler, options = script.plain(tmp_path)
    handler.parts.metrics.clear()
    handler.add_metric("other", fitkit.Accuracy())
    script.fit(handler, options, resume=file)
    assert handler.state.epoch == options["epochs"]
    assert handler.history.history["other"][-1] >= 0.0


def test_weights(script):
    handler = NNHandler.initialize_from_checkpoint(GOLDEN / "weights.pth", script.Net, width=4)
    assert script.summarize_value(dict(handler.module.state_dict())) == facts_of("weights")["holds"]
    with pytest.raises(CheckpointError, match=r"weights\.pth.*holds weights only"):
        NNHandler.load(GOLDEN / "weights.pth")
    run, options = script.rich(GOLDEN.parent / "nowhere")
    with pytest.raises(CheckpointError, match=r"weights\.pth.*holds weights only"):
        script.fit(run, options, resume=GOLDEN / "weights.pth")
    assert not (GOLDEN.parent / "nowhere").exists()


# ---- sharded ------------------------------------------------------------------------------------


def test_a_sharded_file_of_two_ranks_with_one_index(tmp_path):
    """What fitkit wrote when rank 0 gathered all chunks into one index."""
    expected = json.loads((SHARDED / "sharded.json").read_text())
    single_or_sharded.verify(SHARDED / "sharded.pth")
    single_or_sharded.convert(SHARDED / "sharded.pth", tmp_path / "again.pth", sharded=True)
    for path in (SHARDED / "sharded.pth", tmp_path / "again.pth"):
        state = single_or_sharded.read(path)
        weights = {name: it.tolist() for name, it in state["model_state_dict"].items()}
        assert weights == expected["weights"]
        moments = state["optimizer_state_dict"]["state"].values()
        assert [moment["exp_avg"].tolist() for moment in moments] == expected["exp_avg"]
    handler = NNHandler.load(SHARDED / "sharded.pth", "cpu")
    assert handler.module.weight.tolist() == expected["weights"]["weight"]
    assert handler.state.global_step == 1


# ---- newer and older ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_keys_that_a_newer_minor_version_adds_do_not_matter(script, tmp_path, name):
    state = safe_load.read(GOLDEN / f"{name}.pth")
    state |= {"added": {"a": [1, torch.ones(2)]}, "another_state_dict": None, "zz": "text"}
    file = tmp_path / script.GOLDEN[name][1]
    atomic_write.write(state, file)
    assert read_metadata(file).state["zz"] == "text"
    handler, options = getattr(script, name)(tmp_path)
    script.fit(handler, options, resume=tmp_path)
    assert_ended(handler, name)


@pytest.mark.parametrize("version", [2, 3, 10**9])
def test_a_newer_version_is_refused_with_a_sentence(script, tmp_path, version):
    state = safe_load.read(GOLDEN / "plain.pth")
    atomic_write.write({**state, "format_version": version}, tmp_path / "new.pth")
    sentence = rf"new\.pth.*format version {version}, this fitkit reads up to 1.*upgrade fitkit"
    handler, options = script.plain(tmp_path)
    for use in (
        lambda: NNHandler.load(tmp_path / "new.pth"),
        lambda: read_metadata(tmp_path / "new.pth"),
        lambda: script.fit(handler, options, resume=tmp_path / "new.pth"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            use()
    assert handler.state.global_step == 0


def test_todays_fitkit_writes_what_the_script_says(script, tmp_path):
    """The script still makes such files, and today's have every key that the golden ones have."""
    for name in script.GOLDEN:
        script.make(name, tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(
        one.name for one in GOLDEN.iterdir()
    )
    for name in RUNS:
        old, new = (safe_load.read(folder / f"{name}.pth") for folder in (GOLDEN, tmp_path))
        # sums of a pass that is over were saved by fitkit 0.2
        meters = ("progress", "meters")
        assert {key for key in keys_of(old) if key[:2] != meters} <= keys_of(new)
        assert new["format_version"] == schema.FORMAT_VERSION


def keys_of(value, path=()):
    if not isinstance(value, dict):
        return set()
    found = {(*path, key) for key in value}
    return found.union(*(keys_of(item, (*path, key)) for key, item in value.items()))


# ---- documented ---------------------------------------------------------------------------------


def test_every_key_is_described():
    text = (REPOSITORY / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.+) \|$", text, re.MULTILINE)
    described = {key: words for keys, words in rows for key in re.findall(r"`(\w+)`", keys)}
    assert set(schema.KEYS) <= set(described)
    for name in RUNS:
        assert set(safe_load.read(GOLDEN / f"{name}.pth")) <= set(described)
    for key in schema.KEYS:
        assert len(described[key]) > 3, key


def test_the_version_is_one_until_there_are_golden_files_of_another():
    versions = {safe_load.read(GOLDEN / f"{name}.pth")["format_version"] for name in RUNS}
    assert versions == set(range(1, schema.FORMAT_VERSION + 1))
