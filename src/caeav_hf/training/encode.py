"""Compute the features of every caption of a data set once and store them in its folder."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch
from tqdm import tqdm

from ..data.caption_file import open_texts, text_batches
from ..data.store import claim
from ..devices import default_device
from ..errors import CaeAvError, DataError
from ..files import make_folder
from ..hub import read_config
from ..processing import clean_caption
from ..task import get_task
from .build import build_processor, caption_token_ids, load_trained_model
from .caption_features import CaptionFeatureStore, feature_folder, text_tower_identity
from .captions import CaptionFeatures


# Number of captions held in memory and written to one file.
_CAPTIONS_PER_FILE = 2048


def encode_captions(
    data: str | Path,
    model: str | Path,
    *,
    device: str | None = None,
    dtype: str = "float32",
    show_progress: bool = False,
) -> tuple[CaptionFeatureStore, int]:
    """
    Store the features of all captions of a data set that the model's task reads. Only missing ones are computed, so it
    is safe to run again.

    Args:
        data: Folder written by a builder.
        model: Model folder or Hub id whose text tower is used.
        device: Defaults to the first accelerator, else the CPU.
        dtype: Dtype of the stored features. With float32, training gives the same results as without them.
        show_progress: Whether to show a progress bar.

    Returns:
        The store, and the number of captions added to it.

    Raises:
        CaeAvError: The model cannot be loaded, or the data set has no captions.
        DataError: `data` was not written by a builder, or another process is storing features of this tower there.
    """
    config = read_config(model)
    task = get_task(config.task, config.interaction)
    texts = _captions(Path(data), task.captions)
    trained = load_trained_model(task.model_class, model)
    processor = build_processor(trained, model)
    identity = text_tower_identity(trained)
    trained.to(device or default_device())
    folder = feature_folder(data, identity)
    make_folder(folder)
    with claim(folder):
        store = CaptionFeatureStore(data, identity)
        new = [text for text in dict.fromkeys(map(clean_caption, texts)) if text not in store]
        with tqdm(total=len(new), desc="Encoding captions", unit="caption", disable=not show_progress) as bar:
            for start in range(0, len(new), _CAPTIONS_PER_FILE):
                part = new[start : start + _CAPTIONS_PER_FILE]
                ids = caption_token_ids(part, processor)
                features = CaptionFeatures(
                    trained.base_model,
                    ids,
                    context_length=trained.config.text_config.context_length,
                    keep_padding=trained.config.is_official,
                ).features
                store.add({text: features[key].to(getattr(torch, dtype)) for text, key in zip(part, ids, strict=True)})
                bar.update(len(part))
    return store, len(new)


def _captions(folder: Path, sides: Sequence[str]) -> list[str]:
    """Return the captions of all splits."""
    shards = sorted((folder / "data").glob("*.parquet"))
    if not shards:
        raise DataError(f"{folder}: expected a builder's folder with data/*.parquet in it")
    columns = [f"{side}_caption" for side in sides]
    texts: list[str] = []
    for shard in shards:
        expected = f"{shard}: expected Parquet with the text columns {', '.join(columns)}"
        with open_texts(shard, expected) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise DataError(f"{expected}; it lacks {', '.join(missing)}")
            for batch in text_batches(file, columns, expected):
                texts += [text for name in columns for text in batch[name].cast(pa.string()).to_pylist() if text]
    if not texts:
        raise CaeAvError(f"{folder}: has no captions; pass a caption file to the builder with --captions")
    return texts
