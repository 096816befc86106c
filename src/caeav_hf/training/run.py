"""Train by a recipe, resume an interrupted run, or score a checkpoint."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from ..data import CaeAvCollator
from ..data.shards import local_folder
from ..errors import CaeAvError
from .build import (
    augmented,
    build_accelerator,
    build_model,
    build_processor,
    check_classes,
    find_task,
    load_split,
    load_trained_model,
    may_leave_parameters_out,
    read_captions,
    read_class_names,
    read_question_tokenizer,
    undo_loading,
)
from .card import RunCard
from .checkpointing import find_checkpoint, read_loop_state
from .evaluation import evaluate
from .frozen_weights import compact_frozen_towers
from .loop import Trainer
from .recipe import Recipe
from .run_folder import RunFolder, environment
from .sharding import is_sharded
from .state import LoopState


# Dtypes of autocast by the names that recipes use.
PRECISIONS = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class TrainingResult:
    """The model after the last step (not the best one), its processor, the loop's state, and the run folder."""

    model: Any
    processor: Any
    state: LoopState
    folder: Path
    is_main_process: bool = True

    @property
    def best_checkpoint(self) -> Path:
        """Folder of the checkpoint that scored best on the evaluation split."""
        return self.folder / "checkpoints" / "best"


def train(recipe: Recipe, resume: str | Path | None = None) -> TrainingResult:
    """
    Train by a recipe.

    Args:
        recipe: `data` and `output_dir` are required.
        resume: Run folder, or a checkpoint in one, to resume from.

    Raises:
        CaeAvError: A recipe value or file is invalid; the message names it.
    """
    if recipe.output_dir is None:
        raise CaeAvError("recipe value 'output_dir' is missing; expected a folder for the run")
    checkpoint = None if resume is None else find_checkpoint(resume)
    task = find_task(recipe, checkpoint)
    run = RunFolder(recipe.output_dir)
    accelerator = build_accelerator(recipe, run.path)
    with accelerator.main_process_first():
        run.refuse_overwriting(resumed=checkpoint is not None)
    set_seed(recipe.seed)
    if checkpoint is None:
        question_tokenizer = read_question_tokenizer(recipe)
        model = build_model(recipe, read_class_names(recipe), question_tokenizer)
        processor = build_processor(model, recipe.model, question_tokenizer)
        model.name_classes(processor)
    else:
        model = load_trained_model(task.model_class, checkpoint)
        processor = build_processor(model, checkpoint)
        undo_loading(model, processor, checkpoint)
    train_data = load_split(recipe, recipe.train_split, processor, accelerator, shuffle=True, shots=recipe.shots)
    eval_data = load_split(recipe, recipe.eval_split, processor, accelerator)
    for data in (train_data, eval_data):
        check_classes(data, task, model, f"{recipe.data}")
    run.start(recipe, accelerator)
    if recipe.report_to:
        accelerator.init_trackers("caeav-hf", config=_flat(recipe))
    model.to(accelerator.device)
    if recipe.tower_cache is not None:
        if is_sharded(accelerator):
            raise CaeAvError("recipe value 'tower_cache' must be null with FSDP")
        model.base_model.use_tower_cache(recipe.tower_cache)
    captions = read_captions(
        model,
        processor,
        [train_data, eval_data],
        folder=_caption_folder(recipe),
        show_progress=accelerator.is_main_process,
    )
    # From here on random numbers are for dropout, which must differ between processes.
    set_seed(recipe.seed, device_specific=True)
    accelerator.ddp_handler.find_unused_parameters = may_leave_parameters_out(model, train_data)
    collator = CaeAvCollator(targets=task.targets)
    clips = augmented(train_data, recipe)
    card = RunCard(model, recipe, environment(accelerator), task.best_metric)
    trainer = Trainer(
        recipe, task, model, processor, clips, eval_data, collator, accelerator, run, captions, card.write
    )
    if checkpoint is not None:
        trainer.resume(checkpoint, read_loop_state(checkpoint))
    with ExitStack() as stack:
        stack.callback(accelerator.end_training)
        dtype = PRECISIONS[accelerator.mixed_precision]
        if not is_sharded(accelerator):
            frozen_file = trainer.store.keep_frozen(trainer.bare_model)
            model, reads_text = trainer.bare_model, not captions.features
            reads_text = reads_text or model.trains_through_text_tower
            stack.enter_context(compact_frozen_towers(model, frozen_file, dtype=dtype, reads_text=reads_text))
        if recipe.torch_compile is not None:
            trainer.bare_model.base_model.keep_constants(dtype or torch.float32)
        state = trainer.fit()
    if recipe.tower_cache is not None:
        trainer.bare_model.base_model.tower_cache = None
    return TrainingResult(trainer.bare_model, processor, state, run.path, accelerator.is_main_process)


def score(checkpoint: str | Path, recipe: Recipe, split: str) -> dict[str, float]:
    """
    Return the metrics of a model folder on a split of `recipe.data`.

    Raises:
        CaeAvError: The folder, the data set or the split is missing or does not fit the others.
    """
    task = find_task(recipe, checkpoint)
    accelerator = build_accelerator(recipe)
    model = load_trained_model(task.model_class, checkpoint)
    processor = build_processor(model, checkpoint)
    data = load_split(recipe, split, processor, accelerator)
    check_classes(data, task, model, f"{recipe.data}")
    model = accelerator.prepare_model(model, evaluation_mode=True)
    return evaluate(
        model,
        data,
        CaeAvCollator(targets=task.targets),
        task,
        accelerator,
        batch_size=recipe.eval_batch_size,
        num_workers=recipe.num_workers,
        captions=read_captions(
            model, processor, [data], folder=_caption_folder(recipe), show_progress=accelerator.is_main_process
        ),
        description=f"evaluating on {split}",
    )


def _caption_folder(recipe: Recipe) -> Path:
    """Return the folder that may hold stored caption features. A data set streamed from the Hub is not downloaded."""
    return Path(str(recipe.data)) if recipe.streaming else local_folder(str(recipe.data))


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe with values of types that every tracker supports."""
    values = recipe.to_dict()
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in values.items()}
