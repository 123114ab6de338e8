import copy
import warnings

import numpy as np
import onnx
import pytest

from onnx_helpers import digits, exported, model, write
from skvae import OnnxVAE
from skvae.onnx import draw, quantize
from skvae.onnx.metadata import Metadata
from skvae.onnx.quantization import QuantizationReport, warn_of_losses


def quietly(*arguments, **options):
    """Quantise, and the messages: whether it is faster depends on the machine."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = quantize(*arguments, **options)
    return report, [str(w.message) for w in caught]


@pytest.mark.parametrize("part", ["all", "elbo"])
@pytest.mark.parametrize("static", [False, True])
def test_under_half_of_the_size_for_little_of_the_elbo(part, static, tmp_path):
    X = digits()[1000:1400]
    files = write("digits", tmp_path, part), tmp_path / "int8.onnx"
    report, _ = quietly(*files, digits()[:200] if static else None, X=X)
    assert report.method == ("static" if static else "dynamic")
    assert report.rows == "given"
    assert report.bytes_before == files[0].stat().st_size
    assert report.bytes_after == files[1].stat().st_size
    assert report.bytes_after < 0.45 * report.bytes_before
    elbo = model("digits").score(X)
    assert report.elbo_before == pytest.approx(elbo, rel=1e-5)
    assert report.elbo_after == pytest.approx(elbo, rel=0.01)
    after = OnnxVAE(files[1]).score_samples(X)
    assert report.elbo_after == pytest.approx(after.mean(), rel=1e-5)
    largest = np.abs(after - model("digits").score_samples(X)).max()
    assert report.largest_difference["elbo.elbo"] == pytest.approx(largest, rel=0.01)
    assert 0 < largest < 0.1 * abs(elbo)
    assert "int8" in draw(files[1])
    for name in ("bytes", "ELBO", "rows per second", "max |delta| of elbo.elbo"):
        assert name in str(report)


def test_metadata_and_defaults_stay(tmp_path):
    files = write("digits", tmp_path), tmp_path / "int8.onnx"
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
def test_other_parts_have_no_elbo_to_lose(part, tmp_path):
    files = write("digits", tmp_path, part), tmp_path / "int8.onnx"
    report, _ = quietly(*files, digits()[:200])
    assert report.rows == "calibration"
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
def test_whatever_is_worse_comes_with_a_warning(change, message):
    warn_of_losses(QuantizationReport(**REPORT))  # without a warning
    with pytest.warns(UserWarning, match=message):
        warn_of_losses(QuantizationReport(**REPORT | change))


def test_convolutions_come_with_advice(tmp_path):
    """A convolution put at the end of an encoder."""
    files = tmp_path / "vae.onnx", tmp_path / "int8.onnx"
    proto = copy.deepcopy(exported("digits", "encoder"))
    graph = proto.graph
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
    onnx.checker.check_model(proto)
    files[0].write_bytes(proto.SerializeToString())
    _, messages = quietly(*files)
    assert any("smaller, not faster" in m and "slower" in m for m in messages)
    _, messages = quietly(*files, digits()[:50])
    assert any("smaller, not faster. Where" in m for m in messages)


def test_what_cannot_be_quantised_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no layers with weights"):
        quantize(write("digits", tmp_path, "prior"), tmp_path / "out.onnx")
    with pytest.raises(ValueError, match="X has 5 features, but OnnxVAE is expecting"):
        quantize(write("digits", tmp_path), tmp_path / "out.onnx", np.zeros((3, 5)))
    assert not (tmp_path / "out.onnx").exists()
