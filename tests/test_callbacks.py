"""Who listens to a fit: scikit-learn's callbacks, and the progress bar."""

import numpy as np
import pytest
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from estimator_helpers import Recorder, tiny, tiny_conditional
from skvae import neg_elbo_scorer


def falling(**parameters):
    """On iris its loss falls in every one of the first epochs: the last is the best."""
    return tiny(learning_rate=1e-2, **parameters)


def test_callbacks_see_every_epoch(iris):
    seen = Recorder()
    model = falling(epochs=3).set_callbacks(seen).fit(iris)
    epochs = [("epoch", i) for i in range(3)]
    assert seen.begun == [("fit", 0), *epochs]
    assert seen.ended == [*epochs, ("fit", 0)]
    assert seen.n_setups == seen.n_teardowns == 1
    # Each hook sees the model as if fit had stopped there.
    for n, score in enumerate(seen.scores[:3], 1):
        alone = falling(epochs=n).fit(iris).score(iris)
        assert score == pytest.approx(alone, abs=1e-3)
    assert seen.scores[3] == pytest.approx(model.score(iris), abs=1e-4)


def test_a_callback_may_keep_what_it_is_shown(iris):
    """Each epoch shows a value of its own, which later epochs do not change."""
    kept, codes = [], []

    class Keeper(Recorder):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            kept.append(fitted_estimator)
            codes.append(fitted_estimator.transform(iris))

    tiny(epochs=4, learning_rate=1e-2).set_callbacks(Keeper()).fit(iris)
    assert len(kept) == 5
    for one, before in zip(kept, codes, strict=True):
        np.testing.assert_array_equal(one.transform(iris), before)
    assert not np.allclose(codes[0], codes[3])


def test_every_epoch_that_begins_ends(iris):
    seen = Recorder()
    model = tiny(epochs=30, early_stopping=True, tol=1e9, n_iter_no_change=2)
    model.set_callbacks(seen).fit(iris)
    assert model.n_iter_ == 3
    assert sorted(seen.begun) == sorted(seen.ended)


def test_a_callback_that_returns_true_stops_the_training(iris):
    stop = Recorder(lambda context: context.task_id == 3)
    model = tiny(epochs=50).set_callbacks(stop).fit(iris)
    assert model.n_iter_ == len(model.history_) == 4
    assert model.fitted_.result == "stopped"
    assert sorted(stop.begun) == sorted(stop.ended)
    assert stop.n_teardowns == 1
    model.set_callbacks().fit(iris)
    assert model.n_iter_ == 50


@pytest.mark.parametrize("make", [tiny, tiny_conditional])
def test_callbacks_are_told_rows_labels_and_weights_that_belong_together(make, iris):
    y = np.arange(150) if make is tiny else np.arange(150) % 3
    weights = np.linspace(0, 1, 150)
    seen = Recorder()
    model = make(validation_fraction=0.2).set_callbacks(seen)
    model.fit(iris, y, sample_weight=weights)
    assert len(seen.X) == 3
    for X, labels, metadata in zip(seen.X, seen.y, seen.metadata, strict=True):
        # One row weighs nothing, and of the others a fifth is held out.
        assert len(X) == len(labels) == len(metadata["sample_weight"]) == 119
        assert (metadata["sample_weight"] > 0).all()
        rows = [np.flatnonzero(w == weights).item() for w in metadata["sample_weight"]]
        np.testing.assert_array_equal(X, iris[rows])
        np.testing.assert_array_equal(labels, y[rows])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("y", [None, np.arange(150)], ids=["alone", "with y"])
def test_scoring_monitor_records_a_score_per_epoch(iris, weighted, y):
    monitor = ScoringMonitor(scoring=neg_elbo_scorer)
    model = falling(epochs=3).set_callbacks(monitor)
    model.fit(iris, y, sample_weight=np.linspace(1, 2, 150) if weighted else None)
    rows = monitor.get_logs().data
    names = set(rows[0]) - {
        "task_id_path",
        "parent_task_id_path",
        "estimator_name",
        "task_name",
        "task_id",
        "sequential_subtasks",
    }
    (name,) = names
    epochs = [row[name] for row in rows if row["task_name"] == "epoch"]
    assert len(epochs) == 3
    if not weighted:
        for n, score in enumerate(epochs, 1):
            alone = falling(epochs=n).fit(iris).score(iris)
            assert score == pytest.approx(alone, abs=1e-3)


def test_scoring_monitor_with_a_name_for_the_score(iris):
    monitor = ScoringMonitor(scoring={"elbo": neg_elbo_scorer})
    tiny(epochs=3).set_callbacks(monitor).fit(iris)
    rows = monitor.get_logs().data_as_pandas
    assert rows[rows.task_name == "epoch"].elbo.notna().sum() == 3


def test_progress_bar(iris, capsys):
    pytest.importorskip("rich")
    tiny(epochs=3).set_callbacks(ProgressBar()).fit(iris)
    out = capsys.readouterr().out
    assert "VAEEstimator - fit" in out
    assert "100%" in out


@pytest.mark.filterwarnings("ignore:The estimator .* does not support callbacks")
def test_callbacks_in_a_pipeline_and_a_grid(digits, capsys):
    pytest.importorskip("rich")
    X = digits[:60]
    pipe = make_pipeline(MinMaxScaler(), tiny())
    pipe.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X)
    assert "VAEEstimator - fit" in capsys.readouterr().out
    stop = Recorder(lambda context: context.task_name == "epoch")
    inner = make_pipeline(MinMaxScaler(), tiny(epochs=9).set_callbacks(stop)).fit(X)
    assert inner[-1].n_iter_ == 1
    monitor = ScoringMonitor(scoring={"elbo": neg_elbo_scorer})
    search = GridSearchCV(
        tiny().set_callbacks(monitor),
        {"latent_dim": [2, 3]},
        cv=2,
        scoring=neg_elbo_scorer,
    )
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X)
    assert "VAEEstimator - fit" in capsys.readouterr().out
    rows = monitor.get_logs().data_as_pandas
    # Two candidates on two folds, and the refit, of two epochs each.
    assert (rows.task_name == "epoch").sum() == 10


# ------------------------------------------------------------------------- verbose


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_verbose_0_is_silent(iris, capsys, method):
    model = getattr(tiny(validation_fraction=0.2), method)(iris)
    model.score(model.sample(3))
    assert capsys.readouterr() == ("", "")


def test_verbose_1_shows_progress_on_stderr(iris, capsys):
    tiny(verbose=1, epochs=4, validation_fraction=0.2).fit(iris)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 4
    for i, line in enumerate(lines, 1):
        for word in (f"epoch {i}/4", "loss", "recon", "KL", "validation", "left"):
            assert word in line
