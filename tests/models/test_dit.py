"""VideoDiT: its parts against plain arithmetic, its FLOPs against torch's own count."""

import math
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from videoscaling.models.attention import attention, choose_backend
from videoscaling.models.dit import DiTConfig, VideoDiT
from videoscaling.models.embeddings import patchify, rotary_table, rotate, unpatchify
from videoscaling.models.sizes import MICRO, exact_flops, flops_per_token, parameters, parse_size
from videoscaling.utils.errors import UserError


def build(
    layers: int = 2, width: int = 64, heads: int = 2, patch: tuple[int, int, int] = (1, 1, 1), **kwargs
) -> VideoDiT:
    return VideoDiT(DiTConfig(layers, width, heads, channels=4, patch=patch, text_dim=16), **kwargs)


def inputs(batch: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, 2, 4, 4, generator=generator)
    t = torch.rand(batch, generator=generator)
    context = torch.randn(batch, 6, 16, generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 2, 4])[:batch, None]
    return x, t, context, mask


def trained(model: VideoDiT) -> VideoDiT:
    """Every parameter moved off its initial zeros, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def test_prediction_is_zero_at_first_and_every_parameter_learns() -> None:
    model = build()
    assert torch.count_nonzero(model(*inputs())) == 0
    trained(model)(*inputs()).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_blocks_matrices_are_what_N_counts() -> None:
    for name in MICRO[:3]:
        shape = parse_size(name)
        model = build(shape.layers, shape.width, shape.heads)
        counted = sum(p.numel() for n, p in model.blocks.named_parameters() if n.endswith("weight"))
        assert counted == parameters(shape.layers, shape.width)


@pytest.mark.parametrize(("layers", "width"), [(1, 32), (2, 64), (4, 128), (2, 2048)])
def test_exact_flops_agree_with_torch(layers: int, width: int) -> None:
    shape = parse_size(f"{layers}x{width}")
    with torch.device("meta"):
        model = VideoDiT(DiTConfig(layers, width, shape.heads, channels=16, patch=(1, 1, 1), text_dim=64))
        arguments = (torch.randn(1, 16, 5, 4, 4), torch.rand(1), torch.randn(1, 24, 64), torch.ones(1, 24).bool())
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(*arguments)
    ours = exact_flops(layers, width, n_ctx=80, token_dim=16, text_tokens=24, text_dim=64, training=False)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_training_costs_three_forwards() -> None:
    model = build(2, 128, 2)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(*inputs(1)).sum().backward()
    ours = exact_flops(2, 128, n_ctx=32, token_dim=4, text_tokens=6, text_dim=16)
    # The first layers need no gradient of their inputs, which three forwards charge.
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_law_flops_are_the_blocks_share() -> None:
    # The exact count is 16 % higher at width 32, 5 % at 128, 3 % at 2048, give or take the text.
    for width, excess in ((128, 0.08), (2048, 0.03)):
        exact = exact_flops(16, width, 1280, 64, 32, 4096) / 1280
        ratio = exact / flops_per_token(parameters(16, width), 1280, width)
        assert ratio > 1
        assert ratio < 1 + 2 * excess


def test_initialisation_is_a_function_of_seed_and_name() -> None:
    shallow, deep = build(layers=1), build(layers=3)
    theirs = dict(deep.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in shallow.named_parameters())
    assert not torch.equal(build(seed=1).patch_embedding.weight, shallow.patch_embedding.weight)


def test_initialisation_does_not_depend_on_the_order_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on the process: no generator is shared between parameters, and none is the global one."""
    torch.manual_seed(0)
    wanted = build(layers=2).state_dict()
    in_order = VideoDiT.named_parameters
    monkeypatch.setattr(VideoDiT, "named_parameters", lambda self: reversed(list(in_order(self))))
    torch.manual_seed(1)
    found = build(layers=2).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())


def test_padding_text_changes_nothing() -> None:
    model = trained(build())
    x, t, context, mask = inputs()
    longer = torch.cat((context, torch.full((3, 5, 16), 9.0)), dim=1)
    padded = torch.cat((mask, torch.zeros(3, 5, dtype=torch.bool)), dim=1)
    torch.testing.assert_close(model(x, t, longer, padded), model(x, t, context, mask), rtol=1e-5, atol=1e-5)


class AttentionCalls(TorchDispatchMode):
    """Counts the forward passes of attention kernels."""

    calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.calls += "scaled_dot_product" in str(function) and "backward" not in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("recompute", "calls"), [(True, 8), ("selective", 4)])
def test_recomputed_activations_give_the_same_gradients(recompute: bool | str, calls: int) -> None:
    """Of two blocks with two attentions each, "selective" computes no attention again."""
    models = build(), build()
    models[1].recompute = recompute
    for model in models:
        with AttentionCalls() as counter:
            trained(model)(*inputs()).square().mean().backward()
    assert counter.calls == calls
    for ours, theirs in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)


def test_samples_do_not_see_each_other() -> None:
    model = trained(build())
    whole = model(*inputs())
    alone = model(*(value[1:2] for value in inputs()))
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_near_float32() -> None:
    x = inputs()
    full = trained(build())(*x)
    half = trained(build(dtype=torch.bfloat16))(*x)
    assert half.dtype == torch.float32
    assert (half - full).norm() / full.norm() < 0.02  # bfloat16 has 8 bits


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 2, 1)])
def test_unpatchify_inverts_patchify(patch: tuple[int, int, int]) -> None:
    x = torch.randn(2, 4, 2, 4, 4)
    grid = (2 // patch[0], 4 // patch[1], 4 // patch[2])
    tokens = patchify(x, patch)
    assert tokens.shape == (2, math.prod(grid), 4 * math.prod(patch))
    assert torch.equal(unpatchify(tokens, patch, grid), x)
    assert build(patch=patch)(*inputs()).shape == (3, 4, 2, 4, 4)


def test_rotation_depends_on_distance_alone() -> None:
    grid = (3, 4, 5)
    table = rotary_table(grid, 32, torch.device("cpu"))
    q, k = torch.randn(2, 1, 1, 1, 32)
    turned = [rotate(v.expand(1, 60, 1, 1, 32), table).view(3, 4, 5, 32) for v in (q, k)]
    torch.testing.assert_close(turned[0].norm(dim=-1), q.norm().expand(3, 4, 5))
    one = turned[0][0, 1, 2] @ turned[1][2, 2, 3]
    same = turned[0][0, 2, 3] @ turned[1][2, 3, 4]
    other = turned[0][0, 1, 2] @ turned[1][1, 2, 3]
    torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-4)
    assert abs(one - other) > 1e-3


@pytest.mark.parametrize("backend", ["sdpa", "plain"])
def test_attention_equals_its_definition(backend: str) -> None:
    q, k, v = torch.randn(3, 2, 7, 3, 8)
    mask = torch.arange(7) < torch.tensor([7, 4])[:, None]
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
    weights = scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)
    wanted = torch.einsum("bhqk,bkhd->bqhd", weights, v)
    torch.testing.assert_close(attention(q, k, v, mask, backend), wanted)
    half = attention(*(value.bfloat16() for value in (q, k, v)), mask, backend)
    assert (half - wanted).norm() / wanted.norm() < 0.01  # bfloat16 has 8 bits


def test_backend_is_probed() -> None:
    assert choose_backend("auto", "cpu", torch.float32) == choose_backend("auto", "cuda", torch.bfloat16) == "sdpa"
    assert choose_backend("auto", "cpu", torch.bfloat16) == "plain"
    with pytest.raises(UserError, match="did you mean 'sdpa'"):
        choose_backend("spda", "cpu", torch.float32)
    with pytest.raises(UserError, match="no kernel runs on cpu"):
        choose_backend("xformers", "cpu", torch.float32)
