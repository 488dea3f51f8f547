import pytest

from fitkit.core import errors
from fitkit.core.errors import FitkitError, add_note, did_you_mean, listed


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ConfigurationError, ValueError),
        (errors.DataError, ValueError),
        (errors.MonitorError, ValueError),
        (errors.CheckpointError, RuntimeError),
        (errors.CheckpointNotFoundError, FileNotFoundError),
        (errors.SaveError, OSError),
    ],
)
def test_errors_are_caught_as_ours_and_as_pythons(kind, builtin):
    assert issubclass(kind, FitkitError)
    assert issubclass(kind, builtin)
    assert str(kind("sentence")) == "sentence"


def test_notes_are_added_once_each():
    error = ValueError("x")
    for note in ("a", "b", "a"):
        add_note(error, note)
    assert error.__notes__ == ["a", "b"]


def test_did_you_mean_offers_only_near_misses():
    assert did_you_mean("val_los", ["loss", "val_loss"]) == " Did you mean 'val_loss'?"
    assert did_you_mean("zzz", ["loss"]) == ""
    assert did_you_mean("x", []) == ""


def test_listed():
    assert listed(iter(["b", "a"])) == "'a', 'b'"
    assert listed([]) == "none"
