"""Runs st-moe-pytorch and soft-moe-pytorch for test/python/parity.test.ts.

parity.py draw SEED COUNT FOLDER    writes COUNT random cases of the form described in test/golden/README.md
parity.py soft SEED COUNT FOLDER    the same for SoftMoE
parity.py exchange FOLDER           loads FOLDER/ours.safetensors into the package, writes its outputs for
                                    FOLDER/input.safetensors and its own state dict to FOLDER/theirs.safetensors
"""

import json
import random
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from soft_moe_pytorch import SoftMoE
from st_moe_pytorch import MoE, SparseMoEBlock
from st_moe_pytorch.st_moe_pytorch import TopNGating

MARGIN = 1e-4
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


def gating_of(module):
    module = getattr(module, 'moe', module)
    return getattr(module, 'gate', module)


def uniform(generator, *shape):
    return torch.rand(*shape, generator=generator, dtype=torch.float64).float().clamp(max=1 - 2**-24).double()


def draw_config(rng, kind):
    experts = rng.choice([2, 3, 4, 5, 8, 12, 33])
    top_n = rng.randint(2, min(experts, 4))

    def thresholds():
        one = lambda: rng.choice([0.0, 0.2, 1e6, round(rng.uniform(0.1, 0.9), 3)])
        return [one() for _ in range(top_n - 1)] if rng.random() < 0.5 else one()

    pair = thresholds(), thresholds()
    if isinstance(pair[0], list) != isinstance(pair[1], list):
        pair = pair[0], pair[0]
    common = dict(
        dim=rng.randint(4, 16),
        threshold_train=pair[0],
        threshold_eval=pair[1],
        capacity_factor_train=rng.choice([1.25, 0.7, round(rng.uniform(0.4, 3), 2)]),
        capacity_factor_eval=rng.choice([2.0, round(rng.uniform(0.4, 3), 2)]),
        straight_through_dispatch_tensor=rng.random() < 0.7,
        differentiable_topk=kind != 'train' and top_n * 9 / 8 < experts and rng.random() < 0.3,
    )
    if kind == 'topn_gating':
        return dict(common, num_gates=experts, top_n=top_n)
    config = dict(
        common,
        num_experts=experts,
        gating_top_n=top_n,
        expert_hidden_mult=rng.choice([1, 2, 4, 4.1]),
        balance_loss_coef=round(rng.uniform(0, 1), 3),
        router_z_loss_coef=round(rng.uniform(0, 1), 3),
    )
    if kind == 'block':
        config.update(add_ff_before=rng.random() < 0.5, add_ff_after=rng.random() < 0.5)
    return config


def strengthen(module, generator):
    """Away from the first values: stronger weights, and mult_bias and gamma that are not 1. All are float32 numbers."""
    for name, parameter in module.named_parameters():
        normal = torch.randn(parameter.shape, generator=generator)
        scale = 1.5 * parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
        shift = 1.0 if name.endswith(('mult_bias', 'gamma')) else 0.0
        parameter.data.copy_(shift + scale * normal)


class Routing:
    """What the gating of a module does with x, with the numbers that it would sample."""

    def __init__(self, module, x, forward_options, generator):
        gating = gating_of(module)
        seen = []
        hook = gating.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        batch, tokens, _ = x.shape
        self.noise = []
        if forward_options.get('noise_gates'):
            self.noise = [uniform(generator, batch, tokens, gating.num_gates)]
        blank = torch.zeros(gating.top_n, batch, tokens, dtype=torch.float64)
        with torch.no_grad(), injected(*self.noise, blank):
            module(x, **forward_options)
        hook.remove()
        logits = torch.nn.functional.linear(seen[0], gating.to_gates.weight.detach())
        for u in self.noise:
            log = lambda t: torch.log(t.clamp(min=1e-20))
            logits = logits - log(-log(u)) * forward_options.get('noise_mult', 1.0)
        self.probs = logits.softmax(dim=-1)
        chosen = gating.topk(self.probs, k=gating.top_n)
        self.index = chosen.indices
        values = chosen.coor_descent_values if gating.differentiable_topk else chosen.values
        self.gate = values / values.sum(dim=-1, keepdim=True).clamp(min=gating.eps)
        threshold = (gating.threshold_train if module.training else gating.threshold_eval).clamp(min=gating.eps)
        self.chance = (self.gate / threshold).permute(2, 0, 1)
        self.uniforms = self.draw(generator)
        self.gating, self.seen, self.options = gating, seen[0], forward_options

    def draw(self, generator):
        u = uniform(generator, *self.chance.shape)
        while (close := (u - self.chance).abs() < 2 * MARGIN).any():
            u = torch.where(close, uniform(generator, *u.shape), u)
        return u

    def close_tokens(self):
        """Tokens whose expert selection depends on a small difference of two probabilities."""
        top = self.probs.sort(dim=-1, descending=True).values[..., : self.index.shape[-1] + 1]
        return ((top[..., :-1] - top[..., 1:]) < MARGIN).any(dim=-1)

    def draws(self):
        return [*self.noise, self.uniforms]

    def expected(self):
        """Experts, gates and slots, read off the dense tensors of the package."""
        with torch.no_grad(), injected(*self.draws()):
            dispatch, combine, *_ = self.gating(self.seen, **self.options)
        index = self.index[..., None].expand(*self.index.shape, dispatch.shape[-1])
        rows = dispatch.gather(2, index) > 0.5
        kept = rows.any(dim=-1)
        position = torch.where(kept, rows.int().argmax(dim=-1), -1)
        result = dict(expert_index=self.index, kept=kept, position=position)
        tensors = {f'expected.route.{name}': value.int() for name, value in result.items()}
        return dict(tensors, **{'expected.route.gate': self.gate}), dispatch.shape[-1], dispatch, combine


def settled(module, shape, forward_options, generator):
    """An input whose routing float32 decides as float64 does."""
    x = torch.randn(*shape, generator=generator).double()
    for _ in range(400):
        routing = Routing(module, x, forward_options, generator)
        close = routing.close_tokens()
        if not close.any():
            return x, routing
        x = torch.where(close[..., None], torch.randn(*shape, generator=generator).double(), x)
    raise RuntimeError('no input without a close decision')


def single(tensors):
    return {name: value.detach().float() for name, value in tensors.items()}


def gradients(module, x):
    grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in module.named_parameters()}
    return {f'expected.grad.{name}': grad for name, grad in dict(grads, input=x.grad).items()}


def layer_case(module, kind, shape, forward_options, aux_weight, generator):
    x, routing = settled(module, shape, forward_options, generator)
    route, capacity, dispatch, _ = routing.expected()
    random_numbers = {'random.uniforms': routing.uniforms}
    if routing.noise:
        random_numbers['random.gumbel_uniforms'] = routing.noise[0]
    x.requires_grad = True
    with injected(*routing.draws()):
        result = module(x, **forward_options)
    if kind == 'topn_gating':
        names = ['dispatch', 'combine', 'balance_loss', 'router_z_loss']
        cotangents = [torch.randn(dispatch.shape, generator=generator).double() for _ in range(2)]
        given = {'grad_dispatch': cotangents[0], 'grad_combine': cotangents[1]}
        aux = result[2] + result[3]
    else:
        names = ['outputs', 'total_aux_loss', 'balance_loss', 'router_z_loss']
        cotangents = [torch.randn(shape, generator=generator).double()]
        given = {'grad_output': cotangents[0]}
        aux = result.total_aux_loss
    objective = sum((y * c).sum() for y, c in zip(result, cotangents)) + aux_weight * aux.sum()
    objective.backward()
    expected = {f'expected.{n}': y.reshape([]) if n.endswith('_loss') else y for n, y in zip(names, result)}
    tensors = dict(single(dict(random_numbers, input=x, **given)), **route, **expected, **gradients(module, x))
    return tensors, capacity


def training_case(module, shape, optimizer_options, steps, generator):
    x, routing = settled(module, shape, {}, generator)
    target = torch.randn(shape, generator=generator).double()
    options = {name: value for name, value in optimizer_options.items() if name != 'name'}
    optimizer = torch.optim.AdamW(module.parameters(), **options)
    tensors, losses = {}, []
    for step in range(steps):
        routing = Routing(module, x, {}, generator)
        if routing.close_tokens().any():
            return None, None
        tensors[f'random.uniforms.{step}'] = routing.uniforms
        with injected(routing.uniforms):
            result = module(x)
        loss = ((result.outputs - target) ** 2).mean() + result.total_aux_loss
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        for parameter in module.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        losses.append(loss.item())
    final = {f'expected.final.{name}': parameter.detach() for name, parameter in module.named_parameters()}
    given = single(dict(tensors, input=x, target=target))
    return dict(given, **final, **{'expected.loss': torch.tensor(losses, dtype=torch.float64)}), routing.expected()[1]


def draw_case(rng, folder, number):
    kind = rng.choice(['moe', 'moe', 'moe', 'block', 'topn_gating', 'train'])
    config = draw_config(rng, kind)
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    module = build(kind, config)
    strengthen(module, generator)
    state = {f'state.{name}': value.clone() for name, value in module.state_dict().items()}
    mode = 'eval' if kind != 'train' and rng.random() < 0.3 else 'train'
    module.double().train(mode == 'train')
    shape = (rng.randint(1, 3), rng.randint(1, 40), config['dim'])
    noisy = kind != 'train' and rng.random() < 0.25
    forward_options = dict(noise_gates=True, noise_mult=round(rng.uniform(0.3, 1), 2)) if noisy else {}
    metadata = dict(kind=kind, mode=mode, config=json.dumps(config), forward_options=json.dumps(forward_options))
    if kind == 'train':
        # A large eps: Adam divides by the root of squared gradients, which lifts rounding errors of tiny ones.
        optimizer = dict(name='AdamW', lr=0.01, betas=[0.9, 0.95], eps=1e-3, weight_decay=0.1)
        metadata.update(steps='5', optimizer=json.dumps(optimizer), aux_weight='1')
        tensors, capacity = training_case(module, shape, optimizer, 5, generator)
    else:
        aux_weight = round(rng.uniform(0.5, 10), 2)
        metadata.update(aux_weight=str(aux_weight))
        tensors, capacity = layer_case(module, kind, shape, forward_options, aux_weight, generator)
    if tensors is None:
        return draw_case(rng, folder, number)
    metadata.update(capacity=str(capacity), description=f'{shape}')
    contiguous = {name: value.detach().contiguous().clone() for name, value in dict(tensors, **state).items()}
    save_file(contiguous, str(folder / f'{number:03}-{kind}.safetensors'), metadata)


def draw_soft_config(rng):
    experts = rng.randint(2, 6)  # the slots of one expert may be equal, and then there is no gradient to compare
    config = dict(
        dim=rng.randint(4, 16),
        num_experts=experts,
        expert_mult=rng.choice([1, 2, 4, 1.7]),
        geglu=rng.random() < 0.5,
        use_layernorm=rng.random() < 0.5,
    )
    slots = dict(num_slots=rng.randint(1, 4)) if rng.random() < 0.5 else dict(seq_len=rng.randint(experts, 20))
    return dict(config, **slots)


def draw_soft_case(rng, folder, number):
    config = draw_soft_config(rng)
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    module = build('soft_moe', config)
    strengthen(module, generator)
    module.slot_norm.gamma.data *= 0.3  # of a saturated softmax, float32 keeps rounding errors instead of a gradient
    for name, beta in module.named_buffers():
        if name.endswith('beta'):
            beta.copy_(0.3 * torch.randn(beta.shape, generator=generator))
    state = {f'state.{name}': value.clone() for name, value in module.state_dict().items()}
    module.double()
    batch, dim, form = rng.randint(1, 3), config['dim'], rng.choice(['sequence', 'sequence', 'rows', 'image'])
    size = rng.randint(1, 5), rng.randint(1, 5)
    tokens = {'sequence': rng.randint(1, 24), 'rows': 1, 'image': size[0] * size[1]}[form]
    shape = {'sequence': (batch, tokens, dim), 'rows': (batch, dim), 'image': (batch, dim, *size)}[form]
    given = dict(input=torch.randn(shape, generator=generator), grad_output=torch.randn(shape, generator=generator))
    options, draws = {}, []
    if rng.random() < 0.5:
        given['mask'] = torch.rand(batch, tokens, generator=generator) < 0.7
        given['mask'][:, rng.randrange(tokens)] = True  # a sequence of padding alone differs on purpose
    if rng.random() < 0.5:
        options = dict(add_noise=True, noise_mult=round(rng.uniform(0.3, 1), 2))
        draws = [uniform(generator, batch, tokens, *module.slot_embeds.shape[:2])]
        given['random.gumbel_uniforms'] = draws[0]
    x = given['input'].double().requires_grad_()
    with injected(*draws):
        outputs = module(x, mask=given.get('mask'), **options)
    (outputs * given['grad_output'].double()).sum().backward()
    metadata = dict(kind='soft_moe', mode='train', config=json.dumps(config), forward_options=json.dumps(options))
    tensors = dict(single(given), **{'expected.outputs': outputs}, **gradients(module, x), **state)
    contiguous = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    save_file(contiguous, str(folder / f'{number:03}-{form}.safetensors'), metadata)


def exchange(folder):
    with safe_open(str(folder / 'ours.safetensors'), 'pt') as file:
        about = file.metadata()
    module = build(about['kind'], json.loads(about['config']))
    module.load_state_dict(load_file(str(folder / 'ours.safetensors')))
    given = load_file(str(folder / 'input.safetensors'))
    module.double().train(about['mode'] == 'train')
    with torch.no_grad(), injected(given['uniforms'].double()):
        result = module(given['input'].double(), **json.loads(about['forward_options']))
    outputs = getattr(result, 'outputs', result)
    save_file({'outputs': outputs.contiguous()}, str(folder / 'outputs.safetensors'))
    save_file(module.float().state_dict(), str(folder / 'theirs.safetensors'))


def main():
    torch.set_num_threads(1)
    command, *rest = sys.argv[1:]
    if command == 'exchange':
        exchange(Path(rest[0]))
        return
    seed, count, folder = int(rest[0]), int(rest[1]), Path(rest[2])
    rng = random.Random(seed)
    torch.manual_seed(seed)
    draw = {'draw': draw_case, 'soft': draw_soft_case}[command]
    for number in range(count):
        draw(rng, folder, number)


main()
