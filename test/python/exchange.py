"""Loads our files into st-moe-pytorch and soft-moe-pytorch.

exchange.py exchange FOLDER    loads FOLDER/ours.safetensors into the package, writes its outputs for
                               FOLDER/input.safetensors and its own state dict to FOLDER/theirs.safetensors
"""

import json

import torch
from command import run
from packages import build, injected
from safetensors import safe_open
from safetensors.torch import load_file, save_file


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


if __name__ == '__main__':
    run(exchange=exchange)
