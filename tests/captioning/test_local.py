"""Captions from a model in this process: a tiny untrained Qwen2.5-Omni, which writes nonsense."""

import pytest
import torch

from caeav_hf.captioning import (
    CaptionRequest,
    CaptionSettings,
    ClipMaterial,
    LocalCaptioner,
    caption_clips,
    find_clips,
)
from caeav_hf.data.caption_file import read_captions
from caeav_hf.errors import CaeAvError
from tests.captioning.tiny_omni import tiny_omni
from tests.media_factory import write_clip


SETTINGS = CaptionSettings(max_frames=2, frame_size=56, max_tokens=12)


@pytest.fixture(scope="module")
def omni():
    return tiny_omni()


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    for number, seconds in enumerate((1.0, 2.0, 3.0)):
        write_clip(folder / f"clip{number}.mp4", seconds=seconds, fps=4)
    return folder


def requests(media, settings=SETTINGS):
    materials = [ClipMaterial.from_file(str(path), settings) for path in sorted(media.glob("*.mp4"))]
    return [CaptionRequest(material, modality) for material in materials for modality in ("visual", "audio")]


def test_a_batch_answers_what_each_request_alone_is_answered(omni, media):
    captioner = LocalCaptioner(*omni, SETTINGS, batch_size=4)
    together = captioner.answer(requests(media), 0)
    alone = [captioner.answer([request], 0)[0] for request in requests(media)]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert len({answer.text for answer in together}) > 1
    assert all(answer.was_cut for answer in together)  # it never learned to stop


def test_what_it_is_shown_and_played_matters(omni, media):
    model, _ = omni
    seen = {}

    def keep(module, arguments, options):
        seen.update(options)

    hooks = [
        tower.register_forward_pre_hook(keep, with_kwargs=True)
        for tower in (model.model.visual, model.model.audio_tower)
    ]
    try:
        LocalCaptioner(*omni, SETTINGS).answer(requests(media)[2:4], 0)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen["grid_thw"]) == 2  # the frames of the clip of two seconds
    assert seen["feature_lens"].tolist() == [200]  # and its sound, in hundredths of a second


def test_sampling_is_seeded_and_leaves_other_random_numbers_alone(omni, media):
    settings = CaptionSettings(max_frames=2, frame_size=56, max_tokens=12, temperature=1.0)
    captioner = LocalCaptioner(*omni, settings, attempts=2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, again = (captioner.answer(requests(media)[:1], attempt)[0].text for attempt in (0, 1, 0))
    assert torch.equal(torch.rand(3), expected)
    assert first == again != second


def test_a_data_set(omni, media, tmp_path):
    captioner = LocalCaptioner(*omni, SETTINGS, name="tiny", batch_size=2)
    # The output of an untrained model may contain no words; everything else is as usual.
    answer = captioner.answer
    captioner.answer = lambda asked, attempt: [type(given)(f"Words {given.text}") for given in answer(asked, attempt)]
    report = caption_clips(find_clips(media), captioner, tmp_path / "captions.parquet", show_progress=False)
    assert (report.complete, report.model) == (3, "tiny")
    assert all(caption["audio"].startswith("Words") for caption in read_captions(report.file).values())


def test_saved_and_loaded(omni, media, tmp_path):
    for part in omni:
        part.save_pretrained(tmp_path)
    loaded = LocalCaptioner.from_pretrained(tmp_path, SETTINGS, dtype=torch.float32, device="cpu")
    expected = LocalCaptioner(*omni, SETTINGS).answer(requests(media)[:2], 0)
    assert [answer.text for answer in loaded.answer(requests(media)[:2], 0)] == [answer.text for answer in expected]
    half = LocalCaptioner.from_pretrained(tmp_path, SETTINGS, dtype="bfloat16", device="cpu")
    assert len(half.answer(requests(media)[:2], 0)) == 2
    with pytest.raises(CaeAvError, match="cannot be loaded"):
        LocalCaptioner.from_pretrained(tmp_path / "nothing")


def test_a_rate_that_is_not_the_models(omni):
    with pytest.raises(CaeAvError, match="16000"):
        LocalCaptioner(*omni, CaptionSettings(sampling_rate=8000))
