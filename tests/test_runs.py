"""Runs: what nests, what is shared, and what is left to scikit-learn."""

import gc

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

from skvae import ELBO, IWAE, MLP, VAEEstimator, runs
from skvae.checkpoint import States
from skvae.engine import Trainer
from skvae.model_selection import VAEGridSearchCV
from skvae.objectives import Objective
from skvae.runs import epochs_nest, fit_head, gather, last_steps, train_together
from test_estimator import tiny


def evaluations(estimator, grid, X, **options):
    return VAEGridSearchCV(estimator, grid, cv=2, **options)._future(X, None)


class Listener:
    """A callback of the estimator's own."""

    def setup(self, estimator, context): ...
    def teardown(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context, **data): ...
    def on_fit_task_end(self, estimator, context, **data): ...


class Annealed(Objective):
    """An objective of a user's, of whose use of ``progress`` we know nothing."""


@pytest.mark.parametrize(
    ("options", "nest"),
    [
        ({}, True),
        ({"objective": ELBO(beta=3)}, True),
        ({"objective": "iwae"}, True),
        ({"objective": IWAE()}, True),
        ({"early_stopping": True, "validation_fraction": 0.2}, True),
        ({"learning_rate_schedule": "cosine"}, False),
        ({"objective": ELBO(warmup=0.5)}, False),
        ({"objective": "no such"}, False),
        ({"objective": 3}, False),
        ({"objective": Annealed()}, False),
    ],
    ids=str,
)
def test_epochs_nest(options, nest):
    assert epochs_nest(VAEEstimator(**options)) is nest


def test_gather(digits):
    grid = {"epochs": [3, 1, 2], "latent_dim": [2, 3], "learning_rate": [1e-3]}
    found, alone = gather(evaluations(tiny(), grid, digits[:60]))
    assert alone == []
    assert len(found) == 4  # two widths, two folds
    for run in found:
        assert [e.epochs for e in run.evaluations] == [1, 2, 3]
        assert run.epochs == run.total == 3
        assert len({e.fold for e in run.evaluations}) == 1
    # What depends on the number of epochs is a run for each number.
    cosine = tiny(learning_rate_schedule="cosine")
    assert len(gather(evaluations(cosine, grid, digits[:60]))[0]) == 12
    assert {run.training.batch_size for run in found} == {50}
    assert len({run.training.architecture for run in found}) == 2


def test_specs_are_told_apart_by_their_parameters(digits):
    grid = {"objective": [ELBO(), ELBO(beta=2), ELBO(beta=2.0)], "epochs": [1, 2]}
    found, _ = gather(evaluations(tiny(), grid, digits[:60]))
    assert len(found) in (4, 6)  # 2 and 2.0 may be one or two
    grid = {"network": ["mlp", MLP(activation="tanh")], "epochs": [1, 2]}
    found, _ = gather(evaluations(tiny(), grid, digits[:60]))
    assert len(found) == 4


@pytest.mark.parametrize(
    ("estimator", "grid"),
    [
        (make_pipeline(tiny(), StandardScaler()), {"vaeestimator__epochs": [1, 2]}),
        (KMeans(2), {"n_clusters": [2, 3]}),
        (tiny(), {"epochs": [0, "many"]}),
        (tiny(), {"nonsense": [1, 2]}),
        (type("Mine", (VAEEstimator,), {"__module__": "mine"})(), {"epochs": [1, 2]}),
        (tiny().set_callbacks(Listener()), {"epochs": [1, 2]}),
    ],
    ids=["inside", "other", "bad value", "bad name", "subclass", "callback"],
)
def test_what_is_left_to_scikit_learn(estimator, grid, digits):
    search = VAEGridSearchCV(estimator, grid, cv=2, scoring=lambda *args: 0.0)
    found, alone = gather(search._future(digits[:60], None))
    assert found == []
    assert len(alone) == 4


def test_steps_and_modules_are_told_apart_by_what_they_are(digits):
    grid = {"vaeestimator__epochs": [1, 2]}
    for head in (FunctionTransformer(lambda X: X), MinMaxScaler()):
        pipeline = make_pipeline(head, tiny())
        assert len(gather(evaluations(pipeline, grid, digits[:60]))[0]) == 2
    with torch.random.fork_rng():
        pair = torch.nn.Linear(64, 4), torch.nn.Linear(2, 64)
    vae = tiny(network=pair)
    assert len(gather(evaluations(vae, {"epochs": [1, 2]}, digits[:60]))[0]) == 2


def test_last_steps():
    vae, inner, outer = tiny(), None, None
    inner = Pipeline([("b", PCA(3)), ("vae", vae)])
    outer = Pipeline([("a", MinMaxScaler()), ("inner", inner)])
    assert last_steps(outer) == ([outer, inner], vae)
    assert last_steps(vae) == ([], vae)


def test_heads_are_fitted_as_the_pipeline_would(digits):
    X = digits[:80] * 16
    nested = make_pipeline(
        MinMaxScaler(), make_pipeline(PCA(5, random_state=0), tiny())
    )
    grid = {"pipeline__vaeestimator__epochs": [1, 2]}
    found, _ = gather(evaluations(nested, grid, X))
    head = fit_head(found[0])
    train = found[0].evaluations[0].options["train"]
    scaled = MinMaxScaler().fit_transform(X[train])
    expected = PCA(5, random_state=0).fit_transform(scaled)
    np.testing.assert_allclose(head.X, expected, rtol=1e-5)
    names = [[name for name, _ in steps] for steps in head.steps]
    assert names == [["minmaxscaler"], ["pca"]]
    # A step that fails is for scikit-learn to report.
    broken = make_pipeline(PCA(500), tiny())
    found, _ = gather(evaluations(broken, {"vaeestimator__epochs": [1]}, X))
    assert fit_head(found[0]) is None


def results_of(found, **options):
    return dict(train_together(found, **options))


def test_together_as_alone(digits):
    grid = {"epochs": [1, 3], "learning_rate": [1e-3, 1e-2]}
    together = evaluations(tiny(), grid, digits[:80])
    found, _ = gather(together)
    results = results_of(found)
    for evaluation in evaluations(tiny(), grid, digits[:80]):
        alone, result = evaluation.alone(), results[evaluation.index]
        assert result["fit_error"] is None
        assert result.keys() == alone.keys()
        assert result["n_test_samples"] == 40
        assert result["test_scores"] == pytest.approx(alone["test_scores"], rel=1e-5)


def test_time_is_shared_out(digits):
    grid = {"epochs": [1, 30], "learning_rate": [1e-3, 1e-2]}
    found, _ = gather(evaluations(tiny(), grid, digits[:80]))
    results = results_of(found[:2])
    for run in found[:2]:
        one, thirty = (results[e.index] for e in run.evaluations)
        assert thirty["fit_time"] > one["fit_time"] > 0
        assert one["score_time"] > 0
    # Side by side, they took as long as each other.
    one, other = (results[run.evaluations[1].index]["fit_time"] for run in found[:2])
    assert one == pytest.approx(other, rel=0.5)


class Broken(torch.nn.Module):
    """Fails when it is trained, with what torch says of wrong shapes."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 3)

    def forward(self, x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize("keep_states", [False, True])
def test_what_fails_on_the_way_fails_as_alone(keep_states, digits, tmp_path):
    with torch.random.fork_rng():
        pair = (Broken(), torch.nn.Linear(2, 64))
    grid = [{"network": [pair], "epochs": [1, 2]}, {"epochs": [1]}]
    found, alone = gather(evaluations(tiny(), grid, digits[:60]))
    results = results_of(found, states=States(tmp_path) if keep_states else None)
    results |= dict(runs.evaluate_alone(alone))
    errors = [results[i]["fit_error"] for i in range(6)]
    assert all("cannot be multiplied" in error for error in errors[:4])
    assert errors[4:] == [None, None]


def test_a_run_goes_on_where_it_stopped(digits, tmp_path):
    grid = {"epochs": [2, 5], "learning_rate": [1e-3, 1e-2]}
    found, _ = gather(evaluations(tiny(), grid, digits[:80]))
    whole = results_of(gather(evaluations(tiny(), grid, digits[:80]))[0])
    for together in (True, False):
        parts = [runs.replace(run, evaluations=run.evaluations[:1]) for run in found]
        batches = [parts] if together else [[part] for part in parts]
        results = {}
        for batch in batches:
            results |= results_of(batch, states=States(tmp_path))
        for run in found:
            state = results["state", run.evaluations[0].index]
            assert len(state["records"]) == 2
            rest = runs.replace(run, evaluations=run.evaluations[1:], state=state)
            results |= results_of([rest])
        for index, result in whole.items():
            assert results[index]["test_scores"] == pytest.approx(
                result["test_scores"], rel=1e-5
            )
        found, _ = gather(evaluations(tiny(), grid, digits[:80]))


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_halves_the_stack(error, digits, monkeypatch):
    sizes, original = [], runs.Stack.of

    def of(members, epochs):
        sizes.append(len(members))
        if len(members) > 2:
            raise error
        return original(members, epochs)

    monkeypatch.setattr(runs.Stack, "of", staticmethod(of))
    grid = {"epochs": [1, 2], "learning_rate": [1e-3, 1e-2, 3e-3]}
    found, _ = gather(evaluations(tiny(), grid, digits[:80]))
    results = results_of(found)
    assert len(results) == 12
    assert all(result["fit_error"] is None for result in results.values())
    assert sizes == [6, 3, 2, 1, 3, 2, 1]


def test_other_errors_are_not_taken_for_it(digits, monkeypatch):
    def of(members, epochs):
        raise RuntimeError("something else")

    monkeypatch.setattr(runs.Stack, "of", staticmethod(of))
    found, _ = gather(evaluations(tiny(), {"epochs": [1]}, digits[:60]))
    with pytest.raises(RuntimeError, match="something else"):
        results_of(found)


class Fussy(StandardScaler):
    """Cannot be fitted."""

    def fit(self, X, y=None):
        raise ValueError("not these rows")


class Sampling(Pipeline):
    """A Pipeline of somebody else's."""


def test_a_head_that_cannot_be_fitted_fails_as_it_does_alone(digits):
    pipeline = make_pipeline(Fussy(), tiny())
    found, alone = gather(evaluations(pipeline, {"tiny__epochs": [1]}, digits[:60]))
    assert (found, len(alone)) == ([], 2)  # no such parameter: left to scikit-learn
    grid = {"vaeestimator__epochs": [1, 2]}
    found, alone = gather(evaluations(pipeline, grid, digits[:60]))
    for run in found:
        run.head = fit_head(run)
        assert run.head is None
    for result in results_of(found).values():
        assert "not these rows" in result["fit_error"]


def test_pipelines_of_others_are_left_alone(digits):
    pipeline = Sampling([("scale", StandardScaler()), ("vae", tiny())])
    found, alone = gather(evaluations(pipeline, {"vae__epochs": [1, 2]}, digits[:60]))
    assert (found, len(alone)) == ([], 4)


def test_all_parts_of_a_training_share_fresh_randomness(digits, tmp_path):
    vae = tiny(random_state=None, validation_fraction=0.3)
    found, _ = gather(evaluations(vae, {"epochs": [1, 2]}, digits[:60]))
    assert len({run.random_state for run in found}) == 2
    run = found[0]
    part = runs.replace(run, evaluations=run.evaluations[:1])
    found = results_of([part], states=States(tmp_path, shared=True))
    path = found["state", part.evaluations[0].index]
    before = runs.SharedFit(part)
    # Even by somebody who has drawn again, as a search does that goes on after a kill.
    rest = runs.replace(run, state=path, random_state=run.random_state + 1)
    after = runs.SharedFit(rest)
    assert torch.equal(before.fit.held_out[0].X, after.fit.held_out[0].X)
    assert torch.equal(before.fit.data.X, after.fit.data.X)
    before.close()
    after.close()


def test_evaluations_keep_no_model(digits):
    found, _ = gather(evaluations(tiny(), {"epochs": [1, 2]}, digits[:60]))
    results_of(found)
    for run in found:
        for evaluation in run.evaluations:
            assert not hasattr(evaluation.estimator, "model_")
            evaluation.alone()
            assert not hasattr(evaluation.estimator, "model_")


def test_a_probe_alone_trains_no_further_than_the_rung(digits):
    grid = {"epochs": [9]}
    pipeline = make_pipeline(StandardScaler(), tiny(likelihood="gaussian"))
    for vae, name in ((tiny(), "epochs"), (pipeline, "vaeestimator__epochs")):
        found, _ = gather(evaluations(vae, {name: grid["epochs"]}, digits[:60]))
        last = found[0].evaluations[-1]
        probe, short = (
            runs.replace(last, epochs=2, is_probe=True).alone(),
            evaluations(vae, {name: [2]}, digits[:60])[0].alone(),
        )
        assert probe["test_scores"] == pytest.approx(short["test_scores"], rel=1e-6)


def test_an_interruption_of_a_fit_alone_ends_the_search(digits, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    found, _ = gather(evaluations(tiny(), {"epochs": [2]}, digits[:60]))
    monkeypatch.setattr("skvae.engine.Trainer.train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(runs.evaluate_alone(found[0].evaluations))
    with pytest.warns(UserWarning, match="interrupted"):
        tiny().fit(digits[:60])  # of one fit the best weights are kept


def test_members_of_one_fold_hold_its_rows_once(digits, monkeypatch):
    grid = {"learning_rate": [1e-3, 2e-3, 5e-3], "epochs": [1]}
    found, _ = gather(evaluations(tiny(), grid, digits[:60]))
    seen = []
    original = runs.SharedFit.start

    def start(self, *arguments):
        seen.append(self.fit.data.X.untyped_storage().data_ptr())
        original(self, *arguments)

    monkeypatch.setattr(runs.SharedFit, "start", start)
    results_of(found)
    assert len(seen) == 6
    assert len(set(seen)) == 1  # both folds side by side in the stack


def test_nothing_refers_to_what_filled_the_memory(digits, monkeypatch):
    alive = []
    original = runs.Stack.of

    def of(members, epochs):
        trainers = [o for o in gc.get_objects() if type(o) is Trainer]
        alive.append(len(trainers))
        if len(members) > 1:
            raise MemoryError
        return original(members, epochs)

    grid = {"learning_rate": [1e-3, 2e-3], "epochs": [1]}
    found, _ = gather(evaluations(tiny(), grid, digits[:60]))
    monkeypatch.setattr(runs.Stack, "of", of)
    gc.collect()
    others = sum(type(o) is Trainer for o in gc.get_objects())
    assert len(results_of(found)) == 4
    assert [n - others for n in alive[:3]] == [4, 2, 1]


def test_who_starts_behind_goes_by_itself(digits, tmp_path, monkeypatch):
    grid = {"epochs": [1, 2], "learning_rate": [1e-3, 2e-3, 5e-3]}
    found, _ = gather(evaluations(tiny(), grid, digits[:60]))
    whole = results_of(gather(evaluations(tiny(), grid, digits[:60]))[0])
    parts = [runs.replace(run, evaluations=run.evaluations[:1]) for run in found]
    states = results_of(parts[1:], states=States(tmp_path))
    rest = [found[0]] + [
        runs.replace(
            run,
            evaluations=run.evaluations[1:],
            state=states["state", run.evaluations[0].index],
        )
        for run in found[1:]
    ]
    sizes, original = [], runs.Stack.of
    monkeypatch.setattr(
        runs.Stack,
        "of",
        lambda members, epochs: sizes.append(len(members)) or original(members, epochs),
    )
    results = results_of(rest)
    assert sorted(sizes) == [1, 5]
    for index, result in results.items():
        assert result["test_scores"] == pytest.approx(
            whole[index]["test_scores"], rel=1e-5
        )
