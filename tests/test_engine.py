"""A training: epochs, the best of them, where it stops, and how it goes on."""

import copy
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from estimator_helpers import tiny, tiny_conditional, training_of
from skvae.model import Batch
from skvae.networks import MLP
from skvae.objectives import ELBO
from skvae.training import DivergenceError, Stack, Training, engine, train_stack
from skvae.training import training as training_module
from skvae.training.data import Data
from skvae.training.engine import pass_over
from skvae.training.training import SCHEDULES
from skvae.training.weights import point_at

RNG = np.random.default_rng(5)
ROWS = RNG.random((37, 6))
REAL = RNG.normal(5, 3, size=(37, 6))


def trained(X=ROWS, *, weights=None, y=None, X_val=None, **parameters):
    """A training of 37 rows in batches of 9: the last batch has a single row."""
    make = tiny if y is None else tiny_conditional
    options = {"batch_size": 9, "learning_rate": 1e-2, "epochs": 3}
    return training_of(
        make(**{**options, **parameters}), X, y, sample_weight=weights, X_val=X_val
    )


def run(training):
    return [training.records[-1] for _ in train_stack([training])]


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


# ------------------------------------------------------------------ an epoch


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("max_gradient_norm", [None, 0.5])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_epochs_equal_the_textbook_loop(likelihood, weighted, max_gradient_norm):
    weights = np.linspace(0.5, 1.5, 37) if weighted else None
    options = {"likelihood": likelihood, "max_gradient_norm": max_gradient_norm}
    ours = trained(weights=weights, **options)
    reference, units = copy.deepcopy(ours.start.module), ours.start.units
    seed = np.random.SeedSequence([ours.start.seed, 0]).generate_state(1)
    generator = torch.Generator().manual_seed(int(seed[0]))
    records = run(ours)

    rows = torch.tensor(units.standardize(ROWS))
    share = None if weights is None else torch.tensor(weights, dtype=torch.float32)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-2)
    for record in records:
        order = torch.randperm(37, generator=generator)
        noise = torch.randn(37, 1, 2, generator=generator).transpose(0, 1)
        losses = []
        for start in range(0, 37, 9):
            some = order[start : start + 9]
            loss, _ = reference.loss(Batch(rows[some], noise[:, start : start + 9]))
            if weighted:
                loss = loss * share[some]
            optimizer.zero_grad()
            loss.mean().backward()
            if max_gradient_norm is not None:
                torch.nn.utils.clip_grad_norm_(
                    reference.parameters(), max_gradient_norm
                )
            optimizer.step()
            losses.append(loss.detach())
        # Every row counts once: a short last batch has no more say than its rows.
        expected = torch.cat(losses).mean().item() + units.log_scale
        assert record.loss == pytest.approx(expected, rel=1e-5)
        assert record.loss == pytest.approx(record.reconstruction + record.kl, rel=1e-5)
    torch.testing.assert_close(flat(ours.module), flat(reference), rtol=1e-4, atol=1e-6)


def test_noise_in_blocks_is_the_same_noise(monkeypatch):
    whole = list(trained(batch_size=16).noise(64))
    monkeypatch.setattr(training_module, "NOISE_BLOCK", 1)
    blocks = list(trained(batch_size=16).noise(64))
    assert [tuple(n.shape) for n in blocks] == [(1, 16, 2)] * 4
    # Blocking is a matter of memory alone.
    assert all(torch.equal(a, b) for a, b in zip(whole, blocks, strict=True))
    last = list(trained().noise(37))[-1]
    assert last.shape == (1, 1, 2)


def test_bfloat16_trains_like_float32():
    losses = {}
    for precision in ("float32", "bfloat16"):
        training = trained(precision=precision, epochs=30)
        losses[precision] = run(training)[-1].loss
        assert {p.dtype for p in training.module.parameters()} == {torch.float32}
        assert {p.dtype for p in training.value().module.parameters()} == {
            torch.float32
        }
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_progress_goes_from_the_first_step_to_the_last(monkeypatch):
    training = trained(objective=ELBO(warmup=0.97), prior="mixture", epochs=2)
    seen, loss = [], type(training.module).loss

    def spy(self, batch):
        seen.append((batch.progress, batch.n_rows))
        return loss(self, batch)

    monkeypatch.setattr(type(training.module), "loss", spy)
    run(training)
    progress = [progress for progress, _ in seen]
    assert progress == pytest.approx([i / 9 for i in range(10)])
    assert {n_rows for _, n_rows in seen} == {37}
    assert training.module.objective.ramp(progress[-1]) == 1
    # Without an end in sight nothing warms up.
    pass_over(training, training.data, training.options)
    assert [progress for progress, _ in seen[10:]] == [1.0] * 5


def test_cosine_schedule_ends_at_zero():
    rates = [r.learning_rate for r in run(trained(learning_rate_schedule="cosine"))]
    assert rates == sorted(rates, reverse=True)
    steps = 3 * 5
    expected = 1e-2 * 0.5 * (1 + math.cos(math.pi * (steps - 1) / steps))
    assert rates[-1] == pytest.approx(expected)
    assert [SCHEDULES["cosine"](p) for p in (0, 1)] == [1, 0]


def test_active_units_are_the_latents_that_vary():
    training = trained(learning_rate=1e-9, epochs=1)
    with torch.no_grad():
        encoder = training.module.network.encoder[-1]
        encoder.weight[1].zero_()  # the second posterior mean is the same for all rows
        encoder.weight[0] *= 10
    assert run(training)[0].active_units == 1


def test_records_are_in_the_users_units():
    inner, outer = (run(trained(REAL * scale, epochs=1))[0] for scale in (1, 2**10))
    shift = 6 * math.log(2**10)
    assert outer.loss == pytest.approx(inner.loss + shift, rel=1e-6)
    assert outer.reconstruction == pytest.approx(inner.reconstruction + shift, rel=1e-6)
    assert outer.kl == inner.kl


# ------------------------------------------------------------------ evaluating


def test_dropout_is_off_where_the_loss_is_evaluated():
    training = trained(network=MLP(dropout=0.5))
    assert next(training.noise(37)).shape == (1, 9, 2 + 2 * 8)
    module = training.module
    noise = torch.zeros(1, 37, module.n_loss_noise)
    once = training.evaluate(training.data, noise)
    assert once == training.evaluate(training.data, noise)
    expected = module.loss(Batch(training.data.x, noise))[0].mean().item()
    assert once[0] == pytest.approx(expected, rel=1e-5)


def test_evaluate_is_the_mean_over_rows_whatever_the_blocks(monkeypatch):
    weights = RNG.random(37)
    training = trained(REAL, weights=weights)
    noise = torch.randn(1, 37, 2, generator=torch.Generator().manual_seed(0))
    data, log_scale = training.data, training.start.units.log_scale
    assert data.weights.mean().item() == pytest.approx(1)
    monkeypatch.setattr(training_module, "EVALUATED_ROWS", 10)
    loss, reconstruction, kl = training.evaluate(data, noise)
    with torch.no_grad():
        rows = training.module.loss(Batch(data.x, noise))[0]
    expected = np.average(rows.numpy(), weights=weights) + log_scale
    assert loss == pytest.approx(expected, rel=1e-5)
    assert loss == pytest.approx(reconstruction + kl, rel=1e-5)


# ------------------------------------------------------------------ the best epoch


def held_out(monkeypatch, losses, **parameters):
    """A training whose validation losses are these."""
    training = trained(X_val=ROWS, **{"epochs": len(losses), **parameters})
    left = iter(losses)
    monkeypatch.setattr(training, "evaluate", lambda *_: (next(left), 0.0, 0.0))
    return training


def test_best_epoch_stays(monkeypatch):
    training = held_out(monkeypatch, [5.0, 3.0, 4.0, 3.5])
    seen = [flat(training.module) for _ in train_stack([training])]
    assert training.best.epoch == 2
    value = training.value()
    assert value.best_epoch == 2
    assert torch.equal(flat(value.module), seen[1])
    assert torch.equal(flat(training.module), seen[3])  # training could go on


def test_early_stopping_waits_its_patience(monkeypatch):
    losses = [5.0, 4.0, 3.95, 3.9, 3.0, 9.0]
    training = held_out(
        monkeypatch, losses, early_stopping=True, n_iter_no_change=2, tol=0.5
    )
    assert [r.validation_loss for r in run(training)] == losses[:4]
    assert training.result == "stopped"


def test_nothing_is_best_before_the_warm_up_is_over(monkeypatch):
    """Losses of a small KL weight are lower, and do not compare."""
    losses = [1.0, 0.5, 2.0, 3.0, 9.0, 7.0, 8.0, 7.5]
    training = held_out(
        monkeypatch,
        losses,
        objective=ELBO(warmup=0.5),
        early_stopping=True,
        n_iter_no_change=2,
    )
    seen, best = [], []
    for _ in train_stack([training]):
        seen.append(flat(training.module))
        best.append(training.best.epoch)
        # Until the warm-up ends, who stops has the latest weights.
        assert torch.equal(flat(training.value().module), seen[best[-1] - 1])
    # Early stopping waits for the end of the warm-up, then for its patience.
    assert best == [1, 2, 3, 4, 5, 6, 6, 6]


def test_a_warm_up_that_no_epoch_follows_keeps_the_last_one():
    training = trained(
        objective=ELBO(warmup=0.9), early_stopping=True, n_iter_no_change=1
    )
    assert len(run(training)) == training.value().best_epoch == 3
    assert torch.equal(flat(training.value().module), flat(training.module))


# ------------------------------------------------------------------ how it ends


@pytest.mark.parametrize("epoch", [1, 3])
def test_divergence_stops_and_keeps_the_best_finite_weights(epoch, monkeypatch):
    training = trained(epochs=5)
    seen, paces = [flat(training.module)], Training.paces
    monkeypatch.setattr(
        Training,
        "paces",
        lambda self, n: [
            (rate if n < 5 * (epoch - 1) else math.inf, progress)
            for rate, progress in paces(self, n)
        ],
    )
    for _ in train_stack([training]):
        if training.result != "diverged":
            seen.append(flat(training.module))
    assert training.result == "diverged"
    assert f"no longer finite in epoch {epoch}" in training.message
    assert len(training.records) == epoch - 1
    assert torch.equal(flat(training.value().module), seen[training.best.epoch])


def test_who_iterates_may_stop():
    training = trained(epochs=50)
    epochs = train_stack([training])
    next(epochs)
    after_one = flat(training.module)
    epochs.close()
    assert torch.equal(flat(training.module), after_one)
    assert torch.equal(flat(training.value().module), after_one)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_interrupted_epoch_leaves_a_usable_model(precision, monkeypatch):
    training, calls, step = trained(precision=precision), [], engine.adam_step
    start = flat(training.module)

    def interrupt(*args):
        step(*args)
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "adam_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(training)
    training.interrupt()
    module = training.value().module
    assert not torch.equal(flat(module), start)
    assert torch.isfinite(flat(module)).all()
    assert {p.dtype for p in training.module.parameters()} == {torch.float32}
    assert training.value().result == "interrupted"


def test_the_start_of_a_training_is_left_alone():
    training = trained()
    before = flat(training.start.module)
    run(training)
    value = training.value()
    assert torch.equal(flat(training.start.module), before)
    # And a value is not trained on.
    kept = flat(value.module)
    training.master.zero_()
    training.best.weights.zero_()
    assert torch.equal(flat(value.module), kept)
    assert value.n_steps == 15


# ------------------------------------------------------------------ going on


def equal_records(a, b):
    seconds = {"seconds": 0.0}
    return [asdict(r) | seconds for r in a] == [asdict(r) | seconds for r in b]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"learning_rate_schedule": "cosine", "precision": "bfloat16"},
        {"learning_rate": 0.3, "objective": ELBO(warmup=0.4)},
        {"prior": "vamp", "max_gradient_norm": 1.0, "validation_fraction": 0.2},
    ],
    ids=str,
)
def test_state_goes_on_where_it_was_taken(parameters):
    whole, first, second = (trained(**{"epochs": 6, **parameters}) for _ in range(3))
    run(whole)
    epochs = train_stack([first])
    for _ in range(4):
        next(epochs)
    state = first.state()
    epochs.close()
    first.master.zero_()  # what was taken does not follow
    second.restore(state)
    assert second.epochs_left == 2
    run(second)
    assert equal_records(second.records, whole.records)
    assert second.best.counts() == whole.best.counts()
    for name, part in whole.state().items():
        if isinstance(part, np.ndarray):
            np.testing.assert_array_equal(second.state()[name], part, err_msg=name)
    assert torch.equal(flat(second.value().module), flat(whole.value().module))


def test_patience_lasts_over_a_pause():
    options = {"early_stopping": True, "n_iter_no_change": 3, "tol": 1e9, "epochs": 9}
    one, two = trained(**options), trained(**options)
    assert len(run(one)) == 4
    epochs = train_stack([two])
    for _ in range(3):
        next(epochs)
    again = trained(**options)
    again.restore(two.state())
    assert again.best.waited == 2
    assert len(run(again)) == 1
    assert again.result == "stopped"


def test_a_state_is_plain_arrays_and_numbers():
    training = trained()
    run(training)
    for name, part in training.state().items():
        assert name == "records" or isinstance(part, int | dict | np.ndarray), name


def test_a_pass_over_other_rows():
    training = trained()
    training.data = None
    data = [Data(torch.rand(n, 6, generator=training.generator)) for n in (20, 9, 40)]
    before = flat(training.module)
    for one in data:
        pass_over(training, one, training.options)
    assert [record.epoch for record in training.records] == [1, 2, 3]
    assert training.n_steps == 3 + 1 + 5
    assert not torch.equal(flat(training.module), before)
    assert torch.equal(flat(training.value().module), flat(training.module))


def test_a_pass_that_fails_changes_nothing(monkeypatch):
    training = trained()
    pass_over(training, training.data, training.options)
    before = training.state()
    with monkeypatch.context() as patched:
        patched.setattr(engine, "summed", lambda *_: torch.full((1, 3), math.nan))
        with pytest.raises(DivergenceError, match="no longer finite in epoch 2"):
            pass_over(training, training.data, training.options)
    after = training.state()
    assert equal_records(after.pop("records"), before.pop("records"))
    for name, part in before.items():
        np.testing.assert_array_equal(after[name], part, err_msg=name)


def test_a_stack_of_one_is_the_training_itself():
    training = trained()
    stack = Stack([training])
    stack.epoch()
    assert stack.master.data_ptr() == training.master.data_ptr()
    assert float(training.step_count) == 5
    stack.release()
    point_at(training.module, training.views)
    assert torch.equal(
        torch.cat([p.detach().flatten() for p in training.module.parameters()]),
        training.master,
    )
