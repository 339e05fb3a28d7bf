"""The work of a training step by formula: FLOPs, and bytes to and from memory and between processes.

With a machine's rates it says what limits a step: each part's seconds beside the measured ones. No torch here.
"""

import math
from dataclasses import dataclass

from videoscaling.models.sizes import attention_flops, exact_flops
from videoscaling.training.planning.memory_formula import (
    ClipShape,
    Layout,
    ModelShape,
    activation_bytes,
    even_size,
    keeps_gathered,
    parameter_groups,
)

# Bytes a parameter that the end of a step reads and writes, all float32 (a test counts them): the norm reads the
# gradient; clipping reads and writes it; AdamW reads weight, gradient and moments and writes all but the gradient; the
# EMA reads two and writes one; the gradient is set to zero. Compiled, one pass after the norm's reads all five and
# writes all but the gradient; FSDP2's shards are many small tensors and have none.
OPTIMIZER, ONE_PASS = 4 * (1 + 2 + 7 + 3 + 1), 4 * (1 + 9 + 1)
# Bytes that a matrix's number costs in each micro-batch besides its products: its gradient is added to the sum; in
# bfloat16 the weight is cast before, and its gradient after.
GRADIENTS = {"float32": 12, "bfloat16": 12 + 6 + 6}


@dataclass(frozen=True)
class StepAccount:
    """One process's work in a step.

    Attributes:
        products, attention: FLOPs of matrix products, and of the scores and sums of attention.
        optimizer, gradients: bytes of memory that the end of the step moves, and the casts and sums of gradients.
        activations: bytes that are kept for the backward pass, written once and read once: no less is moved.
        gathers: bytes of weights and gradients received from other processes; of queries, keys, values and outputs
            of attention too where processes divide clips.
    """

    products: float
    attention: float
    optimizer: int
    gradients: int
    activations: int
    gathers: int

    def text(self) -> str:
        """One line."""
        moved = f"optimiser {self.optimizer:.3g}, gradients {self.gradients:.3g}, activations {self.activations:.3g}"
        return (
            f"FLOPs of products {self.products:.3g}, attention {self.attention:.3g}; bytes of {moved}, gathers "
            f"{self.gathers:.3g}"
        )

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> dict[str, float]:
        """Seconds of each part at a machine's rates of products and of memory; gathers are left out."""
        flops = {name: getattr(self, name) / flops_per_second for name in ("products", "attention")}
        moved = ("optimizer", "gradients", "activations")
        return flops | {name: getattr(self, name) / bytes_per_second for name in moved}


def step_account(
    shape: ModelShape, clip: ClipShape, layout: Layout, *, clips: int, dtype: str, compiled: bool = False
) -> StepAccount:
    """The work of one process of ``layout`` in a step of ``clips``, the blocks computing in ``dtype``."""
    world, local, share = layout.processes, clips * layout.context // layout.processes, clips / layout.processes
    micro = even_size(local, layout.micro_batch)
    passes, count = math.ceil(local / micro), sum(parameter_groups(shape).values())
    text = (clip.text_tokens, clip.text_dim)
    attention = share * attention_flops(shape.layers, shape.width, clip.n_ctx, clip.text_tokens)
    products = share * exact_flops(shape.layers, shape.width, clip.n_ctx, shape.token_dim, *text) - attention
    recompute = layout.activation_checkpointing
    again = 4 / 3 if recompute else 1  # a second forward pass
    kept = activation_bytes(
        layers=shape.layers,
        width=shape.width,
        n_ctx=clip.n_ctx // layout.context,
        text_tokens=clip.text_tokens,
        clips=micro,
        dtype=dtype,
        recompute=False,
        casts=False,
    )
    shards = {"fsdp": world, "hsdp": min(world, layout.node), "zero1": world}.get(layout.parallel, 1)
    optimizer = ONE_PASS if compiled and (world == 1 or layout.parallel in ("ddp", "zero1")) else OPTIMIZER
    matrices = parameter_groups(shape)["blocks' matrices"]
    gathered = 2 if dtype == "bfloat16" else 4
    tokens = local * clip.n_ctx * (layout.context - 1) // layout.context**2  # that come from other processes
    exchanges = (3 if recompute else 2) * 4 * gathered * shape.layers * shape.width * tokens
    return StepAccount(
        products=again * products,
        attention=(1 if recompute == "selective" else again) * attention,
        optimizer=optimizer * count // shards,
        gradients=passes * GRADIENTS[dtype] * matrices,
        activations=passes * (3 if recompute else 2) * kept,
        gathers=exchanges + _gathers(count, matrices, layout, passes, gathered) if world > 1 else 0,
    )


def _gathers(count: int, matrices: int, layout: Layout, passes: int, gathered: int) -> int:
    """Bytes that a process receives: gradients of 4 bytes, and weights where processes hold parts of them."""
    if layout.parallel == "zero1":
        return 8 * count - (4 - gathered) * matrices
    if layout.parallel == "ddp":
        return 8 * count  # its reduction passes each gradient twice
    if passes > 1 and keeps_gathered(count):
        return (gathered + 4) * count
    return passes * (2 * gathered + 4) * count  # gathered for the forward pass, and again for the backward pass
