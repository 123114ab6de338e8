"""What every pair of choices keeps to, whichever axes they are on.

All pairs that go together are fitted once each, in as few fits as cover them.
"""

import pickle
from itertools import combinations, product

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits

from estimator_helpers import training_of
from skvae import VAEEstimator
from skvae.likelihoods import (
    LIKELIHOODS,
    Categorical,
    DiscretizedLogisticMixture,
    Mixed,
)
from skvae.model import Batch, Choices
from skvae.networks import MLP, NETWORKS, ConvNet, FlowMLP, LadderNet
from skvae.objectives import ELBO, IWAE, MIWAE, OBJECTIVES, WAE, BetaTC, InfoVAE
from skvae.priors import PRIORS, FlowPrior, MixturePrior, StandardNormal, VampPrior

# Small ones of the larger kinds; whatever else is registered comes as it is.
SMALL = {
    "network": {
        "conv": ConvNet(channels=(4,)),
        "flow_mlp": FlowMLP(n_transforms=1, flow_dim=8),
        "mlp": MLP(),
        "ladder": LadderNet(),
    },
    "likelihood": {
        "discretized_logistic_mixture": DiscretizedLogisticMixture(2, n_channels=1),
        # 4 x 64 inputs are an image for a convolution, as it were.
        "categorical": Categorical(4),
    },
    "prior": {
        "normal": StandardNormal(),
        "mixture": MixturePrior(n_components=3),
        "vamp": VampPrior(n_components=3),
        "flow": FlowPrior(n_transforms=1, hidden_dim=8),
    },
    "objective": {
        "elbo": ELBO(),
        "iwae": IWAE(k=2),
        "miwae": MIWAE(m=2, k=2),
        "infovae": InfoVAE(),
        "wae": WAE(),
        "beta_tc": BetaTC(),
    },
}
MORE = {
    "network": {"mlp with all": MLP("gelu", layer_norm=True, dropout=0.2)},
    "likelihood": {
        "mixed": Mixed(
            (("gaussian", range(0, 64, 2)), ("continuous_bernoulli", range(1, 64, 2)))
        ),
    },
    "objective": {
        "doubly": IWAE(k=2, gradient="doubly_reparameterized"),
        "free bits": ELBO(free_bits=1e-3, warmup=0.5),
        "capacity": ELBO(capacity=2.0, beta=5),
    },
}
REGISTRIES = {
    "network": NETWORKS,
    "likelihood": LIKELIHOODS,
    "prior": PRIORS,
    "objective": OBJECTIVES,
}
AXES = {
    axis: {name: SMALL[axis].get(name) or kind() for name, kind in registry.items()}
    | MORE.get(axis, {})
    for axis, registry in REGISTRIES.items()
}
DEFAULTS = {
    "network": "mlp",
    "likelihood": "bernoulli",
    "prior": "normal",
    "objective": "elbo",
}
DIGITS = load_digits().data[:40]


def compatible(choice):
    """Whether choices by name go together, the others being the defaults."""
    names = {**DEFAULTS, **choice}
    specs = {axis: AXES[axis][name] for axis, name in names.items()}
    try:
        Choices(**specs).check()
    except ValueError:
        return False
    return True


def pairs():
    for (a, of_a), (b, of_b) in combinations(AXES.items(), 2):
        for one, other in product(of_a, of_b):
            yield {a: one, b: other}


def covering(uncovered):
    """Sets of four choices that go together, which hold each of these pairs.

    Greedy: each set starts from a pair that none has yet and takes of every other axis
    the choice that brings most pairs that are new.
    """
    while uncovered:
        names = dict(uncovered[0])
        for axis in sorted(AXES.keys() - names.keys()):
            options = [{**names, axis: name} for name in AXES[axis]]
            names = max(
                filter(compatible, options),
                key=lambda option, left=uncovered: sum(
                    pair.items() <= option.items() for pair in left
                ),
            )
        yield names
        uncovered = [pair for pair in uncovered if not pair.items() <= names.items()]


GOOD = [pair for pair in pairs() if compatible(pair)]
BAD = [pair for pair in pairs() if not compatible(pair)]
FITS = list(covering(GOOD))


def first_of_each_choice():
    """As few of the fits as have each choice once."""
    seen = set()
    for fit in FITS:
        if not set(fit.items()) <= seen:
            seen |= set(fit.items())
            yield fit


QUICK = list(first_of_each_choice())


def make(names, **options):
    levels = (2, 1) if names.get("network") == "ladder" else 3
    return VAEEstimator(
        levels,
        hidden_dim=4,
        epochs=1,
        batch_size=20,
        random_state=0,
        **{axis: AXES[axis][name] for axis, name in names.items()},
        **options,
    )


def rows_for(names):
    """Digits as grey values, or by their counts where the support asks for that."""
    likelihood = AXES["likelihood"][names.get("likelihood", "bernoulli")]
    if isinstance(likelihood, Categorical):
        return DIGITS // 4.01
    for X in (DIGITS / 16, DIGITS, (DIGITS > 8).astype(float), (DIGITS + 1) / 18):
        if likelihood.contains(X).all():
            return X
    raise AssertionError(f"no digits for {likelihood!r}")


def label(names):
    return "-".join(names.values())


def test_the_fits_cover_every_pair():
    assert all(any(pair.items() <= fit.items() for fit in FITS) for pair in GOOD)
    assert len(FITS) < len(GOOD) / 3
    assert all(compatible(fit) for fit in FITS)
    for fits in (FITS, QUICK):
        used = {(axis, name) for fit in fits for axis, name in fit.items()}
        assert used == {(axis, name) for axis in AXES for name in AXES[axis]}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "names",
    [pytest.param(fit, marks=() if fit in QUICK else pytest.mark.slow) for fit in FITS],
    ids=map(label, FITS),
)
def test_choices_that_go_together(names):
    X = rows_for(names)
    vae = make(names).fit(X)
    twin = make(names).fit(X)

    # The same seed gives the same model to the bit, and what is shown of it.
    for one, same in zip(
        vae.model_.parameters(), twin.model_.parameters(), strict=True
    ):
        assert torch.equal(one, same)
    assert np.isfinite(vae.history_[["loss", "reconstruction", "kl"]]).all(axis=None)

    Z = vae.transform(X)
    scores = vae.score_samples(X)
    assert Z.shape == (40, 3)
    assert vae.inverse_transform(Z).shape == X.shape
    assert vae.sample(5, random_state=0).shape == (5, 64)
    assert vae.log_likelihood(X[:7], 3).shape == (7,)
    assert all(
        np.isfinite(values).all()
        for values in (Z, scores, vae.sample(5, random_state=0), vae.reconstruct(X))
    )
    # A row is scored as it is in any company.
    np.testing.assert_allclose(vae.score_samples(X[10:20]), scores[10:20], rtol=1e-4)

    # Clone, repr and pickle keep what was asked for, the pickle what was learned.
    assert repr(clone(vae)) == repr(vae)
    loaded = pickle.loads(pickle.dumps(vae))
    assert repr(loaded) == repr(vae)
    np.testing.assert_array_equal(loaded.score_samples(X), scores)
    np.testing.assert_array_equal(
        loaded.sample(5, random_state=0), vae.sample(5, random_state=0)
    )


@pytest.mark.parametrize("names", FITS, ids=label)
def test_every_parameter_gets_a_gradient(names):
    X = rows_for(names)
    start = training_of(make(names), X).start
    model = start.module
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(
        (model.objective.n_draws, 40, model.n_training_noise), generator=generator
    )
    x = torch.tensor(start.units.standardize(X), dtype=torch.float32)
    loss, _ = model.loss(Batch(x, noise, n_rows=40, progress=0.9))
    assert loss.shape == (40,)
    loss.sum().backward()
    for name, parameter in model.named_parameters():
        if names["objective"] == "wae" and name == "prior.logits":
            continue  # which component a draw comes from has no derivative
        if names["objective"] == "free bits" and name.startswith("prior."):
            continue  # below the allowance the prior costs nothing
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("names", BAD, ids=label)
def test_choices_that_do_not_go_together_are_refused_before_any_work(
    names, monkeypatch
):
    def no_work(*arguments, **options):
        raise AssertionError("training began")

    monkeypatch.setattr("skvae.training.setup.Training", no_work)
    vae = make(names)
    with pytest.raises(ValueError, match="; use ") as error:
        vae.fit(rows_for(names))
    for axis, name in names.items():
        assert f"{axis}={AXES[axis][name]!r}" in str(error.value)
    assert not hasattr(vae, "fitted_")


def test_some_pairs_do_not_go_together():
    assert {"network": "flow_mlp", "objective": "beta_tc"} in BAD
    assert {"network": "ladder", "objective": "doubly"} in BAD
    assert {"network": "flow_mlp", "prior": "vamp"} in BAD
