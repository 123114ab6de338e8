"""Categories: a column holds codes, the decoder gives a logit for each of them."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax

from likelihood_helpers import assert_log_prob, build, columns, doubles, generator, one
from skvae import VAEEstimator
from skvae.forms import Column, Summary
from skvae.likelihoods import Categorical

EQUAL = Categorical(3), [3, 3]
DIFFERENT = Categorical((2, 4)), [2, 4]


def codes_of(sizes, n=50, seed=0):
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.integers(size, size=n) for size in sizes]).astype(float)


def blocks(array, sizes):
    return np.split(array, np.cumsum(sizes)[:-1], axis=-1)


@pytest.mark.parametrize(
    ("likelihood", "sizes"), [(Categorical(5), [5]), EQUAL, DIFFERENT], ids=repr
)
class TestAgainstScipy:
    """One column, several of equal and of different sizes."""

    def test_log_prob(self, likelihood, sizes):
        x, raw = codes_of(sizes), 3 * doubles(50, sum(sizes))
        logs = [log_softmax(b, axis=-1) for b in blocks(raw.numpy(), sizes)]
        codes = x.astype(int)
        expected = np.column_stack(
            [log[np.arange(50), codes[:, d]] for d, log in enumerate(logs)]
        )
        module = one(likelihood, len(sizes))
        assert_log_prob(module, x, raw, expected)
        by_column = module.log_prob_by_column(torch.tensor(x), raw)
        np.testing.assert_allclose(by_column, expected)
        # Draws of z share the rows.
        raw = 3 * doubles(4, 50, sum(sizes))
        together = module.log_prob(torch.tensor(x), raw)
        torch.testing.assert_close(
            together[2], module.log_prob(torch.tensor(x), raw[2])
        )

    def test_all_outcomes_sum_to_one(self, likelihood, sizes):
        outcomes = torch.tensor(list(itertools.product(*map(range, sizes)))).double()
        raw = 3 * doubles(sum(sizes)).expand(len(outcomes), -1)
        masses = one(likelihood, len(sizes)).log_prob(outcomes, raw).exp()
        assert masses.sum().item() == pytest.approx(1, abs=1e-9)

    def test_the_mean_is_the_most_probable_code(self, likelihood, sizes):
        raw = doubles(20, sum(sizes))
        expected = [b.argmax(-1) for b in blocks(raw.numpy(), sizes)]
        mean = one(likelihood, len(sizes)).mean(raw)
        np.testing.assert_array_equal(mean, np.column_stack(expected))

    def test_draws_are_as_frequent_as_they_are_probable(self, likelihood, sizes):
        raw, n = doubles(sum(sizes)).float(), 20_000
        draws = one(likelihood, len(sizes)).draw(raw.expand(n, -1), generator())
        for d, block in enumerate(blocks(raw.double().numpy(), sizes)):
            counts = np.bincount(draws[:, d].long(), minlength=sizes[d])
            expected = n * np.exp(log_softmax(block))
            assert stats.chisquare(counts, expected).pvalue > 1e-3

    def test_the_encoder_sees_them_one_hot(self, likelihood, sizes):
        X = codes_of(sizes)
        expected = [np.eye(k)[X[:, d].astype(int)] for d, k in enumerate(sizes)]
        module = one(likelihood, len(sizes))
        seen = module.see(torch.tensor(X))
        np.testing.assert_array_equal(seen, np.hstack(expected))
        x = torch.tensor(X, dtype=torch.bfloat16)
        assert module.see(x).dtype == torch.bfloat16


def test_columns_stand_where_they_stand_one_by_one():
    """Columns of different sizes between each other, in the order of X."""
    sizes = (3, 2, 3, 1, 4)
    X, raw = codes_of(sizes), doubles(50, sum(sizes))
    together = build(Categorical(sizes), X)
    x = torch.tensor(X)
    for d, block in enumerate(raw.split(sizes, -1)):
        alone = build(Categorical(sizes[d]), X[:, d : d + 1])
        torch.testing.assert_close(
            together.log_prob_by_column(x, raw)[:, d],
            alone.log_prob(x[:, d : d + 1], block),
        )


def test_many_codes_are_exact_in_float32():
    """No code is rounded: 257 is none of bfloat16's numbers, 2^24 of float32's."""
    size = 1000
    X = np.arange(size, dtype=float)[:, None]
    module = build(Categorical(size), X)
    x = torch.tensor(X, dtype=torch.float32)
    assert torch.equal(module.see(x), torch.eye(size))
    raw = torch.full((size, size), -50.0).fill_diagonal_(50.0)
    torch.testing.assert_close(module.log_prob(x, raw), torch.zeros(size))
    assert torch.equal(module.mean(raw), x)
    assert torch.equal(module.draw(raw, generator()), x)


def test_training_keeps_the_codes_exact():
    """Codes above 256 reach the model in float32, whatever the precision."""
    X = np.array([[256.0], [257.0]] * 40)
    vae = VAEEstimator(
        1,
        hidden_dim=4,
        epochs=30,
        learning_rate=0.1,
        likelihood=Categorical(),
        precision="bfloat16",
        random_state=0,
    ).fit(X)
    share = np.mean(vae.sample(1000, random_state=0) == 257)
    assert 0.3 < share < 0.7


# ------------------------------------------------------------------ resolving


def test_sizes_come_from_the_largest_code():
    X = np.array([[0.0, 2, 0], [3, 1, 0]])
    likelihood = Categorical().resolve(columns(3), Summary(X))
    assert likelihood.n_categories == (4, 3, 1)
    assert build(likelihood, X).input_widths == [4, 3, 1]
    assert Categorical(6).resolve(columns(3), Summary(X)).n_categories == (6, 6, 6)


def test_missing_entries_do_not_count():
    X = np.array([[0.0, np.nan], [1, 2]])
    observed = ~np.isnan(X)
    summary = Summary(X, observed=observed)
    assert Categorical().resolve(columns(2), summary).n_categories == (2, 3)


def test_sizes_come_from_the_categories_that_a_data_frame_declares():
    town = pd.Categorical(["a", "b"] * 20, categories=["a", "b", "c", "d"])
    X = pd.DataFrame({"town": town, "drink": ["tea", "gin"] * 20})
    vae = VAEEstimator(1, hidden_dim=4, epochs=1, random_state=0).fit(X)
    assert "Categorical(n_categories=(4, 2))" in repr(vae.likelihood_)
    column = Column("town", "category", 4)
    summary = Summary(np.array([[0.0], [1.0]]))
    assert Categorical().resolve([column], summary).n_categories == (4,)


@pytest.mark.parametrize(
    ("n_categories", "match"),
    [
        ((2, 3, 4), r"\(2, 3, 4\) tells of 3 columns, but X has 2 features"),
        ((6, 0), "0 is not"),
        (("a", 1), "'a' is not"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(n_categories, match):
    with pytest.raises(ValueError, match=match):
        Categorical(n_categories).resolve(columns(2), Summary(np.eye(2)))


@pytest.mark.parametrize("n_categories", [np.int64(3), np.uint8(3), [3, np.int64(3)]])
def test_sizes_may_be_numpys(n_categories):
    known = Categorical(n_categories).resolve(columns(2), Summary(np.eye(2)))
    assert known.n_categories == (3, 3)
    assert all(type(size) is int for size in known.n_categories)


def test_what_is_no_code_is_refused_with_advice():
    known = Categorical((2, 4)).resolve(columns(2), Summary(np.eye(2)))
    X = np.array([[0.0, 3], [1, 0.5], [2, 0]])
    expected = [[True, True], [True, False], [False, True]]
    np.testing.assert_array_equal(known.contains(X), expected)
    np.testing.assert_array_equal(known.nearest(X), [[0, 3], [1, 0], [1, 0]])
    with pytest.raises(
        ValueError, match=r"0.5 in row 1, column 1, .*{0, ..., 3}.*codes"
    ):
        known.check_support(X)
    with pytest.raises(ValueError, match=r"-1.0 in row 0, column 0, .*OrdinalEnc"):
        Categorical().check_support(np.array([[-1.0, 0]]))


def test_outputs_start_at_the_shares():
    X = np.array([[0.0], [2], [2], [2]])
    module = build(Categorical(4), X)
    shares = torch.tensor([0.25, 0, 0.75, 0])
    torch.testing.assert_close(
        module.start.softmax(-1), shares.clamp(min=1e-3), rtol=1e-2, atol=0
    )
    torch.testing.assert_close(module.inputs[0], shares)
    torch.testing.assert_close(module.inputs[1], (shares * (1 - shares)).sqrt())


def test_an_unseen_code_counts_as_the_nearest_one():
    X = np.array([[0.0, 2.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    vae = VAEEstimator(1, likelihood="categorical", hidden_dim=4, random_state=0)
    vae.fit(X)
    far = np.array([[5.0, -3.0]])
    np.testing.assert_array_equal(vae.transform(far), vae.transform([[1.0, 0.0]]))


def test_partial_fit_keeps_the_number_of_categories():
    X = np.array([[0.0], [1.0], [2.0], [0.0]])
    vae = VAEEstimator(1, likelihood="categorical", hidden_dim=4, random_state=0)
    vae.partial_fit(X).partial_fit(X[:2])  # of the chunk alone there would be two
    assert vae.likelihood_.n_categories == (3,)
    with pytest.raises(ValueError, match=r"value 3\.0 in row 0"):
        vae.partial_fit(X + 3)
