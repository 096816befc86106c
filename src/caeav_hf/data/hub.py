"""Uploading of a data set that a builder wrote to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from caeav_hf.errors import DataError


def ensure_can_push(repo_id: str, is_embedded: bool) -> None:
    """
    What can be said before anything is built.

    Raises:
        DataError: It is no name of a repository, or rows would refer to files that only this machine has.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise DataError(f"`push_to_hub`: {repo_id!r} is no name of a repository ({error})") from error
    if not is_embedded:
        raise DataError("`push_to_hub` needs `embed_media`: without it rows refer to files on this machine")


def push_folder(folder: Path, repo_id: str, is_private: bool = False) -> str:
    """
    Uploads the shards and the card in one commit, which also deletes shards that are no longer there; so whoever loads
    the set gets the old one or the new one. What an upload that was cut off has transferred is not sent again. The
    report stays here: it names folders of this machine.

    Args:
        folder: What a builder wrote, with embedded media.
        repo_id: Data set repository, made where it does not exist.
        is_private: Whether a repository that is made is private.

    Returns:
        The address of the commit.

    Raises:
        DataError: The Hub refuses, for instance since nobody is logged in.
    """
    api = HfApi(library_name="caeav-hf")
    try:
        repo = api.create_repo(repo_id, repo_type="dataset", private=is_private, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=repo.repo_id,
            repo_type="dataset",
            commit_message="Upload the data set",
            allow_patterns=["README.md", "data/*.parquet"],
            delete_patterns=["data/*.parquet"],
        )
    # A lost connection is an HTTPError of the client's, no login an OSError; what the Hub answers is both.
    except (HTTPError, OSError) as error:
        raise DataError(f"{repo_id}: upload failed ({error}); expected a login that may write to it") from error
    return str(commit.commit_url)
