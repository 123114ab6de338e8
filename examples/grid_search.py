"""
A grid as one computation
=========================

Five hyper-parameters, all candidates, three folds: what would be trained, the search,
its ten best candidates and two heat maps. ``--full`` searches the whole grid of 3,125.
"""

import argparse
from pathlib import Path

import pandas as pd

from skvae import VAEEstimator, VAEGridSearchCV, neg_elbo_scorer
from skvae.datasets import load_digits
from skvae.plotting import SearchDisplay

QUICK = {
    "epochs": [10, 20],
    "batch_size": [50, 100],
    "learning_rate": [1e-3, 5e-3],
    "hidden_dim": [32, 64],
    "latent_dim": [2, 8],
}
FULL = {
    "epochs": [10, 20, 30, 40, 50],
    "batch_size": [100, 200, 300, 400, 500],
    "learning_rate": [0.001, 0.005, 0.01, 0.05, 0.1],
    "hidden_dim": [400, 500, 600, 700, 800],
    "latent_dim": [8, 16, 32, 64, 128],
}


def main(full=False, racing=False, out=Path("grid-search"), n_jobs=2, rows=None):
    X = load_digits().data[:rows]
    search = VAEGridSearchCV(
        VAEEstimator(random_state=0),
        FULL if full else QUICK,
        scoring=neg_elbo_scorer,
        cv=3,
        n_jobs=n_jobs,
        racing=racing,
        verbose=1,
        checkpoint_dir=out / "checkpoint",
    )
    plan = search.plan(X)
    print(plan.head().to_string())
    print(f"{len(plan)} tasks, about {plan.attrs['seconds']:.0f} s\n")

    search.fit(X)
    table = pd.DataFrame(search.cv_results_["params"])
    table["elbo"] = search.cv_results_["mean_test_score"]
    print(table.nlargest(10, "elbo").to_string(index=False))
    for x, y in (("hidden_dim", "latent_dim"), ("learning_rate", "batch_size")):
        display = SearchDisplay.from_search(search, x=x, y=y)
        display.figure_.savefig(out / f"{x}-{y}.png", dpi=110)
    return search


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--racing", action="store_true", help="no longer exhaustive")
    parser.add_argument("--out", type=Path, default=Path("grid-search"))
    parser.add_argument("--n-jobs", type=int, default=2)
    main(**vars(parser.parse_args()))
