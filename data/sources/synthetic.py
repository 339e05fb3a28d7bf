"""Captioned clips of moving shapes, rendered rather than read: clip i is a function of (seed, i), no clip repeats.

A scene is one to three shapes that glide, rush or rest, bounce off the borders, spin and pass over one another,
above a background of two colours that drifts. The caption names the random kinds, colours, sizes, directions and
speeds; it leaves open the positions, exact sizes, exact speeds and angles. So text helps a model but does not
determine the clip, motion follows from the frames before, and larger models can learn overlaps, bounces and spinning
corners.

Lengths are in units of the shorter image side, times in frames: a larger picture shows the same scene.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from videoscaling.utils.random import uniform

VERSION = 1  # raised when scenes or captions change, so that no cache or law mixes two renderers
MAX_SHAPES = 3
EDGE_PIXELS = 1.5  # width of the antialiased rim: narrower ones flicker as shapes move by parts of a pixel
CHUNK = 64  # clips rendered at once: what fits the CPU's cache

KINDS = ("circle", "ring", "triangle", "square", "star")
POINTS = (0, 0, 3, 4, 5)  # corners; 0 for the round ones
NOTCH = (0.0, 0.0, 0.5, math.cos(math.pi / 4), 0.45)  # radius between two corners, over the corners' own
HOLE = (-1.0, 0.45, 0.0, 0.0, 0.0)  # the ring's inner radius over its outer one; negative is no hole

SHAPE_COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.15, 0.80, 0.20),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.95, 0.88, 0.15),
    "orange": (0.98, 0.55, 0.08),
    "pink": (0.98, 0.45, 0.75),
    "cyan": (0.20, 0.88, 0.92),
    "white": (0.96, 0.96, 0.96),
}
GROUND_COLOURS = {
    "black": (0.06, 0.06, 0.08),
    "grey": (0.45, 0.45, 0.45),
    "brown": (0.42, 0.26, 0.14),
    "navy": (0.08, 0.10, 0.36),
    "maroon": (0.40, 0.07, 0.14),
    "olive": (0.38, 0.38, 0.10),
    "teal": (0.05, 0.38, 0.38),
    "purple": (0.36, 0.12, 0.46),
}
SIZES = {"small": (0.11, 0.14), "medium": (0.16, 0.19), "large": (0.22, 0.26)}  # radius
SPEEDS = {"resting": (0.0, 0.0), "gliding": (0.010, 0.018), "rushing": (0.032, 0.044)}  # per frame
# By 45 degrees from the x axis; y points down.
DIRECTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")
DIRECTION_SPREAD = math.pi / 12  # a direction's word covers this much to either side
SPIN = (0.06, 0.14)  # radians per frame, either way
GROUNDS = {"gradient": (1.6, 2.2), "stripes": (0.32, 0.5), "waves": (0.6, 1.1)}  # wavelength
DRIFT = (0.008, 0.024)  # per frame

# A shape's draws: kind, size word, size, speed word, speed, direction word, direction, x, y, spins, spin, angle.
_SHAPE_DRAWS = 12
# The background's: kind, direction word, direction, drift, and for each of two waves turn, wavelength, phase.
_GROUND_DRAWS = 10


class Scene(NamedTuple):
    """What n clips show. Words are int64 indices into the tables above; the rest is float32."""

    count: Tensor  # [n] shapes present, 1 to MAX_SHAPES
    kind: Tensor  # [n, MAX_SHAPES], as all that follow
    colour: Tensor
    size: Tensor
    speed: Tensor
    direction: Tensor
    spins: Tensor  # bool
    radius: Tensor
    start: Tensor  # [n, MAX_SHAPES, 2] (x, y) in (0, 1): where in the room its radius leaves it
    velocity: Tensor  # [n, MAX_SHAPES, 2] per frame
    angle: Tensor
    spin: Tensor  # radians per frame
    ground: Tensor  # [n]
    ground_colours: Tensor  # [n, 2]
    drift_direction: Tensor  # [n]
    drift: Tensor  # [n, 2] per frame
    waves: Tensor  # [n, 2, 4]: wave vector x, y (radians per unit), phase, weight


def _pick(u: Tensor, options: int) -> Tensor:
    """Indices below ``options`` from uniform draws."""
    return (u * options).long().clamp_(max=options - 1)


def _between(u: Tensor, index: Tensor, ranges: list[tuple[float, float]]) -> Tensor:
    """Uniform draws scaled into the range that ``index`` names."""
    table = torch.tensor(ranges, device=u.device, dtype=u.dtype)[index]
    return table[..., 0] + u * (table[..., 1] - table[..., 0])


def _unit(angle: Tensor) -> Tensor:
    """Unit vectors [..., 2] at ``angle`` [...]."""
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def _heading(word: Tensor, u: Tensor) -> Tensor:
    """Angles in radians for direction words, spread by uniform draws."""
    return word * (2 * math.pi / len(DIRECTIONS)) + (2 * u - 1) * DIRECTION_SPREAD


def scene(index: Tensor, seed: int) -> Scene:
    """The scenes of clips ``index`` (int64 [n]): all of the renderer's randomness, and all that captions know."""
    n = len(index)
    count = 1 + _pick(uniform(seed, "scene/count", index)[:, 0], MAX_SHAPES)
    # The order of random numbers gives each shape of a clip its own colour.
    colour = uniform(seed, "scene/colour", index, len(SHAPE_COLOURS)).argsort(1)[:, :MAX_SHAPES]
    ground_colours = uniform(seed, "scene/ground colour", index, len(GROUND_COLOURS)).argsort(1)[:, :2]

    u = uniform(seed, "scene/shapes", index, MAX_SHAPES * _SHAPE_DRAWS).view(n, MAX_SHAPES, _SHAPE_DRAWS).unbind(-1)
    kind, size, speed, direction = _pick(u[0], len(KINDS)), _pick(u[1], 3), _pick(u[3], 3), _pick(u[5], 8)
    # Round shapes look the same at any angle: the caption must not call them spinning.
    spins = (u[9] < 0.5) & (torch.tensor(POINTS, device=index.device)[kind] > 0)
    pace = _between(u[4], speed, list(SPEEDS.values()))
    turning = 2 * u[10] - 1
    spin = turning.sign() * (SPIN[0] + turning.abs() * (SPIN[1] - SPIN[0])) * spins

    g = uniform(seed, "scene/ground", index, _GROUND_DRAWS).unbind(-1)
    ground, drift_direction = _pick(g[0], len(GROUNDS)), _pick(g[1], len(DIRECTIONS))
    heading = _heading(drift_direction, g[2])
    drift = _unit(heading) * (DRIFT[0] + g[3] * (DRIFT[1] - DRIFT[0]))[:, None]
    waves = []
    for k in range(2):
        turn, length, phase = g[4 + 3 * k : 7 + 3 * k]
        # Gradients and stripes are one wave that travels along itself; "waves" are two that cross.
        crossing = (ground == 2) * (k + (turn - 0.5)) * (math.pi / 2)
        vector = _unit(heading + crossing) * (2 * math.pi / _between(length, ground, list(GROUNDS.values())))[:, None]
        weight = torch.where(ground == 2, 0.5, 1.0 - k)
        waves.append(torch.cat((vector, phase[:, None] * (2 * math.pi), weight[:, None]), dim=1))

    return Scene(
        count=count,
        kind=kind,
        colour=colour,
        size=size,
        speed=speed,
        direction=direction,
        spins=spins,
        radius=_between(u[2], size, list(SIZES.values())).float(),
        start=torch.stack((u[7], u[8]), dim=-1).float(),
        velocity=(_unit(_heading(direction, u[6])) * pace[..., None]).float(),
        angle=(u[11] * (2 * math.pi)).float(),
        spin=spin.float(),
        ground=ground,
        ground_colours=ground_colours,
        drift_direction=drift_direction,
        drift=drift.float(),
        waves=torch.stack(waves, dim=1).float(),
    )


def centres(s: Scene, frames: int, extent: tuple[float, float]) -> Tensor:
    """Where the shapes are: [n, MAX_SHAPES, frames, 2] (x, y), bouncing so that no circle of its radius leaves
    ``extent`` (x, y), the picture's sides."""
    room = torch.tensor(extent, device=s.radius.device) - 2 * s.radius[..., None, None]
    time = torch.arange(frames, device=s.radius.device)[:, None]
    path = s.start[..., None, :] * room + s.velocity[..., None, :] * time
    folded = torch.remainder(path, 2 * room)  # a bounce is a reflection: unfolded paths are straight
    return s.radius[..., None, None] + torch.minimum(folded, 2 * room - folded)


def _palette(colours: dict[str, tuple[float, float, float]], index: Tensor) -> Tensor:
    """RGB in [-1, 1], [..., 3], of colours named by index."""
    return (torch.tensor(list(colours.values()), device=index.device) * 2 - 1)[index]


def _round_distance(dx: Tensor, dy: Tensor, radius: Tensor, hole: Tensor) -> Tensor:
    """Signed distance to a disc or ring, negative inside. All arguments broadcast."""
    distance = torch.sqrt(dx * dx + dy * dy)
    return torch.maximum(distance - radius, hole * radius - distance)


def _star_distance(dx: Tensor, dy: Tensor, radius: Tensor, points: Tensor, notch: Tensor, angle: Tensor) -> Tensor:
    """Signed distance to the edges of a star (a regular polygon where ``notch`` makes the edge straight).

    All wedges are folded onto the one between a tip at (radius, 0) and half way to the next tip."""
    half = math.pi / points
    wedge = torch.remainder(torch.atan2(dy, dx) - angle + half, 2 * half) - half
    distance = torch.sqrt(dx * dx + dy * dy)
    x, y = distance * wedge.cos(), distance * wedge.sin().abs()
    edge_x, edge_y = notch * half.cos() - 1, notch * half.sin()
    length = torch.sqrt(edge_x * edge_x + edge_y * edge_y)
    return ((x - radius) * edge_y - y * edge_x) / length


def _coverage(s: Scene, frames: int, xs: Tensor, ys: Tensor, extent: tuple[float, float], pixel: float) -> Tensor:
    """How much of each pixel each shape covers: [n, MAX_SHAPES, frames, H, W] in [0, 1]; 0 where there is none."""
    device = xs.device
    time = torch.arange(frames, device=device)
    centre = centres(s, frames, extent)
    angle = s.angle[..., None] + s.spin[..., None] * time
    tables = [torch.tensor(table, device=device)[s.kind] for table in (POINTS, NOTCH, HOLE)]
    points, notch, hole = tables
    present = torch.arange(MAX_SHAPES, device=device) < s.count[:, None]
    alpha = torch.zeros(*s.kind.shape, frames, len(ys), len(xs), device=device)

    def spread(values: Tensor, chosen: Tensor) -> Tensor:
        """Per-shape values [n, MAX_SHAPES, 1 or frames] of the chosen shapes, to broadcast over pixels."""
        return values[chosen][..., None, None]

    for straight in (False, True):
        chosen = present & ((points > 0) == straight)
        dx = xs - spread(centre[..., 0], chosen)
        dy = ys[:, None] - spread(centre[..., 1], chosen)
        radius = spread(s.radius[..., None], chosen)
        if straight:
            corners = spread(points[..., None], chosen)
            distance = _star_distance(dx, dy, radius, corners, spread(notch[..., None], chosen), spread(angle, chosen))
        else:
            distance = _round_distance(dx, dy, radius, spread(hole[..., None], chosen))
        alpha[chosen] = (0.5 - distance / (EDGE_PIXELS * pixel)).clamp_(0, 1)
    return alpha


def _render(s: Scene, frames: int, height: int, width: int) -> Tensor:
    """Clips [n, 3, frames, height, width] of ``s``."""
    device, side = s.radius.device, min(height, width)
    xs = (torch.arange(width, device=device) + 0.5) / side
    ys = (torch.arange(height, device=device) + 0.5) / side
    time = torch.arange(frames, device=device)

    # A wave that drifts as a whole: its phase turns by the wave vector times the way gone.
    vector_x, vector_y, phase, weight = (part[..., None] for part in s.waves.unbind(-1))
    turned = phase - (s.waves[..., :2] * s.drift[:, None]).sum(-1, keepdim=True) * time
    argument = (turned[..., None] + vector_y[..., None] * ys)[..., None] + (vector_x * xs)[:, :, None, None]
    height_map = (argument.sin_() * weight[..., None, None]).sum(1, keepdim=True)
    first, second = _palette(GROUND_COLOURS, s.ground_colours)[..., None, None, None].unbind(1)
    clips = first + (second - first) * (0.5 + 0.5 * height_map)

    alpha = _coverage(s, frames, xs, ys, (width / side, height / side), 1 / side)
    colours = _palette(SHAPE_COLOURS, s.colour)[..., None, None, None]
    for k in reversed(range(MAX_SHAPES)):  # the first in the caption is painted last: it is in front
        clips.lerp_(colours[:, k].expand_as(clips), alpha[:, k, None].expand_as(clips))
    return clips


def render(index: Tensor, seed: int, frames: int = 17, height: int = 32, width: int = 32) -> Tensor:
    """Render clips on the device of ``index``.

    Args:
        index: int64 [n], which clips.
        seed: the data set; different seeds share no clip.
        frames, height, width: the clips' shape. The scene's units are the shorter side and the frame.

    Returns:
        float32 [n, 3, frames, height, width] in [-1, 1].
    """
    parts = [_render(scene(part, seed), frames, height, width) for part in index.split(CHUNK)]
    return torch.cat(parts) if parts else torch.empty(0, 3, frames, height, width, device=index.device)


def captions(index: Tensor, seed: int) -> list[str]:
    """What clips ``index`` (int64 [n]) of data set ``seed`` show, e.g. ``"a large red circle gliding left and a small
    blue spinning star resting over teal and maroon stripes drifting up"``. The first named shape is in front;
    directions are those at the start, before any bounce."""
    s = scene(index.cpu(), seed)
    kinds, sizes, speeds = KINDS, list(SIZES), list(SPEEDS)
    colours, ground_colours, grounds = list(SHAPE_COLOURS), list(GROUND_COLOURS), list(GROUNDS)
    texts = []
    for i in range(len(index)):
        shapes = []
        for k in range(int(s.count[i])):
            spinning = "spinning " if s.spins[i, k] else ""
            speed = speeds[s.speed[i, k]]
            motion = speed if speed == "resting" else f"{speed} {DIRECTIONS[s.direction[i, k]]}"
            shapes.append(
                f"a {sizes[s.size[i, k]]} {colours[s.colour[i, k]]} {spinning}{kinds[s.kind[i, k]]} {motion}"
            )
        first, second = (ground_colours[c] for c in s.ground_colours[i])
        ground = f"{first} and {second} {grounds[s.ground[i]]} drifting {DIRECTIONS[s.drift_direction[i]]}"
        texts.append(f"{' and '.join(shapes)} over {ground}")
    return texts
