"""The card of a data set that a builder wrote: what is in it, in words and in the header that `datasets` reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import yaml


_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def card_text_of(
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
    The text of `README.md`.

    Args:
        builder: Name of the builder.
        pretty_name, task_categories, text: Of the data set.
        features: Its columns.
        is_embedded: Whether rows hold their media.
        annotated, written: Rows of each split, in the annotations and here.
        skipped: For each split and reason a `count` of the rows that are not here.
        fingerprint: Stands for the rows.
    """
    counts = {split: count for split, count in written.items() if count}
    rows = sum(counts.values())
    header = {
        "pretty_name": pretty_name,
        "task_categories": list(task_categories),
        "size_categories": [next((name for limit, name in _SIZES if rows < limit), "n>1M")],
        "tags": ["audio-visual", "video", "audio", "caeav-hf"],
        "configs": [
            {
                "config_name": "default",
                # `load_dataset` caches a local folder by its name and this header alone. Without something in it
                # that changes with the rows, it would go on giving those of an earlier build.
                "description": f"Rows with fingerprint {fingerprint}.",
                "data_files": [{"split": split, "path": f"data/{split}-*"} for split in counts],
            }
        ],
    }
    table = "\n".join(
        f"| {split} | {count} | {written[split]} | {count - written[split]} | {_reasons(skipped[split])} |"
        for split, count in annotated.items()
    )
    columns = "\n".join(f"- `{name}`: {_describe(feature)}" for name, feature in features.items())
    clips = "are embedded in the shards" if is_embedded else "are referred to by their absolute paths"
    return (
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n"
        f"# {pretty_name}\n\n{text}\n\n"
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
