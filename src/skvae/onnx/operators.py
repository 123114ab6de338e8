"""Functions that torch's exporter lacks, or writes so that they lose their digits."""

from typing import Any

import numpy as np
import torch

from ..spec import LOG_2_PI
from .metadata import require


def translations() -> dict[Any, Any]:
    """Functions that the exporter lacks, or writes so that they lose their digits."""
    aten = torch.ops.aten
    return {
        aten.lgamma.default: _log_gamma,
        torch.ops.prims.lgamma.default: _log_gamma,
        aten.log_sigmoid.default: _log_sigmoid,
        aten.expm1.default: _expm1,
        aten.softplus.default: _softplus,
        aten.log1p.default: _log1p,
    }


def _log_sigmoid(x: Any) -> Any:
    # Not the logarithm of a sigmoid, which is 0 from -104 on.
    op = require("onnxscript").opset18
    return op.Neg(op.Softplus(op.Neg(x)))


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    # The hot spot of a Bernoulli's ELBO: onnxruntime's own kernel takes half as long
    # again. At the threshold the tail is below float32's digits by itself.
    op = require("onnxscript").opset18
    factor = op.CastLike(op.Constant(value_float=float(beta)), x)
    one = op.CastLike(op.Constant(value_float=1.0), x)
    scaled = op.Mul(x, factor)
    tail = op.Log(op.Add(op.Exp(op.Neg(op.Abs(scaled))), one))
    return op.Div(op.Add(op.Relu(scaled), tail), factor)


def _expm1(x: Any) -> Any:
    # In double precision, or the difference of near equals is left without digits.
    op, double = require("onnxscript").opset18, require("onnx").TensorProto.DOUBLE
    wide = op.Cast(x, to=double)
    one = op.CastLike(op.Constant(value_float=1.0), wide)
    return op.CastLike(op.Sub(op.Exp(wide), one), x)


def _log1p(x: Any) -> Any:
    op, double = require("onnxscript").opset18, require("onnx").TensorProto.DOUBLE
    wide = op.Cast(x, to=double)
    one = op.CastLike(op.Constant(value_float=1.0), wide)
    return op.CastLike(op.Log(op.Add(wide, one)), x)


def _log_gamma(x: Any) -> Any:
    """The logarithm of the gamma function for x > 0, which ONNX has no operator for.

    By Stirling's series at x + 8 and the recurrence down to x, in double precision.
    """
    onnx, op = require("onnx"), require("onnxscript").opset18

    def number(value: float) -> Any:
        return op.Constant(value=onnx.numpy_helper.from_array(np.float64(value)))

    double = op.Cast(x, to=onnx.TensorProto.DOUBLE)
    product = double
    for k in range(1, 8):
        product = op.Mul(product, op.Add(double, number(k)))
    far = op.Add(double, number(8))
    square = op.Mul(far, far)
    series = number(1 / 1188)
    for coefficient in (-1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = op.Add(op.Div(series, square), number(coefficient))
    stirling = op.Sub(
        op.Mul(op.Sub(far, number(0.5)), op.Log(far)),
        op.Sub(far, number(LOG_2_PI / 2)),
    )
    result = op.Sub(op.Add(stirling, op.Div(series, far)), op.Log(product))
    return op.CastLike(result, x)
