import pytest

from videoscaling.models.sizes import (
    BESIDE_MICRO,
    MICRO,
    PAPER,
    exact_flops,
    flops_per_token,
    head_width,
    parameters,
    parse_size,
    shape_for,
)
from videoscaling.utils.errors import UserError


def size(name):
    shape = parse_size(name)
    return parameters(shape.layers, shape.width)


def test_named_sizes_have_the_published_parameters():
    micro = [131072, 442368, 1048576, 3538944, 8388608, 16384000]
    assert [size(name) for name in MICRO] == micro
    published = [0.017e9, 0.057e9, 0.13e9, 0.26e9, 0.72e9, 1.07e9]
    # The paper prints two digits.
    assert [size(name) for name in PAPER] == pytest.approx(published, rel=0.04)


@pytest.mark.parametrize("name", [*MICRO, *BESIDE_MICRO, *PAPER])
def test_heads_fill_the_width(name):
    shape = parse_size(name)
    assert shape.heads * head_width(shape.layers, shape.width) == shape.width
    assert shape.name == name


def test_a_ladder_has_one_head_width():
    """Where it changes the loss jumps, and a law fitted below says nothing of what lies above."""
    assert {head_width(*parse_size(name)[:2]) for name in (*MICRO, *BESIDE_MICRO)} == {32}
    assert {head_width(*parse_size(name)[:2]) for name in PAPER} == {64}


@pytest.mark.parametrize("name", [*MICRO, *PAPER[1:]])
def test_ladder_sizes_are_the_rule_s_own(name):
    assert shape_for(size(name)).name == name


@pytest.mark.parametrize("target", [3e4, 1e5, 7.3e5, 2e6, 5e6, 3e7, 1e8, 2.435e9, 4.04e9, 1.4e10])
def test_any_target_gets_a_near_shape_of_the_family(target):
    shape = shape_for(target)
    # Widths come in steps of 32 or 64: coarse at micro sizes, within 2 % for real ones.
    assert parameters(shape.layers, shape.width) == pytest.approx(target, rel=0.02 if target > 1e8 else 0.35)
    assert shape.layers <= 16
    if shape.layers < 13:
        assert 16 <= shape.width / shape.layers <= 64


def test_published_flops_of_the_extrapolation_run():
    # 0.72B for 140B tokens is published as 5.85e20 FLOPs.
    shape = shape_for(0.72e9)
    assert shape.name == "15x1728"
    assert 140e9 * flops_per_token(0.72e9, 1280, shape.width) == pytest.approx(5.852e20, rel=1e-4)


def test_c_token_is_three_forward_passes_of_the_blocks():
    layers, d, n = 4, 128, 80
    per_token = layers * (2 * (4 + 2 + 8) * d * d + 2 * 2 * n * d)
    assert flops_per_token(parameters(layers, d), n, d) == pytest.approx(3 * per_token)


@pytest.mark.parametrize(("name", "excess"), [("1x32", 0.16), ("4x128", 0.05), ("16x2048", 0.03)])
def test_exact_count_exceeds_c_token_by_what_c_token_leaves_out(name, excess):
    layers, width, _ = parse_size(name)
    n_ctx, token_dim, text_dim, text = (1280, 64, 4096, 128) if width > 1000 else (80, 16, 64, 8)
    exact = exact_flops(layers, width, n_ctx, token_dim, text, text_dim)
    counted = n_ctx * flops_per_token(parameters(layers, width), n_ctx, width)
    assert 0 < exact / counted - 1 < 3 * excess
    assert exact == 3 * exact_flops(layers, width, n_ctx, token_dim, text, text_dim, training=False)


@pytest.mark.parametrize("name", ["4x", "x128", "4x100", "0x128", "big", "4x128x2", "-4x128", "4x10"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match=name):
        parse_size(name)


@pytest.mark.parametrize("target", [0, -1, 10, float("nan"), float("inf")])
def test_impossible_targets_are_refused(target):
    with pytest.raises(UserError):
        shape_for(target)
