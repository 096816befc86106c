"""Addresses that lie, never end or lead elsewhere, and playlists that name files."""

import time

import pytest

from caeav_hf.cli.predict import find_clips
from caeav_hf.errors import MediaError
from caeav_hf.media.containers import MediaFile, source_name
from caeav_hf.media.remote import fetch, without_password
from caeav_hf.media.segment_stream import announced_seconds
from tests.media_factory import write_clip
from tests.raw_server import endless, raw_server, response, slowly


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("CAEAV_DOWNLOAD_TIMEOUT", "5")
    monkeypatch.setenv("CAEAV_DOWNLOAD_MAX_MB", "1")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.ts", seconds=2)


def test_the_time_limit_holds_for_the_whole_file(monkeypatch):
    monkeypatch.setenv("CAEAV_DOWNLOAD_TIMEOUT", "0.5")
    for content in (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, response(b"a" * 1000)):
        with raw_server(lambda _, content=content: slowly(content)) as server:
            started = time.monotonic()
            with pytest.raises(MediaError, match=r"a\.mp4: was not there after 0\.5 s"):
                fetch(f"{server.url}/a.mp4")
            assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (response(b"", Content_Length=str(10**15)), "expected at most 1 MB"),
        (lambda _: endless(b"HTTP/1.1 200 OK\r\n\r\n", bytes(65536)), "expected at most 1 MB"),
        (lambda _: endless(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 65536), "cannot be fetched"),
        (response(b"abc", Content_Length="-5"), "cannot be fetched"),
        (response(b"abc", Content_Length="100"), "cannot be fetched"),
        (response(b"", "302 Found", Location="file:///etc/passwd"), "cannot be fetched"),
        (response(b"", "302 Found", Location="ftp://127.0.0.1/a"), "cannot be fetched"),
        (response(b"", "302 Found", Location="http://[::1"), "cannot be fetched"),
        (response(b"", "302 Found", Location="/a.mp4"), "redirects again and again"),
        (response(b"", "500 \x1b[2J"), "cannot be fetched"),
        (b"", "cannot be fetched"),
    ],
)
def test_answers_that_are_no_file(content, expected):
    with raw_server(content) as server, pytest.raises(MediaError, match=expected) as error:
        fetch(f"{server.url}/a.mp4")
    assert str(error.value).startswith(f"{server.url}/a.mp4: ")
    assert str(error.value).isprintable()


def test_a_redirect_to_another_host_is_followed_without_the_password():
    with raw_server(response(b"content")) as other:
        with raw_server(response(b"", "302 Found", Location=f"{other.url}/b.mp4")) as server:
            address = server.url.replace("//", "//me:pass@")
            assert fetch(f"{address}/a.mp4").read() == b"content"
        assert "Authorization: Basic" in server.requests[0]
        assert "Authorization" not in other.requests[0]


def test_passwords_are_not_in_names_and_errors():
    for address, shown in (
        ("http://me:pass@host/a.mp4", "http://host/a.mp4"),
        ("rtsp://me:p@ss@host:8/a@b?c@d", "rtsp://host:8/a@b?c@d"),
        ("http://me:pass@[::1]/a", "http://[::1]/a"),
        ("http://host?a@b", "http://host?a@b"),
        ("me:pass@host/a.mp4", "me:pass@host/a.mp4"),
    ):
        assert without_password(address) == source_name(address) == source_name({"path": address}) == shown
    with raw_server(response(b"", "404 No")) as server:
        address = server.url.replace("//", "//me:pass@") + "/a.mp4"
        for read in (fetch, announced_seconds):
            with pytest.raises(MediaError, match=r"^http://127.*a\.mp4: ") as error:
                read(address)
            assert "pass" not in str(error.value)
    with pytest.raises(MediaError, match="no address") as error:
        fetch("ftp://me:pass@host/a.mp4")
    assert "pass" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        *("file://[", "file://host/a.mp4", "file:///a%00b.mp4", "a\0b.mp4", "\ud800.mp4", "a" * 10_000),
        *("http://host/a\r\nX: y", "rtsp://host/a\nb", "http://[::1", "http://", "http://a:b:c/", "/dev/zero"),
    ],
    ids=ascii,
)
def test_names_that_are_none(name):
    assert find_clips([name]) == [name]
    for make in (MediaFile.of, MediaFile.of_stream):
        with pytest.raises(MediaError) as error, make(name, None).open(1.0):
            pass
        assert str(error.value).isprintable()


@pytest.mark.parametrize("form", ["file://{}", "{}", "concat:{}", "subfile,,start,0,end,0,,:{}", "cache:file:{}"])
def test_playlists_cannot_name_files(form, clip):
    def playlist(name):
        lines = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{name}\n#EXT-X-ENDLIST\n".encode()
        return response(lines, Content_Type="application/vnd.apple.mpegurl")

    with raw_server(lambda head: playlist("clip.ts") if ".m3u8" in head else response(clip.read_bytes())) as server:
        announced_seconds(f"{server.url}/list.m3u8", 5.0)  # what it lists is read
    with raw_server(playlist(form.format(clip))) as server, pytest.raises(MediaError, match="cannot be read as media"):
        announced_seconds(f"{server.url}/list.m3u8", 5.0)
    with (
        raw_server(response(b"", "302 Found", Location=form.format(clip))) as server,
        pytest.raises(MediaError, match="cannot be read as media"),
    ):
        announced_seconds(f"{server.url}/a.ts", 5.0)
