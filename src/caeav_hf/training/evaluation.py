"""Score a model on a split: once over all clips, the same on any number of processes."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from tqdm import tqdm

from ..data.streaming import StreamedClips
from ..task import Task
from .batches import Collator, clip_loader
from .captions import CaptionFeatures
from .order import ordered_batches
from .sharding import bare, gathered, is_sharded


def evaluate(
    model: torch.nn.Module,
    dataset: Any,
    collator: Collator,
    task: Task,
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int = 0,
    captions: CaptionFeatures | None = None,
    description: str = "evaluating",
) -> dict[str, float]:
    """
    The metrics of `task` over a data set, and `clips` and `dropped_clips`: how many were scored, how many could not
    be decoded. All processes call it together and get the same numbers.

    Raises:
        DataError: no clip can be decoded.
    """
    # Each process scores its own share and the shares may differ by a batch, so the bare model runs: the wrapper of
    # distributed training would wait for the others at every batch, and a compiled model would be compiled again.
    model = bare(model, accelerator)
    together = gathered(model, accelerator) if is_sharded(accelerator) else nullcontext()
    batches: Iterable[list[Any]]
    if isinstance(dataset, StreamedClips):
        batches = dataset.batches(batch_size)
    else:
        batches = ordered_batches(
            len(dataset),
            batch_size,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            groups=getattr(dataset, "groups", None),
        )
    pin_memory = accelerator.device.type == "cuda"
    loader = clip_loader(dataset, batches, collator, num_workers=num_workers, pin_memory=pin_memory)
    was_training = model.training
    model.eval()
    columns = {name: dataset.column(name) for name in task.row_columns}
    scored = []
    with torch.no_grad(), together:
        for batch in tqdm(
            loader, desc=description, unit="batch", disable=not accelerator.is_main_process, leave=False
        ):
            inputs = batch["inputs"] if captions is None else captions.insert(batch["inputs"])
            inputs = send_to_device(inputs, accelerator.device)
            outputs = model(**task.inputs_in_evaluation(inputs))
            of_rows = {name: [column[index] for index in batch["indices"]] for name, column in columns.items()}
            sums = zip(batch["indices"], batch["replaced"], task.sums(outputs, {**inputs, **of_rows}), strict=True)
            # What stands in for a clip that cannot be decoded is scored in its own place.
            scored += [(index, clip) for index, is_replaced, clip in sums if not is_replaced]
    model.train(was_training)
    if accelerator.num_processes > 1:
        scored = gather_object(scored)
    scored.sort(key=lambda item: item[0])
    metrics = task.scores([clip for _, clip in scored])
    return {**metrics, "clips": len(scored), "dropped_clips": len(dataset) - len(scored)}
