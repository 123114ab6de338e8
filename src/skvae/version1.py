"""Reads what files of format version 1 hold: estimators that skvae 0.1 has fitted.

Version 0.1 kept the parts of a fitted model as attributes of the estimator. A category
was a block of one-hot columns, and the decoder had as many outputs for each of them as
any family of the model needs; now a category is one column of codes, and each column
has the outputs that its own family needs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from .flows import SPLINE_NUMBERS, SplineFlow
from .likelihoods import Categorical, Likelihood, Mixed
from .networks import MLP, FlowMLP, LadderNet
from .plain import KIND, SPECS, revived
from .priors import FlowPrior
from .spec import Spec
from .units import Units

# Dicts that stood for objects other than specifications.
PARTS = ("Units", "Architecture", "Table", "Column", "dtype", "records")
# What a fitted estimator held; the other attributes could be missing.
LEARNED = (
    *("model_", "network_", "likelihood_", "prior_", "objective_", "units_"),
    *("n_features_in_", "n_iter_", "best_epoch_"),
    *("_seed", "_dtype", "_records", "_architecture", "_draws"),
)
OPTIONAL = (
    *("feature_names_in_", "_codes", "_codes_condition", "_image_shape", "_table"),
    *("classes_", "class_count_"),
)
# The parameter by which a family asked for a second output of each column.
BY_ROW = {
    "Gaussian": "scale",
    "StudentT": "scale",
    "Beta": "precision",
    "NegativeBinomial": "dispersion",
}
ONE_OUTPUT = ("Bernoulli", "Categorical", "ContinuousBernoulli", "Poisson")


def upgraded(
    parameters: dict[str, Any],
    learned: dict[str, Any],
    specs: Mapping[str, type[Spec]] = SPECS,
) -> dict[str, Any]:
    """What an estimator has learned, as version 2 has it.

    Parameters
    ----------
    parameters, learned : dict
        Of the estimator; specifications are dicts of their parameters.
    specs : mapping
        Classes of specifications by name.

    Raises
    ------
    ValueError
        If something is not as version 0.1 had it, or cannot be converted.
    """
    if "model_" not in learned:
        return learned
    missing = [name for name in LEARNED if name not in learned]
    if missing:
        raise ValueError(f"a fitted model of version 0.1 must hold {missing}.")
    old = revived(_bare(learned), specs)
    kept = {k: v for k, v in old.items() if k not in (*LEARNED, *OPTIONAL)}
    kept["n_features_in_"] = old["n_features_in_"]
    if old.get("feature_names_in_") is not None:
        kept["feature_names_in_"] = old["feature_names_in_"]
    units = Units.from_state(old["units_"])
    layout = _Layout.of(old["likelihood_"], len(units.scale))
    labels = {}
    if "classes_" in old:
        labels = {"classes": old["classes_"], "counts": old["class_count_"]}
    precision = parameters.get("precision", "auto")
    kept["fitted_"] = {
        "choices": {
            "network": old["network_"],
            "likelihood": layout.likelihood,
            "prior": old["prior_"],
            "objective": old["objective_"],
        },
        "architecture": old["_architecture"],
        "weights": _weights(old, layout),
        "units": layout.units(units).state(),
        "form": _form(old, layout),
        "labels": labels,
        "history": old["_records"]["columns"],
        "n_epochs": old["n_iter_"],
        "best_epoch": old["best_epoch_"],
        "n_steps": 0,  # was not counted
        "result": "complete",
        "seed": old["_seed"],
        "precision": "float32" if precision == "auto" else precision,
        "draws": old["_draws"],
        "codes": old.get("_codes"),
        "codes_condition": old.get("_codes_condition"),
    }
    return kept


def _bare(value: Any) -> Any:
    """The value without the names of the parts that are no specifications."""
    if type(value) in (list, tuple):
        return type(value)(_bare(v) for v in value)
    if type(value) is not dict:
        return value
    is_part = KIND in value and value[KIND] in PARTS
    return {k: _bare(v) for k, v in value.items() if not (is_part and k == KIND)}


# ------------------------------------------------------------------------- columns


@dataclass(frozen=True)
class _Column:
    """A column as it is now, and what stood for it.

    Attributes
    ----------
    positions : tuple of int
        The columns of version 0.1, several of a category.
    is_block : bool
        Whether it is a category.
    n_outputs : int
        Outputs of the decoder that each of these columns used.
    """

    positions: tuple[int, ...]
    is_block: bool
    n_outputs: int


@dataclass(frozen=True)
class _Layout:
    """Where the columns of version 0.1 are now.

    Attributes
    ----------
    likelihood : Likelihood
        Of the columns as they are now.
    columns : tuple of _Column
        In the order of the first column that stood for each.
    n_outputs : int
        Outputs of the decoder that each column had.
    """

    likelihood: Likelihood
    columns: tuple[_Column, ...]
    n_outputs: int

    @classmethod
    def of(cls, likelihood: Any, n_columns: int) -> "_Layout":
        """The layout of a likelihood of version 0.1 over so many columns."""
        if not isinstance(likelihood, Likelihood):
            raise ValueError(f"{type(likelihood).__name__} is no likelihood.")
        likelihood.validate()
        if isinstance(likelihood, Mixed | Categorical):
            columns = _columns(likelihood, range(n_columns))
            columns.sort(key=lambda column: column.positions)
            n_outputs = max(column.n_outputs for column in columns)
            places = {c.positions[0]: i for i, c in enumerate(columns)}
            converted = _converted(likelihood, range(n_columns), places)
            return cls(converted, tuple(columns), n_outputs)
        # All columns alike: nothing moves, however many outputs they have.
        columns = [_Column((i,), False, 1) for i in range(n_columns)]
        return cls(likelihood, tuple(columns), 1)

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        return tuple(c.positions for c in self.columns if c.is_block)

    @property
    def inputs(self) -> list[int]:
        """The old column behind each input of the encoder."""
        return [i for column in self.columns for i in column.positions]

    @property
    def raw(self) -> list[int]:
        """The old output of the decoder behind each one."""
        return [
            i * self.n_outputs + k
            for column in self.columns
            for i in column.positions
            for k in range(column.n_outputs)
        ]

    def units(self, units: Units) -> Units:
        """The units of the columns as they are now."""
        first = [column.positions[0] for column in self.columns]
        now = Units(units.location[first], units.scale[first])
        return now.only(np.array([not column.is_block for column in self.columns]))


def _groups(mixed: Mixed, columns: Sequence[int]) -> list[tuple[Likelihood, list[int]]]:
    """The families of a mixed likelihood, and the columns of each."""
    if mixed.of_data_frame:
        raise ValueError("the likelihood does not give columns by their position.")
    numbers = sum(int(c) for _, c in mixed.families if isinstance(c, Integral))
    given = []
    if numbers <= len(columns):
        given = [i for _, positions in mixed.groups for i in positions]
    if sorted(given) != list(range(len(columns))):
        # Not by its repr, which takes seconds for so many columns as a file may name.
        raise ValueError(
            f"the families of a Mixed do not have each of {len(columns)} columns once."
        )
    return [(f, [columns[i] for i in positions]) for f, positions in mixed.groups]


def _columns(likelihood: Likelihood, columns: Sequence[int]) -> list[_Column]:
    """The columns of a likelihood as they are now, group by group."""
    if isinstance(likelihood, Mixed):
        groups = _groups(likelihood, columns)
        return [column for group in groups for column in _columns(*group)]
    n_outputs = _n_outputs(likelihood)
    if not isinstance(likelihood, Categorical):
        return [_Column((i,), False, n_outputs) for i in columns]
    blocks, start = [], 0
    for size in _sizes(likelihood, len(columns)):
        positions = tuple(columns[start : start + size])
        blocks.append(_Column(positions, True, n_outputs))
        start += size
    return blocks


def _converted(
    likelihood: Likelihood, columns: Sequence[int], places: Mapping[int, int]
) -> Likelihood:
    """A likelihood over columns of version 0.1 as one over those of today.

    ``places`` gives the place of a column by the first one that stood for it.
    """
    if isinstance(likelihood, Categorical):
        return Categorical(tuple(_sizes(likelihood, len(columns))))
    if not isinstance(likelihood, Mixed):
        return likelihood
    # Positions within these columns, of which a category has one only.
    within = sorted(places[i] for i in columns if i in places)
    rank = {place: i for i, place in enumerate(within)}
    pairs = []
    for family, group in _groups(likelihood, columns):
        positions = sorted(rank[places[i]] for i in group if i in places)
        pairs.append((_converted(family, group, places), tuple(positions)))
    return Mixed(tuple(pairs))


def _sizes(likelihood: Categorical, n_columns: int) -> list[int]:
    """Columns of each block of a categorical likelihood of version 0.1."""
    given = likelihood.n_categories
    if given is None:
        return [n_columns]
    if isinstance(given, Integral):
        sizes = [int(given)] * (n_columns // int(given))
    else:
        sizes = [int(size) for size in given]
    if sum(sizes) != n_columns or min(sizes) < 1:
        raise ValueError(
            f"the blocks of a Categorical do not have {n_columns} columns in all."
        )
    return sizes


def _n_outputs(likelihood: Likelihood) -> int:
    """Outputs of the decoder for each column that a family had."""
    name = type(likelihood).__name__
    if name in BY_ROW:
        return 2 if likelihood.get_params()[BY_ROW[name]] == "row" else 1
    if name == "DiscretizedLogisticMixture":
        return 3 * int(likelihood.get_params()["n_components"])
    if name not in ONE_OUTPUT:
        raise ValueError(
            f"a Mixed of version 0.1 with {name} cannot be read: only one of the "
            "library's own families can be."
        )
    return 1


# ------------------------------------------------------------------------- weights


def _weights(old: dict[str, Any], layout: _Layout) -> dict[str, np.ndarray]:
    """The weights under the names and in the order that they have now."""
    families, prior = old["likelihood_"], old["prior_"]
    weights = {
        _name(name, families, prior): array for name, array in old["model_"].items()
    }
    inputs = layout.inputs
    in_place = inputs == list(range(len(inputs)))
    if not in_place:
        for name in _first_layers(weights, old):
            _check_length(name, weights[name], 1, len(inputs))
            weights[name] = weights[name].take(inputs, 1)
    if not in_place or any(c.n_outputs < layout.n_outputs for c in layout.columns):
        for name in _last_layer(weights, old):
            # Before the outputs are counted out one by one: there may be billions.
            _check_length(name, weights[name], 0, len(inputs) * layout.n_outputs)
            weights[name] = weights[name].take(layout.raw, 0)
    if isinstance(prior, FlowPrior):
        weights |= _masks(prior, old["_architecture"]["latent_dim"][-1], weights)
    return weights


def _check_length(name: str, array: Any, axis: int, length: int) -> None:
    if array.ndim <= axis or array.shape[axis] != length:
        raise ValueError(
            f"{name} of the shape {array.shape} must have {length} entries along axis "
            f"{axis}."
        )


def _masks(
    prior: FlowPrior, n_latent: Any, weights: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The constants of a flow, which were not saved: they follow from its widths."""
    prior.validate()
    n_transforms, width = int(prior.n_transforms), int(prior.hidden_dim)
    n_outputs = SPLINE_NUMBERS * n_latent
    size = n_outputs  # of one dimension there is no network
    if n_latent > 1:
        size = width * (n_latent + width + n_outputs)
    saved = sum(w.size for name, w in weights.items() if name.startswith("prior."))
    if n_latent < 1 or n_transforms * size > saved:
        raise ValueError(f"{prior!r} does not fit the weights.")
    flow = SplineFlow(n_latent, n_transforms=n_transforms, hidden_dim=width, seed=0)
    return {f"prior.flow.{name}": b.numpy() for name, b in flow.named_buffers()}


def _name(name: str, likelihood: Likelihood, prior: Any) -> str:
    """Today's name of a weight."""
    for prefix in ("likelihood_parameters.", "likelihood_"):
        if name.startswith(prefix):
            path, rest = "likelihood.", name.removeprefix(prefix)
            while isinstance(likelihood, Mixed):
                group = re.match(r"group(\d{1,6})_", rest)
                if group is None or int(group[1]) >= len(likelihood.families):
                    raise ValueError(f"the weight {name!r} belongs to no family.")
                path += f"groups.{int(group[1])}."
                rest = rest[group.end() :]
                likelihood = likelihood.groups[int(group[1])][0]
            return path + rest
    if name.startswith("prior_parameters."):
        rest = name.removeprefix("prior_parameters.")
        if isinstance(prior, FlowPrior):
            return "prior.flow." + rest.replace("-", ".")
        return "prior." + rest
    return name


def _first_layers(weights: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Names of the weights that see the inputs of the encoder along axis 1."""
    names = ["network.encoder.0.weight", "network.mlp.encoder.0.weight"]
    names.append("network.up.0.0.weight")
    if "network.up.0.0.weight" not in weights:  # a ladder without hidden layers
        names += ["network.heads.0.weight", "network.up.1.0.weight"]
    _check_known(old["network_"])
    names.append("prior.pseudo_inputs")
    return [name for name in names if name in weights]


def _last_layer(weights: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Names of the weights that give the outputs of the decoder along axis 0."""
    _check_known(old["network_"])
    layers = {
        int(found[2]): found[1]
        for name in weights
        if (found := re.fullmatch(r"(network\.(?:mlp\.)?decoder)\.(\d+)\.bias", name))
    }
    last = max(layers)
    return [f"{layers[last]}.{last}.{name}" for name in ("weight", "bias")]


def _check_known(network: Any) -> None:
    if not isinstance(network, MLP | LadderNet | FlowMLP):
        raise ValueError(
            f"a model of version 0.1 over one-hot columns, or columns of several "
            f"kinds, cannot be read if its network is {type(network).__name__}: only "
            "MLP, LadderNet and FlowMLP can be."
        )


# ------------------------------------------------------------------------- the form


def _form(old: dict[str, Any], layout: _Layout) -> dict[str, Any]:
    """The state of the form of X."""
    if old.get("_table") is not None:
        return _table(old["_table"], layout)
    dtype, shape = old["_dtype"]["name"], old.get("_image_shape")
    names = old.get("feature_names_in_")
    if shape is not None:
        form = {"kind": "images", "image_shape": shape, "dtype": dtype}
    else:
        n_columns = len(layout.inputs)
        names = list(range(n_columns)) if names is None else names.tolist()
        form = {"kind": "rows", "names": names, "dtype": dtype}
    if not layout.blocks:
        return form
    return {"kind": "one_hot_rows", "inner": form, "blocks": layout.blocks}


def _table(table: dict[str, Any], layout: _Layout) -> dict[str, Any]:
    columns, one_hot = [], []
    for i, (column, known) in enumerate(
        zip(table["columns"], layout.columns, strict=True)
    ):
        content = dict(column)
        family, values = content.pop("family"), content["values"]
        is_category = not isinstance(family, Likelihood) and family == "categorical"
        n_columns = len(values) if is_category else 1
        if is_category != known.is_block or n_columns != len(known.positions):
            raise ValueError(f"column {content['name']!r} does not fit the likelihood.")
        if is_category:
            one_hot.append(i)
        # The values of a category, or the two of a binary column.
        kind = "number" if values is None else "category"
        is_bool = str(content["dtype"]).lower().startswith("bool")
        if family == "binary" and is_bool and values in ((False, True), (False,)):
            kind, content["values"] = "boolean", None
        columns.append({**content, "kind": kind})
    form = {"kind": "table", "columns": columns, "library": table["library"]}
    if one_hot:
        form |= {"kind": "one_hot_table", "one_hot": tuple(one_hot)}
    return form
