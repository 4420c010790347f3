"""The layer of soft-moe-pytorch to be timed."""

import torch
from safetensors.torch import load_file, save_file
from soft_moe_pytorch import SoftMoE


class SoftLayer:
    def __init__(self, options, state, given):
        self.moe = SoftMoE(**options)
        self.moe.load_state_dict(load_file(state))
        tensors = load_file(given)
        self.x, self.dy = tensors['x'].requires_grad_(), tensors['dy']

    def run(self, kind):
        if kind == 'forward':
            with torch.no_grad():
                return self.moe(self.x)
        y = self.moe(self.x)
        (y * self.dy).sum().backward()
        return y

    def after(self):
        self.moe.zero_grad()
        self.x.grad = None

    def outputs(self, to):
        """Writes outputs and gradients to a file."""
        found = {'outputs': self.run('forward+backward'), 'dx': self.x.grad, 'dSlots': self.moe.slot_embeds.grad}
        save_file({name: t.detach().contiguous() for name, t in found.items()}, to)
        self.after()
