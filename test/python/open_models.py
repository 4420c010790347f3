"""Runs the mixture-of-experts layers of transformers.

open_models.py draw SEED FOLDER    writes a random layer of each model type, of the form described in test/golden/README.md
open_models.py golden FOLDER       writes the cases of test/golden/transformers
open_models.py make SEED FOLDER    writes a small random model of each type to FOLDER/{type}, and input and output of its last
                                   layer, in float32, to FOLDER/{type}.safetensors
open_models.py again FOLDER        writes the outputs that the models in FOLDER have now
"""

import random
import tempfile
from pathlib import Path

import torch
from command import run
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, logging


def configs(draw):
    """model_type -> what differs from small sizes."""
    hidden, top = draw.choice([16, 24, 40]), draw.choice([1, 2, 3])
    separate = {'moe_intermediate_size': hidden, 'intermediate_size': 40, 'num_experts_per_tok': top}
    local = {'intermediate_size': hidden, 'num_local_experts': draw.choice([3, 5, 8]), 'num_experts_per_tok': top}
    normalized = draw.choice([True, False])
    experts = {'num_experts': draw.choice([4, 6]), 'norm_topk_prob': normalized}
    latent = {'q_lora_rank': 16, 'kv_lora_rank': 16, 'qk_rope_head_dim': 8, 'v_head_dim': 16, 'qk_nope_head_dim': 8}
    groups = {'n_routed_experts': 8, 'n_group': draw.choice([1, 2, 4]), 'n_shared_experts': draw.choice([1, 2])}
    groups['topk_group'] = max(1, groups['n_group'] // 2)
    return {
        'mixtral': local,
        'olmoe': {'intermediate_size': hidden, 'num_experts_per_tok': top} | experts,
        'qwen2_moe': separate | experts | {'shared_expert_intermediate_size': draw.choice([20, 48])},
        'qwen3_moe': separate | experts | {'head_dim': 16},
        'deepseek_v3': separate | latent | groups | {'first_k_dense_replace': 0, 'norm_topk_prob': normalized},
        'gpt_oss': local | {'intermediate_size': 32, 'head_dim': 16},
        'llama4_text': local | {'intermediate_size_mlp': 40, 'head_dim': 16, 'interleave_moe_layer_step': 1},
        'granitemoe': local,
    }


def randomize(model):
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.dim() > 1:
                value.copy_(torch.randn_like(value) * 0.15)
            elif 'bias' in name:
                value.copy_(torch.randn_like(value) * 0.2)


def block_of(layer):
    return next(getattr(layer, name) for name in ('mlp', 'block_sparse_moe', 'feed_forward') if hasattr(layer, name))


def output(model, x):
    y = block_of(model.model.layers[1])(x)
    return (y[0] if isinstance(y, tuple) else y).reshape(x.shape)


COMMON = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'num_key_value_heads': 2, 'vocab_size': 64}


def random_model(name, more):
    config = AutoConfig.for_model(name, **(COMMON | more))
    eager = {'attn_implementation': 'eager', 'experts_implementation': 'eager'}
    model = AutoModelForCausalLM.from_config(config, **eager).float().eval()
    randomize(model)
    return model


def of_layer(tensors):
    return {key: value for key, value in tensors.items() if 'layers.1.' in key and 'norm' not in key and 'attn' not in key}


def saved(model):
    """The tensors of the last layer as transformers writes them, and config.json."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return of_layer(load_file(f'{folder}/model.safetensors')), (Path(folder) / 'config.json').read_text()


def passed(model):
    """Input, output and gradients of Σ output² of the last layer. Those of parameters have the names of the file, after
    'grad.', and are in float32; the model then holds them in place of its parameters."""
    x = torch.randn(2, 7, 32).double().requires_grad_()
    y = output(model, x)
    (y * y).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    buffers = dict(model.named_buffers())
    gradients = {f'grad.{name}': value.float() for name, value in saved(model)[0].items() if name not in buffers}
    return {'x': x.detach(), 'y': y.detach().contiguous(), 'dx': x.grad.contiguous()} | gradients


def draw(seed, folder, local=8):
    """The tensors of the last layer of each model type as transformers writes them, and what it computes in float64;
    `local` bounds num_local_experts."""
    torch.manual_seed(seed)
    for name, more in configs(random.Random(seed)).items():
        small = {key: min(value, local) for key, value in more.items() if key == 'num_local_experts'}
        model = random_model(name, more | small)
        layer, config = saved(model)
        save_file(layer | passed(model.double()), folder / f'{name}-{seed}.safetensors', {'config': config})


def golden(folder):
    for seed in (1, 7):
        draw(seed, folder, local=4)


def compute(model, x, path):
    save_file({'x': x, 'y': output(model, x).detach().contiguous()}, path)


def make(seed, folder):
    torch.manual_seed(seed)
    for name, more in configs(random.Random(seed)).items():
        model = random_model(name, more)
        model.save_pretrained(folder / name)
        compute(model, torch.randn(2, 7, 32), folder / f'{name}.safetensors')


def again(folder):
    for path in folder.glob('*.safetensors'):
        model = AutoModelForCausalLM.from_pretrained(path.with_suffix(''), attn_implementation='eager').float().eval()
        compute(model, load_file(path)['x'], path)


if __name__ == '__main__':
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    run(draw=draw, golden=golden, make=make, again=again)
