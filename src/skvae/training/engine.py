"""The engine: trains a stack of M >= 1 models on arrays that lie on their device.

No DataLoader and no per-row Python: a batch is a slice of a permutation, noise and
permutation come from each training's own generator, all weights are one flat float32
buffer that a single fused Adam call updates.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .._compat import adam_step
from ..device import training as training_state
from ..fingerprint import fingerprint
from ..history import Record
from ..model import Batch
from .data import Data
from .step import ClosedFormStep, Graph, step_of, summed
from .training import DivergenceError, Options, Training, not_finite
from .weights import Weights, ordered, point_at

# A latent dimension is active where its posterior mean varies this much over the data
# (Burda et al., 2016).
ACTIVE_VARIANCE = 0.01


def stack_key(one: Training) -> tuple[object, ...]:
    """What trainings of one stack have in common.

    Networks of linear layers may differ in the widths of their layers: narrower ones
    stand in rows as long as the widest one's, where their missing units have weights of
    0, see nothing, pass nothing on, and stay 0.
    """
    module, data = one.module, one.data
    assert data is not None
    choices = one.start.choices
    common = (
        one.batch_size,
        one.gradient_scale,
        len(data),
        data.x.shape[1],
        tuple(data.parts),
        str(data.x.device),
        one.precision,
        fingerprint(choices.likelihood, choices.prior),
        one.start.labels.n_conditions,
    )
    if ClosedFormStep.applies_to(module):
        chains = module.network.chains()
        return (*common, len(chains.encoder), len(chains.decoder), chains.tanh)
    objective = choices.objective
    return (
        *common,
        fingerprint(choices.network, choices.prior, objective),
        one.start.architecture,
        one.total_steps if objective.follows_progress else 0,
    )


class Stack:
    """M >= 1 trainings of one ``stack_key``, step by step together.

    Each keeps its own learning rate, order of rows, noise and data, and gets what it
    would get alone, but for the rounding of sums. The weights of the trainings follow
    the stack's after every epoch, the moments when :meth:`release` is called.
    """

    def __init__(self, trainings: Sequence[Training]):
        self.n_steps = trainings[0].n_steps
        self.starts: Tensor
        # Equal learning rates side by side: one call of the optimiser for each.
        self.trainings = sorted(trainings, key=_rate)
        self._share_data()
        self._load()

    @staticmethod
    def fits(trainings: Sequence[Training]) -> bool:
        """Whether these can be one stack."""
        keys = {(stack_key(one), one.n_steps) for one in trainings}
        return len(trainings) > 0 and len(keys) == 1

    def keep(self, wanted: Sequence[Training]) -> None:
        """Train only these on."""
        left = [one for one in self.trainings if any(one is other for other in wanted)]
        if len(left) < len(self.trainings):
            self.release()
            self.starts = self.starts[
                [i for i, one in enumerate(self.trainings) if one in left]
            ]
            self.trainings = left
            if left:
                self._load()

    # ------------------------------------------------------------------ layout

    def _load(self) -> None:
        """Take the weights and moments of the trainings."""
        self.graph: Graph | None = None
        first = self.trainings[0]
        self.module = first.module
        M, device = len(self.trainings), first.master.device
        shapes = [
            tuple(map(max, *sizes)) if M > 1 else sizes[0]
            for sizes in zip(*(one.shapes for one in self.trainings), strict=True)
        ]
        n_network = sum(n.startswith("network.") for n in ordered(self.module))
        if M == 1:
            self.positions: list[Any] = [slice(None)]
            self.master = first.master[None]
            self.first_moment = first.first_moment[None]
            self.second_moment = first.second_moment[None]
        else:
            length = sum(torch.Size(shape).numel() for shape in shapes)
            L = max(one.module.latent_dim for one in self.trainings)
            self.positions = [
                _positions(one, shapes, L, device) for one in self.trainings
            ]
            self.master, self.first_moment, self.second_moment = (
                torch.zeros(M, length, dtype=torch.float32, device=device)
                for _ in range(3)
            )
            for row, (one, where) in enumerate(
                zip(self.trainings, self.positions, strict=True)
            ):
                self.master[row, where] = one.master
                self.first_moment[row, where] = one.first_moment
                self.second_moment[row, where] = one.second_moment
        self.weights = Weights(self.master, shapes, n_network, first.precision)
        self.step = step_of(self.module, self.weights, self._buffers())
        # Blocks of rows with one learning rate: what the optimiser updates at once.
        self.blocks: list[tuple[slice, list[Any], Tensor]] = []
        start = 0
        for _, group in groupby(self.trainings, key=_rate):
            rows = slice(start, start + len(list(group)))
            count = self.trainings[start].step_count
            buffers = [
                buffer[rows]
                for buffer in (
                    self.master,
                    self.weights.gradient,
                    self.first_moment,
                    self.second_moment,
                )
            ]
            self.blocks.append((rows, buffers, count.clone() if M > 1 else count))
            start = rows.stop
        norms = [one.options.max_gradient_norm for one in self.trainings]
        self.limits = None
        if any(norm is not None for norm in norms):
            known = [float("inf") if norm is None else norm for norm in norms]
            self.limits = torch.tensor(known, dtype=torch.float32, device=device)[
                :, None
            ]

    def _buffers(self) -> dict[str, Tensor]:
        """The buffers of all models by name, (M, ...) each."""
        if len(self.trainings) == 1:
            return {}
        named = [dict(one.module.named_buffers()) for one in self.trainings]
        return {name: torch.stack([one[name] for one in named]) for name in named[0]}

    def _share_data(self) -> None:
        """Hold each distinct data set once; note where it starts for each training."""
        distinct: list[Data] = []
        places = []
        for one in self.trainings:
            assert one.data is not None
            same = [i for i, other in enumerate(distinct) if one.data.equals(other)]
            places.append(same[0] if same else len(distinct))
            if not same:
                distinct.append(one.data)
        self.n_rows = len(distinct[0])
        self.starts = self.n_rows * torch.tensor(places)
        if len(distinct) == 1:
            self.data = distinct[0]
        else:
            joined = {
                name: torch.cat([data.parts[name] for data in distinct])
                for name in distinct[0].parts
            }
            self.data = Data(**joined)
        # None of them needs rows of its own any more.
        for one, start in zip(self.trainings, self.starts.tolist(), strict=True):
            one.data = Data(**self.data.take(slice(start, start + self.n_rows)))

    def release(self) -> None:
        """Give the trainings the state of their optimisers."""
        if len(self.trainings) <= 1:  # their own already, or none is left
            return
        for row, (one, where) in enumerate(
            zip(self.trainings, self.positions, strict=True)
        ):
            one.first_moment.copy_(self.first_moment[row, where])
            one.second_moment.copy_(self.second_moment[row, where])
        for rows, _, count in self.blocks:
            for one in self.trainings[rows]:
                one.step_count.copy_(count)

    # ------------------------------------------------------------------ training

    def epoch(self, *, scheduled: bool = True) -> list[Record]:
        """One pass of every model over its rows in a new order; their records.

        Without a schedule the end of the training is not in sight: the learning rate is
        as it is, and nothing warms up.
        """
        started = time.perf_counter()
        trainings, n_rows = self.trainings, self.n_rows
        M, device, size = len(trainings), self.data.x.device, trainings[0].batch_size
        # Of each model first the permutation, then the noise, as of a model alone.
        orders = [torch.randperm(n_rows, generator=o.generator) for o in trainings]
        order = orders[0] if M == 1 else torch.stack(orders) + self.starts[:, None]
        order = order.to(device)
        noise = trainings[0].noise(n_rows) if M == 1 else self._noise(size)
        L = max(one.module.latent_dim for one in trainings)
        totals = torch.zeros(M, 3, dtype=torch.float32, device=device)
        mean_sum = torch.zeros(M, L, dtype=torch.float32, device=device)
        square_sum = torch.zeros_like(mean_sum)
        if scheduled:
            paces = list(zip(*(o.paces(self.n_steps) for o in trainings), strict=True))
        else:
            pace = tuple((o.options.learning_rate, 1.0) for o in trainings)
            paces = [pace] * trainings[0].steps_per_epoch

        self.weights.follow()
        if M == 1:
            point_at(self.module, self.weights.values)
        products = self.master.numel() * size
        with training_state(device, products), torch.no_grad():
            for rows, drawn, pace in zip(
                order.split(size, dim=-1), noise, paces, strict=True
            ):
                parts, mean = self._gradient(rows, drawn, pace)
                self._update([rate for rate, _ in pace], rows.shape[-1])
                totals += parts
                mean_sum += mean.sum(-2)
                square_sum += mean.square().sum(-2)
        self.n_steps += len(paces)
        if M == 1:
            point_at(self.module, trainings[0].views)

        variance = square_sum / n_rows - (mean_sum / n_rows).square()
        active = (variance > ACTIVE_VARIANCE).sum(1).tolist()
        seconds = (time.perf_counter() - started) / M
        records = {}
        for row, one in enumerate(trainings):
            if M > 1:
                one.master.copy_(self.master[row][self.positions[row]])
            loss, reconstruction, kl = one.means(totals[row], n_rows)
            records[id(one)] = Record(
                epoch=one.n_epochs + 1,
                loss=loss,
                reconstruction=reconstruction,
                kl=kl,
                active_units=active[row],
                learning_rate=paces[-1][row][0],
                seconds=seconds,
            )
        return [records[id(one)] for one in trainings]

    def _noise(self, size: int) -> Iterator[Tensor]:
        """Noise of each batch of all models in turn, (M, S, batch, n_noise)."""
        width = max(one.module.n_training_noise for one in self.trainings)
        draws = self.module.objective.n_draws
        noise = torch.zeros(
            (len(self.trainings), draws, self.n_rows, width),
            dtype=torch.float32,
            device=self.data.x.device,
        )
        for row, one in enumerate(self.trainings):
            own = one.module.n_training_noise
            drawn = torch.cat(list(one.noise(self.n_rows)), dim=1)
            noise[row, :, :, :own] = drawn
        yield from noise.split(size, dim=2)

    def _gradient(
        self, rows: Tensor, noise: Tensor, pace: Sequence[tuple[float, float]]
    ) -> tuple[Tensor, Tensor]:
        """Write all gradients; sums of the losses (M, 3) and means ([M,] B, L)."""
        if isinstance(self.step, ClosedFormStep) and len(pace) > 1:
            weights = [
                one.module.objective.kl_weight(progress)
                for one, (_, progress) in zip(self.trainings, pace, strict=True)
            ]
            kl_weight = torch.tensor(weights, dtype=torch.float32, device=rows.device)[
                :, None
            ]
            whole = rows.shape[-1] == self.trainings[0].batch_size
            if can_capture(rows.device, self.step) and whole:
                if self.graph is None:
                    self.graph = Graph(self._at_kl_weight, rows, noise, kl_weight)
                return self.graph(rows, noise, kl_weight)
            return self._at_kl_weight(rows, noise, kl_weight)
        return self._losses(rows, noise, pace[0][1])

    def _at_kl_weight(
        self, rows: Tensor, noise: Tensor, kl_weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self._losses(rows, noise, 1.0, kl_weight=kl_weight)

    def _losses(
        self, rows: Tensor, noise: Tensor, progress: float, **options: Any
    ) -> tuple[Tensor, Tensor]:
        batch = Batch(
            noise=noise,
            n_rows=self.n_rows,
            progress=progress,
            **self.data.take(rows),
        )
        losses = self.step(batch, **options)
        return summed(losses, batch.weights), losses.mean

    def _update(self, rates: Sequence[float], n_rows: int) -> None:
        """One step of Adam from the gradients of sums over so many rows.

        Adam does not see the scale of a gradient, but for its epsilon: instead of the
        gradient, epsilon is multiplied, by the rows of a full batch. A short batch is
        brought to the same scale, so that each step follows the mean of its rows.
        """
        scale = self.trainings[0].gradient_scale
        gradient = self.weights.collect()
        if n_rows != scale:
            gradient.mul_(scale / n_rows)
        if self.limits is not None:
            norms = gradient.norm(dim=1, keepdim=True) + 1e-12
            gradient.mul_((scale * self.limits / norms).clamp(max=1.0))
        for rows, buffers, count in self.blocks:
            master, slope, first, second = buffers
            rate = rates[rows.start]
            adam_step(master, slope, first, second, count, rate, 1e-8 * scale)
        self.weights.follow()


def _rate(one: Training) -> tuple[float, str, int]:
    """What trainings have in common whose learning rates are equal at every step."""
    options = one.options
    total = 0 if options.schedule == "constant" else one.total_steps
    return options.learning_rate, options.schedule, total


def _positions(
    one: Training, shapes: Sequence[tuple[int, ...]], latent_dim: int, device: Any
) -> Any:
    """Where in a row of a stack each weight of a training stands."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    if one.shapes == list(shapes):
        return slice(None)
    chains, own = one.module.network.chains(), one.module.latent_dim
    n_encoder, n_layers = len(chains.encoder), len(chains.encoder + chains.decoder)
    places = torch.arange(sum(sizes)).split(sizes)
    where = []
    for i, (place, shape, mine) in enumerate(
        zip(places, shapes, one.shapes, strict=True)
    ):
        block = place.view(shape)
        layer = i // 2
        if layer >= n_layers:
            where.append(block)
            continue
        out = torch.arange(mine[0])
        if layer == n_encoder - 1:  # means, then log-variances
            out = torch.cat([torch.arange(own), latent_dim + torch.arange(own)])
        block = block[out]
        if len(mine) == 2:
            into = torch.arange(mine[1])
            if layer == n_encoder:  # z, then the condition
                into = torch.cat([into[:own], latent_dim + into[: mine[1] - own]])
            block = block[:, into]
        where.append(block)
    return torch.cat([block.flatten() for block in where]).to(device)


def can_capture(device: torch.device, step: Any) -> bool:
    """Whether the gradients of a stack may be captured as a CUDA graph.

    A graph replays fixed addresses and shapes: it takes a GPU, batches of one size
    (a shorter last one runs eagerly), and nothing that draws or asks on the way.
    """
    return device.type == "cuda" and isinstance(step, ClosedFormStep)


def train_stack(
    trainings: Sequence[Training],
) -> Generator[list[Training], None, None]:
    """Train until all have ended; they must fit into one stack.

    Yields
    ------
    list of Training
        Those that have just finished an epoch. Who sets the ``result`` of one of them
        takes it out of the stack.
    """
    active = [one for one in trainings if not one.ended]
    if not active:
        return
    stack = Stack(active)
    try:
        while active:
            for one in active:
                one.begin_epoch()
            for one, record in zip(stack.trainings, stack.epoch(), strict=True):
                one.end_epoch(record)
            yield active
            active = [one for one in active if not one.ended]
            stack.keep(active)
    finally:
        stack.release()
        for one in trainings:
            point_at(one.module, one.views)


def pass_over(training: Training, data: Data, options: Options) -> Record:
    """Train for one epoch on other rows, after which the model is usable.

    Raises
    ------
    DivergenceError
        If the loss or a weight is no longer finite; the weights are then those
        from before, as they are after any other exception.
    """
    training.data, training.options = data, options
    before = training.state()
    try:
        (record,) = Stack([training]).epoch(scheduled=False)
        if not training.is_finite(record):
            raise DivergenceError(not_finite(record))
    except BaseException:
        training.restore(before)
        point_at(training.module, training.views)
        raise
    training.n_epochs = record.epoch
    training.n_steps += training.steps_per_epoch
    training.records.append(record)
    training.best.weights.copy_(training.master)
    training.best.epoch = record.epoch
    return record
