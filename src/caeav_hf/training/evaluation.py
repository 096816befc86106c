"""Score a model on all clips of a split. The result does not depend on the number of processes."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from tqdm import tqdm

from ..data.streaming import StreamedClips
from ..task import Task
from .batches import ClipBatch, Collator, clip_loader
from .captions import CaptionFeatures
from .order import ordered_batches
from .sharding import bare, gathered_parameters, is_sharded


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
    Return the metrics of `task` over a data set, and the numbers of clips that were scored (`clips`) and that could
    not be decoded (`dropped_clips`). All processes must call it and get the same result.

    Raises:
        DataError: No clip can be decoded.
    """
    # The shares of the processes may differ by a batch, so run the model without its wrappers: DDP would wait for the
    # other processes at every batch, and a compiled model would be compiled again for evaluation.
    model = bare(model, accelerator)
    whole_model = gathered_parameters(model, accelerator) if is_sharded(accelerator) else nullcontext()
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
    with torch.no_grad(), whole_model:
        for batch in tqdm(
            loader, desc=description, unit="batch", disable=not accelerator.is_main_process, leave=False
        ):
            _, sums = score_batch(
                model, batch, task, columns, accelerator.device, captions, getattr(dataset, "processor", None)
            )
            items = zip(batch["indices"], batch["replaced"], sums, strict=True)
            # The replacement of a clip that cannot be decoded is scored at its own index only.
            scored += [(index, clip) for index, is_replaced, clip in items if not is_replaced]
    model.train(was_training)
    if accelerator.num_processes > 1:
        scored = gather_object(scored)
    scored.sort(key=lambda item: item[0])
    metrics = task.scores([clip for _, clip in scored])
    return {**metrics, "clips": len(scored), "dropped_clips": len(dataset) - len(scored)}


def score_batch(
    model: torch.nn.Module,
    batch: ClipBatch,
    task: Task,
    columns: Mapping[str, Sequence[Any]],
    device: torch.device,
    captions: CaptionFeatures | None = None,
    processor: Any = None,
) -> tuple[Any, list[Any]]:
    """
    Run a model on a batch.

    Args:
        columns: The task's `row_columns` of all rows of the data set.
        captions: Features to insert for the captions; by default the model encodes them.
        processor: Processor of the data set, for metrics that read it.

    Returns:
        The outputs, and the metric's sums of each item.
    """
    inputs = batch["inputs"] if captions is None else captions.insert(batch["inputs"])
    inputs = send_to_device(inputs, device)
    outputs = model(**task.inputs_in_evaluation(inputs))
    of_rows = {name: [column[index] for index in batch["indices"]] for name, column in columns.items()}
    return outputs, task.sums(outputs, {**inputs, **of_rows}, processor)
