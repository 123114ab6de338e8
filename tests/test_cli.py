import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from skvae import VAEEstimator, __version__, cli, demo


def test_demo_runs_with_its_options(monkeypatch):
    seen = []
    monkeypatch.setattr(demo, "run", lambda dataset, out: seen.append((dataset, out)))
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "--dataset", "mnist", "--out", "here"]) == 0
    assert seen == [("digits", Path("skvae-demo")), ("mnist", Path("here"))]


@pytest.mark.parametrize(
    ("error", "status"),
    [(FileNotFoundError("call load_mnist"), 1), (KeyboardInterrupt(), 130)],
)
def test_errors_are_one_line_and_a_status(monkeypatch, capsys, error, status):
    def fail(*_):
        raise error

    monkeypatch.setattr(demo, "run", fail)
    assert cli.main(["demo"]) == status
    message = capsys.readouterr().err
    assert message.startswith("skvae: ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--dataset", "cats"]])
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "usage: skvae" in capsys.readouterr().err


def test_version_needs_no_torch():
    script = (
        "import sys; from skvae import cli\n"
        "try: cli.main(['--version'])\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert output == f"skvae {__version__}\n"


@pytest.fixture
def saved(monkeypatch, tmp_path):
    """A path that `load` makes a small fitted model of."""
    X = np.random.RandomState(0).uniform(0, 1, (40, 16))
    vae = VAEEstimator(latent_dim=3, hidden_dim=8, epochs=1, random_state=0).fit(X)
    module = SimpleNamespace(load=lambda path: {"vae.safetensors": vae}[path.name])
    monkeypatch.setitem(sys.modules, "skvae.persistence", module)
    return tmp_path / "vae.safetensors"


def test_export_quantize_and_info(saved, tmp_path, capsys):
    out, small, rows = tmp_path / "e.onnx", tmp_path / "q.onnx", tmp_path / "rows.npy"
    np.save(rows, np.random.RandomState(1).uniform(0, 1, (20, 16)))
    options = ["--part", "elbo", "--opset", "20"]
    assert cli.main(["export", str(saved), str(out), *options]) == 0
    assert cli.main(["info", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "part: elbo" in printed
    assert "opset:\n  ai.onnx: 20" in printed
    assert "noise: ['rows', 4, 3]" in printed
    assert cli.main(["quantize", str(out), str(small), "--rows", str(rows)]) == 0
    assert "dynamic int8, measured on rows: given" in capsys.readouterr().out
    options = ["--calibrate", str(rows)]
    assert cli.main(["quantize", str(out), str(small), *options]) == 0
    assert "static int8" in capsys.readouterr().out


def test_warnings_are_a_line_each(saved, tmp_path, capsys, monkeypatch):
    def quantize(*_, **__):
        warnings.warn("it got slower", UserWarning, stacklevel=2)
        return "report"

    monkeypatch.setattr("skvae.onnx.quantization.quantize", quantize)
    assert cli.main(["quantize", "a", "b"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == ("report\n", "skvae: it got slower\n")


def test_info_of_a_saved_model(tmp_path, capsys):
    arrays = {"encoder.0.weight": np.zeros((8, 16), np.float32)}
    path = tmp_path / "vae.safetensors"
    save_file(arrays, path, {"skvae": '{"class": "VAEEstimator"}', "note": "plain"})
    assert cli.main(["info", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "skvae:\n  class: VAEEstimator" in printed
    assert "note: plain" in printed
    assert "encoder.0.weight: [8, 16]" in printed


def test_files_that_are_not_there_are_one_line(tmp_path, capsys):
    for name in ("missing.onnx", "missing.safetensors"):
        assert cli.main(["info", str(tmp_path / name)]) == 1
        assert name in capsys.readouterr().err
