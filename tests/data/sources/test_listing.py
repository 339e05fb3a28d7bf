import errno
import os
import sys

import pytest

from videoscaling.data.sources.listing import list_sources, scan_sources
from videoscaling.utils.errors import UserError


def test_folder_and_manifests_list_the_same(tmp_path):
    for name in ("b.mp4", "deep/er/a.mp4", "c.MKV", "notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text("a red ball,\n  rolling \n")
    (tmp_path / "deep/er/a.txt").write_text("\ufeffein Hündchen", encoding="utf-8")
    folder = list_sources(tmp_path)
    assert [(s.name, s.caption) for s in folder] == [
        ("b.mp4", "a red ball, rolling"),
        ("c.MKV", ""),
        ("deep/er/a.mp4", "ein Hündchen"),
    ]
    table = tmp_path / "table.csv"
    table.write_text('caption,path\n"a red ball, rolling",b.mp4\nein Hündchen,./deep/er/a.mp4\n,c.MKV\n')
    lines = tmp_path / "lines.jsonl"
    lines.write_text(
        '{"path": "b.mp4", "caption": "a red ball, rolling", "views": 3}\n\n{"path": "c.MKV"}\n'
        + f'{{"path": "{tmp_path}/deep/er/a.mp4", "caption": "ein Hündchen"}}\n'
    )
    assert list_sources(table) == list_sources(lines) == folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "file,caption\na.mp4,x\n", "no column 'path' .*file, caption"),
        ("m.csv", "paths,caption\na.mp4,x\n", "did you mean 'paths'"),
        ("m.csv", "path,caption\n", "lists no videos"),
        ("m.csv", "", "lists no videos"),
        ("m.csv", "path,caption\na.mp4,x\n,y\n", "line 3: no path"),
        ("m.csv", "path,caption\na.mp4,x\nb.mp4,y\n", r"line 3: no such file: .*b\.mp4"),
        ("m.csv", "path,caption\na.mp4,x\n./a.mp4,y\n", "line 3: a.mp4 is listed twice"),
        ("m.csv", "path,caption\n../a.mp4,x\n", r"line 2: \.\./a\.mp4 lies outside"),
        ("m.csv", "path,caption\ndeep/../../a.mp4,x\n", "lies outside"),
        ("m.csv", "path,caption\n/etc/hostname,x\n", "lies outside"),
        ("m.csv", b"path,caption\na.mp4,caf\xe9\n", r"m\.csv: not UTF-8 .* at byte 22"),
        ("m.jsonl", '{"path": "a.mp4"}\n{"path": \n', "line 2: not JSON"),
        ("m.jsonl", '["a.mp4"]\n', "line 1: not a JSON object"),
        ("m.jsonl", '{"path": "a.mp4"}\n{"caption": "x"}\n', "line 2: no path"),
        ("m.jsonl", '{"caption": "x"}\n', "no column 'path'"),
        ("m.csv", "path,start\na.mp4,soon\n", "line 2: start is 'soon', which is no number of seconds"),
        ("m.csv", "path;end\na.mp4;2,5\n", "end is '2,5', which is no number of seconds; write .* a decimal point"),
        ("m.csv", "path,start\na.mp4,-1\n", "line 2: start is '-1', which is no number"),
        ("m.csv", "path,Start_Time\na.mp4,0:01\n", "line 2: Start_Time is '0:01', which is no number of seconds"),
        ("m.csv", "path,end_sec,end_time\na.mp4,1,2\n", "'end_sec' and 'end_time' may both be the end"),
        ("m.csv", "path,start,end\na.mp4,3,2.5\n", "line 2: the range ends at 2.5 s, where it has not begun"),
        ("m.csv", "path,start,end\na.mp4,1,2\na.mp4,2,3\na.mp4,1.0,2\n", "line 4: a.mp4@1-2 is listed twice"),
        ("m.jsonl", '{"path": "a.mp4", "end": [1]}\n', "line 1: end is "),
        ("m.parquet", "path\na.mp4\n", "not a Parquet file"),
        ("m.txt", "a.mp4\n", "neither a folder"),
        ("film.mp4", "", "one video is no source; give a folder of videos, such as .*, or a .csv .* film.mp4"),
    ],
)
def test_a_bad_manifest_is_a_users_error(tmp_path, name, content, message):
    (tmp_path / "a.mp4").touch()
    (tmp_path.parent / "a.mp4").touch()
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        list_sources(tmp_path / name)


def test_a_missing_or_empty_folder_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        list_sources(tmp_path / "absent")
    (tmp_path / "readme.md").touch()
    with pytest.raises(UserError, match="no videos in this folder"):
        list_sources(tmp_path)
    (tmp_path / "x.mp4").touch()
    (tmp_path / "x.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"x\.txt: not UTF-8"):
        list_sources(tmp_path)


def test_a_parquet_manifest_lists_the_same(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    rows = [
        {"caption": "ein\nHündchen", "path": "b.mp4", "start": 0.5, "end": None, "views": 3},
        {"caption": None, "path": "./a.mp4", "start": None, "end": None, "views": 4},
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text('path,caption,start,end\nb.mp4,"ein\nHündchen",.5,\na.mp4,,,\n')
    listed = list_sources(tmp_path / "m.parquet")
    assert listed == list_sources(tmp_path / "m.csv")
    assert [(s.name, s.video, s.caption, s.start, s.end) for s in listed] == [
        ("a.mp4", "a.mp4", "", None, None),
        ("b.mp4@0.5-", "b.mp4", "ein Hündchen", 0.5, None),
    ]
    for row, message in (
        ({"file": "a.mp4"}, "no column 'path' .*there are: file"),
        ({"path": "../a.mp4"}, r"row 1: \.\./a\.mp4 lies outside"),
        ({"path": 3}, "row 1: no path"),
    ):
        parquet.write_table(arrow.Table.from_pylist([row]), tmp_path / "bad.parquet")
        with pytest.raises(UserError, match=message):
            list_sources(tmp_path / "bad.parquet")


def test_without_pyarrow_parquet_is_a_users_error(tmp_path, monkeypatch):
    (tmp_path / "m.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="reading Parquet needs pyarrow: pip install pyarrow"):
        list_sources(tmp_path / "m.parquet")


def test_ranges_of_one_video_are_sources_of_their_own(tmp_path):
    (tmp_path / "a@b.mp4").touch()
    (tmp_path / "m.jsonl").write_text(
        '{"path": "a@b.mp4", "start": 0, "end": 12.25}\n{"path": "a@b.mp4", "start": "12.25"}\n{"path": "a@b.mp4"}\n'
        '{"path": "a@b.mp4", "end": 3, "caption": "one\u2028line"}\n'
    )
    sources = list_sources(tmp_path / "m.jsonl")
    assert [source.name for source in sources] == ["a@b.mp4", "a@b.mp4@0-12.25", "a@b.mp4@0-3", "a@b.mp4@12.25-"]
    assert {source.video for source in sources} == {"a@b.mp4"}
    assert sources[2].caption == "one line"


def test_linked_folders_are_searched_and_unreadable_ones_refused(tmp_path, monkeypatch):
    for name in ("disk/a.mp4", "videos/b.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "videos/linked").symlink_to(tmp_path / "disk")
    (tmp_path / "videos/linked/loop").symlink_to(tmp_path / "videos")
    assert [source.name for source in list_sources(tmp_path / "videos")] == ["b.mp4", "linked/a.mp4"]

    def scan(folder):
        if str(folder).endswith("linked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(UserError, match=r"videos/linked: permission denied"):
        list_sources(tmp_path / "videos")


@pytest.mark.parametrize("caption", ['["a ball", "a red ball"]', "5", "true", '{"en": "a ball"}'])
def test_a_caption_that_is_no_text_is_a_users_error(tmp_path, caption):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "m.jsonl").write_text(f'{{"path": "a.mp4", "caption": {caption}}}\n')
    with pytest.raises(UserError, match=r"line 1: the caption is .*, which is no text"):
        list_sources(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text('{"path": "a.mp4", "caption": NaN}\n')  # as data frames write "none"
    assert list_sources(tmp_path / "m.jsonl")[0].caption == ""


def test_pictures_are_listed_and_previews_are_not(tmp_path):
    for name in ("a.mp4", "a.jpg", "b.PNG", "deep/a.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sources = list_sources(tmp_path)
    assert [source.name for source in sources] == ["a.mp4", "b.PNG", "deep/a.webp"]
    assert [source.is_picture for source in sources] == [False, True, True]


def test_videos_of_hidden_folders_are_skipped_and_counted(tmp_path):
    for name in ("a.mp4", ".ipynb_checkpoints/a-checkpoint.mp4", "part/.git/b.mp4", "part/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listing = scan_sources(tmp_path)
    assert [source.name for source in listing.sources] == ["a.mp4", "part/c.mp4"]
    assert listing.skipped == {"hidden folder": 2}
