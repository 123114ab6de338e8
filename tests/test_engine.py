import math

import pytest
import torch

from skvae.engine import SCHEDULES, Data, DivergenceError, Trainer, train
from skvae.likelihoods import Gaussian
from skvae.model import Batch
from skvae.networks import MLP
from skvae.objectives import ELBO
from test_model import make

ROWS = torch.rand(37, 6, generator=torch.Generator().manual_seed(5))


def trainer(model=None, **options):
    defaults = {
        "learning_rate": 1e-2,
        "batch_size": 9,
        "precision": torch.float32,
        "generator": torch.Generator().manual_seed(7),
    }
    return Trainer(model or make(), **{**defaults, **options})


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("max_gradient_norm", [None, 0.5])
def test_epochs_equal_the_textbook_loop(weighted, max_gradient_norm):
    weights = torch.linspace(0.5, 1.5, len(ROWS)) if weighted else None
    ours = make(Gaussian())
    engine = trainer(ours, max_gradient_norm=max_gradient_norm)
    records = [engine.train_epoch(Data(ROWS, weights)) for _ in range(3)]
    engine.close()

    reference = make(Gaussian())
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(7)
    for record in records:
        order = torch.randperm(37, generator=generator)
        noise = torch.randn(37, 1, 2, generator=generator).transpose(0, 1)
        losses = []
        for start in range(0, 37, 9):  # the last batch has a single row
            rows = order[start : start + 9]
            loss, _ = reference.loss(Batch(ROWS[rows], noise[:, start : start + 9]))
            if weighted:
                loss = loss * weights[rows]
            optimizer.zero_grad()
            loss.mean().backward()
            if max_gradient_norm is not None:
                torch.nn.utils.clip_grad_norm_(
                    reference.parameters(), max_gradient_norm
                )
            optimizer.step()
            losses.append(loss.detach())
        # Every row counts once: a short last batch has no more say than its rows.
        expected = torch.cat(losses).mean().item()
        assert record.loss == pytest.approx(expected, rel=1e-5)
        assert record.loss == pytest.approx(record.reconstruction + record.kl, rel=1e-5)
    torch.testing.assert_close(flat(ours), flat(reference), rtol=1e-4, atol=1e-6)


def test_noise_in_blocks_is_the_same_noise(monkeypatch):
    from skvae import engine

    whole = list(trainer(batch_size=16)._noise(64))
    monkeypatch.setattr(engine, "NOISE_BLOCK", 1)
    blocks = list(trainer(batch_size=16)._noise(64))
    assert [tuple(n.shape) for n in blocks] == [(1, 16, 2)] * 4
    # Blocking is a matter of memory alone.
    assert all(torch.equal(a, b) for a, b in zip(whole, blocks, strict=True))
    last = list(trainer()._noise(37))[-1]
    assert last.shape == (1, 1, 2)


def test_bfloat16_trains_like_float32():
    losses = {}
    for precision in (torch.float32, torch.bfloat16):
        model = make()
        engine = trainer(model, precision=precision)
        for _ in range(30):
            record = engine.train_epoch(Data(ROWS.to(precision)))
        engine.close()
        losses[precision] = record.loss
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.02)


def test_weights_are_the_models_own_after_close():
    model = make()
    engine = trainer(model)
    engine.train_epoch(Data(ROWS))
    trained = flat(model)
    engine.close()
    engine.weights.master.zero_()
    assert torch.equal(flat(model), trained)


def test_best_epoch_stays(monkeypatch):
    model = make()
    engine = trainer(model)
    validation = iter([5.0, 3.0, 4.0, 3.5])
    monkeypatch.setattr(engine, "evaluate", lambda *_: (next(validation), 0.0, 0.0))
    seen = []
    noise = torch.zeros(1, 37, 2)
    for _ in train(
        engine, Data(ROWS), epochs=4, validation=Data(ROWS), validation_noise=noise
    ):
        seen.append(flat(model))
    assert torch.equal(flat(model), seen[1])


def test_early_stopping_waits_its_patience(monkeypatch):
    engine = trainer()
    validation = iter([5.0, 4.0, 3.95, 3.9, 3.0, 9.0])
    monkeypatch.setattr(engine, "evaluate", lambda *_: (next(validation), 0.0, 0.0))
    records = list(
        train(
            engine,
            Data(ROWS),
            epochs=6,
            validation=Data(ROWS),
            validation_noise=torch.zeros(1, 37, 2),
            patience=2,
            tolerance=0.5,
        )
    )
    assert [r.validation_loss for r in records] == [5.0, 4.0, 3.95, 3.9]


def test_nothing_is_best_before_the_warm_up_is_over(monkeypatch):
    """Losses of a small KL weight are lower, and do not compare."""
    model = make(objective=ELBO(warmup=0.5))
    engine = trainer(model)
    losses = [1.0, 0.5, 2.0, 3.0, 9.0, 7.0, 8.0, 7.5]
    validation = iter(losses)
    monkeypatch.setattr(engine, "evaluate", lambda *_: (next(validation), 0.0, 0.0))
    seen, best = [], []
    for _ in train(
        engine,
        Data(ROWS),
        epochs=8,
        validation=Data(ROWS),
        validation_noise=torch.zeros(1, 37, 2),
        patience=2,
    ):
        seen.append(flat(model))
        best.append(engine.best_epoch)
    # Early stopping waits for the end of the warm-up, then for its patience. Until
    # then, whoever stops has the latest weights.
    assert best == [1, 2, 3, 4, 5, 6, 6, 6]
    assert torch.equal(flat(model), seen[5])


def test_a_warm_up_that_no_epoch_follows_keeps_the_last_one():
    model = make(objective=ELBO(warmup=0.9))
    engine, seen = trainer(model), []
    for _ in train(engine, Data(ROWS), epochs=3, patience=1):
        seen.append(flat(model))
    assert engine.best_epoch == 3
    assert torch.equal(flat(model), seen[2])


def test_progress_goes_from_the_first_step_to_the_last(monkeypatch):
    model = make(objective=ELBO(warmup=0.97))
    engine, seen = trainer(model), []
    step = engine.gradient_step

    def spy(batch):
        seen.append((batch.progress, batch.n_rows))
        return step(batch)

    engine.gradient_step = spy
    list(train(engine, Data(ROWS), epochs=2))
    assert [progress for progress, _ in seen] == pytest.approx(
        [i / 9 for i in range(10)]
    )
    assert {n_rows for _, n_rows in seen} == {37}
    assert model.objective.ramp(seen[-1][0]) == 1
    # Without an end in sight nothing warms up.
    engine.train_epoch(Data(ROWS))
    assert [progress for progress, _ in seen[10:]] == [1.0] * 5


def test_dropout_is_off_where_the_loss_is_evaluated():
    model = make(network=MLP(dropout=0.5))
    engine = trainer(model)
    assert next(engine._noise(37)).shape == (1, 9, 2 + 2 * 5)
    noise = torch.zeros(1, 37, model.n_loss_noise)
    once = engine.evaluate(Data(ROWS), noise)
    assert once == engine.evaluate(Data(ROWS), noise)
    expected = model.loss(Batch(ROWS, noise))[0].mean().item()
    assert once[0] == pytest.approx(expected, rel=1e-5)


def test_evaluate_is_the_mean_over_rows_whatever_the_blocks():
    model = make()
    engine = trainer(model)
    rows = ROWS.repeat(40, 1)
    noise = torch.randn(1, len(rows), 2, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(len(rows), generator=torch.Generator().manual_seed(1))
    weights /= weights.mean()
    loss, reconstruction, kl = engine.evaluate(Data(rows, weights), noise)
    expected = (model.loss(Batch(rows, noise))[0] * weights).mean().item()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert loss == pytest.approx(reconstruction + kl, rel=1e-5)


def test_cosine_schedule_ends_at_zero():
    engine = trainer(schedule="cosine")
    rates = [r.learning_rate for r in train(engine, Data(ROWS), epochs=4)]
    assert rates == sorted(rates, reverse=True)
    steps = 4 * 5
    expected = 1e-2 * 0.5 * (1 + math.cos(math.pi * (steps - 1) / steps))
    assert rates[-1] == pytest.approx(expected)
    assert [SCHEDULES["cosine"](p) for p in (0, 1)] == [1, 0]


def test_active_units_are_the_latents_that_vary():
    model = make()
    with torch.no_grad():
        encoder = model.network.encoder[-1]
        encoder.weight[1].zero_()  # the second posterior mean is the same for all rows
        encoder.weight[0] *= 10
    record = trainer(model, learning_rate=1e-9).train_epoch(Data(ROWS))
    assert record.active_units == 1


@pytest.mark.parametrize("epoch", [1, 3])
def test_divergence_stops_and_keeps_the_last_finite_weights(epoch):
    model = make()
    engine = trainer(model, learning_rate=math.inf if epoch == 1 else 1e-2)
    run = train(engine, Data(ROWS), epochs=5)
    seen = [flat(model)]
    for _ in range(epoch - 1):
        next(run)
        seen.append(flat(model))
    engine.learning_rate = math.inf
    with pytest.raises(DivergenceError, match=f"no longer finite in epoch {epoch}"):
        next(run)
    assert torch.equal(flat(model), seen[-1])


def test_whoever_iterates_may_stop():
    model = make()
    run = train(trainer(model), Data(ROWS), epochs=50)
    next(run)
    after_one = flat(model)
    run.close()
    assert torch.equal(flat(model), after_one)


def test_interrupted_first_epoch_keeps_the_steps_taken(monkeypatch):
    model = make()
    engine = trainer(model)
    start = flat(model)
    update = engine._update

    def interrupted(*arguments):
        update(*arguments)
        if engine.n_steps == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(train(engine, Data(ROWS), epochs=2))
    assert not torch.equal(flat(model), start)
    assert torch.isfinite(flat(model)).all()


def test_records_are_in_the_users_units():
    inner = trainer(make(Gaussian())).train_epoch(Data(ROWS))
    outer = trainer(make(Gaussian()), log_scale=5.0).train_epoch(Data(ROWS))
    assert outer.loss == pytest.approx(inner.loss + 5)
    assert outer.reconstruction == pytest.approx(inner.reconstruction + 5)
    assert outer.kl == inner.kl


def test_best_weights_between_epochs():
    engine = trainer(learning_rate=0.3)
    data = Data(ROWS)
    run = train(engine, data, epochs=6)
    records = [next(run) for _ in range(6)]
    assert engine.best_epoch == min(records, key=lambda r: r.loss).epoch
    last = engine.weights.master.clone()
    with engine.best_weights():
        best = engine.weights.master.clone()
        assert (flat(engine.model) != 0).any()
    assert torch.equal(engine.weights.master, last)
    run.close()
    assert torch.equal(engine.weights.master, best)


def test_state_goes_on_where_it_was_taken():
    whole, first, second = (trainer() for _ in range(3))
    data = Data(ROWS)
    expected = [record.loss for record in train(whole, data, epochs=6)]
    run = train(first, data, epochs=6)
    losses = [next(run).loss for _ in range(4)]
    state = first.state()
    run.close()  # changes the weights, not what was taken
    second.restore(state)
    losses += [record.loss for record in train(second, data, epochs=2)]
    assert losses == expected
    assert second.best_epoch == whole.best_epoch
    assert torch.equal(second.weights.master, whole.weights.master)


def test_patience_lasts_over_a_pause():
    one, two = trainer(learning_rate=1e-9), trainer(learning_rate=1e-9)
    data, options = Data(ROWS), {"patience": 2, "tolerance": 1e9}
    assert len(list(train(one, data, epochs=9, **options))) == 3
    run = train(two, data, epochs=9, **options)
    for _ in range(3):
        next(run)
    again = trainer(learning_rate=1e-9)
    again.restore(two.state())
    assert list(train(again, data, epochs=6, **options)) == []
