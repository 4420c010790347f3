"""Runs the mixture-of-experts layers of transformers for test/python/parity.test.ts and test/io/transformers-golden.test.ts.

open_models.py make SEED FOLDER    for each model type writes a small random model to FOLDER/{type}, and input, output and the
                                   gradients of Σ output² of its last layer to FOLDER/{type}.safetensors
open_models.py run FOLDER          writes the output that the models in FOLDER have now
open_models.py golden FOLDER       writes the cases of test/golden/transformers, described in test/golden/README.md
"""

import random
import sys
import tempfile
from pathlib import Path

import torch
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


def passed(model, dtype):
    """Input, output and gradients of Σ output² of the last layer. Those of parameters have the names of the file, after
    'grad.', and are in float32; the model then holds them in place of its parameters."""
    x = torch.randn(2, 7, 32).to(dtype).requires_grad_()
    y = output(model, x)
    (y * y).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    buffers = dict(model.named_buffers())
    gradients = {f'grad.{name}': value.float() for name, value in saved(model)[0].items() if name not in buffers}
    return {'x': x.detach(), 'y': y.detach().contiguous(), 'dx': x.grad.contiguous()} | gradients


def make(seed, folder):
    torch.manual_seed(seed)
    for name, more in configs(random.Random(seed)).items():
        model = random_model(name, more)
        model.save_pretrained(f'{folder}/{name}')
        save_file(passed(model, torch.float32), f'{folder}/{name}.safetensors')


def golden(folder):
    """Two draws of each model type: the tensors of its last layer as transformers writes them, and what it computes in float64."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for seed in (1, 7):
        torch.manual_seed(seed)
        for name, more in configs(random.Random(seed)).items():
            small = {key: min(value, 4) for key, value in more.items() if key == 'num_local_experts'}
            model = random_model(name, more | small)
            layer, config = saved(model)
            results = passed(model.double(), torch.float64)
            save_file(layer | results, f'{folder}/{name}-{seed}.safetensors', {'config': config})


def run(folder):
    for path in Path(folder).glob('*.safetensors'):
        model = AutoModelForCausalLM.from_pretrained(path.with_suffix(''), attn_implementation='eager').float().eval()
        x = load_file(path)['x']
        save_file({'x': x, 'y': output(model, x).detach().contiguous()}, path)


if __name__ == '__main__':
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if sys.argv[1] == 'make':
        make(int(sys.argv[2]), sys.argv[3])
    elif sys.argv[1] == 'golden':
        golden(sys.argv[2])
    else:
        run(sys.argv[2])
