"""The layer of st-moe-pytorch without one-hot tensors: tokens are gathered by index, multiplied by bmm, and added back.

What one would write in PyTorch for speed. The mathematics is that of docs/semantics.md; `agreement` in bench/layer-peers.ts checks it.
"""

import torch
import torch.nn.functional as F
from torch import nn


class IndexMoE(nn.Module):
    def __init__(self, dim, num_experts, top_n=2, threshold=0.2, capacity_factor=1.25, compute='f32'):
        super().__init__()
        hidden = int(dim * 4 * 2 / 3)
        self.top_n, self.threshold, self.capacity_factor, self.compute = top_n, threshold, capacity_factor, compute
        self.gate = nn.Parameter(torch.randn(num_experts, dim) * dim**-0.5)
        self.w1 = nn.Parameter(torch.randn(num_experts, 2 * hidden, dim) * dim**-0.5)
        self.b1 = nn.Parameter(torch.zeros(num_experts, 1, 2 * hidden))
        self.mult_bias = nn.Parameter(torch.ones(num_experts, 1, hidden))
        self.w2 = nn.Parameter(torch.randn(num_experts, dim, hidden) * hidden**-0.5)
        self.b2 = nn.Parameter(torch.zeros(num_experts, 1, dim))
        if compute == 'bf16':  # weights of the experts are held in bf16; the router stays in float32
            for p in (self.w1, self.b1, self.mult_bias, self.w2, self.b2):
                p.data = p.data.bfloat16()

    def load_split(self, state):
        """Takes a state dict of st-moe-pytorch."""
        stacked = {'w1': 'net.0.weight', 'b1': 'net.0.bias', 'mult_bias': 'net.1.mult_bias'}
        stacked |= {'w2': 'net.2.weight', 'b2': 'net.2.bias'}
        self.gate.data.copy_(state['gate.to_gates.weight'])
        for name, theirs in stacked.items():
            parameter = getattr(self, name)
            for e in range(len(parameter)):
                parameter.data[e].copy_(state[f'experts.experts.{e}.{theirs}'])

    def route(self, x, uniforms):
        """x [B, N, D] -> gates and slots [K, B, N] (the slot after the last if dropped), their number, losses."""
        B, N, _ = x.shape
        E = len(self.gate)
        capacity = max(min(N, int(N * self.capacity_factor / E)), 4)
        logits = F.linear(x, self.gate)
        probabilities = logits.softmax(-1)
        values, index = (t.movedim(-1, 0) for t in probabilities.topk(self.top_n))
        gates = values / values.sum(0).clamp(min=1e-9)
        if uniforms is None:
            uniforms = torch.rand_like(gates)
        slots, used = [], torch.zeros(B, 1, E)
        for k in range(self.top_n):
            asked = F.one_hot(index[k], E).float()
            if k > 0:
                asked = asked * (uniforms[k] < gates[k] / self.threshold)[..., None]
            before = (asked.cumsum(1) - asked + used).gather(-1, index[k, ..., None])[..., 0]
            kept = (before < capacity) & asked.gather(-1, index[k, ..., None])[..., 0].bool()
            row = (index[k] * B + torch.arange(B)[:, None]) * capacity + before.long()
            slots.append(torch.where(kept, row, E * B * capacity))
            taken = asked * kept[..., None]
            used = used + taken.sum(1, keepdim=True)
            if k == 0:
                density = taken.mean(1)
        balance = (probabilities.mean(1) * density).mean() * E**2
        z = logits.logsumexp(-1).square().mean()
        return gates, torch.stack(slots), E * B * capacity, 1e-2 * balance + 1e-3 * z

    def experts(self, rows):
        """rows [E, R, D] -> [E, R, D]"""
        if self.compute == 'bf16':
            rows = rows.bfloat16()
        with torch.autocast('cpu', torch.bfloat16, enabled=self.compute == 'autocast'):
            a, gate = torch.baddbmm(self.b1, rows, self.w1.mT).chunk(2, -1)
            return torch.baddbmm(self.b2, F.gelu(gate) * a * self.mult_bias, self.w2.mT).float()

    def forward(self, x, uniforms=None):
        B, N, D = x.shape
        gates, slots, count, loss = self.route(x, uniforms)
        tokens = torch.arange(B * N).view(B, N).expand_as(slots)
        # Slots that nobody took read token 0 with weight 0.
        token_of = torch.zeros(count + 1, dtype=torch.long).scatter(0, slots.flatten(), tokens.flatten())[:count]
        weight = torch.zeros(count + 1).scatter(0, slots.flatten(), gates.flatten())[:count, None]
        rows = x.reshape(B * N, D).index_select(0, token_of)
        rows = rows * (1 + weight - weight.detach())  # straight-through dispatch
        y = self.experts(rows.view(len(self.gate), -1, D)).view(count, D)
        out = torch.zeros(B * N, D).index_add(0, token_of, y * weight)
        return out.view(B, N, D), loss

    def kept(self, x):
        _, slots, count, _ = self.route(x, None)
        return int((slots < count).sum()), slots.numel(), count
