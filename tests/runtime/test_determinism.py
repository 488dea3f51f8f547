import logging
import os

import pytest
import torch
from torch import nn

from fitkit import testing
from fitkit.runtime import determinism
from fitkit.runtime.determinism import deterministic, rnn_dropout_remark

CUBLAS, NCCL = "CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"
CUDA = torch.device("cuda", 0)


def flags_now():
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.backends.cudnn.deterministic,
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
    }


def settings_now():
    return {**flags_now(), CUBLAS: os.environ.get(CUBLAS), NCCL: os.environ.get(NCCL)}


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    """No test begins with a variable of the machine, and none leaves a setting behind."""
    monkeypatch.delenv(CUBLAS, raising=False)
    monkeypatch.delenv(NCCL, raising=False)
    before = flags_now()
    yield
    assert flags_now() == before, "the test left settings behind"


@pytest.fixture
def gpu(monkeypatch):
    """What torch says on a machine with a GPU on which nothing has run yet."""

    def initialize():
        raise AssertionError("CUDA was initialized, which would break a later fork")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "_lazy_init", initialize)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)


def starts(made):
    return [remark.partition(":")[0] for remark in made.remarks]


# ---- settings -----------------------------------------------------------------------------------


def test_sets_everything_and_puts_it_back(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)  # as in a build without CUDA, so without NCCL
    before = settings_now()
    with deterministic() as made:
        assert settings_now() == {
            "algorithms": True,
            "warn_only": False,
            "benchmark": False,
            "deterministic": True,
            "fill": True,
            CUBLAS: ":4096:8",
            NCCL: None,
        }
    assert settings_now() == before
    assert dict(made.settings) == {
        "torch.use_deterministic_algorithms": True,
        "warn_only": False,
        "torch.backends.cudnn.benchmark": False,
        "torch.backends.cudnn.deterministic": True,
        "torch.utils.deterministic.fill_uninitialized_memory": True,
        CUBLAS: ":4096:8",
    }


def test_puts_back_what_was_there_and_not_the_defaults():
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    torch.utils.deterministic.fill_uninitialized_memory = False
    before = settings_now()
    try:
        with deterministic():
            assert settings_now() != before
        assert settings_now() == before
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
        torch.utils.deterministic.fill_uninitialized_memory = True


def test_holds_from_the_call_on():
    made = deterministic(warn_only=True)
    try:
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ[CUBLAS] == ":4096:8"
    finally:
        made.__exit__()


def test_puts_everything_back_after_an_error():
    before = settings_now()
    with pytest.raises(ZeroDivisionError), deterministic():
        1 / 0  # noqa: B018
    assert settings_now() == before


def test_calls_can_be_nested():
    before = settings_now()
    with deterministic():
        outside = settings_now()
        with deterministic(warn_only=True):
            assert settings_now() == {**outside, "warn_only": True}
        assert settings_now() == outside
    assert settings_now() == before


def test_a_setting_that_fails_undoes_the_ones_before_it(monkeypatch):
    flags = (*determinism._FLAGS, (torch.backends.cudnn, "unknown", True))
    monkeypatch.setattr(determinism, "_FLAGS", flags)
    before = settings_now()
    with pytest.raises(AttributeError, match="unknown"):
        deterministic()
    assert settings_now() == before


@pytest.mark.parametrize("value", [":4096:8", ":16:8"])
def test_keeps_a_usable_workspace_of_the_user(value, gpu, monkeypatch):
    monkeypatch.setenv(CUBLAS, value)
    monkeypatch.setenv(NCCL, "Ring")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # it was exported in time
    with deterministic() as made:
        assert (os.environ[CUBLAS], os.environ[NCCL]) == (value, "Ring")
        assert (made.settings[CUBLAS], made.settings[NCCL]) == (value, "Ring")
    assert (os.environ[CUBLAS], os.environ[NCCL]) == (value, "Ring")


@pytest.mark.parametrize("value", [":8:8", "", ":4096:8:16:8"])
def test_warns_about_an_unusable_workspace_and_keeps_it(value, gpu, monkeypatch):
    monkeypatch.setenv(CUBLAS, value)
    with pytest.warns(UserWarning, match=f"{CUBLAS} is {value!r}.*':16:8', ':4096:8' only: export"):
        made = deterministic()
    with made:
        assert os.environ[CUBLAS] == value
        assert made.remarks[0].startswith(f"{CUBLAS} is")
    assert os.environ[CUBLAS] == value


def test_says_nothing_of_the_workspace_without_a_gpu(monkeypatch):
    monkeypatch.setenv(CUBLAS, ":8:8")
    with deterministic() as made:
        assert starts(made) == ["CPU"]


def test_warns_if_cuda_is_initialized_already(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.warns(
        UserWarning, match="CUDA was initialized before .* call deterministic"
    ) as got:
        made = deterministic()
    assert got[0].filename == __file__
    with made:
        assert made.remarks[0] == str(got[0].message)
        assert os.environ[CUBLAS] == ":4096:8"


def test_a_warning_that_is_an_error_leaves_nothing_set(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    before = settings_now()
    with pytest.raises(UserWarning, match="CUDA was initialized"):
        deterministic()
    assert settings_now() == before


def test_a_build_for_cuda_leaves_out_reductions_in_the_switch(gpu):
    with deterministic() as made:
        assert os.environ[NCCL] == made.settings[NCCL] == "^NVLS"
    assert NCCL not in os.environ


def test_training_repeats_itself():
    def weights():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Dropout(), nn.LazyLinear(2))
        model(torch.randn(4, 1, 8, 8)).sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    with deterministic():
        assert all(map(torch.equal, weights(), weights()))


# ---- remarks ------------------------------------------------------------------------------------


def test_remarks_on_a_machine_without_accelerator():
    with deterministic() as made:
        assert starts(made) == ["CPU"]
        assert f"get_num_threads() is {torch.get_num_threads()})" in made.remarks[0]
        assert torch.backends.cpu.get_cpu_capability() in made.remarks[0]


def test_remarks_on_a_machine_with_a_gpu(gpu):
    with deterministic() as made:
        own = "Kernels of your own (CUDA, Triton, extensions)"
        assert starts(made) == ["CPU", "cuda", own, "TF32", "NCCL", "cuDNN 91002"]
        assert torch.__version__ in made.remarks[1]
        assert "torch.get_float32_matmul_precision() is 'highest'" in made.remarks[3]


def test_remarks_without_cudnn(gpu, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    with deterministic() as made:
        assert starts(made)[-1] == "NCCL"


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_remarks_on_another_accelerator(kind, gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    with deterministic() as made:
        assert starts(made)[1] == starts(made)[-1] == kind
        assert len(made.remarks) == 4
        assert "CPU and CUDA only" in made.remarks[-1]


def test_remarks_on_rocm_promise_nothing_of_cuda(gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setenv(CUBLAS, ":8:8")
    with deterministic() as made:
        assert starts(made)[-1] == "cuda"
        assert NCCL not in os.environ


def test_remarks_on_warnings_only():
    with deterministic(warn_only=True) as made:
        assert starts(made) == ["CPU", "warn_only"]


def test_names_the_newer_setting_of_the_precision(gpu, monkeypatch):
    def refuse():
        raise RuntimeError("mix of the legacy and new APIs")

    class Matmul:
        fp32_precision = "tf32"

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    monkeypatch.setattr(torch.backends.cuda, "matmul", Matmul())
    with deterministic() as made:
        assert "torch.backends.cuda.matmul.fp32_precision is 'tf32'" in made.remarks[3]


def test_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, "fitkit"), deterministic() as made:
        pass
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("fitkit", logging.INFO)
    assert record.getMessage() == str(made)


def test_is_shown_one_line_each():
    with deterministic() as made:
        lines = str(made).splitlines()
    assert lines[:2] == ["Set:", "  torch.use_deterministic_algorithms = True"]
    assert lines[-2:] == ["No setting covers:", f"  - {made.remarks[-1]}"]
    assert f"  {CUBLAS} = :4096:8" in lines


def test_stands_in_the_module_for_tests():
    assert testing.deterministic is deterministic


# ---- dropout of cuDNN ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_between_recurrent_layers(kind, gpu):
    remark = rnn_dropout_remark(kind(2, 3, num_layers=2, dropout=0.5), CUDA)
    assert remark.startswith(f"{kind.__name__}: after a resume")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{"num_layers": 2}, {"num_layers": 1}])
def test_recurrent_layers_without_dropout(kind, options, gpu):
    assert rnn_dropout_remark(kind(2, 3, **options), CUDA) is None


def test_dropout_of_a_single_layer_draws_nothing(gpu):
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        one_layer = nn.LSTM(2, 3, num_layers=1, dropout=0.5)
    assert rnn_dropout_remark(one_layer, CUDA) is None


def test_names_the_layers_inside_a_model(gpu):
    model = nn.ModuleDict(
        {"head": nn.Dropout(), "text": nn.Sequential(nn.LSTM(2, 3, 2, dropout=0.1))}
    )
    model["sound"] = nn.GRU(2, 3, 2, dropout=0.1)
    remark = rnn_dropout_remark(model, CUDA)
    assert remark.startswith("'text.0' (LSTM), 'sound' (GRU): after a resume")


def test_other_dropout_is_exact(gpu):
    single = nn.Sequential(nn.LSTM(2, 3), nn.Dropout(0.5), nn.LSTM(3, 3))
    assert rnn_dropout_remark(single, CUDA) is None


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu"])
def test_other_devices_have_no_cudnn(device, gpu):
    assert rnn_dropout_remark(nn.LSTM(2, 3, 2, dropout=0.5), torch.device(device)) is None


def test_the_remedy_of_the_remark_works(gpu):
    model = nn.LSTM(2, 3, 2, dropout=0.5)
    with torch.backends.cudnn.flags(enabled=False):
        assert rnn_dropout_remark(model, CUDA) is None
    assert rnn_dropout_remark(model, CUDA) is not None


def test_no_cudnn_no_remark(gpu, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    assert rnn_dropout_remark(nn.LSTM(2, 3, 2, dropout=0.5), CUDA) is None
