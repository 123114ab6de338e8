import threading

import pytest
import torch

from skvae import device as device_module
from skvae.device import (
    MULTI_THREAD_MIN_PRODUCTS,
    answering,
    available_memory,
    flush_denormals,
    one_thread,
    resolve_device,
    resolve_precision,
    training,
)

CPU = torch.device("cpu")


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"


@pytest.mark.parametrize("device", ["cpu", CPU])
def test_any_torch_device(device):
    assert resolve_device(device) == CPU


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta", "nonsense:1"])
def test_missing_device_is_named_with_what_is_there(device):
    with pytest.raises(
        ValueError, match=r"(?s)device='.*expected one of \['auto', 'cpu'"
    ):
        resolve_device(device)


@pytest.mark.parametrize("device", ["gpu", "nonsense:1"])
def test_an_unknown_device_is_not_answered_with_all_that_torch_knows(device):
    with pytest.raises(ValueError, match="is not known") as refusal:
        resolve_device(device)
    assert len(str(refusal.value)) < 120
    assert "vulkan" not in str(refusal.value)


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision(monkeypatch, native):
    monkeypatch.setattr(device_module, "cpu_has_bfloat16", lambda: native)

    def auto(exact=False, n_weights=10**6):
        return resolve_precision("auto", CPU, exact=exact, n_weights=n_weights)

    assert auto() == (torch.bfloat16 if native else torch.float32)
    assert auto(exact=True) == torch.float32
    assert auto(n_weights=1000) == torch.float32


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_asked_for_precision_is_given(precision):
    resolved = resolve_precision(precision, CPU, exact=True, n_weights=1)
    assert resolved == getattr(torch, precision)


def test_what_needs_float32_is_not_trained_in_less():
    def resolve(precision):
        return resolve_precision(
            precision, CPU, exact=False, n_weights=10**6, needs_float32=True
        )

    assert resolve("auto") == resolve("float32") == torch.float32
    with pytest.raises(ValueError, match=r"precision='bfloat16'.*flow.*'float32'"):
        resolve("bfloat16")


@pytest.mark.parametrize("before", [True, False])
def test_denormals_are_flushed_within_and_restored_after(before):
    def flushed():
        return bool(torch.full((), 1e-40) * 1.0 == 0)

    torch.set_flush_denormal(before)
    try:
        with flush_denormals():
            assert flushed()
        assert flushed() == before
    finally:
        torch.set_flush_denormal(False)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_thread_is_for_small_steps_only(two_threads):
    with training(CPU, MULTI_THREAD_MIN_PRODUCTS - 1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with training(CPU, MULTI_THREAD_MIN_PRODUCTS):
        assert torch.get_num_threads() == 2


def test_a_forked_process_computes_on_one_thread(two_threads, monkeypatch):
    """test_threads.py has such a process; this is what it does there."""
    with answering():
        assert torch.get_num_threads() == 2
    monkeypatch.setattr(device_module, "_forked", False)
    device_module._note_fork()
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    for state in (answering(), training(CPU, MULTI_THREAD_MIN_PRODUCTS)):
        with state:
            assert torch.get_num_threads() == 1


def test_overlapping_threads_all_get_their_count_back(two_threads):
    inside, leave, counts = threading.Event(), threading.Event(), []

    def other():
        with one_thread():
            inside.set()
            leave.wait(10)
        counts.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    with one_thread():
        thread.start()
        inside.wait(10)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    leave.set()
    thread.join()
    assert counts == [2]
    assert torch.get_num_threads() == 2


def test_thread_count_is_restored_after_an_error(two_threads):
    with pytest.raises(KeyboardInterrupt), training(CPU, 1):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 2


def test_available_memory():
    free = available_memory("cpu")
    assert 2**20 < free < 2**50


@pytest.mark.parametrize(
    ("meminfo", "limit", "expected"),
    [
        ("MemFree: 9 kB\nMemAvailable: 4096 kB\n", None, 2 * 2**20),
        ("MemAvailable: 4096 kB\n", "max", 2 * 2**20),
        ("MemAvailable: 4096 kB\n", str(3 * 2**20), 2**20),  # one MiB is in use
        ("MemFree: 9 kB\n", None, 2 * 2**30),
        (None, None, 2 * 2**30),
    ],
)
def test_available_memory_is_half_of_what_is_left(
    meminfo, limit, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(device_module, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(device_module, "GROUP", tmp_path)
    if meminfo is not None:
        (tmp_path / "meminfo").write_text(meminfo)
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text(str(2**20))
    assert available_memory("cpu") == expected
