"""Captions are found under the names that people give them, or their absence is an error that names the fix."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.data.sources.test_tars import make_tar
from videoscaling.data.clip_groups import list_hash
from videoscaling.data.sources.captions import LIMIT_BYTES, ListingOptions
from videoscaling.data.sources.listing import list_sources, scan_sources
from videoscaling.data.sources.source import identity
from videoscaling.utils import tables
from videoscaling.utils.errors import UserError

TWO = {"a.mp4": "a red ball, rolling", "b.mp4": "ein Hündchen"}


def listed(where: Path, **options) -> dict[str, str]:
    return {source.name: source.caption for source in list_sources(where, ListingOptions(**options))}


def write(folder: Path, **files: str | bytes) -> None:
    """Files by name, with __ for the dot."""
    for name, content in files.items():
        content = content.encode() if isinstance(content, str) else content
        (folder / name.replace("__", ".")).write_bytes(content)


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path, a__mp4="", b__mp4="")
    return tmp_path


@pytest.mark.parametrize("name", ["caption", "captions", "cap", "text", "prompt", "Caption", "TEXT", " caption "])
def test_common_names_of_captions_are_recognised(folder, name):
    write(folder, m__csv=f'path,{name},views\na.mp4,"a red ball, rolling",1\nb.mp4,ein Hündchen,2\n')
    rows = [{"path": path, "views": 1, name: caption} for path, caption in TWO.items()]
    write(folder, m__jsonl="".join(json.dumps(row) + "\n" for row in rows))
    members = dict.fromkeys(TWO, b"1")
    members |= {f"{path[0]}.json": json.dumps({name: caption, "n": 1}).encode() for path, caption in TWO.items()}
    make_tar(folder.parent / f"{folder.name}.tar", members)
    assert listed(folder / "m.csv") == listed(folder / "m.jsonl") == TWO
    assert listed(folder.parent / f"{folder.name}.tar") == {f"{folder.name}.tar/{k}": v for k, v in TWO.items()}
    assert scan_sources(folder / "m.csv").unread == ["views"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", 'path, caption\na.mp4, "a red ball, rolling"\nb.mp4, ein Hündchen\n'),
        ("m.csv", 'Path ;Caption\na.mp4;a red ball, rolling\nb.mp4;"ein Hündchen"\n'),
        ("m.csv", "\ufeffcaption\tpath\na red ball, rolling\ta.mp4\nein Hündchen\tb.mp4\n"),
        ("m.tsv", "path\tcaption\na.mp4\ta red ball, rolling\nb.mp4\tein Hündchen\n"),
        ("m.TSV", 'path,caption\na.mp4,"a red ball, rolling"\nb.mp4,ein Hündchen\n'),
        ("m.json", json.dumps([{"path": path, "caption": caption} for path, caption in TWO.items()], indent=2)),
        ("m.json", "\n".join(json.dumps({"path": path, "caption": caption}) for path, caption in TWO.items())),
        ("m.ndjson", "\n".join(json.dumps({"path": path, "text": caption}) for path, caption in TWO.items())),
    ],
)
def test_tables_of_many_kinds(folder, name, content):
    write(folder, **{name: content})
    assert listed(folder / name) == TWO
    write(folder, **{f"{name}.gz": gzip.compress(content.encode())})
    assert listed(folder / f"{name}.gz") == TWO


def test_columns_of_parquet(folder):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"Path": path, "views": 1, "Text": caption, "label": "x"} for path, caption in TWO.items()]
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "m.parquet")
    assert listed(folder / "m.parquet") == TWO
    assert scan_sources(folder / "m.parquet").unread == ["views", "label"]
    assert listed(folder / "m.parquet", caption_column="label") == dict.fromkeys(TWO, "x")
    parquet.write_table(arrow.Table.from_pylist([{"path": "a.mp4", "label": "x"}]), folder / "m.parquet")
    with pytest.raises(UserError, match=r"no column of captions \(there are: path, label\)"):
        list_sources(folder / "m.parquet")


def test_other_columns_and_another_root(folder, tmp_path):
    (tmp_path / "lists").mkdir()
    write(tmp_path / "lists", m__csv='Video,label,Notes\na.mp4,cat,"a red ball, rolling"\nb.mp4,dog,ein Hündchen\n')
    given = {"path_column": "video", "caption_column": "notes"}
    assert listed(tmp_path / "lists/m.csv", root=folder, **given) == TWO
    assert scan_sources(tmp_path / "lists/m.csv", ListingOptions(root=folder, **given)).unread == ["label"]
    with pytest.raises(UserError, match=r"line 2: no such file: .*lists/a\.mp4"):
        list_sources(tmp_path / "lists/m.csv", ListingOptions(**given))
    with pytest.raises(UserError, match=r"--root .*absent: no such folder"):
        list_sources(tmp_path / "lists/m.csv", ListingOptions(root=tmp_path / "absent", **given))
    # A column named exactly wins over one in another case.
    write(folder, m__csv="path,text,TEXT\na.mp4,one,other\n")
    assert listed(folder / "m.csv", caption_column="TEXT") == {"a.mp4": "other"}
    # And the documented name over its synonyms, as it was before these were read.
    write(folder, m__csv="path,text,caption\na.mp4,other,one\n")
    assert listed(folder / "m.csv") == {"a.mp4": "one"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "m.csv",
            "path,label\na.mp4,x\n",
            r"m\.csv: no column of captions \(there are: path, label\); name it with "
            r"--caption-column NAME, or give --no-captions",
        ),
        ("m.jsonl", '{"path": "a.mp4", "title": "x"}\n', r"no column of captions \(there are: path, title\)"),
        (
            "m.csv",
            "path,text,prompt\na.mp4,x,y\n",
            "'text' and 'prompt' may both be the caption; choose one with --caption-column NAME",
        ),
        ("m.csv", "path,caption,caption\na.mp4,x,y\n", "'caption' and 'caption' may both be .* rename one"),
        ("m.jsonl", '{"path": "a.mp4", "cap": "x"}\n{"path": "b.mp4", "text": "x"}\n', "'cap' and 'text' may both"),
        (
            "m.jsonl",
            '{"path": "a.mp4", "caption": "x"}\n{"path": "b.mp4", "Text": "x"}\n',
            "line 2: 'Text' where other rows have 'caption'; rename one",
        ),
        ("m.csv", "Path,PATH,caption\na.mp4,b.mp4,x\n", "'Path' and 'PATH' may both be the path"),
        (
            "m.csv",
            "path,caption\nb.mp4,ok\na.mp4,a red ball, rolling\n",
            r"line 3: 3 fields where the header has 2; "
            "put a caption that holds ',' into double quotes",
        ),
        ("m.tsv", "path\tcaption\na.mp4\ta\tb\n", r"line 2: 3 fields .* holds '\\t'"),
        ("m.csv", 'path,caption\na.mp4,"a ball\nb.mp4,a dog\n', "line 2: a quote that opens in this row is never"),
        ("m.json", '[{"path": "a.mp4", "caption": "x"}, 3]', "item 2: not a JSON object"),
        ("m.json", '[{"path": "a.mp4", ', r"m\.json: not JSON"),
        ("m.json", "[" * 100_000, r"m\.json: not JSON \(nested too deep"),
        ("m.jsonl", '{"path": "a.mp4", "caption": "half \\ud83d"}\n', r"line 1: the caption .* half of a surrogate"),
        ("m.jsonl", '{"path": "a\\ud83d.mp4", "caption": ""}\n', "line 1: no such file"),
        ("m.csv.gz", b"path,caption\na.mp4,x\n", r"m\.csv\.gz: not a whole gzip file"),
        ("m.csv.gz", gzip.compress(b"path,caption\na.mp4,x\n" * 50, mtime=0)[:30], "not a whole gzip file"),
        ("m.tar.gz", b"", r"m\.tar\.gz: neither a folder of videos nor a manifest"),
    ],
)
def test_what_would_lose_captions_is_a_users_error(folder, name, content, message):
    write(folder, **{name: content})
    with pytest.raises(UserError, match=message):
        list_sources(folder / name)


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(folder, monkeypatch):
    monkeypatch.setattr(tables, "MIN_UNPACKED_BYTES", 1000)
    packed = gzip.compress(b"path,caption\n" + bytes(10_000_000), mtime=0)
    write(folder, m__csv__gz=packed)
    read, plain = [], gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda *arguments: read.append(plain(*arguments)) or read[-1])
    with pytest.raises(UserError, match=r"m\.csv\.gz: unpacks to more than 100 times its size"):
        list_sources(folder / "m.csv.gz")
    assert sum(map(len, read)) == 100 * len(packed) + 1


def test_no_captions_are_asked_for(folder):
    write(folder, m__csv="path,label\na.mp4,x\nb.mp4,y\n", a__txt="not read")
    assert listed(folder / "m.csv", captions=False) == listed(folder, captions=False) == dict.fromkeys(TWO, "")
    assert scan_sources(folder, ListingOptions(captions=False)).skipped == {".csv": 1, ".txt": 1}
    with pytest.raises(UserError, match=r"no --caption-column 'lable' \(there are: label; did you mean 'label'\?\)"):
        list_sources(folder / "m.csv", ListingOptions(caption_column="lable"))
    for option, value in (("path_column", "x"), ("root", folder)):
        with pytest.raises(UserError, match=f"--{option.replace('_', '-')} is for manifests"):
            list_sources(folder, ListingOptions(**{option: value}))


@pytest.mark.parametrize(
    ("files", "captions"),
    [
        ({"a.TXT": "one", "b.Txt": "two"}, ("one", "two")),
        ({"a.mp4.txt": "one", "b.caption": "two"}, ("one", "two")),
        ({"a.json": '{"text": "one"}', "b.prompt": "two"}, ("one", "two")),
        ({"a.txt": "one", "a.json": '{"caption": "x", "text": "y"}', "a.caption": "z"}, ("one", "")),
        ({"a.txt": "one", "b.json": '{"views": 3}'}, ("one", "")),
    ],
)
def test_captions_beside_videos(folder, files, captions):
    write(folder, **files)
    found = dict(zip(TWO, captions))
    assert listed(folder) == found
    make_tar(folder.parent / f"{folder.name}.tar", {path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert listed(folder.parent / f"{folder.name}.tar") == {f"{folder.name}.tar/{k}": v for k, v in found.items()}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.TXT": "one", "a.txt": "two"}, r"a\.TXT and .*a\.txt may both be the caption"),
        ({"a.text": "one", "a.prompt": "two"}, r"a\.text and .*a\.prompt may both be the caption"),
        ({"a.json": '{"text": "one", "prompt": "two"}'}, r"a\.json: 'text' and 'prompt' may both be the caption"),
        (
            {"a.json": '{"title": "one"}', "b.json": '{"views": 1}'},
            r"no caption in any of the 2 \.json \(their keys: title, views\); name it with --caption-column",
        ),
        ({"a.json": '"one"'}, r"a\.json: not a JSON object with 'caption'"),
        ({"a.json": "[" * 100_000}, r"a\.json: not JSON \(nested too deep"),
        ({"a.txt": b"x" * (LIMIT_BYTES + 1)}, r"a\.txt: longer than 16 MiB"),
    ],
)
def test_files_that_would_lose_captions_are_a_users_error(folder, files, message):
    write(folder, **files)
    with pytest.raises(UserError, match=message):
        list_sources(folder)
    if "a.TXT" not in files:  # in a tar the case of extensions makes no two members
        tar = folder.parent / f"{folder.name}.tar"
        make_tar(tar, {path.name: path.read_bytes() for path in sorted(folder.iterdir())})
        with pytest.raises(UserError, match=message):
            list_sources(tar)


def test_the_key_or_extension_of_captions_can_be_named(folder):
    write(folder, a__json='{"long": "one", "caption": "x", "text": "y"}', b__json='{"views": 1}', b__txt="x")
    assert listed(folder, caption_column="long") == {"a.mp4": "one", "b.mp4": ""}
    write(folder, a__alt="three", b__alt="two")
    assert listed(folder, caption_column="alt") == {"a.mp4": "three", "b.mp4": "two"}
    with pytest.raises(
        UserError, match="--caption-column 'short' is neither a key of a .json .*: long, caption, text"
    ):
        list_sources(folder, ListingOptions(caption_column="short"))


def test_captions_in_another_folder_or_case_are_a_users_error(folder):
    (folder / "captions").mkdir()
    write(folder, readme__txt="of the whole folder")
    assert listed(folder) == dict.fromkeys(TWO, "")
    write(folder / "captions", A__txt="one")
    with pytest.raises(UserError, match=r"no caption next to any video, but 1 \.txt .* captions/A\.txt"):
        list_sources(folder)
    assert listed(folder, captions=False) == dict.fromkeys(TWO, "")
    write(folder, b__txt="two")
    assert scan_sources(folder).skipped == {".txt": 2}


def test_a_caption_that_is_no_regular_file_is_a_users_error(folder):
    (folder / "a.txt").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"a\.txt: a caption's name, but no regular file"):
        list_sources(folder)


def test_skipped_files_are_counted_and_companions_are_no_videos(folder):
    (folder / "deep").mkdir()
    write(folder, a__txt="one", a__srt="", Makefile="", a__jpg="its preview", list__csv="path,caption\n", b__json="{}")
    write(folder, **{"._a.mp4": b"\0\5\x16\7", "deep/._c.mp4": b"\0\5\x16\7", "._a.txt": b"\0\xff", "._s.tar": b"\0"})
    listing = scan_sources(folder)
    assert [source.name for source in listing.sources] == ["a.mp4", "b.mp4"]
    assert listing.skipped == {"._*": 4, ".csv": 1, ".jpg": 1, ".srt": 1, "no extension": 1}
    members = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    inside = scan_sources(make_tar(folder.parent / f"{folder.name}.tar", members))
    assert [source.video.partition("/")[2] for source in inside.sources] == ["a.mp4", "b.mp4"]
    assert inside.skipped == listing.skipped


def test_the_keys_of_existing_caches_are_as_they_were(tmp_path):
    """Hashes of the lists that the version before these options made of the same inputs."""
    (tmp_path / "v/deep").mkdir(parents=True)
    files = {"a.mp4": b"123", "a.txt": b"a red ball,\n  rolling \n", "a.jpg": b"preview", "deep/b.mkv": b"12345"}
    files |= {"pic.png": b"1", "notes.md": b"x", "deep/b.srt": b"x", "café.mp4": b"12"}
    files["café.txt"] = "ein Hündchen".encode("utf-8-sig")
    for name, content in files.items():
        (tmp_path / "v" / name).write_bytes(content)
    write(
        tmp_path / "v",
        m__csv='caption,path,start,end,views\n"a red ball, rolling",a.mp4,.5,2,3\n,a.mp4,,,4\n'
        ' a "big" dog ,deep/b.mkv\n\n"two\nlines",pic.png,,,\n',
        m__jsonl='{"path": "a.mp4", "caption": "x y", "views": 3}\n\n{"path": "deep/b.mkv"}\n'
        '{"path":"pic.png","caption":NaN}\n',
    )
    about = json.dumps({"caption": "ein Hündchen", "views": 3}).encode()
    members = {"b.mp4": b"12345", "b.txt": b"a red\n ball ", "b.json": b'{"caption": "unread"}', "b.jpg": b"p"}
    members |= {"d/a.MP4": b"1", "d/a.json": about, "c.left.mp4": b"1", "c.right.mp4": b"2", "e.png": b"a"}
    members |= {"c.right.txt": b"the right one", "c.txt": b"both", "n.mp4": b"1", "n.json": b'{"views": 3}'}
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, content in {**members, "f.txt": b"of nothing"}.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    found = {
        name: list_hash([identity(source) for source in list_sources(tmp_path / name)])
        for name in ("v", "v/m.csv", "v/m.jsonl", "s.tar")
    }
    assert found == {
        "v": "33e1c4351e648f8d",
        "v/m.csv": "5c66a7a0034694c7",
        "v/m.jsonl": "0c61ffb4323175d7",
        "s.tar": "07517e12942bb805",
    }
