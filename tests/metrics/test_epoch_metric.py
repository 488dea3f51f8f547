"""A function of all outputs and targets: exact over batches, ranks and restarts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

from fitkit import CheckpointError, ConfigurationError, DataError, EpochMetric, NNHandler
from fitkit.core.tree import map_tensors
from fitkit.metrics.epoch_metric import EpochMeter, merge_epoch_states


def kept(outputs, targets):
    """Returns what it got."""
    kept.got = (outputs, targets)
    return 0.0


def meter(function=kept, transform=None):
    return EpochMeter("m", EpochMetric(function, transform))


def batches_of(sizes):
    numbers = torch.arange(float(sum(sizes)))
    return [(part, part * 10) for part in numbers.split(sizes)]


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=9)


@given(sizes=SIZES, num_ranks=st.integers(1, 4), cut=st.integers(0, 9))
def test_samples_come_in_the_order_of_the_data(sizes, num_ranks, cut):
    """Ranks take turns; saved in between and merged to one, which goes on alone."""
    batches = batches_of(sizes)
    meters = [meter() for _ in range(num_ranks)]
    for index, batch in enumerate(batches[:cut]):
        meters[index % num_ranks].update(*batch, turn=index // num_ranks)
    merged = merge_epoch_states("m", [one.state_dict() for one in meters])
    last = meter()
    last.load_state_dict(merged)
    for index, batch in enumerate(batches[cut:], start=cut):
        last.update(*batch, turn=index)
    assert last.compute() == {"m": 0.0}
    outputs, targets = kept.got
    assert outputs.tolist() == list(range(sum(sizes)))
    assert torch.equal(targets, outputs * 10)


def test_every_rank_computes_it_from_all_samples(on_ranks):
    """One of them has no batch; the value is the same on all."""
    batches = batches_of([2, 3, 1])

    def compute(indices, ranks):
        own = meter(lambda outputs, targets: {"max": outputs.max(), "all": targets})
        for index in indices:
            own.update(*batches[index], turn=index // 2)
        return own.compute(ranks)

    expected = {"m_max": 5.0, **{f"m_all_{n}": 10.0 * n for n in range(6)}}
    assert on_ranks(compute, [[0, 2], [1], []]) == [expected] * 3
    assert on_ranks(compute, [[], []]) == [{}, {}]


def test_nested_outputs_are_joined_part_by_part():
    one = meter()
    for size in (1, 3):
        boxes = [{"boxes": torch.ones(number, 4)} for number in range(size)]
        outputs = {"b": (torch.ones(size, 2), torch.tensor(5.0)), "a": torch.zeros(size)}
        one.update({**outputs, "boxes": boxes}, None, turn=size)
    one.compute()
    outputs, targets = kept.got
    assert targets is None
    assert [part.shape for part in outputs["b"]] == [(4, 2), (2,)]
    assert outputs["a"].shape == (4,)
    assert [len(sample["boxes"]) for sample in outputs["boxes"]] == [0, 0, 1, 2]


def test_a_transform_makes_outputs_smaller():
    one = meter(transform=lambda outputs: outputs.argmax(1))
    one.update(torch.eye(3), torch.arange(3), turn=0)
    assert [leaf["values"].tolist() for leaf in one.state_dict()["leaves"]] == [[0, 1, 2]] * 2


def test_what_is_kept_is_a_copy():
    """Models and loaders may write to their memory again, and a view would keep all of it."""
    outputs = torch.ones(2, 1000)
    one = meter()
    one.update(outputs[:, 0], outputs[:, 1], turn=0)
    outputs.zero_()
    values = [leaf["values"] for leaf in one.state_dict()["leaves"]]
    assert [value.tolist() for value in values] == [[1.0, 1.0]] * 2
    assert all(value.untyped_storage().nbytes() == 8 for value in values)


def test_numpy_functions_get_what_they_can_read(device):
    one = meter(lambda outputs, targets: float((outputs.numpy() - targets.numpy()).sum()))
    for _ in range(2):
        values = torch.ones(3, device=device)
        one.update(values.bfloat16() * 2, values, turn=0)
    assert one.compute() == {"m": 6.0}


def test_batches_before_a_resume_are_on_the_host(device):
    plain, after = meter(), meter()
    one, two = torch.tensor([1.0], device=device), torch.tensor([2.0], device=device)
    plain.update(one, None, turn=0)
    after.load_state_dict(map_tensors(torch.Tensor.cpu, plain.state_dict()))
    after.update(two, None, turn=1)
    after.compute()
    assert kept.got[0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), r"\(batch, 3\).*\(batch, 4\)"),
        (torch.ones(2), (torch.ones(2),), "different forms"),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, "different forms"),
        (None, pack_sequence([torch.ones(2)]), "received a PackedSequence"),
        (None, 3.0, "received a float"),
        (None, {"a": object()}, "received a object"),
    ],
)
def test_what_cannot_be_joined_is_refused_at_its_batch(first, second, message):
    one = meter()
    if first is not None:
        one.update(first, None, turn=0)
    with pytest.raises(DataError, match=rf"metric 'm' .*{message}.* EpochMetric\(function, trans"):
        one.update(second, None, turn=1)


def test_ranks_with_different_forms(on_ranks):
    def compute(outputs, ranks):
        one = meter()
        one.update(outputs, None, turn=0)
        with pytest.raises(DataError, match=r"metric 'm' cannot join .* different forms"):
            one.compute(ranks)

    on_ranks(compute, [torch.ones(2, 3), torch.ones(2, 4)])


@pytest.mark.parametrize("change", [{"turns": [0]}, {"leaves": [{"sizes": [1, 2], "values": [1]}]}])
def test_an_altered_state_is_refused(change):
    one = meter()
    for turn in range(2):
        one.update(torch.ones(2), None, turn=turn)
    with pytest.raises(CheckpointError, match=r"samples of metric 'm' .* are invalid"):
        one.load_state_dict({**one.state_dict(), **change})


@pytest.mark.parametrize("arguments", [(3,), (None,), (len, 3)])
def test_its_arguments_are_functions(arguments):
    with pytest.raises(ConfigurationError, match=r"EpochMetric: \w+ must be a function, received"):
        EpochMetric(*arguments)


def test_the_error_of_a_function_names_the_metric():
    handler = NNHandler(torch.nn.Identity(), device="cpu")
    handler.set_loss_fn(torch.nn.MSELoss())
    handler.add_metric("score", EpochMetric(lambda outputs, targets: 1 / 0))
    with pytest.raises(ZeroDivisionError) as caught:
        handler.evaluate((torch.ones(4, 1), torch.ones(4, 1)))
    assert "raised by metric 'score'" in caught.value.__notes__


def test_scikit_learn(monkeypatch):
    for name in ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"):  # its import sets them
        monkeypatch.setenv(name, "TRUE")
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = torch.rand(50), torch.arange(50) % 2
    handler = NNHandler(torch.nn.Identity(), device="cpu")
    handler.set_loss_fn(lambda outputs, targets: outputs.mean())
    area = sklearn_metrics.roc_auc_score
    handler.add_metric("area", EpochMetric(lambda outputs, targets: area(targets, outputs)))
    values = handler.evaluate((scores, labels), batch_size=7)
    assert values["area"] == area(labels.numpy(), scores.numpy())
    assert not math.isnan(values["area"])
