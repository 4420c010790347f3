"""Does what bench/peer.ts asks: one JSON object per line in, one out. Each object made has a name of the caller's."""

import json
import sys
import time
import traceback

import torch

from language_model import Training
from layers import Layer
from soft_moe import SoftLayer

things = {}


def timed(thing, kind):
    start = time.perf_counter()
    thing.run(kind)
    ms = (time.perf_counter() - start) * 1e3
    thing.after()
    return {'value': ms}


def memory():
    """Bytes of the process in memory, now and at most."""
    lines = dict(line.split(':', 1) for line in open('/proc/self/status'))
    return {name: int(lines[key].split()[0]) * 1024 for name, key in (('now', 'VmRSS'), ('peak', 'VmHWM'))}


def call(owner, name, arguments):
    result = getattr(owner, name)(**arguments)
    return {} if result is None else {'value': result}


def answer(request):
    match request.pop('do'):
        case 'threads':
            torch.set_num_threads(request['count'])
            return {'torch': torch.__version__}
        case 'layer':
            name = request.pop('name')
            things[name] = Layer(**request)
            return {}
        case 'training':
            name = request.pop('name')
            things[name] = Training(**request)
            return {}
        case 'soft':
            name = request.pop('name')
            things[name] = SoftLayer(**request)
            return {}
        case 'time':
            return timed(things[request['name']], request['kind'])
        case 'memory':
            return memory()
        case method:
            return call(things[request.pop('name')], method, request)


torch.manual_seed(0)
for line in sys.stdin:
    try:
        print(json.dumps(answer(json.loads(line))), flush=True)
    except Exception:
        print(json.dumps({'error': traceback.format_exc()}), flush=True)
