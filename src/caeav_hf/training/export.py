"""From the checkpoint of a run to a folder to give away."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ..configuration_cae_av import CaeAvConfig
from ..errors import CaeAvError
from .build import build_processor, load_trained_model
from .run_folder import without_progress_bars
from .tasks import get_task


def best_checkpoint(path: str | Path) -> Path:
    """`path` itself if it is a model folder, else the best checkpoint of the run folder `path`."""
    path = Path(path)
    best = path / "checkpoints" / "best"
    return best if (best / "config.json").is_file() else path


def export(
    source: str | Path, out: str | Path, *, adapter_only: bool = False, towers: Mapping[str, str] | None = None
) -> Any:
    """
    Write the model and the processor of a checkpoint to a folder, without what only training needs.

    Args:
        source: Model folder, or run folder, whose best checkpoint is taken.
        out: Folder, made if it is not there.
        adapter_only: Leave out the towers, see `CaeAvPreTrainedModel.save_pretrained`.
        towers: Where the towers are to be had, as there.

    Returns:
        The model.

    Raises:
        CaeAvError: There is no model, it cannot be written, or it cannot be told where its towers are to be had.
    """
    checkpoint = best_checkpoint(source)
    if not (checkpoint / "config.json").is_file():
        raise CaeAvError(f"{source}: is neither a model folder nor a run folder with checkpoints/best")
    try:
        task = CaeAvConfig.from_pretrained(checkpoint).task
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise CaeAvError(f"{checkpoint}: cannot be loaded as a model: {str(error).splitlines()[-1]}") from error
    if Path(out).resolve() == checkpoint.resolve():
        raise CaeAvError(f"{out}: is the checkpoint itself; choose another folder")
    model = load_trained_model(get_task(task).model_class, checkpoint)
    processor = build_processor(model, checkpoint)
    options = {"adapter_only": True, "towers": towers} if adapter_only else {}
    try:
        with without_progress_bars():
            model.save_pretrained(out, **options)
        processor.save_pretrained(out)
    except OSError as error:
        raise CaeAvError(f"{out}: cannot be written: {error}") from error
    return model
