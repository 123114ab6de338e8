"""
A search on a Dask cluster
==========================

The same search on workers that may be on other machines; here they are processes on
this one. A worker that dies takes nothing with it but the task that it was at: the
scheduler hands that to another.
"""

import joblib
from dask.distributed import Client, LocalCluster

from skvae import VAEEstimator, VAEGridSearchCV
from skvae.datasets import load_digits

GRID = {
    "epochs": [10, 20],
    "learning_rate": [1e-3, 5e-3],
    "hidden_dim": [32, 64],
    "latent_dim": [2, 8],
}


def main(n_workers=2, rows=None):
    X = load_digits().data[:rows]
    cluster = LocalCluster(
        n_workers=n_workers,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=None,
    )
    with cluster, Client(cluster), joblib.parallel_config("dask"):
        search = VAEGridSearchCV(VAEEstimator(random_state=0), GRID, cv=3, n_jobs=-1)
        search.fit(X)
    print(search.best_params_, search.best_score_)
    return search


if __name__ == "__main__":
    main()
