"""The cases of test/python/mesh.py: configurations of our layer, and what Mesh TensorFlow calls them."""

import random

GATINGS = dict(switch='switch', switchMax='switch_max', ntlb='ntlb', expertChoice='expert_selection')


class Case:
    """A configuration with our names, and how it is run."""

    def __init__(self, tokens, config, mode, importance, mask, router_input, gating, aux):
        self.batch, self.length = tokens
        # Mesh's dispatch tensor passes no gradient.
        fixed = dict(activation='relu', expertBiases=False, straightThroughDispatchTensor=False)
        self.config = {**fixed, **config}
        self.router = config.get('router', 'topk')
        if self.router in ('topk', 'switch', 'switchMax'):
            self.config['balanceDensity'] = 'assigned'
        # With importance Mesh's loss of these counts padding, and ours does not.
        self.without_balance = importance is not None and self.router in ('switch', 'switchMax', 'ntlb')
        if self.without_balance:
            self.config['balanceLossCoef'] = 0
        self.train, self.importance, self.mask = mode == 'train', importance, mask
        self.router_input, self.aux = router_input, aux
        experts = config['numExperts']
        self.levels = experts if isinstance(experts, list) else [experts]
        self.top_n = config.get('gatingTopN', 2) if self.router == 'topk' else 1
        self.gating = gating or GATINGS.get(self.router) or ('top_2' if self.top_n == 2 else 'top_n')
        self.group = config.get('groupSize', self.length)
        self.policy = self.of_mode('secondPolicy', 'random') if self.top_n > 1 else None
        self.threshold = self.of_mode('threshold', 0.2)

    def inner_gate(self, x):
        """The state name of the router of expert group x."""
        return f'experts.experts.{x}.gate.to_gates.weight'

    def expert(self, e):
        """The start of the state names of expert e."""
        if len(self.levels) == 1:
            return f'experts.experts.{e}.net.'
        return f'experts.experts.{e // self.levels[1]}.experts.experts.{e % self.levels[1]}.net.'

    def get(self, name, default=None):
        return self.config.get(name, default)

    def of_mode(self, name, default):
        return self.get(name + ('Train' if self.train else 'Eval'), default)

    def disturbed(self, name):
        """The rate of something that happens in training only."""
        return self.get(name, 0) if self.train else 0

    @property
    def temperature(self):
        """That of Gumbel noise, or None without any."""
        if self.get('sampleExperts'):
            return self.get('routerTemperature', 1.0)
        return self.get('secondPlaceTemperature') if self.train else None


def committed():
    """The names of test/golden/mesh in order, each with its case."""
    short, long = dict(capacityFactorTrain=0.5, minExpertCapacity=1), dict(capacityFactorTrain=4, capacityFactorEval=4)
    groups = dict(tokens=(2, 24), groupSize=16)
    second = dict(secondPlaceProb=0.4)
    halves, padding = dict(importance='halves'), dict(importance='padding')
    positive = dict(importance='positive')

    def case(tokens=(2, 16), mode='train', gating=None, importance=None, mask=False, router_input=None, **config):
        sizes = dict(dim=6, numExperts=5, expertHiddenDim=5, balanceLossCoef=0.5, routerZLossCoef=0.25)
        return Case(tokens, dict(sizes, **config), mode, importance, mask, router_input, gating, aux=2.0)

    switch, switch_max, ntlb, choice = (dict(router=name) for name in GATINGS)
    threshold = dict(secondPolicyTrain='threshold', thresholdTrain=0.35)
    threshold.update(secondPolicyEval='threshold', thresholdEval=0.3)
    large = dict(tokens=(1, 48), dim=4, expertHiddenDim=4, numExperts=40)
    every = dict(secondPolicyTrain='all', secondPolicyEval='all')
    levels = dict(numExperts=[3, 4], capacityFactorTrain=1, capacityFactorEval=1)
    return [
        ('topk-random', case(thresholdTrain=0.6)),
        ('topk-random-short', case(**short, **groups, routerZLossCoef=0)),
        ('topk-random-eval', case(mode='eval', thresholdEval=0.7, gating='top_n')),
        ('topk-all-short', case(**every, **short)),
        ('topk-all-top-n', case(**every, **groups, gating='top_n')),
        ('topk-none', case(secondPolicyTrain='none', gatingTopN=3)),
        ('topk-none-eval', case(mode='eval', secondPolicyEval='none')),
        ('topk-threshold', case(**threshold)),
        ('topk-threshold-3', case(**{**threshold, 'thresholdTrain': 0.25}, **short, gatingTopN=3, numExperts=8)),
        ('topk-threshold-mask-eval', case(mode='eval', **threshold, **padding, mask=True)),
        ('topk-one', case(gatingTopN=1, gateNormalization='none', **long)),
        ('topk-four-of-16', case(gatingTopN=4, numExperts=16, thresholdTrain=0.4, **groups)),
        ('topk-experts-40', case(**large, gatingTopN=3, minExpertCapacity=2)),
        ('topk-geglu-wide', case(activation='geglu', geluApproximate='tanh', outputDim=11)),
        ('topk-swiglu-narrow-eval', case(mode='eval', activation='swiglu', outputDim=3)),
        ('topk-gelu', case(activation='gelu', geluApproximate='tanh', **long)),
        ('switch', case(**switch, **groups)),
        ('switch-short', case(**switch, **short)),
        ('switch-eval', case(mode='eval', **switch, **long, outputDim=9)),
        ('switch-jitter', case(**switch, routerJitter=0.3, **groups)),
        ('switch-dropout', case(**switch, routerDropout=0.2, numExperts=3)),
        ('choice', case(**choice, **groups)),
        ('choice-short', case(**choice, **short, numExperts=4)),
        ('choice-eval', case(mode='eval', **choice)),
        ('choice-jitter', case(**choice, routerJitter=0.5, capacityFactorTrain=2)),
        ('choice-dropout', case(**choice, routerDropout=0.3, numExperts=16)),
        ('choice-mask', case(**choice, **padding, mask=True)),
        ('choice-mask-eval', case(mode='eval', **choice, **long, **padding, mask=True)),
        ('topk-second-place-loss', case(useSecondPlaceLoss=True, thresholdTrain=0.5, **groups)),
        ('topk-second-place-loss-short', case(useSecondPlaceLoss=True, **short, **threshold)),
        ('topk-second-place-loss-importance', case(useSecondPlaceLoss=True, **every, **positive)),
        ('topk-importance', case(thresholdTrain=0.6, **halves)),
        ('topk-importance-short', case(**halves, **threshold, **short, **groups)),
        ('topk-importance-none', case(secondPolicyTrain='none', **halves)),
        ('topk-importance-eval', case(mode='eval', **halves, **every)),
        ('topk-padding-three', case(gatingTopN=3, **padding, **groups)),
        ('switch-padding', case(**switch, **padding, **groups)),
        ('switch-importance', case(**switch, **halves)),
        ('switch-sample', case(**switch, sampleExperts=True, routerTemperature=0.7, **short)),
        ('switch-sample-eval', case(mode='eval', **switch, sampleExperts=True)),
        ('switch-second-place', case(**switch, **second, **groups)),
        ('switch-second-place-sampled', case(**switch, **second, secondPlaceTemperature=0.8, routerJitter=0.1)),
        ('switch-second-place-eval', case(mode='eval', **switch, **second, secondPlaceTemperature=0.8)),
        ('switch-max', case(**switch_max, **groups)),
        ('switch-max-short', case(**switch_max, **short)),
        ('switch-max-jitter', case(**switch_max, **short, routerJitter=0.2, **padding)),
        ('switch-max-dropout', case(**switch_max, routerDropout=0.2, **halves)),
        ('switch-max-sample', case(**switch_max, sampleExperts=True, routerTemperature=1.5, **short)),
        ('switch-max-second-place', case(**switch_max, **second)),
        ('switch-max-eval', case(mode='eval', **switch_max, capacityFactorEval=0.6, minExpertCapacity=0)),
        ('ntlb', case(**ntlb, **short)),
        ('ntlb-two', case(**ntlb, ntlbTopK=2, capacityFactorTrain=0.9, minExpertCapacity=1, **groups)),
        ('ntlb-jitter', case(**ntlb, numExperts=16, routerJitter=0.3, capacityFactorTrain=1, minExpertCapacity=1)),
        ('ntlb-importance', case(**ntlb, **short, **halves, ntlbTopK=3)),
        ('ntlb-second-place', case(**ntlb, **short, **second, ntlbTopK=3)),
        ('ntlb-eval', case(mode='eval', **ntlb, capacityFactorEval=0.8, minExpertCapacity=1)),
        ('choice-padding', case(**choice, **padding, **groups)),
        ('topk-router-input', case(router_input='embed_only', thresholdTrain=0.5)),
        ('switch-router-input-concat', case(router_input='concat', routerDim=12, **switch, **groups)),
        ('choice-router-input-add', case(router_input='add', **choice, **padding)),
        ('ntlb-router-input-eval', case(mode='eval', router_input='embed_only', **ntlb)),
        ('levels', case(**levels, **threshold, tokens=(1, 24))),
        ('levels-all', case(**levels, **every, tokens=(1, 24), minExpertCapacity=2)),
        ('levels-none', case(**levels, secondPolicyTrain='none', tokens=(1, 24), outputDim=5)),
        ('levels-importance', case(**levels, **every, tokens=(1, 24), **halves)),
        ('levels-eval', case(mode='eval', **levels, **threshold, tokens=(1, 24))),
        ('levels-groups', case(**levels, **every, tokens=(2, 24))),
    ]


def sampled(count, seed):
    rng = random.Random(seed)
    return [(case.gating, case) for case in (sample(rng) for _ in range(count))]


def sample(rng):
    pick, maybe = rng.choice, lambda chance: rng.random() < chance
    router = pick(['topk', 'topk', *GATINGS])
    B, N = rng.randint(1, 3), rng.choice([12, 16, 24])
    experts = pick([3, 4, 6, 8, 12])
    config = dict(
        router=router,
        dim=rng.randint(4, 12),
        numExperts=experts,
        expertHiddenDim=rng.randint(3, 12),
        activation=pick(['relu', 'relu', 'silu', 'swiglu']),
        balanceLossCoef=round(rng.uniform(0.1, 1), 2),
        routerZLossCoef=pick([0, round(rng.uniform(0.1, 1), 2)]),
        capacityFactorTrain=pick([1.25, round(rng.uniform(0.3, 2), 2)]),
        capacityFactorEval=pick([2.0, round(rng.uniform(0.3, 2), 2)]),
        minExpertCapacity=pick([1, 4]),
    )
    if maybe(0.3):
        config['outputDim'] = rng.randint(2, 14)
    if maybe(0.4):  # not below the capacity, for which Mesh's top_k has no tokens then
        config['groupSize'] = pick([N // 2, N // 2 * B, N * B])
    router_input = pick([None] * 4 + ['embed_only', 'concat', 'add'])
    if router_input == 'concat':
        config['routerDim'] = 2 * config['dim']
    importance, gating = pick([None, None, 'halves', 'padding']), None
    if router == 'topk' and router_input is None and maybe(0.3):
        config.update(numExperts=[rng.randint(2, 4), rng.randint(2, 4)], capacityFactorTrain=1, capacityFactorEval=1)
        config.update({f'secondPolicy{mode}': pick(['all', 'none', 'threshold']) for mode in ('Train', 'Eval')})
        config['activation'] = 'relu'
    elif router == 'topk':
        for mode in ('Train', 'Eval'):
            config[f'secondPolicy{mode}'] = pick(['random', 'random', 'all', 'none', 'threshold'])
            config[f'threshold{mode}'] = round(rng.uniform(0.1, 0.6), 2)
        config['gatingTopN'] = pick([2, 2, 3])
        if config['gatingTopN'] == 3 or (importance != 'halves' and maybe(0.3)):
            gating, importance = 'top_n', importance and 'padding'
        elif maybe(0.3):
            config['useSecondPlaceLoss'] = True
            importance = importance and 'positive'
    elif router != 'expertChoice':
        disturb(rng, router, config)
    elif importance:
        importance = 'padding'
    if router != 'topk' and router_input is None and maybe(0.3):
        config['routerJitter'] = round(rng.uniform(0.01, 0.4), 2)
        config.pop('sampleExperts', None)
    if router == 'ntlb':
        config['ntlbTopK'] = rng.randint(1, min(4, experts - 1))
    mode = 'eval' if maybe(0.25) else 'train'
    return Case((B, N), config, mode, importance, False, router_input, gating, round(rng.uniform(0.5, 4), 2))


def disturb(rng, router, config):
    """Sampled experts, or the second place instead of the first."""
    kind = rng.choice([None, 'second', 'second sampled', 'sample'])
    if kind == 'sample' and router != 'ntlb':
        config.update(sampleExperts=True, routerTemperature=round(rng.uniform(0.3, 2), 2))
    elif kind and kind != 'sample':
        config['secondPlaceProb'] = round(rng.uniform(0.1, 0.9), 2)
        if kind == 'second sampled' and router == 'switch':  # the others would compare equal scores
            config['secondPlaceTemperature'] = round(rng.uniform(0.3, 2), 2)
