"""
Extraction of 3D features, which video parsing may read beside the frames: torchvision's R(2+1)D-18 computes a vector
of size 512 from several frames of each one-second segment.

A folder of features has `<clip>.safetensors` for each clip `<clip>.mp4`, or for each row of the LLP builder, with the
tensor `visual_3d` (T, 512) float32, and beside them

    settings.json    settings of the features, the same for the whole folder
    report.json      numbers of written and existing features, and the clips that could not be read, with reasons
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.models.video import R2Plus1D_18_Weights, r2plus1d_18
from tqdm import tqdm

from caeav_hf.constants import MEDIA_SUFFIXES
from caeav_hf.errors import CaeAvError, DataError, MediaError, last_line
from caeav_hf.media.clip import load_clip
from caeav_hf.media.containers import MediaSource
from caeav_hf.media.segments import count_segments

from ...data.schema import LLP_NUM_SEGMENTS, media_part
from ...data.shards import read_parquet
from ...data.store import claim, keep_settings
from ...files import atomic_write, make_folder, write_json
from ...towers.checkpoint_files import load_saved


FEATURE_SIZE = 512
FRAMES_PER_SEGMENT = 8

_KEY = "visual_3d"
_DTYPES = ("F64", "F32", "F16", "BF16")
_SEGMENT_SECONDS = 1.0

_PublishedWeights = R2Plus1D_18_Weights.KINETICS400_V1


def load_network(weights: str | os.PathLike | None = None) -> torch.nn.Module:
    """
    Load R(2+1)D-18 without its classifier, in evaluation mode: (n, 3, frames, height, width) to (n, 512).

    Args:
        weights: A file of parameters under torchvision's names (with or without the classifier), safetensors or from
            `torch.save`; None for torchvision's weights, trained on Kinetics-400, which are downloaded once.

    Raises:
        DataError: The file is missing, contains more than tensors, or lacks parameters of this network.
    """
    network = r2plus1d_18()
    network.fc = torch.nn.Identity()
    if weights is None:
        state = _PublishedWeights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    else:
        state = _read_weights(Path(weights))
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        where = "torchvision's weights" if weights is None else weights
        raise DataError(f"{where}: expected the parameters of torchvision's r2plus1d_18 ({error})") from error
    return network.eval().requires_grad_(False)


@torch.no_grad()
def extract_folder(
    media: str | os.PathLike,
    out: str | os.PathLike,
    network: torch.nn.Module,
    *,
    frames_per_segment: int = FRAMES_PER_SEGMENT,
    num_segments: int = LLP_NUM_SEGMENTS,
    clips_per_batch: int = 4,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """
    Extract missing features of the clips of a folder; safe to run again.

    Args:
        media: Folder with the clips, or a folder written by the LLP builder. In the latter case features are named by
            the rows' `filename` and computed from the rows' parts of longer videos.
        out: Folder to write, created if necessary.
        network: The network from [`load_network`].
        frames_per_segment: Number of evenly spaced frames per second.
        num_segments: Maximum number of seconds of a clip; a shorter clip has one feature per segment of the processor.
        clips_per_batch: Number of clips per forward pass.
        num_workers: Number of processes that decode; 0 decodes in this one.
        device: Device of the network.

    Returns:
        The content of `report.json`: `written` and `already_there`, numbers of clips, and `broken`, reasons by file.

    Raises:
        DataError: `media` is not such a folder, two of its files have the same name, `out` has features of other
            settings or is claimed by another process, or no clip could be read.
        CaeAvError: A number is out of range.
    """
    for name, value in {"frames_per_segment": frames_per_segment, "num_segments": num_segments}.items():
        if value < 1:
            raise CaeAvError(f"`{name}` must be at least 1, got {value}")
    clips, folder = _clips(Path(media)), Path(out)
    make_folder(folder)
    settings = {
        "network": "r2plus1d_18",
        "parameters": _parameters_digest(network),
        "frames_per_segment": frames_per_segment,
        "num_segments": num_segments,
    }
    with claim(folder):
        keep_settings(folder, settings, results="*.safetensors")
        wanted = [clip for clip in clips if not feature_file(folder, clip.name).is_file()]
        broken: dict[str, str] = {}
        network = network.to(device).eval()
        loader = torch.utils.data.DataLoader(
            _Clips(wanted, frames_per_segment, num_segments),
            batch_size=clips_per_batch,
            num_workers=num_workers,
            collate_fn=list,
        )
        with tqdm(total=len(clips), initial=len(clips) - len(wanted), desc="3D features", unit="clip") as bar:
            for batch in loader:
                broken.update({clip.file: value for clip, value in batch if isinstance(value, str)})
                kept = [(clip, value) for clip, value in batch if not isinstance(value, str)]
                if kept:
                    features = network(torch.cat([value for _, value in kept]).to(device)).float().cpu()
                    parts = features.split([len(value) for _, value in kept])
                    for (clip, _), part in zip(kept, parts, strict=True):
                        with atomic_write(feature_file(folder, clip.name)) as path:
                            save_file({_KEY: part.contiguous()}, path)
                bar.update(len(batch))
        report = {
            "written": len(wanted) - len(broken),
            "already_there": len(clips) - len(wanted),
            "broken": dict(sorted(broken.items())),
        }
        write_json(folder / "report.json", report)
    if len(broken) == len(clips):
        raise DataError(f"{media}: none of its {len(clips)} clips can be read, e.g. {next(iter(broken.values()))}")
    return report


def feature_file(folder: str | os.PathLike, clip: str) -> Path:
    """Return the path of a clip's features, given the name of its file without suffix."""
    return Path(folder) / f"{clip}.safetensors"


def find_features(folder: str | os.PathLike, names: Iterable[str]) -> Path | None:
    """
    Return the file of features of a clip with one of these names, written by [`extract_folder`] or a `.npy` array as
    published by LLP's authors; None if there is none.
    """
    files = [feature_file(folder, name) for name in names]
    files += [path.with_suffix(".npy") for path in files]
    return next((path for path in files if os.path.isfile(path)), None)


def feature_shape(path: Path) -> tuple[int, int]:
    """
    Return the shape (T, size) of the features in a file, from its header.

    Raises:
        DataError: The file is missing or has no such features.
    """
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            shape, is_floating_point = array.shape, np.issubdtype(array.dtype, np.floating)
        else:
            with safe_open(path, "pt") as file:
                header = file.get_slice(_KEY)
                shape, is_floating_point = tuple(header.get_shape()), header.get_dtype() in _DTYPES
    except Exception as error:  # NumPy parses the header as Python, with errors of all kinds
        raise DataError(
            f"{path}: expected a safetensors file with `{_KEY}`, or a npy file ({last_line(error)})"
        ) from error
    if len(shape) != 2 or not all(shape) or not is_floating_point:
        raise DataError(f"{path}: expected floating-point features of the shape (T, size), got the shape {shape}")
    return shape[0], shape[1]


def read_features(path: Path) -> np.ndarray:
    """Read the features in a file, (T, size) float32; raises like [`feature_shape`]."""
    feature_shape(path)
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False).astype(np.float32)
    return load_file(path)[_KEY].float().numpy()


def read_segments(
    source: MediaSource, frames_per_segment: int, num_segments: int, start: float = 0.0, end: float | None = None
) -> torch.Tensor:
    """
    Decode the network's input for a clip, or for its part from `start` to `end` (seconds): (T, 3, frames_per_segment,
    112, 112) float32. The frames of a segment are those shown at the middles of its equal parts; if the clip ends
    within its last segment, its last frame is repeated.

    Raises:
        MediaError: The clip cannot be decoded.
    """
    clip = load_clip(
        source,
        start=start,
        end=end,
        num_segments=num_segments * frames_per_segment,
        segment_seconds=_SEGMENT_SECONDS / frames_per_segment,
        sampling_rate=16_000,  # without effect, since there is no sound
        with_audio=False,
        num_threads=1,
    )
    count = count_segments(clip.duration, _SEGMENT_SECONDS, num_segments)
    # A rest too short for a segment may still have frames, and the last segment may lack some.
    numbers = np.minimum(np.arange(count * frames_per_segment), len(clip.frames) - 1)
    frames = torch.from_numpy(clip.frames[numbers]).permute(0, 3, 1, 2)
    return _transform()(frames.unflatten(0, (count, frames_per_segment)))


@dataclass(frozen=True)
class _Clip:
    """A clip: the name of its features, the name of its file for reports, and its path or row."""

    name: str
    file: str
    place: Path | tuple[datasets.Dataset, int]

    def segments(self, frames_per_segment: int, num_segments: int) -> torch.Tensor:
        if isinstance(self.place, Path):
            return read_segments(self.place, frames_per_segment, num_segments)
        rows, number = self.place
        row = rows[number]
        if row["media"] is None:
            raise MediaError(f"{self.name}: is a folder of frames; expected a video")
        return read_segments(row["media"], frames_per_segment, num_segments, *media_part(row))


class _Clips(torch.utils.data.Dataset):
    """Pairs of a clip and its segments, or the reason why it cannot be decoded."""

    def __init__(self, clips: Sequence[_Clip], frames_per_segment: int, num_segments: int) -> None:
        self.clips = clips
        self.frames_per_segment = frames_per_segment
        self.num_segments = num_segments

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[_Clip, torch.Tensor | str]:
        clip = self.clips[index]
        try:
            return clip, clip.segments(self.frames_per_segment, self.num_segments)
        except MediaError as error:
            return clip, str(error)


def _transform() -> Callable[[torch.Tensor], torch.Tensor]:
    """Scale, crop and normalise (n, frames, 3, H, W) as torchvision's weights expect it: (n, 3, frames, h, w)."""
    return _PublishedWeights.transforms()


def _clips(media: Path) -> list[_Clip]:
    if not media.is_dir():
        raise DataError(f"{media}: no such folder")
    if shards := sorted(str(path) for path in (media / "data").glob("*.parquet")):
        return _row_clips(media, shards)
    clips = sorted(path for path in media.iterdir() if path.suffix.lower() in MEDIA_SUFFIXES and path.is_file())
    if not clips:
        raise DataError(f"{media}: expected clips ({', '.join(MEDIA_SUFFIXES)}) in this folder")
    for first, second in pairwise(clips):
        if first.stem == second.stem:
            raise DataError(f"{media}: {first.name} and {second.name} are of one name, and so would their features be")
    return [_Clip(path.stem, path.name, path) for path in clips]


def _row_clips(folder: Path, shards: list[str]) -> list[_Clip]:
    rows = read_parquet(shards)
    if missing := [name for name in ("filename", "media") if name not in rows.column_names]:
        raise DataError(f"{folder}: expected what the LLP builder wrote; its rows lack {', '.join(missing)}")
    clips: dict[str, _Clip] = {}
    for number, name in enumerate(rows["filename"]):
        # The features are written to a file of this name.
        if not isinstance(name, str) or name in ("", ".", "..") or name != Path(name).name:
            raise DataError(f"{folder}: row {number}: expected a clip's name as `filename`, got {name!r}")
        clips.setdefault(name, _Clip(name, name, (rows, number)))
    return list(clips.values())


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise DataError(f"{path}: no such file of weights")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else load_saved(path)
    # Readers of damaged or foreign files raise a dozen types of errors.
    except Exception as error:
        raise DataError(f"{path}: expected tensors by name and nothing else ({error})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{path}: expected tensors by name and nothing else, got a {type(state).__name__}")
    return state


def _parameters_digest(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for block in _blocks(network):
        digest.update(block)
    return digest.hexdigest()[:16]


def _blocks(network: torch.nn.Module) -> Iterator[bytes]:
    for name, value in sorted(network.state_dict().items()):
        yield name.encode()
        yield value.detach().cpu().contiguous().numpy().tobytes()
