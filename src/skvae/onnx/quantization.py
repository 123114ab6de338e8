"""Weights of eight bits: smaller files, faster matrix products, and what they cost."""

import copy
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from ..checks import warn
from .metadata import require, write_atomically
from .runtime import DTYPES, OnnxVAE

# The layers with weights; densities stay in float32.
_OPERATORS = ["Gemm", "MatMul", "Conv", "ConvTranspose"]
_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_PREPARED = "onnx.quant.pre_process", "onnxruntime.quant"
_BANDS = ("encoder", "posterior", "decoder")
# What a loss of the ELBO is worth a warning, relative.
TOLERANCE = 0.003


@dataclass(frozen=True)
class QuantizationReport:
    """What quantisation gained and lost.

    Attributes
    ----------
    method : {"dynamic", "static"}
    bytes_before, bytes_after : int
        Size of the files.
    elbo_before, elbo_after : float or None
        Mean over the rows, in nats per row; None where the file holds no ELBO.
    largest_difference : dict of str to float
        Largest absolute change of any number, by output.
    rows_per_second_before, rows_per_second_after : float
        Of the ELBO, or of the file's only part, on one thread; measured in turns.
    rows : {"given", "calibration", "model"}
        What it was measured on: rows that were given, those of the calibration, or
        rows that the model makes up.
    """

    method: str
    bytes_before: int
    bytes_after: int
    elbo_before: float | None
    elbo_after: float | None
    largest_difference: dict[str, float]
    rows_per_second_before: float
    rows_per_second_after: float
    rows: str

    def __str__(self) -> str:
        lines = [
            f"{self.method} int8, measured on rows: {self.rows}",
            f"bytes            {self.bytes_before:>12,} -> {self.bytes_after:,} "
            f"({self.bytes_after / self.bytes_before:.2f})",
            f"rows per second  {self.rows_per_second_before:>12,.0f} -> "
            f"{self.rows_per_second_after:,.0f} "
            f"({self.rows_per_second_after / self.rows_per_second_before:.2f})",
        ]
        if self.elbo_before is not None and self.elbo_after is not None:
            change = (self.elbo_after - self.elbo_before) / abs(self.elbo_before)
            lines.append(
                f"ELBO             {self.elbo_before:>12.4f} -> {self.elbo_after:.4f} "
                f"({change:+.3%})"
            )
        lines += [
            f"max |delta| of {name}: {value:.3g}"
            for name, value in self.largest_difference.items()
        ]
        return "\n".join(lines)


def quantize(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    X_calibration: Any = None,
    *,
    X: Any = None,
) -> QuantizationReport:
    """Write an exported VAE with weights of eight bits.

    Dynamically (activations are quantised as they come), or statically where rows to
    calibrate with are given. Fully connected networks get a quarter of the size and
    mostly faster; convolutional ones smaller, but not faster. Dynamically, the numbers
    of a row depend a little on the rows that are run with it, since they share a scale.

    Parameters
    ----------
    path : path-like
        A file of :func:`skvae.onnx.export`.
    out : path-like
        Where to write.
    X_calibration : array-like of shape (n_samples, n_features) or None, default=None
        Some hundred rows of the training data.
    X : array-like of shape (n_samples, n_features) or None, default=None
        Rows to measure on; None takes those of the calibration, or else rows that the
        model makes up.

    Returns
    -------
    report : QuantizationReport

    Warns
    -----
    UserWarning
        If the network is convolutional, or the result is larger, slower or has an ELBO
        that is worse by more than 0.3 %. The file is written in any case.

    Examples
    --------
    >>> from skvae.onnx import quantize
    >>> print(quantize("vae.onnx", "vae-int8.onnx", X=X_test))  # doctest: +SKIP
    """
    onnx = require("onnx")
    before = OnnxVAE(path, n_threads=1)
    metadata = before.metadata_
    calibrating = X_calibration is not None
    if calibrating:
        X_calibration = _checked(before, X_calibration)
    if X is not None:
        source, X = "given", _checked(before, X)
    elif calibrating:
        source, X = "calibration", X_calibration
    else:
        source, X = "model", _made_up(before)

    model = onnx.load(path)
    if not any(node.op_type in _OPERATORS for node in model.graph.node):
        raise ValueError(f"{os.fspath(path)!r} has no layers with weights to quantise.")
    if _CONVOLUTIONS & {node.op_type for node in model.graph.node}:
        message = "convolutions get smaller, not faster"
        if calibrating:
            message += ". Where speed matters, keep the float32 file."
        else:
            message += (
                ", and dynamic quantisation makes them slower. Where speed matters, "
                "keep the float32 file, or give X_calibration for static quantisation."
            )
        warn(message)
    _quantize(model, out, before, X_calibration)
    after = OnnxVAE(out, n_threads=1)

    outputs_before, outputs_after = _outputs(before, X), _outputs(after, X)
    seconds: list[list[float]] = [[], []]
    for _ in range(7):
        for vae, times in zip((before, after), seconds, strict=True):
            started = time.perf_counter()
            _outputs(vae, X, only=metadata.parts[min(2, len(metadata.parts) - 1)])
            times.append(time.perf_counter() - started)
    report = QuantizationReport(
        method="static" if calibrating else "dynamic",
        bytes_before=Path(path).stat().st_size,
        bytes_after=Path(out).stat().st_size,
        elbo_before=_mean(outputs_before.get("elbo.elbo")),
        elbo_after=_mean(outputs_after.get("elbo.elbo")),
        largest_difference={
            name: float(np.abs(value - outputs_after[name]).max())
            for name, value in outputs_before.items()
        },
        rows_per_second_before=len(X) / min(seconds[0]),
        rows_per_second_after=len(X) / min(seconds[1]),
        rows=source,
    )
    warn_of_losses(report)
    return report


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None else float(values.mean(dtype=np.float64))


def _checked(vae: OnnxVAE, X: Any) -> np.ndarray:
    return validate_data(vae, X, dtype=DTYPES, reset=False)


def warn_of_losses(report: QuantizationReport) -> None:
    """Warn of what the quantised file does worse than the other."""
    worse = []
    if report.bytes_after > report.bytes_before:
        worse.append(
            f"larger ({report.bytes_before:,} to {report.bytes_after:,} bytes)"
        )
    if report.rows_per_second_after < 0.95 * report.rows_per_second_before:
        worse.append(
            f"slower ({report.rows_per_second_before:,.0f} to "
            f"{report.rows_per_second_after:,.0f} rows per second)"
        )
    if report.elbo_before is not None and report.elbo_after is not None:
        loss = report.elbo_before - report.elbo_after
        if not loss <= TOLERANCE * abs(report.elbo_before):
            worse.append(
                f"worse (ELBO {report.elbo_before:.4g} to {report.elbo_after:.4g})"
            )
    if worse:
        warn(
            f"the quantised file is {', '.join(worse)}; keep the float32 file where "
            "that matters."
        )


def _made_up(vae: OnnxVAE) -> np.ndarray:
    """Rows to measure on where there are none: from the model, if it can make some."""
    metadata, n_rows = vae.metadata_, 512
    if metadata.part == "all":
        X = vae.sample(n_rows, 0, y=_classes(vae, n_rows))
    else:
        normal = np.random.RandomState(0).standard_normal((n_rows, metadata.n_features))
        X = metadata.units.restore(normal)
    return metadata.nearest(X)


def _classes(vae: OnnxVAE, n_rows: int) -> np.ndarray | None:
    """Every class in turn, where there are any."""
    classes = vae.metadata_.classes
    return None if classes is None else np.resize(np.array(classes), n_rows)


def _inputs(vae: OnnxVAE, part: str, X: np.ndarray) -> dict[str, Any]:
    """What a part is fed to be measured or calibrated."""
    metadata = vae.metadata_
    y = _classes(vae, len(X))
    normal = np.random.RandomState(0).standard_normal
    if part == "elbo":
        return vae.file_.elbo_inputs(X, y)
    if part == "prior":
        return {"noise": normal((len(X), metadata.n_prior_noise))}
    if part == "decoder" and "encoder" in metadata.parts:
        inputs = {"Z": vae.transform(X)}
    elif part == "decoder":
        inputs = {"Z": normal((len(X), metadata.latent_dim))}
    else:
        inputs = {"X": X}
    return {**inputs, "condition": vae.file_.condition(part, y, len(X))}


def _outputs(
    vae: OnnxVAE, X: np.ndarray, only: str | None = None
) -> dict[str, np.ndarray]:
    """The first output of each part, or of one."""
    names = {"encoder": "mean", "prior": "Z", "elbo": "elbo"}
    return {
        f"{part}.{names.get(part, 'X_mean')}": vae.file_.run(
            part, names.get(part, "X_mean"), **_inputs(vae, part, X)
        )
        for part in vae.metadata_.parts
        if part == only or (only is None and part != "prior")
    }


def _quantize(
    model: Any, out: str | os.PathLike[str], vae: OnnxVAE, X_calibration: Any
) -> None:
    onnx = require("onnx")
    quantization = require("onnxruntime.quantization")
    model = copy.deepcopy(model)
    graph = model.graph
    # Defaults of inputs would be taken for weights.
    given = {value.name for value in graph.input}
    weights = [weight for weight in graph.initializer if weight.name not in given]
    defaults = [weight for weight in graph.initializer if weight.name in given]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    del graph.value_info[:]
    # Said to be prepared: else the root logger is given a warning and a handler.
    entry = model.metadata_props.add()
    entry.key, entry.value = _PREPARED
    options = {
        "op_types_to_quantize": _OPERATORS,
        "weight_type": quantization.QuantType.QInt8,
        "nodes_to_exclude": [
            node.name
            for node in graph.node
            if not set(_BANDS) & set(node.name.split("/"))
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "quantised.onnx"
        if X_calibration is None:
            quantization.quantize_dynamic(model, written, **options)
        else:
            quantization.quantize_static(
                model,
                written,
                _reader(vae, X_calibration),
                per_channel=True,
                **options,
            )
        quantised = onnx.load(written)
    quantised.graph.initializer.extend(defaults)
    del quantised.graph.value_info[:]
    del quantised.metadata_props[:]
    vae.metadata_.write(quantised)
    onnx.checker.check_model(quantised)
    write_atomically(out, quantised.SerializeToString())


def _reader(vae: OnnxVAE, X: np.ndarray) -> Any:
    """Rows to calibrate with, in blocks, as onnxruntime wants to be given them."""
    base: Any = require("onnxruntime.quantization").CalibrationDataReader

    class Reader(base):
        def __init__(self) -> None:
            self.blocks = iter(range(0, len(X), 256))

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self.blocks, None)
            if start is None:
                return None
            feeds = {}
            for part in vae.metadata_.parts:
                inputs = _inputs(vae, part, X[start : start + 256])
                feeds.update(vae.file_.feeds(part, **inputs))
            return feeds

    return Reader()
