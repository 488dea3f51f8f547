"""Files of W&B, written by W&B itself."""

import pytest

from fitkit.callbacks.support.wandb_file import WandbFile

NUM_STEPS = 1500  # several blocks of the file


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    import wandb

    folder = tmp_path_factory.mktemp("written")
    with wandb.init(mode="offline", dir=str(folder)) as run:
        for step in range(1, NUM_STEPS + 1):
            run.log({"batch/loss": 1 / step, "text": "no number"}, step=step, commit=True)
        path = run.settings.sync_file
    wandb.teardown()
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.wandb"


def test_every_step_with_its_numbers(content, path):
    path.write_bytes(content)
    file = WandbFile(path)
    found = file.read_steps()
    assert len(content) > 2 * 32768
    assert list(found) == list(range(1, NUM_STEPS + 1))
    assert found[7]["batch/loss"] == 1 / 7
    assert "text" not in found[7]
    assert (file.last_step, file.is_complete) == (NUM_STEPS, True)


def test_a_file_that_grows_is_read_on_from_where_it_was(content, path):
    file, found, ends = WandbFile(path), {}, []
    assert file.read_steps() == {}  # there is no file yet
    for end in range(0, len(content) + 4999, 4999):  # in the middle of records, and of blocks
        path.write_bytes(content[:end])
        found.update(file.read_steps())
        ends.append(file.last_step)
    assert list(found) == list(range(1, NUM_STEPS + 1))
    assert ends == sorted(ends)
    assert len(set(ends)) > 20
    assert file.is_complete


@pytest.mark.parametrize("end", [0, 3, 7, 13, 500, 32768, 32770, 40000])
def test_a_torn_end_is_left_out(content, path, end):
    path.write_bytes(content[:end])
    file = WandbFile(path)
    assert list(file.read_steps()) == list(range(1, file.last_step + 1))
    assert not file.is_complete
