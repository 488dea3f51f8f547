"""A run goes on where it was, with as many processes as before or with others."""

from __future__ import annotations

import shutil

import pytest

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

CHANGED = ("drawn", "logs", "steps")  # what hooks of each process draw; what those before saw
# Two epochs of four batches, and three batches of validation after each.
PLACES = ("001", "002", "003", "004", "004_0", "004_1", "004_2")
PLACES += ("005", "006", "007", "008", "008_0", "008_1", "008_2")
# The changed number of processes: in a window and between, at an epoch's last batch, in validation.
SOME = ("002", "003", "004", "004_1", "004_2", "006")
# In the first validation set, at its end, and in the second.
IN_SETS = ("004_1", "004_2", "004_0few")
# The statistics of batch normalisation are those of each process; the main one's count.
OWN_STATISTICS = ("1.running_mean", "1.running_var")


def positions(folder):
    """The files of a run, in the order in which they were written."""
    return sorted((folder / "steps").glob("*.pth"))


def resumes(cases, source, out, name, places):
    """A case for each of these files of a run; each begins with the whole log file."""
    found = {}
    for number, path in enumerate(positions(source)):
        if path.stem not in places:
            continue
        case = f"{name}_from_{path.stem}"
        (out / case).mkdir(parents=True)
        shutil.copy(source / "log.csv", out / case)
        # the number of workers may change as well
        workers = [] if name == "noisy" else ["--workers", str(2 * (number % 3 == 0))]
        found[case] = [*cases.saved[name], "--resume-from", str(path), *workers]
    return found


@pytest.fixture(scope="module")
def again(shared_launcher, tmp_path_factory, cases, one, two, places):
    """Two processes go on from each file of two, and of one."""
    out = tmp_path_factory.mktemp("again")
    wanted = {}
    for name in ("exact", "noisy"):
        wanted |= resumes(cases, two / name, out, name, places)
    (out / "of_one").mkdir()
    of_one = resumes(cases, one / "plain", out / "of_one", "plain", places & set(SOME))
    wanted |= {f"of_one/{name}": how for name, how in of_one.items()}
    ended = two / "early" / "auto" / "auto.pth"
    wanted |= resumes(cases, two / "sets", out, "sets", IN_SETS)
    wanted["after_an_early_stop"] = [*cases.early, "--resume-from", str(ended)]
    by_hand = two / "interrupted" / "after.pth"
    wanted["after_an_interrupt"] = [*cases.windows, "--resume-from", str(by_hand)]
    return shared_launcher.run_cases(out, wanted, processes=2)


def resumed_with(processes, places, shared_launcher, tmp_path_factory, cases, two):
    out = tmp_path_factory.mktemp(f"as_{processes}")
    wanted = resumes(cases, two / "plain", out, "plain", places)
    return shared_launcher.run_cases(out, wanted, processes=processes)


@pytest.fixture(scope="module")
def as_one(shared_launcher, tmp_path_factory, cases, two, places):
    """One process goes on from each file of two."""
    return resumed_with(1, places, shared_launcher, tmp_path_factory, cases, two)


@pytest.fixture(scope="module")
def as_three(shared_launcher, tmp_path_factory, cases, two, places):
    """Three processes go on from each file of two."""
    some = places & set(SOME)
    return resumed_with(3, some, shared_launcher, tmp_path_factory, cases, two)


def without_own_statistics(found):
    """What a process knew, but for statistics that are its own."""
    for name in ("weights", "averaged"):
        kept = {key: value for key, value in found[name].items() if key not in OWN_STATISTICS}
        found = {**found, name: kept}
    return found


def test_there_is_a_file_at_each_place(two):
    for name in ("exact", "noisy", "plain"):
        assert [path.stem for path in positions(two / name)] == list(PLACES)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["exact", "noisy"])
def test_as_many_processes_end_bit_for_bit_as_uninterrupted(name, place, two, again, kit):
    folder = again / f"{name}_from_{place}"
    kit.assert_equal(kit.result(folder), kit.result(two / name))
    found, expected = (
        without_own_statistics(kit.result(where, 1)) for where in (folder, two / name)
    )
    # what the hooks of the others draw is not part of the promise
    kit.assert_equal(found, expected, but=("drawn",))
    assert (folder / "log.csv").read_bytes() == (two / name / "log.csv").read_bytes()


@pytest.mark.parametrize("place", IN_SETS)
def test_a_validation_set_goes_on_where_it_was(place, two, again, kit):
    for rank in (0, 1):
        found = kit.result(again / f"sets_from_{place}", rank)
        kit.assert_equal(found, kit.result(two / "sets", rank), but=("drawn",))
    assert {"val_loss", "val_few_loss"} < found["logs"][-1].keys()


def test_a_run_that_stopped_early_is_over(two, again, kit):
    assert kit.result(two / "early")["step"] < 60 * 7
    for rank in (0, 1):
        found = kit.result(again / "after_an_early_stop", rank)
        kit.assert_equal(found, kit.result(two / "early", rank), but=("drawn",))


def test_saved_by_hand_after_an_interrupt_it_goes_on_exactly(two, again, kit):
    interrupted = kit.result(two / "interrupted")
    assert interrupted["interrupted"]
    assert 0 < interrupted["step"] % 7 < 6
    found, expected = (
        kit.result(where) for where in (again / "after_an_interrupt", two / "uninterrupted")
    )
    # the log file is another one, and the callbacks are not those that were interrupted
    kit.assert_equal(found, expected, but=("drawn", "logs", "steps"))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_interrupted_fit_goes_on_in_the_same_processes(rank, two, kit):
    assert (two / "continued" / f"interrupted{rank}").exists()
    found, expected = kit.result(two / "continued", rank), kit.result(two / "uninterrupted", rank)
    kit.assert_equal(found, expected)


@pytest.mark.parametrize("place", PLACES)
def test_one_process_goes_on_with_the_run_of_two(place, two, as_one, kit):
    found, expected = kit.result(as_one / f"plain_from_{place}"), kit.result(two / "plain")
    kit.assert_close(found, expected, 1e-9, but=CHANGED)
    kit.assert_close(found["logs"], expected["logs"], 1e-9)


@pytest.mark.parametrize("place", SOME)
def test_two_processes_go_on_with_the_run_of_one(place, one, again, kit):
    folder, expected = again / "of_one" / f"plain_from_{place}", kit.result(one / "plain")
    for rank in (0, 1):
        kit.assert_close(kit.result(folder, rank), expected, 1e-9, but=CHANGED)
    kit.assert_equal(kit.result(folder, 1), kit.result(folder), but=("drawn",))


@pytest.mark.parametrize("place", SOME)
def test_three_processes_go_on_with_the_run_of_two(place, two, as_three, kit):
    folder, expected = as_three / f"plain_from_{place}", kit.result(two / "plain")
    for rank in range(3):
        kit.assert_close(kit.result(folder, rank), expected, 1e-9, but=CHANGED)
        kit.assert_equal(kit.result(folder, rank), kit.result(folder), but=("drawn",))
