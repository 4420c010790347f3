"""Runs the schedules and Adafactor of PyTorch and transformers.

optimizers.py draw SEED FOLDER    writes FOLDER/{kind}-{name}.safetensors, whose metadata has `kind`, our `name` and our
                                  `options` as JSON
    schedule     `base` [G], the rates of the groups; `metrics` [T]; `expected.rates` [T, G] before each step
    adafactor    parameters `p.{i}`, gradients `g.{step}.{i}`, and `expected.{i}` after all steps
"""

import json
import math
import random

import torch
import transformers
from command import run
from safetensors.torch import save_file
from torch.optim import lr_scheduler
from transformers.optimization import Adafactor


def warm_up_and(after):
    """Warm-up from the first share, not from 0, with the schedulers of PyTorch."""

    def make(optimizer, warm_up, **args):
        first = lr_scheduler.LinearLR(optimizer, start_factor=1 / warm_up, total_iters=warm_up - 1)
        return lr_scheduler.SequentialLR(optimizer, [first, after(optimizer, **args)], [warm_up])

    return make


COUNT = 40


def schedule_cases(rng):
    """Our schedule and options, theirs and its arguments."""
    warm_up, ratio = rng.randint(3, 9), round(rng.uniform(0.05, 0.5), 2)
    steps, timescale = rng.randint(25, COUNT - 1), rng.randint(20, 60)
    whole = COUNT + rng.randint(0, 9)  # after its end, their cosine rises again

    from_share = dict(warmUp=warm_up)
    cosine = dict(warm_up=warm_up, T_max=whole - warm_up)
    yield 'CosineSchedule', dict(from_share, steps=whole), warm_up_and(lr_scheduler.CosineAnnealingLR), cosine
    linear = dict(warm_up=warm_up, start_factor=1, end_factor=ratio, total_iters=steps - warm_up)
    yield 'LinearSchedule', dict(from_share, steps=steps, minRatio=ratio), warm_up_and(lr_scheduler.LinearLR), linear

    from_zero, theirs = dict(warmUp=warm_up, fromZero=True), dict(num_warmup_steps=warm_up)
    yield 'ConstantSchedule', from_zero, transformers.get_constant_schedule_with_warmup, theirs
    for more in ({}, dict(timescale=timescale)):
        yield 'InverseSqrtSchedule', from_zero | more, transformers.get_inverse_sqrt_schedule, theirs | more
    linear = dict(theirs, num_training_steps=steps)
    yield 'LinearSchedule', dict(from_zero, steps=steps), transformers.get_linear_schedule_with_warmup, linear
    cosine = dict(theirs, num_training_steps=whole, min_lr_rate=ratio)
    ours = dict(from_zero, steps=whole, minRatio=ratio)
    yield 'CosineSchedule', ours, transformers.get_cosine_with_min_lr_schedule_with_warmup, cosine

    for options in (
        dict(mode='min', patience=2, factor=0.5, threshold=0.02, cooldown=3),
        dict(mode='max', patience=0, factor=0.9, threshold=0.1, cooldown=0, thresholdMode='abs'),
    ):
        theirs = {name: value for name, value in options.items() if name != 'thresholdMode'}
        theirs.update(threshold_mode=options.get('thresholdMode', 'rel'), eps=0)
        yield 'PlateauSchedule', options, lr_scheduler.ReduceLROnPlateau, theirs


def save(path, tensors, kind, name, options):
    save_file(tensors, path, dict(kind=kind, name=name, options=json.dumps(options)))


def draw_schedules(rng, folder):
    base = [1e-3, 0.7]
    phase = rng.uniform(0, 1)
    metrics = [3 + math.cos(phase + i * 1.7) / (1 + i / 9) for i in range(COUNT)]
    for number, (name, options, make, args) in enumerate(schedule_cases(rng)):
        optimizer = torch.optim.SGD([{'params': [torch.nn.Parameter(torch.zeros(1))], 'lr': lr} for lr in base])
        schedule = make(optimizer, **args)
        rates = []
        for metric in metrics:
            rates.append([group['lr'] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step(*([metric] if name == 'PlateauSchedule' else []))
        tensors = {'base': base, 'metrics': metrics, 'expected.rates': rates}
        tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in tensors.items()}
        save(folder / f'schedule-{number}-{name}.safetensors', tensors, 'schedule', name, options)


USUAL = dict(scale_parameter=True, relative_step=True)
SHAPES = ([13], [9, 17], [300, 40], [3, 8, 20])
STEPS = 6


def adafactor_cases():
    """Our options, theirs and its arguments."""
    yield 'defaults', {}, Adafactor, USUAL
    yield 'torch', dict(lr=0.4), torch.optim.Adafactor, dict(lr=0.4)
    yield 'moment', dict(beta1=0.9, weightDecay=0.1), Adafactor, dict(USUAL, beta1=0.9, weight_decay=0.1)
    ours = dict(lr=0.05, scaleParameter=False, relativeStep=False, clipThreshold=0.5, decayRate=-0.6, weightDecay=0.02)
    theirs = dict(scale_parameter=False, relative_step=False, clip_threshold=0.5, decay_rate=-0.6, weight_decay=0.02)
    yield 'fixed', ours, Adafactor, dict(theirs, lr=0.05)


def draw_adafactor(folder):
    starts = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    gradients = [[torch.randn(shape, dtype=torch.float64) for shape in SHAPES] for _ in range(STEPS)]
    given = {f'p.{i}': start for i, start in enumerate(starts)}
    given.update({f'g.{step}.{i}': g for step, all in enumerate(gradients) for i, g in enumerate(all)})
    for name, options, make, args in adafactor_cases():
        parameters = [torch.nn.Parameter(start.clone()) for start in starts]
        optimizer = make(parameters, **args)
        for step in range(STEPS):
            for parameter, gradient in zip(parameters, gradients[step]):
                parameter.grad = gradient.clone()
            optimizer.step()
        stepped = {f'expected.{i}': parameter.detach() for i, parameter in enumerate(parameters)}
        save(folder / f'adafactor-{name}.safetensors', given | stepped, 'adafactor', 'Adafactor', options)


def draw(seed, folder):
    torch.manual_seed(seed)
    draw_schedules(random.Random(seed), folder)
    draw_adafactor(folder)


if __name__ == '__main__':
    run(draw=draw)
