"""Races, against hand-made results."""

import numpy as np
import pytest

from search_helpers import evaluations, tiny
from skvae.checkpoint import Checkpoint, States
from skvae.racing import Race, rungs_of
from skvae.runs import gather


def test_rungs():
    assert rungs_of([50, 10, 30, 10]) == [7, 10, 30, 50]
    assert rungs_of([1, 2, 4]) == [1, 2, 4]
    assert rungs_of([16]) == [2, 4, 8, 16]
    assert rungs_of([10, 10]) == [2, 3, 5, 10]
    assert rungs_of([1]) == [1]
    assert rungs_of([]) == []


def race(grid, tmp_path, X, fraction=0.5, metric=None):
    asked = evaluations(tiny(), grid, X)
    runs, alone = gather(asked)
    assert alone == []
    return Race(
        runs,
        asked,
        {},
        States(tmp_path),
        Checkpoint(None, asked),
        fraction,
        metric,
    )


def run_rung(one, rung, score):
    """Give every part of a rung the score of its learning rate."""
    parts = [part.with_state() for part in one.parts(rung)]
    for part in parts:
        for e in part.evaluations:
            value = score(e)
            one.results[e.index] = {
                "test_scores": value,
                "fit_error": "it broke" if value != value else None,
            }
        if part.epochs < part.total:
            state = {"at": rung, "random_state": None}
            one.keep_state(rung, part.evaluations[-1].index, state)
    return parts


def rate(evaluation):
    return evaluation.options["parameters"]["learning_rate"]


def test_the_worst_stop_and_the_others_go_on(tmp_path, digits):
    grid = {"epochs": [1, 2, 4], "learning_rate": [0.1, 0.2, 0.3, 0.4]}
    one = race(grid, tmp_path, digits[:60])
    assert one.rungs == [1, 2, 4]
    assert len(run_rung(one, 0, rate)) == 8  # four rates, two folds
    one.stop_worst()
    parts = run_rung(one, 1, rate)
    assert sorted({rate(part.evaluations[0]) for part in parts}) == [0.3, 0.4]
    assert all(part.state["at"] == 0 for part in parts)
    one.stop_worst()
    parts = run_rung(one, 2, rate)
    assert {rate(part.evaluations[0]) for part in parts} == {0.4}
    one.finish()
    columns = one.columns()
    # Candidates in the order of the grid: epochs, then rates.
    assert columns["rung"] == [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 2]
    assert columns["n_epochs"] == [1, 1, 1, 1, 1, 1, 2, 2, 1, 1, 2, 4]
    assert np.flatnonzero(columns["finished"]).tolist() == [0, 1, 2, 3, 6, 7, 11]
    assert len(one.results) == 24
    assert not list(tmp_path.iterdir())


def test_probes_look_where_no_candidate_is_complete(tmp_path, digits):
    one = race({"epochs": [8], "learning_rate": [0.1, 0.2]}, tmp_path, digits[:60])
    assert one.rungs == [1, 2, 4, 8]
    parts = run_rung(one, 0, rate)
    probes = [e for part in parts for e in part.evaluations]
    assert all(e.is_probe and e.epochs == 1 for e in probes)
    assert len({e.index for e in probes} | set(range(4))) == 8
    one.stop_worst()
    for rung in (1, 2, 3):
        run_rung(one, rung, rate)
        one.stop_worst()
    one.finish()
    assert one.columns() == {
        "rung": [0, 3],
        "n_epochs": [1, 8],
        "finished": [False, True],
    }
    assert {one.results[i]["test_scores"] for i in (0, 1)} == {0.1}


def test_what_failed_is_last_and_goes_no_further(tmp_path, digits):
    grid = {"epochs": [1, 2], "learning_rate": [0.1, 0.2, 0.3]}
    one = race(grid, tmp_path, digits[:60], fraction=0.1)  # of three none stops

    def score(evaluation):
        value = rate(evaluation)
        return float("nan") if value == 0.3 else value

    run_rung(one, 0, score)
    one.stop_worst()
    parts = run_rung(one, 1, score)
    assert {rate(part.evaluations[0]) for part in parts} == {0.1, 0.2}
    one.finish()
    assert one.results[10]["fit_error"] == "it broke"
    assert len(one.results) == 12


def test_one_always_goes_on(tmp_path, digits):
    one = race({"epochs": [1, 2]}, tmp_path, digits[:60], fraction=0.99)
    run_rung(one, 0, lambda e: 1.0)
    one.stop_worst()
    assert len(run_rung(one, 1, lambda e: 1.0)) == 2


def test_one_of_several_scores_decides(tmp_path, digits):
    grid = {"epochs": [1, 2], "learning_rate": [0.1, 0.2]}

    def score(evaluation):
        return {"a": rate(evaluation), "b": -rate(evaluation)}

    one = race(grid, tmp_path, digits[:60], metric="b")
    run_rung(one, 0, score)
    one.stop_worst()
    parts = one.parts(1)
    assert {rate(part.evaluations[0]) for part in parts} == {0.1}
    one = race(grid, tmp_path, digits[:60], metric=None)
    run_rung(one, 0, score)
    with pytest.raises(ValueError, match=r"name one of them in refit, which is None"):
        one.stop_worst()


def test_a_loser_leaves_as_soon_as_it_is_known(tmp_path, digits):
    # Nine candidates for three places, in any order: states are kept of three.
    grid = {"epochs": [1, 2], "learning_rate": [i / 10 for i in range(1, 10)]}
    one = race(grid, tmp_path, digits[:60], fraction=2 / 3)
    parts = one.parts(0)
    most = 0
    for i in np.random.RandomState(0).permutation(len(parts)):
        last = parts[i].evaluations[-1]
        one.results[last.index] = {"test_scores": rate(last), "fit_error": None}
        one.keep_state(0, last.index, {"at": 0})
        one.stop_worst()
        scored = len(one.scores)
        assert len(one.racing) == 9 - max(0, scored - 3)
        most = max(most, len(list(tmp_path.glob("*.state"))))
    assert most <= 2 * 3 + 9  # two folds of three, and nine that wait for a fold
    assert len(list(tmp_path.glob("*.state"))) == 6
    assert {rate(part.evaluations[0]) for part in one.parts(1)} == {0.7, 0.8, 0.9}


def test_of_equals_the_first_go_on_in_any_order_of_results(tmp_path, digits):
    grid = {"epochs": [1, 2], "learning_rate": [0.1, 0.2, 0.3, 0.4]}
    for order in (1, -1):
        one = race(grid, tmp_path, digits[:60])
        for part in one.parts(0)[::order]:
            index = part.evaluations[-1].index
            one.results[index] = {"test_scores": 1.0, "fit_error": None}
            one.stop_worst()
        assert {rate(part.evaluations[0]) for part in one.parts(1)} == {0.1, 0.2}


def test_a_state_replaces_the_one_before(tmp_path, digits):
    one = race({"epochs": [1, 2, 3]}, tmp_path, digits[:60])
    for rung in (0, 1):
        run_rung(one, rung, lambda e: 1.0)
        one.stop_worst()
        assert len(list(tmp_path.glob(f"*-{rung}.state"))) == 2
        assert len(list(tmp_path.glob("*.state"))) == 2
    run_rung(one, 2, lambda e: 1.0)  # the last epoch: no state is needed
    assert not list(tmp_path.glob("*-2.state"))
