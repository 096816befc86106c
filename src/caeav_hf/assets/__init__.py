"""Files that the package carries: the frozen towers of the toy models."""

from pathlib import Path


def toy_towers() -> dict[str, Path]:
    """
    Folders of the toy towers, as `CaeAvModel.from_backbones(**toy_towers(), size="toy")` takes them.

    They were trained on single frames, single seconds of sound and single captions of the toy corpus, one modality
    each, by `python -m caeav_hf.training.toy_towers`.
    """
    folder = Path(__file__).parent / "toy_towers"
    return {name: folder / name for name in ("vision", "audio", "text")}
