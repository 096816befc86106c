"""Uploading to the Hugging Face Hub: a folder, in one commit."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from .errors import CaeAvError


def check_name(repo_id: str) -> None:
    """
    What can be said before anything is done.

    Raises:
        CaeAvError: It is no name of a repository.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CaeAvError(f"{repo_id!r} is no name of a repository: {error}") from error


def check_model(name: str | os.PathLike) -> None:
    """
    Say at once that a model folder is missing, before the Hub is asked for it.

    Raises:
        CaeAvError: There is no such folder, and it is no name of a repository, `NAME/MODEL`, either.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            best = path / "checkpoints" / "best"
            advice = f"; for the run in it, name {best}" if best.is_dir() else ""
            raise CaeAvError(f"{name}: has no config.json; expected the folder of a model{advice}")
        return
    if str(name).count("/") != 1 or path.is_absolute() or str(name).startswith((".", "~")):
        raise CaeAvError(f"{name}: no such folder; expected the folder of a model, or its name on the Hub, NAME/MODEL")


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
    Upload a folder to a repository, which is made where it does not exist.

    Args:
        private: Whether a repository that is made is private.
        only: Patterns of the files to upload; by default all.
        replacing: Patterns of the files in the repository that the same commit deletes, if they are not uploaded.
        create: Further arguments of `HfApi.create_repo`.

    Returns:
        The address of the commit.

    Raises:
        CaeAvError: The Hub refuses, for instance since nobody is logged in.
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
    # A lost connection is an HTTPError of the client's, no login an OSError; what the Hub answers is both.
    except (HTTPError, OSError) as error:
        raise CaeAvError(f"{repo_id}: upload failed ({error}); expected a login that may write to it") from error
    return str(commit.commit_url)
