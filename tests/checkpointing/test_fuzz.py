"""Thousands of spoiled files: each ends in one of fitkit's errors, or loads, and nothing is hurt.

Bytes are cut and flipped; the structure of real checkpoints is spoiled and written with valid
checksums. Nothing here may crash, hang, run code, leave a handler half changed, or touch a file
that is not the run's own.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import random
import signal
import subprocess
import sys
import warnings
from collections import Counter, OrderedDict
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import fitkit
from fitkit import FitkitError, ModelCheckpoint, NNHandler
from fitkit.checkpointing.catalog.metadata import read_metadata
from fitkit.checkpointing.storage import atomic_write, safe_load
from fitkit.testing import differences

pytestmark = pytest.mark.no_cover

DATA = (torch.linspace(-1, 1, 36).reshape(12, 3), torch.linspace(0, 1, 12).reshape(12, 1))
SECONDS = 5  # for one file; a hang becomes an error


@pytest.fixture(scope="module", autouse=True)
def _no_flushing():
    """Nothing here is about losing power, and there are thousands of files."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(os, "fsync", lambda descriptor: None)
        yield


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, 1)

    def forward(self, inputs):
        return self.last(torch.relu(self.norm(self.first(inputs))))


class Seen(fitkit.Callback):
    state_fields = ("seen",)

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, batch, logs):
        self.seen = [*self.seen, batch]


def make(folder, seed=1):
    handler = NNHandler(Net, model_type="regression", width=4, seed=seed)
    handler.set_optimizer(torch.optim.AdamW, lr=0.01)
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, interval="step", step_size=2, gamma=0.5)
    handler.set_loss_fn(nn.MSELoss())
    handler.add_metric("mae", lambda outputs, targets: (outputs - targets).abs().mean())
    handler.auto_save(1, folder / "auto", "{epoch}", overwrite=True)
    handler.add_callback(ModelCheckpoint(folder / "{global_step}.pth", save_freq=5, max_to_keep=2))
    handler.add_callback(
        ModelCheckpoint(folder / "best.pth", "loss", save_best_only=True, max_to_keep=1)
    )
    handler.add_callback(fitkit.EarlyStopping("loss", patience=5, restore_best_weights=True))
    handler.add_callback(fitkit.ReduceLROnPlateau("loss", patience=1))
    handler.add_callback(fitkit.EMA(0.8))
    handler.add_callback(Seen())
    return handler


def fit(handler, epochs=2, **options):
    """Four batches an epoch, windows of three."""
    options = {"batch_size": 3, "progress_bar": False, **options}
    return handler.fit(DATA, epochs=epochs, gradient_accumulation_steps=3, **options)


def contents(folder):
    """Every file below a folder, by its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The state of a run in the middle of its second epoch, and of an accumulation window."""
    folder = tmp_path_factory.mktemp("original")
    handler = make(folder)
    found = []

    class Keeps(fitkit.Callback):
        def on_checkpoint_saved(self, path, logs):
            if self.handler.state.global_step == 5 and not found:
                found.append(safe_load.read(Path(path)))

    fit(handler, callbacks=[Keeps()])
    (state,) = found
    assert state["progress"]["window"]
    assert state["ema_state_dict"]
    return state


class HangError(BaseException):
    """Not an ``Exception``, which the library would tell as an error of the checkpoint."""


@contextlib.contextmanager
def limited():
    """A hang is an error, and warnings, of which there may be many, are none."""

    def strike(number, frame):
        if frame is not None and frame.f_code.co_name == "gc_callback":  # there it would be lost
            signal.alarm(1)
            return
        raise HangError(f"it takes more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, strike)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(use):
    """How it ended: what it returned, or which of our errors it raised."""
    try:
        with limited():
            return use()
    except FitkitError as error:
        return error


# ---- bytes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.mark.parametrize("count", [400, pytest.param(2200, marks=pytest.mark.slow)])
def test_truncated_and_flipped_files_are_refused_or_are_what_they_were(original, scratch, count):
    path = scratch / "bytes.pth"
    atomic_write.write(original, path)
    data = path.read_bytes()
    resumed = make(scratch / "resumed")
    before = resumed.get_state_dict()
    rng = random.Random(0)
    read, refused = 0, Counter()
    for number in range(count):
        spoiled = bytearray(data)
        if number % 3 == 0:
            del spoiled[rng.randrange(len(spoiled)) :]
        else:
            for _ in range(rng.choice([1, 1, 2, 8])):
                spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
        if number % 7 == 0:
            cut = rng.randrange(len(spoiled))
            spoiled[cut : cut + rng.randrange(200)] = rng.randbytes(rng.randrange(200))
        path.write_bytes(spoiled)
        if number % 6:
            found = outcome(lambda: NNHandler.load(path))
        else:
            found = outcome(partial(fit, resumed, epochs=1, resume=path))
        if isinstance(found, FitkitError):
            assert isinstance(found, fitkit.CheckpointError), found
            refused[type(found).__name__] += 1
            continue
        read += 1  # bytes that mean nothing: padding, or a time
        assert list(differences(original, safe_load.read(path))) == []
        resumed = make(scratch / "resumed")
    assert list(differences(before, resumed.get_state_dict())) == []
    assert refused["DamagedCheckpointError"] > 0.7 * count
    assert read < 0.1 * count


# ---- structure ----------------------------------------------------------------------------------


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def with_metadata(metadata):
    value = OrderedDict(a=1)
    value._metadata = metadata
    return value


JUNK = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 1.5, -0.0, 1e308,
    math.nan, math.inf, "", "x", "../x", "min", "MT19937", b"x", b"", [], {}, (), set(), [None],
    [[]], [1, 2, 3], ["a", "b"], {"a": 1}, {None: None}, {1: {2: 3}}, {"name": 1}, {"state": {}},
    {"__fitkit__": "x"}, {"__fitkit__": "ndarray"}, {"__fitkit__": ["deque"]},
    {"__fitkit__": "deque", "items": [1], "maxlen": 0}, {"__fitkit__": "path", "path": "/etc"},
    {"__fitkit__": "range", "parts": [0, 10**18, 1]}, {"__fitkit__": "class", "name": "os:system"},
    {"__fitkit__": "ndarray", "data": torch.ones(2), "dtype": "float32"},
    "os:system", "torch.nn.modules.linear:Linear", torch.ones(2), torch.zeros(0),
    torch.tensor(7), torch.tensor(math.nan), torch.ones(4, 3), torch.ones(2, dtype=torch.int64),
    torch.ones(3, dtype=torch.complex64), torch.zeros(5000, dtype=torch.uint8),
    torch.ones(2, dtype=torch.bfloat16), torch.ones(1).expand(10**6), torch.eye(2).to_sparse(),
    torch.empty(3, device="meta"), torch.float16, torch.device("cuda:7"), torch.Size([2]),
    nested(50), nested(300), with_metadata(3), with_metadata({"": {"version": "x"}}),
    OrderedDict(a=torch.ones(1)),
]  # fmt: skip


def paths_of(value, path=()):
    """Where something can be spoiled: every key, and the first items of lists."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from paths_of(value[key], (*path, key))
    elif isinstance(value, (list, tuple)):
        for number in range(min(len(value), 2)):
            yield from paths_of(value[number], (*path, number))


def mutable(value):
    """A copy whose containers can be changed; tensors are the same."""
    if isinstance(value, dict):
        found = copy.copy(value)
        for key in value:
            found[key] = mutable(value[key])
        return found
    if isinstance(value, (list, tuple)):
        return [mutable(item) for item in value]
    return value


def at(state, path):
    for step in path:
        state = state[step]
    return state


def spoil(state, rng, paths):
    """One to three changes: another value, a missing key, a key too many, or two values swapped."""
    state, message = mutable(state), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path, other = rng.choice(paths), rng.choice(paths)
        how = rng.choice(["value"] * 5 + ["missing", "more", "swapped", "shape", "value"])
        # an earlier change took it away, or put something there that cannot be changed
        with contextlib.suppress(KeyError, IndexError, TypeError, ValueError, RuntimeError):
            holder = at(state, path[:-1])
            old = holder[path[-1]]
            message.append((how, path))
            if how == "missing":
                del holder[path[-1]]
            elif how == "more":
                at(state, path)["more"] = rng.choice(JUNK)
            elif how == "swapped":
                holder[path[-1]] = at(state, other)
            elif how == "shape" and isinstance(old, torch.Tensor):
                holder[path[-1]] = rng.choice([old.reshape(-1)[:1], old[None], old.double()])
            else:
                holder[path[-1]] = rng.choice(JUNK)
                message[-1] = (*message[-1], holder[path[-1]])
    return state, message


def write(state, path):
    """With valid checksums, and without the checks that fitkit's own writer makes."""
    torch.save(state, path)


def shown(message, error):
    text = f"{message}: {type(error).__name__}: {error}".replace("\n", " ")
    return text if len(text) < 300 else f"{text[:150]} ... {text[-150:]}"


SHARES = [0, pytest.param(1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("share", SHARES)
def test_spoiled_structures_loaded(original, scratch, share):
    rng, paths = random.Random(10 + share), list(paths_of(original))
    path = scratch / "load.pth"
    wrong, loaded = [], 0
    for number in range(250):
        state, message = spoil(original, rng, paths)
        write(state, path)
        use = (
            (lambda: NNHandler.load(path)),
            (lambda: NNHandler.initialize_from_checkpoint(path, Net, width=4)),
            (lambda: NNHandler.load(path, strict_load=False, skip_callbacks=True)),
            (lambda: read_metadata(path)),
        )[(0, 0, 0, 1, 2, 3)[number % 6]]
        try:
            found = outcome(use)
        except BaseException as error:  # noqa: BLE001  whatever it is
            wrong.append(shown(message, error))
            continue
        loaded += not isinstance(found, FitkitError)
    assert not wrong, f"{len(wrong)} of 250:\n" + "\n".join(wrong[:20])
    assert 20 < loaded < 200


class Began(fitkit.Callback):
    """Whether a run got as far as its first hook."""

    order = -1000
    began = False

    def on_train_begin(self, logs):
        self.began = True


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.slow) for n in (0, 1)])
def resumed(request, original, tmp_path_factory):
    """What came of 150 spoiled files: sentences about what went wrong, by when it did."""
    rng, paths = random.Random(20 + request.param), list(paths_of(original))
    root = tmp_path_factory.mktemp("resumed")
    folder = put_sentinels(root)
    path, outside = root / "resume.pth", contents(root)
    wrong = {"preparing": [], "training": [], "changed": [], "hurt": []}
    went_on, handler = 0, make(folder)
    before = handler.get_state_dict()
    for _ in range(150):
        state, message = spoil(original, rng, paths)
        write(state, path)
        watch = Began()
        try:
            outcome(partial(fit, handler, resume=path, callbacks=[watch]))
        except BaseException as error:  # noqa: BLE001  whatever it is
            wrong["training" if watch.began else "preparing"].append(shown(message, error))
        if watch.began:
            went_on += 1
            handler = make(folder)
        else:
            changed = list(differences(before, handler.get_state_dict()))
            if changed:
                wrong["changed"].append(f"{message}: {changed[0][0]}")
                handler = make(folder)
        now = contents(root)
        for one in [one for one, data in outside.items() if now.get(one) != data]:
            wrong["hurt"].append(f"{message}: {one}")
            one.parent.mkdir(parents=True, exist_ok=True)
            one.write_bytes(outside[one])
    assert 20 < went_on < 145
    return wrong


def test_spoiled_structures_resumed_are_refused_by_our_errors(resumed):
    assert not resumed["preparing"], "\n".join(resumed["preparing"])


def test_spoiled_structures_resumed_are_refused_before_training_begins(resumed):
    assert not resumed["training"], "\n".join(resumed["training"])


def test_a_handler_that_refused_a_spoiled_structure_is_as_it_was(resumed):
    assert not resumed["changed"], "\n".join(resumed["changed"])


def test_no_spoiled_structure_hurts_files_of_others(resumed):
    assert not resumed["hurt"], "\n".join(resumed["hurt"])


# ---- memory of the process ----------------------------------------------------------------------

CRASHES = """
import sys, warnings
import torch
from torch import nn
import fitkit
warnings.simplefilter("ignore")
name, path = sys.argv[1:]


def make():
    handler = fitkit.NNHandler(nn.Linear, in_features=300, out_features=300, seed=0)
    options = {"momentum": 0.9} if name == "SGD" else {}
    handler.set_optimizer(getattr(torch.optim, name), lr=0.1, **options)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def fit(handler, **options):
    return handler.fit((torch.ones(4, 300), torch.ones(4, 300)), progress_bar=False, **options)


handler = make()
fit(handler)
state = handler.get_state_dict()
for moments in state["optimizer_state_dict"]["state"].values():
    for key, value in moments.items():
        if isinstance(value, torch.Tensor) and value.numel() > 1:
            moments[key] = torch.zeros(1)
for group in state["optimizer_state_dict"]["param_groups"]:
    group.update(fused=True, foreach=False)
torch.save(state, path)
for use in (lambda: fit(make(), epochs=3, resume=path),
            lambda: fit(fitkit.NNHandler.load(path))):
    try:
        use()
        print("went on")
    except fitkit.CheckpointError:
        print("refused")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_moments_of_another_shape_do_not_corrupt_memory(tmp_path, name):
    found = subprocess.run(
        [sys.executable, "-c", CRASHES, name, str(tmp_path / "a.pth")],
        capture_output=True,
        text=True,
        timeout=60,  # a damaged heap may also hang
    )
    assert found.returncode == 0, f"ended with {found.returncode}: {found.stderr[-500:]}"
    assert found.stdout.split() == ["refused", "refused"]


# ---- names of files -----------------------------------------------------------------------------

NAMES = [
    "../x", "../../x", "sub/../../x", "/etc/passwd", "/tmp/x", "a\0b", "C:\\x", "C:/x", "..", ".",
    "", "sub\\..\\..\\x", "~/x", "x", "notes.txt", "sub/x", "sub/notes.txt", "mine.pth",
    "sub", "a" * 300, "x/y", "notes.txt/", "./notes.txt", "\n", " ", None, 7, 1.5, True, b"x",
    ["x"], {"a": 1}, ("x", "y"), ["notes.txt", "x"],
]  # fmt: skip

FIELDS = {
    "kept": lambda name: [[name, 0.0]],
    "kept twice": lambda name: [[name, None], ["5.pth", None]],
    "dropping": lambda name: (name,),
    "writing": lambda name: (name,),
    "asked": lambda name: (
        {"name": name, "score": None, "rank": None, "is_lasting": False, "preempted": False},
    ),
    "asked for good": lambda name: (
        {"name": name, "score": 1.0, "rank": 1.0, "is_lasting": True, "preempted": True},
    ),
    "last_path": lambda name: name,
    "preempted_path": lambda name: name,
    "best_path": lambda name: name,
}


def put_sentinels(root):
    """A folder for the run, with files that are nobody's business in it, beside and above it."""
    folder = root / "above" / "run"
    for place in (root, root / "above", folder, folder / "auto", folder / "sub"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "x").write_text(f"sentinel of {place}")
        (place / "notes.txt").write_text("notes")
        if place in (root, root / "above"):
            atomic_write.write({"a": 1}, place / "mine.pth")
    return folder


FEW_FIELDS = {"kept", "asked", "last_path"}


@pytest.mark.parametrize(
    "field",
    [one if one in FEW_FIELDS else pytest.param(one, marks=pytest.mark.slow) for one in FIELDS],
)
def test_hostile_names_of_files_hurt_nobody(original, tmp_path, field):
    folder, path = put_sentinels(tmp_path), tmp_path / "hostile.pth"
    outside = contents(tmp_path)
    wrong = []
    key = field.split(" ", maxsplit=1)[0]
    savers = ["ModelCheckpoint", "ModelCheckpoint_2"] + ["AutoSaver"] * (key != "best_path")
    for number, name in enumerate(NAMES):
        saver = savers[number % len(savers)]
        state = mutable(original)
        state["callback_states"][saver]["state"][key] = FIELDS[field](name)
        write(state, path)
        handler = make(folder)
        try:
            outcome(partial(fit, handler, resume=path))
        except BaseException as error:  # noqa: BLE001  whatever it is
            wrong.append(shown((saver, name), error))
        now = contents(tmp_path)
        for one in [one for one, data in outside.items() if now.get(one) != data]:
            wrong.append(f"{saver} {name!r}: hurt {one}")
            one.write_bytes(outside[one])
    assert not wrong, "\n".join(wrong)
