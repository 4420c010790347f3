"""Runs the mixture-of-experts layers of transformers for test/parity.test.ts.

open_models.py make SEED FOLDER    for each model type writes a small random model to FOLDER/{type}, and input, output and the
                                   gradient of Σ output² of its last layer to FOLDER/{type}.safetensors
open_models.py run FOLDER          writes the output that the models in FOLDER have now
"""

import random
import sys
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


def make(seed, folder):
    torch.manual_seed(seed)
    common = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'num_key_value_heads': 2, 'vocab_size': 64}
    for name, more in configs(random.Random(seed)).items():
        config = AutoConfig.for_model(name, **(common | more))
        model = AutoModelForCausalLM.from_config(config, attn_implementation='eager').float().eval()
        randomize(model)
        model.save_pretrained(f'{folder}/{name}')
        x = torch.randn(2, 7, 32, requires_grad=True)
        y = output(model, x)
        (y * y).sum().backward()
        save_file({'x': x.detach(), 'y': y.detach().contiguous(), 'dx': x.grad.contiguous()}, f'{folder}/{name}.safetensors')


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
    else:
        run(sys.argv[2])
