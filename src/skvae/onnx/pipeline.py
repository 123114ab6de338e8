"""Converters for sklearn-onnx: a Pipeline that holds a VAE becomes one ONNX file."""

from typing import Any

import numpy as np

from ..estimator import VAEEstimator
from .exporting import OPSET, export
from .metadata import require


def register(*classes: type[VAEEstimator]) -> None:
    """Teach sklearn-onnx to convert fitted VAEs, alone or within a Pipeline.

    The graph gives what ``transform`` gives; with the option ``reconstruct`` it gives
    what ``reconstruct`` gives. Rows may be float32 or float64. The registry of
    converters is sklearn-onnx's own, and process-wide: call this once.

    Parameters
    ----------
    *classes : subclasses of VAEEstimator
        Estimators of your own; VAEEstimator and all its subclasses that have been
        imported are registered in any case.

    Raises
    ------
    ImportError
        If skl2onnx is not installed.

    Examples
    --------
    >>> import skvae.onnx
    >>> from skl2onnx import to_onnx  # doctest: +SKIP
    >>> skvae.onnx.register()  # doctest: +SKIP
    >>> model = to_onnx(pipeline, X[:1])  # doctest: +SKIP
    >>> model = to_onnx(
    ...     pipeline, X[:1], options={VAEEstimator: {"reconstruct": True}}
    ... )  # doctest: +SKIP
    """
    update = require("skl2onnx").update_registered_converter
    for estimator in {*_family(VAEEstimator), *classes}:
        update(
            estimator,
            f"Skvae{estimator.__name__}",
            _set_output,
            _convert,
            options={"reconstruct": [False, True]},
        )


def _family(parent: type) -> set[type]:
    children: list[type] = parent.__subclasses__()
    return {parent}.union(*(_family(child) for child in children))


def _reconstructs(scope: Any, estimator: VAEEstimator) -> bool:
    options = scope.get_options(estimator, {"reconstruct": False}, fail=False)
    return bool(options.get("reconstruct", False))


def _set_output(operator: Any) -> None:
    """Tell sklearn-onnx the type and the shape of the output."""
    types = require("skl2onnx.common.data_types")
    estimator = operator.raw_operator
    value = estimator.fitted_
    width, kind = value.latent_dim, types.FloatTensorType
    if _reconstructs(operator.scope_inst, estimator):
        width = value.form.n_columns
        if not value.units.is_identity and value.form.dtype == np.float64:
            kind = types.DoubleTensorType
    n_rows = operator.inputs[0].type.shape[0]
    operator.outputs[0].type = kind([n_rows, width])


def _convert(scope: Any, operator: Any, container: Any) -> None:
    """Put the exported graph among the nodes of a Pipeline's graph."""
    estimator, opset = operator.raw_operator, container.target_opset_onnx
    if opset < OPSET:
        raise ValueError(
            f"target_opset={opset} is older than {OPSET}, the oldest that torch "
            f"writes; give to_onnx a target_opset of at least {OPSET}."
        )
    part = "autoencoder" if _reconstructs(scope, estimator) else "encoder"
    graph = export(estimator, None, part, opset=opset).graph
    (given,), (result,) = graph.input, graph.output

    rows = scope.get_unique_variable_name("rows")
    container.add_node(
        "Cast",
        operator.inputs[0].full_name,
        rows,
        name=f"{operator.full_name}/input/Cast",
        to=given.type.tensor_type.elem_type,
    )
    names = {given.name: rows, result.name: operator.outputs[0].full_name, "": ""}

    def unique(name: str) -> str:
        if name not in names:
            names[name] = scope.get_unique_variable_name(name)
        return names[name]

    for weight in graph.initializer:
        weight.name = unique(weight.name)
        container.initializers.append(weight)
    for node in graph.node:
        node.name = f"{operator.full_name}/{node.name}"
        node.input[:] = [unique(name) for name in node.input]
        node.output[:] = [unique(name) for name in node.output]
        container.nodes.append(node)
    container.node_domain_version_pair_sets.add(("", opset))
