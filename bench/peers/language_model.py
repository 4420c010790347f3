"""The language model of language-model, with the layers of st-moe-pytorch and the names of its state."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from st_moe_pytorch import MoE, SparseMoEBlock
from st_moe_pytorch.st_moe_pytorch import RMSNorm
from torch import nn


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, dim, heads, experts):
        super().__init__()
        self.norm = RMSNorm(dim)
        self.attention = Attention(dim, heads)
        moe = MoE(
            dim=dim,
            num_experts=experts,
            capacity_factor_train=2.0,
            capacity_factor_eval=float(experts),
            threshold_eval=0.0,
        )
        self.block = SparseMoEBlock(moe)

    def forward(self, x):
        y, loss, *_ = self.block(self.attention(self.norm(x)) + x)
        return y, loss


class Model(nn.Module):
    def __init__(self, vocabulary, context, dim, layers, heads, experts):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.zeros(context, dim))
        self.layers = nn.ModuleList(Block(dim, heads, experts) for _ in range(layers))
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, vocabulary)

    def forward(self, characters):
        x, losses = self.tokens(characters) + self.positions, 0
        for layer in self.layers:
            x, loss = layer(x)
            losses = losses + loss
        return self.head(self.norm(x)), losses


class Training:
    """A training step as in language-model/train-step.ts. AdamW is the fused one, the fastest that PyTorch has."""

    def __init__(self, options, state):
        self.model = Model(**options)
        self.model.load_state_dict(load_file(state))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.1, fused=True
        )

    def input(self, input, target, context):
        self.characters, self.target = (torch.tensor(t).view(-1, context) for t in (input, target))

    def loss(self):
        logits, aux = self.model(self.characters)
        return F.cross_entropy(logits.flatten(0, 1), self.target.flatten()), aux

    def run(self, kind):
        loss, aux = self.loss()
        (loss + aux).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()

    def after(self):
        pass

    def evaluate(self):
        """The loss without chance and without drops."""
        self.model.eval()
        with torch.no_grad():
            loss, _ = self.loss()
        self.model.train()
        return loss.item()
