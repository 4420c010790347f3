"""The errors of PyTorch's float32 against its float64, on the samples of its own tests (OpInfo) and on random ones.

float32_errors.py draw SEED FOLDER    writes FOLDER/{op}.safetensors, the samples of an op: inputs `{i}.x0`, `{i}.x1` … in
                                      float32, `{i}.dy`, and in float64 the result `{i}.y` and gradients `{i}.d0` …; metadata:
                                      `samples`, of each its `options` and the errors of PyTorch, `y` and `gradients`
"""

import json

import torch
from command import run
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.common_methods_invocations import op_db

BINARY = dict(add='add', sub='sub', mul='mul', div='div', pow='pow', maximum='maximum', minimum='minimum')
UNARY = dict(abs='abs', exp='exp', log='log', neg='neg', relu='nn.functional.relu', sigmoid='sigmoid', sqrt='sqrt', square='square',
             tanh='tanh', gelu='nn.functional.gelu', silu='nn.functional.silu', softplus='nn.functional.softplus')
LOSSES = dict(mseLoss='mse_loss', huberLoss='huber_loss', smoothL1Loss='smooth_l1_loss',
              binaryCrossEntropyWithLogits='binary_cross_entropy_with_logits')


def samples_of(name, variant=''):
    info = next(op for op in op_db if op.name == name and op.variant_test_name == variant)
    for sample in info.sample_inputs('cpu', torch.float32, requires_grad=False):
        if all(x.numel() > 0 for x in (sample.input, *sample.args) if isinstance(x, torch.Tensor)):
            yield sample.input, sample.args, sample.kwargs


def function_of(name):
    return getattr(F if '.' in name else torch, name.split('.')[-1])


def are_tensors(args):
    return all(isinstance(x, torch.Tensor) for x in args)


def cases():
    """Name, options and inputs of our op, and the same in PyTorch."""
    for ours, name in UNARY.items():
        for x, args, options in samples_of(name):
            if not args and not options:
                yield ours, {}, [x], function_of(name)
    for ours, name in UNARY.items():
        for number in range(30):
            x = 3 * torch.randn(torch.randint(1, 40, (2,)).tolist())
            yield ours, {}, [x.abs() if ours in ('log', 'sqrt') else x], function_of(name)
    for ours, name in BINARY.items():
        for x, args, options in samples_of(name, *(['no_rounding_mode'] if name == 'div' else [])):
            if not options and are_tensors(args):
                yield ours, {}, [x, *args], getattr(torch, name)
    for name in ('matmul', 'linear'):
        for x, args, _ in samples_of(name if name == 'matmul' else f'nn.functional.{name}'):
            if x.dim() >= 2 and args[0].dim() >= 2:
                yield name, {}, [x, *args], torch.matmul if name == 'matmul' else F.linear
    for name in ('sum', 'mean'):
        for x, args, options in samples_of(name):
            dims = options.get('dim', args[0] if args else None)
            kept = options.get('keepdim', False)
            reduce = getattr(torch, name)
            if x.dim() == 0 or dims == []:
                continue
            if dims is None:
                yield name, {}, [x], reduce
            else:
                yield (name, dict(axis=dims, keepDim=kept), [x],
                       lambda x, reduce=reduce, dims=dims, kept=kept: reduce(x, dim=dims, keepdim=kept))
    for ours, name in (('softmax', 'softmax'), ('logSoftmax', 'log_softmax')):
        for x, args, options in samples_of(name):
            axis = options.get('dim', args[0] if args else None)
            if x.dim() > 0:
                yield ours, dict(axis=axis), [x], lambda x, name=name, axis=axis: getattr(torch, name)(x, axis)
    for number in range(30):
        rows, dim = torch.randint(3, 200, (2,)).tolist()
        x, weight, bias = 2 * torch.randn(rows, dim) + 1, torch.randn(dim), torch.randn(dim)
        yield 'layerNorm', {}, [x, weight, bias], lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias)
        yield 'rmsNorm', {}, [x, weight], lambda x, gamma: F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * gamma
    for ours, name in LOSSES.items():
        for x, args, options in samples_of(f'nn.functional.{name}'):
            options = {option: value for option, value in options.items() if option in ('reduction', 'delta', 'beta')}
            if are_tensors(args) and len(args) == 1 and args[0].shape == x.shape:
                yield ours, options, [x, args[0]], lambda x, t, name=name, options=options: getattr(F, name)(x, t, **options)
    for x, args, options in samples_of('nn.functional.kl_div'):
        log_target = options.get('log_target', False)
        reduction = options.get('reduction', 'mean')
        x, target = x.log_softmax(-1), args[0].softmax(-1)
        target = target.log() if log_target else target
        yield ('klDiv', dict(reduction=reduction, logTarget=log_target), [x, target],
               lambda x, t, r=reduction, log=log_target: F.kl_div(x, t, reduction=r, log_target=log))
    for x, args, options in samples_of('nn.functional.cross_entropy'):
        known = {option: value for option, value in options.items() if option in ('reduction', 'label_smoothing')}
        if x.dim() == 2 and not args[0].is_floating_point() and len(known) == len(options):
            names = dict(reduction='reduction', label_smoothing='labelSmoothing')
            yield ('crossEntropy', {names[option]: value for option, value in known.items()}, [x, args[0].int()],
                   lambda x, t, known=known: F.cross_entropy(x, t.long(), **known))
    for weight, (index,), options in samples_of('nn.functional.embedding'):
        if not options:
            yield 'embedding', {}, [weight, index.int()], lambda w, i: F.embedding(i.long(), w)
    yield from attention()


def attention():
    sizes = lambda: (2, *torch.randint(2, 65, (2,)).tolist(), *(2 ** torch.randint(0, 6, (1,))).tolist())
    for number in range(100):
        heads, queries, keys, width = sizes()
        causal = number % 2 == 0
        keys = queries if causal else keys

        def attend(q, k, v, heads=heads, width=width, causal=causal):
            split = (x.view(1, x.shape[1], heads, width).transpose(1, 2) for x in (q, k, v))
            with sdpa_kernel(SDPBackend.MATH):  # the unfused formula, its most exact one
                y = F.scaled_dot_product_attention(*split, is_causal=causal)
            return y.transpose(1, 2).reshape(q.shape)

        yield 'attention', dict(heads=heads, causal=causal), [torch.randn(1, n, heads * width) for n in (queries, keys, keys)], attend


def computed(fn, inputs, dy, dtype):
    leaves = [x.detach().clone().to(dtype).requires_grad_() if x.is_floating_point() else x for x in inputs]
    y = fn(*leaves)
    if dy is None:
        dy = torch.randn_like(y)
    y.backward(dy.to(dtype))
    return y.detach(), dy, [x.grad for x in leaves if x.is_floating_point()]


def relative_error(a, b):
    return ((a.double() - b).norm() / b.norm()).item() if b.norm() > 0 else a.double().norm().item()


def draw(seed, folder):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tensors, samples = {}, {}
    for op, options, inputs, fn in cases():
        inputs = [x.detach() for x in inputs]
        single, dy, gradients = computed(fn, inputs, None, torch.float32)
        double, _, wanted = computed(fn, inputs, dy, torch.float64)
        if not all(x.isfinite().all() for x in (double, *wanted)):
            continue
        of_op = samples.setdefault(op, [])
        errors = dict(y=relative_error(single, double), gradients=[relative_error(a, b) for a, b in zip(gradients, wanted)])
        made = {**{f'x{i}': x for i, x in enumerate(inputs)}, 'dy': dy, 'y': double, **{f'd{i}': x for i, x in enumerate(wanted)}}
        tensors.setdefault(op, {}).update({f'{len(of_op)}.{name}': x.contiguous().clone() for name, x in made.items()})
        of_op.append(dict(options=options, inputs=len(inputs), **errors))
    for op, of_op in samples.items():
        save_file(tensors[op], str(folder / f'{op}.safetensors'), dict(samples=json.dumps(of_op)))


if __name__ == '__main__':
    run(draw=draw)
