"""Write the saved models of version 0.2, and what that version answers about them.

    OMP_NUM_THREADS=1 python make_version2.py

The files go to the folder v0.2 beside this script, which replaces what is there. A
later version must open them and give the same answers. README.md tells what is in
them; ``read`` of make_version1.py is how to read them, with any version.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
from make_version1 import (
    N_IMPORTANCE,
    N_ROWS,
    N_SAMPLES,
    N_TRAIN,
    binary,
    columns,
    counts,
    describe,
    grey,
    labels,
    levels,
    named_frame,
    pandas_frame,
    polars_frame,
    read,
    real,
    standard,
)

import skvae
from skvae.persistence import FORMAT_VERSION

FOLDER = Path(__file__).resolve().parent / "v0.2"

COMMON = {
    "latent_dim": 2,
    "hidden_dim": 4,
    "epochs": 2,
    "batch_size": 3,
    "learning_rate": 0.05,
    "device": "cpu",
    "precision": "float32",
    "random_state": 0,
}

# ---------------------------------------------------------------------- the data


def codes(*sizes):
    """A column of codes for each category of so many values."""
    X = standard(len(sizes))
    levels_of = [np.linspace(-1, 1, size + 1)[1:-1] for size in sizes]
    found = [np.digitize(x, edges) for x, edges in zip(X.T, levels_of, strict=True)]
    return np.stack(found, axis=1).astype(np.float64)


def mixed_columns():
    """Two real numbers, a category, a count, a share."""
    return np.hstack([real(2), codes(3), counts(1), grey(1)])


def dated_frame():
    """Dates, booleans and whole numbers of several sizes."""
    X = standard(4)
    days = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.rint(90 * X[:, 0]), "D")
    return pd.DataFrame(
        {
            "day": days,
            "is_open": X[:, 1] > 0,
            "grade": np.rint(3 * X[:, 2]).astype(np.int8),
            "town": columns()["town"],
        }
    )


# ---------------------------------------------------------------------- the models


def vae(X, *, fit=None, y=None, **parameters):
    """An estimator, all of its rows, their labels, and further arguments of fit."""
    kind = skvae.VAEEstimator if y is None else skvae.ConditionalVAEEstimator
    return kind(**{**COMMON, **parameters}), X, y, fit or {}


def likelihoods():
    by_number = skvae.Mixed(
        (("gaussian", 2), ("categorical", 1), ("poisson", 1), ("beta", 1))
    )
    by_index = skvae.Mixed(
        (
            (skvae.Beta("feature"), (4,)),
            (skvae.Categorical(4), (2,)),
            (skvae.Gaussian("row"), (1, 0)),
            (skvae.NegativeBinomial("row"), (3,)),
        )
    )
    of_frame = skvae.Mixed({"visits": "count", "share": skvae.Beta()})
    mixture = skvae.DiscretizedLogisticMixture(n_components=2, n_channels=1)
    return {
        "bernoulli_grey": vae(grey()),
        "bernoulli_binary": vae(binary(), likelihood="bernoulli"),
        "continuous_bernoulli": vae(grey(), likelihood="continuous_bernoulli"),
        "beta_row": vae(grey(), likelihood=skvae.Beta("row")),
        "beta_shared": vae(grey(), likelihood=skvae.Beta("shared")),
        "gaussian_shared": vae(real()),
        "gaussian_row": vae(real(), likelihood=skvae.Gaussian("row", min_scale=0.01)),
        "gaussian_fixed": vae(real(), likelihood=skvae.Gaussian(2.0)),
        "gaussian_float32": vae(real(dtype=np.float32), likelihood="gaussian"),
        "student_t_fixed": vae(real(), likelihood=skvae.StudentT(5.0, scale="feature")),
        "student_t_learned": vae(real(), likelihood=skvae.StudentT("learned")),
        "poisson": vae(counts(), likelihood="poisson"),
        "negative_binomial_feature": vae(counts(), likelihood="negative_binomial"),
        "negative_binomial_row": vae(
            counts(), likelihood=skvae.NegativeBinomial("row")
        ),
        "categorical": vae(codes(3, 2, 4), likelihood="categorical"),
        "categorical_int": vae(codes(3, 3), likelihood=skvae.Categorical(5)),
        "discretized_logistic_mixture": vae(levels(6), likelihood=mixture),
        "mixed_by_number": vae(mixed_columns(), likelihood=by_number),
        "mixed_by_index": vae(mixed_columns(), likelihood=by_index),
        "mixed_pandas": vae(pandas_frame(), likelihood=of_frame),
        "mixed_polars": vae(polars_frame(), likelihood=of_frame),
        "mixed_dates": vae(dated_frame()),
        "conditional_gaussian": vae(real(), y=labels()),
        "conditional_mixed": vae(
            pandas_frame(), y=np.arange(N_TRAIN + N_ROWS) % 2, likelihood="mixed"
        ),
    }


def others():
    images = levels(36).reshape(-1, 1, 6, 6)
    bent = skvae.MLP("silu", layer_norm=True, dropout=0.2)
    estimator, *rest = vae(named_frame(), likelihood="gaussian")
    return {
        "mlp_all": vae(real(), network=bent, hidden_dim=(5, 4)),
        "mlp_linear": vae(real(), hidden_dim=()),
        "images": vae(images, objective=skvae.ELBO(warmup=0.4)),
        "conv": vae(images, network=skvae.ConvNet(channels=(2,), n_residual=0)),
        "ladder": vae(real(), network="ladder", latent_dim=(2, 1)),
        "flow_mlp": vae(real(), network=skvae.FlowMLP(n_transforms=1, flow_dim=3)),
        "prior_mixture": vae(real(), prior=skvae.MixturePrior(n_components=3)),
        "prior_vamp": vae(real(), prior=skvae.VampPrior(n_components=3)),
        "prior_flow": vae(real(), prior=skvae.FlowPrior(n_transforms=1, hidden_dim=3)),
        "iwae": vae(real(), objective=skvae.IWAE(k=3)),
        "set_output_pandas": (estimator.set_output(transform="pandas"), *rest),
        "validation": vae(
            real(), validation_fraction=0.2, early_stopping=True, n_iter_no_change=2
        ),
        "unfitted": vae(
            None,
            latent_dim=(3, 2),
            network="ladder",
            likelihood=skvae.Mixed((("gaussian", 2), (skvae.Categorical(3), 1))),
            prior=skvae.MixturePrior(n_components=4),
            objective=skvae.ELBO(warmup=0.5),
            standardize=True,
        ),
    }


def models():
    return {**likelihoods(), **others()}


# ---------------------------------------------------------------------- the answers


def answer(estimator, X, y):
    """What a fitted estimator says about rows: arrays and data frames by name."""
    given = {} if y is None else {"y": y}
    sampled = {} if y is None else {"y": y[:N_SAMPLES]}
    Z = estimator.transform(X)
    options = {"random_state": 0, "observation_noise": False, **sampled}
    answers = {
        "X": X,
        "transform": Z,
        "inverse_transform": estimator.inverse_transform(Z, **given),
        "sample": estimator.sample(N_SAMPLES, **options),
        "score_samples": estimator.score_samples(X, **given),
        "log_likelihood": estimator.log_likelihood(X, N_IMPORTANCE, **given),
    }
    if y is not None:
        answers |= {
            "y": y,
            "sample_y": sampled["y"],
            "classes": estimator.classes_,
            "class_count": estimator.class_count_,
            "score_samples_without_y": estimator.score_samples(X),
            "log_likelihood_without_y": estimator.log_likelihood(X, N_IMPORTANCE),
        }
    return answers


def facts(estimator):
    """What JSON can hold of a fitted estimator."""
    history = estimator.history_.drop(columns="seconds").astype(object)
    seen = estimator.__getstate__()
    names = seen.get("feature_names_in_")
    return {
        "n_features_in": estimator.n_features_in_,
        "feature_names_in": None if names is None else names.tolist(),
        "n_iter": estimator.n_iter_,
        "best_epoch": estimator.best_epoch_,
        "likelihood": repr(estimator.likelihood_),
        "history": history.where(history.notna(), None).to_dict("records"),
    }


def write(folder):
    arrays, content = {}, {}
    for name, (estimator, X, y, options) in models().items():
        content[name] = {"class": type(estimator).__name__, "frames": {}}
        if X is not None:
            given = {} if y is None else {"y": y[:N_TRAIN]}
            estimator.fit(X[:N_TRAIN], **given, **options)
            new = X[N_TRAIN:]
            new = new.reset_index(drop=True) if isinstance(new, pd.DataFrame) else new
            answers = answer(estimator, new, None if y is None else y[N_TRAIN:])
            content[name] |= facts(estimator)
            for key, value in answers.items():
                if isinstance(value, pd.DataFrame | pl.DataFrame):
                    content[name]["frames"][key] = describe(value)
                else:
                    arrays[f"{name}/{key}"] = value
        default = type(estimator)()
        content[name]["parameters"] = {
            key: repr(value)
            for key, value in estimator.get_params(deep=False).items()
            if repr(value) != repr(default.get_params()[key])
        }
        skvae.save(estimator, folder / f"{name}.safetensors")
    np.savez_compressed(folder / "answers.npz", allow_pickle=False, **arrays)
    whole = {"version": skvae.__version__, "models": content}
    text = json.dumps(whole, indent=1, allow_nan=False, default=str)
    (folder / "answers.json").write_text(text + "\n")


def check(folder):
    """Read everything back, and ask again."""
    for name in json.loads((folder / "answers.json").read_text())["models"]:
        estimator = skvae.load(folder / f"{name}.safetensors")
        stored, _ = read(name, folder)
        if not stored:
            continue
        for key, value in answer(estimator, stored["X"], stored.get("y")).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, stored[key], f"{name} {key}")
            else:
                assert value.equals(stored[key]), (name, key)


def main():
    if FORMAT_VERSION != 2:
        sys.exit(
            "make_version2.py writes the files of version 0.2, of format version 2, "
            f"but the skvae on the path ({skvae.__file__}) writes format version "
            f"{FORMAT_VERSION}."
        )
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.iterdir():
        path.unlink()
    write(FOLDER)
    check(FOLDER)
    sizes = [path.stat().st_size for path in FOLDER.iterdir()]
    print(f"{len(sizes)} files, {sum(sizes) / 1000:.0f} kB, by {skvae.__file__}")


if __name__ == "__main__":
    main()
