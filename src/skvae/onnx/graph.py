"""What is drawn of an ONNX file: nodes, shapes, and the bands of the picture."""

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .metadata import require, shape_of

# Band -> title, line colour, fill colour; in the order of the computation.
BANDS = {
    "graph": ("Graph", "#6b7280", "#f3f4f6"),
    "preprocessing": ("Preprocessing", "#6b7280", "#f3f4f6"),
    "input": ("Input", "#6b7280", "#f3f4f6"),
    "encoder": ("Encoder", "#2563eb", "#e8f0fe"),
    "posterior": ("Posterior", "#7c3aed", "#f1ebfd"),
    "prior": ("Prior", "#7c3aed", "#f1ebfd"),
    "decoder": ("Decoder", "#059669", "#e6f6ef"),
    "loss": ("Loss", "#d97706", "#fdf2e0"),
    "output": ("Output", "#0891b2", "#e3f5f9"),
}
ORDER = {name: i for i, name in enumerate(BANDS)}


@dataclass
class Graph:
    """What is drawn of an ONNX graph."""

    nodes: list[Any]
    inputs: list[str]
    outputs: list[str]
    shapes: dict[str, str]  # of tensors, as text
    weights: dict[str, list[int]]  # dimensions of initialisers
    bands: dict[int, str]  # id of a node -> band
    random: set[str]  # tensors that depend on noise
    entries: dict[str, str]  # metadata

    @property
    def producers(self) -> dict[str, int]:
        return {out: i for i, node in enumerate(self.nodes) for out in node.output}


def read_graph(model: Any, part: str | None) -> Graph:
    """What is drawn of a model, or of a part of it."""
    onnx = require("onnx")
    if isinstance(model, str | os.PathLike):
        model = onnx.load(Path(model))
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(
            "draw takes a fitted VAEEstimator, a path or an onnx.ModelProto, got "
            f"{type(model).__name__}."
        )
    entries = {entry.key: entry.value for entry in model.metadata_props}
    names = [output.name for output in model.graph.output]
    prefixes = sorted({name.split(".")[0] for name in names if "." in name})
    if entries.get("part") == '"all"':
        part = part or "elbo"
        if part not in prefixes:
            raise ValueError(f"part={part!r} must be one of {prefixes}.")
    else:
        prefixes = []
    outputs = [n for n in names if not prefixes or n.split(".")[0] == part]

    nodes: list[Any] = []
    needed = set(outputs)
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.insert(0, node)
    inputs = [v.name for v in model.graph.input if v.name in needed]
    weights = {w.name: list(w.dims) for w in model.graph.initializer}
    constants = {n.output[0] for n in nodes if n.op_type == "Constant"}
    random = {name for name in inputs if name.split(".")[-1] == "noise"}
    for node in nodes:
        if random & set(node.input):
            random |= set(node.output)
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        if value.type.HasField("tensor_type"):
            draws = entries.get("n_draws", "S") if value.name in random else ""
            shapes[value.name] = _shape(shape_of(value), draws)
    graph = Graph(
        nodes=[n for n in nodes if n.op_type != "Constant"],
        inputs=[name for name in inputs if name not in weights or prefixes],
        outputs=outputs,
        shapes=shapes,
        weights={k: v for k, v in weights.items() if k not in inputs}
        | {name: [] for name in constants},
        bands={},
        random=random,
        entries=entries,
    )
    graph.bands = _find_bands(graph)
    return graph


def _shape(dims: list[int | str], n_draws: str) -> str:
    """A shape as text: N rows, and draws of z for each."""
    if dims and str(dims[0]) == n_draws:
        n_draws = ""  # on an axis of their own: the other axis is the rows

    def name(dim: int | str) -> str:
        if isinstance(dim, int):
            return f"{dim:,}"
        return "N" if dim.endswith("rows") or not n_draws else f"{n_draws}·N"

    return " × ".join(name(d) for d in dims)


def _find_bands(graph: Graph) -> dict[int, str]:
    """The band in a node's name, or else that of what follows."""
    bands: dict[int, str] = {}
    users: dict[str, list[int]] = defaultdict(list)
    for i, node in enumerate(graph.nodes):
        for tensor in node.input:
            users[tensor].append(i)
    names = [
        next((word for word in node.name.split("/")[::-1] if word in BANDS), None)
        for node in graph.nodes
    ]
    if not any(names):
        return dict.fromkeys(range(len(names)), "graph")
    # In a file of ours an unnamed node was put in by quantisation and goes with its
    # use; in a Pipeline, what comes before the VAE was converted by sklearn-onnx.
    prepared: set[str] = set()
    if "skvae" not in graph.entries:
        for i, node in enumerate(graph.nodes):
            if not names[i] and set(node.input) <= {
                *prepared,
                *graph.inputs,
                *graph.weights,
                "",
            }:
                names[i] = "preprocessing"
                prepared |= set(node.output)
    for i in reversed(range(len(graph.nodes))):
        # No computation goes back to an earlier band.
        after = [bands[j] for out in graph.nodes[i].output for j in users[out]]
        found = [name for name in (names[i], *after) if name]
        bands[i] = min(found, key=ORDER.__getitem__, default="output")
    return bands
