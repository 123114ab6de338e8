"""Columns of several kinds: each group as its family alone would have it."""

import numpy as np
import pandas as pd
import pytest
import torch

from likelihood_helpers import build, columns, generator, random, rows, shaken
from skvae.forms import Column, Summary
from skvae.likelihoods import (
    BY_NAME,
    Bernoulli,
    Beta,
    Categorical,
    Gaussian,
    Likelihood,
    Mixed,
    NegativeBinomial,
    StudentT,
)
from skvae.likelihoods.mixed import Auto
from skvae.spec import resolve
from skvae.units import Units

GROUPS = {
    "side by side": ((Gaussian("row"), 2), (Categorical(3), 3), (Beta("feature"), 1)),
    "any order": (
        (Gaussian("feature"), [0, 3]),
        (NegativeBinomial("row"), [5, 1]),
        (Categorical((2, 4)), [4, 2]),
    ),
    "each by itself": (
        (Categorical(2), [5]),
        (StudentT("learned", "row"), [4]),
        (Bernoulli(), [3]),
        (Categorical(4), [2]),
        (NegativeBinomial(), [1]),
        (Gaussian(0.5), [0]),
    ),
    "all in one": ((Beta(), [3, 1, 4, 0, 2, 5]),),
    "within each other": (
        (Mixed(((Categorical(3), [1]), (Gaussian("row"), [0, 2]))), [5, 0, 2]),
        (Mixed((("poisson", 1), (Beta(), 2))), [1, 3, 4]),
    ),
}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_mixed_is_its_families_each_on_its_columns(groups):
    mixed = Mixed(groups)
    X = rows(mixed, 40)
    units = Units(np.zeros(6), np.linspace(0.5, 3, 6))
    module = shaken(build(mixed, X, units))
    x, raw = torch.tensor(X[:5], dtype=torch.float32), random(3, 5, module.n_raw)
    mask = torch.rand(5, 6, generator=generator()) < 0.7

    raws = raw.split(module.raw_widths, -1)
    inputs = module.see(x, mask).split(module.input_widths, -1)
    starts = module.start.split(module.raw_widths)
    spreads = module.inputs[1].split(module.input_widths)
    totals = []
    for (family, positions), learned in zip(mixed.groups, module.groups, strict=True):
        here = Units(units.location[positions], units.scale[positions])
        alone = build(family, X[:, positions], here)
        alone.load_state_dict(learned.state_dict())
        own, raw_here = x[:, positions], torch.cat([raws[i] for i in positions], -1)
        totals.append(alone.log_prob(own, raw_here, mask[:, positions]))
        torch.testing.assert_close(
            torch.cat([inputs[i] for i in positions], -1),
            alone.see(own, mask[:, positions]),
        )
        torch.testing.assert_close(
            module.mean(raw)[..., positions], alone.mean(raw_here)
        )
        torch.testing.assert_close(
            module.log_prob_by_column(x, raw)[..., positions],
            alone.log_prob_by_column(own, raw_here),
        )
        torch.testing.assert_close(
            torch.cat([starts[i] for i in positions]), alone.start
        )
        torch.testing.assert_close(
            torch.cat([spreads[i] for i in positions]), alone.inputs[1]
        )
    torch.testing.assert_close(module.log_prob(x, raw, mask), sum(totals))


def test_draws_are_those_of_the_families():
    mixed = Mixed((("poisson", [2, 0]), (Categorical(3), [1])))
    module = build(mixed, rows(mixed, 10, 3))
    raw = random(module.n_raw)
    draws = module.draw(raw.expand(20_000, -1), generator())
    rate, logits, other = raw[:1], raw[1:4], raw[4:]
    torch.testing.assert_close(draws[:, 0].mean(), rate.exp()[0], rtol=0.05, atol=0.05)
    torch.testing.assert_close(draws[:, 2].mean(), other.exp()[0], rtol=0.05, atol=0.05)
    shares = torch.bincount(draws[:, 1].long(), minlength=3) / 20_000
    torch.testing.assert_close(shares, logits.softmax(0), rtol=0, atol=0.02)


def test_widths_stand_side_by_side_column_by_column():
    """The outputs of a column are where its position says, whatever its group."""
    mixed = Mixed(((Gaussian("row"), [2, 0]), (Categorical((3, 2)), [3, 1])))
    X = rows(mixed, 20, 4)
    module = build(mixed, X)
    assert module.raw_widths == [2, 3, 2, 2]
    assert module.input_widths == [1, 3, 1, 2]
    x = torch.tensor(X, dtype=torch.float32)
    raw = random(20, 9)
    before = module.log_prob_by_column(x, raw)
    for column, (start, stop) in enumerate([(0, 2), (2, 5), (5, 7), (7, 9)]):
        other = raw.clone()
        other[:, start:stop] += random(20, stop - start, seed=9)
        moved = (module.log_prob_by_column(x, other) != before).any(0)
        assert moved.nonzero().flatten().tolist() == [column]
    seen = module.see(x)
    torch.testing.assert_close(seen[:, [0, 4]], x[:, [0, 2]])
    assert torch.equal(seen[:, 1:4].argmax(-1), x[:, 1].long())


def test_scales_are_in_the_units_of_their_columns():
    mixed = Mixed((("poisson", [1]), (Gaussian(scale=2.0), [2, 0])))
    units = Units(np.zeros(3), np.array([4.0, 1.0, 0.5]))
    module = build(mixed, rows(mixed, 5, 3), units)
    torch.testing.assert_close(
        module.groups[1].log_scale, torch.tensor([0.5, 4.0]).log()
    )


def test_only_real_numbers_are_standardised():
    mixed = Mixed((("gaussian", [3, 0]), ("poisson", [1]), (Beta(), [2])))
    summary = Summary(rows(mixed, 5, 4))
    np.testing.assert_array_equal(mixed.standardizes(summary), [1, 0, 0, 1])
    assert mixed.real_valued
    assert not mixed.tolerates_rounding


def test_the_column_outside_is_named_with_its_own_support_and_advice():
    mixed = Mixed((("gaussian", [1]), ("poisson", [2, 0])))
    X = np.array([[1.0, 0.5, 3.0], [1.5, 0.5, 3.0]])
    with pytest.raises(
        ValueError,
        match=r"(?s)1\.5 in row 1, column 0, .*{0, 1, 2, ...}.*Poisson.*Counts must",
    ):
        mixed.resolve(columns(3), Summary(X)).check_support(X)
    with pytest.raises(ValueError, match="column 'a', outside"):
        mixed.check_support(X, names=["a", "b", "c"])
    inner = Mixed(((mixed, [0, 1, 2]),))
    with pytest.raises(ValueError, match=r"(?s)column 0, .*Counts must"):
        inner.check_support(X)
    np.testing.assert_array_equal(
        mixed.contains(X), [[True, True, True], [False, True, True]]
    )


@pytest.mark.parametrize(
    ("families", "match"),
    [
        ((), "at least one"),
        (("gaussian", 2), "must hold pairs"),
        ((("gaus", 2),), "'gaus'; expected one of"),
        ((("gaussian", 2), ("poisson", [2])), "some columns by number and some by"),
        ((("gaussian", 0),), "0 columns; give at least 1"),
        ((("gaussian", [0.5]),), "expected a number of columns"),
        ((("gaussian", ()),), "expected a number of columns"),
        ((("gaussian", True),), "expected a number of columns"),
        ((("gaussian", None),), "expected a number of columns"),
        (((Gaussian(scale=-1.0), 3),), "'scale' parameter"),
        ("gaussian", "'families' parameter"),
    ],
    ids=str,
)
def test_families_that_are_none_are_refused(families, match):
    with pytest.raises(ValueError, match=match):
        resolve(Mixed(families), BY_NAME, "likelihood", Likelihood)


@pytest.mark.parametrize(
    ("families", "match"),
    [
        ((("gaussian", 2),), r"without a group: \[2\]"),
        ((("gaussian", 4),), "but these have 4 columns"),
        ((("gaussian", [0, 1, 2]), ("beta", [1])), r"in several: \[1\]"),
        ((("gaussian", 1), (Categorical((3,)), 2)), r"\(3,\) tells of 1 columns"),
    ],
    ids=str,
)
def test_columns_that_do_not_fit_are_refused(families, match):
    with pytest.raises(ValueError, match=match):
        Mixed(families).resolve(columns(3), Summary(np.ones((2, 3))))


@pytest.mark.parametrize("positions", [np.array([1, 0]), (np.int8(1), 0), range(2)])
def test_positions_may_be_numpys(positions):
    mixed = Mixed((("gaussian", positions),))
    resolve(mixed, BY_NAME, "likelihood", Likelihood)
    known = mixed.resolve(columns(2), Summary(np.ones((2, 2))))
    assert known.families[0][1] == (0, 1)


# ------------------------------------------------------------------ by kind


KINDS = [
    Column("height"),
    Column("smokes", "boolean", 2),
    Column("town", "category", 4),
    Column("born", "date"),
    Column("drink", "category", 2),
    Column("children", integral=True),
]
CODES = np.tile([[1.7, 0, 3, 1e15, 1, 2], [1.8, 1, 0, 2e15, 0, 0]], (3, 1))


def test_families_follow_the_kinds():
    known = Mixed({"children": "count"}).resolve(KINDS, Summary(CODES))
    assert [(repr(family), where) for family, where in known.families] == [
        ("Gaussian(scale='feature')", (0, 3)),
        ("Bernoulli()", (1,)),
        ("Categorical(n_categories=(4, 2))", (2, 4)),
        ("NegativeBinomial()", (5,)),
    ]
    # By name in one group, by an equal object in the same one.
    families = {"height": StudentT(), "children": StudentT()}
    known = Mixed(families).resolve(KINDS, Summary(CODES))
    assert (repr(known.families[0][0]), known.families[0][1]) == ("StudentT()", (0, 5))


def test_auto_is_mixed_where_a_column_holds_no_numbers():
    known = Auto().resolve(KINDS, Summary(CODES))
    assert repr(known) == repr(Mixed().resolve(KINDS, Summary(CODES)))
    assert isinstance(Auto().resolve(KINDS[:1], Summary(CODES[:, :1])), Gaussian)
    # Whole numbers are never taken for counts.
    counts = Auto().resolve(KINDS[5:], Summary(CODES[:, 5:]))
    assert isinstance(counts, Gaussian)


def test_kinds_that_are_asked_of_a_data_frame():
    mixed = Mixed(
        {
            "a": "categorical",
            "b": "binary",
            "c": "count",
            "d": StudentT(),
            "e": Categorical(3),
        }
    )
    expected = dict(zip("abcde", ["category"] * 2 + ["number"] * 2, strict=False))
    assert mixed.kinds == {**expected, "e": "category"}
    assert Mixed().kinds == {}
    assert Mixed((("gaussian", 2),)).kinds is None
    assert Gaussian().kinds is None


@pytest.mark.parametrize(
    ("families", "match"),
    [
        ({"height": "number"}, "'height' the family 'number'; expected one of"),
        ({"town": Bernoulli()}, r"column 'town' has 4 values, but its family Bern"),
        ({"height": Gaussian(scale=-1.0)}, "'scale' parameter"),
    ],
    ids=str,
)
def test_families_that_a_column_cannot_have_are_refused(families, match):
    with pytest.raises(ValueError, match=match):
        Mixed(families).resolve(KINDS, Summary(CODES))


def test_families_as_objects_of_columns_of_any_dtype():
    """A date may be a number, and a string a category, by an object too."""
    from skvae import VAEEstimator

    X = pd.DataFrame(
        {
            "drink": ["tea", "gin"] * 10,
            "when": pd.date_range("2020-01-01", periods=20),
            "flag": [True, False] * 10,
        }
    )
    families = {"drink": Categorical(), "when": StudentT(), "flag": "numeric"}
    vae = VAEEstimator(
        1, hidden_dim=4, epochs=1, likelihood=Mixed(families), random_state=0
    ).fit(X)
    rows = vae.sample(5, random_state=0)
    assert rows.dtypes.equals(X.dtypes)
    assert set(rows.drink) <= {"tea", "gin"}
    assert rows.when.between("2019-01-01", "2021-12-31").all()
