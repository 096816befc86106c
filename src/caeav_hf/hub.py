"""Upload folders to the Hugging Face Hub, and look at the names and configurations of models."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from .errors import CaeAvError, reading
from .task import Task, get_task


def check_name(repo_id: str) -> None:
    """
    Check a repository name, before any work is done.

    Raises:
        CaeAvError: The name is not valid.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CaeAvError(f"{repo_id!r} is not a valid repository name: {error}") from error


def check_model(name: str | os.PathLike) -> None:
    """
    Check that a name is a model folder or could be one on the Hub, before the Hub is queried.

    Raises:
        CaeAvError: The folder has no model, or there is no such folder and the name is not of the form `NAME/MODEL`.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            best = path / "checkpoints" / "best"
            advice = f"; this is a run, whose best model is {best}" if best.is_dir() else ""
            raise CaeAvError(f"{name}: has no config.json; expected the folder of a model{advice}")
        return
    if str(name).count("/") != 1 or path.is_absolute() or str(name).startswith((".", "~")):
        raise CaeAvError(f"{name}: no such folder; expected the folder of a model, or its name on the Hub, NAME/MODEL")


def read_config(model: str | os.PathLike) -> Any:
    """
    Read the configuration of a saved model, which names its task and its method (`interaction`).

    Args:
        model: Model folder or Hub id.

    Raises:
        CaeAvError: There is no such model, or it is none of this package.
    """
    # Imported here since it takes seconds to load.
    from transformers import AutoConfig

    check_model(model)
    with reading(model, "a model"):
        config = AutoConfig.from_pretrained(model)
        get_task(config.task)
    return config


def read_config_and_task(model: str | os.PathLike) -> tuple[Any, Task]:
    """
    Read the configuration of a saved model, and return it with the task that it names.

    Args:
        model: Model folder or Hub id.

    Raises:
        CaeAvError: There is no such model, it is none of this package, or there is no pipeline for its task.
    """
    config = read_config(model)
    task = get_task(config.task, config.interaction)
    if task.pipeline_name is None:
        raise CaeAvError(f"{model}: there is no pipeline for its task, {task.name}")
    return config, task


def short_name(model: str | os.PathLike) -> str:
    """Return the last part of a model's path that says which one it is: `runs/a/checkpoints/best` is `a`."""
    parts = [part for part in Path(model).parts if part not in ("checkpoints", "best", os.sep, "..", ".")]
    return parts[-1] if parts else "model"


def upload(
    folder: Path,
    repo_id: str,
    repo_type: str,
    message: str,
    *,
    private: bool = False,
    only: list[str] | None = None,
    replacing: list[str] | None = None,
    **create: Any,
) -> str:
    """
    Upload a folder to a repository in one commit. The repository is created if needed.

    Args:
        folder: Folder to upload.
        repo_id, repo_type: Name and type of the repository.
        message: Commit message.
        private: Whether a newly created repository is private.
        only: Patterns of the files to upload; by default all.
        replacing: Patterns of the files that the commit deletes from the repository unless it uploads them.
        create: Further arguments of `HfApi.create_repo`.

    Returns:
        The URL of the commit.

    Raises:
        CaeAvError: The upload fails, for instance because no user is logged in.
    """
    check_name(repo_id)
    api = HfApi(library_name="caeav-hf")
    try:
        repo = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **create)
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=repo.repo_id,
            repo_type=repo_type,
            commit_message=message,
            allow_patterns=only,
            delete_patterns=replacing,
        )
    # A lost connection is an HTTPError, a missing login an OSError, and an error response of the Hub is both.
    except (HTTPError, OSError) as error:
        raise CaeAvError(f"{repo_id}: upload failed ({error}); expected a login with write access") from error
    return str(commit.commit_url)
