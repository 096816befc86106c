"""Files shipped with the package: the frozen towers of the toy models."""

from pathlib import Path


def toy_towers() -> dict[str, Path]:
    """
    Return the folders of the toy towers, for `CaeAvModel.from_backbones(**toy_towers(), size="toy")`.

    Each was trained on one modality of the toy corpus (single frames, seconds of sound or captions) by
    `python -m caeav_hf.training.toy_towers`.
    """
    folder = Path(__file__).parent / "toy_towers"
    return {name: folder / name for name in ("vision", "audio", "text")}


def aligned_toy_towers() -> dict[str, Path]:
    """
    Return the folders of a small CLIP and a small CLAP, for `CaeAvForFewShotLocalization.from_backbones(
    **aligned_toy_towers(), task="ave_few_shot", size="toy")`.

    They were trained on frames, seconds of sound and class names of the toy corpus by
    `caeav toy-towers --aligned`.
    """
    folder = Path(__file__).parent / "aligned_toy_towers"
    return {name: folder / name for name in ("vision", "audio", "text")}


def toy_vision_tower(model_type: str | None = None) -> Path:
    """
    Return the folder of a toy tower for frames, for the `vision` of `CaeAvModel.from_backbones`.

    Args:
        model_type: Model type of its configuration: `"cae_av_swin"`, the Swin Transformer of version 1,
            `"cae_av_vit"`, CLIP's vision transformer, or any other for that of [`toy_towers`], a Swin-V2.
    """
    folder = Path(__file__).parent
    others = {"cae_av_swin": folder / "toy_towers" / "swin", "cae_av_vit": folder / "aligned_toy_towers" / "vision"}
    return others.get(model_type or "", folder / "toy_towers" / "vision")
