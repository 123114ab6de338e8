import warnings

import numpy as np
import onnx
import pytest

from onnx_helpers import fitted
from skvae import OnnxVAE
from skvae.onnx import draw, export, quantize
from skvae.onnx.metadata import Metadata
from skvae.onnx.quantization import QuantizationReport, _complain


@pytest.fixture(scope="module")
def digits_vae(_digits):
    return fitted("bernoulli", _digits[:1000], hidden_dim=256, epochs=10, latent_dim=8)


def quietly(*arguments, **options):
    """Quantise, and the messages: whether it is faster is the machine's affair."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = quantize(*arguments, **options)
    return report, [str(w.message) for w in caught]


@pytest.mark.parametrize("part", ["all", "elbo"])
@pytest.mark.parametrize("static", [False, True])
def test_under_half_of_the_size_for_little_of_the_elbo(
    part, static, digits_vae, digits, tmp_path
):
    files = tmp_path / "vae.onnx", tmp_path / "int8.onnx"
    export(digits_vae, files[0], part)
    report, _ = quietly(*files, digits[:200] if static else None, X=digits[1000:])
    assert report.method == ("static" if static else "dynamic")
    assert report.bytes_before == files[0].stat().st_size
    assert report.bytes_after == files[1].stat().st_size
    assert report.bytes_after < 0.45 * report.bytes_before
    elbo = digits_vae.score(digits[1000:])
    assert report.elbo_before == pytest.approx(elbo, rel=1e-5)
    assert report.elbo_after == pytest.approx(elbo, rel=0.01)
    assert report.elbo_after == pytest.approx(
        OnnxVAE(files[1]).score_samples(digits[1000:]).mean(), rel=1e-5
    )
    assert 0 < report.largest_difference["elbo.elbo"] < 0.1 * abs(elbo)
    assert "int8" in draw(files[1])
    for name in ("bytes", "ELBO", "rows per second", "max |delta| of elbo.elbo"):
        assert name in str(report)


def test_metadata_and_defaults_stay(digits_vae, tmp_path):
    files = tmp_path / "vae.onnx", tmp_path / "int8.onnx"
    export(digits_vae, files[0])
    report, _ = quietly(*files)
    assert report.rows == "model"
    before, after = onnx.load(files[0]), onnx.load(files[1])
    read = [{e.key: e.value for e in m.metadata_props} for m in (before, after)]
    assert read[0] == read[1]
    assert Metadata.read(read[1], "x").part == "all"
    given = {w.name for w in after.graph.initializer}
    assert {value.name for value in after.graph.input} <= given
    assert OnnxVAE(files[1]).sample(3).shape == (3, 64)


@pytest.mark.parametrize("part", ["encoder", "decoder", "autoencoder"])
def test_other_parts_have_no_elbo_to_lose(digits_vae, part, tmp_path):
    files = tmp_path / "vae.onnx", tmp_path / "int8.onnx"
    export(digits_vae, files[0], part)
    report, _ = quietly(*files)
    assert report.elbo_before is report.elbo_after is None
    (difference,) = report.largest_difference.values()
    assert 0 < difference < 1


REPORT = {
    "method": "dynamic",
    "bytes_before": 100,
    "bytes_after": 30,
    "elbo_before": -100.0,
    "elbo_after": -100.2,
    "largest_difference": {},
    "rows_per_second_before": 100.0,
    "rows_per_second_after": 200.0,
    "rows": "given",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes_after": 101}, r"larger \(100 to 101 bytes\)"),
        ({"rows_per_second_after": 90.0}, r"slower \(100 to 90 rows per second\)"),
        ({"elbo_after": -100.4}, r"worse \(ELBO -100 to -100.4\)"),
        ({"elbo_after": np.nan}, "worse"),
    ],
)
def test_nothing_gets_worse_silently(change, message):
    _complain(QuantizationReport(**REPORT))  # a warning would be an error
    with pytest.warns(UserWarning, match=message):
        _complain(QuantizationReport(**REPORT | change))


def test_convolutions_come_with_advice(tmp_path):
    """A file that has one, whatever networks there are."""
    files = tmp_path / "vae.onnx", tmp_path / "int8.onnx"
    model = export(fitted(), None, "encoder")
    graph = model.graph
    weight = np.zeros((1, 1, 1, 1), np.float32) + 1
    graph.initializer.append(onnx.numpy_helper.from_array(weight, "kernel"))
    axes = onnx.numpy_helper.from_array(np.array([1, 2]), "axes")
    graph.initializer.append(axes)
    graph.output[0].name = "mean"
    last = graph.node[-1]
    first = list(last.output).index("mean")
    last.output[first] = "flat"
    make = onnx.helper.make_node
    graph.node.extend(
        [
            make("Unsqueeze", ["flat", "axes"], ["image"], name="posterior/U"),
            make("Conv", ["image", "kernel"], ["convolved"], name="posterior/C"),
            make("Squeeze", ["convolved", "axes"], ["mean"], name="posterior/S"),
        ]
    )
    onnx.checker.check_model(model)
    files[0].write_bytes(model.SerializeToString())
    _, messages = quietly(*files)
    assert any("smaller, not faster" in m and "slower" in m for m in messages)


def test_what_has_no_weights_is_refused(tmp_path):
    export(fitted(), tmp_path / "prior.onnx", "prior")
    with pytest.raises(ValueError, match="no layers with weights"):
        quantize(tmp_path / "prior.onnx", tmp_path / "out.onnx")
