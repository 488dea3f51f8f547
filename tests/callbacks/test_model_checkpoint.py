from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
import warnings

import pytest
import torch
from torch import nn

import fitkit
from fitkit import AutoSaver, ConfigurationError, ModelCheckpoint, MonitorError, SaveError
from fitkit.checkpointing.storage import atomic_write, safe_load, torch_archive

DATA = (torch.zeros(10, 2), torch.zeros(10, 1))


class Script(fitkit.Callback):
    """Says what the logs of each epoch and batch are."""

    def __init__(self, **values):
        self.values = values

    def on_epoch_begin(self, epoch, logs):
        for name, values in self.values.items():
            self.log(name, values[epoch])


def make(seed=0):
    handler = fitkit.NNHandler(nn.Linear, in_features=2, out_features=1, seed=seed)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(lambda outputs, targets: (outputs + 1).square().mean())
    return handler


def fit(handler, callbacks, epochs=3, **options):
    options = {"batch_size": 4, "progress_bar": False, **options}  # three batches an epoch
    return handler.fit(DATA, epochs=epochs, callbacks=callbacks, **options)


def run(callbacks, epochs=3, seed=0, **options):
    handler = make(seed)
    fit(handler, callbacks, epochs, **options)
    return handler


def names(folder):
    """The files in a folder, without the lock of a run that trains into it."""
    paths = folder.iterdir() if folder.exists() else ()
    return sorted(path.name for path in paths if not path.name.endswith(".fitkit-lock"))


def step_of(path):
    return torch.load(path, weights_only=True)["progress"]["state"]["global_step"]


# ---- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("save_freq", [0, -1, True, False, "batch", "epochs", 1.0, None, "1"])
def test_a_frequency_that_means_nothing(save_freq):
    with pytest.raises(
        ConfigurationError, match="save_freq must be 'epoch' or a number of batches"
    ):
        ModelCheckpoint("a.pth", save_freq=save_freq)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "least"}, "mode must be"),
        ({"mode": "least", "monitor": "loss"}, "mode must be"),
        ({"monitor": "happiness"}, "pass mode='min' or mode='max'"),
        ({"monitor": ""}, "monitor must be"),
        ({"max_to_keep": 0}, "max_to_keep"),
        ({"max_to_keep": True}, "max_to_keep"),
        ({"every_n_seconds": 0}, "every_n_seconds must be above 0"),
        ({"every_n_seconds": -1}, "every_n_seconds"),
        ({"every_n_seconds": math.nan}, "every_n_seconds"),
        ({"initial_value_threshold": 1.0}, "needs monitor="),
        ({"initial_value_threshold": math.inf, "monitor": "loss"}, "initial_value_threshold"),
        ({"filepath": ""}, "filepath"),
        ({"filepath": None}, "filepath"),
        ({"filepath": "{epoch.__class__}"}, "plain name"),
        ({"filepath": "{epoch"}, "valid format"),
    ],
)
def test_arguments_that_mean_nothing(options, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        ModelCheckpoint(**{"filepath": "a.pth", **options})


@pytest.mark.parametrize("interval", [-2, 1.5, True, "2", -100])
def test_an_interval_that_means_nothing(interval):
    with pytest.raises(ConfigurationError, match="the save interval must be"):
        AutoSaver(interval)


def test_best_only_watches_the_validation_loss_unless_told():
    assert ModelCheckpoint("a.pth", save_best_only=True).monitor == "val_loss"


# ---- when ---------------------------------------------------------------------------------------


def test_every_epoch_and_folders_are_made(tmp_path):
    run([ModelCheckpoint(tmp_path / "a" / "b" / "{epoch:02d}.pth")])
    assert names(tmp_path / "a" / "b") == ["01.pth", "02.pth", "03.pth"]


def test_batches_are_counted_over_epochs_fits_and_resumes(tmp_path):
    handler = make()
    handler.add_callback(
        ModelCheckpoint(tmp_path / "{global_step}_{epoch}_{batch}.pth", save_freq=2)
    )
    fit(handler, [], 2)
    fit(handler, [], 1)
    expected = ["2_1_2.pth", "4_2_1.pth", "6_2_3.pth", "8_3_2.pth"]
    assert names(tmp_path) == expected
    again = [ModelCheckpoint(tmp_path / "b" / "{global_step}.pth", save_freq=2)]
    with pytest.warns(UserWarning, match="begin anew"):
        run(again, 4, resume=tmp_path / "6_2_3.pth")
    assert {"8.pth", "10.pth", "12.pth"} <= set(names(tmp_path / "b"))
    assert not {"7.pth", "9.pth", "11.pth"} & set(names(tmp_path / "b"))


def test_triggers_combine_and_a_step_is_saved_once(tmp_path, monkeypatch):
    saves = count_saves(monkeypatch)
    every_moment = ModelCheckpoint(tmp_path / "{global_step}.pth", every_n_seconds=1e-9)
    run([every_moment], 1)
    assert names(tmp_path) == ["1.pth", "2.pth", "3.pth"]
    assert len(saves) == 3, "the last batch and the epoch's end are one step"


def test_seconds(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = fitkit.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: now.__setitem__(0, now[0] + 1)
    )
    run([ModelCheckpoint(tmp_path / "{global_step}.pth", save_freq=1000, every_n_seconds=4), clock])
    assert names(tmp_path) == ["4.pth", "8.pth"]


def count_saves(monkeypatch):
    saves, real = [], torch_archive.write

    def save(content, file, records):
        saves.append(content)
        real(content, file, records)

    monkeypatch.setattr(torch_archive, "write", save)
    return saves


def test_savers_that_ask_at_one_event_share_one_serialization(tmp_path, monkeypatch):
    saves = count_saves(monkeypatch)
    best = ModelCheckpoint(tmp_path / "best.pth", "loss", save_best_only=True)
    handler = make()
    handler.auto_save(1, tmp_path / "auto", "m_{epoch}")
    fit(handler, [ModelCheckpoint(tmp_path / "last.pth"), best], 2)
    assert len(saves) == 2
    paths = [tmp_path / "last.pth", tmp_path / "best.pth", tmp_path / "auto" / "m_2.pth"]
    assert len({path.read_bytes() for path in paths}) == 1
    states = torch.load(tmp_path / "best.pth", weights_only=True)["callback_states"]
    seen = {state["state"].get("last_path") for state in states.values()}
    assert {"last.pth", "best.pth", "m_2.pth"} <= seen, "the file describes a world without it"


def test_full_and_weights_only_of_one_event_are_two(tmp_path, monkeypatch):
    saves = count_saves(monkeypatch)
    weights = [ModelCheckpoint(tmp_path / f"{n}.pth", save_weights_only=True) for n in "ab"]
    run([ModelCheckpoint(tmp_path / "full.pth"), *weights], 1)
    assert len(saves) == 2
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert set(content) == {"weight", "bias"}


def test_the_order_of_savers_and_callbacks_does_not_matter(tmp_path):
    class Last(fitkit.Callback):
        order = 1000
        state_fields = ("heard",)
        heard = 0

        def on_epoch_end(self, epoch, logs):
            self.heard += 1

    run([ModelCheckpoint(tmp_path / "{epoch}.pth"), Last()], 2)
    for epoch in (1, 2):
        state = torch.load(tmp_path / f"{epoch}.pth", weights_only=True)
        assert state["callback_states"]["Last"]["state"] == {"heard": epoch}
        assert state["history"]["epoch"] == list(range(epoch))


def test_everybody_hears_of_a_saved_file_when_it_is_there(tmp_path):
    heard = []

    class Hears(fitkit.Callback):
        def on_checkpoint_saved(self, path, logs):
            safe_load.read(fitkit.checkpointing.storage.atomic_write.Path(path))
            heard.append(os.path.basename(path))

    run([Hears(), ModelCheckpoint(tmp_path / "a.pth"), ModelCheckpoint(tmp_path / "b.pth")], 1)
    assert sorted(heard) == ["a.pth", "b.pth"]


# ---- best ---------------------------------------------------------------------------------------

SCORES = [0.5, 0.5, 0.6, math.nan, math.inf, 0.4, 0.7]


def best_epochs(tmp_path, values, **options):
    saver = ModelCheckpoint(
        tmp_path / "{epoch}.pth", "score", save_best_only=True, mode="max", **options
    )
    run([saver, Script(score=values)], len(values))
    return [int(name[:-4]) for name in names(tmp_path)], saver


def test_better_is_strict_and_what_is_not_finite_is_never_best(tmp_path):
    saved, saver = best_epochs(tmp_path, SCORES)
    assert saved == [1, 3, 7]
    assert saver.best == 0.7
    assert saver.best_path == "7.pth"


def test_nothing_is_best_where_nothing_is_finite(tmp_path):
    saved, saver = best_epochs(tmp_path, [math.nan, math.inf, -math.inf])
    assert saved == []
    assert saver.best is None


def test_nothing_is_written_until_the_threshold_is_beaten(tmp_path):
    saved, _ = best_epochs(tmp_path, [0.5, 0.6, 0.65, 0.62, 0.7], initial_value_threshold=0.6)
    assert saved == [3, 5]


def test_the_threshold_counts_without_best_only_too(tmp_path):
    saver = ModelCheckpoint(
        tmp_path / "{epoch}.pth", "score", mode="max", initial_value_threshold=0.6
    )
    run([saver, Script(score=[0.5, 0.6, 0.7, 0.1, 0.8])], 5)
    assert names(tmp_path) == ["3.pth", "5.pth"]


def test_a_monitor_without_best_only_saves_all_and_knows_the_best(tmp_path):
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth", "score", mode="max")
    run([saver, Script(score=[0.5, math.nan, 0.7, 0.6])], 4)
    assert names(tmp_path) == ["1.pth", "2.pth", "3.pth", "4.pth"]
    assert (saver.best, saver.best_path) == (0.7, "3.pth")


def test_best_only_by_batches_takes_the_batch_value(tmp_path):
    saver = ModelCheckpoint(tmp_path / "{global_step}.pth", "loss", True, save_freq=2)
    run([saver], 2)
    assert names(tmp_path) == ["2.pth", "4.pth", "6.pth"]


def test_best_only_by_batches_on_a_value_of_validation_waits_for_the_fresh_one(tmp_path):
    saver = ModelCheckpoint(
        tmp_path / "{epoch}_{global_step}_{val_loss:.2f}.pth", "val_loss", True, save_freq=4
    )
    handler = run([saver], 4, validation_data=DATA, validate_every=2)
    assert len(names(tmp_path)) == 2
    losses = handler.val_losses
    assert names(tmp_path) == [f"2_6_{losses[0]:.2f}.pth", f"4_12_{losses[1]:.2f}.pth"]
    assert saver.best == losses[1]


def test_between_validations_nothing_is_taken_for_an_improvement(tmp_path):
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth", "val_loss", save_best_only=True)
    run([saver], 5, validation_data=DATA, validate_every=2)
    assert names(tmp_path) == ["2.pth", "4.pth"]


@pytest.mark.parametrize("save_freq", ["epoch", 2])
def test_a_monitored_name_that_never_comes_is_an_error_that_lists_what_is_there(
    tmp_path, save_freq
):
    saver = ModelCheckpoint(tmp_path / "a.pth", "val_los", True, mode="min", save_freq=save_freq)
    with pytest.raises(MonitorError, match=r"'val_loss'.*Did you mean 'val_loss'"):
        run([saver], validation_data=DATA)
    assert names(tmp_path) == []


def test_a_validation_that_never_comes_is_an_error_before_the_first_batch(tmp_path):
    trained = []
    watch = fitkit.LambdaCallback(on_train_batch_begin=lambda batch, logs: trained.append(batch))
    with pytest.raises(MonitorError, match="no validation"):
        run([ModelCheckpoint(tmp_path / "a.pth", save_best_only=True), watch])
    assert trained == []


def test_a_stop_for_a_value_that_is_not_finite_writes_neither_best_nor_last(tmp_path):
    handler = fitkit.NNHandler(nn.Linear(2, 1))
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        return outputs.mean() * (math.nan if len(calls) > 4 else 1.0)

    handler.set_loss_fn(loss)
    handler.auto_save(-1, tmp_path / "auto")
    savers = [
        ModelCheckpoint(tmp_path / "last_{global_step}.pth"),
        ModelCheckpoint(tmp_path / "batch_{global_step}.pth", save_freq=1),
        ModelCheckpoint(tmp_path / "best.pth", "loss", True, save_weights_only=True),
    ]
    fit(handler, [*savers, fitkit.TerminateOnNaN()], 4)
    assert handler.state.stopped_non_finite
    assert names(tmp_path) == [
        "batch_1.pth", "batch_2.pth", "batch_3.pth", "batch_4.pth", "best.pth", "last_3.pth"
    ]  # fmt: skip
    assert savers[2].best is not None
    assert math.isfinite(savers[2].best)


def test_weights_saved_as_best_are_those_that_were_scored(tmp_path):
    saver = ModelCheckpoint(tmp_path / "best.pth", "val_loss", True, save_weights_only=True)
    handler = run([saver, fitkit.EMA(0.9)], 3, validation_data=DATA)
    weights = torch.load(tmp_path / "best.pth", weights_only=True)
    averaged = handler.ema.weights()
    assert all(torch.equal(weights[name], averaged[name]) for name in averaged)
    assert not torch.equal(weights["bias"], handler.module.bias)
    fresh = fitkit.NNHandler.initialize_from_checkpoint(
        tmp_path / "best.pth", nn.Linear, in_features=2, out_features=1
    )
    fresh.set_loss_fn(handler.parts.loss.function)
    assert fresh.evaluate(DATA, batch_size=4)["loss"] == saver.best


# ---- keeping ------------------------------------------------------------------------------------


def test_without_a_monitor_the_last_are_kept(tmp_path):
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth", max_to_keep=2)
    run([saver], 5)
    assert names(tmp_path) == ["4.pth", "5.pth"]
    assert [name for name, _ in saver.kept] == ["4.pth", "5.pth"]


def test_with_a_monitor_the_best_are_kept(tmp_path):
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth", "score", mode="max", max_to_keep=2)
    run([saver, Script(score=[0.5, 0.9, math.nan, 0.4, 0.7, 0.7, 0.8])], 7)
    assert names(tmp_path) == ["2.pth", "7.pth"]
    assert (saver.best, saver.best_path) == (0.9, "2.pth")


def test_what_is_not_finite_is_never_kept_even_where_there_is_room(tmp_path):
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth", "score", mode="max", max_to_keep=3)
    run([saver, Script(score=[math.nan, 0.5, math.inf])], 3)
    assert names(tmp_path) == ["2.pth"]
    assert saver.kept == [["2.pth", 0.5]]


def test_one_name_for_all_keeps_one_file(tmp_path):
    saver = ModelCheckpoint(tmp_path / "last.pth", max_to_keep=3)
    run([saver], 4)
    assert names(tmp_path) == ["last.pth"]
    assert len(saver.kept) == 1


def test_best_only_overwrites_only_its_own_file(tmp_path):
    (tmp_path / "1.pth").write_text("someone else's")
    (tmp_path / "notes.txt").write_text("notes")
    saver = ModelCheckpoint(tmp_path / "m{epoch}.pth", max_to_keep=1)
    run([saver], 3)
    assert names(tmp_path) == ["1.pth", "m3.pth", "notes.txt"]


def test_overwriting_removes_the_old_file_after_the_new_one_is_durable(tmp_path, monkeypatch):
    order = []
    real_write, real_remove = atomic_write.write, atomic_write.remove

    def write(content, path, also, record):
        real_write(content, path, also, record)
        order.append(("written", path.name))

    def remove(path):
        assert path.exists()
        order.append(("removed", path.name))
        return real_remove(path)

    monkeypatch.setattr(atomic_write, "write", write)
    monkeypatch.setattr(atomic_write, "remove", remove)
    handler = make()
    handler.auto_save(1, tmp_path, "m{epoch}", overwrite=True)
    fit(handler, [], 3)
    assert order == [
        ("written", "m1.pth"),
        ("written", "m2.pth"),
        ("removed", "m1.pth"),
        ("written", "m3.pth"),
        ("removed", "m2.pth"),
    ]


def test_the_file_a_run_came_from_goes_only_after_a_newer_one(tmp_path, monkeypatch):
    saver = tmp_path / "m{epoch}.pth"
    run([ModelCheckpoint(saver, max_to_keep=1)], 2)

    class Dies(fitkit.Callback):
        def on_epoch_end(self, epoch, logs):
            raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        run([ModelCheckpoint(saver, max_to_keep=1), Dies()], 5, resume=True)
    assert names(tmp_path) == ["m2.pth"]
    run([ModelCheckpoint(saver, max_to_keep=1)], 4, resume=True)
    assert names(tmp_path) == ["m4.pth"]


def test_best_kept_and_last_survive_a_restart_in_a_moved_folder(tmp_path):
    def savers(folder):
        return [
            ModelCheckpoint(folder / "{epoch}.pth", "score", mode="max", max_to_keep=2),
            ModelCheckpoint(folder / "best.pth", "score", True, mode="max"),
            ModelCheckpoint(folder / "last" / "{epoch}.pth", max_to_keep=1),
        ]

    scores = [0.5, 0.9, 0.8, 0.85, 0.95]
    first = savers(tmp_path / "old")
    run([*first, Script(score=scores)], 3)
    best = (tmp_path / "old" / "best.pth").read_bytes()
    shutil.move(tmp_path / "old", tmp_path / "new" / "name")
    again = savers(tmp_path / "new" / "name")
    run([*again, Script(score=scores)], 4, resume=True)
    assert names(tmp_path) == ["new"]
    assert names(tmp_path / "new" / "name") == ["2.pth", "4.pth", "best.pth", "last"]
    assert names(tmp_path / "new" / "name" / "last") == ["4.pth"]
    assert (tmp_path / "new" / "name" / "best.pth").read_bytes() == best, "a worse one overwrote it"
    assert again[1].best == 0.9
    run([*savers(tmp_path / "new" / "name"), Script(score=scores)], 5, resume=True)
    assert names(tmp_path / "new" / "name") == ["2.pth", "5.pth", "best.pth", "last"]
    assert step_of(tmp_path / "new" / "name" / "best.pth") == 15


def test_a_name_without_its_value_falls_back_with_one_warning(tmp_path):
    saver = ModelCheckpoint(tmp_path / "m_{val_loss:.2f}.pth")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run([saver], 1)
    assert names(tmp_path) == ["m_epoch1.pth"]
    assert len(caught) == 1
    assert "'epoch'" in str(caught[0].message)
    assert "'loss'" in str(caught[0].message)


# ---- AutoSaver ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (1, ["m1.pth", "m2.pth", "m3.pth", "m4.pth", "m5.pth"]),
        (2, ["m2.pth", "m4.pth", "m5.pth"]),
        (5, ["m5.pth"]),
        (9, ["m5.pth"]),
        (-1, ["m5.pth"]),
        (0, []),
        (None, []),
    ],
)
def test_intervals(tmp_path, interval, expected):
    handler = make()
    handler.auto_save(interval, tmp_path, "m{epoch}")
    fit(handler, [], 5)
    assert names(tmp_path) == expected


def test_the_last_epoch_need_not_be_saved(tmp_path):
    handler = make()
    handler.auto_save(2, tmp_path, "m{epoch}")
    fit(handler, [], 5, save_on_last_epoch=False)
    assert names(tmp_path) == ["m2.pth", "m4.pth"]
    only_last = make()
    only_last.auto_save(-1, tmp_path / "b", "m{epoch}")
    fit(only_last, [], 2, save_on_last_epoch=False)
    assert names(tmp_path / "b") == ["m2.pth"]


class Stops(fitkit.Callback):
    def __init__(self, hook, order):
        self.hook, self.order = hook, order

    def on_epoch_end(self, epoch, logs):
        if self.hook == "epoch" and epoch == 1:
            self.handler.stop_training = True

    def on_train_batch_end(self, batch, logs):
        if self.hook == "batch" and self.handler.state.global_step == 4:
            self.handler.stop_training = True


@pytest.mark.parametrize("order", [0, 50, 1000])
@pytest.mark.parametrize("hook", ["epoch", "batch"])
def test_minus_one_saves_also_when_something_stops_the_run_early(tmp_path, hook, order):
    handler = make()
    handler.auto_save(-1, tmp_path, "m{epoch}")
    fit(handler, [Stops(hook, order)], 5)
    assert names(tmp_path) == ["m2.pth"]
    assert torch.load(tmp_path / "m2.pth")["progress"]["state"]["stop_reason"]
    again = make()
    again.auto_save(-1, tmp_path, "m{epoch}")
    fit(again, [Stops(hook, order)], 5, resume=True)
    assert again.history.epoch == [0, 1]


def test_minus_one_and_limits_of_the_call(tmp_path):
    handler = make()
    handler.auto_save(-1, tmp_path, "m{epoch}")
    fit(handler, [], 5, max_steps=4)
    assert names(tmp_path) == ["m2.pth"]


def test_names_of_auto_saved_files_stay_in_the_folder(tmp_path):
    handler = make()
    handler.auto_save(1, tmp_path / "in", "../../{epoch}:x")
    fit(handler, [], 1)
    assert names(tmp_path) == ["in"]
    assert names(tmp_path / "in") == ["1_x.pth"]


def test_a_second_auto_save_replaces_the_first(tmp_path):
    handler = make()
    handler.auto_save(1, tmp_path / "a")
    handler.auto_save(1, tmp_path / "b")
    fit(handler, [], 1)
    assert names(tmp_path) == ["b"]
    handler.auto_save(None)
    assert not [one for one in handler.callbacks if isinstance(one, fitkit.AutoSaver)]


def test_the_seed_documents_names(tmp_path):
    handler = make()
    handler.auto_save(1, tmp_path, "ckpt_ep{epoch:03d}_valloss{val_loss:.4f}")
    fit(handler, [], 1, validation_data=DATA)
    assert names(tmp_path) == [f"ckpt_ep001_valloss{handler.val_losses[0]:.4f}.pth"]


# ---- failing ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_files_and_savers_as_they_were(small_disk):
    savers = [
        ModelCheckpoint(small_disk / "{epoch}.pth", "loss", max_to_keep=2),
        ModelCheckpoint(small_disk / "best.pth", "loss", save_best_only=True),
    ]

    class Fills(fitkit.Callback):
        def on_epoch_begin(self, epoch, logs):
            if epoch == 1:
                self.before = [saver.state_dict() for saver in savers]
                self.files = {path: path.read_bytes() for path in small_disk.glob("*.pth")}
                with (small_disk / "other").open("wb", buffering=0) as file:
                    try:
                        while file.write(bytes(512)):
                            pass
                    except OSError:
                        pass

    fills = Fills()
    with pytest.raises(SaveError, match=r"2.pth.*No space left on device"):
        run([*savers, fills], 3)
    (small_disk / "other").unlink()
    assert {path: path.read_bytes() for path in small_disk.glob("*.pth")} == fills.files
    for saver, before in zip(savers, fills.before, strict=True):
        assert saver.state_dict() == before
    for path in fills.files:
        safe_load.verify(path)
    # and the same run goes on once there is room
    savers = [
        ModelCheckpoint(small_disk / "{epoch}.pth", "loss", max_to_keep=1),
        ModelCheckpoint(small_disk / "best.pth", "loss", save_best_only=True),
    ]
    handler = run(savers, 3, resume=small_disk / "1.pth")
    assert handler.history.epoch == [0, 1, 2]


def test_a_failed_save_can_be_tried_again_with_the_same_savers(tmp_path, monkeypatch):
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth", "loss", save_best_only=True)
    real, failures = atomic_write.write, []

    def write(content, path, also, record):
        if not failures:
            failures.append(path)
            raise SaveError(f"could not save to {path}", path)
        real(content, path, also, record)

    monkeypatch.setattr(atomic_write, "write", write)
    handler = make()
    handler.add_callback(saver)
    with pytest.raises(SaveError) as caught:
        fit(handler, [], 2)
    assert any("as it was before this save" in note for note in caught.value.__notes__)
    assert (saver.best, saver.last_path, saver.kept) == (None, None, [])
    fit(handler, [], 1)
    assert saver.best is not None
    assert len(names(tmp_path)) == 1


def test_the_second_name_of_a_file_fails(tmp_path):
    """The first was written already; what both savers know is as before."""
    (tmp_path / "b.pth").mkdir()
    savers = [ModelCheckpoint(tmp_path / "a.pth"), ModelCheckpoint(tmp_path / "b.pth")]
    with pytest.raises(SaveError, match=r"b\.pth"):
        run(savers, 1)
    assert [saver.last_path for saver in savers] == [None, None]
    assert sorted(names(tmp_path)) == ["a.pth", "b.pth"]
    safe_load.verify(tmp_path / "a.pth")


def test_trial_runs_write_nothing(tmp_path):
    handler = make()
    handler.auto_save(1, tmp_path / "auto")
    fit(handler, [ModelCheckpoint(tmp_path / "a.pth", save_freq=1)], fast_dev_run=True)
    assert names(tmp_path) == []


def test_verbose_logs_each_decision(tmp_path, caplog):
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth", "score", True, mode="max", verbose=1)
    with caplog.at_level("INFO", logger="fitkit"):
        run([saver, Script(score=[0.5, 0.4])], 2)
    assert "score=0.4 is not saved" in caplog.text
    assert "saved" in caplog.text


def test_an_error_after_a_saver_asked_leaves_no_checkpoint_that_others_have_not_heard_of(tmp_path):
    """What is saved when a hook fails must resume as exactly as anything else."""

    class Dies(fitkit.Callback):
        order = 70  # after the savers, before History

        def __init__(self, epoch):
            self.epoch = epoch

        def on_epoch_end(self, epoch, logs):
            if epoch == self.epoch:
                raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        run([ModelCheckpoint(tmp_path / "{epoch}.pth"), Dies(1)], 4)
    handler = run([ModelCheckpoint(tmp_path / "{epoch}.pth"), Dies(9)], 4, resume=True)
    assert handler.history.epoch == [0, 1, 2, 3]


def test_an_old_file_that_cannot_be_removed_is_said_and_the_run_goes_on(tmp_path, monkeypatch):
    from pathlib import Path

    real = Path.unlink

    def unlink(self, missing_ok=False):
        if self.name == "1.pth":
            raise PermissionError(1, "Operation not permitted", str(self))
        real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth", max_to_keep=1)
    with pytest.warns(RuntimeWarning, match=r"1\.pth.*Operation not permitted"):
        run([saver], 3)
    assert names(tmp_path) == ["1.pth", "3.pth"]


def test_a_new_fit_drops_the_requests_of_a_loaded_file(tmp_path):
    class SavesByHand(fitkit.Callback):
        order = 61  # after the saver's request, before it is written

        def on_epoch_end(self, epoch, logs):
            self.handler.save(tmp_path / "hand.pth")

    class Looks(fitkit.Callback):
        def on_train_batch_begin(self, batch, logs):
            found.append((saver.requested, saver.in_flight))

    run([ModelCheckpoint(tmp_path / "{epoch}.pth"), SavesByHand()], 1)
    state = safe_load.read(tmp_path / "hand.pth")["callback_states"]["ModelCheckpoint"]["state"]
    assert [request["name"] for request in state["asked"]] == ["1.pth"]
    handler = fitkit.NNHandler.load(tmp_path / "hand.pth", model_class=nn.Linear)
    handler.set_loss_fn(lambda outputs, targets: (outputs + 1).square().mean())
    saver, found = ModelCheckpoint(tmp_path / "{epoch}.pth"), []
    fit(handler, [saver, Looks()], 1)
    assert set(found) == {((), ())}


@pytest.mark.parametrize(
    "change",
    [
        {"last_path": "../x.pth"},
        {"preempted_path": "/x.pth"},
        {"best_path": "a/../../x.pth"},
        {"kept": [["../x.pth", None]]},
        {"asked": ({"name": "../x.pth"},)},
        {"writing": ("../x.pth",)},
        {"dropping": ("../x.pth",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_saved_name_outside_the_folder_is_refused(tmp_path, change):
    saver = ModelCheckpoint(tmp_path / "{epoch}.pth")
    state = saver.state_dict()
    saver.load_state_dict(state)
    with pytest.raises(fitkit.CheckpointError, match="outside its folder"):
        saver.load_state_dict({**state, **change})
    assert saver.state_dict() == state
