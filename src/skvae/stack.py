"""Stacks: models of one shape that train side by side in the same operations.

On small models a step is all overhead: thirty operations on next to no numbers. Here a
step of M models is one step on arrays with a leading axis M. Each model keeps its own
learning rate, order of rows, noise and data, and gets what it would get alone, but for
the rounding of sums. Narrower models may stand in rows as long as the widest one's:
their missing units have weights of 0, see nothing, pass nothing on, and stay 0.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ._compat import adam_step
from .device import training
from .engine import ACTIVE_VARIANCE, Data, Record, Trainer, constant
from .fingerprint import fingerprint
from .gradients import ExplicitStep, Layers
from .likelihoods import Likelihood
from .networks import MAX_LOG_VARIANCE

Member = tuple[Trainer, Data]


def can_stack(trainer: Trainer, data: Data) -> bool:
    """Whether this module knows how such a model trains."""
    return (
        isinstance(trainer.gradient_step, ExplicitStep)
        and trainer.max_gradient_norm is None
        and data.condition is None
    )


def stack_key(trainer: Trainer, data: Data) -> tuple[object, ...]:
    """What models of one stack have in common, but for the widths of their layers."""
    step = _explicit(trainer)
    encoder, decoder = step.encoder, step.decoder
    return (
        trainer.batch_size,
        len(data),
        data.X.shape[1],
        str(data.X.device),
        trainer.precision,
        data.weights is None,
        fingerprint(trainer.model.likelihood),
        len(encoder.weights),
        len(decoder.weights),
        encoder.tanh,
        decoder.tanh,
    )


def can_capture(device: torch.device, member: Member) -> bool:
    """Whether the gradients of a stack may be captured as a CUDA graph.

    A graph replays fixed addresses and shapes: it takes a GPU, batches of one size
    (a shorter last one runs eagerly), and nothing that draws or asks on the way.
    """
    trainer, data = member
    return (
        device.type == "cuda"
        and can_stack(trainer, data)
        and len(data) >= trainer.batch_size
    )


class Graph:
    """A function of tensors as a CUDA graph: one launch for all that it does.

    Parameters
    ----------
    function : callable
        Of tensors, to tensors; what else it writes, it writes to the same places.
    *examples : Tensor
        Arguments of the shapes that all later ones have.
    """

    def __init__(self, function: Callable[..., Any], *examples: Tensor):
        self.inputs = [example.clone() for example in examples]
        # As torch asks: a few runs beside the main stream before the capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(*self.inputs)

    def __call__(self, *arguments: Tensor) -> Any:
        for fixed, given in zip(self.inputs, arguments, strict=True):
            fixed.copy_(given)
        self.graph.replay()
        return self.outputs


class Stack:
    """Models of one shape in training.

    Parameters
    ----------
    members : sequence of (Trainer, Data)
        Of one ``stack_key``. Their weights follow the stack's after every epoch, their
        optimiser's moments when :meth:`release` is called.
    epochs : sequence of int
        How many each has to go: what its schedule is stretched over.
    """

    def __init__(self, members: Sequence[Member], epochs: Sequence[int]):
        self.members = list(members)
        self.total_steps = [
            trainer.n_steps + n * -(-len(data) // trainer.batch_size)
            for (trainer, data), n in zip(members, epochs, strict=True)
        ]
        self.epoch: dict[int, Record] = {}
        self.n_steps = members[0][0].n_steps
        self._share_data()
        # Equal learning rates side by side: one call of the optimiser for each.
        self._load(sorted(range(len(members)), key=self._rate))

    @classmethod
    def of(cls, members: Sequence[Member], epochs: Sequence[int]) -> "Stack | None":
        """A stack of these models, or None where they are not of one kind."""
        if len(members) < 2 or not all(can_stack(*member) for member in members):
            return None
        if len({stack_key(*member) for member in members}) > 1:
            return None
        if len({trainer.n_steps for trainer, _ in members}) > 1:
            return None
        return cls(members, epochs)

    def _rate(self, i: int) -> tuple[float, str, int]:
        """What members have in common that go with one rate, all the way."""
        trainer, _ = self.members[i]
        name = trainer.schedule.__name__
        total = 0 if trainer.schedule is constant else self.total_steps[i]
        return trainer.learning_rate, name, total

    def member(self, i: int) -> Callable[[Data, int], Record]:
        """The epoch of one model, for :func:`skvae.engine.train`.

        Members keep in step: all train at the call of the first of them, the others
        collect their records before the next.
        """

        def train_epoch(data: Data, total_steps: int) -> Record:
            if i not in self.epoch:
                self._train_epoch()
            # Only now has this one trained, as far as it is concerned.
            trainer, _ = self.members[i]
            trainer.n_epochs += 1
            trainer.n_steps += -(-self.n_rows // trainer.batch_size)
            return self.epoch.pop(i)

        return train_epoch

    def keep(self, wanted: Sequence[int]) -> None:
        """Train only these models on."""
        if len(wanted) < len(self.rows):
            self.release()
        if 0 < len(wanted) < len(self.rows):
            self._load([i for i in self.rows if i in set(wanted)])

    # ------------------------------------------------------------------ layout

    def _load(self, rows: list[int]) -> None:
        """Take the weights and moments of the members of these rows."""
        self.rows = rows
        self.graph: Any = None
        self.trainers = [self.members[i][0] for i in rows]
        shapes = [_shapes(trainer) for trainer in self.trainers]
        widest = [
            tuple(map(max, *sizes)) if len(rows) > 1 else sizes[0]
            for sizes in zip(*shapes, strict=True)
        ]
        self.latent_dim = max(trainer.model.latent_dim for trainer in self.trainers)
        first = self.trainers[0]
        self.likelihood: Likelihood = first.model.likelihood
        device = first.weights.master.device

        # One row of the buffers: weight and bias of each layer, then what is learned
        # beside the network.
        extra = [tuple(p.shape) for p in first.model.likelihood_parameters.values()]
        blocks = [shape for size in widest for shape in (size, size[:1])] + extra
        length = sum(torch.Size(shape).numel() for shape in blocks)
        self.positions: list[slice | Tensor] = []
        for trainer in self.trainers:
            places = _positions(trainer, blocks, self.latent_dim)
            # As wide as the widest: a copy, which gathering number by number is not.
            fills = torch.equal(places, torch.arange(length))
            self.positions.append(slice(None) if fills else places.to(device))
        self.master = torch.zeros(len(rows), length, device=device)
        self.first_moment, self.second_moment, self.gradient = (
            torch.zeros_like(self.master) for _ in range(3)
        )
        for row, (trainer, where) in enumerate(
            zip(self.trainers, self.positions, strict=True)
        ):
            self.master[row, where] = trainer.weights.master
            self.first_moment[row, where] = trainer.first_moment
            self.second_moment[row, where] = trainer.second_moment

        # What the network computes with; the gradients are float32 in any case.
        self.low = (
            None
            if first.precision == torch.float32
            else torch.empty_like(self.master, dtype=first.precision)
        )
        self.dtype = first.precision
        values, gradients = _views(self.master, blocks), _views(self.gradient, blocks)
        seen = values if self.low is None else _views(self.low, blocks)
        n_encoder = len(_explicit(first).encoder.weights)
        n_network = 2 * len(widest)
        tanh = (_explicit(first).encoder.tanh, _explicit(first).decoder.tanh)
        self.encoder = _StackedLayers(
            seen[: 2 * n_encoder], gradients[: 2 * n_encoder], tanh[0]
        )
        self.decoder = _StackedLayers(
            seen[2 * n_encoder : n_network],
            gradients[2 * n_encoder : n_network],
            tanh[1],
        )
        names = list(first.model.likelihood_parameters)
        self.learned = dict(zip(names, values[n_network:], strict=True))
        self.learned_gradients = dict(zip(names, gradients[n_network:], strict=True))
        self.constants = {
            name: torch.stack(
                [t.model.likelihood_arguments()[name] for t in self.trainers]
            )
            for name in first.model.likelihood_arguments()
            if name not in names
        }
        # Blocks of rows with one learning rate, and their count of steps.
        self.blocks = []
        start = 0
        for _, group in groupby(rows, key=self._rate):
            stop = start + len(list(group))
            count = self.trainers[start].step_count.clone()
            self.blocks.append((slice(start, stop), count))
            start = stop

    def _share_data(self) -> None:
        """Each distinct data set once; where it starts for each member."""
        distinct: list[Data] = []
        places = []
        for _, data in self.members:
            same = [i for i, other in enumerate(distinct) if same_rows(data, other)]
            places.append(same[0] if same else len(distinct))
            if not same:
                distinct.append(data)
        self.n_rows = len(distinct[0])
        self.X = torch.cat([data.X for data in distinct])
        weights = [data.weights for data in distinct if data.weights is not None]
        self.weights = torch.cat(weights) if weights else None
        self.starts = self.n_rows * torch.tensor(places)
        # No member needs rows of its own any more.
        for i, start in enumerate(self.starts.tolist()):
            trainer, data = self.members[i]
            X = self.X[start : start + self.n_rows]
            self.members[i] = trainer, replace(data, X=X)

    def release(self) -> None:
        """Give the members their weights and the state of their optimisers."""
        for row, (trainer, where) in enumerate(
            zip(self.trainers, self.positions, strict=True)
        ):
            trainer.first_moment.copy_(self.first_moment[row, where])
            trainer.second_moment.copy_(self.second_moment[row, where])
        for rows, count in self.blocks:
            for trainer in self.trainers[rows]:
                trainer.step_count.copy_(count)

    # ------------------------------------------------------------------ training

    def _train_epoch(self) -> None:
        """One pass of every model over its rows; records by member."""
        started = time.perf_counter()
        M, L, device = len(self.rows), self.latent_dim, self.X.device
        size, n_rows = self.trainers[0].batch_size, self.n_rows
        captured = can_capture(device, self.members[self.rows[0]])
        # In the order of a model alone: first its permutation, then its noise.
        order = torch.empty(M, n_rows, dtype=torch.int64)
        noise = torch.zeros(M, n_rows, L)
        for row, trainer in enumerate(self.trainers):
            order[row] = torch.randperm(n_rows, generator=trainer.generator)
            width = trainer.model.n_training_noise
            drawn = torch.cat([part[0] for part in trainer._noise(n_rows)])
            noise[row, :, :width] = drawn
        order += self.starts[self.rows, None]
        order, noise = order.to(device), noise.to(device)

        totals = torch.zeros(M, 3, device=device)
        mean_sum = torch.zeros(M, L, device=device)
        square_sum = torch.zeros_like(mean_sum)
        products = sum(t.weights.master.numel() for t in self.trainers) * size
        with training(device, products), torch.no_grad():
            for start in range(0, n_rows, size):
                rows = order[:, start : start + size]
                paces = [
                    trainer.pace(self.n_steps, self.total_steps[i])
                    for i, trainer in zip(self.rows, self.trainers, strict=True)
                ]
                rates = [rate for rate, _ in paces]
                weights = [
                    trainer.model.objective.kl_weight(progress)
                    for trainer, (_, progress) in zip(self.trainers, paces, strict=True)
                ]
                given = (
                    rows,
                    noise[:, start : start + size],
                    torch.tensor(weights, device=device)[:, None],
                )
                whole = captured and rows.shape[1] == size
                if whole and self.graph is None:
                    self.graph = Graph(self._gradient, *given)
                parts, mean = (self.graph if whole else self._gradient)(*given)
                self._update(rates, rows.shape[1])
                totals += parts
                mean_sum += mean.sum(1)
                square_sum += mean.square().sum(1)

        variance = square_sum / n_rows - (mean_sum / n_rows).square()
        active = (variance > ACTIVE_VARIANCE).sum(1).tolist()
        seconds = (time.perf_counter() - started) / M
        for row, trainer in enumerate(self.trainers):
            trainer.weights.master.copy_(self.master[row][self.positions[row]])
            loss, reconstruction, kl = trainer._means(totals[row], n_rows)
            self.epoch[self.rows[row]] = Record(
                epoch=trainer.n_epochs + 1,
                loss=loss,
                reconstruction=reconstruction,
                kl=kl,
                active_units=active[row],
                learning_rate=rates[row],
                seconds=seconds,
            )

    def _gradient(
        self, rows: Tensor, noise: Tensor, kl_weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write all gradients; returns sums of the losses (M, 3) and means (M, B, L).

        The chain rule of :class:`~skvae.gradients.ExplicitStep`, model by model.
        """
        if self.low is not None:
            self.low.copy_(self.master)
        M, B = rows.shape
        x = self.X.index_select(0, rows.reshape(-1)).view(M, B, -1)
        weights = None if self.weights is None else self.weights[rows]
        seen = self.likelihood.network_input(x).to(self.dtype)
        encoded = self.encoder.forward(seen).float()
        mean, log_variance = encoded.chunk(2, dim=-1)
        bounded = log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
        deviation = torch.exp(0.5 * bounded).mul_(noise)
        raw = self.decoder.forward((mean + deviation).to(self.dtype))
        expm1 = torch.expm1(bounded)
        kl = (mean.square() + expm1).sub_(bounded).sum(-1).mul_(0.5)
        reconstruction, slope = self._reconstruction(x, raw, weights)

        slope = self.decoder.backward(slope).float()
        slopes = torch.cat([mean, expm1.mul_(0.5)], dim=-1)
        if weights is not None:
            slopes.mul_(weights.unsqueeze(-1))
        by_noise = deviation.mul_(0.5).mul_(slope)
        slopes.mul_(kl_weight.unsqueeze(-1)).add_(torch.cat([slope, by_noise], dim=-1))
        slopes[..., mean.shape[-1] :].mul_(log_variance == bounded)
        self.encoder.backward(slopes.to(self.dtype), need_input=False)

        parts = torch.stack([reconstruction + kl_weight * kl, reconstruction, kl])
        if weights is not None:
            parts = parts * weights
        return parts.sum(-1).t(), mean

    def _reconstruction(
        self, x: Tensor, raw: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """-log p(x|z), (M, B), and the gradient of its weighted sums by ``raw``."""
        M, B, D = x.shape
        raw = raw.unflatten(-1, (D, -1))
        if not self.learned and not self.constants:
            # Every row is like any other, whichever model it belongs to.
            terms, slope, _ = self.likelihood.reconstruction_and_gradient(
                x.flatten(0, 1),
                raw.flatten(0, 1),
                None if weights is None else weights.flatten(),
            )
            return terms.view(M, B), slope.view(M, B, -1)
        with torch.enable_grad():
            raw = raw.requires_grad_()
            learned = {k: v.detach().requires_grad_() for k, v in self.learned.items()}

            def negative(x, raw, parameters):
                return -self.likelihood.log_prob(x, raw, **parameters)

            terms = torch.vmap(negative)(x, raw, {**learned, **self.constants})
            total = terms.sum() if weights is None else (terms * weights).sum()
            slope, *rest = torch.autograd.grad(total, [raw, *learned.values()])
        for name, gradient in zip(learned, rest, strict=True):
            self.learned_gradients[name].copy_(gradient)
        return terms.detach(), slope.flatten(-2)

    def _update(self, rates: Sequence[float], n_rows: int) -> None:
        """A step of Adam; see :meth:`skvae.engine.Trainer._update`."""
        scale = self.trainers[0].gradient_scale
        if n_rows != scale:
            self.gradient.mul_(scale / n_rows)
        for rows, count in self.blocks:
            adam_step(
                self.master[rows],
                self.gradient[rows],
                self.first_moment[rows],
                self.second_moment[rows],
                count,
                rates[rows.start],
                1e-8 * scale,
            )
        self.n_steps += 1


class _StackedLayers(Layers):
    """Linear layers of M models, weights (M, out, in), with their backward pass."""

    def __init__(self, values: list[Tensor], gradients: list[Tensor], tanh: bool):
        self.weights, self.biases = values[::2], values[1::2]
        self.weight_gradients, self.bias_gradients = gradients[::2], gradients[1::2]
        self.tanh = tanh
        self.inputs: list[Tensor] = []

    def affine(self, bias, x, weight):
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    def write_gradients(self, i, slope, x):
        self.weight_gradients[i].copy_(torch.bmm(slope.transpose(1, 2), x))
        self.bias_gradients[i].copy_(slope.sum(1))


def _explicit(trainer: Trainer) -> ExplicitStep:
    assert isinstance(trainer.gradient_step, ExplicitStep)
    return trainer.gradient_step


def same_rows(data: Data, other: Data) -> bool:
    """Whether two sets hold the same rows in the same order."""
    pairs = (
        (data.X, other.X),
        (data.weights, other.weights),
        (data.condition, other.condition),
    )
    return all(
        one is two or (one is not None and two is not None and torch.equal(one, two))
        for one, two in pairs
    )


def _linear(trainer: Trainer) -> list[nn.Linear]:
    network = trainer.model.network
    layers = (*network.encoder, *network.decoder)
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


def _shapes(trainer: Trainer) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for layer in _linear(trainer)]


def _views(buffer: Tensor, blocks: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The buffer (M, length) as arrays of shape (M, *block)."""
    sizes = [torch.Size(shape).numel() for shape in blocks]
    parts = buffer.split(sizes, dim=1)
    return [p.unflatten(1, shape) for p, shape in zip(parts, blocks, strict=True)]


def _positions(
    trainer: Trainer, blocks: Sequence[tuple[int, ...]], latent_dim: int
) -> Tensor:
    """Where in a row of the stack each weight of a trainer's flat buffer stands."""
    layers, own = _linear(trainer), trainer.model.latent_dim
    n_encoder = len(_explicit(trainer).encoder.weights)
    length = sum(torch.Size(shape).numel() for shape in blocks)
    views = _views(torch.arange(length).unsqueeze(0), blocks)
    where: dict[int, Tensor] = {}
    for i, layer in enumerate(layers):
        n_out, n_in = layer.weight.shape
        out, into = torch.arange(n_out), torch.arange(n_in)
        if i == n_encoder - 1:  # means, then log-variances
            out = torch.cat([torch.arange(own), latent_dim + torch.arange(own)])
        where[id(layer.weight)] = views[2 * i][0][out][:, into]
        where[id(layer.bias)] = views[2 * i + 1][0][out]
    learned = trainer.model.likelihood_parameters.values()
    for view, parameter in zip(views[2 * len(layers) :], learned, strict=True):
        where[id(parameter)] = view[0]
    return torch.cat([where[id(p)].flatten() for p in trainer.weights.parameters])
