"""Prints tensors as PyTorch does.

printed.py draw SEED FOLDER    writes FOLDER/{number}.safetensors: a tensor `x`; metadata: its numbers as `text`
"""

import torch
from command import run
from safetensors.torch import save_file


def samples():
    wide = torch.randn(50) * 10 ** torch.linspace(-6, 6, 50)
    return [
        torch.tensor(1.5), torch.tensor(3.0), torch.tensor([]), torch.zeros(2, 0), torch.zeros(3), torch.tensor([-0.0, 1.0]),
        torch.tensor([1.0, 2.0, 300.0]), torch.tensor([1.0, 2.0, 3000.0]), torch.tensor([1e9, 1.0]), torch.tensor([1e-5, 0.5]),
        torch.tensor([float('nan'), float('inf'), -float('inf'), 2.5]), torch.tensor([float('nan'), float('inf'), 1.0]),
        torch.tensor([float('nan')] * 3), torch.randn(3, 4), torch.randn(2, 3, 4) * 100, torch.randn(40), torch.randn(3, 30),
        wide, torch.randn(1000), torch.randn(1001), torch.randn(30, 40), torch.randn(2, 900), torch.randn(9, 7, 20),
        torch.randn(3, 4, 5, 30), torch.randn(2, 7, 8, 9, 8).double(), torch.randn(7, 1, 7, 1, 7, 7).double(),
        torch.arange(-3, 12).int(), torch.randint(-1000, 1000, (40, 50)).int(), torch.tensor(7).int(), torch.arange(1200).int(),
        torch.tensor([0.03125, 0.09375, -0.03125]), torch.tensor([1.28125, -1.34375, 1e5]),  # ties
    ]


def draw(seed, folder):
    torch.manual_seed(seed)
    for number, x in enumerate(samples()):
        save_file({'x': x}, folder / f'{number:03}.safetensors', {'text': torch._tensor_str._tensor_str(x, len('tensor('))})


if __name__ == '__main__':
    run(draw=draw)
