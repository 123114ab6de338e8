import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from skvae import VAEEstimator, __version__, cli, demo, save


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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The file of a small fitted model."""
    X = np.random.RandomState(0).uniform(0, 1, (40, 16))
    vae = VAEEstimator(latent_dim=3, hidden_dim=8, epochs=1, random_state=0).fit(X)
    path = tmp_path_factory.mktemp("saved") / "vae.safetensors"
    save(vae, path)
    return path


@pytest.mark.slow  # it exports, calibrates and times the files
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


def test_export_hands_its_options_on(saved, monkeypatch):
    calls = []

    def export(vae, out, part, **more):
        calls.append((vae.latent_dim, out, part, more))

    monkeypatch.setattr("skvae.onnx.exporting.export", export)
    options = ["--part", "elbo", "--opset", "20"]
    assert cli.main(["export", str(saved), "out.onnx"]) == 0
    assert cli.main(["export", str(saved), "out.onnx", *options]) == 0
    assert calls == [
        (3, Path("out.onnx"), "all", {}),
        (3, Path("out.onnx"), "elbo", {"opset": 20}),
    ]


def test_quantize_hands_its_rows_on(tmp_path, monkeypatch, capsys):
    calls = []

    def quantize(path, out, calibration, *, X):
        calls.append((path, out, calibration, X))
        return "report"

    monkeypatch.setattr("skvae.onnx.quantization.quantize", quantize)
    np.save(tmp_path / "measured.npy", np.zeros((2, 16)))
    np.save(tmp_path / "calibrated.npy", np.ones((3, 16)))
    options = ["--rows", str(tmp_path / "measured.npy")]
    options += ["--calibrate", str(tmp_path / "calibrated.npy")]
    assert cli.main(["quantize", "a.onnx", "b.onnx"]) == 0
    assert cli.main(["quantize", "a.onnx", "b.onnx", *options]) == 0
    assert capsys.readouterr().out == "report\nreport\n"
    names = Path("a.onnx"), Path("b.onnx")
    assert calls[0] == (*names, None, None)
    assert calls[1][:2] == names
    assert np.array_equal(calls[1][2], np.ones((3, 16)))
    assert np.array_equal(calls[1][3], np.zeros((2, 16)))


def test_rows_that_need_pickle_are_refused(tmp_path, capsys):
    np.save(tmp_path / "rows.npy", np.array([{}]), allow_pickle=True)
    rows = ["--rows", str(tmp_path / "rows.npy")]
    assert cli.main(["quantize", "a.onnx", "b.onnx", *rows]) == 1
    assert "allow_pickle=False" in capsys.readouterr().err


def test_warnings_are_a_line_each(capsys, monkeypatch):
    def quantize(*_, **__):
        warnings.warn("it got slower", UserWarning, stacklevel=2)
        return "report"

    monkeypatch.setattr("skvae.onnx.quantization.quantize", quantize)
    assert cli.main(["quantize", "a", "b"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == ("report\n", "skvae: it got slower\n")


def test_info_of_a_saved_model(saved, capsys):
    assert cli.main(["info", str(saved)]) == 0
    printed = capsys.readouterr().out
    assert "'class': 'VAEEstimator'" in printed
    assert "network.encoder.0.weight: [8, 16]" in printed
    assert max(map(len, printed.splitlines())) < 300


def test_info_of_any_safetensors_file(tmp_path, capsys):
    arrays = {"weight": np.zeros((8, 16), np.float32)}
    path = tmp_path / "other.safetensors"
    save_file(arrays, path, {"skvae": '{"class": "VAEEstimator"}', "note": "plain"})
    assert cli.main(["info", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "skvae:\n  class: VAEEstimator" in printed
    assert "note: plain" in printed
    assert "weight: [8, 16]" in printed


def test_files_that_are_not_there_are_one_line(tmp_path, capsys):
    for name in ("missing.onnx", "missing.safetensors"):
        assert cli.main(["info", str(tmp_path / name)]) == 1
        assert name in capsys.readouterr().err
