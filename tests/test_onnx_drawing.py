import re
from xml.etree import ElementTree

import onnx
import pytest
from onnx import TensorProto, helper

from onnx_helpers import exported, model, write
from skvae.onnx import draw
from skvae.onnx.drawing import VIEWS

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def elbo():
    return exported("digits", "elbo")


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


def test_the_compact_view_shows_the_layers_and_the_terms_of_the_loss(elbo):
    svg = draw(elbo)
    assert texts(svg, "band") == ["Input", "Encoder", "Posterior", "Decoder", "Loss"]
    labels = texts(svg, "label")
    encoder = ["Linear 64 → 320", "ReLU", "Linear 320 → 16", "ReLU", "Linear 16 → 6"]
    decoder = ["Linear 3 → 16", "ReLU", "Linear 16 → 320", "ReLU", "Linear 320 → 64"]
    loss = ["KL(q(z|x) ‖ p(z))", "−log p(x|z)", "ELBO = log p(x|z) − KL"]
    posterior = ["mean, log-variance", "z = mean + σ · noise"]
    ends = ["X", "noise", "elbo", "reconstruction", "kl", "clip to the support"]
    assert sorted(labels) == sorted([*encoder, *posterior, *decoder, *loss, *ends])
    shapes = texts(svg, "shape")
    assert {"N × 64", "N × 6", "4 × N × 3", "N × 3", "4·N × 16", "N"} <= set(shapes)
    # The draws stand on an axis of their own, and are not counted again in the rows.
    assert "4 × N × 64" in shapes
    assert not any("4 × 4·N" in shape for shape in shapes)


def test_the_full_view_has_every_node(elbo):
    labels = texts(draw(elbo, view="full"), "label")
    ends = [v.name for v in (*elbo.graph.input, *elbo.graph.output)]
    assert sorted(labels) == sorted([*(n.op_type for n in elbo.graph.node), *ends])


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("part", ["encoder", "decoder", "autoencoder", "elbo", "prior"])
def test_boxes_lie_apart_and_within_the_picture(view, part):
    svg = draw(exported("digits", part), view=view)
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


def test_estimators_files_and_graphs_are_drawn_alike(elbo, tmp_path, monkeypatch):
    svg = draw(write("digits", tmp_path, "elbo"), tmp_path / "vae.svg")
    assert svg == draw(elbo)
    assert (tmp_path / "vae.svg").read_text(encoding="utf-8") == svg
    assert draw(model("digits"), part="decoder") == draw(exported("digits", "decoder"))
    asked = []

    def export(estimator, path, part):
        asked.append((estimator, path, part))
        return elbo

    monkeypatch.setattr("skvae.onnx.drawing.export", export)
    assert draw(model("digits")) == svg
    assert asked == [(model("digits"), None, "elbo")]


def test_of_a_whole_file_one_part_is_drawn(elbo):
    whole = exported("digits")
    assert texts(draw(whole), "label") == texts(draw(elbo), "label")
    assert texts(draw(whole, part="decoder"), "band") == ["Decoder", "Output"]
    with pytest.raises(ValueError, match=r"part='loss' must be one of \['decoder'"):
        draw(whole, part="loss")


def test_units_are_drawn():
    assert "standardise" in texts(draw(exported("table")), "label")
    svg = draw(exported("table"), part="decoder")
    assert "in the units of X" in texts(svg, "note")


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


def test_what_cannot_be_drawn_is_refused(elbo):
    with pytest.raises(ValueError, match=r"view='3d' must be one of \['compact'"):
        draw(elbo, view="3d")
    with pytest.raises(TypeError, match="got int"):
        draw(3)
