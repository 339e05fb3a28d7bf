import dataclasses
import gzip
import io
import json
import os
import random
import tarfile
from pathlib import Path

import pytest

from tests.data.video.videos import make_video
from videoscaling.data.clip_groups import read_frozen
from videoscaling.data.sources.listing import list_sources
from videoscaling.data.sources.source import Rejected, identity
from videoscaling.data.video.clips import ClipOptions, Shape, load_clips
from videoscaling.utils.errors import UserError


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
    for pattern in ("s-{0..999999999}", "{0..9999}-{0..9999}", "s-{0..%s}" % ("9" * 200)):
        with pytest.raises(UserError, match=r"more than 1,000,000 shards"):
            listed(f"{tmp_path}/{pattern}.tar")
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
    clip_options = ClipOptions(Shape(5, 32))
    loose, (cut, packed) = list_sources(tmp_path / "folder")[0], list_sources(tar)
    one, other = load_clips(loose, clip_options), load_clips(packed, clip_options)
    assert one.pixels.equal(other.pixels)
    assert one.captions == other.captions
    assert one[3:] == other[3:]
    assert other.keys[0] == "s.tar/x.mp4#0"
    with pytest.raises(Rejected, match="truncated"):
        load_clips(cut, clip_options)


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
    found = list_sources(tar)
    assert found[1:] == whole[:2]
    assert found[0].fault == (
        f"ends at byte {tar.stat().st_size:,} without the two blocks of zeros that end an archive: "
        "samples may be missing"
    )
    assert load_clips(whole[0], ClipOptions(Shape(5, 32))).keys
    with pytest.raises(Rejected, match="truncated"):
        load_clips(whole[1], ClipOptions(Shape(5, 32)))


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


SAMPLES = 10
HEADERS = [1024 * number for number in range(2 * SAMPLES)]  # each member has one block of content


def ten_samples(path):
    members = {f"{i}.{kind}": f"{kind} {i}".encode() for i in range(SAMPLES) for kind in ("mp4", "txt")}
    return make_tar(path, members)


@pytest.mark.parametrize("header", HEADERS[1:])
def test_a_flipped_bit_in_a_header_is_reported_and_rejected(tmp_path, header):
    tar = ten_samples(tmp_path / "s.tar")
    whole, content = list_sources(tar), bytearray(tar.read_bytes())
    draw = random.Random(header)
    for bit in [draw.randrange(8 * 345) for _ in range(3)]:  # of the fields that are not padding
        content[header + bit // 8] ^= 1 << bit % 8
        tar.write_bytes(content)
        rest, *found = list_sources(tar)
        content[header + bit // 8] ^= 1 << bit % 8
        sample, caption_lost = divmod(header // 1024, 2)
        assert found[:sample] == whole[:sample]
        lost = dataclasses.replace(
            whole[sample], caption="", fault="the last sample before damage to its archive, without a caption"
        )
        # Without any caption in the archive nothing says that one was lost.
        first = dataclasses.replace(whole[sample], caption="")
        assert found[sample:] == ([lost if sample else first] if caption_lost else [])
        assert (rest.name, rest.fault) == (
            "s.tar",
            f"at byte {header:,} is neither a member's header nor the end of the archive: what follows is lost",
        )
        with pytest.raises(Rejected, match=f"damaged archive: at byte {header:,} is"):
            load_clips(rest, ClipOptions(Shape(5, 32)))


@pytest.mark.parametrize("byte", [0, 511, 512, 1023, 1024, 5000])
def test_a_flipped_bit_after_the_last_member_is_reported(tmp_path, byte):
    tar = ten_samples(tmp_path / "s.tar")
    whole, content, end = list_sources(tar), bytearray(tar.read_bytes()), 1024 * 2 * SAMPLES
    content += bytes(4096)
    tar.write_bytes(content)
    assert list_sources(tar) == whole  # padding may be of any length
    content[end + byte] = 1
    tar.write_bytes(content)
    rest, *found = list_sources(tar)
    assert found == whole
    at = end + byte // 512 * 512
    assert (
        rest.fault == f"at byte {at:,} is neither a member's header nor the end of the archive: what follows is lost"
    )


@pytest.mark.parametrize("cut", [0, 512, 1023, -1, -512, -1024])
def test_a_tar_without_its_end_is_reported(tmp_path, cut):
    """Also one that was cut between two members, or after the first of its last two blocks."""
    tar, end = ten_samples(tmp_path / "s.tar"), 1024 * 2 * SAMPLES
    tar.write_bytes(tar.read_bytes()[: end + cut])
    faults = [source.fault for source in list_sources(tar) if source.fault and "caption" not in source.fault]
    assert faults == [
        f"ends at byte {end + cut:,} without the two blocks of zeros that end an archive: samples may be missing"
    ]


def test_one_tar_after_another_in_one_file_is_reported(tmp_path):
    tar = ten_samples(tmp_path / "s.tar")
    size = tar.stat().st_size
    tar.write_bytes(2 * tar.read_bytes())
    assert list_sources(tar)[0].fault.startswith(f"at byte {size:,} is neither")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_refused_whole_or_cut(tmp_path, kind):
    with tarfile.open(tmp_path / "s.tar", f"w:{kind}") as tar:
        tar.add(ten_samples(tmp_path / "plain"), "x.mp4")
    for size in (None, 100):
        (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:size])
        with pytest.raises(UserError, match=r"s\.tar: not a tar .* must be unpacked"):
            list_sources(tmp_path / "s.tar")


def test_pipes_and_devices_are_refused_by_name(tmp_path):
    """Reading one of them would never end."""
    (tmp_path / "x.mp4").write_bytes(b"1")
    rows = tmp_path / "rows.csv"
    for name in ("list.csv", "list.jsonl.gz", "s.tar", "validation.json", "pipe"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name in ("list.csv", "list.jsonl.gz", "s.tar", "zero.csv", "pipe", "{s,s}.tar"):
        with pytest.raises(UserError, match=rf"{'s.tar' if '{' in name else name}: no regular file"):
            list_sources(tmp_path / name)
    with pytest.raises(UserError, match=r"validation\.json: no regular file"):
        read_frozen(tmp_path / "validation.json")
    rows.write_text("path,caption\npipe,words\n")
    with pytest.raises(UserError, match=r"line 2: no regular file: .*/pipe"):
        list_sources(rows)
    (tmp_path / "pipe").unlink()
    os.mkfifo(tmp_path / "x.txt")
    (tmp_path / "s.tar").unlink()
    with pytest.raises(UserError, match=r"x\.txt: a caption's name, but no regular file"):
        list_sources(tmp_path)


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_among_a_folders_shards_is_refused_by_name(tmp_path, linked):
    shards = tmp_path / "shards"
    shards.mkdir()
    ten_samples(shards / "000.tar")
    os.mkfifo(tmp_path / "pipe" if linked else shards / "001.tar")
    if linked:
        (shards / "001.tar").symlink_to(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"shards/001\.tar: no regular file"):
        list_sources(shards)


def test_a_table_cut_within_its_last_row_is_refused(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"1")
    (tmp_path / "xy.mp4").write_bytes(b"1")
    table = tmp_path / "list.csv"
    whole = "path,caption\nxy.mp4,a ball\nx.mp4,a cube"
    table.write_text(whole)  # a last line need not end
    assert listed(table) == {"x.mp4": "a cube", "xy.mp4": "a ball"}
    table.write_text(whole.removesuffix(",a cube"))
    with pytest.raises(UserError, match="line 3: 1 of 2 fields, and the table ends there without a line break"):
        list_sources(table)
    table.write_text(whole.removesuffix(",a cube") + "\n")  # a row without a caption
    assert listed(table) == {"x.mp4": "", "xy.mp4": "a ball"}
    lines = tmp_path / "list.jsonl"
    lines.write_text('{"path": "x.mp4", "caption": "a cube"}\n{"path": "xy.mp4", "cap')
    with pytest.raises(UserError, match=r"list\.jsonl, line 2: not JSON"):
        list_sources(lines)


def test_a_table_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("videoscaling.utils.tables.LIMIT_BYTES", 1 << 10)
    for name, write in (("list.csv", Path.write_bytes), ("list.csv.gz", None)):
        content = b"path\n" + 1000 * b"x.mp4\n"
        (tmp_path / name).write_bytes(content if write else gzip.compress(content))
        with pytest.raises(UserError, match=rf"{name}: longer than 0 GiB; write it as Parquet"):
            list_sources(tmp_path / name)


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
