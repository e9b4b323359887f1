"""Nets whose numbers are unlike the initial ones, and images to feed them."""

import torch

from companion.models import ContinuousNet
from companion.train import seeded


def scrambled(model, seed=1):
    """Move every parameter and buffer away from its initial value: zeros would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.data = noise + 0.5 if name.endswith("var") else tensor.data + (noise - 0.5) * 0.4
    return model


def images(*shape, seed=2):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def continuous_net(**options):
    """Return a small net that has seen a batch: its statistics are not the initial ones."""
    with seeded(0):
        made = ContinuousNet(3, inputs=2, channels=(3, 4), skip_init=False, **options)
        with torch.no_grad():
            made(torch.randn(8, 2, 6, 6))
    return made
