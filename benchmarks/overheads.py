"""What a fit on a tiny table costs, and the memory of transform on a large map."""

import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from skvae import VAEEstimator

rng = np.random.default_rng(0)
X = rng.normal(size=(150, 4))
started = time.perf_counter()
VAEEstimator(random_state=0).fit(X)
first = time.perf_counter() - started
later = []
for _ in range(11):
    started = time.perf_counter()
    VAEEstimator(random_state=0).fit(X)
    later.append(time.perf_counter() - started)
print(
    f"fit on 150 x 4: first of the process {first:.3f} s, later "
    f"{statistics.median(later):.3f} s (median; {min(later):.3f} to {max(later):.3f})"
)


def peak_memory():
    """Peak resident memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


ROWS, COLUMNS = 1_000_000, 784
vae = VAEEstimator(epochs=1, random_state=0).fit(
    rng.random((1000, COLUMNS), np.float32)
)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "rows.npy"
    table = np.lib.format.open_memmap(path, "w+", np.float32, (ROWS, COLUMNS))
    block = rng.random((10_000, COLUMNS), dtype=np.float32)
    for start in range(0, ROWS, len(block)):
        table[start : start + len(block)] = block
        table.flush()
        table._mmap.madvise(4)  # MADV_DONTNEED: what was written must not count
    del table
    before = peak_memory()
    started = time.perf_counter()
    Z = vae.transform(np.load(path, mmap_mode="r"))
    seconds = time.perf_counter() - started
print(
    f"transform of a {ROWS:,} x {COLUMNS} float32 memory map "
    f"({ROWS * COLUMNS * 4 / 1e9:.1f} GB): peak {peak_memory():.2f} GB "
    f"({before:.2f} GB before), {seconds:.1f} s, {Z.shape[0]:,} codes"
)
