"""The `caeav` command."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

import caeav_hf
from caeav_hf import CaeAvConfig, CaeAvForEventLocalization, CaeAvForVideoParsing, CaeAvProcessor
from caeav_hf.assets import toy_towers
from caeav_hf.cli import main
from caeav_hf.pipelines import register
from caeav_hf.streaming import JoinedResult
from caeav_hf.visualization import annotations_of
from tests.media_factory import write_clip
from tests.training.toy_files import (
    few_shot_model,
    mask_clips,
    mask_model,
    parsing_model,
    question_model,
    toy_clips,
    toy_corpus,
    toy_model,
    understanding_model,
)


def predict(*arguments):
    return main(["predict", *map(str, arguments), "--model", str(toy_model()), "--device", "cpu"])


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"this is no clip")
    return path


def test_version_and_help(capsys):
    for arguments, text in (
        (["--version"], caeav_hf.__version__),
        (["--help"], "predict"),
        (["predict", "-h"], "--plot"),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        assert text in capsys.readouterr().out


def test_predict_prints_json(capsys):
    toy_model()
    capsys.readouterr()  # libraries may print while the model is saved
    assert predict(*toy_clips(2)) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["file"] for result in results] == toy_clips(2)
    assert all(len(result["segments"]) == 10 for result in results)


@pytest.mark.slow
def test_predict_writes_one_file_or_one_per_clip(tmp_path, capsys):
    clips = toy_clips(3)
    assert predict(*clips, "--out", tmp_path / "all.json", "--batch-size", 2) == 0
    assert predict(*clips, "--out", tmp_path / "each") == 0
    assert capsys.readouterr().out == ""
    together = json.loads((tmp_path / "all.json").read_text())
    apart = [json.loads((tmp_path / "each" / f"{Path(clip).stem}.json").read_text()) for clip in clips]
    assert [result["segments"] for result in together] == [result["segments"] for result in apart]


@pytest.mark.slow
def test_predict_draws(tmp_path, capsys):
    clips = toy_clips(2)
    assert predict(clips[0], "--plot", tmp_path / "one.png") == 0
    assert predict(*clips, "--plot", tmp_path / "pictures") == 0
    pictures = [tmp_path / "one.png", *(tmp_path / "pictures" / f"{Path(clip).stem}.png" for clip in clips)]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.slow
def test_captions_are_found_by_name(tmp_path, capsys):
    clip = toy_clips(1)[0]
    caption = json.loads((toy_corpus() / "captions.json").read_text())[Path(clip).stem]
    scores = []
    for key in (None, clip, Path(clip).name, Path(clip).stem):
        path = tmp_path / "captions.json"
        path.write_text(json.dumps({} if key is None else {key: caption}))
        assert predict(clip, "--captions", path) == 0
        scores.append(json.loads(capsys.readouterr().out)[0]["scores"])
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)
    for others in scores[2:]:
        assert others == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.slow
def test_threshold(capsys):
    predict(toy_clips(1)[0], "--threshold", "1")
    assert json.loads(capsys.readouterr().out)[0]["intervals"] == []


def test_a_broken_clip_is_reported_and_the_others_are_analyzed(tmp_path, capsys, broken):
    clip = toy_clips(1)[0]
    assert predict(broken, clip, "--out", tmp_path / "out.json", "--plot", tmp_path / "pictures") == 2
    results = json.loads((tmp_path / "out.json").read_text())
    assert "error" in results[0]
    assert len(results[1]["segments"]) == 10
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("caeav: error")]
    assert len(errors) == 1
    assert str(broken) in errors[0]


@pytest.mark.slow
def test_errors_are_one_line_and_exit_code_2(tmp_path, capsys):
    clip = toy_clips(1)[0]
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "half.json").write_text('{"a": {"visual": "x"}}')
    model = ["--model", str(toy_model())]
    cases = {
        "/no/such/model": ["predict", clip, "--model", "/no/such/model"],
        "bad.json": ["predict", clip, *model, "--captions", str(tmp_path / "bad.json")],
        "list.json": ["predict", clip, *model, "--captions", str(tmp_path / "list.json")],
        "half.json": ["predict", clip, *model, "--captions", str(tmp_path / "half.json")],
        "--batch-size": ["predict", clip, *model, "--batch-size", "0"],
        "expected a folder": ["predict", clip, clip, *model, "--plot", str(tmp_path / "one.png")],
        "several clips": ["predict", clip, clip, *model, "--out", str(tmp_path / "folder")],
        "no/folder": ["predict", clip, *model, "--out", str(tmp_path / "no" / "folder.json")],
        "threshold": ["predict", clip, *model, "--threshold", "7"],
    }
    for expected, arguments in cases.items():
        assert main(arguments) == 2, expected
        captured = capsys.readouterr()
        (line,) = [line for line in captured.err.splitlines() if line.startswith("caeav: error: ")]
        assert expected in line
        assert "Traceback" not in captured.err


@pytest.mark.slow
def test_a_clip_without_sound_and_the_first_window(tmp_path, capsys):
    mute = write_clip(tmp_path / "mute.mp4", seconds=13.0, fps=4, audio=False)
    assert predict(mute, "--plot", tmp_path / "all.png") == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["has_audio"] is False
    assert result["analyzed"] == {"start": 0.0, "end": 13.0, "segments": 13}
    assert predict(mute, "--windows", "first", "--plot", tmp_path / "first.png") == 0
    assert len(json.loads(capsys.readouterr().out)[0]["segments"]) == 10
    assert predict(mute, "--on-missing-audio", "error") == 2
    assert "mute.mp4: no audio stream" in errors(capsys)[0]
    assert segment(mute, "--out", tmp_path / "masks") == 0
    (entry,) = json.loads((tmp_path / "masks" / "index.json").read_text())
    assert (entry["has_audio"], entry["analyzed"]["end"], len(entry["frames"])) == (False, 13.0, 13)


def segment(*arguments):
    return main(["predict", *map(str, arguments), "--model", str(mask_model()), "--device", "cpu"])


@pytest.mark.slow
def test_masks_of_clips_are_written_with_an_index(tmp_path, capsys, broken):
    first, second = mask_clips(2)
    out = tmp_path / "masks"
    assert segment(first, broken, second, "--out", out, "--batch-size", 2) == 2
    assert str(broken) in capsys.readouterr().err
    index = json.loads((out / "index.json").read_text())
    assert [entry["file"] for entry in index] == [first, str(broken), second]
    assert "error" in index[1]
    expected = pipeline("audio-visual-segmentation", model=str(mask_model()), device="cpu")([first, second])
    for entry, result in zip((index[0], index[2]), expected, strict=True):
        assert (entry["width"], entry["height"]) == (64, 64)
        assert [frame["timestamp"] for frame in entry["frames"]] == result["timestamps"]
        assert [(frame["start"], frame["end"]) for frame in entry["frames"]] == [(t, t + 1) for t in range(5)]
        for number, (frame, mask) in enumerate(zip(entry["frames"], result["masks"], strict=True)):
            assert frame["mask"] == f"{Path(entry['file']).stem}/{number:05d}.png"
            picture = np.asarray(Image.open(out / frame["mask"]))
            # Another batch size changes the order of sums, so a pixel at the threshold may differ.
            assert ((picture == 255) != mask).mean() < 0.01
            assert set(np.unique(picture)) <= {0, 255}
            assert frame["covered"] == pytest.approx((picture == 255).mean())


@pytest.mark.slow
def test_masks_without_a_folder_are_summed_up(capsys):
    assert segment(mask_clips(1)[0], "--threshold", "1") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert [frame["covered"] for frame in entry["frames"]] == [0.0] * 5
    assert "mask" not in entry["frames"][0]


@pytest.mark.slow
def test_masks_are_drawn_and_laid_over_the_clip(tmp_path, capsys):
    first, second = mask_clips(2)
    assert segment(first, "--plot", tmp_path / "one.png", "--overlay", tmp_path / "one.mp4") == 0
    assert segment(first, second, "--plot", tmp_path / "all", "--overlay", tmp_path / "all") == 0
    for picture in (tmp_path / "one.png", tmp_path / "all" / f"{Path(second).stem}.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    for source, video in ((first, tmp_path / "one.mp4"), (second, tmp_path / "all" / f"{Path(second).stem}.mp4")):
        frames, sounds, lengths = [], [], []
        for path in (source, video):
            with av.open(str(path)) as container:
                frames.append([frame.time for frame in container.decode(video=0)])
                lengths.append(container.duration / av.time_base)
            with av.open(str(path)) as container:
                sounds.append([bytes(packet) for packet in container.demux(audio=0) if packet.size])
        assert frames[0] == pytest.approx(frames[1], abs=1e-3)
        assert sounds[0] == sounds[1]
        assert lengths[0] == pytest.approx(lengths[1], abs=0.05)


@pytest.mark.slow
def test_errors_of_segmentation(tmp_path, capsys):
    clip = mask_clips(1)[0]
    model = ["--model", str(mask_model()), "--device", "cpu"]
    cases = {
        "expected a folder, which masks": ["predict", clip, *model, "--out", str(tmp_path / "masks.json")],
        "expected a folder": ["predict", clip, *mask_clips(2), *model, "--overlay", str(tmp_path / "one.mp4")],
        "several clips": ["predict", clip, clip, *model, "--out", str(tmp_path / "folder")],
        "ends in .mp4": ["predict", clip, *model, "--overlay", str(tmp_path / "one.avi")],
        "finds events": ["predict", clip, "--model", str(toy_model()), "--overlay", str(tmp_path / "one.mp4")],
    }
    for expected, arguments in cases.items():
        assert main(arguments) == 2, expected
        captured = capsys.readouterr()
        (line,) = [line for line in captured.err.splitlines() if line.startswith("caeav: error: ")]
        assert expected in line


def errors(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("caeav: error: ")]


def understand(*arguments, outputs="both"):
    model = ["--model", str(understanding_model(outputs)), "--device", "cpu"]
    return main(["predict", *map(str, arguments), *model])


@pytest.mark.slow
def test_sentences_are_written_drawn_and_laid_below_the_clip(tmp_path, capsys):
    clip = mask_clips(1)[0]
    files = [tmp_path / name for name in ("one.png", "one.mp4", "one.srt")]
    places = [
        word for option, file in zip(("--plot", "--overlay", "--srt"), files, strict=True) for word in (option, file)
    ]
    assert understand(clip, "--out", tmp_path / "out", *places, "--max-new-tokens", 5) == 0
    (entry,) = json.loads((tmp_path / "out" / "index.json").read_text())
    expected = pipeline("sound-source-understanding", model=str(understanding_model()), device="cpu")(
        clip, max_new_tokens=5
    )
    assert [frame["description"] for frame in entry["frames"]] == expected["descriptions"]
    assert entry["intervals"] == expected["intervals"]
    assert [(tmp_path / "out" / frame["mask"]).is_file() for frame in entry["frames"]] == [True] * 5
    assert files[0].read_bytes().startswith(b"\x89PNG")
    with av.open(str(files[1])) as container:
        assert container.streams.video[0].height > 64  # the sentences are below the frames
    assert files[2].read_text().count(" --> ") == len(expected["intervals"])


@pytest.mark.slow
def test_models_of_masks_or_sentences_alone(tmp_path, capsys, broken):
    first, second = mask_clips(2)
    folders = [word for option in ("--plot", "--overlay") for word in (option, tmp_path / option[2:])]
    assert understand(first, broken, second, *folders, "--srt", tmp_path / "srt", outputs="descriptions") == 2
    captured = capsys.readouterr()
    assert str(broken) in captured.err
    entries = json.loads(captured.out)
    assert ["error" in entry for entry in entries] == [False, True, False]
    assert entries[0]["frames"][0].keys() == {"timestamp", "start", "end", "description"}
    for clip in (first, second):
        for folder, suffix in (("plot", "png"), ("overlay", "mp4"), ("srt", "srt")):
            assert (tmp_path / folder / f"{Path(clip).stem}.{suffix}").is_file()
    assert understand(first, "--plot", tmp_path / "masks.png", outputs="masks") == 0
    assert "description" not in json.loads(capsys.readouterr().out)[0]["frames"][0]


def test_what_a_model_lacks_is_refused_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "caeav_hf.pipelines.loading.load_pipeline", lambda *_, **__: pytest.fail("the model is loaded")
    )
    clip = mask_clips(1)[0]
    for outputs, option, needed in (
        ("masks", ["--srt", str(tmp_path / "srt")], "--srt needs a model that describes what sounds"),
        ("masks", ["--max-new-tokens", "5"], "--max-new-tokens needs a model that describes"),
        ("descriptions", ["--threshold", "0.3"], "--threshold needs a model that predicts masks"),
    ):
        assert understand(clip, clip, *option, outputs=outputs) == 2
        (line,) = errors(capsys)
        assert needed in line
        assert f"predicts {outputs} alone" in line
    assert not list(tmp_path.iterdir())


def test_visual_captions_are_enough_for_sentences(tmp_path, capsys, monkeypatch):
    clip, given = mask_clips(1)[0], []

    class Model:
        def __call__(self, clips, **_):
            given.extend(clips)
            return iter([{"error": "not read"}])

    monkeypatch.setattr("caeav_hf.pipelines.loading.load_pipeline", lambda *_, **__: Model())
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({Path(clip).stem: {"visual": "a violin plays"}}))
    assert understand(clip, "--captions", captions) == 2
    assert given == [{"clip": clip, "visual_caption": "a violin plays"}]
    captions.write_text(json.dumps({Path(clip).stem: {"audio": "a violin"}}))
    capsys.readouterr()
    assert understand(clip, "--captions", captions) == 2
    assert 'expected {clip: {"visual": text}}' in errors(capsys)[0]


EXPORTS = {"srt": "srt", "vtt": "vtt", "csv": "csv", "eaf": "eaf", "audacity": "txt"}


def test_events_are_exported(tmp_path, capsys):
    clips = toy_clips(2)
    flags = [word for name in EXPORTS for word in (f"--{name}", tmp_path / name)]
    assert predict(*clips, *flags, "--csv", tmp_path / "all.csv") == 0
    found = annotations_of(json.loads(capsys.readouterr().out)[0])
    for name, suffix in EXPORTS.items():
        if name != "csv":
            files = sorted((tmp_path / name).iterdir())
            assert [file.name for file in files] == [f"{Path(clip).stem}.{suffix}" for clip in clips]
            assert all(one.label in files[0].read_text() for one in found)
    table = (tmp_path / "all.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in table[1:]} == set(clips)
    assert f'MEDIA_URL="{Path(clips[0]).as_uri()}"' in (tmp_path / "eaf" / f"{Path(clips[0]).stem}.eaf").read_text()
    assert predict(*clips, "--eaf", tmp_path / "one.eaf") == 2
    assert "expected a folder" in errors(capsys)[-1]


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    """A clip of 23 seconds: more than two windows of ten."""
    return write_clip(tmp_path_factory.mktemp("long") / "long.mp4", seconds=23.0, fps=4)


def test_a_long_clip_is_processed_as_a_stream(tmp_path, capsys, long_clip, broken):
    short = toy_clips(1)[0]
    out, picture = tmp_path / "out.json", tmp_path / "plots"
    flags = ["--out", out, "--plot", picture, "--csv", tmp_path / "all.csv"]
    assert predict(short, long_clip, broken, *flags, "--threshold", "0") == 2
    one, several, failed = json.loads(out.read_text())
    assert "gaps" not in one
    assert several["gaps"] == []
    assert several.keys() == one.keys() | {"gaps"}
    assert len(several["segments"]) == len(several["scores"]) == 23
    assert several["analyzed"] == {"start": 0.0, "end": 23.0, "segments": 23}
    assert (several["intervals"][0]["start"], several["intervals"][-1]["end"]) == (0.0, 23.0)
    assert "error" in failed
    assert "real time" in capsys.readouterr().err
    assert (picture / "long.png").read_bytes().startswith(b"\x89PNG")
    assert {line.split(",")[0] for line in (tmp_path / "all.csv").read_text().splitlines()[1:]} == {
        short,
        str(long_clip),
    }


@pytest.mark.slow
def test_windows_of_a_long_clip(tmp_path, capsys, long_clip):
    assert predict(long_clip, "--windows", "first") == 0
    assert len(json.loads(capsys.readouterr().out)[0]["segments"]) == 10
    assert predict(long_clip, "--stride", "10") == 0
    (result,) = json.loads(capsys.readouterr().out)
    register()
    expected = pipeline("audio-visual-event-localization", model=str(toy_model()), device="cpu")(str(long_clip))
    # Without overlap, windows are those of the pipeline.
    assert result["segments"] == expected["segments"]
    assert result["scores"] == pytest.approx(expected["scores"], abs=1e-4)
    for arguments in (["--stride", "11"], ["--stride", "5", "--windows", "first"]):
        assert predict(long_clip, *arguments) == 2
        assert "stride" in errors(capsys)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True])
def test_what_was_found_is_kept_when_a_long_clip_is_interrupted(tmp_path, capsys, monkeypatch, long_clip, several):
    monkeypatch.setattr("caeav_hf.cli.outputs.SAVE_INTERVAL", 0.0)
    monkeypatch.setattr("caeav_hf.cli.outputs.SAVE_SHARE", 1e9)
    out = tmp_path / ("out" if several else "out.json")
    file = out / "long.json" if several else out
    seen = []
    joined = JoinedResult.add

    def interrupted(self, update):
        if file.exists():
            content = json.loads(file.read_text())
            seen.append(len((content if several else content[-1])["segments"]))
        if update.end > 12:
            raise KeyboardInterrupt
        joined(self, update)

    monkeypatch.setattr(JoinedResult, "add", interrupted)
    assert predict(long_clip, "--out", out, "--vtt", tmp_path / "vtt", "--threshold", "0") == 130
    assert seen == [5, 10]  # before the interruption, as by then
    content = json.loads(file.read_text())
    assert len((content if several else content[0])["segments"]) == 10
    assert "00:00:00.000 --> 00:00:10.000" in (tmp_path / "vtt" / "long.vtt").read_text()


@pytest.mark.slow
def test_masks_of_a_long_clip_go_to_files(tmp_path, capsys):
    path = write_clip(tmp_path / "long.mp4", seconds=13.0, fps=4)
    common = [str(path), "--model", str(mask_model()), "--device", "cpu", "--overlay"]
    assert main(["predict", *common, str(tmp_path / "a.mp4"), "--out", str(tmp_path / "out")]) == 0
    (entry,) = json.loads((tmp_path / "out" / "index.json").read_text())
    assert [frame["start"] for frame in entry["frames"]] == list(range(13))
    with Image.open(tmp_path / "out" / entry["frames"][7]["mask"]) as image:
        assert image.size == (entry["width"], entry["height"])
    assert main(["predict", *common, str(tmp_path / "b.mp4"), "--plot", str(tmp_path / "sheet.png")]) == 0
    for name in ("a.mp4", "b.mp4", "sheet.png"):
        assert (tmp_path / name).stat().st_size > 1000
    # The overlay made from temporary files is the same.
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.slow
def test_answers_and_labels_are_exported(tmp_path, capsys):
    cases = ((question_model(), ["--question", "How many?"], "How many?"), (few_shot_model(), [], "labels"))
    for number, (model, arguments, tier) in enumerate(cases):
        path = tmp_path / f"{number}.csv"
        flags = ["--model", str(model), "--device", "cpu", "--csv", str(path)]
        assert main(["predict", toy_clips(1)[0], *arguments, *flags]) == 0
        assert f",{tier}," in path.read_text().splitlines()[1]
        printed = json.loads(capsys.readouterr().out)
    assert "segments" not in printed[0][0]


@pytest.mark.slow
def test_tracks_are_written_and_drawn(tmp_path, capsys, broken):
    clips = toy_clips(2)
    model = ["--model", str(parsing_model()), "--device", "cpu"]
    out, pictures = tmp_path / "out.json", tmp_path / "pictures"
    assert main(["predict", clips[0], str(broken), clips[1], *model, "--out", str(out), "--plot", str(pictures)]) == 2
    assert len(errors(capsys)) == 1
    results = json.loads(out.read_text())
    assert [result["file"] for result in results] == [clips[0], str(broken), clips[1]]
    for result in (results[0], results[2]):
        assert {"audible", "visible", "both", "agreement"} <= result.keys()
        assert (pictures / f"{Path(result['file']).stem}.png").read_bytes().startswith(b"\x89PNG")
    assert main(["predict", clips[0], *model, "--threshold", "0", "--video-threshold", "0"]) == 0
    (everything,) = json.loads(capsys.readouterr().out)
    assert len(everything["both"]) == 8
    assert main(["predict", clips[0], *model, "--threshold", "0", "--video-threshold", "1"]) == 0
    (nothing,) = json.loads(capsys.readouterr().out)
    assert nothing["audible"] == nothing["visible"] == []


@pytest.mark.slow
def test_features_of_a_3d_network_are_found_by_name(tmp_path, capsys):
    torch.manual_seed(0)
    clip = toy_clips(1)[0]
    config = CaeAvConfig.from_preset("avvp", size="toy", visual_3d_size=4)
    CaeAvForVideoParsing(config).save_pretrained(tmp_path / "model")
    CaeAvProcessor.from_config(config).save_pretrained(tmp_path / "model")
    capsys.readouterr()
    predicting = ["predict", clip, "--model", str(tmp_path / "model"), "--device", "cpu"]
    assert main([*predicting, "--visual-3d", str(tmp_path)]) == 2
    assert Path(clip).stem in errors(capsys)[0]
    np.save(tmp_path / f"{Path(clip).stem}.npy", np.zeros((10, 4), dtype=np.float32))
    assert main([*predicting, "--visual-3d", str(tmp_path)]) == 0
    assert "audible" in json.loads(capsys.readouterr().out)[0]
    assert main(predicting) == 2
    assert "visual_3d" in errors(capsys)[0]


@pytest.mark.slow
def test_answers_are_written_and_drawn(tmp_path, capsys, broken):
    clips = toy_clips(2)
    questions = ["How many instruments are there?", "Is the bell louder than the siren?"]
    model = ["--model", str(question_model()), "--device", "cpu"]
    asking = [word for question in questions for word in ("--question", question)]
    out, pictures = tmp_path / "each", tmp_path / "pictures"
    assert main(["predict", *clips, str(broken), *model, *asking, "--out", str(out), "--plot", str(pictures)]) == 2
    assert len(errors(capsys)) == 1
    for clip in clips:
        result = json.loads((out / f"{Path(clip).stem}.json").read_text())
        assert [one["question"] for one in result["questions"]] == questions
        for one in result["questions"]:
            scores = [answer["score"] for answer in one["answers"]]
            assert scores == sorted(scores, reverse=True)
            assert len(one["visual_attention"]) == len(one["timestamps"])
            assert "grounding" not in one
        assert (pictures / f"{Path(clip).stem}.png").read_bytes().startswith(b"\x89PNG")
    assert "error" in json.loads((out / f"{broken.stem}.json").read_text())
    assert main(["predict", clips[0], *model, *asking[:2]]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["questions"]) == 1


@pytest.mark.slow
def test_options_of_other_models(tmp_path, capsys):
    clip = toy_clips(1)[0]
    cases = [
        (toy_model(), ["--question", "Who?"], "--question needs a model of question answering"),
        (toy_model(), ["--video-threshold", "0.5"], "--video-threshold needs a model of video parsing"),
        (parsing_model(), ["--overlay", "a.mp4"], "--overlay needs a model of segmentation or sound source"),
        (mask_model(), ["--srt", "a.srt"], "--srt needs a model of event localization or question"),
        (mask_model(), ["--visual-3d", "a"], "--visual-3d needs a model of video parsing"),
        (question_model(), [], "expected at least one --question"),
        (question_model(), ["--question", "Who?", "--threshold", "0.5"], "--threshold needs a model of"),
        (question_model(), ["--question", "???"], "has no word"),
    ]
    for model, arguments, message in cases:
        assert main(["predict", clip, "--model", str(model), "--device", "cpu", *arguments]) == 2, message
        (line,) = errors(capsys)
        assert message in line


@pytest.mark.slow
def test_the_demo_goes_all_the_way(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--quick"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    report = json.loads((out / "report.json").read_text())
    for part in ("all", "aligned", "misaligned"):
        assert 0 <= report[part]["accuracy"] <= 1
        assert 0 < report[part]["baseline"] < 1
    assert report["aligned"]["clips"] + report["misaligned"]["clips"] == report["all"]["clips"]
    for picture in ("aligned.png", "misaligned.png", "run/curves.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    # The next step that the last line suggests works.
    assert last.startswith("Next: caeav ")
    command = last.removeprefix("Next: caeav ").replace("timeline.png", str(tmp_path / "timeline.png"))
    assert main([*command.split(), "--device", "cpu"]) == 0
    assert (tmp_path / "timeline.png").is_file()
    assert main(["demo", "--out", str(out), "--quick"]) == 2
    assert "not an empty folder" in capsys.readouterr().err


@pytest.mark.slow
def test_export_leaves_the_towers_out(tmp_path, capsys):
    torch.manual_seed(0)
    model = CaeAvForEventLocalization.from_backbones(**toy_towers(), size="toy")
    # As after a run.
    best = tmp_path / "run" / "checkpoints" / "best"
    model.save_pretrained(best)
    CaeAvProcessor.from_config(model.config).save_pretrained(best)
    (best / "training_state").mkdir()
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "small"), "--adapter-only"]) == 0
    assert "CaeAvForEventLocalization written to" in capsys.readouterr().out
    assert not (tmp_path / "small" / "training_state").exists()
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "small", best)]
    assert sizes[0] < sizes[1]
    again = CaeAvForEventLocalization.from_pretrained(tmp_path / "small").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    CaeAvProcessor.from_pretrained(tmp_path / "small")


def test_export_says_what_is_wrong(tmp_path, capsys):
    toy_model()
    capsys.readouterr()
    out = ["--out", str(tmp_path / "out")]
    for arguments, message in (
        ([str(tmp_path)], "checkpoints/best"),
        ([str(toy_model()), "--adapter-only"], "the source of this model's vision, audio, text tower is unknown"),
        ([str(toy_model()), "--adapter-only", "--tower", "vision"], "KIND=NAME"),
        ([str(toy_model()), "--tower", "vision=x"], "--adapter-only"),
        ([str(toy_model()), "--adapter-only", "--tower", "sound=x"], "sound"),
    ):
        assert main(["export", *arguments, *out]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("caeav: error: ")
        assert message in line
