import pytest

from fitkit.core import errors
from fitkit.core.errors import FitkitError, add_note, always_after, did_you_mean, listed


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


def test_all_steps_are_done_and_the_first_error_is_raised():
    done = []

    def fail():
        done.append("fail")
        raise OSError("later")

    first = ValueError("first")
    with pytest.raises(ValueError, match="first") as caught:  # noqa: SIM117
        with always_after(fail, lambda: done.append("end")):
            raise first
    assert caught.value is first
    assert first.__notes__ == ["then OSError: later"]
    with pytest.raises(OSError, match="later"), always_after(fail, lambda: done.append("end")):
        pass
    with always_after(lambda: done.append("only")):
        done.append("body")
    assert done == ["fail", "end", "fail", "end", "body", "only"]
