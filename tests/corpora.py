"""Toy corpora, their Parquet folders and processors, made once for all tests of data."""

import runpy
import sys
from pathlib import Path
from typing import Any

import av
import pytest

from caeav_hf import data
from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.processing.processing_cae_av import CaeAvProcessor
from caeav_hf.toy import CLASSES, MediaFormat, generate


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep the cache of `datasets` out of the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))
        # Streaming sleeps for seconds after its threads.
        patch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Generate 24 clips in AVE's layout: 12 for training, half of them misaligned."""
    out = tmp_path_factory.mktemp("corpus") / "toy"
    generate(out, num_clips=24, split=(2, 1, 1), misalignment=0.5, seed=3, num_proc=2, progress=False)
    return out


@pytest.fixture(scope="session")
def avs_corpora(tmp_path_factory) -> dict[str, Any]:
    """Generate twelve clips in each of AVSBench's layouts, 6 for training; return folders and scenes."""
    out, scenes = tmp_path_factory.mktemp("avs"), {}
    for setting in ("s4", "ms3"):
        scenes[setting] = generate(
            out / setting,
            f"avs_{setting}",
            num_clips=12,
            split=(2, 1, 1),
            seed=3,
            media_format=MediaFormat(64, 8, 16_000),
            progress=False,
        )
    return {"s4": out / "s4", "ms3": out / "ms3", "scenes": scenes}


@pytest.fixture(scope="session")
def ssu_corpus(tmp_path_factory) -> Path:
    """Generate eight clips with descriptions, four for training."""
    out = tmp_path_factory.mktemp("ssu") / "toy"
    media_format = MediaFormat(64, 4, 16_000)
    generate(out, "ra_ssu", num_clips=8, split=(2, 1, 1), seed=3, media_format=media_format, progress=False)
    return out


@pytest.fixture(scope="session")
def ssu_parquet(ssu_corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ssu_parquet") / "ssu"
    build_ssu(ssu_corpus, out)
    return out


@pytest.fixture(scope="session")
def parquet(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("parquet") / "ave"
    build(corpus, out)
    return out


@pytest.fixture(scope="session")
def avs_parquet(avs_corpora, tmp_path_factory) -> dict[str, Path]:
    """Build the Parquet folders of the two settings from frames and sound."""
    out = tmp_path_factory.mktemp("avs_parquet")
    for setting in ("s4", "ms3"):
        build_avs(avs_corpora[setting], out / setting, setting)
    return {setting: out / setting for setting in ("s4", "ms3")}


@pytest.fixture(scope="session")
def llp_corpus(tmp_path_factory) -> Path:
    """Generate 16 clips in LLP's layout: 8 for training."""
    out = tmp_path_factory.mktemp("llp") / "toy"
    generate(
        out, "avvp", num_clips=16, split=(2, 1, 1), seed=3, media_format=MediaFormat(64, 4, 16_000), progress=False
    )
    return out


@pytest.fixture(scope="session")
def llp_parquet(llp_corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("llp_parquet") / "llp"
    build_llp(llp_corpus, out)
    return out


@pytest.fixture(scope="session")
def avs_processor() -> CaeAvProcessor:
    return CaeAvProcessor.from_config(CaeAvConfig.from_preset("avs_ms3", size="toy"))


@pytest.fixture(scope="session")
def processor() -> CaeAvProcessor:
    return CaeAvProcessor.from_config(CaeAvConfig.from_preset("ave", size="toy", id2label=dict(enumerate(CLASSES))))


def build(corpus: Path, out: Path, **options):
    """Run the AVE builder on a toy corpus."""
    options = {"captions": str(corpus / "captions.json"), **options}
    builder = data.AveBuilder(annotations=str(corpus / "annotations"), media=str(corpus / "media"), **options)
    return builder.build(out)


def build_llp(corpus: Path, out: Path, **options):
    """Run the LLP builder on a toy corpus."""
    options = {"captions": str(corpus / "captions.json"), **options}
    builder = data.LlpBuilder(annotations=str(corpus / "annotations"), media=str(corpus / "media"), **options)
    return builder.build(out)


def keep_stream(source: Path, target: Path, kind: str) -> None:
    """Copy one stream of a clip, so that the other one is missing."""
    with av.open(str(source)) as whole, av.open(str(target), "w", format="mp4") as part:
        stream = getattr(whole.streams, kind)[0]
        copy = part.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                part.mux(packet)


def build_avs(corpus: Path, out: Path, setting: str, **options):
    """Run the AVSBench builder on a toy corpus."""
    options = {"captions": str(corpus / "captions.json"), **options}
    folders = {"annotations": str(corpus / "annotations"), "media": str(corpus / "media")}
    return data.AvsBenchBuilder(setting=setting, **folders, **options).build(out)


def build_ssu(corpus: Path, out: Path, **options):
    """Run the builder of sound source understanding on a toy corpus."""
    options = {"captions": str(corpus / "captions.json"), **options}
    builder = data.RaSsuBuilder(annotations=str(corpus / "annotations"), media=str(corpus / "media"), **options)
    return builder.build(out)


def run_script(name: str, *arguments: str) -> int:
    """Run a program of `dataset_scripts/` and return its exit code."""
    script = str(Path(__file__).parents[1] / "dataset_scripts" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(script, run_name="__main__")
    return end.value.code
