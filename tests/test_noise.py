import numpy as np
import pytest
from scipy import stats

from skvae.noise import hash_rows, row_noise


@pytest.fixture
def rows():
    return np.random.default_rng(0).integers(0, 17, (500, 12)).astype(np.float32) / 16


def test_a_row_has_its_hash_wherever_it_stands(rows):
    hashes = hash_rows(rows)
    order = np.random.default_rng(1).permutation(len(rows))
    assert np.array_equal(hash_rows(rows[order]), hashes[order])
    assert np.array_equal(hash_rows(rows[7:8]), hashes[7:8])
    assert np.array_equal(hash_rows(np.asfortranarray(rows)), hashes)
    assert np.array_equal(hash_rows(rows.astype(np.float64)), hashes)


def test_hash_takes_wide_rows_in_blocks():
    wide = np.random.default_rng(0).random((3, 2**20), dtype=np.float32)
    assert hash_rows(wide)[1] == hash_rows(wide[1:2])[0]


def test_equal_rows_have_equal_hashes_and_others_do_not(rows):
    assert len(np.unique(hash_rows(rows))) == len(np.unique(rows, axis=0))
    assert hash_rows(np.array([[0.0]])) == hash_rows(np.array([[-0.0]]))
    swapped = rows[:, ::-1]
    assert not np.any(hash_rows(swapped) == hash_rows(rows))
    changed = rows.copy()
    changed[:, 5] = np.nextafter(changed[:, 5], np.float32(2))
    assert not np.any(hash_rows(changed) == hash_rows(rows))


def test_noise_is_standard_normal_and_independent(rows):
    noise = row_noise(hash_rows(np.unique(rows, axis=0)), 2, 40)[0].astype(np.float64)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    between_rows = np.corrcoef(noise[:200])
    np.fill_diagonal(between_rows, 0)
    assert abs(between_rows).max() < 6 / np.sqrt(40)
    # Neighbouring draws and neighbouring numbers share nothing.
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.03


def test_error_of_a_mean_over_rows_shrinks_as_of_independent_rows():
    x = np.random.default_rng(0).random((20_000, 3))
    assert abs(row_noise(hash_rows(x), 1, 1).mean()) < 4 / np.sqrt(20_000)


def test_draws_come_in_antithetic_pairs(rows):
    noise = row_noise(hash_rows(rows), 6, 3)
    assert noise.shape == (6, 500, 3)
    assert noise.dtype == np.float32
    assert np.array_equal(noise[0::2], -noise[1::2])
    assert len(np.unique(noise[0::2, 0])) == 9


@pytest.mark.parametrize(("first", "size"), [(0, 4), (1, 3), (4, 1), (5, 7)])
def test_draws_do_not_depend_on_how_they_are_blocked(rows, first, size):
    hashes = hash_rows(rows)
    whole = row_noise(hashes, 12, 5)
    part = row_noise(hashes, size, 5, first=first)
    assert np.array_equal(part, whole[first : first + size])
