"""Two ranks that begin differently: one error in seconds, or a run that uses every sample once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytestmark = [pytest.mark.ddp, pytest.mark.slow, pytest.mark.no_cover]

SCRIPT = Path(__file__).with_name("compare_ranks_run.py")
SECONDS = 5.0  # until every rank is over

DIFFERENT = {
    "epochs": "epochs is 1 on rank 0, 2 on rank 1",
    "batch size": "batch size is 8 on rank 0, 10 on rank 1",
    "max_steps": "max steps is 3 on rank 0, 4 on rank 1",
    "accumulation": "gradient accumulation steps is 1 on rank 0, 2 on rank 1",
    "steps per epoch": "steps per epoch is None on rank 0, 5 on rank 1",
    "clipping": "gradient clipping norm is None on rank 0, 1.0 on rank 1",
    "drop_last": "drop_last is False on rank 0, True on rank 1",
    "length": "the training data is 32 samples on rank 0, 31 samples on rank 1 (pass split='rank'",
    "list": "the training data is 2 batches on rank 0, 3 batches on rank 1",
    "validation": "the data to validate on is none on rank 0, 'validation' on rank 1",
    "validation length": "the validation data is 20 samples on rank 0, 21 samples on rank 1",
    "validation sets": "'validation a' on rank 0, 'validation a', 'validation b' on rank 1",
    "lr": "lr of parameter group 0 is 0.1 on rank 0, 0.2 on rank 1",
    "momentum": "momentum of parameter group 0 is 0.0 on rank 0, 0.9 on rank 1",
    "scheduler arguments": "StepLR(step_size=2) on rank 0, StepLR(step_size=3) on rank 1",
    "scheduler": "scheduler is None on rank 0, StepLR(step_size=1) on rank 1",
    "model": "is weight (1, 1) float32 on rank 0, weight (2, 1) float32 on rank 1",
    "saver": "ModelCheckpoint is on rank 0 only (attach callbacks that save",
    "saver arguments": "save_freq of ModelCheckpoint is 2 on rank 0, 3 on rank 1",
    "number of savers": "ModelCheckpoint is attached 2 times on rank 0, 1 times on rank 1",
    "EMA": "ema decay is 0.0 on rank 0, 0.9 on rank 1",
    "early stopping": "EarlyStopping is on rank 1 only",
    "resume": "resume is none on rank 0, a folder on rank 1",
    "split": "the training data is passed with split='rank' on some ranks only",
    "generator": "the generator of the loader of the training data is in another state",
    "overlapping subsets": "the training data has other indices on each rank, which overlap",
    "evaluate": "the validation data is 20 samples on rank 0, 21 samples on rank 1",
}
# samples that were trained, and the sum of their numbers
ALL, HALF = {"samples": 32, "sum": sum(range(32))}, {"samples": 20, "sum": sum(range(20))}
WORKING = {
    "paths": ALL,
    "observers on rank 0": ALL,
    "a progress bar on rank 0": ALL,
    "a callback on rank 0": ALL,
    "a callback on rank 1": ALL,
    "order of sets": ALL,
    "DistributedSampler": ALL,
    "BatchSampler": ALL,
    "a sampler of another library": ALL,
    "its batch sampler": ALL,
    "SubsetRandomSampler": ALL,
    "Subset": ALL,
    "DataLoader of Subset": ALL,
    "subsets of other lengths": ALL,
    "split_dataset_by_node": HALF,
    "split_by_node": HALF,
    "stream": HALF,
    "longer stream": {"samples": 2 * 26, "sum": sum(range(20)) + sum(range(20, 32, 2))},
    "loader of a stream": {"samples": 26, "sum": sum(range(20)) + sum(range(20, 32, 2))},
    "arrays": {"samples": 27, "sum": sum(range(0, 32, 2)) + sum(range(1, 23, 2))},
    "list": {"samples": 4 * (3 + 5), "sum": 6.0 * (3 + 5)},
    "validation": {"samples": 27, "sum": sum(range(0, 32, 2)) + sum(range(1, 23, 2))},
}
UNDECLARED = {
    "stream": HALF,
    "longer stream": WORKING["longer stream"],
    "loader": WORKING["longer stream"],
    "list": ALL,
    "arrays": ALL,
    "names": ALL,
    "loader of names": ALL,
}


@pytest.fixture(scope="module")
def folder(shared_launcher, tmp_path_factory):
    out = tmp_path_factory.mktemp("rank_plan")
    shared_launcher.run_script(SCRIPT, out)
    return out


@pytest.fixture(scope="module")
def ranks(folder):
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_difference_is_one_error_on_all_ranks(ranks, name):
    first, second = (rank[f"differs: {name}"] for rank in ranks)
    assert first["type"] == second["type"] == "ConfigurationError"
    assert first["text"] == second["text"]
    assert DIFFERENT[name] in first["text"]
    assert max(first["seconds"], second["seconds"]) < SECONDS


@pytest.mark.parametrize("name", WORKING)
def test_every_sample_is_trained_once_and_other_differences_are_none(ranks, name):
    for rank in ranks:
        case = rank[f"works: {name}"]
        assert case.get("text") is None
        assert case["found"] == WORKING[name]


def test_a_rank_without_data_is_named(ranks):
    first, second = (rank["differs: nothing for a rank"] for rank in ranks)
    assert first["text"] == second["text"]
    assert "the part of rank 1 has no batch" in first["text"]
    for rank in ranks:  # known when the stream has begun
        assert "the part of rank 1 has no batch" in rank["no stream for a rank"]["text"]


@pytest.mark.parametrize("name", UNDECLARED)
def test_parts_that_nobody_declares_are_recognized_and_named(ranks, name):
    first, second = (rank[f"works: undeclared {name}"] for rank in ranks)
    assert first["found"] == second["found"] == UNDECLARED[name]
    (warning,) = first["warnings"]
    assert "the training data differs between ranks, so each rank takes all of its own" in warning
    assert second["warnings"] == []


def test_parts_that_nobody_declares_and_that_are_read_only_once(ranks):
    first, second = (rank["works: undeclared generator"] for rank in ranks)
    assert first["text"] == second["text"]
    assert "the training data differs between ranks and can be read only once" in first["text"]


def test_parts_to_evaluate_that_nobody_declares(ranks):
    for rank in ranks:
        for name in ("undeclared", "declared"):
            assert rank[f"works: {name} evaluation"]["found"] == {"sum": 340.0}
    (warning,) = ranks[0]["works: undeclared evaluation"]["warnings"]
    assert "the data to validate on differs between ranks" in warning


def test_what_only_another_rank_logs_is_named_in_a_warning(ranks):
    (warning,) = ranks[0]["works: a callback on rank 1"]["warnings"]
    assert "logs 'mine' on rank 1 and not on rank 0" in warning


def test_the_seed_is_that_of_rank_0(ranks):
    first, second = (rank["works: with other seeds"]["found"] for rank in ranks)
    assert first == second == [ALL, 5, 5]
    first, second = (rank["works: without a seed"]["found"] for rank in ranks)
    assert first == second


def test_the_steps_are_those_of_the_batches_of_all_ranks(ranks):
    """A rank that has run out adds nothing to the gradient of the others."""
    model = nn.Linear(1, 1)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    first = torch.arange(0.0, 32.0, 2).split(4)
    second = torch.arange(1.0, 20.0, 2).split(4)
    for number, of_first in enumerate(first):
        batch = torch.cat([of_first, *second[number : number + 1]])[:, None]
        (model(batch).square().mean() * 1e-6).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e3 * parameter.grad
                parameter.grad = None
    expected = [p.item() for p in model.parameters()]
    for rank in ranks:
        assert rank["works: weights"]["found"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["arrays", "loader", "stream", "undeclared stream"])
def test_an_exact_resume_of_parts_of_other_lengths(ranks, kind):
    first, second = (rank[f"resumed {kind}"]["found"] for rank in ranks)
    assert first == second
    assert len(first) == {"arrays": 13, "loader": 16, "stream": 13, "undeclared stream": 13}[kind]
    assert all(weights == first[0] for weights in first)


def test_another_number_of_ranks_is_refused_inside_an_epoch(folder, shared_launcher):
    command = [sys.executable, str(SCRIPT), str(folder), "resumed arrays/2.pth"]
    ended = shared_launcher.run_command(folder / "alone", command)
    assert ended.code == 1
    assert "CheckpointError: the epoch was interrupted in the middle of data" in ended.output
    assert "2 parts then, 1 now. Resume with as many ranks" in ended.output
