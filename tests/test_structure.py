"""The structure of the source: imports, what they cost, and who reads what."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import skvae

SOURCE = Path(skvae.__file__).parent

# Each file may import files of earlier layers only: siblings never import each other.
LAYERS = [
    {"_compat", "__init__", "checks", "noise", "plan", "support", "discrepancy"},
    {"forms", "linear"},
    {"units", "history"},
    {"spec", "device", "flows"},
    {"networks", "likelihoods", "priors", "objectives"},
    {"plain", "latent", "model"},
    {"fingerprint"},
    {"fitted"},
    {"training", "progress"},
    {"answers", "callbacks"},
    {"estimator", "scorers"},
    {"conditional", "runs"},
    {"calibration", "checkpoint", "workers"},
    {"racing"},
    {"version1", "disentanglement"},
    {"model_selection", "metrics", "plotting", "datasets"},
    {"persistence"},
    {"onnx"},
    {"demo"},
    {"cli"},
]
# The same within a folder, which counts as one file for those outside.
FOLDERS = {
    "forms": [
        {"base"},
        {"rows", "table", "labels"},
        {"images"},
        {"legacy"},
        {"__init__"},
    ],
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
    "training": [
        {"averages", "data", "weights"},
        {"step"},
        {"training"},
        {"engine"},
        {"setup"},
        {"__init__"},
    ],
    "persistence": [
        {"errors", "estimators"},
        {"container", "rehearsal"},
        {"encoding", "decoding"},
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
        {"operators"},
        {"exporting", "runtime", "graph"},
        {"pipeline", "drawing", "quantization"},
        {"__init__"},
    ],
}
# Files of more than 600 lines, which a later version is to cut.
TOO_LONG: dict[str, int] = {}
# Modules that work without torch, which others of theirs need not import either.
WITHOUT_TORCH = [
    "forms",
    "units",
    "noise",
    "support",
    "checks",
    "linear",
    "onnx.runtime",
]
# Private names of others that a class inherits, or that is asked of scikit-learn.
INHERITED = {
    "_value",
    "_is_fitted",
    "_getframe",  # of sys
    "_init_callback_context",
    "_validate_params",
    "_get_param_names",
    "_get_scorers",
}
# Files whose tests have another name.
TESTED_IN = {
    ("", "answers"): "test_estimator_scores.py",
    ("", "discrepancy"): "test_objectives.py",
    ("", "disentanglement"): "test_metrics.py",
    ("", "history"): "test_fitted.py",
    ("", "latent"): "test_estimator_scores.py",
    ("", "version1"): "test_saved.py",
    ("", "workers"): "test_search_workers.py",
    ("onnx", "graph"): "test_onnx_drawing.py",
    ("onnx", "operators"): "test_onnx_exporting.py",
    ("training", "averages"): "test_engine.py",
    ("training", "data"): "test_engine.py",
    ("training", "engine"): "test_stack.py",
    ("training", "setup"): "test_setup.py",
    ("training", "step"): "test_step.py",
    ("training", "training"): "test_engine.py",
    ("training", "weights"): "test_engine.py",
}
LAYER = {
    (folder, name): i
    for folder, layers in {"": LAYERS, **FOLDERS}.items()
    for i, names in enumerate(layers)
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
    assert place in LAYER, f"{name_of(path)} has no layer yet: put it into LAYERS"
    if place == ("", "__init__"):
        return
    for within, name in own(ast.parse(path.read_text()), folder):
        if name != "__version__":
            here = place if within == folder else ("", folder)
            assert LAYER[within, name] < LAYER[here], f"{place} imports {name}"


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
    if name in ("__init__", "_compat", "spec") or path.stem == "__init__":
        return
    tests = Path(__file__).parent
    if (folder_of(path), path.stem) in TESTED_IN:
        assert (tests / TESTED_IN[folder_of(path), path.stem]).exists()
        return
    # A folder has one file of tests, or one for each of its files.
    whole, part = f"test_{name}.py", f"test_{name}_{path.stem}.py"
    assert (
        (tests / whole).exists()
        or (tests / part).exists()
        or any(tests.glob(f"test_{name}_*.py"))
    )


def test_modules_that_work_without_torch():
    imports = "; ".join(f"import skvae.{module}" for module in WITHOUT_TORCH)
    script = f"import sys; {imports}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def defined_in(tree):
    """Names that a file defines or assigns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_private_names_stay_in_their_file(path):
    if path.stem == "_compat":
        return
    tree = ast.parse(path.read_text("utf-8"))
    own_names = {*defined_in(tree), *INHERITED}
    read = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            read += [alias.name for alias in node.names]
    foreign = {
        name
        for name in read
        if name.startswith("_") and not name.startswith("__") and name not in own_names
    }
    assert not foreign, f"{name_of(path)} reads {sorted(foreign)}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_attributes_are_declared_and_not_written_behind_the_back(path):
    """Nothing is found out by hasattr, by a default of getattr, or by vars."""
    if path.stem in ("_compat", "fingerprint", "identity"):
        return  # these look at objects of other libraries and of users
    foreign = {
        "X",
        "x",
        "prior",
        "polars",
        "torch",
        "os",
        "value",
        "estimator",
        "mapping",
    }
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr != "__dict__", f"{name_of(path)}:{node.lineno}"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        asks = node.func.id == "hasattr" or (
            node.func.id == "getattr" and len(node.args) == 3
        )
        if asks or node.func.id == "vars":
            of = ast.unparse(node.args[0])
            assert of in foreign, f"{name_of(path)}:{node.lineno} asks {of}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_too_long(path):
    limit = TOO_LONG.get(name_of(path), 600)
    assert len(path.read_text("utf-8").split("\n")) <= limit + 1


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
