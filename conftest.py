"""What every test shares: data, and the proof that nothing global stays changed."""

import copy
import os
import random
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn
import torch
from hypothesis import settings
from sklearn.datasets import load_digits, load_iris

settings.register_profile("dev", deadline=None, max_examples=20, database=None)
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

ROOT = Path(__file__).resolve().parent
OURS = {
    "skvae",
    "tests",
    *(path.stem for path in (Path(__file__).parent / "tests").glob("*.py")),
}


def global_state():
    """Everything process-wide that a library may be tempted to change, by name."""
    name, keys, *rest = np.random.get_state()
    return {
        "numpy.random": (name, keys.tobytes(), *rest),
        "torch.random": torch.get_rng_state().numpy().tobytes(),
        "random": random.getstate(),
        "torch.get_num_threads": torch.get_num_threads(),
        "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision(),
        "denormals flushed": bool(torch.tensor(1e-40) * 1 == 0),
        "torch.is_grad_enabled": torch.is_grad_enabled(),
        "torch.get_default_dtype": torch.get_default_dtype(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "numpy.geterr": np.geterr(),
        "warnings.filters": list(warnings.filters),
        "warnings.showwarning": warnings.showwarning,
        "sklearn.get_config": sklearn.get_config(),
        "os.environ": {k: v for k, v in os.environ.items() if k[:7] != "PYTEST_"},
    }


@pytest.fixture(autouse=True)
def nothing_global_changes(request):
    """Fail any test after which a global state differs from what it was before."""
    before, modules = global_state(), set(sys.modules)
    yield
    after = global_state()
    names = {name for name in before if before[name] != after[name]}
    if any(name.split(".")[0] not in OURS for name in set(sys.modules) - modules):
        # What another library does when it is first imported is not ours to prevent
        # (torch._dynamo, which torch.optim imports, does both).
        names -= {"warnings.filters", "os.environ"}
    if request.node.name.endswith("networks.mlp.EncoderDecoder"):
        names -= {"torch.random"}  # the example makes plain torch modules
    if "denormals flushed" in names:  # or every later test would be blamed as well
        torch.set_flush_denormal(before["denormals flushed"])
    if names:
        pytest.fail(f"left changed: {', '.join(sorted(names))}")


@pytest.fixture
def one_thread():
    """torch on one thread, where equal seeds must give equal bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def _digits():
    return load_digits().data / 16


@pytest.fixture
def digits(_digits):
    """scikit-learn's digits as grey values in [0, 1], float64 (1797, 64)."""
    return _digits.copy()


@pytest.fixture(scope="session")
def _iris():
    return load_iris().data


@pytest.fixture
def iris(_iris):
    """scikit-learn's iris, float64 (150, 4)."""
    return _iris.copy()


@pytest.fixture(scope="session")
def _fitted_iris(_iris):
    from skvae import VAEEstimator

    return VAEEstimator(2, hidden_dim=8, epochs=2, batch_size=50, random_state=0).fit(
        _iris
    )


@pytest.fixture
def fitted_iris(_fitted_iris):
    """A copy of an estimator fitted to iris; what it has learned is one for all."""
    return copy.copy(_fitted_iris)


@pytest.fixture(scope="session")
def data_dir():
    """Folder of the real data sets: SKVAE_DATA, else ../shared/data."""
    default = ROOT.parent / "shared" / "data"
    folder = Path(os.environ.get("SKVAE_DATA") or default).expanduser()
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; set SKVAE_DATA to the folder that has them")
    return folder


def read_idx(path):
    """An array from a file in MNIST's idx format of unsigned bytes."""
    content = path.read_bytes()
    n_dims = content[3]
    shape = np.frombuffer(content, ">i4", n_dims, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_dims).reshape(shape)


@pytest.fixture(scope="session")
def mnist(data_dir):
    """MNIST as X_train (60000, 784), y_train, X_test (10000, 784), y_test.

    Pixels are float32 in [0, 1]; the arrays are read-only.
    """
    folder = data_dir / "MNIST" / "raw"
    if not (folder / "train-images-idx3-ubyte").is_file():
        pytest.skip(f"MNIST's idx files are not in {folder}")
    arrays = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte")
        pixels = images.reshape(len(images), -1).astype(np.float32)
        pixels /= 255
        pixels.flags.writeable = False
        arrays[f"X_{split}"] = pixels
        arrays[f"y_{split}"] = read_idx(folder / f"{prefix}-labels-idx1-ubyte")
    return SimpleNamespace(**arrays)
