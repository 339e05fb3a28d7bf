"""Several caches as one: exact shares, each clip once an epoch of its own cache, all lists validated on."""

import re

import pytest
import torch

from tests.data.units import SETTINGS, make, unit
from videoscaling.data.clip_groups import ClipGroup, list_hash
from videoscaling.data.latents import LatentCache, video_of
from videoscaling.data.mixture import Mixture, open_data, shared_video_warnings, shares
from videoscaling.data.sample_order import MIXED, mixed_index, sample_index
from videoscaling.data.video.clips import Clips
from videoscaling.utils.errors import UserError


@pytest.mark.parametrize("counts", [[700, 300], [1, 999], [250, 250, 500], [1000]])
def test_every_block_holds_exact_shares_and_every_set_is_gone_through_evenly(counts):
    sizes = [11, 5000, 300][: len(counts)]
    ends = torch.tensor(sizes).cumsum(0)
    index = mixed_index(torch.arange(7 * MIXED), sizes, counts, 3)
    which = torch.searchsorted(ends, index, right=True)
    for block in which.split(MIXED):
        assert torch.bincount(block, minlength=len(sizes)).tolist() == counts
    for number, size in enumerate(sizes):
        seen = torch.bincount(index[which == number] - (ends[number] - size), minlength=size)
        whole, rest = divmod(7 * counts[number], size)
        assert (seen.min(), seen.max()) == (whole, whole + (rest > 0))
    assert len(which[:200].unique()) == len([count for count in counts if count > 20])  # mixed within a block


def test_the_mixture_is_a_function_of_the_position():
    sizes, counts = [11, 5000], [400, 600]
    whole = mixed_index(torch.arange(5000), sizes, counts, 0)
    drawn = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mixed_index(drawn, sizes, counts, 0), whole[drawn])
    assert not torch.equal(mixed_index(torch.arange(5000), sizes, counts, 1), whole)
    assert mixed_index(torch.tensor([10**12]), sizes, counts, 0).item() in range(5011)


def test_shares_add_up_and_small_ones_are_refused():
    assert shares("ab", [7, 3]) == [700, 300]
    assert shares("abc", [1, 1, 1]) == [334, 333, 333]
    assert shares("ab", [0.0006, 0.9994]) == [1, 999]
    with pytest.raises(UserError, match="a would be seen less than once in 1000 clips"):
        shares("ab", [1, 10_000])
    with pytest.raises(UserError, match="data.weights: 1 number for 2 caches"):
        shares("ab", [1])


@pytest.fixture
def folders(tmp_path):
    """Two caches: of 10 and 6 training clips, with a validation source in common and one of the second's own."""
    first = {"train": [unit("a", 0, 6), unit("b", 40, 4)], "validation": [unit("w", 200, 4)]}
    second = {"train": [unit("a", 70, 6)], "validation": [unit("u", 300, 3), unit("w", 200, 4)]}
    for name, units in (("first", first), ("second", second)):
        make(tmp_path / name, units, settings=SETTINGS | {"source": name}, about={"vae": name})
    return [str(tmp_path / "first"), str(tmp_path / "second")]


def test_reads_what_the_caches_hold(folders):
    one, other = (LatentCache(folder) for folder in folders)
    both = open_data(folders, [3, 1])
    assert (both.train_size, both.validation_size, both.text_dim) == (16, 7, one.text_dim)
    index = torch.tensor([15, 0, 9, 10])
    latents, text, mask = both.train(index)
    for place, (cache, number) in enumerate([(other, 5), (one, 0), (one, 9), (other, 0)]):
        alone = cache.train(torch.tensor([number]))
        assert torch.equal(latents[place], alone[0][0])
        assert torch.equal(text[place][mask[place]], alone[1][0][alone[2][0]])
    # Lists one after the other; what both have, once.
    assert both.validation_keys == [*one.validation_keys, *other.validation_keys[:3]]
    assert both.validation_hash == list_hash(both.validation_keys) == both.meta["validation_hash"]
    found = both.validation(torch.tensor([6, 0]))[0]
    assert torch.equal(found[0], other.validation(torch.tensor([2]))[0][0])
    assert torch.equal(found[1], one.validation(torch.tensor([0]))[0][0])
    embedding, mask = both.null_context
    assert embedding.shape == (both.text_tokens, both.text_dim)
    assert mask.sum() == one.null_context[1].sum()
    share = (both.order(torch.arange(MIXED), 0) < 10).double().mean()
    assert share == 0.75


def test_a_cache_grows_by_one_of_the_added_clips(folders, tmp_path):
    """The first cache's validation list, and the training clips of both."""
    make(tmp_path / "added", {"train": [unit("c", 90, 5)], "validation": []}, settings=SETTINGS | {"source": "added"})
    grown = open_data([folders[0], str(tmp_path / "added")])
    assert grown.validation_hash == LatentCache(folders[0]).validation_hash
    assert (grown.train_size, grown.validation_size) == (10 + 5, 4)


def test_clips_of_one_name_that_differ_are_both_kept(folders, tmp_path):
    make(tmp_path / "third", {"train": [unit("c", 0, 3)], "validation": [unit("w", 900, 4)]})
    one, third = LatentCache(folders[0]), LatentCache(tmp_path / "third")
    keys = [f"w#{i}" for i in range(900, 904)]
    assert third.validation_keys == keys
    # The same keys with other pixels, as two folders may have.
    same = unit("w", 900, 4).load()
    other = ClipGroup("w", [], lambda: Clips(one.validation_keys, same.captions, same.pixels))
    make(tmp_path / "fourth", {"train": [unit("c", 0, 3)], "validation": [other]})
    assert open_data([folders[0], str(tmp_path / "fourth")]).validation_size == 8


def test_fingerprints_cover_caches_and_shares(folders):
    one = open_data(folders[:1])
    assert isinstance(one, LatentCache)  # one in a list is that one
    prints = {open_data(folders, weights).meta["fingerprint"] for weights in ([1, 1], [2, 1], [])}
    prints |= {open_data(folders[::-1], [1, 2]).meta["fingerprint"], one.meta["fingerprint"]}
    assert len(prints) == 5
    assert open_data(folders, [2, 2]).meta["fingerprint"] == open_data(folders, [1, 1]).meta["fingerprint"]
    assert open_data(folders).counts == [625, 375]  # by their sizes
    assert open_data(folders).meta["vae"] == "first"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vae_fingerprint": "wan"}, "autoencoder pooling and wan"),
        ({"text_fingerprint": "t5"}, "text encoder embedded and t5"),
        ({"vae_dtype": "bfloat16"}, "the autoencoder's dtype None and bfloat16"),
    ],
)
def test_caches_made_otherwise_are_refused(folders, tmp_path, change, message):
    make(tmp_path / "third", settings=SETTINGS | change)
    with pytest.raises(
        UserError, match=re.escape(f"{folders[0]} and {tmp_path / 'third'} do not go") + f".*{message}"
    ):
        open_data([folders[0], str(tmp_path / "third")])


def test_a_cache_named_twice_is_refused(folders, tmp_path):
    """Its clips had twice the share that data.weights gives them, and the validation list looked like a mixture's."""
    (tmp_path / "link").symlink_to(folders[0])
    for again in (folders[0], f"{folders[0]}/", str(tmp_path / "link")):
        with pytest.raises(UserError, match=f"^data.cache: {again} is named twice; name it once"):
            open_data([*folders, again])


def test_one_cache_is_read_in_the_order_it_always_was(folders):
    position = torch.arange(30)
    assert torch.equal(LatentCache(folders[0]).order(position, 5), sample_index(position, 10, 5))
    assert isinstance(open_data(folders), Mixture)


def test_videos_that_one_cache_validates_on_and_another_trains_on_are_named(folders, tmp_path):
    assert shared_video_warnings(open_data(folders)) == []
    assert shared_video_warnings(open_data(folders[:1])) == []
    # A range of w, which the first one validates on.
    units = {"train": [unit("b", 0, 3), unit("w@5-9.5", 30, 3)], "validation": [unit("c", 60, 2)]}
    make(tmp_path / "third", units, settings=SETTINGS | {"source": "third"}, about={"vae": "third"})
    (found,) = shared_video_warnings(open_data([folders[0], str(tmp_path / "third")]))
    assert found.startswith(f"data.cache: {tmp_path}/third trains on 1 of the 1 video that {folders[0]} validates on")
    assert "(such as w)" in found


def test_one_split_of_a_film_in_two_caches_is_no_leak_and_another_split_is(tmp_path):
    """A film is in both splits of its cache, with a gap between them."""
    units = {"train": [unit("film@0-5", 0, 3)], "validation": [unit("film@50-60", 60, 2)]}
    for name, more in (("small", {}), ("large", {}), ("longer", {"stride": 2}), ("off", {"shots": "x"})):
        if name == "off":
            units = {"train": [unit("film@50-60", 60, 3)], "validation": [unit("film@0-5", 0, 2)]}
        make(tmp_path / name, units, settings=SETTINGS | {"source": name} | more, about={"vae": name})
    warned = {
        name: shared_video_warnings(open_data([str(tmp_path / "small"), str(tmp_path / name)]))
        for name in ("large", "longer", "off")
    }
    assert warned["large"] == []
    for name in ("longer", "off"):
        assert len(warned[name]) == 2
        assert "on 1 of the 1 video that" in warned[name][0]


@pytest.mark.parametrize(
    ("key", "video"),
    [
        ("a/x.mp4#17", "a/x.mp4"),
        ("x.mp4@5-9.25#0", "x.mp4"),
        ("x.mp4@1e-05-#3", "x.mp4"),
        ("me@home.mp4#2", "me@home.mp4"),
        ("x#1.mp4#2", "x#1.mp4"),
    ],
)
def test_the_video_of_a_clip(key: str, video: str):
    assert video_of(key) == video
