"""Runs soft-moe-pytorch.

soft_moe.py draw SEED COUNT FOLDER    writes COUNT random cases of the form described in test/golden/README.md
"""

import json

import torch
from command import run
from packages import build, drawing, gradients, injected, save, single, strengthen, uniform


def draw_config(rng):
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


def draw_case(rng, folder, number):
    config = draw_config(rng)
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
    save(folder / f'{number:03}-{form}.safetensors', tensors, metadata)


if __name__ == '__main__':
    run(draw=drawing(draw_case))
