"""The renderer: clips are functions of (seed, index), and captions describe what pixels show."""

import math
import re

import pytest
import torch

from videoscaling.data.sources.synthetic import (
    DIRECTIONS,
    GROUND_COLOURS,
    KINDS,
    MAX_SHAPES,
    SHAPE_COLOURS,
    SIZES,
    SPEEDS,
    _star_distance,
    captions,
    centres,
    render,
    scene,
)

MANY = torch.arange(400)


def test_shape_type_and_range():
    clips = render(torch.arange(70), seed=0)  # more than one chunk
    assert clips.shape == (70, 3, 17, 32, 32)
    assert clips.dtype == torch.float32
    assert clips.min() >= -1
    assert clips.max() <= 1
    assert clips.flatten(1).std(1).min() > 0.05  # something to see in each
    assert render(torch.arange(0), 0).shape == (0, 3, 17, 32, 32)
    assert render(torch.arange(2), 0, frames=5, height=16, width=48).shape == (2, 3, 5, 16, 48)


def test_a_clip_does_not_depend_on_its_batch():
    alone, among = render(torch.tensor([5]), 7), render(torch.tensor([3, 5, 9]), 7)[1:2]
    # the vectorised sine of the CPU may differ in the last bit between the body and the tail of an array
    torch.testing.assert_close(alone, among, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        render(torch.arange(200), 7)[130:131], render(torch.tensor([130]), 7), atol=1e-6, rtol=0
    )
    assert captions(torch.tensor([5]), 7) == captions(torch.tensor([3, 5, 9]), 7)[1:2]


def test_index_and_seed_decide():
    clips = render(torch.arange(40), 0)
    distances = torch.cdist(clips.flatten(1), clips.flatten(1)) + 1e9 * torch.eye(40)
    assert distances.min() > 1
    other = render(torch.arange(40), 1)
    assert torch.cdist(clips.flatten(1), other.flatten(1)).min() > 1
    assert torch.equal(clips, render(torch.arange(40), 0))
    assert len(set(captions(MANY, 0)) | set(captions(MANY, 1))) > 700


def test_fewer_frames_are_the_first_ones():
    index = torch.arange(6)
    torch.testing.assert_close(render(index, 0, frames=5), render(index, 0)[:, :, :5], atol=1e-6, rtol=0)


def test_a_larger_picture_shows_the_same_scene():
    index = torch.arange(8)
    small, large = render(index, 0), render(index, 0, height=128, width=128)
    pooled = torch.nn.functional.avg_pool3d(large, (1, 4, 4))
    assert (small - pooled).abs().mean() < 0.02  # rims differ by what antialiasing is worth, nothing else does


def test_captions_follow_one_grammar():
    size, colour, kind = "|".join(SIZES), "|".join(SHAPE_COLOURS), "|".join(KINDS)
    moving, direction = "|".join(speed for speed in SPEEDS if speed != "resting"), "|".join(DIRECTIONS)
    ground = "|".join(GROUND_COLOURS)
    shape = f"a ({size}) ({colour}) (spinning )?({kind}) (resting|({moving}) ({direction}))"
    grammar = re.compile(
        f"{shape}( and {shape}){{0,2}} over ({ground}) and ({ground}) (gradient|stripes|waves) drifting ({direction})"
    )
    for text in captions(MANY, 3):
        assert grammar.fullmatch(text), text
        assert not re.search("spinning (circle|ring)", text), text
    words = set(" ".join(captions(MANY, 3)).split())
    assert {*SIZES, *SHAPE_COLOURS, *KINDS, *SPEEDS, *DIRECTIONS, *GROUND_COLOURS} <= words


def test_first_named_shape_has_its_colour_at_its_place():
    index, frames = torch.arange(200), torch.tensor([0, 8, 16])
    s, clips = scene(index, 0), render(index, 0)
    words = [text.split() for text in captions(index, 0)]
    # a ring's middle is a hole, and a small star has rims in its
    solid = torch.tensor([w[1] != "small" and "ring" not in w[3:5] for w in words])
    assert solid.sum() > 80
    named = torch.tensor([SHAPE_COLOURS[w[2]] for w in words])[:, None] * 2 - 1
    x, y = (centres(s, 17, (1.0, 1.0))[:, 0, frames] * 32).long().unbind(-1)
    seen = clips[index[:, None], :, frames, y, x]
    assert (seen - named)[solid].abs().max() < 0.05


def test_the_background_is_a_mix_of_its_colours():
    index = torch.arange(200)
    s, clips = scene(index, 0), render(index, 0, frames=1)
    ends = torch.tensor(list(GROUND_COLOURS.values()))[s.ground_colours] * 2 - 1
    grid = (torch.arange(32) + 0.5) / 32
    pixels = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1)
    away = (pixels - centres(s, 1, (1.0, 1.0))[:, :, :, None]).norm(dim=-1) - s.radius[..., None, None]
    bare = (away > 0.08).all(1)  # a pointed tip is blurred by more than a rim
    assert 0.2 < bare.float().mean() < 0.95
    shown = clips[:, :, 0].movedim(1, -1)[bare]
    low, high = (bound[:, None, None].expand(-1, 32, 32, -1)[bare] for bound in (ends.amin(1), ends.amax(1)))
    assert (shown >= low - 1e-5).all()
    assert (shown <= high + 1e-5).all()


def test_shapes_stay_inside_and_move_as_reported():
    s = scene(MANY, 0)
    path = centres(s, 200, (1.5, 1.0))
    radius = s.radius[..., None]
    assert (path[..., 0] >= radius - 1e-5).all()
    assert (path[..., 0] <= 1.5 - radius + 1e-5).all()
    assert (path[..., 1] >= radius - 1e-5).all()
    assert (path[..., 1] <= 1.0 - radius + 1e-5).all()
    steps = path.diff(dim=2)
    # speed changes only where a path is folded: nearly all steps have the velocity's size
    pace = s.velocity.norm(dim=-1)[..., None]
    assert ((steps.norm(dim=-1) - pace).abs() < 1e-5).float().mean() > 0.9
    assert (pace[s.speed == 0] == 0).all()
    # the first step goes where the word says, within half of 45 degrees, unless it bounces at once
    moving = (s.speed > 0) & ((steps[..., 0, :] - s.velocity).norm(dim=-1) < 1e-5)
    turned = torch.atan2(steps[..., 0, 1], steps[..., 0, 0]) - s.direction * (math.pi / 4)
    assert torch.cos(turned[moving]).min() > math.cos(math.pi / 8)
    assert moving.float().mean() > 0.5
    assert DIRECTIONS[2] == "down"  # y grows downwards


def test_something_moves_in_every_clip_and_bounces_happen():
    clips = render(MANY[:100], 0)
    assert clips.diff(dim=2).abs().flatten(1).mean(1).min() > 1e-4
    s = scene(MANY, 0)
    velocity = centres(s, 17, (1.0, 1.0)).diff(dim=2)
    bounced = ((velocity[..., 0, :] - velocity[..., -1, :]).abs() > 1e-4).any(-1)[s.speed > 0]
    assert 0.2 < bounced.float().mean() < 0.9


def test_first_shape_is_in_front():
    s = scene(torch.arange(3000), 0)
    gap = (centres(s, 1, (1.0, 1.0))[:, 0, 0] - centres(s, 1, (1.0, 1.0))[:, 1, 0]).norm(dim=-1)
    filled = (s.kind[:, 0] == KINDS.index("circle")) & (s.size[:, 0] == 2)
    chosen = torch.nonzero((s.count > 1) & filled & (gap < 0.1))[:, 0]
    assert len(chosen) > 3
    x, y = (centres(s, 1, (1.0, 1.0))[chosen, 0, 0] * 32).long().unbind(-1)
    pixels = render(chosen, 0, frames=1)[torch.arange(len(chosen)), :, 0, y, x]
    expected = torch.tensor(list(SHAPE_COLOURS.values()))[s.colour[chosen, 0]] * 2 - 1
    torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=0)


def test_counts_are_even():
    s = scene(torch.arange(6000), 0)
    for values, options in ((s.count - 1, MAX_SHAPES), (s.kind, len(KINDS)), (s.colour, len(SHAPE_COLOURS))):
        share = values.flatten().bincount(minlength=options) / values.numel()
        # 6000 draws or more: a share's standard error is at most 0.0061; five of them
        assert (share - 1 / options).abs().max() < 0.031


@pytest.mark.parametrize(("points", "notch"), [(3, 0.5), (4, math.cos(math.pi / 4))])
def test_polygons_have_straight_edges(points, notch):
    """A regular polygon's signed distance is the largest of its edges', inside and outside the edges."""
    grid = torch.linspace(-0.6, 0.6, 61)
    x, y = torch.meshgrid(grid, grid, indexing="xy")
    tensors = [torch.tensor(value) for value in (0.5, points, notch, 0.3)]
    distance = _star_distance(x, y, *tensors)
    outward = 0.3 + math.pi / points + 2 * math.pi / points * torch.arange(points)
    edges = x[..., None] * outward.cos() + y[..., None] * outward.sin() - 0.5 * math.cos(math.pi / points)
    torch.testing.assert_close(distance, edges.max(-1).values, atol=1e-5, rtol=0)
