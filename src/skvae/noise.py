"""Noise that belongs to a row: scores that do not depend on a row's neighbours.

A score of a variational autoencoder is an average over random draws. Drawing afresh
makes the same row score differently at every call and at every position; sharing one
draw makes the errors of all rows add up. Here the noise is a function of the row's own
values: independent between rows, the same for a row wherever it stands.
"""

import numpy as np
from scipy.special import ndtri

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014): every bit stirs every bit."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def hash_rows(X: np.ndarray) -> np.ndarray:
    """A 64-bit number for each row of X (N, D), from its float32 values."""
    # Adding 0 turns -0.0 into 0.0: equal rows get equal numbers.
    words = (np.ascontiguousarray(X, dtype=np.float32) + np.float32(0)).view(np.uint32)
    odd = _mix(np.arange(1, X.shape[1] + 1, dtype=np.uint64) * _GOLDEN) | np.uint64(1)
    hashes = np.zeros(len(X), dtype=np.uint64)
    step = max(1, 2**20 // max(1, X.shape[1]))
    for start in range(0, len(X), step):
        block = words[start : start + step].astype(np.uint64)
        hashes[start : start + step] = (_mix(block * odd)).sum(axis=1)
    return _mix(hashes)


def row_noise(
    hashes: np.ndarray, n_draws: int, n_noise: int, *, first: int = 0
) -> np.ndarray:
    """Standard normal noise for rows known by their hash.

    Parameters
    ----------
    hashes : ndarray of uint64, shape (N,)
    n_draws, n_noise : int
        Draws per row, and numbers per draw.
    first : int, default=0
        Index of the first draw, so that draws can be made in blocks.

    Returns
    -------
    ndarray of float32, shape (n_draws, N, n_noise)
        Draws 2k and 2k + 1 are antithetic (one is minus the other), which halves the
        cost and takes the odd part of the error away.
    """
    draws = np.arange(first, first + n_draws, dtype=np.uint64)
    pairs = np.unique(draws >> np.uint64(1))
    counters = pairs[:, None] * np.uint64(n_noise) + np.arange(n_noise, dtype=np.uint64)
    state = _mix(
        hashes[None, :, None] + (counters[:, None, :] + np.uint64(1)) * _GOLDEN
    )
    # The top 53 bits, at the middle of their interval: never 0, never 1.
    uniform = ((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    normal = ndtri(uniform).astype(np.float32)
    sign = np.where(draws & np.uint64(1), np.float32(-1), np.float32(1))
    return normal[(draws >> np.uint64(1)) - pairs[0]] * sign[:, None, None]
