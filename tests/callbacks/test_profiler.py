import gc
import gzip
import json
import weakref

import pytest
import torch
from torch import nn

import fitkit
from fitkit.core.errors import ConfigurationError

BATCHES = 6


def make():
    handler = fitkit.NNHandler(nn.Linear, in_features=3, out_features=2, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.set_train_loader((torch.randn(24, 3), torch.zeros(24, dtype=torch.long)), batch_size=4)
    return handler


def fit(*callbacks, handler=None, **options):
    (handler or make()).fit(callbacks=callbacks, progress_bar=False, **options)


def events(path):
    content = path.read_bytes()
    trace = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    return [event.get("name", "") for event in trace["traceEvents"]]


def num_linears(path):
    return events(path).count("aten::linear")


@pytest.mark.parametrize("name", ["trace.json", "run/trace.json.gz"])
def test_the_trace_holds_the_active_batches_only(tmp_path, name):
    fit(profiler := fitkit.Profiler(tmp_path / name, wait=2, warmup=1, active=2, rows=99))
    assert num_linears(tmp_path / name) == 2
    assert "aten::linear" in profiler.table
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [(tmp_path / name).name]


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [
        ({"wait": 0, "warmup": 0, "active": 1}, 1, 1),
        ({"wait": 0, "warmup": 0, "active": 100}, 2, BATCHES),  # the rest of the epoch
        ({"wait": 4, "warmup": 1, "active": 3}, 2, 1),
        ({"wait": 5, "warmup": 1, "active": 3}, 2, 3),  # the epoch ends before the first
        ({"wait": 4, "warmup": 4, "active": 3}, 2, 3),  # and within warming up
        ({"wait": 1, "warmup": 1, "active": 2, "epoch": 1}, 2, 2),
    ],
)
@pytest.mark.parametrize("validation", [None, torch.randn(400, 3)])
def test_any_window(tmp_path, options, epochs, expected, validation):
    if validation is not None:
        validation = (validation, torch.zeros(400, dtype=torch.long))
    path = tmp_path / "trace.json"
    fit(fitkit.Profiler(path, **options), epochs=epochs, validation_data=validation)
    assert num_linears(path) == expected


@pytest.mark.parametrize("options", [{"epoch": 1}, {"wait": 100}, {"wait": 5, "warmup": 1}])
def test_a_window_that_is_not_reached_writes_nothing(tmp_path, options):
    fit(profiler := fitkit.Profiler(tmp_path / "trace.json", **options))
    assert not list(tmp_path.iterdir())
    assert profiler.table == ""


def test_nothing_is_held_or_done_afterwards(tmp_path, monkeypatch):
    made = []

    class Watched(torch.profiler.profile):
        def __init__(self, **options):
            super().__init__(**options)
            made.append(weakref.ref(self))

        def step(self):
            steps.append(1)
            super().step()

    steps = []
    monkeypatch.setattr(torch.profiler, "profile", Watched)
    fit(fitkit.Profiler(tmp_path / "trace.json", wait=1, warmup=1, active=2), epochs=3)
    gc.collect()
    assert len(made) == 1
    assert made[0]() is None
    assert len(steps) == 2


@pytest.mark.parametrize(("cut", "expected"), [(1, 3), (3, 3), (4, 2), (5, 1), (6, None)])
def test_a_resume_goes_on_in_the_count(tmp_path, cut, expected):
    def stop(batch, logs):
        if batch + 1 == cut:
            raise RuntimeError("killed")

    def callbacks(name):
        saver = fitkit.ModelCheckpoint(tmp_path / "run" / "{global_step}.pth", save_freq=1)
        return [fitkit.Profiler(tmp_path / name, wait=1, warmup=1, active=3), saver]

    with pytest.raises(RuntimeError):
        fit(*callbacks("first.json"), fitkit.LambdaCallback(on_train_batch_end=stop), epochs=2)
    fit(*callbacks("second.json"), epochs=2, resume=tmp_path / "run")
    # a checkpoint is written once all have heard the event, so the last one is of the batch before
    assert [*tmp_path.glob("second.json")] == (
        [] if expected is None else [tmp_path / "second.json"]
    )
    if expected is not None:
        assert num_linears(tmp_path / "second.json") == expected


def test_an_error_inside_the_window_writes_what_there_is(tmp_path):
    def fail(batch, logs):
        if batch == 3:
            raise RuntimeError

    path = tmp_path / "trace.json"
    callbacks = [fitkit.Profiler(path, active=4), fitkit.LambdaCallback(on_train_batch_end=fail)]
    with pytest.raises(RuntimeError):
        fit(*callbacks)
    assert num_linears(path) == 2
    fit(fitkit.Profiler(path))  # and the next one can begin
    assert num_linears(path) == 3


def test_each_fit_records(tmp_path):
    handler, profiler = make(), fitkit.Profiler(tmp_path / "trace.json", active=2)
    for _ in range(2):
        fit(profiler, handler=handler)
        assert num_linears(tmp_path / "trace.json") == 2
        (tmp_path / "trace.json").unlink()


def test_the_table_is_logged_on_request(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "trace.json"
    fit(fitkit.Profiler(path, verbose=1, rows=3, record_shapes=True, profile_memory=True))
    assert f"the trace is in {path}" in caplog.text
    assert "Self CPU" in caplog.text
    fit(profiler := fitkit.Profiler(path, rows=0))
    assert profiler.table == ""


@pytest.mark.parametrize(
    "wrong",
    [{"wait": -1}, {"warmup": True}, {"active": 0}, {"epoch": 0.5}, {"rows": None}, {"path": "a"}],
)
def test_bad_arguments(wrong):
    with pytest.raises(ConfigurationError, match="received"):
        fitkit.Profiler(**wrong)
