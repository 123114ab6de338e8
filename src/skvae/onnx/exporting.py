"""Writing a fitted VAE as an ONNX graph."""

import copy
import os
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from .. import __version__
from ..estimator import VAEEstimator
from ..fitted import ELBO_DRAWS, FittedVAE
from ..forms import Labels
from ..model import Model
from ..networks import NetworkModule, Posterior
from .metadata import (
    CONDITIONAL,
    PARTS,
    Metadata,
    require,
    write_atomically,
)
from .operators import translations

# The oldest that torch writes, and so the one that most runtimes know.
OPSET = 18


def export(
    estimator: VAEEstimator,
    path: str | os.PathLike[str] | None,
    part: str = "all",
    *,
    opset: int = OPSET,
) -> Any:
    """Write a fitted VAE, or a part of it, as an ONNX file.

    The graph takes rows as the user has them and gives values in the user's units: the
    standardisation inside the model, and the likelihood's support for scores, are part
    of it. It draws nothing: noise is an input. Its batch axes are dynamic.

    ===============  ===========================  ==========================
    part             inputs                       outputs
    ===============  ===========================  ==========================
    ``encoder``      ``X`` (rows, D)              ``mean`` (rows, L)
    ``decoder``      ``Z`` (rows, L)              ``X_mean`` (rows, D)
    ``autoencoder``  ``X`` (rows, D)              ``X_mean`` (rows, D)
    ``elbo``         ``X`` (rows, D), ``noise``   ``elbo``,
                     (rows, 4, n_noise)           ``reconstruction``,
                                                  ``kl`` (rows,)
    ``prior``        ``noise``                    ``Z`` (rows, L)
                     (rows, n_prior_noise)
    ===============  ===========================  ==========================

    ``noise`` is standard normal. With a function of each row's values for noise, as
    :class:`OnnxVAE` makes it, the ELBO is that of ``score_samples``; minus it is an
    anomaly score. A conditional model's decoder, autoencoder and ELBO also take
    ``condition`` (rows, n_classes), one-hot.

    ``part="all"`` holds encoder, decoder, elbo and prior in one file, with the weights
    once. The names then start with their part (``encoder.X``, ``elbo.noise``); inputs
    that are not fed default to no rows at all, which costs nothing, or to one where a
    network cannot take none.

    Parameters
    ----------
    estimator : VAEEstimator
        Fitted. A Pipeline goes through ``skvae.onnx.register`` and sklearn-onnx.
    path : path-like or None
        Where to write, whole or not at all; None writes nothing.
    part : {"all", "encoder", "decoder", "autoencoder", "elbo", "prior"}, default="all"
    opset : int, default=18
        Version of the operator set; torch writes 18 and later.

    Returns
    -------
    model : onnx.ModelProto

    Raises
    ------
    ImportError
        If onnx or onnxscript is not installed.
    ValueError
        If ``part`` or ``opset`` is not as expected.

    Notes
    -----
    ``X`` is float64 where the model standardises, since a value such as 1e8 + 1 has no
    float32, and float32 elsewhere. The metadata (``skvae.onnx.info``) hold versions,
    choices, dimensions, feature names and units.

    Examples
    --------
    >>> from skvae.onnx import export
    >>> export(vae, "vae.onnx")  # doctest: +SKIP
    """
    if part not in (*PARTS, "all"):
        raise ValueError(f"part={part!r} must be one of {['all', *PARTS]}.")
    if not isinstance(estimator, VAEEstimator):
        raise TypeError(
            f"export takes a fitted VAEEstimator, got {type(estimator).__name__}. For "
            "a Pipeline call skvae.onnx.register() and then skl2onnx.to_onnx."
        )
    check_is_fitted(estimator)
    require("onnxscript")
    onnx = require("onnx")
    if not 18 <= opset <= onnx.defs.onnx_opset_version():
        raise ValueError(
            f"opset={opset!r} must be an int from 18 to "
            f"{onnx.defs.onnx_opset_version()}."
        )
    metadata = _describe(estimator.fitted_, type(estimator).__name__, part)
    graphs = _graphs(estimator.fitted_, metadata)
    proto = _trace(graphs, opset)
    if part != "all":
        _drop_prefix(proto.graph, part)
    _tidy(proto.graph, metadata)
    if part == "all":
        _give_defaults(proto)
    proto.producer_name, proto.producer_version = "skvae", __version__
    metadata.write(proto)
    onnx.checker.check_model(proto, full_check=True)
    if path is not None:
        write_atomically(path, proto.SerializeToString())
    return proto


def _describe(value: FittedVAE, estimator: str, part: str) -> Metadata:
    form, choices, labels = value.form, value.choices, value.labels
    named = all(isinstance(name, str) for name in form.names)
    return Metadata.describe(
        value.units,
        choices.likelihood.supports(form.n_columns),
        skvae=__version__,
        estimator=estimator,
        part=part,
        network=repr(choices.network),
        likelihood=repr(choices.likelihood),
        prior=repr(choices.prior),
        dtype=form.dtype.name,
        n_features=form.n_columns,
        latent_dim=value.latent_dim,
        n_noise=value.module.n_noise,
        n_draws=ELBO_DRAWS,
        n_prior_noise=value.module.n_prior_noise,
        feature_names=form.names if named else None,
        classes=labels.classes.tolist() if isinstance(labels, Labels) else None,
    )


def _graphs(value: FittedVAE, metadata: Metadata) -> dict[str, "_Graph"]:
    model = copy.deepcopy(value.module).cpu().eval()
    model.network = _Steps(model.network)
    n_conditions = value.labels.n_conditions
    x_dtype = torch.float32 if value.units.is_identity else torch.float64
    columns = {
        "X": (metadata.n_features, x_dtype),
        "Z": (metadata.latent_dim, torch.float32),
        "condition": (n_conditions, torch.float32),
    }
    graphs = {}
    # Unlike numbers of rows, lest the tracer take two axes for one.
    for n_rows, name in enumerate(metadata.parts, start=2):
        inputs = list(PARTS[name][0])
        if n_conditions and name in CONDITIONAL:
            inputs.append("condition")
        examples = {}
        for tensor in inputs:
            if tensor != "noise":
                width, dtype = columns[tensor]
                shape: tuple[int, ...] = (n_rows, width)
            elif name == "prior":
                shape, dtype = (n_rows, metadata.n_prior_noise), torch.float32
            else:
                shape = (n_rows, metadata.n_draws, metadata.n_noise)
                dtype = torch.float32
            examples[tensor] = torch.full(shape, 0.5, dtype=dtype)
        graphs[name] = _Graph(model, metadata, name, examples)
    return graphs


class _Infer(nn.Module):
    def __init__(self, network: NetworkModule):
        super().__init__()
        self.network = network

    def forward(self, seen: Tensor, noise: Tensor) -> Posterior:
        return self.network.infer(seen, noise)


class _Decode(nn.Module):
    def __init__(self, network: NetworkModule):
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        # In two dimensions a linear layer is one node, with the weights as they are.
        rows = z.reshape(-1, z.shape[-1])
        if condition is not None:
            condition = condition.reshape(-1, condition.shape[-1])
        return self.network.decode(rows, condition).reshape(*z.shape[:-1], -1)


class _Steps(NetworkModule):
    """A network whose two steps are modules, so that the tracer names their nodes."""

    def __init__(self, network: NetworkModule):
        super().__init__()
        self.infer_step = _Infer(network)
        self.decode_step = _Decode(network)
        self.n_noise = network.n_noise
        self.n_inner_noise = network.n_inner_noise

    def infer(
        self, seen: Tensor, noise: Tensor, dropout_noise: Tensor | None = None
    ) -> Posterior:
        return self.infer_step(seen, noise)

    def decode(
        self,
        z: Tensor,
        condition: Tensor | None = None,
        dropout_noise: Tensor | None = None,
    ) -> Tensor:
        return self.decode_step(z, condition)

    def complete(self, z: Tensor, noise: Tensor) -> Tensor:
        return self.infer_step.network.complete(z, noise)


class _Nearest(nn.Module):
    """X with each entry outside the likelihood's support moved into it."""

    low: Tensor
    high: Tensor
    step: Tensor
    rounded: Tensor
    margin: Tensor

    def __init__(self, metadata: Metadata, dtype: torch.dtype):
        super().__init__()
        n = metadata.n_features
        numbers = {"low": -np.inf, "high": np.inf, "step": 1.0, "margin": 0.0}
        arrays = {name: np.full(n, absent) for name, absent in numbers.items()}
        rounded = np.zeros(n, dtype=bool)
        for support, columns in metadata.supports:
            arrays["low"][columns], arrays["high"][columns] = support.bounds
            arrays["margin"][columns] = support.margin
            if support.step is not None:
                rounded[columns], arrays["step"][columns] = True, support.step
        self.is_bounded = bool(np.isfinite([arrays["low"], arrays["high"]]).any())
        self.is_rounded = bool(rounded.any())
        self.is_whole = bool((arrays["step"] == 1).all())
        self.is_open = bool(arrays["margin"].any())
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array).to(dtype))
        self.register_buffer("rounded", torch.from_numpy(rounded))

    def forward(self, X: Tensor) -> Tensor:
        nearest = X
        if self.is_rounded:
            whole = X.round() if self.is_whole else self._level(X)
            nearest = torch.where(self.rounded, whole, X)
        if self.is_bounded:
            nearest = torch.clamp(nearest, self.low, self.high)
        if self.is_open:
            # What lies within the margin is within the support, and stays.
            beyond = torch.maximum(self.low - X, X - self.high)
            within = (self.margin > 0) & (beyond < self.margin)
            nearest = torch.where(within, X, nearest)
        return nearest

    def _level(self, X: Tensor) -> Tensor:
        return (X * self.step.reciprocal()).round() * self.step


class _Graph(nn.Module):
    """One part of the model as a function of tensors, from and to the user's units."""

    location: Tensor
    scale: Tensor

    def __init__(
        self, model: Model, metadata: Metadata, part: str, examples: dict[str, Tensor]
    ):
        super().__init__()
        self.model = model
        self.examples = examples
        self.part = part
        units = metadata.units
        self.identity = units.is_identity
        self.log_scale = units.log_scale
        self.output_dtype = (
            torch.float32 if metadata.dtype == "float32" else torch.float64
        )
        self.register_buffer("location", torch.from_numpy(units.location))
        self.register_buffer("scale", torch.from_numpy(units.scale))
        x_dtype = torch.float32 if self.identity else torch.float64
        self.nearest = _Nearest(metadata, x_dtype)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        compute: dict[str, Callable[..., tuple[Tensor, ...]]] = {
            "encoder": self._encoder,
            "decoder": self._decoder,
            "autoencoder": self._autoencoder,
            "elbo": self._elbo,
            "prior": self._prior,
        }
        return compute[self.part](**dict(zip(self.examples, inputs, strict=True)))

    def _standardize(self, X: Tensor) -> Tensor:
        return X if self.identity else ((X - self.location) / self.scale).float()

    def _restore(self, x: Tensor) -> Tensor:
        if self.identity:
            return x
        return (x.double() * self.scale + self.location).to(self.output_dtype)

    def _mean(self, X: Tensor) -> Tensor:
        x = self._standardize(X)
        # Not len(x): the tracer would take it for a constant.
        noise = x.new_zeros(1, x.shape[0], self.model.n_noise)
        return self.model.infer(x, noise).mean

    def _encoder(self, X: Tensor) -> tuple[Tensor, ...]:
        return (self._mean(X),)

    def _decoder(
        self, Z: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        return (self._restore(self.model.mean(Z, condition)),)

    def _autoencoder(
        self, X: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        return self._decoder(self._mean(X), condition)

    def _elbo(
        self, X: Tensor, noise: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        x = self._standardize(self.nearest(X))
        draws = noise.transpose(0, 1)
        terms = self.model.terms(x, draws, condition, analytic_kl=True)
        reconstruction = terms.reconstruction + self.log_scale
        return -(reconstruction + terms.divergence), reconstruction, terms.divergence

    def _prior(self, noise: Tensor) -> tuple[Tensor, ...]:
        # An output must not be an input, as the standard normal's draws are.
        return (self.model.draw_latent(noise).clone(),)


class _All(nn.Module):
    def __init__(self, graphs: dict[str, _Graph]):
        super().__init__()
        self.graphs = nn.ModuleDict({f"part_{k}": g for k, g in graphs.items()})

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        graphs: Any = self.graphs.values()
        for graph in graphs:
            n = len(graph.examples)
            outputs += graph(*inputs[:n])
            inputs = inputs[n:]
        return tuple(outputs)


def _trace(graphs: dict[str, _Graph], opset: int) -> Any:
    """A ModelProto of the parts side by side, each name with its part before it.

    The tracer calls tensors after the functions that make them, but never with a dot:
    no tensor has the name of an input or output.
    """
    examples, shapes, inputs, outputs = [], [], [], []
    for part, graph in graphs.items():
        rows = torch.export.Dim(f"{part}_rows", min=1)
        for tensor, example in graph.examples.items():
            examples.append(example)
            shapes.append({0: rows})
            inputs.append(f"{part}.{tensor}")
        outputs += [f"{part}.{tensor}" for tensor in PARTS[part][1]]
    module = _All(graphs).eval()
    # The tracer draws from torch's global generator where a flow is bent.
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
    ):
        # In earnest first: what a module makes at first use cannot be made in a trace.
        module(*examples)
        # The exporter warns of names of axes that are renamed below in any case, and
        # of what will be deprecated inside torch.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(examples),
            dynamo=True,
            # Of *inputs: one argument that is a tuple.
            dynamic_shapes=(tuple(shapes),),
            external_data=False,
            input_names=inputs,
            output_names=outputs,
            opset_version=opset,
            custom_translation_table=translations(),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _drop_prefix(graph: Any, part: str) -> None:
    """Inputs and outputs without their part's name before them."""
    prefix = f"{part}."
    given = [*graph.input, *graph.output]
    names = {value.name: value.name.removeprefix(prefix) for value in given}
    # A mean over draws is called "mean", as the output of the encoder is.
    made = {name for node in graph.node for name in node.output}
    names.update((name, f"{prefix}{name}") for name in made & set(names.values()))
    for value in given:
        value.name = names[value.name]
    _rename(graph, names)


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Give tensors other names, wherever nodes use them."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _tidy(graph: Any, metadata: Metadata) -> None:
    """Names that a reader understands, and nothing of this machine.

    Nodes are called part/band/operator_number, where the band says which step of the
    VAE a node belongs to (``skvae.onnx.draw`` reads it).
    """
    bands = _bands(graph, metadata)
    counts: dict[str, int] = {}
    for node, band in zip(graph.node, bands, strict=True):
        stem = f"{band}/{node.op_type}"
        counts[stem] = counts.get(stem, 0) + 1
        node.name = f"{stem}_{counts[stem]}"
        # Stack traces with the paths of whoever exported.
        del node.metadata_props[:]
        node.doc_string = ""
    _rename_weights(graph)
    # quantize_dynamic fails on shapes of tensors that it replaces.
    del graph.value_info[:]
    del graph.metadata_props[:]
    graph.name, graph.doc_string = "skvae", ""
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        part = value.name.split(".")[0] if metadata.part == "all" else metadata.part
        prefix = f"{part}_" if metadata.part == "all" else ""
        value.type.tensor_type.shape.dim[0].dim_param = f"{prefix}rows"


def _rename_weights(graph: Any) -> None:
    """The network's own names: encoder.0.weight, without the way that led to it."""
    names: dict[str, str] = {}
    taken = {value.name for value in (*graph.input, *graph.output)}
    taken.update(name for node in graph.node for name in node.output)
    for weight in graph.initializer:
        short = re.sub(r"^graphs\.part_\w+\.(model\.)?", "", weight.name)
        short = re.sub(r"^network\.(infer|decode)_step\.network\.", "", short)
        if short not in taken:
            names[weight.name] = short
            taken.add(short)
    for weight in graph.initializer:
        weight.name = names.get(weight.name, weight.name)
    _rename(graph, names)


def _give_defaults(proto: Any) -> None:
    """Inputs that are not fed are of no rows, or of one where a graph needs one."""
    onnx, runtime = require("onnx"), require("onnxruntime")
    graph, n_weights = proto.graph, len(proto.graph.initializer)
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # a failure is an answer here
    for n_rows in (0, 1):
        del graph.initializer[n_weights:]
        for value in graph.input:
            kind = value.type.tensor_type
            shape = [n_rows, *(d.dim_value for d in kind.shape.dim[1:])]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            rows = onnx.numpy_helper.from_array(np.zeros(shape, dtype), value.name)
            graph.initializer.append(rows)
        session = runtime.InferenceSession(proto.SerializeToString(), options)
        try:
            session.run(None, {})
        except runtime.capi.onnxruntime_pybind11_state.Fail:
            continue
        return


def _reach(graph: Any, seeds: set[str], *, backwards: bool = False) -> set[str]:
    """Names of all tensors that follow from these, or that these follow from."""
    reached = set(seeds)
    for node in reversed(graph.node) if backwards else graph.node:
        start, stop = node.input, node.output
        if backwards:
            start, stop = stop, start
        if reached & set(start):
            reached |= set(stop)
    return reached


def _bands(graph: Any, metadata: Metadata) -> Iterator[str]:
    """part/band of each node: from the scopes that the tracer left, and the edges."""
    weights = {w.name for w in graph.initializer if len(w.dims) > 1}
    steps: dict[str, str] = {}  # tensor -> step that made it
    for node in graph.node:
        scopes = next(
            (p.value for p in node.metadata_props if p.key.endswith("name_scopes")),
            None,
        )
        if scopes is None:  # made by an optimisation: it goes with what it came from
            step = next((steps[i] for i in node.input if steps.get(i)), "")
        elif "infer_step" in scopes:
            step = "infer"
        else:
            step = "decode" if "decode_step" in scopes else ""
        steps.update((output, step) for output in node.output)

    made = {
        name: {tensor for tensor, step in steps.items() if step == name}
        for name in ("infer", "decode")
    }
    noise = {v.name for v in graph.input if v.name.split(".")[-1] == "noise"}
    random = _reach(graph, noise)
    layers = {
        output
        for node in graph.node
        if weights & set(node.input)
        for output in node.output
        if output in made["infer"] and output not in random
    }
    to_layers = _reach(graph, layers, backwards=True)
    to_infer = _reach(graph, made["infer"], backwards=True)
    to_decode = _reach(graph, made["decode"], backwards=True)
    from_steps = _reach(graph, made["infer"] | made["decode"])
    owners = {
        tensor: part
        for part in metadata.parts
        for tensor in _reach(
            graph,
            {metadata.name(part, output) for output in PARTS[part][1]},
            backwards=True,
        )
    }
    for node in graph.node:
        output = node.output[0]
        part = owners.get(output, metadata.part)
        if output in made["infer"]:
            band = "encoder" if output in to_layers else "posterior"
        elif output in made["decode"]:
            band = "decoder"
        elif part == "prior":
            band = "prior"
        elif output not in from_steps and output in to_infer | to_decode:
            band = "input"
        elif output in to_decode:
            band = "decoder"
        else:
            band = "loss" if part == "elbo" else "output"
        yield f"{part}/{band}" if metadata.part == "all" else band
