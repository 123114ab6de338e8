"""Write the saved models of version 0.1, and what that version answers about them.

    PYTHONPATH=/path/to/version/0.1/src OMP_NUM_THREADS=1 python make_version1.py

The files go to the folder v0.1 beside this script, which replaces what is there. A
later version must open them and give the same answers. README.md tells what is in
them; ``read`` is how to read them, with any version.
"""

import copy
import json
import pickle
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl

import skvae

FOLDER = Path(__file__).resolve().parent / "v0.1"

N_TRAIN, N_ROWS, N_SAMPLES = 30, 6, 4
N_IMPORTANCE = 50
# Draws of an ELBO that hardly depends on the noise of a row, in batches whose spread
# tells its error; and importance-weighted estimates, each with noise of its own.
N_BATCHES, BATCH_DRAWS = 8, 4096
N_REPEATS = 200

COMMON = {
    "latent_dim": 2,
    "hidden_dim": 6,
    "epochs": 2,
    "batch_size": 3,
    "learning_rate": 0.05,
    "device": "cpu",
    "precision": "float32",
    "random_state": 0,
}

# ---------------------------------------------------------------------- the data


def real(n_features=5, dtype=np.float64):
    """Real numbers that two factors explain, with means and scales of their own."""
    rng = np.random.default_rng(n_features)
    factors = rng.normal(size=(N_TRAIN + N_ROWS, 2))
    X = factors @ rng.normal(size=(2, n_features))
    X += 0.4 * rng.normal(size=X.shape)
    X = X * np.geomspace(0.5, 4, n_features) + np.linspace(-3, 5, n_features)
    return X.astype(dtype)


def standard(n_features):
    X = real(n_features)
    return (X - X.mean(axis=0)) / X.std(axis=0)


def grey(n_features=6):
    """Strictly between 0 and 1."""
    return 1 / (1 + np.exp(-standard(n_features)))


def binary(n_features=6):
    return (standard(n_features) > 0).astype(np.float64)


def counts(n_features=5):
    return np.rint(np.exp(1 + standard(n_features)))


def levels(n_features):
    """Bytes divided by 255, the lowest and the highest among them."""
    return np.rint(255 * np.clip(1.4 * grey(n_features) - 0.2, 0, 1)) / 255


def one_hot(*sizes):
    """Blocks of so many columns with a single 1 in each."""
    X = standard(sum(sizes))
    starts = np.cumsum([0, *sizes[:-1]])
    blocks = [
        np.eye(size)[X[:, start : start + size].argmax(axis=1)]
        for start, size in zip(starts, sizes, strict=True)
    ]
    return np.hstack(blocks)


def mixed_by_number():
    return np.hstack([real(2), one_hot(3), counts(1), binary(2)])


def mixed_by_index():
    """Of 10 columns 2 and 8 are real, 3 and 6 shares, 5 a count, the rest one-hot."""
    X = np.empty((N_TRAIN + N_ROWS, 10))
    X[:, [2, 8]] = real(2)
    X[:, [3, 6]] = grey(2)
    X[:, [5]] = counts(1)
    X[:, [0, 1]] = one_hot(2)
    X[:, [4, 7, 9]] = one_hot(3)
    return X


def columns():
    """What the data frames hold, by the name of the column."""
    X, names = standard(8), np.array(["Bern", "Oslo", "Rome"])
    return {
        "height": 170 + 9 * X[:, 0],
        "weight": (70 + 12 * X[:, 1]).astype(np.float32),
        "grade": np.rint(3 * X[:, 2]).astype(np.int8),
        "visits": np.rint(np.exp(1 + X[:, 3])).astype(np.int64),
        "smokes": X[:, 4] > 0,
        "town": names[np.digitize(X[:, 5], [-0.4, 0.4])].tolist(),
        "size": np.array(["S", "M", "L"])[np.digitize(X[:, 6], [-0.4, 0.4])].tolist(),
        "share": 1 / (1 + np.exp(-X[:, 7])),
    }


SIZES = ["S", "M", "L", "XL"]  # of the last there is no row


def mixed_by_index_in_groups():
    """As above, but 4 and 7 are a block, and 9 is one of a single column."""
    X = mixed_by_index()
    X[:, [4, 7]] = one_hot(2)
    X[:, 9] = 1
    return X


def binary_frame():
    """Columns of two values, or of one, that are no pair of False and True."""
    alternating = np.arange(N_TRAIN + N_ROWS) % 2
    return pd.DataFrame(
        {
            "height": columns()["height"],
            "answer": np.where(alternating, "yes", "no"),
            "flag": alternating == alternating,
            "level": 5 * alternating,
        }
    )


def pandas_frame():
    size = pd.Categorical(columns()["size"], categories=SIZES, ordered=True)
    return pd.DataFrame({**columns(), "size": size})


def polars_frame():
    size = pl.Series("size", columns()["size"], dtype=pl.Enum(SIZES))
    return pl.DataFrame({**columns(), "size": size})


def named_frame():
    return pd.DataFrame(real(4), columns=["a", "b", "c", "d"])


def labels():
    return np.array(["green", "red", "yellow"])[np.arange(N_TRAIN + N_ROWS) % 3]


# ---------------------------------------------------------------------- the models


def vae(X, *, fit=None, y=None, **parameters):
    """An estimator, all of its rows, their labels, and further arguments of fit."""
    kind = skvae.VAEEstimator if y is None else skvae.ConditionalVAEEstimator
    # After so few steps the codes of other objectives hardly differ from row to row.
    common = {**COMMON, "objective": skvae.ELBO(beta=0.1)}
    return kind(**{**common, **parameters}), X, y, fit or {}


def likelihoods():
    by_number = skvae.Mixed(
        (("gaussian", 2), (skvae.Categorical(), 3), ("poisson", 1), ("bernoulli", 2))
    )
    by_index = skvae.Mixed(
        (
            (skvae.Gaussian("feature"), (8, 2)),
            (skvae.Categorical((2, 3)), (7, 1, 4, 0, 9)),
            (skvae.NegativeBinomial("row"), (5,)),
            (skvae.Beta("feature"), (6, 3)),
        )
    )
    of_frame = skvae.Mixed({"visits": "count", "share": skvae.Beta()})
    learned = skvae.StudentT("learned", scale="row")
    grey_mixture = skvae.DiscretizedLogisticMixture(n_components=3, n_channels=1)
    colour_mixture = skvae.DiscretizedLogisticMixture(n_components=2, n_channels=3)
    return {
        "bernoulli_grey": vae(grey()),
        "bernoulli_binary": vae(binary(), likelihood="bernoulli"),
        "continuous_bernoulli": vae(grey(), likelihood="continuous_bernoulli"),
        "beta_row": vae(grey(), likelihood=skvae.Beta("row")),
        "beta_feature": vae(grey(), likelihood=skvae.Beta("feature")),
        "beta_shared": vae(grey(), likelihood=skvae.Beta("shared")),
        "gaussian_shared": vae(real()),
        "gaussian_feature": vae(real(), likelihood=skvae.Gaussian("feature")),
        "gaussian_row": vae(real(), likelihood=skvae.Gaussian("row", min_scale=0.01)),
        "gaussian_fixed": vae(real(), likelihood=skvae.Gaussian(2.0)),
        "gaussian_float32": vae(real(dtype=np.float32), likelihood="gaussian"),
        "student_t_fixed": vae(real(), likelihood=skvae.StudentT(5.0, scale="feature")),
        "student_t_learned": vae(real(), likelihood=learned),
        "poisson": vae(counts(), likelihood="poisson"),
        "negative_binomial_feature": vae(counts(), likelihood="negative_binomial"),
        "negative_binomial_row": vae(
            counts(), likelihood=skvae.NegativeBinomial("row")
        ),
        "negative_binomial_shared": vae(
            counts(), likelihood=skvae.NegativeBinomial("shared")
        ),
        "categorical": vae(one_hot(4), likelihood="categorical"),
        "categorical_blocks": vae(
            one_hot(3, 2, 4), likelihood=skvae.Categorical((3, 2, 4))
        ),
        "categorical_int": vae(one_hot(3, 3, 3), likelihood=skvae.Categorical(3)),
        "discretized_logistic_mixture_grey": vae(levels(6), likelihood=grey_mixture),
        "discretized_logistic_mixture_colour": vae(
            levels(6), likelihood=colour_mixture
        ),
        "mixed_by_number": vae(mixed_by_number(), likelihood=by_number),
        "mixed_by_index": vae(mixed_by_index(), likelihood=by_index),
        "mixed_pandas": vae(pandas_frame(), likelihood=of_frame),
        "mixed_polars": vae(polars_frame(), likelihood=of_frame),
        "conditional_gaussian": vae(real(), y=labels(), likelihood="gaussian"),
        "conditional_mixed": vae(
            pandas_frame(), y=np.arange(N_TRAIN + N_ROWS) % 2, likelihood="mixed"
        ),
    }


def networks():
    images = levels(36).reshape(-1, 1, 6, 6)
    bent = skvae.MLP("silu", layer_norm=True, dropout=0.2)
    return {
        "mlp_tanh": vae(real(), network=skvae.MLP("tanh")),
        "mlp_two_layers": vae(real(), network="mlp", hidden_dim=(7, 5)),
        "mlp_linear": vae(real(), hidden_dim=()),
        "mlp_layer_norm": vae(real(), network=skvae.MLP(layer_norm=True)),
        "mlp_dropout": vae(real(), network=skvae.MLP(dropout=0.2)),
        "mlp_all": vae(real(), network=bent, hidden_dim=(7, 5)),
        "conv": vae(images, network=skvae.ConvNet(channels=(4,)), hidden_dim=5),
        "ladder": vae(real(), network="ladder", latent_dim=(2, 1)),
        "flow_mlp": vae(real(), network=skvae.FlowMLP(n_transforms=1, flow_dim=5)),
    }


def priors():
    return {
        "prior_normal": vae(real(), prior="normal", objective="elbo"),
        "prior_mixture": vae(real(), prior=skvae.MixturePrior(n_components=3)),
        "prior_vamp": vae(real(), prior=skvae.VampPrior(n_components=3)),
        "prior_flow": vae(real(), prior=skvae.FlowPrior(n_transforms=1, hidden_dim=5)),
    }


def objectives():
    return {
        "elbo_beta_warmup": vae(real(), objective=skvae.ELBO(beta=2.0, warmup=0.4)),
        "elbo_capacity": vae(
            real(), objective=skvae.ELBO(beta=3.0, free_bits=0.05, capacity=0.5)
        ),
        "iwae": vae(real(), objective=skvae.IWAE(k=3)),
        "miwae": vae(real(), objective=skvae.MIWAE(m=2, k=3)),
        "infovae": vae(real(), objective=skvae.InfoVAE(alpha=0.5)),
        "wae": vae(real(), objective=skvae.WAE(lambda_=5.0)),
        "beta_tc": vae(real(), objective=skvae.BetaTC(beta=3.0)),
    }


def settings():
    estimator, *rest = vae(named_frame(), likelihood="gaussian")
    weights = np.linspace(0, 3, N_TRAIN)
    return {
        "set_output_pandas": (estimator.set_output(transform="pandas"), *rest),
        "not_standardized": vae(real(), likelihood="gaussian", standardize=False),
        "sample_weight": vae(real(), fit={"sample_weight": weights}),
        "validation": vae(
            real(),
            validation_fraction=0.2,
            early_stopping=True,
            n_iter_no_change=2,
            learning_rate_schedule="cosine",
            max_gradient_norm=5.0,
        ),
        "unfitted": vae(
            None,
            latent_dim=(3, 2),
            hidden_dim=(8, 5),
            network="ladder",
            likelihood=skvae.Mixed((("gaussian", 2), (skvae.Categorical(3), 3))),
            prior=skvae.MixturePrior(n_components=4),
            objective=skvae.ELBO(warmup=0.5),
            standardize=True,
        ),
    }


def one_hot_columns():
    """Blocks of columns that are not side by side, before and behind every network."""
    scattered = likelihoods()["mixed_by_index"][0].likelihood
    within = skvae.Mixed(((skvae.Gaussian("row"), (2,)), (skvae.Categorical(), (0, 1))))
    in_groups = skvae.Mixed(
        (
            (within, (8, 4, 7)),
            ("poisson", (5,)),
            (skvae.Categorical(), (0, 1)),
            (skvae.Beta(), (3, 6)),
            ("gaussian", (2,)),
            (skvae.Categorical(1), (9,)),
        )
    )
    families = {"answer": "binary", "flag": "binary", "level": "binary"}
    return {
        "scattered_ladder": vae(
            mixed_by_index(),
            likelihood=scattered,
            network="ladder",
            latent_dim=(2, 1),
            hidden_dim=(),
            prior=skvae.VampPrior(n_components=3),
        ),
        "scattered_flow_mlp": vae(
            mixed_by_index(),
            likelihood=scattered,
            network=skvae.FlowMLP(n_transforms=1, flow_dim=5),
        ),
        "mixed_within_mixed": vae(mixed_by_index_in_groups(), likelihood=in_groups),
        "binary_columns": vae(binary_frame(), likelihood=skvae.Mixed(families)),
        "conv_categorical": vae(
            one_hot(*[4] * 9).reshape(-1, 1, 6, 6),
            likelihood=skvae.Categorical(4),
            network=skvae.ConvNet(channels=(4,)),
            hidden_dim=5,
        ),
    }


def models():
    return {
        **likelihoods(),
        **networks(),
        **priors(),
        **objectives(),
        **settings(),
        **one_hot_columns(),
    }


# ---------------------------------------------------------------------- the answers


def restore_get_categories():
    """Version 0.1 asks an Enum for what polars removed in its version 2.0."""
    names = type(pl.Series(["a"], dtype=pl.Enum(["a"])).cat)
    if "get_categories" not in vars(names):
        names.get_categories = lambda self: pl.wrap_s(self._s).dtype.categories


@contextmanager
def other_noise(n_draws, batch):
    """ELBOs from so many draws of each row, and scores from other draws per batch."""
    from skvae import inference

    before = inference.ELBO_DRAWS, inference.row_noise

    def row_noise(hashes, draws, n_noise, *, first=0):
        return before[1](hashes, draws, n_noise, first=first + batch * n_draws)

    inference.ELBO_DRAWS, inference.row_noise = n_draws, row_noise
    try:
        yield
    finally:
        inference.ELBO_DRAWS, inference.row_noise = before


def whatever_the_noise(estimator, X, given):
    """What is known of the scores without knowing which noise a row has."""
    elbo, log_likelihood = [], []
    for batch in range(N_BATCHES):
        with other_noise(BATCH_DRAWS, batch):
            elbo.append(estimator.score_samples(X, **given))
    for batch in range(N_REPEATS):
        with other_noise(N_IMPORTANCE, batch):
            log_likelihood.append(estimator.log_likelihood(X, N_IMPORTANCE, **given))
    return {
        "exact_elbo": np.mean(elbo, axis=0, dtype=np.float64),
        "exact_elbo_error": np.std(elbo, axis=0, ddof=1, dtype=np.float64)
        / np.sqrt(N_BATCHES),
        "log_likelihood_mean": np.mean(log_likelihood, axis=0, dtype=np.float64),
        "log_likelihood_spread": np.std(
            log_likelihood, axis=0, ddof=1, dtype=np.float64
        ),
    }


def answer(estimator, X, y, *, all_noise=True):
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
    if all_noise:
        answers |= whatever_the_noise(estimator, X, given)
    if y is not None:
        answers |= {
            "y": y,
            "sample_y": sampled["y"],
            "classes": estimator.classes_,
            "class_count": estimator.class_count_,
            "score_samples_without_y": estimator.score_samples(X),
            "log_likelihood_without_y": estimator.log_likelihood(X, N_IMPORTANCE),
        }
    if estimator._table is not None:
        numbers = copy.copy(estimator)
        numbers._table = None  # hands out numbers, not data frames
        answers |= {
            "reconstruct": estimator.reconstruct(X, **given),
            "encoded_inverse_transform": numbers.inverse_transform(Z, **given),
            "encoded_sample": numbers.sample(N_SAMPLES, **options),
        }
    return answers


def facts(estimator):
    """What JSON can hold of a fitted estimator."""
    names = getattr(estimator, "feature_names_in_", None)
    table = estimator._table
    history = estimator.history_.drop(columns="seconds").astype(object)
    return {
        "n_features_in": estimator.n_features_in_,
        "feature_names_in": None if names is None else names.tolist(),
        "encoded_names": None if table is None else table.encoded_names,
        "n_iter": estimator.n_iter_,
        "best_epoch": estimator.best_epoch_,
        "likelihood": repr(estimator.likelihood_),
        "history": history.where(history.notna(), None).to_dict("records"),
    }


# ---------------------------------------------------------------------- the files


def describe(frame):
    """A data frame as JSON can hold it."""
    library = type(frame).__module__.split(".")[0]
    columns = []
    for name in frame.columns:
        series, categories, ordered = frame[name], None, False
        dtype = str(series.dtype).partition("(")[0]
        if dtype == "category":
            categories = series.cat.categories.tolist()
            ordered = bool(series.cat.ordered)
        elif dtype == "Enum":
            categories = series.dtype.categories.to_list()
        columns.append(
            {
                "name": name,
                "dtype": dtype,
                "categories": categories,
                "ordered": ordered,
            }
        )
    records = frame.to_dict("records") if library == "pandas" else frame.to_dicts()
    return {"library": library, "columns": columns, "records": records}


def rebuild(described):
    """The data frame of a description."""
    data = {}
    for column in described["columns"]:
        name, dtype = column["name"], column["dtype"]
        values = [record[name] for record in described["records"]]
        if described["library"] == "polars":
            kind = pl.Enum(column["categories"]) if dtype == "Enum" else dtype
            kind = getattr(pl, kind) if isinstance(kind, str) else kind
            data[name] = pl.Series(name, values, dtype=kind)
        elif dtype == "category":
            data[name] = pd.Categorical(
                values, categories=column["categories"], ordered=column["ordered"]
            )
        else:
            data[name] = pd.Series(values, dtype=dtype)
    library = pl if described["library"] == "polars" else pd
    return library.DataFrame(data)


def read(name, folder=FOLDER):
    """The answers about a model, arrays and data frames by name, and its facts."""
    facts = json.loads((folder / "answers.json").read_text())["models"][name]
    with np.load(folder / "answers.npz", allow_pickle=False) as arrays:
        answers = {
            key.removeprefix(f"{name}/"): arrays[key]
            for key in arrays.files
            if key.startswith(f"{name}/")
        }
    frames = {key: rebuild(value) for key, value in facts.pop("frames").items()}
    return {**answers, **frames}, facts


def write(folder):
    arrays, content = {}, {}
    for name, (estimator, X, y, options) in models().items():
        content[name] = {"class": type(estimator).__name__, "frames": {}}
        if X is not None:
            labels = {} if y is None else {"y": y[:N_TRAIN]}
            estimator.fit(X[:N_TRAIN], **labels, **options)
            # The only thing that another run would find otherwise.
            records = [replace(record, seconds=0.0) for record in estimator._records]
            estimator._records = records
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
            if repr(value) != repr(getattr(default, key))
        }
        skvae.save(estimator, folder / f"{name}.safetensors")
        if name == "gaussian_shared":
            (folder / "estimator.pickle").write_bytes(pickle.dumps(estimator, 4))
    np.savez_compressed(folder / "answers.npz", allow_pickle=False, **arrays)
    whole = {"version": skvae.__version__, "models": content}
    text = json.dumps(whole, indent=1, allow_nan=False)
    (folder / "answers.json").write_text(text + "\n")


def check(folder):
    """Read everything back, and ask again."""
    for name in json.loads((folder / "answers.json").read_text())["models"]:
        estimator = skvae.load(folder / f"{name}.safetensors")
        stored, facts = read(name, folder)
        assert type(estimator).__name__ == facts["class"]
        if not stored:
            assert not hasattr(estimator, "model_")
            continue
        X, y = stored["X"], stored.get("y")
        for key, value in answer(estimator, X, y, all_noise=False).items():
            assert type(value) is type(stored[key]), (name, key)
            if isinstance(value, np.ndarray):
                assert value.dtype == stored[key].dtype, (name, key)
                np.testing.assert_array_equal(value, stored[key], f"{name} {key}")
                assert value.dtype.kind == "U" or np.isfinite(value).all()
            else:
                assert value.equals(stored[key]), (name, key)


def main():
    if not skvae.__version__.startswith("0.1"):
        sys.exit(
            f"make_version1.py writes the files of version 0.1, but the skvae on the "
            f"path is {skvae.__version__} ({skvae.__file__}). Check out version 0.1 "
            "elsewhere and put its src on PYTHONPATH."
        )
    restore_get_categories()
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.iterdir():
        path.unlink()
    write(FOLDER)
    check(FOLDER)
    sizes = [path.stat().st_size for path in FOLDER.iterdir()]
    print(f"{len(sizes)} files, {sum(sizes) / 1000:.0f} kB, by {skvae.__file__}")


if __name__ == "__main__":
    main()
