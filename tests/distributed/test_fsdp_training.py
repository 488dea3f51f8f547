"""Sharded training follows whole training; its checkpoints go on anywhere."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from fitkit.checkpointing import loading
from fitkit.checkpointing.catalog import latest
from fitkit.checkpointing.storage import single_or_sharded
from fitkit.checkpointing.storage.is_checkpoint import SHARDS_SUFFIX

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

FSDP = ["--strategy", "fsdp"]
TRAJECTORIES: dict[str, list[str]] = {
    "arrays": ["--clip", "0.3", "--ema", "0.9"],
    "nothing_for_a_rank": ["--train", "1", "--val", "1", "--ema", "0.9", "--epochs", "2"],
    "windows": ["--train", "17", "--val", "17", "--accumulation", "4", "--clip", "0.5", "--custom"],
    "odd_batch": ["--batch", "7", "--data", "dataset", "--train", "36", "--epochs", "2"],
    "unknown_end": ["--data", "stream", "--batch", "12", "--accumulation", "3", "--epochs", "2"],
    "blocks": ["--model", "blocks", "--clip", "0.3", "--ema", "0.9", "--epochs", "2"],
    "restored": ["--patience", "1", "--epochs", "30", "--restore-best", "--ema", "0.5"],
}
LEAVES_OUT = ["--model", "leaves-out", "--epochs", "2"]
# Ends inside the second window of each epoch of four batches.
SAVED = ["--train", "29", "--epochs", "2", "--accumulation", "3", "--save-freq", "1", "--keep"]
SAVED += ["--ema", "0.9", "--clip", "1.0", "--save-by-hand", "validation", "--data", "dataset"]
EXACT = [*SAVED, "--dropout", "--norm", "--background", *FSDP]
STEPS = tuple(f"{step:03d}" for step in range(1, 9))
PLACES = (*STEPS, "004_0", "008_2")
SOME = ("003", "004_2", "006")


KEPT = ["--save-freq", "2", "--keep", "--max-to-keep", "2", "--weights-only", "--ema", "0.9"]
KEPT += ["--auto-save"]
KILLED = ["--train", "50", "--epochs", "3", "--accumulation", "3", "--dropout", "--save-freq", "1"]
KILLED += ["--background", "--delay", "0.01", *FSDP]
FULL = ["--epochs", "2", "--save-freq", "1", "--strike", "full-disk", "1", "5", *FSDP]

OF_TWO: dict[str, list[str]] = {
    **{name: [*how, *FSDP] for name, how in TRAJECTORIES.items()},
    "copies": [*TRAJECTORIES["blocks"], "--strategy", "fsdp-copies"],
    "leaves_out": [*LEAVES_OUT, *FSDP],
    "leaves_out_ddp": [*LEAVES_OUT, "--strategy", "ddp-unused"],
    "float32": ["--dtype", "float32", "--epochs", "2", *FSDP],
    "fp16": ["--dtype", "float32", "--precision", "fp16", "--epochs", "2", *FSDP],
    "bf16": ["--dtype", "float32", "--precision", "bf16", "--epochs", "2", *FSDP],
    "param_bf16": ["--dtype", "float32", "--epochs", "2", "--strategy", "fsdp-bf16"],
    "exact": EXACT,
    "plain": [*SAVED, *FSDP],
    "one_epoch": [*SAVED, "--epochs", "1", "--save-after", *FSDP],
    "plain_ddp": [*SAVED, "--strategy", "ddp"],
    "kept": [*KEPT, *FSDP],
    "goes_on_behind": [*FULL, "--on-error", "warn", "--background"],
}
# Looked at with -m slow only.
MORE_OF_TWO: dict[str, list[str]] = {
    "policy": [*TRAJECTORIES["blocks"], "--strategy", "fsdp-blocks"],
    "norm": ["--norm", "--dropout", "--epochs", "2", *FSDP],
    "norm_ddp": ["--norm", "--dropout", "--epochs", "2", "--strategy", "ddp"],
    "kept_behind": [*KEPT, "--background", *FSDP],
    "counted": ["--model", "blocks", "--count", *FSDP],
    "counted_saves": ["--count", "--save-freq", "1", *FSDP],
    "goes_on": [*FULL, "--on-error", "warn"],
}
OF_ONE: dict[str, list[str]] = {
    **TRAJECTORIES,
    "leaves_out": LEAVES_OUT,
    "float32": ["--dtype", "float32", "--epochs", "2"],
    "fp16": ["--dtype", "float32", "--precision", "fp16", "--epochs", "2"],
    "bf16": ["--dtype", "float32", "--precision", "bf16", "--epochs", "2"],
    "plain": SAVED,
    "kept": KEPT,
}
OWN = ("drawn",)  # what the hooks of each process draw
CHANGED = ("drawn", "logs", "steps")
OWN_STATISTICS = ("1.running_mean", "1.running_var")
SECONDS_TO_END = 10.0


@pytest.fixture(scope="module")
def whole(shared_launcher, tmp_path_factory):
    """One process."""
    return shared_launcher.run_cases(tmp_path_factory.mktemp("whole"), OF_ONE, processes=1)


@pytest.fixture(scope="module")
def spread(shared_launcher, tmp_path_factory):
    """Two processes, each with a part of the model."""
    return shared_launcher.run_cases(tmp_path_factory.mktemp("spread"), OF_TWO, processes=2)


@pytest.fixture(scope="module")
def uninterrupted(shared_launcher, tmp_path_factory):
    """What others are killed in."""
    out = tmp_path_factory.mktemp("uninterrupted")
    return shared_launcher.run_cases(out, {"killed": KILLED}, processes=2) / "killed"


@pytest.fixture(scope="module")
def more(shared_launcher, tmp_path_factory):
    """Further runs in two processes."""
    out = tmp_path_factory.mktemp("more")
    return shared_launcher.run_cases(out, MORE_OF_TWO, processes=2)


def resumes(source, out, name, how, places):
    """A case for each of these files of a run; each begins with the whole log file."""
    found = {}
    for place in places:
        case = f"{name}_from_{place}"
        (out / case).mkdir(parents=True)
        shutil.copy(source / "log.csv", out / case)
        found[case] = [*how, "--resume-from", str(source / "steps" / f"{place}.pth")]
    return found


@pytest.fixture(scope="module")
def again(shared_launcher, tmp_path_factory, whole, spread, places):
    """Two processes go on from each file."""
    out = tmp_path_factory.mktemp("again")
    ddp = [*SAVED, "--strategy", "ddp"]
    some = places & set(SOME)
    wanted = resumes(spread / "exact", out, "exact", EXACT, places)
    wanted |= resumes(spread / "plain", out, "to_ddp", ddp, some)
    wanted |= resumes(spread / "plain_ddp", out, "of_ddp", [*SAVED, *FSDP], some)
    wanted |= resumes(whole / "plain", out, "of_one", [*SAVED, *FSDP], some)
    ended = spread / "one_epoch" / "after.pth"
    wanted["loaded"] = [*SAVED, *FSDP, "--epochs", "1", "--load", str(ended), "--save-after"]
    weights = ["--save-after", "--epochs", "1", *FSDP, "--weights-of"]
    wanted["with_weights"] = [*weights, str(spread / "kept" / "runs" / "weights.pth")]
    wanted["with_averages"] = [*weights, str(spread / "kept" / "runs" / "best.pth")]
    for name, how in OF_TWO.items():
        if name in ("fp16", "param_bf16"):
            wanted[f"{name}_again"] = [*how, "--resume-from", str(spread / name / "runs/best.pth")]
    return shared_launcher.run_cases(out, wanted, processes=2)


def resumed_with(processes, places, shared_launcher, tmp_path_factory, spread):
    out = tmp_path_factory.mktemp(f"as_{processes}")
    how = [*SAVED, *FSDP]
    wanted = resumes(spread / "plain", out, "plain", how, places)
    return shared_launcher.run_cases(out, wanted, processes=processes)


@pytest.fixture(scope="module")
def as_one(shared_launcher, tmp_path_factory, spread):
    """One process goes on from files of two."""
    return resumed_with(1, SOME, shared_launcher, tmp_path_factory, spread)


@pytest.fixture(scope="module")
def as_three(shared_launcher, tmp_path_factory, spread):
    """Three processes go on from files of two."""
    return resumed_with(3, SOME, shared_launcher, tmp_path_factory, spread)


# ---- trajectory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_a_sharded_model_follows_a_whole_one(name, whole, spread, kit):
    expected = kit.result(whole / name)
    assert expected["samples"] > 0
    for rank in (0, 1):
        kit.assert_close(kit.result(spread / name, rank), expected, 1e-9, but=OWN)
    kit.assert_equal(kit.result(spread / name, 1), kit.result(spread / name), but=OWN)


def test_two_copies_of_one_part_each_follow_a_whole_model(whole, spread, kit):
    for rank in (0, 1):
        kit.assert_close(
            kit.result(spread / "copies", rank), kit.result(whole / "blocks"), 1e-9, but=OWN
        )


def test_the_blocks_are_a_matter_of_memory_alone(spread, more, kit):
    kit.assert_close(kit.result(more / "policy"), kit.result(spread / "blocks"), 1e-12, but=OWN)


def test_statistics_and_dropout_are_those_of_each_process_as_with_whole_models(more, kit):
    kit.assert_close(kit.result(more / "norm"), kit.result(more / "norm_ddp"), 1e-9)


@pytest.mark.parametrize("name", ["leaves_out", "leaves_out_ddp"])
def test_parameters_that_take_no_part(name, whole, spread, kit):
    kit.assert_close(kit.result(spread / name), kit.result(whole / "leaves_out"), 1e-9, but=OWN)


def test_without_being_told_whole_models_have_to_use_every_parameter(launcher, tmp_path, kit):
    ended = launcher.run(tmp_path / "out", *LEAVES_OUT, "--strategy", "ddp")
    assert ended.code != 0
    messages = " ".join(kit.error_of(tmp_path / "out", rank)["text"] for rank in (0, 1))
    assert "find_unused_parameters=True" in messages


@pytest.mark.parametrize(
    ("name", "reference", "tolerance"),
    [
        ("float32", "float32", 1e-5),
        ("fp16", "fp16", 0.02),
        ("bf16", "bf16", 0.1),
        ("param_bf16", "float32", 0.1),
    ],
)
def test_mixed_precision_follows_one_process(name, reference, tolerance, whole, spread, kit):
    found, expected = kit.result(spread / name), kit.result(whole / reference)
    kit.assert_close(found["history"]["loss"], expected["history"]["loss"], tolerance)
    kit.assert_close(found["weights"], expected["weights"], tolerance)
    assert all(value.dtype is torch.float32 for value in found["weights"].values())
    kit.assert_equal(kit.result(spread / name, 1), found, but=OWN)


def test_the_scale_of_losses_is_in_the_file(spread):
    saved = latest.read_full(spread / "fp16" / "runs" / "best.pth")
    assert saved["scaler_state_dict"]["scale"] > 1


# ---- resuming -----------------------------------------------------------------------------------


def test_there_is_a_file_at_each_step(spread):
    for name in ("exact", "plain", "plain_ddp"):
        found = {path.stem for path in (spread / name / "steps").glob("*.pth")}
        assert found >= set(PLACES)
    assert len(list((spread / "plain" / "steps").glob(f"*{SHARDS_SUFFIX}"))) >= len(PLACES)
    assert not list((spread / "plain_ddp").rglob(f"*{SHARDS_SUFFIX}"))


@pytest.mark.parametrize("place", PLACES)
def test_as_many_processes_end_bit_for_bit_as_uninterrupted(place, spread, again, kit):
    folder = again / f"exact_from_{place}"
    kit.assert_equal(kit.result(folder), kit.result(spread / "exact"))
    found, expected = (
        without_own_statistics(kit.result(where, 1)) for where in (folder, spread / "exact")
    )
    kit.assert_equal(found, expected, but=OWN)
    assert (folder / "log.csv").read_bytes() == (spread / "exact" / "log.csv").read_bytes()


def without_own_statistics(found):
    for name in ("weights", "averaged"):
        kept = {key: value for key, value in found[name].items() if key not in OWN_STATISTICS}
        found = {**found, name: kept}
    return found


@pytest.mark.parametrize("place", SOME)
@pytest.mark.parametrize("name", ["to_ddp", "of_ddp", "of_one"])
def test_between_whole_and_sharded_models(name, place, spread, again, kit):
    folder, expected = again / f"{name}_from_{place}", kit.result(spread / "plain")
    for rank in (0, 1):
        kit.assert_close(kit.result(folder, rank), expected, 1e-9, but=CHANGED)


@pytest.mark.parametrize("place", SOME)
@pytest.mark.parametrize("processes", [1, 3])
def test_another_number_of_processes_goes_on(processes, place, spread, request, kit):
    out = request.getfixturevalue("as_one" if processes == 1 else "as_three")
    expected = kit.result(spread / "plain")
    for rank in range(processes):
        found = kit.result(out / f"plain_from_{place}", rank)
        kit.assert_close(found, expected, 1e-9, but=CHANGED)


@pytest.mark.parametrize("name", ["fp16", "param_bf16"])
def test_mixed_precision_goes_on_bit_for_bit(name, spread, again, kit):
    kit.assert_equal(
        kit.result(again / f"{name}_again"), kit.result(spread / name), but=("logs", "steps")
    )


# ---- what the page says -------------------------------------------------------------------------

LOSSES = ("loss", "val_loss")
METRICS = ("accuracy", "val_accuracy", "mean_output", "val_mean_output")
PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"


def deviation(found, expected, names):
    """The largest relative one."""
    pairs = [
        pair
        for name in names
        for pair in zip(found["history"][name], expected["history"][name], strict=True)
    ]
    return max(abs(one - other) / max(abs(other), 1e-12) for one, other in pairs)


def weights_apart(found, expected):
    """The largest deviation of a weight, of the largest weight in its tensor."""
    return max(
        float((found["weights"][name] - value).abs().max() / value.abs().max())
        for name, value in expected["weights"].items()
    )


@pytest.mark.parametrize("place", ["003"])
def test_the_documented_figures_are_those_that_are_found(
    place, whole, spread, again, as_one, as_three, kit
):
    expected = kit.result(whole / "plain")
    exact = [kit.result(where) for where in (again / f"exact_from_{place}", spread / "exact")]
    runs = {
        "DDP 2": (spread, "plain_ddp", 0.0),  # test_resume.py compares the bits
        "FSDP 2": (spread, "plain", weights_apart(*exact)),
        "FSDP 2, then 1": (as_one, f"plain_from_{place}", None),
        "FSDP 2, then 3": (as_three, f"plain_from_{place}", None),
        "FSDP 2, then DDP 2": (again, f"to_ddp_from_{place}", None),
        "DDP 2, then FSDP 2": (again, f"of_ddp_from_{place}", None),
        "one process, then FSDP 2": (again, f"of_one_from_{place}", None),
    }
    figure = r"([\d.e-]+)"
    row = rf"^\| ([^|]+) \| {figure} \| {figure} \| (\d+) of (\d+) \| {figure} \|$"
    rows = {name: figures for name, *figures in re.findall(row, PAGE.read_text(), re.MULTILINE)}
    assert set(rows) == {"one process", *runs}
    for name, (out, case, resumed) in runs.items():
        found, documented = kit.result(out / case), [float(one) for one in rows[name]]
        apart = weights_apart(found, expected) if resumed is None else resumed
        figures = [deviation(found, expected, names) for names in (LOSSES, METRICS)]
        figures += [found["samples"], expected["samples"], apart]
        assert figures[2:4] == documented[2:4]
        for one, most in zip(figures, documented, strict=True):
            assert one <= most, (name, figures, documented)


# ---- files --------------------------------------------------------------------------------------


@pytest.fixture(params=["kept", "kept_behind"])
def kept(request):
    """The folder of a run that keeps a few files of many."""
    name = request.param
    return request.getfixturevalue("spread" if name in OF_TWO else "more") / name


def test_retention_keeps_as_many_with_their_shards(kept, whole):
    folder = kept / "steps"
    assert {path.name for path in folder.glob("*.pth")} == {"018.pth", "020.pth"}
    assert {path.name for path in (whole / "kept" / "steps").iterdir()} == {"018.pth", "020.pth"}
    for where, most in ((folder, 2), (kept / "runs", 2)):
        files = list(where.glob("*.pth"))
        assert {reference_of(path) for path in files} == {
            path.name for path in where.iterdir() if path.is_dir()
        }
        assert len(files) == most
        for path in files:
            single_or_sharded.verify(path)
        assert not [path for path in where.iterdir() if path.name.startswith(".")]


def reference_of(path):
    return torch.load(path, weights_only=True)["__fitkit_shards__"]["folder"]


def test_files_hold_what_one_process_writes(kept, whole, kit):
    for path in (whole / "kept").rglob("*.pth"):
        if path.name.startswith("rank"):
            continue
        own = single_or_sharded.read(kept / path.relative_to(whole / "kept"))
        expected = single_or_sharded.read(path)
        if "model_state_dict" in expected:
            for key in ("model_state_dict", "optimizer_state_dict", "ema_state_dict"):
                kit.assert_close(own[key], expected[key], 1e-9)
            assert set(own) == set(expected)
        else:
            kit.assert_close(dict(own), dict(expected), 1e-9)


def test_best_and_last_of_one_moment_are_the_same_file(spread):
    """In folders of their own, so that the pieces are linked; weights alone are others."""
    folder = spread / "kept"
    best, last = folder / "runs" / "best.pth", folder / "auto" / "auto.pth"
    assert loading.read_metadata(best).position == loading.read_metadata(last).position
    assert best.samefile(last)
    own, theirs = (path.parent / reference_of(path) for path in (best, last))
    assert own.name == theirs.name
    for piece in own.iterdir():
        assert piece.samefile(theirs / piece.name)
    assert reference_of(folder / "runs" / "weights.pth") != own.name


def test_a_loaded_handler_goes_on(spread, again, kit):
    found, expected = kit.result(again / "loaded"), kit.result(spread / "plain")
    kit.assert_equal(found, expected, but=CHANGED)
    after = single_or_sharded.read(again / "loaded" / "after.pth")
    kit.assert_close(dict(after["model_state_dict"]), found["weights"], 0.0)
    assert (again / "loaded" / reference_of(again / "loaded" / "after.pth")).is_dir()


def test_a_run_may_begin_with_the_weights_of_a_file(spread, again, kit):
    found = [kit.result(again / name) for name in ("with_weights", "with_averages")]
    assert all(one["step"] == 7 for one in found)
    last = loading.read_weights(spread / "kept" / "runs" / "weights.pth")
    kit.assert_close(dict(last), kit.result(spread / "kept")["averaged"], 0.0)


# ---- what it costs ------------------------------------------------------------------------------


def test_collectives_of_a_step(more, kit):
    """Parameters are in three groups: each block's, and the rest.

    In training each group is gathered for the forward pass, a block again for the backward pass,
    and its gradients are reduced once; in evaluation it is gathered once.
    """
    found = kit.clock_of(more / "counted")["collectives"]
    groups, blocks, train_batches, val_batches = 3, 2, 3 * 7, 3 * 3
    assert found["reduce_scatter_single"] == groups * train_batches
    gathered = (groups + blocks) * train_batches + groups * val_batches
    assert found["all_gather_single"] == gathered


def test_collectives_of_an_epoch_and_of_a_save(more, kit):
    """Besides those of a step, and of whole models, there are only those of saves."""
    epochs, batches = 3, 3 * 7
    for name, meetings in (("counted", 0), ("counted_saves", batches)):
        found, times = (kit.clock_of(more / name)[key] for key in ("collectives", "times"))
        # every quarter of a second, each of which may follow one planned at the pace before
        now_and_then = 2 + 2 * 4 * (times[-1] - times[0] + 0.25)
        assert found["all_reduce"] <= 5 * epochs + 3 + 2 * meetings + now_and_then, found
        # size and checksum of each rank's index; inside an epoch what each has added up
        saves = found["gather_object"] - meetings
        assert 1 <= saves - meetings <= epochs  # the best ones
        # in each data pass the names of what is summed, and the chunks of an EpochMetric, and what
        # callbacks have logged, and at the end; once a fit what the ranks were given and the norms
        # of the gradients before and after the first backward pass; those of whole weights after
        # the first step and each epoch
        assert found["all_gather"] == (3 * 2 + 1 + 1) * epochs + 1 + 1 + 3
        # command, kind of content, folder, success, end; the end of each meeting; once a fit,
        # whether the files are locked, and what was found beside them
        assert found["broadcast"] == 5 * saves + meetings + epochs + 2 + 2
        assert "scatter_object_list" not in found


# ---- failures -----------------------------------------------------------------------------------


def _number(path):
    return int(path.read_text())


def assert_ended_as(out, whole, kit):
    kit.assert_equal(kit.result(out), kit.result(whole))
    kit.assert_equal(kit.result(out, 1), kit.result(whole, 1), but=OWN)
    for name in ("last.pth", "best.pth"):
        kit.assert_equal(
            latest.read_full(out / "runs" / name), latest.read_full(whole / "runs" / name)
        )
    named = {reference_of(path) for path in (out / "runs").glob("*.pth")}
    assert {path.name for path in (out / "runs").iterdir() if path.is_dir()} == named
    assert not [path for path in (out / "runs").iterdir() if path.name.startswith(".")]


def test_a_killed_process_takes_all_with_it_and_torchrun_brings_them_back(
    launcher, tmp_path, uninterrupted, kit
):
    # More is left of the launch before than files: torchrun keeps its store.
    out = tmp_path / "out"
    how = ("--strike", "SIGKILL", 1, random.Random(3).randint(9, 17))
    # the other one has noticed and told it before the launcher looks and ends it
    options = ("--max-restarts=1", "--monitor-interval=3")
    ended = launcher.run(out, *KILLED, "--resume", *how, options=options)
    assert ended.code == 0, ended.output
    assert kit.error_of(out, 0)["time"] - kit.struck_at(out) < 2.0
    assert_ended_as(out, uninterrupted, kit)


def test_told_to_end_it_saves_and_goes_on(launcher, tmp_path, uninterrupted, kit):
    out = tmp_path / "out"
    ended = launcher.run(out, *KILLED, "--resume", "--strike", "SIGTERM", 1, 8)
    assert ended.code != 0
    assert ended.at - kit.struck_at(out) < SECONDS_TO_END
    assert [kit.error_of(out, rank)["text"] for rank in (0, 1)] == ["143", "143"]
    saved = loading.read_metadata(out / "runs" / "last.pth").global_step
    assert saved == _number(out / "step0") == _number(out / "step1")
    ended = launcher.run(out, *KILLED, "--resume")
    assert ended.code == 0, ended.output
    assert_ended_as(out, uninterrupted, kit)


def test_a_full_disk_of_one_process_ends_all_and_is_told(launcher, tmp_path, kit):
    out = tmp_path / "out"
    ended = launcher.run(out, *FULL)
    assert ended.code != 0
    own, other = kit.error_of(out, 1), kit.error_of(out, 0)
    assert other["type"] == "SaveError"
    assert "rank 1 could not write its part" in other["text"]
    assert own["type"] == "RankError"
    assert "rank 1 could not write its part" in own["text"]
    assert loading.read_metadata(out / "runs" / "last.pth").global_step == 4
    single_or_sharded.verify(out / "runs" / "last.pth")


@pytest.mark.parametrize(("name", "runs"), [("goes_on_behind", "spread"), ("goes_on", "more")])
def test_a_full_disk_of_one_process_need_not_end_training(name, runs, request, kit):
    out = request.getfixturevalue(runs)
    assert (out / name / "struck").exists()
    assert kit.result(out / name)["step"] == 2 * 7
    last = out / name / "runs" / "last.pth"
    single_or_sharded.verify(last)
    assert loading.read_metadata(last).global_step == 2 * 7
    output = "".join(path.read_text() for path in out.parent.glob(f"{out.name}-*.log"))
    assert re.search("rank 1 could not write its part.*File too large", output)
