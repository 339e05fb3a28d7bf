import io
import json
import tarfile

import pytest

from data.clips import Reading, Shape, load_clips
from data.listing import list_sources
from data.media import Rejected, identity
from tests.data.videos import make_video
from utils.errors import UserError


def make_tar(path, members: dict[str, bytes], **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return path


def listed(where) -> dict[str, str]:
    return {source.name: source.caption for source in list_sources(where)}


def test_samples_are_members_of_one_name(tmp_path):
    tar = make_tar(
        tmp_path / "a.tar",
        {
            "./b.mp4": b"12345",
            "./b.txt": "a red\n ball ".encode("utf-8-sig"),
            "./b.jpg": b"its preview",
            "deep.er/a.MP4": b"1",
            "deep.er/a.json": json.dumps({"caption": "ein Hündchen", "views": 3}).encode(),
            "c.left.mp4": b"1",
            "c.right.mp4": b"2",
            "c.right.txt": b"the right one",
            "c.txt": b"both",
            "d.png": b"a picture",
            "e.txt": b"of nothing",
            "f.json": b"[not read",
            "._b.mp4": b"a Mac's own",
        },
    )
    assert listed(tar) == {
        "a.tar/b.mp4": "a red ball",
        "a.tar/deep.er/a.MP4": "ein Hündchen",
        "a.tar/c.left.mp4": "both",
        "a.tar/c.right.mp4": "the right one",
        "a.tar/d.png": "",
    }
    first = list_sources(tar)[0]
    assert tar.read_bytes()[first.offset : first.offset + first.size] == b"12345"
    assert identity(first) == "a.tar/b.mp4\t5\ta red ball"


def test_shards_of_a_folder_and_of_a_pattern(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        make_tar(tmp_path / f"s-{number}.tar", {"x.mp4": b"1", "x.txt": f"{number}".encode()})
    names = {f"s-{number}.tar/x.mp4": str(number) for number in range(3)}
    assert listed(tmp_path) == names
    assert listed(f"{tmp_path}/s-{{0..2}}.tar") == names
    for number in (0, 2):
        make_tar(tmp_path / f"t-{number}.tar", {"x.mp4": b"1"})
    assert listed(f"{tmp_path}/{{s,t}}-{{0,2}}.tar") == {
        **{name: c for name, c in names.items() if c != "1"},
        **{f"t-{number}.tar/x.mp4": "" for number in (0, 2)},
    }
    with pytest.raises(UserError, match=r"s-3\.tar: no such shard"):
        list_sources(f"{tmp_path}/s-{{0..3}}.tar")
    (tmp_path / "loose.mp4").touch()
    with pytest.raises(UserError, match=r"holds tar shards \([st]-\d\.tar\) and loose files \(loose\.mp4\)"):
        list_sources(tmp_path)


def test_a_shard_that_a_pattern_names_twice_is_a_users_error(tmp_path):
    make_tar(tmp_path / "000.tar", {"x.mp4": b"1"})
    with pytest.raises(UserError, match=r"000\.tar/x\.mp4 is listed twice"):
        list_sources(tmp_path / "{000,000}.tar")


def test_a_video_in_a_tar_is_the_video_in_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    path = make_video(tmp_path / "folder/x.mp4")
    (tmp_path / "folder/x.txt").write_text("a ball")
    content = path.read_bytes()
    tar = make_tar(tmp_path / "s.tar", {"w.mp4": content[:3000], "x.mp4": content, "x.txt": b"a ball"})
    reading = Reading(Shape(5, 32))
    loose, (cut, packed) = list_sources(tmp_path / "folder")[0], list_sources(tar)
    one, other = load_clips(loose, reading), load_clips(packed, reading)
    assert one.pixels.equal(other.pixels)
    assert one.captions == other.captions
    assert one[3:] == other[3:]
    assert other.keys[0] == "s.tar/x.mp4#0"
    with pytest.raises(Rejected, match="truncated"):
        load_clips(cut, reading)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_and_formats(tmp_path, kind):
    name = f"{'long-' * 18}/{'name' * 20}.mp4"
    assert listed(make_tar(tmp_path / "s.tar", {name: b"1", "y.mp4": b"2"}, format=kind)) == {
        f"s.tar/{name}": "",
        "s.tar/y.mp4": "",
    }


def test_a_shard_cut_short_keeps_what_it_has_and_reports_the_rest(tmp_path):
    content = make_video(tmp_path / "x.mp4").read_bytes()
    tar = make_tar(tmp_path / "s.tar", {f"{i}.mp4": content for i in range(3)})
    whole = list_sources(tar)
    tar.write_bytes(tar.read_bytes()[: whole[1].offset + len(content) // 2])
    assert list_sources(tar) == whole[:2]
    assert load_clips(whole[0], Reading(Shape(5, 32))).keys
    with pytest.raises(Rejected, match="truncated"):
        load_clips(whole[1], Reading(Shape(5, 32)))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.mp4": b"", "x.txt": b"caf\xe9"}, r"s\.tar, member x\.txt: not UTF-8 .* at byte 3.; save it as UTF-8"),
        ({"x.mp4": b"", "x.json": b"{"}, r"s\.tar, member x\.json: not JSON"),
        ({"x.mp4": b"", "x.json": b'{"caption": ["a", "b"]}'}, r"member x\.json: the caption is .*, which is no text"),
        ({"x.mp4": b"", "./x.mp4": b""}, r"s\.tar/x\.mp4 is listed twice"),
        ({"x.txt": b"words"}, r"s\.tar: no videos in these shards"),
    ],
)
def test_a_bad_shard_is_a_users_error(tmp_path, members, message):
    make_tar(tmp_path / "s.tar", members)
    with pytest.raises(UserError, match=message):
        list_sources(tmp_path / "s.tar")


def test_what_is_no_tar_is_a_users_error(tmp_path):
    for name, content in (("text.tar", b"no tar at all" * 100), ("empty.tar", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: not a tar"):
            list_sources(tmp_path / name)
    make_tar(tmp_path / "s.tar", {"x.mp4": b"1"}, **{}).rename(tmp_path / "plain.tar")
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(tmp_path / "plain.tar", "x.mp4")
    with pytest.raises(UserError, match=r"packed\.tar: not a tar .* must be unpacked"):
        list_sources(tmp_path / "packed.tar")
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for _ in range(2):
            tar.add(tmp_path / "plain.tar", "x.mp4")
    with pytest.raises(UserError, match="x.mp4 is in this shard twice"):
        list_sources(tmp_path / "twice.tar")
