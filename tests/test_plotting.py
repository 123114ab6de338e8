"""Displays: the pictures hold the numbers they claim to show."""

import sys
from functools import cache, partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit
from scipy.stats import loguniform, norm, uniform
from sklearn.base import BaseEstimator
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler

from skvae import ConditionalVAEEstimator, ConvNet, VAEEstimator
from skvae.plotting import (
    InterpolationDisplay,
    LatentSpaceDisplay,
    LatentTraversalDisplay,
    LossCurveDisplay,
    ManifoldDisplay,
    ReconstructionDisplay,
    SampleDisplay,
    SearchDisplay,
)


class Told(BaseEstimator):
    """Has the history that it is told, in either container."""

    def __init__(self, history):
        self.history = history

    def fit(self, X=None, y=None):
        self.history_ = self.history
        return self


class Scored(BaseEstimator):
    """Its score is a formula of its parameters, so that a search is instant."""

    def __init__(self, a=1.0, b=1.0, c=0, epochs=1):
        self.a = a
        self.b = b
        self.c = c
        self.epochs = epochs

    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def score(self, X, y=None):
        if self.a == "fails":
            return np.nan
        size = len(self.a) if isinstance(self.a, (str, tuple)) else self.a
        return 10 * size - self.b + self.c + X.mean()


ROWS = np.random.default_rng(1).random((30, 64))
HISTORY = [
    {
        "epoch": epoch,
        "loss": 120.0 - epoch,
        "reconstruction": 100.0 - 2 * epoch,
        "kl": 20.0 + epoch,
        "validation_loss": None,
        "validation_reconstruction": None,
        "validation_kl": None,
    }
    for epoch in (1, 2, 3)
]
VALIDATED = [
    row
    | {"validation_loss": 130.0, "validation_reconstruction": 99.0, "validation_kl": 31}
    for row in HISTORY
]
FOLDS = np.arange(12.0).reshape(12, 1)


def tiny(**options):
    settings = {"latent_dim": 2, "hidden_dim": 4, "epochs": 1, "random_state": 0}
    return VAEEstimator(**{**settings, **options})


@cache
def linear_vae(latent_dim=2, n_features=64):
    """Encodes a row by its first entries, decodes by random weights."""
    vae = tiny(latent_dim=latent_dim, hidden_dim=(), likelihood="bernoulli")
    vae.fit(ROWS[:, :n_features])
    weights = np.random.default_rng(0).normal(size=(n_features, latent_dim))
    encoder, decoder = vae.model_.network.encoder[-1], vae.model_.network.decoder[-1]
    with torch.no_grad():
        for parameter in (encoder.weight, encoder.bias, decoder.bias):
            parameter.zero_()
        encoder.weight[:latent_dim, :latent_dim] = torch.eye(latent_dim)
        decoder.weight.copy_(torch.tensor(weights))
    return vae


def test_the_linear_vae_is_one():
    Z = linear_vae().transform(ROWS)
    assert_allclose(Z, ROWS[:, :2], rtol=1e-6)
    weights = np.random.default_rng(0).normal(size=(64, 2))
    assert_allclose(linear_vae().inverse_transform(Z), expit(Z @ weights.T), rtol=1e-5)


def grid_search(grid, search=GridSearchCV, **kwargs):
    return search(Scored(), grid, cv=3, **kwargs).fit(FOLDS)


DRAW = {
    "loss": lambda **k: LossCurveDisplay.from_estimator(Told(VALIDATED).fit(), **k),
    "reconstruction": lambda **k: ReconstructionDisplay.from_estimator(
        linear_vae(), ROWS, **k
    ),
    "sample": lambda **k: SampleDisplay.from_estimator(linear_vae(), **k),
    "latent space": lambda **k: LatentSpaceDisplay.from_estimator(
        linear_vae(), ROWS, np.arange(30) % 3, **k
    ),
    "manifold": lambda **k: ManifoldDisplay.from_estimator(linear_vae(), **k),
    "interpolation": lambda **k: InterpolationDisplay.from_estimator(
        linear_vae(), ROWS[:3], ROWS[3:6], **k
    ),
    "traversal": lambda **k: LatentTraversalDisplay.from_estimator(
        linear_vae(), ROWS, **k
    ),
    "search": lambda **k: SearchDisplay.from_search(
        grid_search({"a": [1, 2], "b": [1, 2, 3]}), **k
    ),
}
each_display = pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def X(_digits):
    return _digits[:200]


@pytest.fixture(scope="module")
def vae(X):
    return tiny(hidden_dim=8, epochs=2).fit(X)


@pytest.fixture(scope="module")
def pipeline(X):
    return make_pipeline(MinMaxScaler(), tiny(epochs=2)).fit(16 * X)


def images_in(display, n_down, n_across, gap=1):
    """The images of a sheet, cut out again: (n_down, n_across, height, width, ...)."""
    sheet = np.asarray(display.ax_.images[0].get_array().filled(np.nan))
    height = (sheet.shape[0] + gap) // n_down - gap
    width = (sheet.shape[1] + gap) // n_across - gap
    return np.array(
        [
            [sheet[y : y + height, x : x + width] for x in places(n_across, width, gap)]
            for y in places(n_down, height, gap)
        ]
    )


def places(n_images, size, gap):
    return [place * (size + gap) for place in range(n_images)]


def labels_of(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# ---------------------------------------------------------------- what all share


@each_display
def test_figure_and_axes(draw):
    display = draw()
    assert plt.get_fignums() == [display.figure_.number]
    assert display.ax_.figure is display.figure_
    figure, ax = plt.subplots()
    assert display.plot(ax=ax) is display
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert len(plt.get_fignums()) == 2
    assert draw(ax=plt.figure().add_subplot()).ax_.get_title() == ax.get_title()
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()


@each_display
def test_a_size_that_was_chosen_stays(draw):
    width, height = draw().figure_.get_size_inches()
    assert 2 < height < width + 1 < 12
    assert [width, height] != mpl.rcParams["figure.figsize"]
    figure, ax = plt.subplots(figsize=(5, 4))
    draw(ax=ax)
    assert_array_equal(figure.get_size_inches(), (5, 4))


@each_display
def test_nothing_global_changes(draw, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("plt.show was called"))
    plt.close(plt.figure())  # Resolves the backend, which matplotlib stores.
    settings = dict(mpl.rcParams)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    draw()
    assert dict(mpl.rcParams) == settings
    assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@each_display
def test_missing_matplotlib_names_the_extra(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"Display needs matplotlib: .*skvae\[plot\]"):
        draw()


@pytest.mark.parametrize(
    "draw",
    [
        LossCurveDisplay.from_estimator,
        SampleDisplay.from_estimator,
        ManifoldDisplay.from_estimator,
        partial(ReconstructionDisplay.from_estimator, X=ROWS),
        partial(LatentSpaceDisplay.from_estimator, X=ROWS),
        partial(LatentTraversalDisplay.from_estimator, X=ROWS),
        partial(InterpolationDisplay.from_estimator, X_start=ROWS, X_end=ROWS),
    ],
)
def test_an_estimator_that_is_not_fitted_is_refused(draw):
    with pytest.raises(NotFittedError):
        draw(VAEEstimator())


@pytest.mark.parametrize(
    "image_shape", [(4, 8), (2, 4, 8), (8, 8, 8), (64,), 64 * (1,)]
)
def test_image_shape_that_does_not_fit(image_shape):
    with pytest.raises(
        ValueError, match=r"image_shape=.* 64 features.*\(height, width"
    ):
        SampleDisplay(samples=ROWS, image_shape=image_shape).plot()


# ------------------------------------------------------------------- loss curves


@pytest.mark.parametrize("table", [list, pd.DataFrame])
def test_loss_curves_are_the_history(table):
    display = LossCurveDisplay.from_estimator(Told(table(VALIDATED)).fit())
    assert len(display.lines_) == 6
    for name, line in display.lines_.items():
        assert_array_equal(line.get_xdata(), [1, 2, 3])
        assert_array_equal(line.get_ydata(), [row[name] for row in VALIDATED])
    loss, kl = display.axes_
    assert loss.get_ylabel() == kl.get_ylabel() == "nats per row"
    assert loss.get_xlabel() == kl.get_xlabel() == "epoch"
    assert [line.axes for line in display.lines_.values()] == [loss] * 4 + [kl] * 2
    assert legend_of(kl) == ["KL", "KL, validation"]


@pytest.mark.parametrize("table", [list, pd.DataFrame])
def test_loss_curves_without_validation(table):
    display = LossCurveDisplay.from_estimator(Told(table(HISTORY)).fit())
    assert list(display.lines_) == ["loss", "reconstruction", "kl"]


def test_loss_of_a_single_epoch_is_seen():
    display = LossCurveDisplay(epoch=[1], loss=[3], reconstruction=[2], kl=[1]).plot()
    assert {line.get_marker() for line in display.lines_.values()} == {"o"}


def test_loss_curves_of_a_pipeline(pipeline):
    display = LossCurveDisplay.from_estimator(pipeline)
    history = pd.DataFrame(pipeline[-1].history_)
    assert_allclose(display.lines_["loss"].get_ydata(), history["loss"])
    assert_allclose(
        display.lines_["loss"].get_ydata(),
        display.lines_["reconstruction"].get_ydata() + display.lines_["kl"].get_ydata(),
        rtol=1e-5,
    )


# --------------------------------------------------------- images, tables, samples


def test_reconstructions_are_drawn_below_their_originals(vae, X):
    display = ReconstructionDisplay.from_estimator(vae, X, n_samples=7)
    drawn = images_in(display, 2, 7).reshape(2, 7, 64)
    assert_array_equal(drawn[0], X[:7])
    assert_allclose(drawn[1], vae.reconstruct(X[:7]))
    assert labels_of(display.ax_.yaxis) == ["original", "reconstructed"]


@pytest.mark.parametrize("shape", [(1, 6, 9), (6, 9), (3, 6, 9), (6, 9, 3)])
def test_images_of_every_shape(shape):
    X = np.random.default_rng(0).random((4, np.prod(shape)))
    display = ReconstructionDisplay(
        originals=X, reconstructions=X / 2, image_shape=shape
    ).plot()
    drawn = images_in(display, 2, 4)
    expected = np.stack([X, X / 2]).reshape(2, 4, *shape)
    if shape[0] == 3:
        expected = np.moveaxis(expected, 2, -1)
    assert_allclose(drawn, expected.reshape(drawn.shape))


@pytest.mark.parametrize(
    ("n_features", "drawn_as"),
    [(64, (8, 8)), (784, (28, 28)), (3 * 8 * 8, (8, 8, 3)), (49, None), (65, None)],
)
def test_square_images_are_recognised(n_features, drawn_as):
    display = SampleDisplay(samples=np.zeros((1, n_features))).plot()
    drawn = [image.get_array().shape for image in display.ax_.images]
    assert drawn == ([drawn_as] if drawn_as else [])
    assert bool(display.ax_.lines) != bool(drawn_as)


def test_grey_levels():
    shown = SampleDisplay(samples=ROWS / 2).plot().ax_.images[0]
    assert shown.get_clim() == (0, 1)
    shown = SampleDisplay(samples=16 * ROWS).plot().ax_.images[0]
    assert_allclose(shown.get_clim(), (16 * ROWS.min(), 16 * ROWS.max()))
    shown = SampleDisplay(samples=ROWS).plot(vmax=0.3, cmap="viridis").ax_.images[0]
    assert shown.get_clim() == (0, 0.3)
    assert shown.get_cmap().name == "viridis"


def test_colours_beyond_the_unit_interval_are_brought_into_it(caplog):
    display = SampleDisplay(samples=np.linspace(0, 255, 4 * 192).reshape(4, 192)).plot()
    drawn = display.ax_.images[0].get_array()
    assert drawn.min() == 0
    assert drawn.max() == 1
    samples = np.array([[-0.2, 0.25, 1.2] * 64])
    display = SampleDisplay(samples=samples, image_shape=(8, 8, 3)).plot()
    expected = np.broadcast_to([0, 0.25, 1], (8, 8, 3))
    assert_allclose(display.ax_.images[0].get_array(), expected)
    # Clipping is no news: matplotlib is not left to log it.
    assert not caplog.records


def test_samples_fill_a_sheet(vae):
    display = SampleDisplay.from_estimator(vae, n_samples=7, random_state=0)
    drawn = images_in(display, 3, 3).reshape(9, 64)
    assert_allclose(drawn[:7], vae.sample(7, random_state=0))
    assert np.isnan(drawn[7:]).all()
    assert display.ax_.get_title() == "7 samples from the model"


def test_pipelines_are_drawn_in_the_units_of_their_data(pipeline, X):
    X, (scaler, vae) = 16 * X, pipeline
    display = ReconstructionDisplay.from_estimator(pipeline, X)
    assert_array_equal(display.originals, X[:10])
    expected = scaler.inverse_transform(vae.reconstruct(scaler.transform(X)))
    assert_allclose(display.reconstructions, expected[:10], rtol=1e-5, atol=1e-5)
    samples = SampleDisplay.from_estimator(pipeline, random_state=0).samples
    scaled = vae.sample(64, random_state=0)
    assert_allclose(samples, scaler.inverse_transform(scaled))
    alone = SampleDisplay.from_estimator(make_pipeline(vae), random_state=0)
    assert_allclose(alone.samples, scaled)


def test_nested_pipelines_are_drawn_as_flat_ones(pipeline, X):
    X, (scaler, vae) = 16 * X, pipeline
    nested = make_pipeline(scaler, make_pipeline("passthrough", make_pipeline(vae)))
    for draw in (
        partial(ReconstructionDisplay.from_estimator, X=X),
        partial(SampleDisplay.from_estimator, n_samples=4, random_state=0),
        partial(ManifoldDisplay.from_estimator, n_steps=2),
    ):
        flat, deep = (draw(one).ax_.images[0].get_array() for one in (pipeline, nested))
        assert_array_equal(flat, deep)
    losses = LossCurveDisplay.from_estimator(nested).lines_["loss"]
    assert_array_equal(losses.get_ydata(), vae.history_["loss"])


def test_tables_are_drawn_as_lines():
    X = load_wine(as_frame=True).data
    vae = tiny().fit(X)
    display = ReconstructionDisplay.from_estimator(vae, X, n_samples=3)
    ax = display.ax_
    assert labels_of(ax.xaxis) == list(X.columns)
    assert labels_of(ax.yaxis) == ["row 0", "row 1", "row 2"]
    assert legend_of(ax) == ["original", "reconstructed"]
    lines = np.array([line.get_ydata() for line in ax.lines]).reshape(3, 2, 13)
    # One band for each row, the first one on top, none reaching into the next.
    assert_array_equal(
        np.floor(lines), np.broadcast_to([[[2]], [[1]], [[0]]], (3, 2, 13))
    )
    rows = np.stack([display.originals, display.reconstructions], axis=1)
    low, high = rows.min(axis=(0, 1)), rows.max(axis=(0, 1))
    assert_allclose(lines % 1 / 0.85, (rows - low) / (high - low), atol=1e-6)


def test_the_legend_stands_beside_the_title():
    display = ReconstructionDisplay(
        originals=ROWS[:3, :4], reconstructions=ROWS[3:6, :4]
    ).plot()
    display.figure_.canvas.draw()
    title = "Originals and their reconstructions"
    texts = display.ax_.findobj(mpl.text.Text)
    (text,) = [text for text in texts if text.get_text() == title]
    legend = display.ax_.get_legend().get_window_extent()
    assert text.get_window_extent().x1 < legend.x0
    assert legend.x1 <= display.figure_.bbox.x1


def test_data_frames_of_several_kinds_are_drawn_by_their_codes():
    rng = np.random.default_rng(0)
    colours = np.array(["blue", "grey", "red"])
    codes = rng.integers(3, size=30)
    frame = pd.DataFrame({"size": rng.normal(size=30), "colour": colours[codes]})
    vae = tiny().fit(frame)
    display = ReconstructionDisplay.from_estimator(vae, frame, n_samples=4)
    assert_array_equal(display.originals, np.stack([frame["size"], codes], 1)[:4])
    decoded = vae.reconstruct(frame[:4])
    assert_allclose(display.reconstructions[:, 0], decoded["size"])
    assert_array_equal(
        colours[display.reconstructions[:, 1].astype(int)], decoded.colour
    )
    assert labels_of(display.ax_.xaxis) == ["size", "colour"]
    samples = SampleDisplay.from_estimator(vae, n_samples=5, random_state=0).samples
    assert_allclose(samples[:, 0], vae.sample(5, random_state=0)["size"])
    assert set(samples[:, 1]) <= {0, 1, 2}
    LatentTraversalDisplay.from_estimator(vae, frame, row=0, n_steps=3)
    InterpolationDisplay.from_estimator(vae, frame[:2], frame[2:4], n_steps=3)


def test_conditional_estimators(X):
    y = np.arange(200) % 3
    vae = ConditionalVAEEstimator(2, hidden_dim=4, epochs=1, random_state=0).fit(X, y)
    display = SampleDisplay.from_estimator(vae, n_samples=4, random_state=0)
    assert_allclose(display.samples, vae.sample(4, random_state=0))
    display = LatentSpaceDisplay.from_estimator(vae, X, y)
    assert_allclose(display.coordinates, vae.transform(X))
    LossCurveDisplay.from_estimator(vae)
    # The displays that decode have no classes to decode as, and say so.
    with pytest.raises(ValueError, match="conditional and requires y"):
        ReconstructionDisplay.from_estimator(vae, X)


# ------------------------------------------------- images that are fitted as such

WIDE = (3, 8, 24)  # 576 features: as rows, they could be a grey image of 24 x 24


@pytest.fixture(scope="module")
def wide():
    return np.random.default_rng(0).random((20, *WIDE)).astype(np.float32)


@pytest.fixture(scope="module")
def wide_vae(wide):
    return tiny().fit(wide)


def as_drawn(rows, n_down, n_across):
    """Rows of colour images, channels last."""
    images = np.reshape(rows, (n_down, n_across, *WIDE))
    return np.moveaxis(images, 2, -1)


def wide_displays(vae, X, **options):
    """(display, rows down, across, what it must show) of images, in every display."""
    display = ReconstructionDisplay.from_estimator(vae, X, n_samples=4, **options)
    yield display, 2, 4, np.stack([X[:4].reshape(4, -1), vae.reconstruct(X[:4])])
    display = SampleDisplay.from_estimator(vae, n_samples=4, random_state=0, **options)
    yield display, 2, 2, vae.sample(4, random_state=0)
    ends = X[:2], X[2:4]
    display = InterpolationDisplay.from_estimator(vae, *ends, n_steps=3, **options)
    yield display, 2, 3, vae.interpolate(*ends, n_steps=3)
    display = LatentTraversalDisplay.from_estimator(vae, n_steps=3, **options)
    moved = [[-3, 0], [0, 0], [3, 0], [0, -3], [0, 0], [0, 3]]
    yield display, 2, 3, vae.inverse_transform(moved)
    display = ManifoldDisplay.from_estimator(vae, n_steps=2, **options)
    low, high = norm.ppf([0.25, 0.75])
    plane = [[low, high], [high, high], [low, low], [high, low]]
    yield display, 2, 2, vae.inverse_transform(plane)


@pytest.mark.parametrize("flat", [False, True])
def test_images_are_drawn_in_the_shape_that_was_fitted(wide_vae, wide, flat):
    X = wide.reshape(len(wide), -1) if flat else wide
    for display, n_down, n_across, expected in wide_displays(wide_vae, X):
        assert display.image_shape == WIDE
        drawn = images_in(
            display, n_down, n_across, gap=not isinstance(display, ManifoldDisplay)
        )
        assert_allclose(drawn, as_drawn(expected, n_down, n_across), atol=1e-6)


def test_a_shape_that_is_given_comes_before_the_fitted_one(wide_vae, wide):
    for display, n_down, n_across, expected in wide_displays(
        wide_vae, wide, image_shape=(18, 32)
    ):
        drawn = images_in(
            display, n_down, n_across, gap=not isinstance(display, ManifoldDisplay)
        )
        assert_allclose(drawn, expected.reshape(n_down, n_across, 18, 32), atol=1e-6)
    display = SampleDisplay.from_estimator(wide_vae, n_samples=3, image_shape=())
    assert len(display.ax_.lines) == 3
    assert not display.ax_.images


def test_the_shape_that_a_network_was_told_is_drawn(wide):
    network = ConvNet(channels=(4,), n_residual=0, image_shape=WIDE)
    vae = tiny(network=network).fit(wide.reshape(20, -1))
    display = SampleDisplay.from_estimator(vae, n_samples=4, random_state=0)
    drawn = images_in(display, 2, 2)
    assert_allclose(drawn, as_drawn(vae.sample(4, random_state=0), 2, 2))


def to_images(rows):
    return rows[:, : np.prod(WIDE)].reshape(-1, *WIDE)


def channels_last(images):
    return np.moveaxis(np.reshape(images, (-1, *WIDE)), 1, -1)


def channels_first(images):
    return np.moveaxis(images, -1, 1)


def padded(rows):
    return np.pad(np.reshape(rows, (len(rows), -1)), ((0, 0), (0, 1)))


def test_steps_of_a_pipeline_decide_what_the_rows_are(wide, wide_vae):
    expected = as_drawn(wide_vae.reconstruct(wide[:3]), 1, 3)[0]
    flat = wide.reshape(20, -1)

    def drawn(X, to, back):
        step = FunctionTransformer(to, back).fit(X)
        pipeline = make_pipeline(step, wide_vae)
        display = ReconstructionDisplay.from_estimator(pipeline, X, n_samples=3)
        samples = SampleDisplay.from_estimator(pipeline, n_samples=4)
        assert samples.image_shape == display.image_shape
        return display

    # Rows outside, images inside.
    display = drawn(flat, to_images, None)
    assert display.image_shape == WIDE
    assert_allclose(images_in(display, 2, 3)[1], expected, atol=1e-6)
    # Images outside, with channels last.
    display = drawn(channels_last(wide), channels_first, channels_last)
    assert display.image_shape == (8, 24, 3)
    originals, reconstructions = images_in(display, 2, 3)
    assert_allclose(originals, channels_last(wide[:3]))
    assert_allclose(reconstructions, expected, atol=1e-6)
    # Rows of more features, which are no images of that shape.
    display = drawn(padded(flat), to_images, padded)
    assert display.image_shape is None
    assert display.reconstructions.shape == (3, 577)
    assert not display.ax_.images


# --------------------------------------------------------------- tables and lines


def test_a_feature_that_never_changes_is_a_flat_line():
    samples = np.column_stack([np.arange(4.0), np.full(4, 7.0)])
    display = SampleDisplay(samples=samples).plot()
    ends = np.array([line.get_ydata() for line in display.ax_.lines]) / 0.85
    assert_allclose(ends, [[0, 0.5], [1 / 3, 0.5], [2 / 3, 0.5], [1, 0.5]])


def test_interpolations_run_from_start_to_end(vae, X):
    display = InterpolationDisplay.from_estimator(vae, X[:3], X[3:6], n_steps=5)
    drawn = images_in(display, 3, 5).reshape(3, 5, 64)
    assert_allclose(drawn, vae.interpolate(X[:3], X[3:6], n_steps=5), atol=1e-5)
    assert_allclose(drawn[:, 0], vae.reconstruct(X[:3]), atol=1e-5)
    assert_allclose(drawn[:, -1], vae.reconstruct(X[3:6]), atol=1e-5)
    assert labels_of(display.ax_.xaxis) == ["start", "", "", "", "end"]


def test_interpolations_that_cannot_be():
    with pytest.raises(ValueError, match="X_start has 2 rows and X_end has 3"):
        InterpolationDisplay.from_estimator(linear_vae(), ROWS[:2], ROWS[:3])
    with pytest.raises(ValueError, match="n_steps=1 is less than 2"):
        InterpolationDisplay.from_estimator(linear_vae(), ROWS, ROWS, n_steps=1)


# ----------------------------------------------------------------- latent space


def test_latent_space_shows_posterior_means_and_classes(vae, X):
    y = np.arange(200) % 10
    ax = LatentSpaceDisplay.from_estimator(vae, X, y).ax_
    assert_allclose(ax.collections[0].get_offsets(), vae.transform(X), rtol=1e-6)
    assert legend_of(ax) == [str(digit) for digit in range(10)]
    colours = ax.collections[0].get_facecolors()[:, :3]
    handles = [handle.get_color()[:3] for handle in ax.get_legend().legend_handles]
    assert_allclose(colours, np.array(handles)[y])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z0", "z1")


def test_wide_latent_space_is_projected_by_pca():
    vae = linear_vae(latent_dim=5)
    ax = LatentSpaceDisplay.from_estimator(vae, ROWS).ax_
    pca = PCA(n_components=2).fit(ROWS[:, :5])
    drawn = ax.collections[0].get_offsets()
    assert_allclose(np.abs(drawn), np.abs(pca.transform(ROWS[:, :5])), atol=1e-5)
    first, second = pca.explained_variance_ratio_
    assert f"({first:.0%} of variance)" in ax.get_xlabel()
    assert f"({second:.0%} of variance)" in ax.get_ylabel()
    assert ax.get_legend() is None
    with pytest.raises(ValueError, match="1 or 2 coordinates and got 5"):
        LatentSpaceDisplay(coordinates=ROWS[:, :5]).plot()


def test_latent_space_of_continuous_values():
    y = ROWS.sum(axis=1)
    display = LatentSpaceDisplay.from_estimator(linear_vae(), ROWS, y)
    assert_array_equal(display.ax_.collections[0].get_array(), y)
    assert len(display.figure_.axes) == 2  # The second one is the colour bar.
    assert display.ax_.get_legend() is None


def test_latent_space_of_many_named_classes():
    names = np.array([f"class {row:02d}" for row in range(30)])
    ax = LatentSpaceDisplay.from_estimator(linear_vae(), ROWS, names).ax_
    assert legend_of(ax) == list(names)
    assert len(np.unique(ax.collections[0].get_facecolors(), axis=0)) == 30


def test_latent_space_of_one_dimension():
    vae = linear_vae(latent_dim=1)
    y = np.arange(30) % 3
    ax = LatentSpaceDisplay.from_estimator(vae, ROWS, y).ax_
    assert sum(patch.get_height() for patch in ax.patches) == 30
    assert legend_of(ax) == ["0", "1", "2"]
    ax = LatentSpaceDisplay.from_estimator(vae, ROWS).ax_
    counts, _ = np.histogram(ROWS[:, 0], bins=40)
    assert_array_equal([patch.get_height() for patch in ax.patches], counts)
    y = ROWS.sum(axis=1)
    ax = LatentSpaceDisplay.from_estimator(vae, ROWS, y).ax_
    expected = np.column_stack([ROWS[:, 0], y])
    assert_allclose(ax.collections[0].get_offsets(), expected, rtol=1e-6)


def test_latent_space_needs_one_y_for_each_row():
    with pytest.raises(ValueError, match="y has 4 values for 30 rows"):
        LatentSpaceDisplay.from_estimator(linear_vae(), ROWS, [1, 2, 3, 4])


# -------------------------------------------------------- manifold and traversals


def test_manifold_lies_as_the_plane_does():
    vae = linear_vae()
    display = ManifoldDisplay.from_estimator(vae, n_steps=5)
    drawn = images_in(display, 5, 5, gap=0).reshape(5, 5, 64)
    low, high = norm.ppf([0.1, 0.9])
    top_left, top_right, bottom_left = [low, high], [high, high], [low, low]
    corners = vae.inverse_transform([top_left, top_right, bottom_left])
    assert_allclose(drawn[[0, 0, -1], [0, -1, 0]], corners, rtol=1e-5)
    assert labels_of(display.ax_.xaxis) == ["-1.3", "-0.5", "0.0", "0.5", "1.3"]
    assert labels_of(display.ax_.yaxis) == ["1.3", "0.5", "0.0", "-0.5", "-1.3"]


def test_manifold_needs_a_plane_of_images():
    with pytest.raises(ValueError, match=r"needs latent_dim=2 and got latent_dim=3"):
        ManifoldDisplay.from_estimator(linear_vae(latent_dim=3))
    # A tuple of one level is a plane, too.
    assert ManifoldDisplay.from_estimator(tiny(latent_dim=(2,)).fit(ROWS), n_steps=2)
    with pytest.raises(ValueError, match="13 features make no square image"):
        ManifoldDisplay.from_estimator(linear_vae(n_features=13))


def test_traversals_start_with_the_most_active_dimension():
    vae = linear_vae(latent_dim=4)
    X = ROWS * np.concatenate([[1, 3, 0.1, 2], np.ones(60)])
    display = LatentTraversalDisplay.from_estimator(
        vae, X, row=2, n_dimensions=3, n_steps=7, limit=1.5
    )
    assert display.dimensions == [1, 3, 0]
    assert labels_of(display.ax_.yaxis) == ["z1", "z3", "z0"]
    assert_allclose(display.values, np.linspace(-1.5, 1.5, 7))
    drawn = images_in(display, 3, 7).reshape(3, 7, 64)
    for place, dimension in enumerate([1, 3, 0]):
        Z = np.tile(X[2, :4], (7, 1))
        Z[:, dimension] = display.values
        assert_allclose(drawn[place], vae.inverse_transform(Z), rtol=1e-5)


def test_traversals_without_data_go_around_zero():
    vae = linear_vae(latent_dim=3)
    display = LatentTraversalDisplay.from_estimator(vae)
    assert display.dimensions == [0, 1, 2]
    zero = vae.inverse_transform(np.zeros((1, 3)))
    assert_allclose(display.traversals[:, 5], np.tile(zero, (3, 1)))
    with pytest.raises(ValueError, match="row=0 is no row of X, which has 0 rows"):
        LatentTraversalDisplay.from_estimator(vae, row=0)
    with pytest.raises(ValueError, match="row=30 is no row of X, which has 30 rows"):
        LatentTraversalDisplay.from_estimator(vae, ROWS, row=30)


def test_traversals_of_a_table():
    display = LatentTraversalDisplay.from_estimator(linear_vae(n_features=5))
    assert len(display.ax_.lines) == 2 * 11
    assert legend_of(display.ax_) == ["z = -3", "z = 3"]


# ---------------------------------------------------------------------- searches


def test_heat_map_shows_the_best_over_all_others():
    search = grid_search({"a": [2, 1], "b": [3.0, 1.0, 2.0], "c": [0, 5, -5]})
    display = SearchDisplay.from_search(search, x="b", y="a")
    table = pd.DataFrame(search.cv_results_)
    table = table.astype({"param_a": int, "param_b": float})
    best = table.pivot_table("mean_test_score", "param_a", "param_b", aggfunc="max")
    drawn = display.ax_.images[0].get_array()
    assert_allclose(drawn, best.to_numpy())
    assert labels_of(display.ax_.xaxis) == ["1", "2", "3"]
    assert labels_of(display.ax_.yaxis) == ["1", "2"]
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("b", "a")
    assert display.ax_.get_title() == "Cross-validated search\nbest over c"
    texts = [float(text.get_text()) for text in display.ax_.texts]
    assert_allclose(texts, best.to_numpy().ravel(), atol=0.05)
    assert display.best == (1, 0)
    (frame,) = display.ax_.patches
    assert frame.get_xy() == (-0.5, 0.5)


def test_search_takes_the_hyper_parameters_that_vary():
    display = SearchDisplay.from_search(
        grid_search({"a": [1, 2], "b": [1], "c": [0, 1]})
    )
    assert (display.x_name, display.y_name) == ("a", "c")
    search = grid_search({"a": [1, 2], "b": [1, 2], "c": [0, 1]})
    with pytest.raises(
        ValueError, match=r"varies \['a', 'b', 'c'\]: name what to draw"
    ):
        SearchDisplay.from_search(search)
    with pytest.raises(ValueError, match=r"'z' was not searched; there are \['a'"):
        SearchDisplay.from_search(search, x="z")
    with pytest.raises(ValueError, match=r"metric='elbo' was not scored; there are"):
        SearchDisplay.from_search(search, x="a", metric="elbo")
    with pytest.raises(NotFittedError):
        SearchDisplay.from_search(GridSearchCV(Scored(), {"a": [1]}))


def test_one_hyper_parameter_is_a_line_with_errors():
    search = grid_search({"a": [1, 3, 2]})
    display = SearchDisplay.from_search(search)
    line = display.ax_.lines[0]
    results = search.cv_results_
    assert_array_equal(line.get_xdata(), [1, 2, 3])
    assert_allclose(line.get_ydata(), results["mean_test_score"][[0, 2, 1]])
    assert_allclose(display.errors[0], results["std_test_score"][[0, 2, 1]])
    assert "mean test score" in display.ax_.get_ylabel()
    assert display.best == (0, 2)


def test_wide_ranges_are_drawn_on_a_logarithmic_axis():
    display = SearchDisplay.from_search(grid_search({"a": [1e-4, 1e-3, 1e-2]}))
    assert display.ax_.get_xscale() == "log"
    assert labels_of(display.ax_.xaxis) == ["0.0001", "0.001", "0.01"]


def test_values_that_are_no_numbers_keep_their_order():
    search = grid_search({"a": ["linear", "conv", (1, 2, 3)], "b": [1, 2]})
    display = SearchDisplay.from_search(search)
    assert labels_of(display.ax_.xaxis) == ["linear", "conv", "(1, 2, 3)"]
    line = SearchDisplay.from_search(search, x="a").ax_
    assert labels_of(line.xaxis) == ["linear", "conv", "(1, 2, 3)"]


def test_random_search_of_numbers_is_drawn_as_points():
    grid = {"a": uniform(0, 1), "b": loguniform(1e-4, 1)}
    search = grid_search(grid, RandomizedSearchCV, n_iter=12, random_state=0)
    display = SearchDisplay.from_search(search)
    points = display.ax_.collections[0]
    results = search.cv_results_
    drawn = np.column_stack([points.get_offsets(), points.get_array()])
    columns = ("param_a", "param_b", "mean_test_score")
    expected = np.column_stack([np.asarray(results[c], float) for c in columns])
    assert_allclose(np.sort(drawn, axis=0), np.sort(expected, axis=0))
    assert display.ax_.get_yscale() == "log"
    (best,) = display.ax_.lines
    assert_allclose(best.get_xydata()[0], list(search.best_params_.values()))


def test_halving_shows_the_last_iteration_that_reached_a_cell():
    search = grid_search(
        {"a": [1, 2, 3, 4], "b": [1, 2]},
        HalvingGridSearchCV,
        resource="epochs",
        max_resources=8,
        min_resources=1,
        factor=2,
        random_state=0,
    )
    results = search.cv_results_
    results["mean_test_score"] = results["mean_test_score"] - 100.0 * results["iter"]
    display = SearchDisplay.from_search(search)
    assert (display.x_name, display.y_name) == ("a", "b")
    for a, column in zip([1, 2, 3, 4], display.scores.T, strict=True):
        for b, score in zip([1, 2], column, strict=True):
            last = [
                mean
                for mean, params in zip(
                    results["mean_test_score"], results["params"], strict=True
                )
                if (params["a"], params["b"]) == (a, b)
            ][-1]
            assert score == last
    assert display.best == (0, 3)
    assert display.scores[0, 3] < display.scores[0, 0]


def test_a_race_shows_the_last_rung_that_reached_a_cell():
    search = grid_search({"a": [1, 2], "b": [1, 2], "c": [0, 1]})
    results = search.cv_results_
    # Scores of early rungs do not compare with those of later ones.
    results["mean_test_score"] = np.array([9.0, 1, 2, 8, 3, 4, 5, 6])
    results["rung"] = [0, 1, 1, 0, 2, 2, 0, 0]
    search.best_index_ = 5
    display = SearchDisplay.from_search(search, x="a", y="b")
    assert_allclose(display.scores, [[1, 4], [2, 6]])
    assert display.best == (0, 1)


def test_failed_and_missing_candidates_stay_blank():
    with pytest.warns(UserWarning, match="non-finite"):
        search = grid_search([{"a": [1, "fails"], "b": [1, 2]}, {"a": [5], "c": [1]}])
    display = SearchDisplay.from_search(search, x="a", y="b")
    assert display.x_values == [1, "fails", 5]
    assert_array_equal(
        np.isnan(display.scores), [[False, True, True], [False, True, True]]
    )
    assert len(display.ax_.texts) == 2
    with pytest.warns(UserWarning, match="non-finite"):
        search = grid_search({"a": ["fails"], "b": [1, 2]})
    with pytest.raises(ValueError, match="every fit has failed"):
        SearchDisplay.from_search(search)


def test_the_best_is_the_one_that_the_search_took():
    search = grid_search({"a": [1, 2, 3]}, refit=lambda results: 1)
    display = SearchDisplay.from_search(search)
    assert display.best == (0, 1)
    assert_array_equal(display.ax_.lines[-1].get_xdata(), [2])


def test_search_with_several_scores():
    scoring = {"up": lambda m, X, y=None: m.a, "down": lambda m, X, y=None: -m.a}
    search = grid_search({"a": [1, 2, 3]}, scoring=scoring, refit=False)
    display = SearchDisplay.from_search(search, metric="down")
    assert_allclose(display.scores, [[-1, -2, -3]])
    assert display.best == (0, 0)
    assert "mean test down" in display.ax_.get_ylabel()


def test_search_over_a_pipeline(X):
    pipeline = make_pipeline(MinMaxScaler(clip=True), tiny())
    grid = {
        "vaeestimator__latent_dim": [2, 3],
        "vaeestimator__learning_rate": [1e-3, 1e-2],
    }
    search = GridSearchCV(pipeline, grid, cv=2).fit(X)
    display = SearchDisplay.from_search(search)
    assert display.ax_.get_xlabel() == "vaeestimator__latent_dim"
    assert_allclose(display.scores.max(), search.best_score_)
    row, column = display.best
    assert search.best_params_ == {
        "vaeestimator__latent_dim": display.x_values[column],
        "vaeestimator__learning_rate": display.y_values[row],
    }
