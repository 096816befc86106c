"""Card of a built data set, with a description and the header that `datasets` reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import yaml
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData


_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def front_matter(folder: Path, splits: Sequence[str], fingerprint: str, **values: Any) -> str:
    """
    Return the YAML header of the card of a folder of shards, with the `dataset_info` that `datasets` reads.

    Args:
        folder: The data set; its shards are `data/<split>-*.parquet`.
        splits: Splits that have rows.
        fingerprint: Identifies the rows.
        values: Further values of the header.

    `num_bytes` and `dataset_size` are the sizes of the columns before compression, `download_size` that of the files.
    """
    info = datasets.DatasetInfo(splits=datasets.SplitDict(), download_size=0, dataset_size=0)
    for split in splits:
        rows = size = 0
        for path in sorted((folder / "data").glob(f"{split}-*.parquet")):
            metadata = pq.read_metadata(path)
            info.features = datasets.Features.from_arrow_schema(metadata.schema.to_arrow_schema())
            info.download_size += path.stat().st_size
            rows += metadata.num_rows
            size += sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
        info.dataset_size += size
        info.splits.add(datasets.SplitInfo(split, num_bytes=size, num_examples=rows))
    data = DatasetCardData(
        **values,
        configs=[
            {
                "config_name": "default",
                # `load_dataset` caches a local folder by its name and this header, so the header must change with the
                # rows; otherwise it would return those of an earlier build.
                "description": f"Rows with fingerprint {fingerprint}.",
                "data_files": [{"split": split, "path": f"data/{split}-*"} for split in splits],
            }
        ],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    return f"---\n{yaml.safe_dump(data.to_dict(), sort_keys=False, allow_unicode=True)}---\n"


def card_text_of(
    folder: Path,
    *,
    builder: str,
    pretty_name: str,
    task_categories: Sequence[str],
    text: str,
    features: Mapping[str, Any],
    is_embedded: bool,
    annotated: Mapping[str, int],
    written: Mapping[str, int],
    skipped: Mapping[str, Mapping[str, Any]],
    fingerprint: str,
) -> str:
    """
    Return the text of `README.md`.

    Args:
        folder: The data set with all shards.
        builder: Name of the builder.
        pretty_name, task_categories, text: Name, tasks and description of the data set.
        features: Columns of the data set.
        is_embedded: Whether rows contain their media.
        annotated, written: Number of rows of each split in the annotations and in the data set.
        skipped: For each split and reason the `count` of skipped rows.
        fingerprint: Identifies the rows.
    """
    counts = {split: count for split, count in written.items() if count}
    rows = sum(counts.values())
    header = front_matter(
        folder,
        list(counts),
        fingerprint,
        pretty_name=pretty_name,
        task_categories=list(task_categories),
        size_categories=[next((name for limit, name in _SIZES if rows < limit), "n>1M")],
        tags=["audio-visual", "video", "audio", "caeav-hf"],
    )
    table = "\n".join(
        f"| {split} | {count} | {written[split]} | {count - written[split]} | {_reasons(skipped[split])} |"
        for split, count in annotated.items()
    )
    columns = "\n".join(f"- `{name}`: {_describe(feature)}" for name, feature in features.items())
    clips = "are embedded in the shards" if is_embedded else "are referred to by their absolute paths"
    return (
        f"{header}\n# {pretty_name}\n\n{text}\n\n"
        f"Written by the `{builder}` builder of caeav-hf. The clips {clips}.\n\n"
        f"| split | annotated rows | rows here | skipped | reasons |\n|---|---|---|---|---|\n{table}\n\n"
        "Skipped rows lack a usable clip; the builder's `report.json` names examples.\n\n"
        f"## Columns\n\n{columns}\n\n"
        "## Use\n\n```python\nimport datasets\n\n"
        f'rows = datasets.load_dataset("path/to/this/folder", split="{next(iter(counts))}")\n```\n'
    )


def _reasons(skipped: Mapping[str, Any]) -> str:
    return ", ".join(f"`{reason}` {item['count']}" for reason, item in skipped.items())


def _describe(feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return f"class label ({feature.num_classes} classes)"
    for kind, name in ((datasets.Video, "clip"), (datasets.Audio, "sound"), (datasets.Image, "image")):
        if isinstance(feature, kind):
            return f'{name}, `{{"path", "bytes"}}`, not decoded'
    return f"`{feature.dtype}`" if isinstance(feature, datasets.Value) else f"list of {_describe(feature.feature)}"
