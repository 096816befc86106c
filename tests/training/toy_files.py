"""Small real clips, built as data sets, and untrained toy models, created once for all tests."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from caeav_hf.assets import aligned_toy_towers
from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.data import AveBuilder, AvsBenchBuilder, LlpBuilder, MusicAvqaBuilder
from caeav_hf.modeling import (
    CaeAvForEventLocalization,
    CaeAvForFewShotLocalization,
    CaeAvForQuestionAnswering,
    CaeAvForSegmentation,
    CaeAvForVideoParsing,
)
from caeav_hf.processing import CaeAvProcessor
from caeav_hf.toy import CLASSES, MediaFormat, generate
from tests.modeling.helpers import randomise
from tests.tasks.sound_source_understanding.helpers import small_model


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="caeav-toy-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def toy_corpus() -> Path:
    """Return a folder with `media/`, `captions.json`, `toy.json` and the annotations of 16 clips."""
    corpus = _folder() / "corpus"
    media_format = MediaFormat(frame_size=64, frame_rate=4)
    generate(corpus, num_clips=16, split=(10, 3, 3), misalignment=0.5, media_format=media_format, progress=False)
    return corpus


def toy_clips(count: int) -> list[str]:
    return [str(path) for path in sorted((toy_corpus() / "media").glob("*.mp4"))[:count]]


def toy_data() -> Path:
    """Return the corpus as Parquet."""
    return built(AveBuilder, toy_corpus)


@cache
def toy_model(method: str | None = None) -> Path:
    """Return the folder of an untrained toy model and its processor."""
    torch.manual_seed(0)
    config = CaeAvConfig.from_preset("ave", size="toy", method=method, id2label=dict(enumerate(CLASSES)))
    model = CaeAvForEventLocalization(config).eval()
    with torch.no_grad():  # move scores to both sides of the threshold, so that results differ
        if config.event_head != "mlp":
            model.head.event_classifier.weight.mul_(30)
            model.head.event_classifier.bias.add_(8)
        if config.use_case:
            # Captions have no effect in new models; give them one.
            model.model.case.visual_stream.gamma.fill_(1)
            model.model.case.audio_stream.gamma.fill_(1)
            model.model.caption_mapper.visual_bottleneck.up.weight.normal_()
            model.model.caption_mapper.audio_bottleneck.up.weight.normal_()
    if method is not None:
        randomise(model)  # the gates of new models are 0
    folder = _folder() / f"model_{method}"
    model.save_pretrained(folder)
    CaeAvProcessor.from_config(config).save_pretrained(folder)
    return folder


@cache
def mask_corpus() -> Path:
    """Return a folder of 10 clips in the layout of AVSBench MS3, with videos in `media/videos/`."""
    corpus = _folder() / "mask_corpus"
    media_format = MediaFormat(frame_size=64, frame_rate=4)
    generate(
        corpus, "avs_ms3", 10, split=(4, 3, 3), misalignment=1.0, media_format=media_format, progress=False
    )  # misaligned, for some seconds without a visible source
    return corpus


def mask_clips(count: int) -> list[str]:
    return [str(path) for path in sorted((mask_corpus() / "media" / "videos").glob("*.mp4"))[:count]]


@cache
def mask_data() -> Path:
    """Return the corpus with masks as Parquet."""
    corpus, data = mask_corpus(), _folder() / "mask_data"
    AvsBenchBuilder(
        setting="ms3",
        annotations=str(corpus / "annotations"),
        media=str(corpus / "media"),
        captions=str(corpus / "captions.json"),
        cache_dir=str(_folder() / "cache"),
    ).build(data)
    return data


@cache
def mask_model(method: str | None = None) -> Path:
    """Return the folder of an untrained toy model of segmentation and its processor."""
    torch.manual_seed(0)
    config = CaeAvConfig.from_preset("avs_ms3", size="toy", method=method)
    model = CaeAvForSegmentation(config).eval()
    with torch.no_grad():  # move pixels to both sides of the threshold
        model.head.classifier.weight.mul_(20)
        model.head.classifier.bias.zero_()
    if method is not None:
        randomise(model)
    folder = _folder() / f"mask_model_{method}"
    model.save_pretrained(folder)
    CaeAvProcessor.from_config(config).save_pretrained(folder)
    return folder


@cache
def parsing_corpus() -> Path:
    """Return a folder of 10 clips in the layout of LLP."""
    corpus = _folder() / "parsing_corpus"
    media_format = MediaFormat(frame_size=64, frame_rate=4)
    generate(corpus, "avvp", num_clips=10, split=(4, 3, 3), media_format=media_format, progress=False)
    return corpus


@cache
def question_corpus() -> Path:
    """Return a folder of 6 clips in the layout of MUSIC-AVQA, with a few questions about each."""
    corpus = _folder() / "question_corpus"
    media_format = MediaFormat(frame_size=64, frame_rate=4)
    generate(corpus, "avqa", num_clips=6, split=(2, 2, 2), media_format=media_format, progress=False)
    return corpus


@cache
def built(builder: type, corpus: Callable[[], Path]) -> Path:
    """Return a corpus as Parquet."""
    data = _folder() / f"{corpus.__name__}_data"
    builder(
        annotations=str(corpus() / "annotations"),
        media=str(corpus() / "media"),
        captions=str(corpus() / "captions.json"),
        cache_dir=str(_folder() / "cache"),
    ).build(data)
    return data


def parsing_data() -> Path:
    return built(LlpBuilder, parsing_corpus)


def question_data() -> Path:
    return built(MusicAvqaBuilder, question_corpus)


@cache
def parsing_model(method: str | None = None) -> Path:
    """Return the folder of an untrained toy model of video parsing and its processor."""
    torch.manual_seed(0)
    config = CaeAvConfig.from_preset("avvp", size="toy", method=method, id2label=dict(enumerate(CLASSES)))
    model = CaeAvForVideoParsing(config)
    if method is not None:
        randomise(model)
    folder = _folder() / f"parsing_model_{method}"
    model.save_pretrained(folder)
    CaeAvProcessor.from_config(config).save_pretrained(folder)
    return folder


@cache
def question_model(method: str | None = None) -> Path:
    """Return the folder of an untrained toy model of question answering and its processor."""
    torch.manual_seed(0)
    answers = {0: "yes", 1: "no", 2: "one", 3: "two", 4: "left", 5: "right"}
    config = CaeAvConfig.from_preset("avqa", size="toy", method=method, id2label=answers)
    model = CaeAvForQuestionAnswering(config)
    with torch.no_grad():  # make answers differ between questions
        model.head.classifier.weight.mul_(20)
    if method is not None:
        randomise(model)
    folder = _folder() / f"question_model_{method}"
    model.save_pretrained(folder)
    CaeAvProcessor.from_config(config).save_pretrained(folder)
    return folder


@cache
def few_shot_model() -> Path:
    """Return the folder of a few-shot model on the aligned toy towers, and its processor."""
    torch.manual_seed(0)
    model = CaeAvForFewShotLocalization.from_backbones(
        **aligned_toy_towers(), task="ave_few_shot", size="toy", id2label=dict(enumerate(CLASSES))
    )
    processor = CaeAvProcessor.from_config(model.config)
    model.name_classes(processor)
    folder = _folder() / "few_shot_model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@cache
def understanding_model(outputs: str = "both") -> Path:
    """Return the folder of a small random model of sound source understanding and its processor."""
    model = small_model(outputs=outputs, num_frames=3)
    folder = _folder() / f"understanding_model_{outputs}"
    model.save_pretrained(folder)
    CaeAvProcessor.from_config(model.config).save_pretrained(folder)
    return folder
