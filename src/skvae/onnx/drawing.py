"""The computational graph of a VAE as a picture: SVG, without any program to call."""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import linprog
from sklearn.base import BaseEstimator

from .exporting import export
from .graph import BANDS, Graph, read_graph
from .metadata import write_atomically

VIEWS = ("compact", "full")
# Operators that move numbers and change none.
LAYOUT = {
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"),
    *("Expand", "Slice", "Split", "Gather", "DynamicQuantizeLinear", "QuantizeLinear"),
    *("DequantizeLinear", "ConstantOfShape", "Pad"),
}
ACTIVATIONS = {
    **{name: name for name in ("Tanh", "Sigmoid", "Softplus", "Elu", "Gelu", "Erf")},
    **{"Relu": "ReLU", "LeakyRelu": "Leaky ReLU", "Selu": "SELU", "HardSwish": "Swish"},
    **{"Softmax": "Softmax", "PRelu": "PReLU", "Mish": "Mish", "Swish": "SiLU"},
    **{"MaxPool": "Max pool", "AveragePool": "Mean pool", "Resize": "Resize"},
    **{"GlobalAveragePool": "Mean over the image"},
}
LAYERS = {
    *("Gemm", "MatMul", "MatMulInteger", "Conv", "ConvInteger", "ConvTranspose"),
    *("QLinearMatMul", "QLinearConv", "QGemm"),
}


def draw(
    model: Any,
    path: str | os.PathLike[str] | None = None,
    view: str = "compact",
    *,
    part: str | None = None,
) -> str:
    """Draw the computational graph of a VAE.

    Bands show encoder, posterior, decoder and loss from top to bottom; edges carry the
    shapes of what flows, with N rows.

    Parameters
    ----------
    model : VAEEstimator, path-like or onnx.ModelProto
        A fitted estimator (drawn from rows to ELBO), or an exported file.
    path : path-like or None, default=None
        Where to write the SVG.
    view : {"compact", "full"}, default="compact"
        "compact" draws one box per layer, "full" one per node of the graph.
    part : str or None, default=None
        Which part of a file of several to draw; None is the ELBO, which holds the
        others. Of an estimator, any part of :func:`skvae.onnx.export`.

    Returns
    -------
    svg : str

    Examples
    --------
    >>> from skvae.onnx import draw
    >>> draw(vae, "vae.svg")  # doctest: +SKIP
    """
    if view not in VIEWS:
        raise ValueError(f"view={view!r} must be one of {list(VIEWS)}.")
    if isinstance(model, BaseEstimator):
        model = export(model, None, part or "elbo")
    graph = read_graph(model, part)
    boxes = _boxes(graph, compact=view == "compact")
    svg = _svg(_lay_out(boxes), graph)
    if path is not None:
        write_atomically(path, svg.encode())
    return svg


# ---------------------------------------------------------------------- the boxes


@dataclass
class _Box:
    """A rounded rectangle with a line of text, or an invisible bend of an edge."""

    label: str = ""
    note: str = ""
    band: str = ""
    kind: str = "box"  # "box", "input", "output" or "bend"
    members: list[str] = field(default_factory=list)
    rank: int = 0
    x: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> float:
        if self.kind == "bend":
            return 10.0
        return max(76.0, 7.4 * len(self.label) + 28, 6.0 * len(self.note) + 28)


@dataclass
class _Boxes:
    boxes: list[_Box]
    edges: dict[tuple[int, int], str]  # with the shape that flows
    ports: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)


def _boxes(graph: Graph, *, compact: bool) -> _Boxes:
    """Boxes of the nodes, and the edges between boxes."""
    boxes: list[_Box] = []
    home: dict[str, int] = {}  # tensor -> box that it comes from
    for name in graph.inputs:
        home[name] = len(boxes)
        boxes.append(_Box(name.split(".")[-1], kind="input", members=[name]))
    if compact:
        keys = _compact_keys(graph)
    else:
        keys = {i: (i,) for i in range(len(graph.nodes))}
    by_key: dict[Any, int] = {}
    groups: dict[int, list[int]] = defaultdict(list)
    for i, node in enumerate(graph.nodes):
        if i not in keys:
            continue
        key = keys[i]
        if isinstance(key, str):  # a layout node on an input belongs to that input
            box = home[key]
        elif key in by_key:
            box = by_key[key]
        else:
            box = by_key[key] = len(boxes)
            boxes.append(_Box(band=graph.bands[i]))
        boxes[box].members.append(node.name)
        if boxes[box].kind == "box":
            groups[box].append(i)
        home.update((tensor, box) for tensor in node.output)

    for box, members in groups.items():
        nodes = [graph.nodes[i] for i in members]
        if compact:
            boxes[box].label, boxes[box].note = _label(graph, members)
        else:
            boxes[box].label = nodes[0].op_type
            sizes = [graph.weights[t] for t in nodes[0].input if t in graph.weights]
            boxes[box].note = ", ".join(
                "×".join(map(str, size)) for size in sizes if len(size) > 0
            )
    edges: dict[tuple[int, int], str] = {}
    for i, node in enumerate(graph.nodes):
        for tensor in node.input:
            if i in keys and tensor in home:
                edge = home[tensor], home[node.output[0]]
                if edge[0] != edge[1]:
                    edges.setdefault(edge, graph.shapes.get(tensor, ""))
    for name in graph.outputs:
        if name in home:
            edges[home[name], len(boxes)] = graph.shapes.get(name, "")
            boxes.append(_Box(name.split(".")[-1], kind="output", members=[name]))
    return _Boxes(boxes, edges)


def _compact_keys(graph: Graph) -> dict[int, Any]:
    """The box of each node, by a key; nodes that only work out shapes have none."""
    producers, bands = graph.producers, graph.bands
    static: set[str] = {""}
    keys: dict[int, Any] = {}
    depth: dict[str, int] = defaultdict(int)  # layers on the way to a tensor
    decoded: set[str] = set()  # tensors that depend on the decoder
    divergence: set[str] = set()  # loss tensors that do not

    for i, node in enumerate(graph.nodes):
        data = [t for t in node.input if t not in static and t not in graph.weights]
        if node.op_type in ("Shape", "Size") or not data:
            static |= set(node.output)
            continue
        if node.op_type == "DynamicQuantizeLinear":  # scale and zero point
            static |= set(node.output[1:])
        band = bands[i]
        layer = node.op_type in LAYERS and any(t in graph.weights for t in node.input)
        here = max((depth[t] for t in data), default=0) + layer
        depth.update((t, here) for t in node.output)
        if band == "decoder" or decoded & set(data):
            decoded |= set(node.output)

        sources = {_source(t, keys, producers) for t in data}
        if band in ("encoder", "decoder", "preprocessing", "graph") or layer:
            norm = "Normalization" in node.op_type
            gate = _gate(graph.nodes, producers, node)
            if gate is not None and gate in keys:
                keys[i] = keys[gate]
            elif layer or norm or node.op_type in ACTIVATIONS:
                keys[i] = (i,)
            elif len(sources) == 1 and (
                node.op_type in LAYOUT
                or (
                    all(bands.get(producers.get(t, -1)) == band for t in data)
                    and not sources & {*graph.inputs}
                )
            ):
                keys[i] = sources.pop()
            else:
                keys[i] = (i,)
        elif band == "loss":
            if not decoded & set(node.output):
                keys[i] = ("kl",)
                divergence |= set(node.output)
            elif divergence & set(data):
                keys[i] = ("elbo",)
                divergence |= set(node.output)
            else:
                keys[i] = ("reconstruction",)
        elif band == "input" and node.op_type in LAYOUT and len(sources) == 1:
            keys[i] = sources.pop()
        else:
            keys[i] = (band, here, bool(graph.random & set(node.output)))
    return keys


def _gate(nodes: list[Any], producers: dict[str, int], node: Any) -> int | None:
    """Index of the sigmoid that a product makes a SiLU of, x * sigmoid(x)."""
    for i in (producers[t] for t in node.input if t in producers):
        gated = {*nodes[i].input, *nodes[i].output} == set(node.input)
        if gated and node.op_type == "Mul" and nodes[i].op_type == "Sigmoid":
            return i
    return None


def _users(graph: Graph, node: Any) -> list[int]:
    """Indices of the nodes that use what a node gives."""
    given = set(node.output)
    return [j for j, user in enumerate(graph.nodes) if given & set(user.input)]


def _source(tensor: str, keys: dict[int, Any], producers: dict[str, int]) -> Any:
    return keys[producers[tensor]] if tensor in producers else tensor


def _label(graph: Graph, members: list[int]) -> tuple[str, str]:
    """What a box of several nodes does, and a note in small print."""
    nodes = [graph.nodes[i] for i in members]
    ops = [node.op_type for node in nodes]
    band = graph.bands[members[0]]
    first = nodes[0]
    for node in nodes:
        if node.op_type in LAYERS and any(t in graph.weights for t in node.input):
            return _layer(graph, node)
    if band == "loss":
        inside = _compact_keys(graph)[members[0]][0]
        return {
            "kl": ("KL(q(z|x) ‖ p(z))", ""),
            "reconstruction": (
                "−log p(x|z)",
                graph.entries.get("likelihood", "").strip('"'),
            ),
            "elbo": ("ELBO = log p(x|z) − KL", "in nats per row"),
        }[inside]
    if band == "posterior":
        if any(graph.random & set(node.output) for node in nodes):
            leaves = {graph.bands[j] for node in nodes for j in _users(graph, node)}
            if leaves & {"decoder", "loss"}:
                return "z = mean + σ · noise", "reparameterisation"
            return "transform", ""
        return ("mean, log-variance", "") if len(nodes) > 1 else ("mean", "")
    if band == "input":
        steps = []
        if {"Clip", "Max", "Min"} & set(ops):
            steps.append("clip to the support")
        if {"Sub", "Div"} & set(ops):
            steps.append("standardise")
        return ", ".join(steps) or " ".join(ops), ""
    if band == "output":
        restored = {"Mul", "Add"} <= set(ops) and "Cast" in ops
        return "E[x|z]", "in the units of X" if restored else ACTIVATIONS.get(
            ops[-1], ""
        )
    if band == "prior":
        return "z from the prior", graph.entries.get("prior", "").strip('"')
    if first.op_type == "ArrayFeatureExtractor":
        return "select columns" + (", scale" if len(ops) > 1 else ""), ""
    if ops[:2] == ["Sigmoid", "Mul"]:
        return "SiLU", ""
    for op in ops:
        if op in ACTIVATIONS:
            return ACTIVATIONS[op], ""
        if "Normalization" in op:
            return op.replace("Normalization", " normalisation"), ""
    return first.op_type, ""


def _layer(graph: Graph, node: Any) -> tuple[str, str]:
    """A layer with weights: "Linear 784 → 400"."""
    names = [t for t in node.input if len(graph.weights.get(t, [])) > 1]
    size = graph.weights[names[0]] if names else []
    attributes = {a.name: a for a in node.attribute}
    dequantised = any(graph.producers.get(name) is not None for name in names)
    quantised = "Integer" in node.op_type or node.op_type[0] == "Q" or dequantised
    note = "int8" if quantised else ""
    if "Conv" in node.op_type:
        groups = attributes["group"].i if "group" in attributes else 1
        inside, outside = size[1] * groups, size[0]
        if node.op_type == "ConvTranspose":
            inside, outside = size[0], size[1] * groups
        details = [" × ".join(map(str, size[2:]))]
        strides = list(attributes["strides"].ints) if "strides" in attributes else []
        if any(stride != 1 for stride in strides):
            details.append(f"stride {strides[0]}")
        title = "Transposed conv" if node.op_type == "ConvTranspose" else "Conv"
        return f"{title} {inside:,} → {outside:,}", ", ".join([*details, note]).strip(
            ", "
        )
    if len(size) < 2:
        return "Linear", note
    transposed = "transB" in attributes and attributes["transB"].i
    n_out, n_in = size[-2:] if transposed else size[:-3:-1]
    return f"Linear {n_in:,} → {n_out:,}", note


# ---------------------------------------------------------------------- the layout

HEIGHT, GAP_X, GAP_Y, MARGIN, TOP = 40.0, 30.0, 34.0, 136.0, 74.0


def _lay_out(drawn: _Boxes) -> _Boxes:
    """Give every box its place: layers by longest path, few crossings, short edges."""
    boxes, edges = drawn.boxes, drawn.edges
    _rank(boxes, edges)
    # An edge over several ranks bends at each of them.
    segments: dict[tuple[int, int], str] = {}
    for (a, b), shape in edges.items():
        for rank in range(boxes[a].rank + 1, boxes[b].rank):
            boxes.append(_Box(kind="bend", rank=rank))
            segments[a, len(boxes) - 1] = shape
            a, shape = len(boxes) - 1, ""
        segments[a, b] = shape
    above, below = defaultdict(list), defaultdict(list)
    for a, b in segments:
        above[b].append(a)
        below[a].append(b)
    ranks: list[list[int]] = [[] for _ in range(1 + max(b.rank for b in boxes))]
    for i, box in enumerate(boxes):
        ranks[box.rank].append(i)

    place = {i: float(k) for row in ranks for k, i in enumerate(row)}
    for sweep in range(12):
        down = sweep % 2 == 0
        near = above if down else below
        for row in ranks if down else ranks[::-1]:
            row.sort(
                key=lambda i: (
                    np.mean([place[j] for j in near[i]]) if near[i] else place[i]
                )
            )
            place.update((i, float(k)) for k, i in enumerate(row))
    ports = _ports(boxes, ranks, segments)
    _straighten(boxes, ranks, segments, ports)
    for box in boxes:
        box.y = TOP + HEIGHT / 2 + box.rank * (HEIGHT + GAP_Y)
    return _Boxes(boxes, segments, ports)


def _rank(boxes: list[_Box], edges: Iterable[tuple[int, int]]) -> None:
    """Ranks by longest path, one band below the other, inputs next to their use."""
    before, after = defaultdict(list), defaultdict(list)
    for a, b in edges:
        before[b].append(a)
        after[a].append(b)
    floor = 1
    for band in BANDS:
        inside = [i for i, box in enumerate(boxes) if box.band == band]
        for i in inside:
            boxes[i].rank = floor
        for _ in inside:  # as often as the longest path can be
            moved = False
            for i in inside:
                for j in before[i]:
                    if boxes[j].band == band and boxes[i].rank <= boxes[j].rank:
                        boxes[i].rank, moved = boxes[j].rank + 1, True
            if not moved:
                break
        floor = max([floor - 1, *(boxes[i].rank for i in inside)]) + 1
    for i, box in enumerate(boxes):
        if box.kind == "output":
            box.rank = floor
        elif box.kind == "input":
            box.rank = min((boxes[j].rank for j in after[i]), default=1) - 1
    # Where a producer can stand lower without a longer way, it stands by its use.
    first = min(box.rank for box in boxes)
    for box in boxes:
        box.rank -= first


def _straighten(
    boxes: list[_Box],
    ranks: list[list[int]],
    segments: dict[tuple[int, int], str],
    ports: dict[tuple[int, int], tuple[float, float]],
) -> None:
    """Places along the ranks that keep edges short, and long edges straight.

    A linear programme (Gansner et al., 1993, "A technique for drawing directed
    graphs"): the weighted lengths of all edges, under the order within each rank.
    """
    n, edges = len(boxes), list(segments)
    cost = [0.0] * n
    rows: list[dict[int, float]] = []
    limits: list[float] = []
    for k, (a, b) in enumerate(edges):
        bends = (boxes[a].kind == "bend") + (boxes[b].kind == "bend")
        cost.append((3.0, 2.0, 8.0)[bends])
        shift = ports[a, b][0] - ports[a, b][1]
        for sign in (1.0, -1.0):
            rows.append({a: sign, b: -sign, n + k: -1.0})
            limits.append(-sign * shift)
    for row in ranks:
        for i, j in pairwise(row):
            rows.append({i: 1.0, j: -1.0})
            limits.append(-(boxes[i].width + boxes[j].width) / 2 - GAP_X)
    matrix = np.zeros((len(rows), n + len(edges)))
    for k, terms in enumerate(rows):
        matrix[k, list(terms)] = list(terms.values())
    lowest = [box.width / 2 + MARGIN for box in boxes] + [0.0] * len(edges)
    solved = linprog(cost, matrix, limits, bounds=[(x, None) for x in lowest])
    for box, x in zip(boxes, solved.x[:n], strict=True):
        box.x = float(x)


def _ports(
    boxes: list[_Box],
    ranks: list[list[int]],
    segments: dict[tuple[int, int], str],
) -> dict[tuple[int, int], tuple[float, float]]:
    """How far from the middle of its two boxes each edge begins and ends.

    Where several edges meet a box, they meet it side by side.
    """
    place = {i: k for row in ranks for k, i in enumerate(row)}
    offsets: list[dict[tuple[int, int], float]] = [{}, {}]
    for end in (0, 1):
        at: dict[int, list[int]] = defaultdict(list)
        for edge in segments:
            at[edge[end]].append(edge[1 - end])
        for i, others in at.items():
            others.sort(key=place.__getitem__)
            step = min(18.0, 0.7 * boxes[i].width / len(others))
            for k, j in enumerate(others):
                edge = (i, j) if end == 0 else (j, i)
                offsets[end][edge] = step * (k - (len(others) - 1) / 2)
    return {edge: (offsets[0][edge], offsets[1][edge]) for edge in segments}


# ---------------------------------------------------------------------- the picture

STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.label { font-size: 13px; fill: #111827; text-anchor: middle; }
.note { font-size: 10.5px; fill: #6b7280; text-anchor: middle; }
.shape { font-size: 10.5px; fill: #4b5563; }
.edge { fill: none; stroke: #6b7280; stroke-width: 1.3px; }
.band { font-size: 12px; font-weight: 600; }
.title { font-size: 16px; font-weight: 600; fill: #111827; }
.subtitle { font-size: 12px; fill: #6b7280; }
"""


def _svg(drawn: _Boxes, graph: Graph) -> str:
    boxes = drawn.boxes
    width = max(box.x + box.width / 2 for box in boxes) + 40
    title, subtitle = _titles(graph)
    width = max(width, 40 + 9.6 * len(title), 40 + 6.4 * len(subtitle))
    height = max(box.y for box in boxes) + HEIGHT / 2 + 24
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#6b7280"/>'
        "</marker></defs>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        f'<text class="title" x="20" y="28">{escape(title)}</text>',
        f'<text class="subtitle" x="20" y="48">{escape(subtitle)}</text>',
    ]
    fills = {}
    for band, (name, line, fill) in BANDS.items():
        rows = [box for box in boxes if box.band == band]
        if not rows:
            continue
        top = min(box.y for box in rows) - HEIGHT / 2 - GAP_Y / 2 + 3
        bottom = max(box.y for box in rows) + HEIGHT / 2 + GAP_Y / 2 - 3
        out.append(
            f'<rect x="12" y="{top:.1f}" width="{width - 24:.1f}" '
            f'height="{bottom - top:.1f}" rx="10" fill="{fill}"/>'
            f'<text class="band" x="24" y="{top + 20:.1f}" fill="{line}">{name}</text>'
        )
        for row in {box.rank for box in rows}:
            fills[row] = fill
    out += _edges(drawn, fills)
    for box in boxes:
        if box.kind == "bend":
            continue
        line = BANDS[box.band][1] if box.band else "#374151"
        round_ends = HEIGHT / 2 if box.kind != "box" else 7
        weight, fill = (1.4, "#ffffff") if box.kind == "box" else (1.4, "#f9fafb")
        left, top = box.x - box.width / 2, box.y - HEIGHT / 2
        middle = box.y + (4.5 if not box.note else -2)
        out.append(
            f"<g><title>{escape(', '.join(box.members))}</title>"
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" '
            f'height="{HEIGHT:.0f}" rx="{round_ends:.0f}" fill="{fill}" '
            f'stroke="{line}" stroke-width="{weight}"/>'
            f'<text class="label" x="{box.x:.1f}" y="{middle:.1f}">'
            f"{escape(box.label)}</text>"
            + (
                f'<text class="note" x="{box.x:.1f}" y="{box.y + 13:.1f}">'
                f"{escape(box.note)}</text>"
                if box.note
                else ""
            )
            + "</g>"
        )
    return "\n".join([*out, "</svg>\n"])


def _edges(drawn: _Boxes, fills: dict[int, str]) -> list[str]:
    boxes, paths, labels = drawn.boxes, [], []
    seen: set[tuple[int, str]] = set()
    for (a, b), shape in drawn.edges.items():
        start, stop = boxes[a], boxes[b]
        y0, y1 = start.y + HEIGHT / 2, stop.y - HEIGHT / 2
        x0, x1 = (
            box.x + p for box, p in zip((start, stop), drawn.ports[a, b], strict=True)
        )
        bend = (y1 - y0) * 0.55
        tail = f" L{x1:.1f},{stop.y + HEIGHT / 2:.1f}" if stop.kind == "bend" else ""
        end = "" if stop.kind == "bend" else ' marker-end="url(#arrow)"'
        paths.append(
            f'<path class="edge" d="M{x0:.1f},{y0:.1f} C{x0:.1f},{y0 + bend:.1f} '
            f'{x1:.1f},{y1 - bend:.1f} {x1:.1f},{y1:.1f}{tail}"{end}/>'
        )
        if shape and (a, shape) not in seen:
            seen.add((a, shape))
            within = fills.get(start.rank) == fills.get(stop.rank)
            halo = fills.get(start.rank, "#ffffff") if within else "#ffffff"
            x, y, length = (x0 + x1) / 2 + 6, (y0 + y1) / 2, 5.9 * len(shape) + 6
            labels.append(
                f'<rect x="{x - 3:.1f}" y="{y - 7:.1f}" width="{length:.1f}" '
                f'height="14" rx="4" fill="{halo}" fill-opacity="0.85"/>'
                f'<text class="shape" x="{x:.1f}" y="{y + 3.5:.1f}">'
                f"{escape(shape)}</text>"
            )
    return [*paths, *labels]


def _titles(graph: Graph) -> tuple[str, str]:
    entries = {key: value.strip('"') for key, value in graph.entries.items()}
    title = entries.get("estimator", "ONNX graph")
    choices = [entries[k] for k in ("network", "likelihood", "prior") if k in entries]
    if choices:
        title = f"{title}: {' · '.join(choices)}"
    used = {
        tensor
        for node in graph.nodes
        if node.op_type in LAYERS
        for tensor in node.input
        if tensor in graph.weights
    }
    n_weights = sum(int(np.prod(graph.weights[tensor])) for tensor in used)
    letters = "N rows"
    if graph.random:
        letters += f", {entries.get('n_draws', 'S')} draws of z for each"
    return title, f"{letters} · {n_weights:,} weights · {len(graph.nodes)} nodes"
