"The input formula and the checksums of the recorded values, and a generator from a seed."

import torch


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recipe(shape: tuple[int, ...], start: float) -> torch.Tensor:
    "The input formula of the recorded checksums."
    count = torch.Size(shape).numel()
    return torch.sin(start + 0.61803398875 * torch.arange(count, dtype=torch.float64)).float().view(shape)


def checksum(tensor: torch.Tensor) -> tuple[float, float, float]:
    flat = tensor.double().flatten()
    weights = (torch.arange(len(flat)) * 7919 % 1000) / 1000
    return flat.sum().item(), (flat * weights.double()).sum().item(), flat.norm().item()
