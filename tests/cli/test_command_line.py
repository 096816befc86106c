"""Failures of the command line: misspelled words, Ctrl-C, a full disk, a missing model or tracker, strange names."""

import errno
import importlib.util
import os
import platform
import subprocess
import sys

import pytest
from tqdm import tqdm

from caeav_hf import command_line
from caeav_hf.cli import command as cli
from caeav_hf.cli import main as caeav
from caeav_hf.cli.predict import find_clips
from caeav_hf.command_line import disk_is_full
from caeav_hf.constants import MEDIA_SUFFIXES
from caeav_hf.errors import CaeAvError
from caeav_hf.training import Recipe, run
from caeav_hf.training.build import build_accelerator
from caeav_hf.training.command import main as train


@pytest.mark.parametrize(
    ("main", "arguments", "answer"),
    [
        (caeav, "predict clip.mp4 --model m --bacth-size 2", "unknown flag --bacth-size; did you mean --batch-size?"),
        (caeav, "export run --ouy=small", "unknown flag --ouy; did you mean --out?"),
        (caeav, "predcit clip.mp4", "unknown command predcit; did you mean predict?"),
        (caeav, "--versoin", "unknown flag --versoin; did you mean --version?"),
        # argparse would accept these for --resume and --task.
        (train, "--resum runs/toy", "unknown flag --resum; did you mean --resume?"),
        (train, "--tas ave", "did you mean --task?"),
        (train, "--no-use-caption", "did you mean --no-use-captions?"),
        (train, "--zzzzzz", "run `train.py --help` for a list"),
    ],
)
def test_misspelled_words_are_answered_with_the_nearest(main, arguments, answer, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert answer in line


def test_values_are_no_flags():
    # A negative number, a text that begins with dashes, and what follows `--`.
    options = cli.build_parser().parse_args(
        ["predict", "--model", "m", "--threshold", "-1", "--question", "-- what is it?", "--", "--clip.mp4"]
    )
    assert (options.threshold, options.question, options.clips) == (-1.0, ["-- what is it?"], ["--clip.mp4"])


def failing(error):
    def fail(*arguments, **options):
        raise error

    return fail


def test_ctrl_c_ends_in_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("CAEAV_DEBUG", raising=False)
    monkeypatch.setattr("caeav_hf.demo.run_demo", failing(KeyboardInterrupt()))
    assert caeav(["demo", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "caeav: stopped; remove its folder and run the same command again\n"

    monkeypatch.setattr(run, "train", failing(KeyboardInterrupt()))
    training = ["--task", "ave", "--size", "toy", "--output-dir", str(tmp_path)]
    assert train(training) == 130
    assert capsys.readouterr().err == "train.py: stopped; run the same command again\n"
    (tmp_path / "checkpoints" / "step-3").mkdir(parents=True)
    (tmp_path / "checkpoints" / "last").symlink_to("step-3")
    assert train(training) == 130
    advice = f"run `train.py --resume {tmp_path}`, which continues from step-3"
    assert capsys.readouterr().err == f"train.py: stopped; {advice}\n"

    monkeypatch.setenv("CAEAV_DEBUG", "1")
    with pytest.raises(KeyboardInterrupt):
        train(training)


def wrapped(cause):
    error = CaeAvError("it cannot be written")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        # The messages of safetensors, NumPy and PyTorch.
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError("1000000 requested and 131056 written"),
        OSError("Not enough disk space. Needed: 2.1 GB (download: 0 bytes, generated: 2.1 GB)"),
        RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534"),
        wrapped(OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_a_full_disk_ends_in_one_line(error, monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("CAEAV_DEBUG", raising=False)
    monkeypatch.setattr(run, "train", failing(error))
    assert train(["--task", "ave", "--size", "toy", "--output-dir", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"train.py: error: the disk with {tmp_path} is full; free some space, then run the same command again"
    )
    monkeypatch.setattr("caeav_hf.training.export.export", failing(error))
    assert caeav(["export", "run", "--out", str(tmp_path)]) == 1
    assert f"the disk with {tmp_path} is full" in capsys.readouterr().err
    monkeypatch.setenv("CAEAV_DEBUG", "1")
    with pytest.raises(type(error)):
        caeav(["export", "run", "--out", str(tmp_path)])


def test_an_error_of_the_operating_system_about_a_file_is_one_line(monkeypatch, capsys):
    monkeypatch.delenv("CAEAV_DEBUG", raising=False)
    error = OSError(errno.EROFS, "Read-only file system", "/there/file")
    monkeypatch.setattr("caeav_hf.training.export.export", failing(error))
    assert caeav(["export", "run", "--out", "out"]) == 2
    assert capsys.readouterr().err == "caeav: error: /there/file: Read-only file system\n"
    monkeypatch.setattr("caeav_hf.training.export.export", failing(ConnectionError("about no file")))
    with pytest.raises(ConnectionError):
        caeav(["export", "run", "--out", "out"])


def test_other_errors_are_not_taken_for_a_full_disk():
    assert not disk_is_full(OSError(errno.EACCES, "Permission denied"))
    assert not disk_is_full(RuntimeError("CUDA out of memory"))


def test_a_missing_model_folder_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoints" / "best").mkdir(parents=True)
    (tmp_path / "clip.mp4").write_bytes(b"")
    for model, expected in (("nowhere", "no such folder"), ("run", "run/checkpoints/best"), ("./no/model", "no such")):
        assert caeav(["predict", "clip.mp4", "--model", model]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"caeav: error: {model}: ")
        assert expected in line
    assert train(["--task", "ave", "--size", "toy", "--evaluate", "nowhere", "--data", "d"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("train.py: error: nowhere: no such folder")


def test_a_tracker_that_is_not_installed_is_an_error(tmp_path):
    missing = [name for name in ("wandb", "comet_ml", "aim", "mlflow") if importlib.util.find_spec(name) is None]
    assert missing, "all trackers are installed here"
    with pytest.raises(CaeAvError, match=f"{missing[0]} is not installed"):
        build_accelerator(Recipe(report_to=["tensorboard", missing[0]]), tmp_path)
    with pytest.raises(CaeAvError, match="unknown tracker 'wandbb'"):
        build_accelerator(Recipe(report_to=["wandbb"]), tmp_path)
    # Evaluations keep no record.
    build_accelerator(Recipe(report_to=[missing[0]]))


def test_clips_of_folders_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.MP4", "b/1.mkv", "b/c/3.webm", "b/notes.txt", "b/.hidden.mp4", "a.mp4", "weird[1].mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_clips(["b"]) == ["b/1.mkv", "b/2.MP4", "b/c/3.webm"]
    assert find_clips(["b/**/*.[mw]*", "a.mp4"]) == ["b/1.mkv", "b/c/3.webm", "a.mp4"]
    # A file's name, an address, and a file that is missing, which is reported with the others' results.
    names = ["weird[1].mp4", "https://example.org/clip.mp4?x=1", "missing.mp4"]
    assert find_clips(names) == names
    (tmp_path / "empty").mkdir()
    for name, expected in (("empty", MEDIA_SUFFIXES[0]), ("b/*.avi", "no file matches")):
        with pytest.raises(CaeAvError, match=f"{expected}"):
            find_clips([name])


def test_nothing_that_is_printed_acts_on_the_terminal(monkeypatch, capsys, tmp_path):
    name = "a\x1b[2Jb\x07\x9b1A\u202ec\udcff.mp4"
    shown = "a\\x1b[2Jb\\x07\\x9b1A\\u202ec\\udcff.mp4"

    def show(*arguments, **options):
        print(name)
        with tqdm(total=1, desc=f"{name}\rfake") as bar:
            bar.update()
        raise CaeAvError(f"{name}\ncaeav: all is well")

    monkeypatch.setattr("caeav_hf.demo.run_demo", show)
    assert caeav(["demo", "--out", str(tmp_path)]) == 2
    output, errors = capsys.readouterr()
    assert output == f"{shown}\n"
    *bars, last = errors.splitlines()
    assert last == f"caeav: error: {shown} caeav: all is well"
    # The bar itself returns to the start of its line.
    assert any(line.startswith(f"{shown}\\rfake: 100%") for line in bars)
    assert not set("\x1b\x07\x9b\u202e") & set(errors)
    assert not isinstance(sys.stdout, command_line._SafeStream)


def test_tracebacks_do_not_act_on_the_terminal(tmp_path):
    program = "import sys\nfrom caeav_hf.command_line import run_command\n"
    program += "class E(Exception): pass\ndef fail(): raise E('a\\x1b]0;t\\x07')\n"
    program += "run_command('caeav', fail, next_step=str, place=None)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, cwd=tmp_path)
    assert ended.returncode == 1
    assert b"E: a\\x1b]0;t\\x07" in ended.stderr
    assert b"\x1b" not in ended.stderr


@pytest.mark.parametrize(("chosen", "seen"), [(None, "1"), ("0", "0")])
def test_commands_let_pytorch_tune_memory(chosen, seen, monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", chosen or "")
    if chosen is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    found = []

    def command():
        found.append(os.environ["THP_MEM_ALLOC_ENABLE"])
        return 0

    assert command_line.run_command("caeav", command, next_step=str, place=None) == 0
    assert found == [seen]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is tuned")
@pytest.mark.parametrize(("threshold", "keeps"), [(None, True), ("131072", False)])
def test_commands_keep_freed_memory(threshold, keeps):
    script = """
import resource
import numpy as np
from caeav_hf.command_line import tune_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(300_000) for _ in range(100)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

tune_memory()
print(faults(), faults())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    if threshold is not None:
        environment["MALLOC_MMAP_THRESHOLD_"] = threshold
    ended = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    first, second = map(int, ended.stdout.split())
    assert (second < first / 10) == keeps


@pytest.mark.slow
def test_huge_pages_can_be_chosen_after_the_imports():
    """PyTorch reads the variable with the first tensor, which no import may make."""
    script = """
import caeav_hf.cli, caeav_hf.training, torch, transformers
from caeav_hf.command_line import tune_memory
from caeav_hf.modeling import CaeAvModel
tune_memory()
tensors = [torch.empty(2**20 + 1) for _ in range(8)]
assert not any(tensor.data_ptr() % 4096 for tensor in tensors)
"""
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
