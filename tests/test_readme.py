"""What the README and the documentation show runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

README = Path(__file__).resolve().parents[1] / "README.md"


def test_every_block_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import matplotlib.pyplot as plt

    text = README.read_text("utf-8")
    namespace: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        exec(block, namespace)
    plt.close("all")
    assert namespace["Z"].shape == (1797, 10)
    assert namespace["rows"].shape == (1000, 13)
    # Samples have the spread of the data, column by column.
    spread = namespace["rows"].std(axis=0) / namespace["wine"].std().to_numpy()
    assert (np.abs(np.log(spread)) < np.log(1.5)).all()
    assert "vaeestimator__latent_dim" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["choices", "extending"])
def test_every_block_of_the_documentation_runs(name):
    text = (README.parent / "docs" / f"{name}.md").read_text("utf-8")
    namespace: dict = {}
    with torch.random.fork_rng(devices=[]):  # modules of one's own draw from it
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.S):
            exec(block, namespace)


def test_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text("utf-8")):
        assert (README.parent / path).exists(), path
