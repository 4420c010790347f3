"""The error of attention's gradients in float32, by the unfused formula of PyTorch, its most exact one.

attention_errors.py draw SEED FOLDER    writes FOLDER/{number}.safetensors: inputs in float32, gradients in float64; metadata:
                                        `options`, and `errors`, those of the gradients of PyTorch in float32
"""

import json

import torch
from command import run
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def relative_error(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


def draw(seed, folder):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    sizes = lambda: (2, *torch.randint(2, 65, (2,)).tolist(), *(2 ** torch.randint(0, 6, (1,))).tolist())
    for number in range(100):
        heads, queries, keys, width = sizes()
        causal = number % 2 == 0
        keys = queries if causal else keys
        given = [torch.randn(1, n, heads * width) for n in (queries, keys, keys)]
        dy = torch.randn(1, queries, heads * width)
        gradients = []
        for dtype in (torch.float32, torch.float64):
            leaves = [x.detach().clone().to(dtype).requires_grad_() for x in given]
            q, k, v = (x.view(1, x.shape[1], heads, width).transpose(1, 2) for x in leaves)
            with sdpa_kernel(SDPBackend.MATH):
                y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
            y.transpose(1, 2).reshape(dy.shape).backward(dy.to(dtype))
            gradients.append([x.grad for x in leaves])
        errors = [relative_error(single, double) for single, double in zip(*gradients)]
        tensors = dict(zip(('q', 'k', 'v'), given), dy=dy, **dict(zip(('dq', 'dk', 'dv'), gradients[1])))
        metadata = dict(options=json.dumps(dict(heads=heads, causal=causal)), errors=json.dumps(errors))
        save_file({name: x.contiguous() for name, x in tensors.items()}, str(folder / f'{number:03}.safetensors'), metadata)


if __name__ == '__main__':
    run(draw=draw)
