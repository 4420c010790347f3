"""Runs the MoE layer of Mesh TensorFlow.

mesh.py golden FOLDER             writes the cases of test/golden/mesh, described in test/golden/README.md
mesh.py draw SEED COUNT FOLDER    writes COUNT random cases

Needs test/python/mesh-requirements.txt.
"""

import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

import numpy as np
import tensorflow.compat.v1 as tf
from command import run
from mesh_cases import committed, sampled
from safetensors.numpy import save_file
from tensorflow.python.framework import ops
from tensorflow.python.framework import tensor_conversion_registry as conversions

MARGIN = 1e-4
KINK = 1e-5  # of a relu


def import_mesh():
    """mesh-tensorflow 0.1.21 under a current TensorFlow, in double precision: what it calls float32 is float64."""
    estimator = types.ModuleType('estimator')  # gone since TensorFlow 2.16
    estimator.ModeKeys = types.SimpleNamespace(TRAIN='train', EVAL='eval', PREDICT='infer')
    estimator.SessionRunHook = estimator.CheckpointSaverListener = estimator.CheckpointSaverHook = object
    tf.estimator = sys.modules['tensorflow.compat.v1.estimator'] = estimator
    ops.register_tensor_conversion_function = conversions.register_tensor_conversion_function
    tf.float32 = tf.float64
    # The __init__ of transformer imports the data pipeline, which its modules do not need.
    package = types.ModuleType('mesh_tensorflow.transformer')
    package.__path__ = [str(Path(importlib.util.find_spec('mesh_tensorflow').origin).parent / 'transformer')]
    sys.modules[package.__name__] = package
    import mesh_tensorflow
    from mesh_tensorflow.transformer import moe

    return mesh_tensorflow, moe


mtf, moe = import_mesh()
tf.logging.set_verbosity(tf.logging.ERROR)

ACTIVATIONS = dict(relu=mtf.relu, gelu=mtf.gelu, silu=mtf.swish, geglu=['gelu', 'linear'], swiglu=['swish', 'linear'])


def hparams(case):
    get, coef = case.get, case.get('balanceLossCoef') or 1
    policy = 'sample' if get('sampleExperts') else 'argmax'
    if get('routerJitter') or get('routerDropout'):
        policy = 'input_jitter' if get('routerJitter') else 'input_dropout'
    return moe.HParams(
        moe_gating=case.gating,
        moe_num_experts=get('numExperts'),
        moe_loss_coef=coef,
        moe_z_loss=get('routerZLossCoef') / coef or None,
        moe_hidden_size=get('expertHiddenDim'),
        moe_group_size=case.group,
        moe_min_expert_capacity=get('minExpertCapacity', 4),
        moe_capacity_factor_train=get('capacityFactorTrain', 1.25),
        moe_capacity_factor_eval=get('capacityFactorEval', 2.0),
        moe_capacity_factor_second_level=1.0,
        moe_use_second_place_loss=get('useSecondPlaceLoss', False),
        moe_second_policy_train=get('secondPolicyTrain', 'random'),
        moe_second_policy_eval=get('secondPolicyEval', 'random'),
        moe_second_threshold_train=get('thresholdTrain', 0.2),
        moe_second_threshold_eval=get('thresholdEval', 0.2),
        moe_dropout_rate=0.0,
        moe_switch_policy_train=policy,
        moe_switch_policy_eval=policy,
        moe_switch_dropout=get('routerDropout', 0.0),
        moe_switch_jitter=get('routerJitter', 0.0),
        moe_switch_temperature=get('routerTemperature', 1.0),
        moe_ntlb_top_k=get('ntlbTopK', 4),
        moe_use_experts_attention=False,
        moe_word_embed_mode=case.router_input,
        moe_use_second_place_expert_prob=get('secondPlaceProb'),
        moe_use_second_place_expert_prob_temp=get('secondPlaceTemperature'),
        moe_top_n_num_experts_per_token=case.top_n,
    )


def sample_numbers(case, rng):
    """What a case is given, under the names of its file: float32 numbers, as float64."""
    B, N, D, H = case.batch, case.length, case.get('dim'), case.get('expertHiddenDim')
    O, gated = case.get('outputDim', D), isinstance(ACTIVATIONS[case.get('activation')], list)
    seen = 2 * D if case.router_input == 'concat' else D

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)

    def uniform(*shape):
        return rng.random(shape, np.float32).clip(1e-4, 1 - 1e-4).astype(np.float64)

    given = {'input': normal(B, N, D), 'grad_output': normal(B, N, O)}
    if case.router_input:
        given['token_embeddings'] = normal(B, N, D)
    given['state.gate.to_gates.weight'] = normal(case.levels[0], seen, scale=1.5 * seen**-0.5)
    if len(case.levels) == 2:
        for x in range(case.levels[0]):
            given['state.' + case.inner_gate(x)] = normal(case.levels[1], D, scale=1.5 * D**-0.5)
    for e in range(np.prod(case.levels)):
        at = 'state.' + case.expert(e)
        given[at + '0.weight'] = normal(2 * H if gated else H, D, scale=1.5 * D**-0.5)
        given[at + '2.weight'] = normal(O, H, scale=1.5 * H**-0.5)
    if case.policy == 'random':
        given['random.uniforms'] = uniform(case.top_n, B, N)
    if case.temperature is not None:
        given['random.gumbel_uniforms'] = uniform(B, N, case.levels[0])
    if case.disturbed('routerJitter'):
        given['random.jitter_uniforms'] = uniform(B, N, D)
    if case.disturbed('routerDropout'):
        given['random.dropout_uniforms'] = uniform(B, N, D)
    if case.disturbed('secondPlaceProb'):
        given['random.second_place_uniforms'] = uniform(B, N)
    if case.importance:
        importance = (np.arange(N) < rng.integers(N // 2, N + 1, (B, 1))).astype(np.float64)
        if case.importance == 'halves':
            importance = rng.choice([0.0, 0.5, 1.0], (B, N), p=[0.2, 0.3, 0.5])
        if case.importance == 'positive':  # Mesh's second places count padding
            importance = rng.choice([0.5, 1.0], (B, N))
        importance.reshape(-1, case.group)[:, 0] = 1  # in a group of padding alone, Mesh's experts choose padding
        given['mask' if case.mask else 'importance'] = importance
    return given


def softmax(logits, axis=-1):
    exp = np.exp(logits - logits.max(axis, keepdims=True))
    return exp / exp.sum(axis, keepdims=True)


def gaps(values, count):
    """Distances between the `count` largest and those after them."""
    values = -np.sort(-values, axis=-1)[..., : count + 1]
    return values[..., :-1] - values[..., 1:]


def decisions(case, given):
    """Distances that must not be small, so that float32 decides as float64 does."""
    x = given['input']
    if case.disturbed('routerJitter'):
        x = x * (1 + case.get('routerJitter') * (2 * given['random.jitter_uniforms'] - 1))
    if p := case.disturbed('routerDropout'):
        u = given['random.dropout_uniforms']
        x = x * (u >= p) / (1 - p)
        yield u - p
    if case.router_input:
        e = given['token_embeddings']
        x = dict(embed_only=e, add=x + e, concat=np.concatenate([x, e], -1))[case.router_input]
    logits = (x @ given['state.gate.to_gates.weight'].T).reshape(-1, case.group, case.levels[0])
    noise = 0
    if case.temperature is not None:
        u = given['random.gumbel_uniforms'].reshape(logits.shape)
        noise = -np.log(-np.log(u)) * case.temperature
    if p := case.disturbed('secondPlaceProb'):
        u = given['random.second_place_uniforms'].reshape(logits.shape[:2])
        yield u - p
        yield gaps(softmax(logits), 1)
        top = np.eye(case.levels[0])[logits.argmax(-1)]
        lowered = logits - 1e9 * top
        if case.temperature is not None:
            yield gaps(lowered + noise, 1)
            lowered = lowered - 1e9 * (1 - np.eye(case.levels[0])[(lowered + noise).argmax(-1)])
            noise = 0
        logits = np.where((u < p)[..., None], lowered, logits)
    if case.router == 'expertChoice':
        yield from chosen_by_experts(case, given, logits)
        return
    yield gaps(logits + noise, 1)
    scores = softmax(logits)
    chosen = case.get('ntlbTopK', 4) if case.router == 'ntlb' else case.top_n
    if not (case.disturbed('secondPlaceProb') and case.temperature is not None):  # then the others are all zero
        yield gaps(scores, chosen)
    if case.router == 'switchMax':
        index = (logits + noise).argmax(-1)
        for group, experts in zip(scores, index):
            for e in range(case.levels[0]):
                gates = np.sort(group[experts == e, e])
                yield gates[1:] - gates[:-1]
    yield from later_choices(case, scores, given.get('random.uniforms'))
    if len(case.levels) == 2:
        inner = softmax(np.einsum('bnd,xyd->bnxy', given['input'], inner_gates(case, given)))
        yield gaps(inner, 2)
        yield from later_choices(case, inner, None)


def chosen_by_experts(case, given, logits):
    for name in ('mask', 'importance'):
        if name in given:
            logits = logits - 1e9 * (given[name].reshape(logits.shape[:2]) == 0)[..., None]
    scores = -np.sort(-softmax(logits, 1), axis=1)
    capacity = int(case.group * case.of_mode('capacityFactor', 1.25 if case.train else 2.0) / case.levels[0])
    capacity = max(min(case.group, capacity), case.get('minExpertCapacity', 4))
    if capacity < case.group:
        last = scores[:, capacity - 1]
        yield (last - scores[:, capacity])[last > 0]


def later_choices(case, scores, uniforms):
    top = -np.sort(-scores, axis=-1)[..., : case.top_n]
    gates = np.moveaxis(top / top.sum(-1, keepdims=True), -1, 0)
    if case.policy == 'threshold':
        yield gates[1:] - case.threshold
    if case.policy == 'random' and uniforms is not None:
        yield gates[1:] / max(case.threshold, 1e-9) - uniforms[1:].reshape(gates[1:].shape)


def is_settled(case, given):
    if any(np.abs(distance).min(initial=1) < MARGIN for distance in decisions(case, given)):
        return False
    if case.get('activation') != 'relu':
        return True
    hidden = (given['input'] @ value.T for name, value in given.items() if name.endswith('net.0.weight'))
    return all(np.abs(h).min() > KINK for h in hidden)


def inner_gates(case, given):
    return np.stack([given['state.' + case.inner_gate(x)] for x in range(case.levels[0])])


def stacked(case, given):
    """The weights under Mesh's names and in its layout."""
    layers = {
        n: np.stack([given[f'state.{case.expert(e)}{n}.weight'] for e in range(np.prod(case.levels))])
        for n in (0, 2)
    }
    if len(case.levels) == 2:  # experts of the second level come first
        layers = {n: w.reshape(*case.levels, *w.shape[1:]).swapaxes(0, 1) for n, w in layers.items()}
    gates = {'gating': given['state.gate.to_gates.weight']}
    if len(case.levels) == 2:
        gates = {'outer_gating': gates['gating'], 'inner_gating': inner_gates(case, given)}
    inner = {'wi': layers[0]}
    if isinstance(ACTIVATIONS[case.get('activation')], list):  # ours has values first, then gates
        values, gate = np.split(layers[0], 2, axis=-2)
        inner = {'wi_0': gate, 'wi_1': values}
    return {name: w.swapaxes(-1, -2) for name, w in {**gates, **inner, 'wo': layers[2]}.items()}


def unstacked(case, grads):
    """The way back: gradients under our names."""
    grads = {name: grad.swapaxes(-1, -2) for name, grad in grads.items()}
    inner = grads['wi'] if 'wi' in grads else np.concatenate([grads['wi_1'], grads['wi_0']], axis=-2)
    result = {'gate.to_gates.weight': grads.get('gating', grads.get('outer_gating'))}
    if 'inner_gating' in grads:
        result.update({case.inner_gate(x): grad for x, grad in enumerate(grads['inner_gating'])})
    for n, grad in ((0, inner), (2, grads['wo'])):
        if len(case.levels) == 2:
            grad = grad.swapaxes(0, 1).reshape(-1, *grad.shape[2:])
        for e, own in enumerate(grad):
            result[f'{case.expert(e)}{n}.weight'] = own
    return result


class Injected:
    """Gives Mesh our weights and random numbers, and keeps the z-losses that it computes."""

    def __init__(self, case, given):
        self.weights, self.variables, self.z_losses = stacked(case, given), {}, []
        self.numbers = []
        if 'random.jitter_uniforms' in given:
            self.numbers.append(given['random.jitter_uniforms'])
        if 'random.dropout_uniforms' in given:
            self.numbers.append(1 - given['random.dropout_uniforms'])  # Mesh drops what is above
        if 'random.second_place_uniforms' in given:
            self.numbers.append(given['random.second_place_uniforms'])
        if 'random.gumbel_uniforms' in given:
            self.numbers.append(given['random.gumbel_uniforms'])
        self.numbers.extend(given.get('random.uniforms', [])[1:])
        self.z_loss = moe._router_z_loss

    def random_uniform(self, mesh, shape, minval=0.0, maxval=1.0, **_):
        shape = mtf.ops.convert_to_shape(shape)
        u = self.numbers.pop(0).reshape(shape.to_integer_list)
        return mtf.import_fully_replicated(mesh, tf.constant(minval + (maxval - minval) * u), shape)

    def get_variable(self, mesh, name, shape, **_):
        scope = tf.get_variable_scope().name
        key = scope if scope in self.weights else 'gating'
        assert name == 'kernel' and shape.to_integer_list == list(self.weights[key].shape), (scope, name, shape)
        self.variables[key] = mtf.import_fully_replicated(mesh, tf.constant(self.weights[key]), shape)
        return self.variables[key]

    def router_z_loss(self, *args):
        self.z_losses.append(self.z_loss(*args))
        return self.z_losses[-1]

    def __enter__(self):
        own = dict(random_uniform=self.random_uniform, get_variable=self.get_variable)
        self.patches = [patch.multiple(module, **own) for module in (mtf, mtf.ops, mtf.layers.mtf)]
        self.patches.append(patch.object(moe, '_router_z_loss', self.router_z_loss))
        for one in self.patches:
            one.start()
        return self

    def __exit__(self, *error):
        for one in self.patches:
            one.stop()
        assert error[0] or not self.numbers, 'fewer random numbers than expected'


def run_mesh(case, given):
    """Outputs, losses and gradients, by Mesh's layer."""
    dims = dict(batch=case.batch, length=case.length, d_model=case.get('dim'))
    rows = [mtf.Dimension(name, dims[name]) for name in ('batch', 'length')]
    d_model = mtf.Dimension('d_model', case.get('dim'))
    output_dim = mtf.Dimension('d_output', case.get('outputDim', d_model.size))
    with tf.Graph().as_default(), Injected(case, given) as injected:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, 'mesh')
        tensor = lambda value, *last: mtf.import_fully_replicated(mesh, tf.constant(value), mtf.Shape([*rows, *last]))
        x = tensor(given['input'], d_model)
        leaves = {'input': x}
        importance = given.get('importance', given.get('mask', np.ones(given['input'].shape[:2])))
        options = dict(nonpadding=tensor(importance), num_microbatches=1, layout='', mesh_shape='all:1')
        if len(case.levels) == 1:
            options['activation'] = ACTIVATIONS[case.get('activation')]
            if case.router_input:
                leaves['token_embeddings'] = tensor(given['token_embeddings'], d_model)
                options['token_embeddings'] = leaves['token_embeddings']
        layer = moe.transformer_moe_layer_v1 if len(case.levels) == 1 else moe.transformer_moe_layer_v2
        outputs, total = layer(x, output_dim, hparams(case), case.train, mtf.VariableDType(), **options)
        results = {'outputs': outputs}
        if injected.z_losses:
            results['router_z_loss'] = mtf.add_n(injected.z_losses)
        if case.without_balance:
            total = results.get('router_z_loss', mtf.zeros(mesh, [])) * case.get('routerZLossCoef')
        results['total_aux_loss'] = total
        objective = mtf.reduce_sum(outputs * tensor(given['grad_output'], output_dim))
        if case.train:
            objective += total * case.aux
        leaves.update(injected.variables)
        grads = mtf.gradients([objective], list(leaves.values()))
        results.update({f'grad.{name}': grad for name, grad in zip(leaves, grads) if grad is not None})
        placed = mtf.placement_mesh_impl.PlacementMeshImpl(shape='all:1', layout='', devices=[''])
        lowering = mtf.Lowering(graph, {mesh: placed})
        with tf.Session() as session:
            values = session.run({name: lowering.export_to_tf_tensor(value) for name, value in results.items()})
    found = {name[5:]: values.pop(name) for name in list(values) if name.startswith('grad.')}
    own = {name: found.pop(name, np.zeros_like(given[name])) for name in ('input', 'token_embeddings') if name in given}
    found = {name: found.get(name, np.zeros_like(weight)) for name, weight in injected.weights.items()}
    values.update({f'grad.{name}': grad for name, grad in {**own, **unstacked(case, found)}.items()})
    return with_losses(case, values)


def with_losses(case, values):
    """In evaluation ours are 0; the balance loss alone is what Mesh's sum has besides the z-loss."""
    if not case.train:
        return {name: np.zeros(()) if name.endswith('_loss') else value for name, value in values.items()}
    if case.without_balance:
        return values
    z = values.get('router_z_loss', 0.0) * case.get('routerZLossCoef')
    return {**values, 'balance_loss': (values['total_aux_loss'] - z) / case.get('balanceLossCoef')}


def write(case, path, rng):
    for _ in range(5000):
        given = sample_numbers(case, rng)
        if is_settled(case, given):
            break
    else:
        raise RuntimeError(f'{path.name}: no numbers without a close decision')
    expected = run_mesh(case, given)
    tensors = {name: value.astype(np.float32) for name, value in given.items()}
    tensors.update({f'expected.{name}': np.asarray(value, np.float64) for name, value in expected.items()})
    metadata = dict(
        kind='mesh',
        mode='train' if case.train else 'eval',
        config=json.dumps(case.config),
        router_input=case.router_input or '',
        aux_weight=str(case.aux),
        gating=case.gating,
    )
    save_file({name: np.asarray(value, order='C') for name, value in tensors.items()}, path, metadata)


def golden(folder):
    write_all(committed(), 1, folder)


def draw(seed, count, folder):
    write_all(sampled(count, seed), seed, folder)


def write_all(cases, seed, folder):
    for number, (name, case) in enumerate(cases, start=1):
        write(case, folder / f'{number:02}-{name}.safetensors', np.random.default_rng([seed, number]))


if __name__ == '__main__':
    run(golden=golden, draw=draw)
