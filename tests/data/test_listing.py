import pytest

from data.listing import list_sources
from utils.errors import UserError


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
        ("m.txt", "a.mp4\n", "neither a folder"),
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
