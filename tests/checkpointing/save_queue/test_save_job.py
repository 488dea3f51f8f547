"""SaveJob: what it writes and deletes, and how it goes on after a failure."""

from __future__ import annotations

import pytest
import torch

from fitkit import ModelCheckpoint, SaveError
from fitkit.checkpointing.save_queue.replicated_ranks import ReplicatedRanks
from fitkit.checkpointing.save_queue.save_job import SaveJob
from fitkit.checkpointing.savers.save_request import SaveRequest
from fitkit.checkpointing.storage import single_or_sharded
from fitkit.distributed.world import World


def saver_of(path, **options):
    saver = ModelCheckpoint(path, **options)
    return saver, SaveRequest(saver, path, step=1)


class AnyFile:
    """Files that may all be removed."""

    def remove(self, path, top):
        return single_or_sharded.remove(path)

    def require_held(self):
        pass

    def remember(self, paths):
        pass


def job_of(*requests, **options):
    options = {"whole": {"n": 1}, "weights": {"w": torch.ones(1)}, **options}
    return SaveJob(list(requests), ReplicatedRanks(World()), AnyFile(), **options)


def content(path):
    return torch.load(path, weights_only=True)


def test_each_content_is_written_once_under_all_its_names(tmp_path):
    paths = [tmp_path / name for name in ("a.pth", "b.pth", "w.pth", "w2.pth")]
    requests = [saver_of(p, save_weights_only=p.name[0] == "w")[1] for p in paths]
    job = job_of(*requests, requests[0])
    assert job.paths(weights_only=False) == paths[:2]
    assert job.paths(weights_only=True) == paths[2:]
    job.run()
    assert (job.error, job.written, job.warnings) == (None, paths, [])
    assert content(paths[1])["n"] == 1
    assert paths[0].samefile(paths[1])
    assert paths[2].samefile(paths[3])
    assert list(content(paths[3])) == ["w"]
    assert job.seconds > 0


def test_a_name_that_is_wanted_in_both_ways_holds_the_whole_state(tmp_path):
    path = tmp_path / "a.pth"
    job = job_of(saver_of(path, save_weights_only=True)[1], saver_of(path)[1])
    assert (job.command().whole, job.command().weights) == (True, False)
    job.run()
    assert content(path)["n"] == 1


@pytest.mark.parametrize("background", [(True, True), (True, False)])
def test_a_save_is_in_the_background_if_all_its_files_may_be(tmp_path, background):
    requests = [saver_of(tmp_path / str(n), background=b)[1] for n, b in enumerate(background)]
    assert job_of(*requests).command().in_background is all(background)


def test_obsolete_files_go_last_and_never_those_that_were_written(tmp_path):
    old, new, stuck = (tmp_path / f"{name}.pth" for name in ("old", "new", "stuck"))
    torch.save({}, old)
    stuck.mkdir()
    saver, request = saver_of(new)
    job = job_of(request, obsolete={saver: [old, new, stuck]})
    job.run()
    assert (old.exists(), new.exists(), job.error) == (False, True, None)
    assert len(job.warnings) == 1
    assert "stuck.pth" in job.warnings[0]


def test_a_failure_that_raises_deletes_nothing_and_is_undone(tmp_path):
    old, blocked = tmp_path / "old.pth", tmp_path / "a.pth"
    torch.save({}, old)
    blocked.mkdir()
    saver, request = saver_of(blocked)
    job = job_of(request, obsolete={saver: [old]})
    saver.last_path = "a.pth"
    job.run()
    assert isinstance(job.error, SaveError)
    assert old.exists()
    job.rollback()
    assert saver.last_path is None


def test_a_failure_that_warns_leaves_the_others(tmp_path):
    blocked, old = tmp_path / "blocked.pth", tmp_path / "old.pth"
    blocked.mkdir()
    torch.save({}, old)
    bad, bad_request = saver_of(blocked, on_error="warn")
    good, good_request = saver_of(tmp_path / "good.pth")
    whole = {"bad": {"last_path": "blocked.pth"}}
    states, obsolete = {bad: whole["bad"]}, {bad: [old]}
    job = job_of(bad_request, good_request, whole=whole, saver_states=states, obsolete=obsolete)
    bad.last_path = good.last_path = "new"
    job.run()
    assert (job.error, job.written, job.failed) == (None, [tmp_path / "good.pth"], [bad])
    assert "on_error='warn'" in job.warnings[0]
    assert old.exists(), "a file of the saver that failed is gone"
    assert content(tmp_path / "good.pth")["bad"]["last_path"] is None
    job.rollback()
    assert (bad.last_path, good.last_path) == (None, "new")
