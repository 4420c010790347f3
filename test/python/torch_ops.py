"""Runs losses of PyTorch and attention of transformers.

torch_ops.py draw SEED FOLDER    writes FOLDER/{number}.safetensors: inputs, the result `y`, its gradient `dy` and those of the
                                 inputs, `d{input}`, in float64; metadata: `op`, `options` as JSON
"""

import json
from itertools import chain

import torch
from command import run
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

REDUCTIONS = ('mean', 'sum', 'none')


def single(*shape):
    """Float64 numbers that float32 holds."""
    return torch.randn(shape).double()


def losses():
    shape = (6, 7)
    a, b, share = single(*shape), single(*shape), torch.rand(shape).double()
    share[0, :3] = torch.tensor([0.0, 1.0, 0.5])
    logs = torch.log_softmax(a, -1).float().double()
    other_logs = torch.log_softmax(b, -1).float().double()
    weight = torch.rand(shape[1]).double() + 0.5
    target = torch.randint(0, shape[1], (shape[0],))
    target[2] = -100
    for reduction in REDUCTIONS:
        both = dict(reduction=reduction)
        yield 'mseLoss', both, dict(a=a, b=b), lambda a, b: F.mse_loss(a, b, **both)
        yield 'huberLoss', dict(both, delta=0.7), dict(a=a, b=b), lambda a, b: F.huber_loss(a, b, delta=0.7, **both)
        for beta in (0.0, 0.6):
            yield 'smoothL1Loss', dict(both, beta=beta), dict(a=a, b=b), lambda a, b: F.smooth_l1_loss(a, b, beta=beta, **both)
        for scale in (1, 60):
            yield ('binaryCrossEntropyWithLogits', both, dict(a=scale * a, b=share),
                   lambda a, b: F.binary_cross_entropy_with_logits(a, b, **both))
        yield ('binaryCrossEntropyWithLogits', both, dict(a=a, b=share, posWeight=weight),
               lambda a, b, posWeight: F.binary_cross_entropy_with_logits(a, b, pos_weight=posWeight, **both))
        for smoothing in (0.0, 0.1, 1.0):
            yield ('crossEntropy', dict(both, labelSmoothing=smoothing), dict(a=3 * a, b=target.int()),
                   lambda a, b: F.cross_entropy(a, b.long(), label_smoothing=smoothing, **both))
    for reduction in (*REDUCTIONS, 'batchmean'):
        both = dict(reduction=reduction)
        yield 'klDiv', both, dict(a=logs, b=torch.softmax(b, -1).float().double()), lambda a, b: F.kl_div(a, b, **both)
        yield ('klDiv', dict(both, logTarget=True), dict(a=logs, b=other_logs),
               lambda a, b: F.kl_div(a, b, log_target=True, **both))


def attend(x, mask, query, key, value, out, heads, kv_heads, causal, base):
    batch, tokens, dim = x.shape
    width = dim // heads
    split = lambda weight, count: F.linear(x, weight).view(batch, tokens, count, width).transpose(1, 2)
    q, k, v = split(query, heads), split(key, kv_heads), split(value, kv_heads)
    if base:
        frequencies = base ** (-torch.arange(0, width, 2).double() / width)
        angles = torch.arange(tokens).double()[:, None] * frequencies
        angles = torch.cat((angles, angles), -1)[None]
        q, k = apply_rotary_pos_emb(q, k, angles.cos(), angles.sin())
    seen = torch.ones(tokens, tokens, dtype=torch.bool)
    if causal:
        seen = seen.tril()
    seen = seen & mask.bool()[:, None, None, :]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    return F.linear(y.transpose(1, 2).reshape(batch, tokens, dim), out)


def attentions():
    for heads, kv_heads, causal, base, masked in (
        (4, 4, True, None, False), (4, 2, True, 10000.0, False), (6, 1, False, 100.0, True), (4, 2, True, 500.0, True),
        (2, 2, False, None, False), (3, 3, False, None, True),
    ):
        batch, tokens, width = 2, 37, 8
        dim, kv_dim = heads * width, kv_heads * width
        mask = torch.ones(batch, tokens)
        if masked:
            mask[0, tokens // 2:] = 0
            mask[1, 3:9] = 0
        inputs = dict(x=single(batch, tokens, dim), mask=mask.int())
        for name, rows, columns in (('query', dim, dim), ('key', kv_dim, dim), ('value', kv_dim, dim), ('out', dim, dim)):
            inputs[name] = (single(rows, columns) * columns**-0.5).float().double()
        options = dict(heads=heads, kvHeads=kv_heads, causal=causal)
        if base:
            options.update(rotary=True, rotaryBase=base)
        yield 'Attention', options, inputs, lambda **given: attend(
            heads=heads, kv_heads=kv_heads, causal=causal, base=base, **given)


def alignments():
    """`is_causal`, whose triangle begins at the first key, and one that ends at the last."""
    for heads, kv_heads, queries, keys in ((2, 2, 5, 12), (4, 2, 37, 90), (2, 1, 12, 5), (3, 3, 20, 20)):
        for causal in ('first', 'last') if keys >= queries else ('first',):
            inputs = dict(q=single(2, queries, heads * 8), k=single(2, keys, kv_heads * 8), v=single(2, keys, kv_heads * 8))

            def sdpa(q, k, v):
                q, k, v = (x.view(2, x.shape[1], -1, 8).transpose(1, 2) for x in (q, k, v))
                last = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
                how = dict(is_causal=True) if causal == 'first' else dict(attn_mask=last)
                y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **how)
                return y.transpose(1, 2).reshape(2, queries, heads * 8)
            yield 'attention', dict(heads=heads, kvHeads=kv_heads, causal=causal), inputs, sdpa


def draw(seed, folder):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    for number, (op, options, inputs, function) in enumerate(chain(losses(), attentions(), alignments())):
        given = {name: value.clone() for name, value in inputs.items()}
        for name, value in given.items():
            value.requires_grad_(value.is_floating_point() and name != 'posWeight')
        y = function(**given)
        dy = single(*y.shape)
        (y * dy).sum().backward()
        gradients = {'d' + name: value.grad for name, value in given.items() if value.grad is not None}
        tensors = {name: value.detach().contiguous().clone() for name, value in dict(given, y=y, dy=dy, **gradients).items()}
        save_file(tensors, str(folder / f'{number:03}.safetensors'), dict(op=op, options=json.dumps(options)))


if __name__ == '__main__':
    run(draw=draw)
