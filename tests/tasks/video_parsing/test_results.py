"""From probabilities of classes in frames and clips to tracks of intervals."""

import json

import pytest
import torch

from caeav_hf import CaeAvConfig, CaeAvError, CaeAvForVideoParsing, CaeAvProcessor
from caeav_hf.tasks.video_parsing.results import ParsedSegments


@pytest.fixture(scope="module")
def processor():
    labels = {0: "dog", 1: "bell", 2: "rain"}
    return CaeAvProcessor.from_config(CaeAvConfig.from_preset("avvp", size="toy", id2label=labels))


def outputs(**changes):
    """Return outputs for two clips of six segments and three classes, in which only `changes` are heard or seen."""
    made = {
        "audio_probs": torch.full((2, 3), 0.9),
        "visual_probs": torch.full((2, 3), 0.9),
        "audio_frame_probs": torch.full((2, 6, 3), 0.1),
        "visual_frame_probs": torch.full((2, 6, 3), 0.1),
        "agreement": (torch.zeros(2, 6), torch.full((2, 6), 0.25)),
    }
    return made | changes


def spans(track):
    return [(interval["label"], interval["start"], interval["end"]) for interval in track]


def test_runs_of_each_modality_and_of_both(processor):
    given = outputs()
    given["audio_frame_probs"][0, [0, 1, 2, 4], 1] = torch.tensor([0.8, 0.6, 0.7, 0.5])
    given["audio_frame_probs"][0, 2:4, 0] = 0.75
    given["visual_frame_probs"][0, 1:5, 1] = 0.5
    first, second = processor.post_process_video_parsing(given)
    assert spans(first["audible"]) == [("bell", 0.0, 3.0), ("dog", 2.0, 4.0), ("bell", 4.0, 5.0)]
    assert first["audible"][0]["score"] == pytest.approx(0.7)
    assert first["audible"][0]["label_id"] == 1
    assert spans(first["visible"]) == [("bell", 1.0, 5.0)]
    assert spans(first["both"]) == [("bell", 1.0, 3.0), ("bell", 4.0, 5.0)]
    assert first["both"][0]["score"] == pytest.approx((0.6 + 0.7) / 2 * 0.5)
    assert first["agreement"] == [0.25] * 6
    assert first["misaligned"] is None
    assert [second[name] for name in ("audible", "visible", "both")] == [[], [], []]
    assert json.loads(json.dumps(first)) == first


def test_calibrated_agreement_says_where_sound_and_picture_part(processor):
    probs = torch.tensor([[0.9, 0.4, 0.2, 0.8, 0.5, 0.1], [0.9] * 6])
    given = outputs(agreement_probs=(torch.zeros(2, 6), probs))
    first, second = processor.post_process_video_parsing(given)
    assert first["agreement"] == pytest.approx(probs[0].tolist())
    assert first["misaligned"] == [
        {"start": 1.0, "end": 3.0, "agreement": pytest.approx(0.3)},
        {"start": 5.0, "end": 6.0, "agreement": pytest.approx(0.1)},
    ]
    assert second["misaligned"] == []
    assert json.loads(json.dumps(first)) == first


def test_both_thresholds_decide(processor):
    given = outputs()
    given["audio_frame_probs"][0, :, 2] = 0.6
    given["audio_probs"][0, 2] = 0.4
    assert processor.post_process_video_parsing(given)[0]["audible"] == []
    found = processor.post_process_video_parsing(given, video_threshold=0.4)[0]["audible"]
    assert spans(found) == [("rain", 0.0, 6.0)]
    assert processor.post_process_video_parsing(given, threshold=0.7, video_threshold=0.4)[0]["audible"] == []


def test_padding_is_left_out(processor):
    given = outputs(frame_mask=torch.tensor([[True] * 6, [True] * 2 + [False] * 4]))
    given["visual_frame_probs"][:, :, 0] = 1.0
    full, short = processor.post_process_video_parsing(given)
    assert spans(full["visible"]) == [("dog", 0.0, 6.0)]
    assert spans(short["visible"]) == [("dog", 0.0, 2.0)]
    assert len(short["agreement"]) == 2
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    assert processor.post_process_video_parsing(given, frame_mask=nothing)[0]["visible"] == []


def test_scores_are_probabilities_even_where_frames_are_above_one(processor):
    given = outputs(agreement=None)
    given["audio_frame_probs"][0, 0, 0] = 1.4
    (found,) = processor.post_process_video_parsing(given)[0]["audible"]
    assert found["score"] == 1.0
    assert processor.post_process_video_parsing(given)[0]["agreement"] is None


def test_a_run_goes_on_over_joined_parts(processor):
    given = outputs()
    given["audio_frame_probs"][0, 4:, 1] = 0.6
    given["audio_frame_probs"][1, :3, 1] = 0.9
    joined = ParsedSegments.joined(processor.parsed_segments(given))
    tracks = processor.parsing_tracks(joined)
    assert spans(tracks["audible"]) == [("bell", 4.0, 9.0)]
    assert tracks["audible"][0]["score"] == pytest.approx((2 * 0.6 + 3 * 0.9) / 5)
    assert len(tracks["agreement"]) == 12


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"threshold": 1.5}, "`threshold`"),
        ({}, {"video_threshold": -0.1}, "`video_threshold`"),
        ({"audio_probs": torch.zeros(2, 4)}, {}, "expected `audio_frame_probs`"),
        ({"visual_frame_probs": torch.zeros(2, 5, 3)}, {}, "expected `audio_frame_probs`"),
        ({}, {"frame_mask": torch.ones(2, 5)}, "frame_mask"),
    ],
)
def test_bad_input(processor, changes, arguments, message):
    with pytest.raises(CaeAvError, match=message):
        processor.post_process_video_parsing(outputs(**changes), **arguments)


def test_what_the_model_gives_is_understood():
    config = CaeAvConfig.from_preset("avvp", size="toy", num_frames=3)
    model, processor = CaeAvForVideoParsing(config).eval(), CaeAvProcessor.from_config(config)
    frames = torch.randint(0, 255, (2, 48, 64, 3), dtype=torch.uint8).numpy()
    inputs = processor(videos=[frames], audio=[torch.randn(64_000).numpy()], sampling_rate=32_000)
    with torch.no_grad():
        made = model(**inputs)
    (result,) = processor.post_process_video_parsing(made, threshold=0.0, video_threshold=0.0)
    assert len(result["both"]) == config.num_labels
    assert len(result["agreement"]) == 2
