import re
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_helpers import fitted
from skvae.onnx import draw, export
from skvae.onnx.drawing import VIEWS

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def vae():
    return fitted(hidden_dim=(8, 5))


@pytest.fixture(scope="module")
def elbo(vae):
    return export(vae, None, "elbo")


def texts(svg, kind):
    tree = ElementTree.fromstring(svg)
    return [t.text for t in tree.iter(f"{SVG}text") if t.get("class") == kind]


def boxes(svg):
    """(left, top, right, bottom) of everything with a label."""
    found = []
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        x, y, w, h = (float(rect.get(k)) for k in ("x", "y", "width", "height"))
        found.append((x, y, x + w, y + h))
    return found


def test_the_compact_view_reads_as_the_model_is_taught(elbo):
    svg = draw(elbo)
    assert texts(svg, "band") == ["Input", "Encoder", "Posterior", "Decoder", "Loss"]
    labels = texts(svg, "label")
    encoder = ["Linear 16 → 8", "ReLU", "Linear 8 → 5", "ReLU", "Linear 5 → 6"]
    decoder = ["Linear 3 → 5", "ReLU", "Linear 5 → 8", "ReLU", "Linear 8 → 16"]
    loss = ["KL(q(z|x) ‖ p(z))", "−log p(x|z)", "ELBO = log p(x|z) − KL"]
    posterior = ["mean, log-variance", "z = mean + σ · noise"]
    ends = ["X", "noise", "elbo", "reconstruction", "kl", "clip to the support"]
    assert sorted(labels) == sorted([*encoder, *posterior, *decoder, *loss, *ends])
    shapes = texts(svg, "shape")
    assert {"N × 16", "N × 6", "4 × N × 3", "N × 3", "4·N × 5", "N"} <= set(shapes)


def test_the_full_view_has_every_node(elbo):
    labels = texts(draw(elbo, view="full"), "label")
    ends = [v.name for v in (*elbo.graph.input, *elbo.graph.output)]
    assert sorted(labels) == sorted([*(n.op_type for n in elbo.graph.node), *ends])


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("part", ["encoder", "decoder", "autoencoder", "elbo", "prior"])
def test_boxes_lie_apart_and_within_the_picture(vae, view, part):
    svg = draw(vae, view=view, part=part)
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
    rectangles = boxes(svg)
    assert len(rectangles) >= 3
    for k, (left, top, right, bottom) in enumerate(rectangles):
        assert 0 < left < right < width
        assert 0 < top < bottom < height
        for other in rectangles[:k]:
            apart = right < other[0] or other[2] < left
            assert apart or bottom < other[1] or other[3] < top


def test_arrows_point_downwards(elbo):
    svg = draw(elbo, view="full")
    for line in re.findall(
        r'class="edge" d="M[\d.]+,([\d.]+) C.*? ([\d.]+),([\d.]+)[ "]', svg
    ):
        assert float(line[0]) < float(line[2])


def test_it_draws_estimators_files_and_models_alike(vae, elbo, tmp_path):
    export(vae, tmp_path / "vae.onnx", "elbo")
    svg = draw(tmp_path / "vae.onnx", tmp_path / "vae.svg")
    assert svg == draw(elbo) == draw(vae)
    assert (tmp_path / "vae.svg").read_text(encoding="utf-8") == svg


def test_of_a_whole_file_one_part_is_drawn(vae, elbo):
    whole = export(vae, None)
    assert texts(draw(whole), "label") == texts(draw(elbo), "label")
    assert texts(draw(whole, part="decoder"), "band") == ["Decoder", "Output"]
    with pytest.raises(ValueError, match=r"part='loss' must be one of \['decoder'"):
        draw(whole, part="loss")


def test_units_are_drawn():
    X = np.random.RandomState(0).normal(7, 3, (40, 4))
    vae = fitted("gaussian", X)
    assert "standardise" in texts(draw(vae), "label")
    assert "in the units of X" in texts(draw(vae, part="autoencoder"), "note")


def test_any_graph_is_drawn():
    """A convolution from elsewhere, without names or metadata."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 1, 3, 3], [0.0] * 36)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 3, 3])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(model)
    svg = draw(model)
    assert "Conv 1 → 4" in texts(svg, "label")
    assert "3 × 3, stride 2" in texts(svg, "note")
    assert texts(svg, "label").count("ReLU") == 1


def test_what_cannot_be_drawn_is_refused(vae):
    with pytest.raises(ValueError, match=r"view='3d' must be one of \['compact'"):
        draw(vae, view="3d")
    with pytest.raises(TypeError, match="got int"):
        draw(3)


def test_draws_on_an_axis_of_their_own_are_not_counted_twice(tmp_path):
    draw(fitted(), tmp_path / "vae.svg")
    text = (tmp_path / "vae.svg").read_text("utf-8")
    assert "4 × N × 16" in text
    assert "4 × 4·N" not in text
