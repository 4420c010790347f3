"""Runs st-moe-pytorch.

st_moe.py draw SEED COUNT FOLDER    writes COUNT random cases of the form described in test/golden/README.md
"""

import json

import torch
from command import run
from packages import build, drawing, gradients, injected, save, single, strengthen, uniform

MARGIN = 1e-4


def gating_of(module):
    module = getattr(module, 'moe', module)
    return getattr(module, 'gate', module)


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
    save(folder / f'{number:03}-{kind}.safetensors', dict(tensors, **state), metadata)


if __name__ == '__main__':
    run(draw=drawing(draw_case))
