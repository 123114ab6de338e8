"""What the README and the documentation show runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

README = Path(__file__).resolve().parents[1] / "README.md"
# The same with little to train, and in this process.
FEWER = {
    r"\bepochs=\d+": "epochs=2",
    r'epochs": \[[\d, ]+\]': 'epochs": [1, 2]',
    r'latent_dim": \[[\d, ]+\]': 'latent_dim": [2, 5]',
    r"n_jobs=\d+": "n_jobs=1",
    r"cv=\d+": "cv=2",
    r"\[:5\], 1000\)": "[:5], 10)",
}


def run_blocks(path, replaced=()):
    """The names that the Python blocks of a page leave behind."""
    text = path.read_text("utf-8")
    for pattern in replaced:
        text, n = re.subn(pattern, FEWER[pattern], text)
        assert n, f"{path.name} has no {pattern} any more"
    namespace: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        exec(block, namespace)
    return namespace


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder to write into, and no picture left open."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.mark.slow
# Which of two files is faster is not for a test to say.
@pytest.mark.filterwarnings("ignore:the quantised file is")
def test_every_block_runs(capsys, elsewhere):
    names = run_blocks(README, FEWER)
    assert names["Z"].shape == (1797, 10)
    assert names["rows"].shape == (1000, 13)
    assert (elsewhere / "vae.onnx").exists()
    assert "vaeestimator__latent_dim" in capsys.readouterr().out


@pytest.mark.slow
def test_every_block_runs_as_it_stands(capsys, elsewhere):
    names = run_blocks(README)
    assert names["Z"].shape == (1797, 10)
    assert names["rows"].shape == (1000, 13)
    # Samples have the spread of the data, column by column.
    spread = names["rows"].std(axis=0) / names["wine"].std().to_numpy()
    assert (np.abs(np.log(spread)) < np.log(1.5)).all()
    assert "vaeestimator__latent_dim" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["choices", "extending"])
def test_every_block_of_the_documentation_runs(name):
    with torch.random.fork_rng(devices=[]):  # modules of one's own draw from it
        run_blocks(README.parent / "docs" / f"{name}.md")


def test_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text("utf-8")):
        assert (README.parent / path).exists(), path
