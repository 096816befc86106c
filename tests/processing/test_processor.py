"""From files, arrays and captions to the model's tensors, and from its outputs to intervals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caeav_hf.configuration_cae_av import CaeAvConfig
from caeav_hf.errors import CaeAvError, MediaError
from caeav_hf.media.clip import load_clip
from caeav_hf.media.sound import load_audio
from caeav_hf.processing import (
    CaeAvFeatureExtractor,
    CaeAvProcessor,
    CaeAvVideoProcessor,
    build_clip_tokenizer,
    clean_caption,
)
from tests.media_factory import count_image, write_clip, write_wav
from tests.same import assert_same_clip


RATE = 32_000
LABELS = {0: "Bark", 1: "Violin", 2: "Truck"}
KEYS = {
    *("pixel_values_videos", "input_features", "frame_mask"),
    *("visual_caption_ids", "visual_caption_mask", "audio_caption_ids", "audio_caption_mask"),
}


@pytest.fixture(scope="module")
def processor() -> CaeAvProcessor:
    return CaeAvProcessor.from_config(CaeAvConfig.from_preset("ave", size="toy", id2label=LABELS))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [
        write_clip(folder / "three.mp4", seconds=3),
        write_clip(folder / "five.mkv", seconds=5, size=(60, 33), layout="mono", audio_rate=8000),
        write_clip(folder / "short.mp4", seconds=0.3),
    ]


def frames(count: int, size: tuple[int, int] = (40, 50)) -> np.ndarray:
    return np.stack([count_image(k, size) for k in range(count)])


def sound(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


# Building


def test_from_config_takes_every_size():
    config = CaeAvConfig.from_preset(
        "ave",
        size="toy",
        num_frames=7,
        segment_seconds=0.5,
        audio_config={"sampling_rate": 16_000, "hop_length": 160, "frequency_max": 8000},
        text_config={"context_length": 16},
    )
    processor = CaeAvProcessor.from_config(config)
    assert (processor.num_frames, processor.segment_seconds, processor.sampling_rate) == (7, 0.5, 16_000)
    assert processor.id2label == {int(index): name for index, name in config.id2label.items()}
    inputs = processor(frames(2), sound(0.5), "a", "b", sampling_rate=16_000)
    assert inputs["pixel_values_videos"].shape == (1, 2, 3, 64, 64)
    assert inputs["input_features"].shape == (1, 2, 1, 101, 32)
    assert inputs["visual_caption_ids"].shape == (1, 16)
    assert len(processor.tokenizer) == config.text_config.vocab_size


def test_full_preset_gives_the_full_sizes(paths):
    inputs = CaeAvProcessor.from_config(CaeAvConfig.from_preset("ave"))(paths[2])
    assert inputs["pixel_values_videos"].shape == (1, 1, 3, 192, 192)
    assert inputs["input_features"].shape == (1, 1, 1, 1001, 64)


def test_save_and_load_bit_for_bit(processor, paths, tmp_path):
    """Without registration at the Auto classes."""
    processor.save_pretrained(tmp_path)
    loaded = CaeAvProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.id2label == LABELS
    captions = [["a dog!", "a café"], ["barking", "music & talk"]]
    assert_same_clip(loaded(paths[:2], None, *captions), processor(paths[:2], None, *captions))
    loaded.save_pretrained(tmp_path / "again")
    first, again = (folder / "processor_config.json" for folder in (tmp_path, tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()


def test_loading_with_overrides(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = CaeAvProcessor.from_pretrained(tmp_path, num_frames=4, id2label={0: "cat"})
    assert (loaded.num_frames, loaded.id2label) == (4, {0: "cat"})


def test_wrong_parts_are_refused():
    with pytest.raises(TypeError, match="feature_extractor"):
        CaeAvProcessor(CaeAvVideoProcessor(), CaeAvFeatureExtractor(), build_clip_tokenizer(600))
    with pytest.raises(CaeAvError, match="`num_frames` must be at least 1"):
        CaeAvProcessor(CaeAvFeatureExtractor(), CaeAvVideoProcessor(), build_clip_tokenizer(600), num_frames=0)


# Clips


def test_one_clip_with_captions(processor, paths):
    inputs = processor(paths[0], visual_captions="A dog", audio_captions="It barks!")
    assert set(inputs) == KEYS == set(processor.model_input_names)
    assert inputs["pixel_values_videos"].shape == (1, 3, 3, 64, 64)
    assert inputs["pixel_values_videos"].dtype == torch.float32
    assert inputs["input_features"].shape == (1, 3, 1, 101, 32)
    assert inputs["frame_mask"].tolist() == [[True] * 3]
    assert inputs["frame_mask"].dtype == torch.bool
    for kind, text in (("visual", "A dog"), ("audio", "It barks!")):
        ids, mask = inputs[f"{kind}_caption_ids"][0], inputs[f"{kind}_caption_mask"][0]
        assert ids.shape == mask.shape == (77,)
        assert ids[mask.bool()].tolist() == processor.tokenizer(clean_caption(text))["input_ids"]
        assert not ids[~mask.bool()].any()


def test_batch_equals_single(processor, paths):
    batch = processor(paths)
    assert batch["frame_mask"].sum(1).tolist() == [3, 5, 1]
    assert batch["frame_mask"][0].tolist() == [True, True, True, False, False]
    for index, path in enumerate(paths):
        single = processor(path)
        count = single["frame_mask"].shape[1]
        for key in ("pixel_values_videos", "input_features"):
            torch.testing.assert_close(batch[key][index, :count], single[key][0], rtol=0, atol=1e-3)
            assert not batch[key][index, count:].any()


def test_every_kind_of_source_gives_the_same(processor, paths):
    expected = processor(paths[0])
    clip = processor.load_clip(paths[0])
    data = paths[0].read_bytes()
    with paths[0].open("rb") as file:
        for source in (str(paths[0]), data, file, clip, {"bytes": data, "path": None}, [paths[0]]):
            assert_same_clip(processor(source), expected)
    arrays = processor(clip.frames, clip.waveform, sampling_rate=RATE)
    assert_same_clip(arrays, expected)
    assert_same_clip(processor(clip.frames[None], [clip.waveform], sampling_rate=RATE), expected)
    tensors = processor([torch.from_numpy(clip.frames)], [torch.from_numpy(clip.waveform)], sampling_rate=RATE)
    assert_same_clip(tensors, expected)


def test_sound_from_another_file(processor, tmp_path):
    video = write_clip(tmp_path / "mute.mp4", seconds=3, audio=False)
    wav = write_wav(tmp_path / "sound.wav", seconds=3, rate=RATE)
    clip = write_clip(tmp_path / "other.mp4", seconds=3, audio_seconds=1)
    expected = processor(video, wav)
    assert expected["input_features"].shape == (1, 3, 1, 101, 32)
    # Given sound replaces that of the file.
    assert_same_clip(processor(clip, wav), expected)
    with pytest.raises(MediaError, match=r"mute\.mp4: no audio stream"):
        processor(video)


def test_long_files_give_num_frames_segments(paths):
    short = CaeAvProcessor.from_config(CaeAvConfig.from_preset("ave", size="toy", num_frames=2))
    assert short(paths[1])["frame_mask"].shape == (1, 2)
    assert short(paths[1], sound(60), sampling_rate=RATE)["frame_mask"].shape == (1, 2)
    # Arrays are taken as they are.
    assert short(frames(4), sound(4), sampling_rate=RATE)["frame_mask"].shape == (1, 4)


def test_parts_of_a_long_file(processor, paths):
    clip = processor.load_clip(paths[1], start=2.0, end=4.0)
    assert processor(clip)["frame_mask"].shape == (1, 2)


def test_numpy_tensors(processor, paths):
    arrays = processor(paths[0], return_tensors="np")
    expected = processor(paths[0])
    for key, value in arrays.items():
        assert isinstance(value, np.ndarray)
        np.testing.assert_allclose(value, expected[key].numpy(), rtol=0, atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(
    clips=st.lists(
        st.tuples(st.integers(1, 4), st.integers(8, 40), st.integers(8, 40), st.floats(-0.5, 0.09)),
        min_size=1,
        max_size=3,
    )
)
def test_shapes_of_arrays(processor, clips):
    videos = [frames(count, (height, width)) for count, height, width, _ in clips]
    waveforms = [sound(count + rest) for count, _, _, rest in clips]
    inputs = processor(videos, waveforms, sampling_rate=RATE)
    longest = max(clip[0] for clip in clips)
    assert inputs["pixel_values_videos"].shape == (len(clips), longest, 3, 64, 64)
    assert inputs["input_features"].shape == (len(clips), longest, 1, 101, 32)
    assert inputs["frame_mask"].sum(1).tolist() == [clip[0] for clip in clips]


def test_broken_clip_is_named(processor, paths, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"x" * 1000)
    with pytest.raises(MediaError, match=r"broken\.mp4: cannot be read"):
        processor([paths[0], tmp_path / "broken.mp4"])
    with pytest.raises(MediaError, match="clip 1 <1000 bytes>: cannot be read"):
        processor([paths[0], b"x" * 1000])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "nothing to process"),
        ({"videos": []}, "empty list"),
        ({"audio": sound(1), "sampling_rate": RATE}, "without `videos`"),
        ({"videos": frames(3)}, "clip 0 is given as frames without sound"),
        ({"videos": frames(3), "audio": sound(3)}, "no `sampling_rate` was given for sound 0; expected"),
        ({"videos": frames(3), "audio": sound(3), "sampling_rate": 0}, "must be a positive whole number, got 0"),
        ({"videos": frames(3), "audio": sound(3), "sampling_rate": 64_000}, "a sound of 1.50 s"),
        ({"videos": frames(3), "audio": sound(5), "sampling_rate": RATE}, "3 frames but a sound of 5.00 s"),
        ({"videos": frames(3), "audio": sound(2), "sampling_rate": RATE}, "3 frames but a sound of 2.00 s"),
        ({"videos": [frames(3)] * 2, "audio": [sound(3)], "sampling_rate": RATE}, "2 clips but 1 sounds"),
        ({"videos": frames(3)[0], "audio": sound(3), "sampling_rate": RATE}, r"shape \(40, 50, 3\); expected \(T, H"),
        ({"videos": list(frames(3)), "audio": [sound(3)] * 3, "sampling_rate": RATE}, "1 clips but 3 sounds"),
        ({"videos": [3.5]}, "clip 0 is a float; expected a media file"),
    ],
)
def test_errors(processor, arguments, words):
    with pytest.raises(CaeAvError, match=words):
        processor(**arguments)


def test_clip_of_another_rate(processor, paths):
    clip = load_clip(paths[0], num_segments=3, sampling_rate=16_000)
    with pytest.raises(CaeAvError, match=r"three\.mp4: read with 48000 samples at 16000 Hz; expected sound at 32000"):
        processor(clip)
    with pytest.raises(CaeAvError, match="read with 0 samples"):
        processor(processor.load_clip(paths[0], with_audio=False))


def test_clips_without_sound_are_silent_where_that_is_wanted(processor, tmp_path):
    mute = write_clip(tmp_path / "mute.mp4", seconds=2.0, fps=4, audio=False)
    silent = write_clip(tmp_path / "silent.mp4", seconds=2.0, fps=4, sound=np.zeros_like)
    expected = processor(silent)
    clip = processor.load_clip(mute, on_missing_audio="silence")
    assert not clip.has_audio
    assert processor.load_clip(silent).has_audio
    assert clip.waveform.shape == (2 * processor.sampling_rate,)
    for inputs in (processor(mute, on_missing_audio="silence"), processor(clip)):
        torch.testing.assert_close(inputs["input_features"], expected["input_features"], rtol=0, atol=1e-3)
        assert inputs["frame_mask"].all()
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    assert processor(frames, on_missing_audio="silence")["input_features"].shape[:2] == (1, 3)
    for source in (str(mute), frames):
        with pytest.raises(CaeAvError, match="on_missing_audio='silence'"):
            processor(source)
    with pytest.raises(CaeAvError, match="must be 'error' or 'silence', got 'no'"):
        processor(mute, on_missing_audio="no")
    spread = CaeAvProcessor.from_config(CaeAvConfig.from_preset("avqa", size="toy", num_frames=4))
    assert not spread.load_clip(mute, on_missing_audio="silence").waveform.any()


# Captions


def test_captions_alone(processor):
    inputs = processor(visual_captions=["a", ""], audio_captions=["b", "c"])
    assert set(inputs) == {key for key in KEYS if "caption" in key}
    # An empty caption is a caption: start and end.
    assert inputs["visual_caption_mask"].sum(1).tolist() == [3, 2]


def test_absent_captions(processor, paths):
    expected = processor(paths[:2])
    assert "visual_caption_ids" not in expected
    assert_same_clip(processor(paths[:2], visual_captions=[None, None], audio_captions=None), expected)


@pytest.mark.parametrize(
    ("visual", "audio", "words"),
    [
        (["a", None], ["b", "c"], "`visual_captions` has no caption for clip 1; expected captions for all clips"),
        (["a", "b"], None, "`audio_captions` are missing; expected both"),
        (None, ["a", "b"], "`visual_captions` are missing; expected both"),
        (["a"], ["b"], "1 captions in `visual_captions`; expected 2"),
        (["a", "b"], ["c", "d", "e"], "3 captions in `audio_captions`; expected 2"),
        (["a", 3], ["b", "c"], "`visual_captions` holds a int; expected strings"),
    ],
)
def test_caption_errors(processor, paths, visual, audio, words):
    with pytest.raises(CaeAvError, match=words):
        processor(paths[:2], visual_captions=visual, audio_captions=audio)


# Outputs


def test_intervals_of_a_clip(processor):
    event = torch.tensor([[3.0, 2.0, -1.0, 0.0, 1.0, 1.0]])
    classes = torch.tensor([[0.0, 2.0, 1.0]])
    agreement = (torch.zeros(1, 6), torch.linspace(0, 0.5, 6)[None])
    outputs = {"event_logits": event, "class_logits": classes, "agreement": agreement}
    (result,) = processor.post_process_event_localization(outputs)
    chance = float(classes.softmax(-1)[0, 1])
    scores = [float(value) * chance for value in event[0].sigmoid()]
    assert result["scores"] == pytest.approx(scores)
    # sigmoid(0) = .5 is not above the threshold.
    assert result["segments"] == ["Violin", "Violin", "background", "background", "Violin", "Violin"]
    assert result["intervals"] == [
        {"label": "Violin", "label_id": 1, "start": 0, "end": 2, "score": pytest.approx(np.mean(scores[:2]))},
        {"label": "Violin", "label_id": 1, "start": 4, "end": 6, "score": pytest.approx(np.mean(scores[4:]))},
    ]
    assert result["agreement"] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert result["misaligned"] is None


def test_head_mlp_gives_each_segment_its_most_probable_class(processor):
    probabilities = torch.tensor(
        [[0.5, 0.3, 0.1, 0.1], [0.3, 0.2, 0.1, 0.4], [0.1, 0.1, 0.7, 0.1], [0.1, 0.0, 0.6, 0.3], [0.1, 0.8, 0.1, 0.0]]
    )
    frames = probabilities.log()[None]
    outputs = {
        "event_logits": frames[..., :-1].logsumexp(-1) - frames[..., -1],
        "class_logits": frames[..., :-1].logsumexp(1),
        "frame_log_probs": frames,
        "frame_mask": torch.tensor([[True, True, True, True, False]]),
    }
    (result,) = processor.post_process_event_localization(outputs)
    names = [processor.label_name(label) for label in range(3)]
    # In the second segment something happens with a probability of .6, but background is the most probable class.
    assert result["segments"] == [names[0], "background", names[2], names[2]]
    assert result["scores"] == pytest.approx([0.5, 0.3, 0.7, 0.6])
    assert [(run["label_id"], run["start"], run["end"]) for run in result["intervals"]] == [(0, 0, 1), (2, 2, 4)]
    assert result["intervals"][1]["score"] == pytest.approx(0.65)
    # .3 / (.3 + .4) is above .4; .6 / (.6 + .3) is not above .7.
    (low,) = processor.post_process_event_localization(outputs, threshold=0.4)
    assert low["segments"][1] == names[0]
    (high,) = processor.post_process_event_localization(outputs, threshold=0.7)
    assert high["segments"][2:] == [names[2], "background"]
    with pytest.raises(CaeAvError, match=r"`frame_log_probs` \(1, 5, 4\), got shape \(1, 5, 3\)"):
        processor.post_process_event_localization({**outputs, "frame_log_probs": frames[..., 1:]})


def test_misaligned_intervals_keep_their_times(processor):
    outputs = {
        "event_logits": torch.ones(1, 5),
        "class_logits": torch.eye(3)[:1],
        "agreement": (torch.zeros(1, 5),),
        "agreement_probs": (torch.tensor([[0.3, 0.1, 0.2, 0.7, 0.4]]),),
        "frame_mask": torch.tensor([[True, False, True, True, True]]),
    }
    (result,) = processor.post_process_event_localization(outputs, segment_seconds=0.5)
    assert result["agreement"] == pytest.approx([0.3, 0.2, 0.7, 0.4])
    assert result["misaligned"] == [
        {"start": 0.0, "end": 0.5, "agreement": pytest.approx(0.3)},
        {"start": 1.0, "end": 1.5, "agreement": pytest.approx(0.2)},
        {"start": 2.0, "end": 2.5, "agreement": pytest.approx(0.4)},
    ]


def test_padded_segments_are_left_out(processor):
    outputs = {
        "event_logits": torch.ones(2, 4),
        "class_logits": torch.eye(3)[:2],
        "agreement": (torch.ones(2, 4),),
        "frame_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool(),
    }
    first, second = processor.post_process_event_localization(outputs, segment_seconds=0.5)
    assert len(first["segments"]) == len(first["scores"]) == len(first["agreement"]) == 2
    assert [(run["label"], run["start"], run["end"]) for run in first["intervals"]] == [("Bark", 0, 1)]
    assert [(run["label"], run["start"], run["end"]) for run in second["intervals"]] == [("Violin", 0, 2)]
    # A given mask is used instead; a gap ends a run and keeps the times.
    mask = torch.tensor([[True, False, True, True]] * 2)
    first, _ = processor.post_process_event_localization(outputs, frame_mask=mask)
    assert [(run["start"], run["end"]) for run in first["intervals"]] == [(0, 1), (2, 4)]


def test_threshold_and_half_precision(processor):
    outputs = {
        "event_logits": torch.tensor([[0.0, 3.0]], dtype=torch.bfloat16, requires_grad=True),
        "class_logits": torch.zeros(1, 3, dtype=torch.bfloat16),
    }
    (low,) = processor.post_process_event_localization(outputs, threshold=0.4)
    assert "background" not in low["segments"]
    assert low["agreement"] is None
    (high,) = processor.post_process_event_localization(outputs, threshold=1.0)
    assert high["intervals"] == []
    assert high["segments"] == ["background"] * 2


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_intervals_agree_with_segments(processor, data):
    length = data.draw(st.integers(1, 12))
    events = data.draw(st.lists(st.floats(-5, 5), min_size=length, max_size=length))
    real = data.draw(st.integers(1, length))
    outputs = {
        "event_logits": torch.tensor([events]),
        "class_logits": torch.tensor([[0.0, 1.0, 0.5]]),
        "frame_mask": (torch.arange(length) < real)[None],
    }
    (result,) = processor.post_process_event_localization(outputs)
    painted = ["background"] * real
    for run in result["intervals"]:
        for segment in range(int(run["start"]), int(run["end"])):
            painted[segment] = run["label"]
        assert 0 < run["score"] <= 1
    assert painted == result["segments"]
    gaps = zip(result["intervals"], result["intervals"][1:], strict=False)
    assert all(before["end"] < after["start"] for before, after in gaps)


def test_labels_without_names():
    nameless = CaeAvProcessor(CaeAvFeatureExtractor(), CaeAvVideoProcessor(), build_clip_tokenizer(600))
    outputs = {"event_logits": torch.ones(1, 1), "class_logits": torch.eye(3)[2:]}
    assert nameless.post_process_event_localization(outputs)[0]["segments"] == ["LABEL_2"]


@pytest.mark.parametrize(
    ("outputs", "kwargs", "words"),
    [
        (
            {"event_logits": torch.ones(1, 2), "class_logits": torch.ones(2, 3)},
            {},
            r"got shapes \(1, 2\) and \(2, 3\)",
        ),
        ({"event_logits": torch.ones(2), "class_logits": torch.ones(2, 3)}, {}, "got shapes"),
        (
            {"event_logits": torch.ones(1, 2), "class_logits": torch.ones(1, 3)},
            {"frame_mask": torch.ones(1, 3)},
            r"`frame_mask` has shape \(1, 3\)",
        ),
        ({"event_logits": torch.ones(1, 2), "class_logits": torch.ones(1, 3)}, {"threshold": 1.5}, "`threshold`"),
        (
            {"event_logits": torch.ones(1, 2), "class_logits": torch.eye(5)[4:]},
            {},
            "class 4 of the outputs has no name",
        ),
    ],
)
def test_output_errors(processor, outputs, kwargs, words):
    with pytest.raises(CaeAvError, match=words):
        processor.post_process_event_localization(outputs, **kwargs)


def test_segments_are_spread_where_the_configuration_says_so(tmp_path):
    spread = CaeAvProcessor.from_config(CaeAvConfig.from_preset("avqa", size="toy", num_frames=4))
    path = write_clip(tmp_path / "clip.mp4", seconds=12, fps=5, layout="mono", audio_rate=32_000)
    clip = spread.load_clip(path)
    np.testing.assert_allclose(clip.frame_times, [1.4, 4.4, 7.4, 10.4], atol=1e-6)
    inputs = spread(path)
    assert inputs["pixel_values_videos"].shape == (1, 4, 3, 64, 64)
    assert inputs["frame_mask"].all()
    torch.testing.assert_close(inputs["input_features"], spread(clip)["input_features"], rtol=0, atol=1e-3)
    # Separate sound is taken from the same seconds.
    sound = write_wav(tmp_path / "sound.wav", seconds=12, rate=32_000)
    waveform = load_audio(sound, sampling_rate=32_000)
    given = [spread(path, audio=sound), spread(clip, audio=[waveform], sampling_rate=32_000)]
    loud = inputs["input_features"] > 0
    for features in (one["input_features"] for one in given):
        assert (features - inputs["input_features"])[loud].abs().median() < 1
        torch.testing.assert_close(features, given[0]["input_features"], rtol=0, atol=1e-3)
    # Frames given as images come with the sound of their segments.
    frames = spread(clip.frames, audio=clip.waveform, sampling_rate=32_000)
    torch.testing.assert_close(frames["input_features"], inputs["input_features"], rtol=0, atol=1e-3)
    with pytest.raises(CaeAvError, match="`frame_sampling` must be"):
        CaeAvProcessor(CaeAvFeatureExtractor(), CaeAvVideoProcessor(), build_clip_tokenizer(600), frame_sampling="x")
