"""Storage that survives a kill: atomic files, claims that end with their process, journals."""

import os
import signal

import pytest

from caeav_hf.data.store import Journal, claim, keep_settings
from caeav_hf.errors import DataError
from caeav_hf.files import atomic_write, write_json, write_text


@pytest.mark.parametrize("is_cache", [False, True])
def test_a_file_is_the_old_or_the_new_one(tmp_path, is_cache):
    path = tmp_path / "file.txt"
    write_text(path, "old\n")

    def stop_halfway():
        with atomic_write(path, is_cache=is_cache) as partial:
            partial.write_text("half of the n")
            assert path.read_text() == "old\n"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_halfway()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old\n"]
    with atomic_write(path, is_cache=is_cache) as partial:
        partial.write_text("new\n")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["new\n"]


def test_a_cache_may_be_written_by_several_at_a_time(tmp_path):
    path = tmp_path / "entry"
    with atomic_write(path, is_cache=True) as partial:
        child = os.fork()
        if not child:
            with atomic_write(path, is_cache=True) as other:
                other.write_text("the child's")
            os._exit(0)
        os.waitpid(child, 0)
        assert path.read_text() == "the child's"
        partial.write_text("the parent's")
    assert path.read_text() == "the parent's"


@pytest.mark.parametrize("name", ["folder", "file.parquet"])
def test_a_claim_ends_with_its_process(tmp_path, name):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    with claim(path), pytest.raises(DataError, match=f"{name}: another process is writing there"), claim(path):
        pass
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with claim(path):
            os.write(ready[1], b"1")
            os.read(done[0], 1)
    os.read(ready[0], 1)
    with pytest.raises(DataError, match="another process"), claim(path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with claim(path):
        pass


def test_a_claim_of_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"), claim(tmp_path / "file" / "captions.parquet"):
        pass


def test_a_folder_has_results_of_one_setting(tmp_path):
    keep_settings(tmp_path, {"size": 1, "rate": 2}, "*.bin")
    keep_settings(tmp_path, {"rate": 2, "size": 1}, "*.bin")
    with pytest.raises(DataError, match=r"made with other settings \(size; see .*settings\.json\)"):
        keep_settings(tmp_path, {"size": 3, "rate": 2}, "*.bin")
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(DataError, match="expected a JSON file"):
        keep_settings(tmp_path, {"size": 1, "rate": 2}, "*.bin")
    (tmp_path / "settings.json").unlink()
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"no settings\.json"):
        keep_settings(tmp_path, {"size": 1, "rate": 2}, "*.bin")


def test_a_journal_keeps_whole_records(tmp_path):
    journal = Journal(tmp_path / "journal", ("name",))
    assert list(journal.records()) == []
    for number in range(3):
        journal.append({"name": "ä", "number": number})
        assert len(list(journal.records())) == number + 1
    journal.close()
    whole = journal.path.read_bytes()
    for end in range(len(whole)):
        journal.path.write_bytes(whole[:end])
        assert [record["number"] for record in journal.records()] == list(range(whole[:end].count(b"\n")))
    for line in (b"[1]\n", b"{}\n", b"noise\n"):
        journal.path.write_bytes(whole + line)
        with pytest.raises(DataError, match="journal:4: expected a JSON object with name"):
            list(journal.records())
    journal.clear()
    assert not journal.path.exists()
    journal.clear()


def test_json_is_readable(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "ä": [\n  1\n ]\n}\n'
