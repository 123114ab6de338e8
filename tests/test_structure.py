"""The rules of the house: who may import whom, and what an import may cost."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import skvae

SOURCE = Path(skvae.__file__).parent

# Each file may import files of lower floors only: siblings never import each other.
FLOORS = [
    {"_compat", "__init__", "checks", "fingerprint", "units", "noise", "plan"},
    {"spec", "device", "flows"},
    {"networks", "likelihoods", "priors", "objectives"},
    {"model", "tables"},
    {"gradients"},
    {"engine"},
    {"progress", "inference", "stack", "state", "fitting"},
    {"estimator"},
    {"conditional", "runs"},
    {"calibration", "checkpoint"},
    {"racing"},
    {"model_selection", "metrics", "plotting", "datasets", "persistence"},
    {"onnx"},
    {"demo"},
    {"cli"},
]
# The same within a folder, which counts as one file for those outside.
FOLDERS = {
    "likelihoods": [
        {"base", "special"},
        {"categories", "counts", "images", "real", "unit_interval"},
        {"registry"},
        {"mixed"},
        {"__init__"},
    ],
    "networks": [
        {"base"},
        {"mlp", "conv", "ladder"},
        {"flow"},
        {"__init__"},
    ],
    "plotting": [
        {"base"},
        {"rows"},
        {
            "interpolation",
            "latent_space",
            "loss_curve",
            "manifold",
            "reconstruction",
            "samples",
            "search",
            "traversal",
        },
        {"__init__"},
    ],
    "onnx": [
        {"metadata"},
        {"exporting", "runtime"},
        {"pipeline", "drawing", "quantization"},
        {"__init__"},
    ],
}
FLOOR = {
    (folder, name): i
    for folder, floors in {"": FLOORS, **FOLDERS}.items()
    for i, names in enumerate(floors)
    for name in names
}
# Heavy, or extras: imported inside the function that needs them.
INSIDE_FUNCTIONS = {
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "polars",
    "rich",
    "safetensors",
    "skl2onnx",
    "torchvision",
    "zuko",
}


def imports(tree, *, top_level_only=False):
    """(module, names) of the imports in a file."""
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []


def own(tree, folder):
    """(folder, file) of what a file imports of ours."""
    for module, names in imports(tree):
        if module.startswith("."):
            within = folder and not module.startswith("..")
            path = module.lstrip(".")
        elif module.split(".")[0] == "skvae":
            within, path = False, module.removeprefix("skvae").lstrip(".")
        else:
            continue
        for name in [path.split(".")[0]] if path else names:
            yield folder if within else "", name


FILES = sorted(SOURCE.rglob("*.py"))


def folder_of(path):
    return "" if path.parent == SOURCE else path.parent.name


def name_of(path):
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_downwards(path):
    folder = folder_of(path)
    place = folder, path.stem
    assert place in FLOOR, f"{name_of(path)} has no floor yet: put it into FLOORS"
    if place == ("", "__init__"):
        return
    for within, name in own(ast.parse(path.read_text()), folder):
        if name != "__version__":
            here = place if within == folder else ("", folder)
            assert FLOOR[within, name] < FLOOR[here], f"{place} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_extras_are_imported_where_they_are_used(path):
    for module, _ in imports(ast.parse(path.read_text()), top_level_only=True):
        assert module.split(".")[0] not in INSIDE_FUNCTIONS


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_private_names_of_others_live_in_compat(path):
    if path.stem == "_compat":
        return
    for module, names in imports(ast.parse(path.read_text())):
        if module.startswith(".") or module.startswith("skvae"):
            continue
        parts = [*module.split("."), *names]
        private = [p for p in parts if p.startswith("_") and not p.startswith("__")]
        assert not private, f"{path.stem} imports {private} of {module}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_has_its_tests(path):
    name = folder_of(path) or path.stem
    if name in ("__init__", "_compat", "spec"):
        return
    # A folder has one file of tests, or one for each of its files.
    whole, part = f"test_{name}.py", f"test_{name}_{path.stem}.py"
    tests = Path(__file__).parent
    assert (
        (tests / whole).exists()
        or (tests / part).exists()
        or (path.stem == "__init__" and any(tests.glob(f"test_{name}_*.py")))
    )


def test_import_is_quick():
    script = (
        "import sys, skvae; heavy = {'torch', 'sklearn', 'pandas', 'matplotlib'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "assert 'VAEEstimator' in dir(skvae);"
        "skvae.VAEEstimator;"
        "assert 'torch._dynamo' not in sys.modules;"
        "assert not {'matplotlib', 'torchvision', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_resolves():
    for name in skvae.__all__:
        assert getattr(skvae, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        skvae.nonsense  # noqa: B018


@pytest.mark.parametrize("said", [{}, {"GOMP_SPINCOUNT": "7"}])
def test_import_leaves_the_environment_as_it_was(said):
    script = (
        "import os; before = dict(os.environ); import skvae; skvae.Gaussian;"
        "assert dict(os.environ) == before"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    subprocess.run(
        [sys.executable, "-c", script], check=True, env={**environment, **said}
    )
