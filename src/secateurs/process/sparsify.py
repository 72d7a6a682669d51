"""Train under masks: prune single weights, and splice back those that were cut by mistake."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..batches import Loss, Objective, check_loss
from ..errors import FileError
from ..files.store import check_state, fill_state
from ..plan import Plan
from ..sparse.masks import Masks
from ..sparse.saliency import Saliency, find_saliency
from ..sparse.splicing import layers_of, standing, statistics
from ..sparse.targets import Pool, Sparsity, Target, chosen, make_pools, reading_axes
from .mask_checkpoint import MaskCheckpoint
from .options import SparsifyOptions, validated
from .run import Callback, Evaluate, Hooks, Run
from .sparsify_result import SparsifyResult
from .stream import seed_update
from .training import OptimizerFactory, SchedulerFactory, Trainer

log = logging.getLogger("secateurs")

Judge: TypeAlias = str | Saliency | Callable[[Tensor, Tensor], Tensor]


def sparsify(
    model: nn.Module,
    example_inputs: Any,
    *,
    train: Iterable[Any],
    compression: float | None = None,
    sparsity: Sparsity | None = None,
    pattern: str | None = None,
    thresholds: Mapping[str, float] | None = None,
    loss: Loss | None = None,
    objective: Objective | None = None,
    saliency: Judge = "magnitude",
    masks: Masks | None = None,
    evaluate: Evaluate | None = None,
    metric: str = "metric",
    mode: Literal["max", "min"] = "max",
    optimizer: OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    callbacks: Sequence[Callback] = (),
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> SparsifyResult:
    """Prune single weights of a trained network while it is trained on, and splice some back.

    The forward pass sees w⊙T, with a mask T of zeros and ones for each weight and bias, and the
    gradient goes straight through to all w. From time to time the masks change: a weight goes
    where its saliency is at most 0.9 t, and comes back where it is above 1.1 t.

    Say what to reach by exactly one of `compression`, `sparsity`, `pattern` and `thresholds`. For
    the first two, the thresholds are found on the way, with one c for all layers in
    t = max(μ + c·σ, 0), where μ and σ are those of each layer's own saliencies.

    Args:
        model: the trained model; it is left untouched.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        train: batches, read again and again: a DataLoader or a list. Pairs (input, target) for
            `loss`, anything for `objective`.
        compression: parameters of the network / those that are left, such as 108.
        sparsity: the fraction of the parameters that goes; or pattern of layers -> the fraction of
            each such layer, and other layers are left whole.
        pattern: 'n:m', at most n of every m neighbours along what a weight reads, such as '2:4'.
        thresholds: pattern of layers -> c, as in the paper; other layers are left whole.
        loss: loss(output, target) -> one value per example, or the mean over the examples.
        objective: objective(model, batch) -> the same, in place of `loss`.
        saliency: what decides which weights go: a name, a function (weight, gradient) -> one
            number per weight, or a `Saliency`; see `secateurs.sparse.saliency`.
        masks: what to start from, such as the masks of an earlier run; by default all is kept.
        evaluate: evaluate(model) -> the metric, every `evaluate_every` updates; called with the
            masks on, in eval mode, without gradients.
        metric, mode: its name, and whether more ('max') or less ('min') is better.
        optimizer: parameters -> torch optimizer. SGD with momentum by default.
        scheduler: (optimizer, updates of the whole run) -> scheduler, stepped after every update.
        callbacks: called with (record, model) after every evaluation, with the masks on.
        out: a directory that gets an atomic checkpoint after every evaluation.
        resume: go on from the checkpoint in `out`, if there is one, to the same result.
        progress: show live progress.
        **options: see `secateurs.process.options.SparsifyOptions`.

    Returns:
        The model with zeros for what is gone, its masks and the history. Ctrl-C stops at the next
        safe point and returns what is done.

    Raises:
        BudgetError: none or several of the targets are given, or it is malformed or out of reach.
        ConfigError: an option is wrong, or a pattern matches no layer.
        DataError: the data or the loss cannot be used.
        MaskError: there is nothing to mask, or `masks` are of another model.
        NotFiniteError: the loss was not finite before anything was evaluated.
        TraceError: the model does not run on the example inputs.
        FileError: the checkpoint in `out` is broken, or of another run.

    Source: Guo, Yao, Chen, Dynamic Network Surgery for Efficient DNNs (2016); the way to the target
    is that of Zhu, Gupta, To prune, or not to prune (2017).

    >>> import torch, secateurs as sc
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> x, y = torch.randn(32, 4), torch.randint(2, (32,))
    >>> result = sc.sparsify(
    ...     net, x, train=[(x, y)], loss=torch.nn.CrossEntropyLoss(),
    ...     compression=4, updates=20, progress=False)
    >>> result.masks.kept, result.masks.total, result.stopped
    (28, 114, 'done')
    """
    run = SparsifyRun(
        model,
        example_inputs,
        Target(compression, sparsity, pattern, thresholds),
        find_saliency(saliency),
        validated(SparsifyOptions, options),
        Hooks(loss, objective, evaluate, metric, mode, tuple(callbacks)),
        out,
        resume=resume,
        masks=masks,
    )
    check_loss(loss, objective)
    run.start(Trainer(run.model, train, loss, objective, optimizer, scheduler, run.options))
    return run.go(progress=progress, way="of the updates")


class SparsifyRun(Run[SparsifyOptions, MaskCheckpoint, SparsifyResult]):
    """One run: the dense weights, the masks, and everything that the next update depends on."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        target: Target,
        saliency: Saliency,
        options: SparsifyOptions,
        hooks: Hooks,
        out: str | Path | None,
        *,
        resume: bool,
        masks: Masks | None,
    ):
        super().__init__(model, example_inputs, options, hooks, out, resume=resume)
        self.saliency = saliency
        alone = target.thresholds is not None or not saliency.needs
        self.standard = {"auto": alone, "standard": True, "none": False}[options.normalize]
        whole = Masks.full(model) if masks is None else masks.to("cpu").of(model)
        names = chosen(whole, target, options)
        axes, self.left = reading_axes(self.graph, whole, names, target)
        names = [name for name in names if name not in self.left]
        self.masks = Masks.full(model, names) if masks is None else whole
        self.pools = make_pools(self.masks, names, target, options, axes)
        self.update = 0
        self.terms: dict[str, tuple[float, float]] = {}
        self.losses: list[float] = []
        self.changes: list[dict[str, Any]] = []
        self.good: tuple[dict[str, Tensor], Masks, int, int] | None = None
        self.settings = {
            **target.settings(),
            "saliency": saliency.name,
            "metric": hooks.metric,
            "mode": hooks.mode,
            **options.model_dump(mode="json"),
        }
        for name, why in self.left.items():
            log.warning("%s is left dense: %s", name, why)

    @property
    def whole(self) -> int:
        """All weight updates of the run."""
        return self.options.warmup + self.options.updates

    # ------------------------------------------------------------------ the loop
    def proceed(self) -> None:
        """See `Run.proceed`."""
        self.masks = self.masks.to(self.trainer.device)
        self.trainer.weights = lambda: self.masks.applied(self.model)
        if not self.history:
            self._record(time.perf_counter())
            self.checkpoint()
        while not self.stopped:
            self._advance()

    def _advance(self) -> None:
        """Update the weights up to the next evaluation, and write down what came of it."""
        started, every = time.perf_counter(), self.options.evaluate_every
        if self.update == self.history[-1]["update"]:  # else it is older, and was restored
            self.good = (self._copy(), self.masks.to("cpu"), self.update, len(self.history))
        until = min(self.whole, (self.update // every + 1) * every)
        self.meter.phase("updating weights", until - self.update)
        self.trainer.train(
            until - self.update, self._before_update, done=self.update, of=self.whole
        )
        self.losses += self.trainer.losses
        if not self.stopped:
            if not self.options.updates and self.update == self.whole:
                # no update follows the warm-up that would look at the masks before it
                self._change(self.pools, 0)
            self._record(started)
            if self.below_floor():
                self.revert()
                self.stopped = "floor"
            elif self.update == self.whole:
                self.stopped = "done"
            self.finished = bool(self.stopped)
        self.checkpoint()

    def _before_update(self) -> bool:
        if self.asked():
            return False
        # so that every update is a safe point
        seed_update(self.trainer.device, self.options.seed, 2, self.update)
        since = self.update - self.options.warmup
        pools = [pool for pool in self.pools if self._due(pool, since)]
        if pools:
            self._change(pools, since)
        self.update += 1
        self.meter.advance()
        return True

    def _due(self, pool: Pool, update: int) -> bool:
        """Whether the masks of a pool may change before an update; at the target they must."""
        options, since = self.options, update - pool.begin
        if not pool.begin <= update <= pool.stop or update == pool.ramped:
            return update == pool.ramped
        chance = (1 + options.gamma * since) ** -options.power
        drawn = np.random.default_rng((options.seed, 5, update)).random()
        return since % options.every == 0 and bool(drawn < chance)

    # ------------------------------------------------------------------ masks
    @torch.no_grad()
    def _change(self, pools: Sequence[Pool], update: int) -> None:
        """Let weights go and come back."""
        options = self.options
        found = self._saliencies([name for pool in pools for name in pool.names])
        terms = self._terms(found)
        new: dict[str, Tensor] = {}
        for pool in pools:
            stand = {
                name: standing(found[name], self.masks[name], options.band, splice=options.splice)
                for name in pool.names
            }
            new |= pool.rule.choose(stand, terms, pool.done(update, options.schedule))
        pruned, spliced = self._put(new)
        kept = self.masks.kept_by_layer()
        self.changes.append(
            {
                "update": self.update,
                "pruned": pruned,
                "spliced": spliced,
                "kept": sum(kept.values()) + self.masks.beside,
                "layers": kept,
            }
        )

    def _put(self, new: dict[str, Tensor]) -> tuple[int, int]:
        """Put masks in place; what shares one is kept where all keep it. How many go and come."""
        old = {name: self.masks[name] for name in new}
        agreed: dict[int, Tensor] = {}
        for name, mask in new.items():
            agreed[id(old[name])] = agreed.get(id(old[name]), mask) & mask
        for name in new:
            self.masks.set(name, agreed[id(old[name])])
        pairs = [(old[name], self.masks[name]) for name in new]
        gone = sum(int((before & ~after).sum()) for before, after in pairs)
        return gone, sum(int((after & ~before).sum()) for before, after in pairs)

    def _saliencies(self, names: list[str]) -> dict[str, Tensor]:
        """Of the dense weights, in the masked network."""
        self.trainer.settle()
        dense = {name: p.data for name, p in self.model.named_parameters() if name in set(names)}
        if not self.saliency.needs:
            return self.saliency.of(self.model, names, weights=dense)
        with torch.enable_grad(), self.masks.applied(self.model):
            found = self.saliency.of(
                self.model,
                names,
                self.trainer.drawn(self.options.score_batches),
                loss=self.hooks.loss,
                objective=self.hooks.objective,
                weights=dense,
            )
        return {name: self.trainer.mean(values) for name, values in found.items()}

    def _terms(self, found: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
        """What makes the saliencies of layers comparable: their mean and deviation, or nothing."""
        if not self.standard:
            return dict.fromkeys(layers_of(found), (0.0, 1.0))
        if self.options.statistics == "now":
            return statistics(found)
        if layers_of(found).keys() - self.terms.keys():
            self.terms = {**statistics(found), **self.terms}
        if not all(self.terms[layer][1] for layer in layers_of(found)):
            return statistics(found)  # a layer that started from zeros says nothing: all anew
        return self.terms

    # ------------------------------------------------------------------ keeping track
    def _record(self, started: float) -> None:
        kept = self.masks.kept
        facts = {
            "update": self.update,
            "kept": kept,
            "compression": self.masks.total / max(kept, 1),
            "layers": self.masks.kept_by_layer(),
            "pruned": sum(change["pruned"] for change in self.changes),
            "spliced": sum(change["spliced"] for change in self.changes),
            "changes": self.changes,
        }
        loss = float(np.mean(self.losses)) if self.losses else float("nan")
        self.losses, self.changes = [], []
        self.record(facts, loss, started)

    def show(self) -> None:
        """See `Run.show`."""
        last = self.history[-1]
        note = (
            f"update {last['update']}: {last['kept']:,} of {self.masks.total:,} kept "
            f"({last['compression']:.1f}×), −{last['pruned']:,} +{last['spliced']:,}"
            f"{self.told_metric()}"
        )
        self.meter.way(self.update / max(self.whole, 1), note)

    def _copy(self) -> dict[str, Tensor]:
        """The state of the model, kept in the memory of the host."""
        return {name: t.detach().to("cpu", copy=True) for name, t in self.state().items()}

    def revert(self) -> bool:
        """Go back to the last evaluation."""
        if self.good is None:
            return False
        state, masks, self.update, length = self.good
        fill_state(self.model, state)
        self.masks = masks.to(self.trainer.device)
        del self.history[length:]
        self.losses, self.changes = [], []
        return length > 1  # before that, there is nothing to keep

    # ------------------------------------------------------------------ checkpoints
    def load(self, directory: Path) -> MaskCheckpoint:
        """See `Run.load`."""
        return MaskCheckpoint.load(directory)

    def write(self, out: Path) -> None:
        """See `Run.write`."""
        tensors, numbers = self.trainer.optimizer_state()
        older = self.update > self.history[-1]["update"] and self.good
        MaskCheckpoint(
            update=self.update,
            model=self.state(),
            masks=self.masks.to_tensors(),
            good=older[0] if older else {},
            good_masks=older[1].to_tensors() if older else {},
            optimizer=tensors,
            numbers=numbers,
            place=self.trainer.stream.place,
            history=self.history,
            settings=self.settings,
            terms=self.terms,
            losses=self.losses,
            changes=self.changes,
            stopped=self.stopped,
            finished=self.finished,
        ).save(out)

    def restore(self, saved: MaskCheckpoint) -> None:
        """See `Run.restore`.

        Raises:
            FileError: it belongs to another model.
        """
        check_state(self.original, Plan({}, {}, {}), saved.model, self.out, loose=True)
        masks, last = self._unpacked(saved.masks), saved.history[-1]["update"]
        if saved.update > last:
            check_state(self.original, Plan({}, {}, {}), saved.good, self.out, loose=True)
            self.good = (saved.good, self._unpacked(saved.good_masks), last, len(saved.history))
        self.masks = masks
        fill_state(self.model, saved.model)
        self.trainer.restore_optimizer(saved.optimizer, saved.numbers)
        self.trainer.stream.seek(*saved.place)
        self.update, self.history, self.terms = saved.update, saved.history, saved.terms
        self.losses, self.changes = saved.losses, saved.changes
        self.finished, self.stopped = saved.finished, saved.stopped if saved.finished else ""

    def _unpacked(self, tensors: dict[str, Tensor]) -> Masks:
        """The masks of a checkpoint; what shares one here does so there."""
        read, masks = Masks.from_tensors(tensors, self.original), self.masks.to("cpu")
        if read.keys() != masks.keys():
            raise FileError(f"the checkpoint in {self.out} has masks of other parameters")
        for name, mask in read.items():
            masks.set(name, mask)
        return masks

    def result(self) -> SparsifyResult:
        """See `Run.result`."""
        dense = {name: p.detach().clone() for name, p in self.model.named_parameters()
                 if name in self.masks}  # fmt: skip
        for mine, theirs in zip(self.model.modules(), self.original.modules(), strict=True):
            mine.training = theirs.training
        return SparsifyResult(
            model=self.masks.bake(self.model),
            masks=self.masks,
            history=self.history,
            stopped=self.stopped,
            settings=self.settings,
            left=self.left,
            dense=dense,
            example_inputs=self.trainer.to_device(self.example_inputs),
        )
