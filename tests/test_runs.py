"""Runs: which candidates share a training, and what is left to scikit-learn."""

import gc
from dataclasses import replace
from time import perf_counter, sleep

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler

from search_helpers import evaluations, record_stacks, results_of, runs_of, tiny
from skvae import ELBO, IWAE, MLP, VAEEstimator, runs
from skvae.checkpoint import States
from skvae.model_selection import VAEGridSearchCV
from skvae.objectives import Objective
from skvae.runs import epochs_nest, fit_head, gather, last_steps
from skvae.training import Training
from skvae.training.engine import Stack


@pytest.fixture
def X(digits):
    """60 rows of grey values."""
    return digits[:60]


@pytest.fixture
def stacks(monkeypatch):
    """The sizes of the stacks that are trained, in their order."""
    return record_stacks(monkeypatch)


class Listener:
    """A callback of the estimator's own."""

    def setup(self, estimator, context): ...
    def teardown(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context, **data): ...
    def on_fit_task_end(self, estimator, context, **data): ...


class Annealed(Objective):
    """A user's objective that depends on the progress of the training."""

    follows_progress = True

    def loss(self, terms):
        return terms.reconstruction + terms.progress * terms.divergence


class Plain(Objective):
    """A user's objective that does not."""

    def loss(self, terms):
        return terms.reconstruction + terms.divergence


# ------------------------------------------------------------------------- gathering


@pytest.mark.parametrize(
    ("options", "nest"),
    [
        ({}, True),
        ({"objective": ELBO(beta=3)}, True),
        ({"objective": "iwae"}, True),
        ({"objective": IWAE()}, True),
        ({"objective": Plain()}, True),
        ({"early_stopping": True, "validation_fraction": 0.2}, True),
        ({"learning_rate_schedule": "cosine"}, False),
        ({"objective": ELBO(warmup=0.5)}, False),
        ({"objective": Annealed()}, False),
    ],
    ids=str,
)
def test_epochs_nest(options, nest):
    assert epochs_nest(VAEEstimator(**options)) is nest


@pytest.mark.parametrize("objective", ["no such", 3])
def test_an_unknown_objective_is_left_to_scikit_learn(objective, X):
    with pytest.raises((ValueError, TypeError), match="objective"):
        epochs_nest(VAEEstimator(objective=objective))
    grid = {"objective": [objective, "elbo"], "epochs": [1, 2]}
    found, alone = gather(evaluations(tiny(), grid, X))
    assert len(found) == 2  # those of the ELBO
    assert len(alone) == 4


def test_gather(X):
    grid = {"epochs": [3, 1, 2], "latent_dim": [2, 3], "learning_rate": [1e-3]}
    found = runs_of(tiny(), grid, X)
    assert len(found) == 4  # two widths, two folds
    for run in found:
        assert [e.epochs for e in run.evaluations] == [1, 2, 3]
        assert run.epochs == run.total == 3
        assert len({e.fold for e in run.evaluations}) == 1
    assert {run.training.batch_size for run in found} == {50}
    assert len({run.training.architecture for run in found}) == 2
    # What depends on the number of epochs is a run for each number.
    for vae in (tiny(learning_rate_schedule="cosine"), tiny(objective=Annealed())):
        assert len(runs_of(vae, grid, X)) == 12


def test_specs_are_told_apart_by_their_parameters(X):
    grid = {"objective": [ELBO(), ELBO(beta=2), ELBO(beta=3)], "epochs": [1, 2]}
    assert len(runs_of(tiny(), grid, X)) == 6
    grid = {"network": ["mlp", MLP(activation="tanh")], "epochs": [1, 2]}
    assert len(runs_of(tiny(), grid, X)) == 4


class Mine(VAEEstimator):
    """A user's subclass, which may do anything between two steps."""


class OwnPipeline(Pipeline):
    """A user's own Pipeline."""


@pytest.mark.parametrize(
    ("estimator", "grid"),
    [
        (make_pipeline(tiny(), StandardScaler()), {"vaeestimator__epochs": [1, 2]}),
        (KMeans(2), {"n_clusters": [2, 3]}),
        (tiny(), {"epochs": [0, "many"]}),
        (tiny(), {"nonsense": [1, 2]}),
        (Mine(), {"epochs": [1, 2]}),
        (tiny().set_callbacks(Listener()), {"epochs": [1, 2]}),
        (
            OwnPipeline([("scale", StandardScaler()), ("vae", tiny())]),
            {"vae__epochs": [1, 2]},
        ),
    ],
    ids=[
        *("inside", "other", "bad value", "bad name", "subclass"),
        *("callback", "subclass of Pipeline"),
    ],
)
def test_what_is_left_to_scikit_learn(estimator, grid, X):
    search = VAEGridSearchCV(estimator, grid, cv=2, scoring=lambda *args: 0.0)
    found, alone = gather(search._future(X, None))
    assert found == []
    assert len(alone) == 4


def test_steps_and_modules_are_told_apart_by_what_they_are(X):
    grid = {"vaeestimator__epochs": [1, 2]}
    for head in (FunctionTransformer(lambda X: X), MinMaxScaler()):
        assert len(runs_of(make_pipeline(head, tiny()), grid, X)) == 2
    with torch.random.fork_rng():
        pair = torch.nn.Linear(64, 4), torch.nn.Linear(2, 64)
    assert len(runs_of(tiny(network=pair), {"epochs": [1, 2]}, X)) == 2


# --------------------------------------------------------------- steps before the VAE


def test_last_steps():
    vae = tiny()
    inner = Pipeline([("b", PCA(3)), ("vae", vae)])
    outer = Pipeline([("a", MinMaxScaler()), ("inner", inner)])
    assert last_steps(outer) == ([outer, inner], vae)
    assert last_steps(vae) == ([], vae)


def test_heads_are_fitted_as_the_pipeline_would(X):
    X = X * 16
    nested = make_pipeline(
        MinMaxScaler(), make_pipeline(PCA(5, random_state=0), tiny())
    )
    found = runs_of(nested, {"pipeline__vaeestimator__epochs": [1, 2]}, X)
    head = fit_head(found[0])
    train = found[0].evaluations[0].options["train"]
    scaled = MinMaxScaler().fit_transform(X[train])
    expected = PCA(5, random_state=0).fit_transform(scaled)
    np.testing.assert_allclose(head.X, expected, rtol=1e-5)
    names = [[name for name, _ in steps] for steps in head.steps]
    assert names == [["minmaxscaler"], ["pca"]]
    # A step that fails is for scikit-learn to report.
    broken = make_pipeline(PCA(500), tiny())
    found = runs_of(broken, {"vaeestimator__epochs": [1]}, X)
    assert fit_head(found[0]) is None


class CannotBeFitted(StandardScaler):
    def fit(self, X, y=None):
        raise ValueError("not these rows")


def test_a_head_that_cannot_be_fitted_fails_as_it_does_alone(X):
    pipeline = make_pipeline(CannotBeFitted(), tiny())
    found, alone = gather(evaluations(pipeline, {"tiny__epochs": [1]}, X))
    assert (found, len(alone)) == ([], 2)  # no such parameter: left to scikit-learn
    found = runs_of(pipeline, {"vaeestimator__epochs": [1, 2]}, X)
    for run in found:
        run.head = fit_head(run)
        assert run.head is None
    for result in results_of(found).values():
        assert "not these rows" in result["fit_error"]
        assert "During handling" not in result["fit_error"]


# -------------------------------------------------------------------------- training


def test_together_as_alone(X, stacks):
    grid = {"epochs": [1, 3], "learning_rate": [1e-3, 1e-2]}
    results = results_of(runs_of(tiny(), grid, X))
    assert stacks == [4]
    for evaluation in evaluations(tiny(), grid, X):
        alone, result = evaluation.alone(), results[evaluation.index]
        assert result["fit_error"] is None
        assert result.keys() == alone.keys()
        assert result["n_test_samples"] == 30
        assert result["test_scores"] == pytest.approx(alone["test_scores"], rel=1e-5)


def test_time_is_shared_out(X, monkeypatch):
    original = Stack.epoch

    def epoch(self):
        sleep(0.02)
        return original(self)

    monkeypatch.setattr(Stack, "epoch", epoch)
    grid = {"epochs": [1, 4], "learning_rate": [1e-3, 1e-2]}
    found = runs_of(tiny(), grid, X)[:2]
    started = perf_counter()
    results = results_of(found)
    whole = perf_counter() - started
    for run in found:
        one, four = (results[e.index] for e in run.evaluations)
        # Two trainings side by side, each at half of the time of an epoch.
        assert one["fit_time"] >= 0.01
        assert four["fit_time"] >= 3 * 0.01  # beside what the first one took
        assert one["score_time"] > 0
    # No time is counted twice.
    assert sum(r["fit_time"] + r["score_time"] for r in results.values()) <= whole


class Broken(torch.nn.Linear):
    """A layer that fails when it is trained, with what torch says of wrong shapes."""

    def forward(self, x):
        if len(x) > 2:  # the check of a pair of modules takes two rows
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return super().forward(x)


@pytest.mark.parametrize("keep_states", [False, True])
def test_what_fails_on_the_way_fails_as_alone(keep_states, X, tmp_path, stacks):
    with torch.random.fork_rng():
        pair = Broken(64, 4), torch.nn.Linear(2, 64)
    grid = [{"network": [pair], "epochs": [1, 2]}, {"epochs": [1]}]
    found = runs_of(tiny(), grid, X)
    results = results_of(found, states=States(tmp_path) if keep_states else None)
    errors = [results[i]["fit_error"] for i in range(6)]
    assert all("cannot be multiplied" in error for error in errors[:4])
    assert not any("During handling" in error for error in errors[:4])
    assert errors[4:] == [None, None]
    assert sorted(stacks) == [1, 1, 2, 2]  # two folds of each, and then one by one


class Undecided(Objective):
    """A user's objective with Python control flow that depends on the data."""

    def loss(self, terms):
        if terms.reconstruction.mean() > 40:
            return terms.reconstruction + terms.divergence
        return terms.reconstruction + 2 * terms.divergence


class UndecidedLayer(torch.nn.Linear):
    """A layer with Python control flow that depends on the data."""

    def forward(self, x):
        return super().forward(x if x.sum() > 0 else 2 * x)


@pytest.mark.parametrize("kind", ["objective", "network"])
@pytest.mark.parametrize("keep_states", [False, True])
def test_what_vmap_cannot_stack_is_trained_one_by_one(
    kind, keep_states, X, tmp_path, stacks
):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        pair = UndecidedLayer(64, 4), torch.nn.Linear(2, 64)
    choice = {"objective": Undecided(), "network": pair}[kind]
    vae = tiny(**{kind: choice})
    grid = {"epochs": [1, 3], "learning_rate": [1e-2, 3e-3]}
    states = States(tmp_path) if keep_states else None
    found = runs_of(vae, grid, X)
    if keep_states:  # as at the first rung of a race
        found = [replace(run, evaluations=run.evaluations[:1]) for run in found]
    results = results_of(found, states=states)
    assert stacks == [4, 1, 1, 1, 1]
    for run in found:
        last = run.evaluations[-1]
        assert (("state", last.index) in results) is keep_states
        for evaluation in run.evaluations:
            result, alone = results[evaluation.index], evaluation.alone()
            assert result["fit_error"] is None
            assert result["test_scores"] == pytest.approx(
                alone["test_scores"], rel=1e-6
            )


def test_trainings_that_only_look_alike_are_stacks_of_their_own(X, stacks):
    grid = {"latent_dim": [2], "objective": ["elbo", "wae"], "epochs": [1]}
    grid["learning_rate"] = [1e-3, 1e-2]
    results = results_of(runs_of(tiny(), grid, X))
    assert sorted(stacks) == [4, 4]
    assert all(result["fit_error"] is None for result in results.values())


def test_a_run_goes_on_where_it_stopped(X, tmp_path):
    grid = {"epochs": [2, 5], "learning_rate": [1e-3, 1e-2]}
    whole = results_of(runs_of(tiny(), grid, X))
    for together in (True, False):
        found = runs_of(tiny(), grid, X)
        parts = [replace(run, evaluations=run.evaluations[:1]) for run in found]
        batches = [parts] if together else [[part] for part in parts]
        results = {}
        for batch in batches:
            results |= results_of(batch, states=States(tmp_path))
        for run in found:
            state = results["state", run.evaluations[0].index]
            assert len(state["training"]["records"]) == 2
            rest = replace(run, evaluations=run.evaluations[1:], state=state)
            results |= results_of([rest])
        for index, result in whole.items():
            assert results[index]["test_scores"] == pytest.approx(
                result["test_scores"], rel=1e-5
            )


def test_what_stopped_early_does_not_go_on(X, tmp_path, monkeypatch):
    # No epoch is so much better than the first, though each is better.
    vae = tiny(early_stopping=True, n_iter_no_change=1, tol=1e6, learning_rate=1e-2)
    run = runs_of(vae, {"epochs": [4, 12]}, X)[0]
    part = replace(run, evaluations=run.evaluations[:1])
    results = results_of([part], states=States(tmp_path))
    state = results["state", part.evaluations[0].index]
    assert state["result"] == "stopped"
    alone = run.evaluations[1].alone()

    def epoch(self):
        raise AssertionError("an epoch of a training that has ended")

    monkeypatch.setattr(Stack, "epoch", epoch)
    rest = replace(run, evaluations=run.evaluations[1:], state=state)
    results |= results_of([rest])
    short, long = (results[e.index] for e in run.evaluations)
    assert long["fit_error"] is None
    assert long["test_scores"] == short["test_scores"]
    assert long["test_scores"] == pytest.approx(alone["test_scores"], rel=1e-6)


def test_a_training_that_starts_afresh_does_not_wait_for_others(X, tmp_path, stacks):
    grid = {"epochs": [1, 2], "learning_rate": [1e-3, 2e-3, 5e-3]}
    found = runs_of(tiny(), grid, X)
    whole = results_of(runs_of(tiny(), grid, X))
    parts = [replace(run, evaluations=run.evaluations[:1]) for run in found]
    states = results_of(parts[1:], states=States(tmp_path))
    rest = [found[0]] + [
        replace(
            run,
            evaluations=run.evaluations[1:],
            state=states["state", run.evaluations[0].index],
        )
        for run in found[1:]
    ]
    stacks.clear()
    results = results_of(rest)
    assert sorted(stacks) == [1, 5]
    for index, result in results.items():
        assert result["test_scores"] == pytest.approx(
            whole[index]["test_scores"], rel=1e-5
        )


def test_all_parts_of_a_training_share_fresh_randomness(X, tmp_path):
    vae = tiny(random_state=None, validation_fraction=0.3)
    found = runs_of(vae, {"epochs": [1, 2]}, X)
    assert len({run.random_state for run in found}) == 2
    run = found[0]
    part = replace(run, evaluations=run.evaluations[:1])
    results = results_of([part], states=States(tmp_path, shared=True))
    path = results["state", part.evaluations[0].index]
    before = runs.SharedFit(part).training
    # Even in a process that has drawn again, as a search that goes on after a kill.
    rest = replace(run, state=path, random_state=run.random_state + 1)
    after = runs.SharedFit(rest).training
    assert torch.equal(before.held_out[0].x, after.held_out[0].x)
    assert torch.equal(before.data.x, after.data.x)


def test_evaluations_keep_no_model(X):
    found = runs_of(tiny(), {"epochs": [1, 2]}, X)
    results_of(found)
    for run in found:
        for evaluation in run.evaluations:
            assert not hasattr(evaluation.estimator, "model_")
            evaluation.alone()
            assert not hasattr(evaluation.estimator, "model_")


def test_a_scorer_cannot_change_what_is_trained(X):
    def train_on(estimator, X, y=None):
        score = estimator.score(X)
        estimator.partial_fit(X)
        with torch.no_grad():
            for parameter in estimator.model_.parameters():
                parameter.zero_()
        return score

    def fit_another(estimator, X, y=None):
        return tiny(latent_dim=3, epochs=estimator.epochs).fit(X).score(X)

    grid = {"epochs": [1, 2, 3]}
    for scorer in (train_on, fit_another):
        asked = evaluations(tiny(), grid, X, scoring=scorer)
        results = results_of(gather(asked)[0])
        for evaluation in evaluations(tiny(), grid, X, scoring=scorer):
            assert results[evaluation.index]["test_scores"] == pytest.approx(
                evaluation.alone()["test_scores"], rel=1e-6
            )


def test_a_probe_alone_trains_no_further_than_the_rung(X):
    pipeline = make_pipeline(StandardScaler(), tiny(likelihood="gaussian"))
    for vae, name in ((tiny(), "epochs"), (pipeline, "vaeestimator__epochs")):
        last = runs_of(vae, {name: [9]}, X)[0].evaluations[-1]
        probe = replace(last, epochs=2, is_probe=True).alone()
        short = evaluations(vae, {name: [2]}, X)[0].alone()
        assert probe["test_scores"] == pytest.approx(short["test_scores"], rel=1e-6)


def test_an_interruption_of_a_fit_alone_ends_the_search(X, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    found = runs_of(tiny(), {"epochs": [2]}, X)
    monkeypatch.setattr("skvae.training.engine.Stack.epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(runs.evaluate_alone(found[0].evaluations))
    with pytest.warns(UserWarning, match="interrupted"):
        tiny().fit(X)  # of one fit the best weights are kept


# ---------------------------------------------------------------------------- memory


def test_members_of_one_fold_hold_its_rows_once(X, monkeypatch):
    grid = {"learning_rate": [1e-3, 2e-3, 5e-3], "epochs": [1]}
    before, after, original = [], [], runs.train_stack

    def addresses(trainings):
        return [one.data.x.untyped_storage().data_ptr() for one in trainings]

    def train_stack(trainings):
        before.extend(addresses(trainings))
        for one in original(trainings):
            after.extend(addresses(trainings))
            yield one

    monkeypatch.setattr(runs, "train_stack", train_stack)
    results_of(runs_of(tiny(), grid, X))
    assert len(before) == len(after) == 6
    assert len(set(before)) == 2  # two folds
    assert len(set(after)) == 1  # both side by side in the stack


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_halves_the_stack(error, X, monkeypatch):
    sizes, original = [], runs.train_stack

    def train_stack(trainings):
        sizes.append(len(trainings))
        if len(trainings) > 2:
            raise error
        yield from original(trainings)

    monkeypatch.setattr(runs, "train_stack", train_stack)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # slow, and not what is tested
    grid = {"epochs": [1, 2], "learning_rate": [1e-3, 1e-2, 3e-3]}
    results = results_of(runs_of(tiny(), grid, X))
    assert len(results) == 12
    assert all(result["fit_error"] is None for result in results.values())
    assert sizes == [6, 3, 2, 1, 3, 2, 1]


def test_out_of_memory_at_the_beginning_halves_the_stack(X, monkeypatch, stacks):
    calls, original = [], runs.prepare

    def prepare(request):
        calls.append(request)
        if len(calls) == 4:
            raise MemoryError
        return original(request)

    monkeypatch.setattr(runs, "prepare", prepare)
    monkeypatch.setattr(gc, "collect", lambda: 0)
    results = results_of(runs_of(tiny(), {"learning_rate": [1e-3, 1e-2]}, X))
    assert all(result["fit_error"] is None for result in results.values())
    assert len(results) == 4
    assert stacks == [2, 2]


def test_a_run_without_memory_is_left_to_scikit_learn(X, monkeypatch):
    def prepare(request):
        raise MemoryError

    monkeypatch.setattr(runs, "prepare", prepare)
    monkeypatch.setattr(gc, "collect", lambda: 0)
    results = results_of(runs_of(tiny(), {"learning_rate": [1e-3, 1e-2]}, X))
    # Alone there was enough: a fit asks another function.
    assert [result["fit_error"] for result in results.values()] == [None] * 4


def test_other_errors_are_not_taken_for_it(X, monkeypatch):
    sizes = []

    def train_stack(trainings):
        sizes.append(len(trainings))
        raise RuntimeError("something else")
        yield

    monkeypatch.setattr(runs, "train_stack", train_stack)
    results = results_of(runs_of(tiny(), {"learning_rate": [1e-3, 1e-2]}, X))
    assert sizes == [4, 1, 1, 1, 1]
    # And at last as scikit-learn would.
    assert [result["fit_error"] for result in results.values()] == [None] * 4


def test_nothing_refers_to_what_filled_the_memory(X, monkeypatch):
    alive, original = [], runs.train_stack

    def n_trainings():
        return sum(type(o) is Training for o in gc.get_objects())

    def train_stack(trainings):
        alive.append(n_trainings())
        if len(trainings) > 1:
            raise MemoryError
        yield from original(trainings)

    found = runs_of(tiny(), {"learning_rate": [1e-3, 2e-3], "epochs": [1]}, X)
    monkeypatch.setattr(runs, "train_stack", train_stack)
    gc.collect()
    others = n_trainings()
    assert len(results_of(found)) == 4
    assert [n - others for n in alive[:3]] == [4, 2, 1]
