"""Export the checkpoint of a run to a folder for sharing, to ONNX, or to the Hub."""

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import __version__, exporting
from ..errors import CaeAvError
from ..files import atomic_folder, scratch_folder
from ..hub import check_name, read_config, upload
from ..task import get_task
from .build import build_processor, load_trained_model
from .card import LOCAL_NAME, space_files
from .run_folder import without_progress_bars


def best_checkpoint(path: str | Path) -> Path:
    """Return the best checkpoint of the run folder `path`, or `path` itself if it has none."""
    path = Path(path)
    best = path / "checkpoints" / "best"
    return best if (best / "config.json").is_file() else path


def export(
    source: str | Path,
    out: str | Path,
    *,
    adapter_only: bool = False,
    towers: Mapping[str, str] | None = None,
    merge_lora: bool = False,
) -> Any:
    """
    Write the model, processor and card of a checkpoint to a folder, without the training state.

    Args:
        source: Model folder, or run folder, whose best checkpoint is exported.
        out: Output folder, created if missing.
        adapter_only: Leave out the towers, see `CaeAvPreTrainedModel.save_pretrained`.
        towers: Where to load the towers from, see `CaeAvPreTrainedModel.from_pretrained`.
        merge_lora: Merge LoRA into the towers.

    Returns:
        The model.

    Raises:
        CaeAvError: There is no model, it cannot be written, or the source of a tower to leave out is unknown.
    """
    checkpoint, model_class = _find_model(source)
    if Path(out).resolve() == checkpoint.resolve():
        raise CaeAvError(f"{out}: is the checkpoint itself; choose another output folder")
    model = load_trained_model(model_class, checkpoint)
    processor = build_processor(model, checkpoint)
    if merge_lora:
        model.merge_lora()
    options = {"adapter_only": True, "towers": towers} if adapter_only else {}
    with atomic_folder(Path(out)) as folder:
        with without_progress_bars():
            model.save_pretrained(folder, **options)
        processor.save_pretrained(folder)
        if (checkpoint / "README.md").is_file():
            shutil.copyfile(checkpoint / "README.md", folder / "README.md")
    return model


def write_onnx(source: str | Path, file: str | Path, *, merge_lora: bool = False) -> float | None:
    """
    Export the model of a checkpoint to ONNX in float32, and compare their outputs.

    Args:
        source: Model folder, or run folder, whose best checkpoint is exported.
        file: Output file, see `exporting.export_onnx`.
        merge_lora: Merge LoRA into the towers.

    Returns:
        The largest difference, see `exporting.onnx_difference`; `None` if onnxruntime is not installed.

    Raises:
        CaeAvError: There is no model, a package is missing, the file cannot be written, or it differs too much.
    """
    exporting.check_packages()
    checkpoint, model_class = _find_model(source)
    model = load_trained_model(model_class, checkpoint).float().eval()
    if merge_lora:
        model.merge_lora()
    exporting.export_onnx(model, file)
    if find_spec("onnxruntime") is None:
        return None
    difference = exporting.onnx_difference(model, file)
    if not difference <= exporting.TOLERANCE:
        raise CaeAvError(
            f"{file}: differs from the model by {difference:.1e}, more than {exporting.TOLERANCE:.0e}: do not use it"
        )
    return difference


def _find_model(source: str | Path) -> tuple[Path, Any]:
    """Return the folder of a model, or of the best checkpoint of a run, and the model's class."""
    checkpoint = best_checkpoint(source)
    if not (checkpoint / "config.json").is_file():
        raise CaeAvError(f"{source}: is neither a model folder nor a run folder with checkpoints/best")
    config = read_config(checkpoint)
    return checkpoint, get_task(config.task, config.interaction).model_class


def push(
    source: str | Path,
    repo_id: str,
    *,
    adapter_only: bool = False,
    towers: Mapping[str, str] | None = None,
    merge_lora: bool = False,
    private: bool = False,
    space: str | None = None,
) -> list[str]:
    """
    Upload a model as written by [`export`], and optionally a Space that demonstrates it.

    Args:
        repo_id: Repository of the model, created if missing.
        private: Whether to create private repositories.
        space: Repository of the Space, created if missing: the page of `caeav app` for this model.

    Returns:
        The URLs of the commits.

    Raises:
        CaeAvError: As [`export`]; or a repository name is invalid, the towers of an adapter-only model are local
            folders, the task has no pipeline or no Space, or the Hub refuses the upload.
    """
    for name in (repo_id, *([] if space is None else [space])):
        check_name(name)
    with scratch_folder("caeav-push-") as temporary:
        folder = temporary / "model"
        model = export(source, folder, adapter_only=adapter_only, towers=towers, merge_lora=merge_lora)
        task = get_task(model.config.task)
        if space is not None and (task.pipeline_name is None or not task.card.has_space):
            raise CaeAvError(f"{space}: a Space needs a model whose task has a pipeline and a page, not {task.name}")
        _hide_paths(folder / "config.json", needed=adapter_only)
        card = folder / "README.md"
        if card.is_file():
            card.write_text(card.read_text(encoding="utf-8").replace(LOCAL_NAME, repo_id), encoding="utf-8")
        urls = [upload(folder, repo_id, "model", "Upload the model", private=private)]
        if space is not None:
            page = temporary / "space"
            page.mkdir()
            for name, text in space_files(repo_id, repo_id.split("/")[-1], __version__, task).items():
                (page / name).write_text(text, encoding="utf-8")
            urls.append(upload(page, space, "space", "Show the model", private=private, space_sdk="gradio"))
    return urls


def _hide_paths(path: Path, *, needed: bool) -> None:
    """Replace absolute paths of tower sources by folder names; raise if they are `needed` to load the model."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for kind, source in (config.get("tower_sources") or {}).items():
        if Path(source["name"]).is_absolute():
            if needed:
                raise CaeAvError(
                    f"the {kind} tower is in {source['name']}, which only this machine can load: name another source "
                    f"with --tower {kind}=NAME, or upload the model with its towers"
                )
            source["name"] = Path(source["name"]).name
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
