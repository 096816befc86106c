"""Parquet data sets of other schemas and damaged rows: one error that names the folder."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from caeav_hf.captioning import find_clips
from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.data import CaeAvDataset, prepare_clips
from caeav_hf.data.streaming import StreamedClips
from caeav_hf.errors import DataError
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.tasks.video_parsing.visual_3d import extract_folder
from tests.media_factory import write_clip


pytestmark = pytest.mark.slow  # processors and loaders of real clips


FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="module")
def processor():
    return CaeAvProcessor.from_config(CaeAvConfig.from_preset("ave", size="toy"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=2)
    return {"bytes": path.read_bytes(), "path": None}


@pytest.fixture
def write(tmp_path, clip):
    def write(metadata=None, **columns):
        """Write a data set of one row for event localization, with other columns; those that are None are missing."""
        columns = {
            "video_id": pa.array(["a"]),
            "media": pa.array([clip], FILE),
            "segment_labels": pa.array([[0, 1]]),
            "label": pa.array([0]),
            **columns,
        }
        table = pa.table({name: column for name, column in columns.items() if column is not None})
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        path = tmp_path / "set" / "data" / "train-00000-of-00001.parquet"
        pq.write_table(table if metadata is None else table.replace_schema_metadata({"huggingface": metadata}), path)
        return tmp_path / "set"

    return write


def read(folder, processor, form):
    if form == "streamed":
        clips = StreamedClips(folder, processor, split="train")
        return [clips[row] for batch in clips.batches(1) for row in batch]
    if form == "prepared":
        return prepare_clips(folder, processor, folder.parent / "prepared")
    return list(CaeAvDataset(folder, processor, split="train"))


FORMS = pytest.mark.parametrize("form", ["indexed", "streamed", "prepared"])


@FORMS
def test_the_row_is_good(form, write, processor):
    assert read(write(), processor, form)


@FORMS
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"segment_labels": None}, "has no column"),
        ({"media": None}, "no column media"),
        ({"media": pa.array(["clip.mp4"])}, "`media` has the type string"),
        ({"media": pa.array([{"bytes": "a"}])}, "`media` has the type struct"),
        ({"segment_labels": pa.array(["0"])}, "`segment_labels` has the type string; expected lists of whole numbers"),
        ({"segment_labels": pa.array([[0.5]])}, "`segment_labels`"),
        ({"video_id": pa.array([["a"]])}, "`video_id`"),
        ({"visual_caption": pa.array([1])}, "`visual_caption`"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_columns_of_other_types_are_named_before_a_clip_is_read(columns, expected, form, write, processor):
    with pytest.raises(DataError, match=rf"set: .*{expected}"):
        read(write(**columns), processor, form)


@pytest.mark.parametrize("form", ["indexed", "streamed"])
@pytest.mark.parametrize(
    "columns",
    [
        {"segment_labels": pa.array([None], pa.list_(pa.int64()))},
        {"segment_labels": pa.array([[0, None]])},
        {"segment_labels": pa.array([[-1, 0]])},
        {"media_start": pa.array([float("nan")])},
        {"media_start": pa.array([-5.0])},
        {"prepared": pa.array(["[" * 5000])},
        {"prepared": pa.array([b"\xff"]).view(pa.string())},
    ],
    ids=lambda value: next(iter(value)),
)
def test_rows_of_other_forms_are_named(columns, form, write, processor):
    with pytest.raises(DataError, match="set"):
        read(write(**columns), processor, form)


@FORMS
def test_files_that_are_no_clips(form, write, processor, tmp_path):
    for media in ({"bytes": b"x", "path": None}, {"bytes": None, "path": None}, {"bytes": None, "path": "a\0b"}, None):
        with pytest.raises(DataError, match=r"set: none of the .*clips can be decoded|set: no clip could be prepared"):
            read(write(media=pa.array([media], FILE)), processor, form)


@FORMS
@pytest.mark.parametrize(
    "features",
    [
        {"label": {"_type": "Strange"}},
        {"label": {"_type": "Value", "dtype": "no"}},
        {"label": {"_type": "ClassLabel", "names": ["a", "a"]}},
        "[" * 100_000,
        [],
    ],
    ids=["type", "dtype", "twice", "nested", "list"],
)
def test_strange_features_in_the_metadata(features, form, write, processor):
    text = features if isinstance(features, str) else json.dumps({"info": {"features": features}})
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet: cannot be read"):
        read(write(metadata=text), processor, form)


@FORMS
def test_damaged_files_are_named(form, write, processor):
    folder = write()
    (path,) = (folder / "data").iterdir()
    content = bytearray(path.read_bytes())
    content[-200:-100] = bytes(100)  # the footer
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet: cannot be read"):
        read(folder, processor, form)
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet: cannot be read"):
        find_clips(folder)
    write()
    content = bytearray(path.read_bytes())
    content[4:100] = b"\xff" * 96  # the first page
    path.write_bytes(content)
    with pytest.raises(DataError, match="set"):
        read(folder, processor, form)


def test_media_of_other_data_sets_are_not_decoded_by_datasets(write, processor):
    features = {"media": {"_type": "Video"}}  # whose default is to decode
    data = CaeAvDataset(write(metadata=json.dumps({"info": {"features": features}})), processor, split="train")
    assert data.features["media"] == datasets.Video(decode=False)
    assert data[0]["pixel_values_videos"].shape[0] == 2


def test_names_of_rows_do_not_leave_the_folder(write, tmp_path):
    for name in ("../stolen", "/tmp/stolen", "..", "a/b", None):
        folder = write(filename=pa.array([name], pa.string()))
        with pytest.raises(DataError, match="expected a clip's name as `filename`"):
            extract_folder(folder, tmp_path / "features", torch.nn.Identity())
    assert not list(tmp_path.rglob("*stolen*"))


@pytest.mark.parametrize(
    "columns",
    [
        {"frames": pa.array([[{"bytes": b"", "path": 1}]])},
        {"media": pa.array(["clip.mp4"])},
        {"video_id": pa.array([None], pa.string()), "media": None},
    ],
    ids=["frames", "media", "video_id"],
)
def test_rows_to_caption(columns, write):
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet"):
        find_clips(write(**columns))


@FORMS
def test_texts_that_are_not_utf8(form, write, processor):
    with pytest.raises(DataError, match="set"):
        read(write(category=pa.array([b"\xff"]).view(pa.string())), processor, form)
