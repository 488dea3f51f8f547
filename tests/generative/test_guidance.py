"""Classifier-free guidance: the combination of two scores, and how often the model is called."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitkit.generative.guidance import guide_score

X, T = torch.ones(4, 2, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
LABEL, EMPTY = X * 3, X * -1


@pytest.fixture
def calls():
    return []


@pytest.fixture
def score(calls):
    def score(t, x, *conditions):
        calls.append(conditions)
        assert t is T
        return x + sum(conditions)

    return score


@given(scale=st.floats(-10, 10))
def test_the_score_is_linear_in_the_scale(scale):
    def score(t, x, label):
        return t[:, None] * x + label

    guided = guide_score(score, [LABEL], [EMPTY], scale)(T, X)
    expected = (1 - scale) * score(T, X, EMPTY) + scale * score(T, X, LABEL)
    assert torch.allclose(guided, expected, rtol=1e-12, atol=1e-12)


def test_scale_1_calls_the_model_once_with_the_conditions(score, calls):
    assert torch.equal(guide_score(score, [LABEL], [EMPTY], 1.0)(T, X), X + LABEL)
    assert len(calls) == 1
    assert calls[0][0] is LABEL


def test_scale_0_is_the_score_without_conditions(score):
    assert torch.equal(guide_score(score, [LABEL], [EMPTY], 0.0)(T, X), X + EMPTY)


def test_every_condition_reaches_the_model(score, calls):
    guide_score(score, [LABEL, X], [EMPTY, X], 2.0)(T, X)
    assert [len(conditions) for conditions in calls] == [2, 2]
    assert calls[0][0] is EMPTY
    assert calls[1][0] is LABEL


def test_each_call_of_the_score_is_new(score):
    guided = guide_score(score, [LABEL], [EMPTY], 2.0)
    assert torch.equal(guided(T, X) + 1, guided(T, X + 1))
