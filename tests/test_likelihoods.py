"""What every likelihood keeps to."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.base import clone

from likelihood_helpers import build, columns, generator, random, rows, shaken
from skvae import VAEEstimator
from skvae.forms import Summary
from skvae.likelihoods import (
    BY_NAME,
    LIKELIHOODS,
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    Gaussian,
    Likelihood,
    Mixed,
    NegativeBinomial,
    Poisson,
    StudentT,
)
from skvae.spec import resolve
from skvae.units import Units

D = 6


class Case(NamedTuple):
    """A family, and how many inputs and raw outputs each of six columns has."""

    likelihood: Likelihood
    inputs: list[int]
    raw: list[int]


CASES = [
    Case(Bernoulli(), [1] * D, [1] * D),
    Case(ContinuousBernoulli(), [1] * D, [1] * D),
    Case(Gaussian(), [1] * D, [1] * D),
    Case(Gaussian(scale="feature"), [1] * D, [1] * D),
    Case(Gaussian(scale="row"), [1] * D, [2] * D),
    Case(Gaussian(scale=0.7), [1] * D, [1] * D),
    Case(StudentT(), [1] * D, [1] * D),
    Case(StudentT(degrees_of_freedom="learned", scale="feature"), [1] * D, [1] * D),
    Case(StudentT(scale="row"), [1] * D, [2] * D),
    Case(StudentT(degrees_of_freedom=10, scale=0.7), [1] * D, [1] * D),
    Case(Beta(), [1] * D, [2] * D),
    Case(Beta(precision="feature"), [1] * D, [1] * D),
    Case(Beta(precision="shared"), [1] * D, [1] * D),
    Case(Poisson(), [1] * D, [1] * D),
    Case(NegativeBinomial(), [1] * D, [1] * D),
    Case(NegativeBinomial(dispersion="shared"), [1] * D, [1] * D),
    Case(NegativeBinomial(dispersion="row"), [1] * D, [2] * D),
    Case(Categorical(5), [5] * D, [5] * D),
    Case(Categorical((2, 4, 4, 3, 1, 2)), [2, 4, 4, 3, 1, 2], [2, 4, 4, 3, 1, 2]),
    Case(DiscretizedLogisticMixture(), [1] * D, [15] * D),
    Case(DiscretizedLogisticMixture(n_components=2, n_channels=1), [1] * D, [6] * D),
    Case(DiscretizedLogisticMixture(n_components=3, n_channels=2), [1] * D, [9] * D),
    Case(
        Mixed(
            (
                ("gaussian", [5, 4]),
                (NegativeBinomial("row"), [1, 3]),
                (Beta("feature"), [0, 2]),
            )
        ),
        [1] * D,
        [1, 2, 1, 2, 1, 1],
    ),
    Case(
        Mixed((("student_t", 2), (Categorical((5, 3, 5)), 3), ("poisson", 1))),
        [1, 1, 5, 3, 5, 1],
        [1, 1, 5, 3, 5, 1],
    ),
    Case(
        Mixed(
            (
                (Mixed(((Gaussian("row"), [1]), (Categorical(3), [0]))), [4, 1]),
                ("bernoulli", [5, 3, 2, 0]),
            )
        ),
        [1, 3, 1, 1, 1, 1],
        [1, 3, 1, 1, 2, 1],
    ),
]
FAMILIES = [case.likelihood for case in CASES]


def name(value):
    return repr(getattr(value, "likelihood", value))


def holds(likelihood, family):
    """Whether a likelihood is of a family, in one of its columns at least."""
    if isinstance(likelihood, Mixed):
        return any(holds(one, family) for one, _ in likelihood.groups)
    return isinstance(likelihood, family)


def is_categorical(likelihood, d):
    """Whether column d holds categories."""
    if isinstance(likelihood, Mixed):
        for family, positions in likelihood.groups:
            if d in positions:
                return is_categorical(family, positions.index(d))
    return isinstance(likelihood, Categorical)


def resolved(likelihood, X):
    return likelihood.resolve(columns(D), Summary(X))


def made(likelihood, X=None):
    """A module for rows, with what it learns away from the start, and the rows."""
    X = rows(likelihood) if X is None else X
    return shaken(build(likelihood, X)), torch.tensor(X, dtype=torch.float32)


def test_every_registered_family_is_under_contract():
    assert {*LIKELIHOODS.values(), Mixed} == {type(family) for family in FAMILIES}
    assert set(BY_NAME) == {*LIKELIHOODS, "auto", "mixed"}


@pytest.mark.parametrize("case", CASES, ids=name)
def test_three_widths(case):
    module, x = made(case.likelihood)
    assert (module.input_widths, module.raw_widths) == (case.inputs, case.raw)
    assert module.n_columns == D
    assert (module.n_inputs, module.n_raw) == (sum(case.inputs), sum(case.raw))
    raw = random(2, 5, module.n_raw)
    assert module.see(x).shape == (5, module.n_inputs)
    assert module.log_prob(x, raw).shape == (2, 5)
    assert torch.equal(module(x, raw), module.log_prob(x, raw))
    assert module.mean(raw).shape == (2, 5, D)
    assert module.draw(raw, generator()).shape == (2, 5, D)
    assert module.start.shape == (module.n_raw,)
    assert [part.shape for part in module.inputs] == [(module.n_inputs,)] * 2
    if not holds(case.likelihood, DiscretizedLogisticMixture):
        by_column = module.log_prob_by_column(x, raw)
        assert by_column.shape == (2, 5, D)
        torch.testing.assert_close(by_column.sum(-1), module.log_prob(x, raw))


@pytest.mark.parametrize("likelihood", FAMILIES, ids=repr)
class TestContract:
    def test_everything_gets_a_gradient(self, likelihood):
        module, x = made(likelihood)
        raw = random(2, 5, module.n_raw).requires_grad_()
        module.log_prob(x, raw).sum().backward()
        for tensor in [raw, *module.parameters()]:
            assert torch.isfinite(tensor.grad).all()
            assert (tensor.grad != 0).any()
        # A single category has nothing to choose; all others move the density.
        alone = getattr(likelihood, "n_categories", None) == (2, 4, 4, 3, 1, 2)
        assert (raw.grad != 0).any(0).any(0).sum() == module.n_raw - alone

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_extreme_outputs(self, likelihood, dtype):
        module, x = made(likelihood)
        inside = resolved(likelihood, x.numpy())
        patterns = [[1.0], [-1.0], [1.0, -1.0], [-1.0, 1.0]]
        signs = [torch.tensor(p).repeat(module.n_raw)[: module.n_raw] for p in patterns]
        signs.append(torch.sign(random(5, module.n_raw)))
        for sign in signs:
            for size in (1e4, 100, 20):
                raw = (size * sign.expand(5, -1)).to(dtype).requires_grad_()
                log_prob = module.log_prob(x, raw)
                assert log_prob.dtype == torch.float32
                assert torch.isfinite(log_prob).all()
                gradients = torch.autograd.grad(
                    log_prob.sum(), [raw, *module.parameters()]
                )
                assert all(torch.isfinite(g).all() for g in gradients)
                with torch.no_grad():
                    raw = raw.float()  # as Model does
                    assert torch.isfinite(module.mean(raw)).all()
                    draws = module.draw(raw, generator())
                assert inside.contains(draws.numpy()).all()

    def test_closed_form_is_that_of_autograd(self, likelihood):
        module, x = made(likelihood)
        if module.closed_form(x, random(5, module.n_raw), None) is None:
            assert not isinstance(likelihood, Bernoulli)
            return
        for dtype in (torch.float32, torch.bfloat16):
            for weights in (None, torch.tensor([0.1, 2.0, -1.0, 0.0, 1.0])):
                raw = random(5, module.n_raw).to(dtype)
                before = raw.clone()
                terms, slope = module.closed_form(x, raw, weights)
                assert torch.equal(raw, before)
                assert (terms.dtype, slope.dtype) == (torch.float32, dtype)
                raw = raw.float().requires_grad_()
                expected = -module.log_prob(x, raw)
                (expected.sum() if weights is None else expected @ weights).backward()
                rounded = 1e-5 if dtype == torch.float32 else 1e-2
                torch.testing.assert_close(
                    terms, expected.detach(), rtol=rounded, atol=rounded
                )
                torch.testing.assert_close(slope, raw.grad.to(dtype))

    def test_bfloat16_outputs_cost_no_digits(self, likelihood):
        module, x = made(likelihood)
        raw = random(5, module.n_raw).bfloat16()
        # Where x is rounded too, so may be what is made of it.
        families = resolved(likelihood, rows(likelihood)).families_by_column(D)
        rounded = 1e-2 if any(f.tolerates_rounding for f, *_ in families) else 1e-5
        expected = module.log_prob(x, raw.float())
        torch.testing.assert_close(
            module.log_prob(x, raw), expected, rtol=rounded, atol=rounded
        )

    def test_draws_have_the_mean_and_stay_in_the_support(self, likelihood):
        module, x = made(likelihood)
        raw = random(module.n_raw)
        with torch.no_grad():
            draws = module.draw(raw.expand(30_000, -1), generator())
            mean = module.mean(raw).double()
        assert draws.dtype == torch.float32
        assert resolved(likelihood, x.numpy()).contains(draws.numpy()).all()
        error = draws.double().std(0) / len(draws) ** 0.5
        if holds(likelihood, DiscretizedLogisticMixture):
            error += 0.5 / 255 / 5  # the mean before rounding
        for d in range(D):
            if is_categorical(likelihood, d):  # the most probable one stands for it
                assert mean[d] == draws[:, d].mode().values
            else:
                assert (draws[:, d].double().mean() - mean[d]).abs() < 5 * error[d]

    def test_draws_are_the_generators_alone(self, likelihood):
        module, _ = made(likelihood)
        raw = random(4, module.n_raw)
        first, again, other = (module.draw(raw, generator(s)) for s in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_outputs_start_near_the_mean(self, likelihood):
        X = rows(likelihood, 200)
        module = build(likelihood, X)
        mean = torch.tensor(X.mean(axis=0), dtype=torch.float32)
        started = module.mean(module.start)
        for d in range(D):
            if is_categorical(likelihood, d):
                assert started[d] == torch.tensor(X[:, d]).mode().values
            elif holds(likelihood, ContinuousBernoulli):
                assert started[d] == 0.5
            else:
                cut_off = holds(likelihood, DiscretizedLogisticMixture)
                assert abs(started[d] - mean[d]) < (0.1 if cut_off else 1e-4)

    def test_inputs_lie_where_the_encoder_sees_the_data(self, likelihood):
        X = rows(likelihood, 500)
        module = build(likelihood, X)
        seen = module.see(torch.tensor(X, dtype=torch.float32))
        location, spread = module.inputs
        assert (location - seen.mean(0)).abs().max() < 0.2 * seen.abs().max()
        ratio = spread / seen.std(0)
        assert ((ratio > 0.5) & (ratio < 1.6) | (seen.std(0) == 0)).all()

    @given(data=st.data())
    def test_nearest_is_inside_and_changes_nothing_that_is(self, likelihood, data):
        dtype = data.draw(st.sampled_from([np.float32, np.float64]))
        values = st.floats(-1e5, 1e5, width=32) | st.floats(-1, 2, width=32)
        X = data.draw(arrays(dtype, (3, D), elements=values))
        before = X.copy()
        known = resolved(likelihood, rows(likelihood))
        nearest = known.nearest(X)
        assert nearest.dtype == dtype
        assert known.contains(nearest).all()
        np.testing.assert_array_equal(known.nearest(nearest), nearest)
        np.testing.assert_array_equal(X, before)
        inside = known.contains(X)
        np.testing.assert_allclose(nearest[inside], X[inside], rtol=1e-6, atol=2e-6)
        known.check_support(nearest)
        assert (np.abs(nearest - X) <= np.abs(rows(likelihood, 3) - X) + 2e-6).all()

    def test_every_column_has_one_support(self, likelihood):
        known = resolved(likelihood, rows(likelihood))
        found = [d for _, some in known.supports(D) for d in some]
        assert sorted(found) == list(range(D))
        assert [d for *_, some in known.families_by_column(D) for d in some] == found

    def test_covers_what_lies_within_without_a_look_at_each_value(self, likelihood):
        X = rows(likelihood)
        known = resolved(likelihood, X)
        if known.covers(Summary(X)):
            inside = X.min(axis=0), X.max(axis=0), X.mean(axis=0)
            assert known.contains(np.array(inside)).all()
        else:  # between two whole numbers lie others
            assert any(support.step is not None for support, _ in known.supports(D))
        for d in range(D):
            outside = X.copy()
            outside[0, d] = -7.5
            if not known.contains(outside).all():
                assert not known.covers(Summary(outside))

    def test_standardizes(self, likelihood):
        summary = Summary(rows(likelihood))
        flags = resolved(likelihood, rows(likelihood)).standardizes(summary)
        assert flags.shape == (D,)
        assert flags.dtype == bool
        assert flags.any() == likelihood.real_valued

    def test_a_copy_is_the_same(self, likelihood):
        assert repr(clone(likelihood)) == repr(likelihood)
        copy = resolve(likelihood, BY_NAME, "likelihood", Likelihood)
        assert repr(copy) == repr(likelihood)
        # What is resolved already has nothing left to be found out.
        X = rows(likelihood)
        once = resolved(likelihood, X)
        for other in (X, X[:1], 0 * X):
            assert repr(resolved(once, other)) == repr(once)

    def test_estimator(self, likelihood):
        X = rows(likelihood, n_rows=40)
        vae = VAEEstimator(
            latent_dim=2,
            hidden_dim=4,
            epochs=2,
            batch_size=10,
            learning_rate=1e-2,
            likelihood=likelihood,
            random_state=0,
        ).fit(X)
        assert vae.transform(X).shape == (40, 2)
        scores = vae.score_samples(X)
        assert np.isfinite(scores).all()
        losses = vae.history_.loss
        assert losses[1] < losses[0] + 0.1  # where it starts at the mean, that is all
        sample = vae.sample(50, random_state=0, observation_noise=True)
        assert sample.shape == (50, D)
        assert vae.likelihood_.contains(sample).all()
        assert np.isfinite(vae.reconstruct(X)).all()
        assert np.isfinite(vae.log_likelihood(X[:5], 10)).all()


@pytest.mark.parametrize("likelihood", FAMILIES, ids=repr)
def test_the_encoder_sees_numbers_as_they_are(likelihood):
    """But for counts, of which it sees logarithms, and categories, one-hot."""
    if holds(likelihood, Poisson | NegativeBinomial | Categorical):
        return
    module, x = made(likelihood)
    assert torch.equal(module.see(x), x)


# ------------------------------------------------------------------ missing entries


@pytest.mark.parametrize("case", CASES, ids=name)
class TestMasks:
    @pytest.fixture
    def mask(self):
        mask = torch.rand(5, D, generator=generator()) < 0.6
        mask[0], mask[1] = True, False
        return mask

    def test_log_prob_is_that_of_the_observed_entries(self, case, mask):
        module, x = made(case.likelihood)
        raw = random(3, 5, module.n_raw)
        got = module.log_prob(x, raw, mask)
        assert got.shape == (3, 5)
        torch.testing.assert_close(got[:, 0], module.log_prob(x, raw)[:, 0])
        torch.testing.assert_close(got[:, 1], torch.zeros(3))  # nothing was observed
        torch.testing.assert_close(module(x, raw, observed=mask), got)
        if not holds(case.likelihood, DiscretizedLogisticMixture):
            by_column = module.log_prob_by_column(x, raw)
            torch.testing.assert_close(got, (by_column * mask).sum(-1))

    def test_what_is_missing_may_be_anything(self, case, mask):
        """Neither the density nor a gradient looks at an entry that is missing."""
        module, x = made(case.likelihood)
        raw = random(3, 5, module.n_raw).requires_grad_()
        results = []
        for hole in (0.0, 1.0, float("nan")):
            given = x.where(mask, torch.tensor(hole))
            log_prob = module.log_prob(given, raw, mask)
            inputs = [raw, *module.parameters()]
            gradients = torch.autograd.grad(log_prob.sum(), inputs)
            results.append((log_prob, module.see(given, mask), *gradients))
        for result in results[1:]:
            for got, expected in zip(result, results[0], strict=True):
                assert torch.isfinite(got).all()
                assert torch.equal(got, expected)

    def test_the_encoder_sees_zeros_in_their_place(self, case, mask):
        module, x = made(case.likelihood)
        seen = module.see(x, mask)
        assert seen.shape == (5, module.n_inputs)
        of_inputs = mask.repeat_interleave(torch.tensor(case.inputs), dim=-1)
        torch.testing.assert_close(seen, module.see(x) * of_inputs)
        torch.testing.assert_close(module.see(x, torch.ones_like(mask)), module.see(x))


def alone(likelihood, X, d):
    """The module of column d by itself."""
    summary = Summary(X)
    for family, _, some in resolved(likelihood, X).families_by_column(D):
        if d in some and isinstance(family, Categorical):
            family = Categorical()
        if d in some:
            break
    column = columns(D)[d : d + 1]
    resolved_one = family.resolve(column, summary.take([d]))
    return resolved_one.build(column, summary.take([d]), Units.identity(1))


@pytest.mark.parametrize(
    "likelihood",
    [
        *(f for f in FAMILIES if not isinstance(f, Mixed)),
        Mixed((("gaussian", [3, 0]), ("poisson", [2]), (Beta(), [5, 1, 4]))),
    ],
    ids=repr,
)
def test_a_column_is_modelled_as_if_it_were_alone(likelihood):
    """Its density, mean and input, from its own raw outputs."""
    if isinstance(likelihood, DiscretizedLogisticMixture):
        pytest.skip("the channels of a pixel belong together")
    X = rows(likelihood)
    if isinstance(likelihood, Categorical):
        sizes = likelihood.n_categories
        for d, size in enumerate([sizes] * D if isinstance(sizes, int) else sizes):
            X[0, d] = size - 1
    # Built, not shaken: what is learned has one value for all columns.
    module = build(likelihood, X)
    x = torch.tensor(X, dtype=torch.float32)
    raw = random(5, module.n_raw)
    by_column, mean = module.log_prob_by_column(x, raw), module.mean(raw)
    pieces, inputs = (
        raw.split(module.raw_widths, -1),
        module.see(x).split(module.input_widths, -1),
    )
    for d in range(D):
        single = alone(likelihood, X, d)
        column = x[:, d : d + 1]
        torch.testing.assert_close(
            single.log_prob(column, pieces[d]), by_column[:, d], rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(single.mean(pieces[d]), mean[:, d : d + 1])
        torch.testing.assert_close(single.see(column), inputs[d])


@pytest.mark.parametrize("likelihood", FAMILIES, ids=repr)
def test_gradient_is_that_of_finite_differences(likelihood):
    X = rows(likelihood, 2)
    module = shaken(build(likelihood, X)).double()
    x = torch.tensor(X)
    names = [name for name, _ in module.named_parameters()]
    raw = random(2, module.n_raw).double().requires_grad_()

    def log_prob(raw, *values):
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(module, state, (x, raw))

    values = [value.detach().requires_grad_() for value in module.parameters()]
    assert torch.autograd.gradcheck(log_prob, (raw, *values))


# ------------------------------------------------------------------ the base class


def test_families_whose_columns_depend_on_each_other_say_so():
    module, x = made(DiscretizedLogisticMixture())
    with pytest.raises(NotImplementedError, match="DiscretizedLogisticMixtureModule"):
        module.log_prob_by_column(x, random(5, module.n_raw))


def test_check_support_names_the_first_entry_outside():
    X = np.array([[0.0, 1.0], [0.5, 1.03], [-1.0, 0.0]])
    with pytest.raises(
        ValueError,
        match=r"X_val has the value 1.03 in row 1, column 1, outside the support "
        r"\[0, 1\] of Bernoulli\(\)\. Scale",
    ):
        Bernoulli().check_support(X, "X_val")
    with pytest.raises(ValueError, match="column 'b', outside"):
        Bernoulli().check_support(X, names=["a", "b"])
    Gaussian().check_support(X)


def test_missing_entries_are_not_outside_the_support():
    Bernoulli().check_support(np.array([[0.0, np.nan], [1.0, 0.5]]))
    with pytest.raises(ValueError, match=r"value 2\.0 in row 0, column 1"):
        Bernoulli().check_support(np.array([[np.nan, 2.0]]))


@pytest.mark.parametrize("name", sorted(LIKELIHOODS))
def test_by_name(name):
    likelihood = LIKELIHOODS[name]()
    coarse = {"bernoulli", "categorical", "continuous_bernoulli"}
    assert likelihood.tolerates_rounding == (name in coarse)
    X = rows(likelihood, n_rows=12)
    vae = VAEEstimator(
        latent_dim=1, hidden_dim=4, epochs=1, likelihood=name, random_state=0
    ).fit(X)
    assert type(vae.likelihood_) is type(likelihood)
