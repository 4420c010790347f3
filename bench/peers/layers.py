"""Layers to be timed, under one interface: run(kind), kept(), outputs(...)."""

from contextlib import contextmanager

import torch
from safetensors.torch import load_file, save_file
from st_moe_pytorch import MoE

from index_moe import IndexMoE


@contextmanager
def drawn(uniforms):
    """The next sample of st-moe-pytorch is these numbers."""
    original = torch.Tensor.uniform_
    torch.Tensor.uniform_ = lambda self, *_: self.copy_(uniforms)
    try:
        yield
    finally:
        torch.Tensor.uniform_ = original


class Layer:
    def __init__(self, implementation, dim, experts, compute='f32', state=None):
        self.is_reference = implementation == 'st-moe-pytorch'
        self.moe = MoE(dim=dim, num_experts=experts) if self.is_reference else IndexMoE(dim, experts, compute=compute)
        if state is not None:
            (self.moe.load_state_dict if self.is_reference else self.moe.load_split)(load_file(state))
        self.dim = dim

    def input(self, batch, tokens):
        self.x = torch.randn(batch, tokens, self.dim, requires_grad=True)
        self.dy = torch.randn(batch, tokens, self.dim)

    def parameter_bytes(self):
        return sum(p.nbytes for p in self.moe.parameters())

    def run(self, kind):
        if kind == 'forward':
            with torch.no_grad():
                self.moe(self.x)
            return
        outputs, loss, *_ = self.moe(self.x)
        ((outputs * self.dy).sum() + loss).backward()

    def after(self):
        self.moe.zero_grad()
        self.x.grad = None

    def kept(self):
        """Fraction of the assignments that are dispatched, capacity utilization."""
        with torch.no_grad():
            if self.is_reference:
                dispatch, *_ = self.moe.gate(self.x)  # [B, N, E, C]
                B, N, E, C = dispatch.shape
                kept, asked, slots = int(dispatch.sum()), B * N * self.moe.gate.top_n, B * E * C
            else:
                kept, asked, slots = self.moe.kept(self.x)
        return {'kept': kept / asked, 'occupancy': kept / slots}

    def outputs(self, given, to):
        """Writes what comes of the input x [B, N, D], the gradient dy and the uniforms [K, B, N] to a file."""
        tensors = load_file(given)
        x = tensors['x'].requires_grad_()
        if self.is_reference:
            with drawn(tensors['uniforms']):
                y, loss, *_ = self.moe(x)
        else:
            y, loss = self.moe(x, tensors['uniforms'])
        ((y * tensors['dy']).sum() + loss).backward()
        gate = self.moe.gate.to_gates.weight if self.is_reference else self.moe.gate
        found = {'outputs': y, 'totalAuxLoss': loss, 'dx': x.grad, 'dGate': gate.grad}
        save_file({name: t.detach().contiguous() for name, t in found.items()}, to)
        self.moe.zero_grad()
