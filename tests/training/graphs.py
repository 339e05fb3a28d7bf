"""What torch.compile's backends are given: graphs of models, and those of the end of a step."""

import torch
import torch.nn.functional as F


def nodes_of(module: torch.fx.GraphModule) -> list[torch.fx.Node]:
    """The nodes of a graph; recomputed blocks stand in a module of their own inside it."""
    parts = [part for part in module.modules() if isinstance(part, torch.fx.GraphModule)]
    return [node for part in parts for node in part.graph.nodes]


def is_of_a_model(module: torch.fx.GraphModule) -> bool:
    """Whether a graph is of a model, or of a block: the end of a step has no matrix products."""
    return any(node.target is F.linear for node in nodes_of(module))
