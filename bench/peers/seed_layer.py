"""Times st-moe-pytorch on the layer of bench/seed-layer.ts. Reads commands from standard input: 'forward' or 'both'."""

import sys
import time

import torch
from st_moe_pytorch import MoE

threads, dim, experts, batch, tokens = map(int, sys.argv[1:6])
torch.set_num_threads(threads)
torch.manual_seed(0)
moe = MoE(dim=dim, num_experts=experts)
x = torch.randn(batch, tokens, dim, requires_grad=True)

print("ready", flush=True)
for command in sys.stdin:
    start = time.perf_counter()
    if command.strip() == "forward":
        with torch.no_grad():
            moe(x)
    else:
        outputs, total_aux_loss, *_ = moe(x)
        (outputs.mean() + total_aux_loss).backward()
        moe.zero_grad()
        x.grad = None
    print((time.perf_counter() - start) * 1e3, flush=True)
