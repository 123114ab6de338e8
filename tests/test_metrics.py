import numpy as np
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from skvae import VAEEstimator
from skvae.metrics import elbo_parts


def test_elbo_parts_add_up_to_the_score_alone_and_in_a_pipeline():
    X = load_digits().data
    vae = VAEEstimator(hidden_dim=16, epochs=2, random_state=0)
    pipeline = make_pipeline(MinMaxScaler(), vae).fit(X)
    parts = elbo_parts(pipeline, X)
    assert set(parts) == {"reconstruction", "kl", "total"}
    assert np.array_equal(-parts["total"], pipeline.score_samples(X))
    assert (parts["kl"] > 0).all()
    scaled = pipeline[0].transform(X)
    assert np.array_equal(elbo_parts(pipeline[-1], scaled)["kl"], parts["kl"])
