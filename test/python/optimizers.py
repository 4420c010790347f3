"""Runs the schedules and Adafactor of PyTorch and transformers for test/python/optim-parity.test.ts.

optimizers.py schedules FOLDER    reads FOLDER/cases.json, [{name, args, base, count, metrics}], and writes the learning rates
                                  of each case, per step and group, to FOLDER/rates.json
optimizers.py adafactor FOLDER    steps of each optimizer of the metadata of FOLDER/given.safetensors, {name: [package, args]},
                                  from p.{i} with gradients g.{step}.{i}; writes {name}.{i} to FOLDER/stepped.safetensors
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.optim import lr_scheduler
from transformers.optimization import Adafactor


def warm_up_and(after):
    """Warm-up from the first share, not from 0, with the schedulers of PyTorch."""

    def make(optimizer, warm_up, **args):
        first = lr_scheduler.LinearLR(optimizer, start_factor=1 / warm_up, total_iters=warm_up - 1)
        return lr_scheduler.SequentialLR(optimizer, [first, after(optimizer, **args)], [warm_up])

    return make


SCHEDULES = {
    'torch.cosine': warm_up_and(lr_scheduler.CosineAnnealingLR),
    'torch.linear': warm_up_and(lr_scheduler.LinearLR),
    'torch.plateau': lr_scheduler.ReduceLROnPlateau,
    'constant': transformers.get_constant_schedule_with_warmup,
    'linear': transformers.get_linear_schedule_with_warmup,
    'cosine': transformers.get_cosine_with_min_lr_schedule_with_warmup,
    'inverse_sqrt': transformers.get_inverse_sqrt_schedule,
}


def schedules(folder):
    found = []
    for case in json.loads((folder / 'cases.json').read_text()):
        groups = [{'params': [torch.nn.Parameter(torch.zeros(1))], 'lr': lr} for lr in case['base']]
        optimizer = torch.optim.SGD(groups)
        schedule = SCHEDULES[case['name']](optimizer, **case['args'])
        rates = []
        for step in range(case['count']):
            rates.append([group['lr'] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step(*([case['metrics'][step]] if case.get('metrics') else []))
        found.append(rates)
    (folder / 'rates.json').write_text(json.dumps(found))


def adafactor(folder):
    given = load_file(str(folder / 'given.safetensors'))
    with safe_open(str(folder / 'given.safetensors'), 'pt') as file:
        optimizers = json.loads(file.metadata()['optimizers'])
    count = len([name for name in given if name.startswith('p.')])
    steps = len([name for name in given if name.startswith('g.')]) // count
    stepped = {}
    for name, (package, args) in optimizers.items():
        parameters = [torch.nn.Parameter(given[f'p.{i}'].clone()) for i in range(count)]
        optimizer = {'torch': torch.optim.Adafactor, 'transformers': Adafactor}[package](parameters, **args)
        for step in range(steps):
            for i, parameter in enumerate(parameters):
                parameter.grad = given[f'g.{step}.{i}'].clone()
            optimizer.step()
        stepped.update({f'{name}.{i}': parameter.detach() for i, parameter in enumerate(parameters)})
    save_file(stepped, str(folder / 'stepped.safetensors'))


if __name__ == '__main__':
    {'schedules': schedules, 'adafactor': adafactor}[sys.argv[1]](Path(sys.argv[2]))
