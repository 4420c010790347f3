import { MoE, randn, SoftMoE, tensor, zeros } from '../../lib/index.js'
import { any, type Row, testErrors } from '../support/bad-input.js'

const layer = new SoftMoE({ dim: 6, numExperts: 3, numSlots: 2 })
const gone = new SoftMoE({ dim: 6, numSlots: 2 })
gone.dispose()
const disposed = zeros([2, 5])
disposed.dispose()
const x = randn([2, 5, 6])

const make = (options: object) => () => new SoftMoE(any({ dim: 6, numSlots: 2, ...options }))
const forward = (options: object, input: unknown = x) => {
  return () => layer.forward(any(input), any(options))
}

const options: Row[] = [
  ['no options', () => new SoftMoE(any(undefined)), 'OPTION', '[SoftMoE] dim must be an integer of at least 1'],
  [
    'neither',
    make({ numSlots: undefined }),
    'OPTION',
    '[SoftMoE] options must have one of numSlots and seqLen, got neither',
  ],
  ['both', make({ seqLen: 8 }), 'OPTION', '[SoftMoE] options must have one of numSlots and seqLen, got both'],
  [
    'a sequence shorter than the experts are many',
    make({ numSlots: undefined, seqLen: 3 }),
    'OPTION',
    '[SoftMoE] seqLen must be at least numExperts = 4, got 3',
  ],
  ['no slots', make({ numSlots: 0 }), 'OPTION', '[SoftMoE] numSlots must be an integer of at least 1, got 0'],
  ['null slots', make({ numSlots: null }), 'OPTION', '[SoftMoE] numSlots must be an integer of at least 1, got null'],
  ['half a slot', make({ numSlots: 0.5 }), 'OPTION', /numSlots must be an integer of at least 1, got 0.5/],
  ['a seqLen in quotes', make({ numSlots: undefined, seqLen: '8' }), 'OPTION', /seqLen must be an integer .*, got "8"/],
  ['no experts', make({ numExperts: 0 }), 'OPTION', '[SoftMoE] numExperts must be an integer of at least 1, got 0'],
  [
    'no hidden size',
    make({ expertMult: 0.1 }),
    'OPTION',
    '[SoftMoE] the hidden size dim · expertMult must be an integer of at least 1, got 0',
  ],
  ['no hidden size of GEGLU', make({ expertMult: 0.2, geglu: true }), 'OPTION', /hidden size .* got 0/],
  ['an endless expertMult', make({ expertMult: Infinity }), 'OPTION', /expertMult must be a finite number/],
  ['a dropout of 1', make({ dropout: 1 }), 'OPTION', '[SoftMoE] dropout must be below 1, got 1'],
  ['a negative dropout', make({ dropout: -0.1 }), 'OPTION', /dropout must be a finite number from 0 to 1, got -0.1/],
  ['geglu of 1', make({ geglu: 1 }), 'OPTION', '[SoftMoE] geglu must be true or false, got 1'],
  ['a dtype', make({ dtype: 'bf16' }), 'DTYPE', /dtype must be one of f32, f64, got "bf16"/],
  ['a computeDtype', make({ dtype: 'f64', computeDtype: 'bf16' }), 'OPTION', /computeDtype must be one of 'f64'/],
  ['a device', make({ device: 'gpu' }), 'DEVICE', /got "gpu"/],
  ['a name', make({ useLayernorm: true }), 'OPTION', /unknown option "useLayernorm"; did you mean 'useLayerNorm'\?/],
]

const inputs: Row[] = [
  [
    'rank 1',
    forward({}, zeros([6])),
    'SHAPE',
    '[SoftMoE.forward] x must be [B, N, 6], [B, 6] or [B, 6, H, W], got [6]',
  ],
  ['rank 5', forward({}, zeros([1, 6, 1, 1, 1])), 'SHAPE', /got \[1, 6, 1, 1, 1\]/],
  ['channels last', forward({}, zeros([1, 2, 2, 6])), 'SHAPE', /got \[1, 2, 2, 6\]/],
  ['another dim', forward({}, zeros([2, 5, 7])), 'SHAPE', /got \[2, 5, 7\]/],
  ['no tensor', forward({}, [1]), 'OPTION', /x must be a Tensor/],
  ['f64', forward({}, zeros([2, 5, 6], { dtype: 'f64' })), 'DTYPE', '[SoftMoE.forward] x must be f32, got f64'],
  ['a mask', forward({ mask: zeros([2, 6]) }), 'SHAPE', '[SoftMoE.forward] mask must be [2, 5], got [2, 6]'],
  ['a mask of an array', forward({ mask: [1] }), 'OPTION', /mask must be a Tensor/],
  ['a mask that is gone', forward({ mask: disposed }), 'DISPOSED', '[SoftMoE.forward] mask has been disposed'],
  ['a layer that is gone', () => gone.forward(x), 'DISPOSED', /has been disposed/],
  ['addNoise', forward({ addNoise: 'yes' }), 'OPTION', '[SoftMoE.forward] addNoise must be true or false, got "yes"'],
  ['noiseMult', forward({ noiseMult: NaN }), 'OPTION', '[SoftMoE.forward] noiseMult must be a finite number, got NaN'],
  [
    'gumbelUniforms',
    forward({ addNoise: true, random: { gumbelUniforms: zeros([2, 5, 6]) } }),
    'SHAPE',
    '[SoftMoE.forward] gumbelUniforms must be [2, 5, 3, 2], got [2, 5, 6]',
  ],
  [
    'a random name',
    forward({ random: { uniforms: zeros([2, 5, 3, 2]) } }),
    'OPTION',
    /unknown option "uniforms"; did you mean 'gumbelUniforms'\?/,
  ],
  ['a name', forward({ noise: true }), 'OPTION', /unknown option "noise"/],
  ['state of a MoE', () => layer.loadStateDict(new MoE({ dim: 6 }).stateDict()), 'STATE_DICT', /missing: slot_embeds/],
  [
    'state without the buffer',
    () =>
      new SoftMoE({ dim: 6, numSlots: 2, useLayerNorm: true }).loadStateDict(
        new SoftMoE({ dim: 6, numSlots: 2 }).stateDict(),
      ),
    'STATE_DICT',
    /missing: norm.beta\n {2}missing: slot_norm.beta/,
  ],
  ['a mask of integers', forward({ mask: tensor(new Int32Array(9), [3, 3]) }), 'SHAPE', /mask must be \[2, 5\]/],
]

testErrors({ options, inputs })
