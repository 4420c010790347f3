"""What the scripts of st-moe-pytorch and soft-moe-pytorch share."""

import random
from contextlib import contextmanager

import torch
from safetensors.torch import save_file
from soft_moe_pytorch import SoftMoE
from st_moe_pytorch import MoE, SparseMoEBlock
from st_moe_pytorch.st_moe_pytorch import TopNGating

BLOCK_OPTIONS = ('add_ff_before', 'add_ff_after')


@contextmanager
def injected(*numbers):
    """The package samples these tensors, one after another; its masks are float64, not float32."""
    queue = list(numbers)
    uniform, to_float = torch.Tensor.uniform_, torch.Tensor.float

    def next_uniform(self, low=0.0, high=1.0):
        assert (low, high) == (0.0, 1.0), (low, high)
        return self.copy_(queue.pop(0))

    torch.Tensor.uniform_, torch.Tensor.float = next_uniform, torch.Tensor.double
    try:
        yield
        assert not queue, 'fewer draws than expected'
    finally:
        torch.Tensor.uniform_, torch.Tensor.float = uniform, to_float


def options_of(config):
    """JSON has lists where the package wants tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}


def build(kind, config):
    config = options_of(config)
    if kind == 'topn_gating':
        return TopNGating(**config)
    if kind == 'soft_moe':
        return SoftMoE(**config)
    moe = MoE(**{name: value for name, value in config.items() if name not in BLOCK_OPTIONS})
    if kind != 'block':
        return moe
    return SparseMoEBlock(moe, **{name: config[name] for name in BLOCK_OPTIONS})


def uniform(generator, *shape):
    return torch.rand(*shape, generator=generator, dtype=torch.float64).float().clamp(max=1 - 2**-24).double()


def strengthen(module, generator):
    """Away from the first values: stronger weights, and mult_bias and gamma that are not 1. All are float32 numbers."""
    for name, parameter in module.named_parameters():
        normal = torch.randn(parameter.shape, generator=generator)
        scale = 1.5 * parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
        shift = 1.0 if name.endswith(('mult_bias', 'gamma')) else 0.0
        parameter.data.copy_(shift + scale * normal)


def single(tensors):
    return {name: value.detach().float() for name, value in tensors.items()}


def gradients(module, x):
    grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in module.named_parameters()}
    return {f'expected.grad.{name}': grad for name, grad in dict(grads, input=x.grad).items()}


def save(path, tensors, metadata):
    contiguous = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    save_file(contiguous, str(path), metadata)


def drawing(draw_case):
    """The command `draw` of a script that draws one case like this."""

    def draw(seed, count, folder):
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        rng = random.Random(seed)
        for number in range(count):
            draw_case(rng, folder, number)

    return draw
