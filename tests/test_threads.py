"""Fits beside other fits, in forked processes, and under settings of the user's."""

import pickle
import subprocess
import sys
import threading

import joblib
import numpy as np
import pytest
import torch

from estimator_helpers import assert_usable, tiny
from skvae.training import engine


def test_threads_do_not_meet(iris):
    """Fits that run side by side give what they give alone."""
    seeds = range(4)
    alone = [tiny(random_state=seed).fit(iris).transform(iris) for seed in seeds]
    together = joblib.Parallel(n_jobs=2, backend="threading")(
        joblib.delayed(lambda seed: tiny(random_state=seed).fit(iris).transform(iris))(
            seed
        )
        for seed in seeds
    )
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_overlapping_fits_give_the_thread_count_back(iris, monkeypatch):
    """Fit 1 begins, fit 2 begins in another thread, fit 1 ends, fit 2 ends."""
    ready, first_in, second_in, first_out = (threading.Event() for _ in range(4))
    step, main = engine.adam_step, threading.current_thread()

    def meet(*args):
        mine, other = (
            (first_in, second_in)
            if threading.current_thread() is main
            else (second_in, first_out)
        )
        mine.set()
        assert other.wait(30)
        step(*args)

    def second_fit():
        torch.get_num_threads()  # a thread that has used torch before
        ready.set()
        assert first_in.wait(30)
        tiny(epochs=1).fit(iris)

    monkeypatch.setattr(engine, "adam_step", meet)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        second = threading.Thread(target=second_fit)
        second.start()
        assert ready.wait(30)
        tiny(epochs=1).fit(iris)
        first_out.set()
        second.join()
        assert torch.get_num_threads() == 2
    finally:
        first_out.set()
        torch.set_num_threads(before)


FORKED = """
import multiprocessing, pickle, sys
import numpy as np
import torch
from skvae import VAEEstimator

torch.set_num_threads(2)
X = np.random.default_rng(0).random((2000, 64)).astype(np.float32)
options = {"hidden_dim": 512, "batch_size": 1000, "random_state": 0}
vae = VAEEstimator(8, epochs=1, **options).fit(X)
codes, content = vae.transform(X), pickle.dumps(vae)
A = torch.ones(700, 700)
A @ A  # the pool of the parent's threads is there, whatever fit used

def answer(queue):
    assert np.allclose(vae.transform(X), codes, atol=1e-5)
    assert np.isfinite(vae.score_samples(X)).all()
    assert vae.sample(2000, 0).shape == X.shape
    twin = pickle.loads(content)
    assert np.isfinite(twin.partial_fit(X).transform(X)).all()
    again = VAEEstimator(8, epochs=1, validation_fraction=0.3, **options).fit(X)
    assert np.isfinite(again.score(X))
    queue.put("answered")

context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
child = context.Process(target=answer, args=(queue,), daemon=True)
child.start()
child.join(40)
if child.is_alive():
    child.kill()
    sys.exit("the child hangs")
assert queue.get() == "answered"
assert torch.get_num_threads() == 2
"""


@pytest.mark.slow  # a process of its own, which imports torch
@pytest.mark.skipif(sys.platform != "linux", reason="fork is the way of Linux")
def test_a_forked_process_answers():
    """The threads of torch's pool are gone there: to wait for them is to hang."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------- settings of the user's


@pytest.mark.parametrize(
    ("setting", "value", "getter"),
    [
        (torch.set_default_dtype, torch.float64, torch.get_default_dtype),
        (torch.set_grad_enabled, False, torch.is_grad_enabled),
        (torch.set_flush_denormal, True, lambda: False),
        (
            torch.use_deterministic_algorithms,
            True,
            torch.are_deterministic_algorithms_enabled,
        ),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_global_settings_of_the_user_do_not_matter(
    iris, setting, value, getter, method
):
    expected = getattr(tiny(), method)(iris)
    before = getter()
    setting(value)
    try:
        model = getattr(tiny(), method)(iris)
        scores, sample = model.score_samples(iris), model.sample(3, 0)
        twin = pickle.loads(pickle.dumps(model)).transform(iris)
        kept = getter() == value or setting is torch.set_flush_denormal
    finally:
        setting(before)
    assert kept
    assert_usable(model, iris)
    np.testing.assert_allclose(scores, expected.score_samples(iris), atol=1e-4)
    np.testing.assert_allclose(sample, expected.sample(3, 0), atol=1e-4)
    np.testing.assert_allclose(twin, expected.transform(iris), atol=1e-4)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"likelihood": "student_t", "validation_fraction": 0.2},
        {"objective": "iwae"},
        {"objective": "wae", "prior": "vamp"},
        {"network": "ladder"},
    ],
    ids=str,
)
def test_fit_within_a_mode_of_inference(iris, mode, parameters):
    expected = tiny(**parameters).fit(iris)
    with mode():
        model = tiny(**parameters).fit(iris)
        model.partial_fit(iris)
        pickle.loads(pickle.dumps(model)).partial_fit(iris)
        again = tiny(**parameters).fit(iris)
        np.testing.assert_allclose(
            again.transform(iris), expected.transform(iris), atol=1e-5
        )
    # And what was fitted there can be used, and trained on, outside.
    assert_usable(model.partial_fit(iris), iris)
    model.set_params(warm_start=True).fit(iris)
