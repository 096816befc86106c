"""The training loop of all tasks: trains, evaluates and saves each epoch; resumable at any step."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import send_to_device
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ..data.streaming import StreamedClips
from ..errors import CaeAvError
from ..modeling.collectives import without_contribution
from ..task import Task
from ..towers.frozen import trained_names
from .batches import ClipBatch, Collator, EpochBatches, clip_loader, fill_empty_batch, windows
from .captions import CaptionFeatures
from .checkpointing import CheckpointStore, restore_training_state
from .evaluation import evaluate
from .order import epoch_batches
from .recipe import Recipe
from .run_folder import RunFolder
from .schedule import build_optimizer, entropy_weight, learning_rate, set_learning_rate, step_in_backward
from .sharding import bare, full_tensor, is_sharded, plan_sharding, share_gradients
from .state import LoopState


class Trainer:
    """
    Trains `model` by a recipe with Accelerate, on one process or several.

    Args:
        model: A `CaeAvFor...` model: returns `loss` and `loss_dict`, both over the batch of all processes, and has a
            `loss_weights` dict and a method `start_epoch`.
        processor: Saved beside the model in every checkpoint.
        train_data, eval_data: Map-style data sets of processed clips, or [`StreamedClips`]. Items with a key
            `replaces` take the place of clips that cannot be decoded: they have no labels and are not evaluated.
        collator: Builds the model's inputs from a list of clips.
        captions: Precomputed features of the frozen text tower; without them the model encodes captions itself.
        describe: Called by the main process with the folder of each new best checkpoint once it is complete.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        model: Any,
        processor: Any,
        train_data: Any,
        eval_data: Any,
        collator: Collator,
        accelerator: Accelerator,
        run: RunFolder,
        captions: CaptionFeatures | None = None,
        describe: Callable[[Path, LoopState], None] | None = None,
    ) -> None:
        self.recipe, self.task, self.processor, self.collator = recipe, task, processor, collator
        self.train_data, self.eval_data, self.captions, self.describe = train_data, eval_data, captions, describe
        self.accelerator, self.run = accelerator, run
        trained = trained_names(model)
        # Frozen weights never differ between processes, so DDP need not send them.
        everything = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, everything - trained)
        if recipe.gradient_checkpointing:
            # Older versions of Transformers only have the second name.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        plan_sharding(accelerator, model, shard_towers=recipe.shard_towers)
        optimizer = build_optimizer(model, recipe, fused=not is_sharded(accelerator))
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        if recipe.optimizer_in_backward:
            if accelerator.distributed_type != DistributedType.NO:
                raise CaeAvError(
                    "recipe value 'optimizer_in_backward' needs a single process; several average gradients first"
                )
            step_in_backward(self.optimizer.optimizer)
        self.store = CheckpointStore(run.checkpoints, accelerator)
        # Only CAE-AV has this loss.
        self.full_entropy_weight = self.bare_model.loss_weights.get("entropy", 0.0)
        self.statistics = [
            buffer
            for name, buffer in self.bare_model.named_buffers()
            if name in trained and buffer.is_floating_point()
        ]
        source = getattr(train_data, "dataset", train_data)  # without the augmentation around it
        self.stream = source if isinstance(source, StreamedClips) else None
        self.num_rows = len(train_data) if self.stream is None else self.stream.num_rows
        self.state = LoopState(order=self._order())
        # One loader for all epochs keeps its workers alive; `self.batches` holds the batches of the running epoch.
        self.batches = EpochBatches()
        self.loader = clip_loader(
            train_data,
            self.batches,
            collator,
            num_workers=recipe.num_workers,
            prefetch_factor=recipe.prefetch_factor,
            pin_memory=accelerator.device.type == "cuda",
            persistent_workers=True,
        )

    @property
    def bare_model(self) -> Any:
        """The model without the wrappers of distributed training and `torch.compile`."""
        return bare(self.model, self.accelerator)

    def resume(self, checkpoint: Any, state: LoopState) -> None:
        """
        Resume from a checkpoint folder whose weights are already in the model.

        Raises:
            CaeAvError: It stopped inside an epoch, and this recipe would give that epoch another order of clips.
        """
        if state.clips_done and state.order != self._order():
            raise CaeAvError(
                f"{checkpoint}: stopped inside an epoch with {state.order}, but got {self._order()}; these can change "
                "only between epochs"
            )
        self.state = state
        self.state.order = self._order()
        self.store.average = restore_training_state(checkpoint, self.model, self.optimizer, self.accelerator)
        if self.accelerator.is_main_process:
            self.store.link_best(state)
            self._describe_best()
            if state.history:
                self.run.write_history(state.history)

    def fit(self) -> LoopState:
        """
        Train until the recipe's `epochs`, `max_steps` or `patience` is reached, and save the mean of the weights if
        the recipe has an `average_from_epoch`. Without epochs, evaluate and save the model as it is.

        Raises:
            CaeAvError: Too many steps in a row had no finite loss and gradient, or no clip can be decoded.
        """
        while not self._is_done():
            started = time.perf_counter()
            self._train_epoch()
            self._evaluate_and_save(started)
        # Without epochs, or resumed from the checkpoint of the last step, before the evaluation that follows it.
        if not self.state.history or self.state.history[-1]["step"] != self.state.step:
            self._end_epoch()
            self._evaluate_and_save(time.perf_counter())
        if self.state.averaged_epochs:
            self.store.save_average(self.model, self.processor, self.optimizer)
        if self.accelerator.is_main_process:
            self.run.draw_curves(self.state.history)
        return self.state

    def _is_done(self) -> bool:
        state, recipe = self.state, self.recipe
        out_of_steps = recipe.max_steps is not None and state.step >= recipe.max_steps
        out_of_patience = recipe.patience is not None and state.evaluations_since_best >= recipe.patience
        return state.epoch >= recipe.epochs or out_of_steps or out_of_patience

    def _order(self) -> dict[str, int]:
        """Return the values that the order of the clips depends on besides the epoch."""
        order = {"seed": self.recipe.seed, "clips": self.num_rows}
        if self.stream is not None:
            order |= {"shuffle_buffer": self.recipe.shuffle_buffer, "files": self.stream.rows.num_shards}
        return order

    @property
    def _clips_per_batch(self) -> int:
        """Number of clips in a batch over all processes."""
        return self.recipe.batch_size * self.accelerator.num_processes

    def _train_epoch(self) -> None:
        """Train to the end of the running epoch, or to `max_steps`."""
        state, recipe = self.state, self.recipe
        set_learning_rate(self.optimizer, recipe, state.epoch)
        if "entropy" in self.bare_model.loss_weights:
            self.bare_model.loss_weights["entropy"] = entropy_weight(recipe, self.full_entropy_weight, state.epoch)
        self.bare_model.start_epoch(state.epoch)
        self.model.train()
        # Start after the clips that were done before a resume, so that none of them is decoded again.
        if self.stream is not None:
            self.batches.current = self.stream.batches(recipe.batch_size, epoch=state.epoch, start=state.clips_done)
        else:
            self.batches.current = epoch_batches(
                self.num_rows,
                recipe.batch_size,
                seed=recipe.seed,
                epoch=state.epoch,
                process_index=self.accelerator.process_index,
                num_processes=self.accelerator.num_processes,
                groups=getattr(self.train_data, "groups", None),
                start=state.clips_done,
            )
        if hasattr(self.train_data, "set_epoch"):
            self.train_data.set_epoch(state.epoch)
        clips_per_step = self._clips_per_batch * recipe.accumulation_steps
        steps_left = math.ceil((self.num_rows - state.clips_done) / clips_per_step)
        with tqdm(
            total=state.clips_done // clips_per_step + steps_left,
            initial=state.clips_done // clips_per_step,
            desc=f"epoch {state.epoch + 1}/{recipe.epochs}",
            unit="step",
            disable=not self.accelerator.is_main_process,
        ) as progress:
            for window in windows(self.loader, recipe.accumulation_steps):
                now = state.epoch + state.clips_done / self.num_rows
                if recipe.min_learning_rate is not None:
                    set_learning_rate(self.optimizer, recipe, now)
                loss = self._step(window)
                state.step += 1
                progress.update()
                if loss is not None:
                    progress.set_postfix(loss=f"{loss:.4f}")
                    self.accelerator.log(
                        {"train/step_loss": loss, "learning_rate": learning_rate(recipe, now)}, state.step
                    )
                if recipe.save_steps and state.step % recipe.save_steps == 0:
                    self._save(self.store.new_name(state.step))
                if state.step == recipe.max_steps:
                    break
        self._end_epoch()

    def _end_epoch(self) -> None:
        """Count the running epoch if all its clips are done."""
        if self.state.clips_done >= self.num_rows:
            self.state.epoch += 1
            self.state.clips_done = 0

    def _step(self, window: list[ClipBatch]) -> float | None:
        """
        Take one optimizer step over the batches of a window. Each batch is spread over all processes.

        Returns:
            The mean loss over the clips, or `None` if the step was skipped.
        """
        accelerator, state = self.accelerator, self.state
        clip_counts = [[len(batch["indices"]), sum(batch["replaced"])] for batch in window]
        # (processes, batches, 2): every process has to know how many clips the others have.
        by_process = accelerator.gather(torch.tensor(clip_counts, device=accelerator.device)[None])
        clips_by_process = by_process[..., 0]
        clips_of_batch = clips_by_process.sum(0).tolist()
        clips = sum(clips_of_batch)
        state.clips_done = min(state.clips_done + len(window) * self._clips_per_batch, self.num_rows)
        state.dropped_clips += int(by_process[..., 1].sum())

        # Forward passes update the statistics of batch norm before it is known whether the step is skipped.
        statistics = [buffer.clone() for buffer in self.statistics]
        losses: list[tuple[int, dict[str, torch.Tensor]]] = []
        for number, batch in enumerate(window):
            if not clips_by_process[:, number].all():
                batch = fill_empty_batch(batch, int(clips_by_process[:, number].argmax()), accelerator)
            # Each process accumulates its gradients; the backward pass of the last batch averages them over processes.
            is_last = number == len(window) - 1
            accelerator.sync_gradients = is_last
            synchronise = nullcontext() if is_last else accelerator.no_sync(self.model)
            with synchronise, without_contribution(not batch["indices"]):
                inputs = batch["inputs"] if self.captions is None else self.captions.insert(batch["inputs"])
                inputs = self.task.inputs_in_training(inputs)
                outputs = self.model(**send_to_device(inputs, accelerator.device, non_blocking=True))
                # Checking the loss here waits for the device, so without `optimizer_in_backward` it is checked once
                # per step below. With it, the backward pass already changes the weights.
                if self.recipe.optimizer_in_backward and not outputs.loss.isfinite():
                    self._skip(statistics)
                    return None
                # The loss is the mean over the batch's clips on all processes. Weight it by the batch's share of the
                # clips, so that the gradients add up to the gradient of the mean over all clips of the window.
                accelerator.backward(outputs.loss * (clips_of_batch[number] / clips))
            parts = {"loss": outputs.loss, **(outputs.loss_dict or {})}
            losses.append((clips_of_batch[number], {name: part.detach() for name, part in parts.items()}))

        share_gradients(accelerator, self.bare_model)
        totals = _total(losses)
        loss = totals["loss"][0] / clips
        if not math.isfinite(loss) or not self._update():
            self._skip(statistics)
            return None
        self.model.zero_grad()
        state.skipped_in_a_row = 0
        state.loss_totals = _merge([state.loss_totals, totals])
        return loss

    def _update(self) -> bool:
        """Clip the gradient and step the optimizer; return `False` if the gradient was not finite."""
        accelerator = self.accelerator
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        limit = math.inf if self.recipe.max_grad_norm is None else self.recipe.max_grad_norm
        norm = full_tensor(accelerator.clip_grad_norm_(trained, limit))
        # With fp16, `optimizer.step()` skips the step itself and lowers the scale of the loss.
        if accelerator.scaler is None and not torch.isfinite(norm):
            return False
        self.optimizer.step()
        return not self.optimizer.step_was_skipped

    def _skip(self, statistics: list[torch.Tensor]) -> None:
        """Undo a step: drop its gradients and restore the earlier statistics of batch norm."""
        self.model.zero_grad()
        for buffer, before in zip(self.statistics, statistics, strict=True):
            buffer.copy_(before)
        self.state.skipped_steps += 1
        self.state.skipped_in_a_row += 1
        if self.state.skipped_in_a_row >= self.recipe.max_skipped_steps:
            raise CaeAvError(
                f"the loss or its gradient was not finite in {self.state.skipped_in_a_row} steps in a row, up to step "
                f"{self.state.step + 1} in epoch {self.state.epoch + 1}; lower learning_rate, set max_grad_norm, or "
                "use bf16 instead of fp16"
            )

    def _evaluate_and_save(self, started: float) -> None:
        """Evaluate, add a line to the history, and save a checkpoint, which becomes the best one if it scores best."""
        state, recipe, accelerator = self.state, self.recipe, self.accelerator
        metrics = evaluate(
            self.model,
            self.eval_data,
            self.collator,
            self.task,
            accelerator,
            batch_size=recipe.eval_batch_size,
            num_workers=recipe.num_workers,
            captions=self.captions,
            description=f"evaluating on {recipe.eval_split}",
        )
        # `max_steps` may end training inside an epoch. The partial epoch is recorded too, and its sums are kept for a
        # resumed run to add to.
        running = state.clips_done > 0
        last_epoch = max(0, state.epoch if running else state.epoch - 1)
        record: dict[str, Any] = {
            "epoch": state.epoch + running,
            "step": state.step,
            "learning_rate": learning_rate(recipe, last_epoch),
            "entropy_weight": entropy_weight(recipe, self.full_entropy_weight, last_epoch),
            **{f"train/{name}": value / clips for name, (value, clips) in state.loss_totals.items()},
            **{f"eval/{name}": value for name, value in metrics.items()},
            "train/dropped_clips": state.dropped_clips,
            "train/skipped_steps": state.skipped_steps,
            "seconds": round(time.perf_counter() - started, 3),
        }
        if not running:
            state.loss_totals, state.dropped_clips, state.skipped_steps = {}, 0, 0
        name = self.store.new_name(state.step)
        value = metrics[self.task.best_metric]
        if self.task.is_better(value, state.best_value):
            state.best_value, state.best_checkpoint, state.evaluations_since_best = value, name, 0
        else:
            state.evaluations_since_best += 1
        state.history.append(record)
        accelerator.log({key: value for key, value in record.items() if key != "step"}, state.step)
        if accelerator.is_main_process:
            self.run.write_history(state.history)
            loss = f"loss {record['train/loss']:.4f}, " if "train/loss" in record else ""
            tqdm.write(
                f"epoch {record['epoch']}, step {state.step}: {loss}"
                f"{recipe.eval_split} {self.task.best_metric} {value:.4f} (best {state.best_value:.4f})"
            )
        first = recipe.average_from_epoch
        is_averaged = first is not None and not running and state.epoch >= first
        state.averaged_epochs += is_averaged
        self._save(name, is_averaged)
        if name == state.best_checkpoint:
            self._describe_best()

    def _describe_best(self) -> None:
        best = self.store.folder / "best"
        if self.describe is not None and self.accelerator.is_main_process and best.exists():
            self.describe(best.resolve(), self.state)

    def _save(self, name: str, is_averaged: bool = False) -> None:
        self.store.save(self.model, self.processor, self.optimizer, self.state, name, is_averaged)


def _total(losses: list[tuple[int, dict[str, torch.Tensor]]]) -> dict[str, list[float]]:
    """Return the sum of each loss over clips and the number of clips, from (number of clips, batch means) pairs."""
    totals: dict[str, list[float]] = {}
    for clips, parts in losses:
        # One transfer for all losses of a batch.
        values = torch.stack([part.double() for part in parts.values()]).tolist()
        totals = _merge([totals, {name: [value * clips, clips] for name, value in zip(parts, values, strict=True)}])
    return totals


def _merge(all_totals: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    merged: dict[str, list[float]] = {}
    for totals in all_totals:
        for name, (value, clips) in totals.items():
            before = merged.get(name, [0.0, 0])
            merged[name] = [before[0] + value, before[1] + clips]
    return merged
