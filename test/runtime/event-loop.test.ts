import { afterAll, expect, test } from 'vitest'
import { CharacterTokenizer, LanguageModel } from '../../language-model/index.js'
import { DataLoader, Linear, ones, SGD, scope, tensorDataset, trainStepAsync, zeros } from '../../lib/index.js'

// Loops that wait only for promises of this package let timers, signals and I/O run between their steps.

const milliseconds = 4

/** Keeps the thread busy, as a step does. */
function work(): void {
  const end = performance.now() + milliseconds
  while (performance.now() < end);
}

/** The most steps in a row without a tick of a timer of 5 ms. */
async function longestWait(loop: (step: () => void) => Promise<void>): Promise<number> {
  let steps = 0
  let most = 0
  const timer = setInterval(() => {
    steps = 0
  }, 5)
  try {
    await loop(() => {
      work()
      most = Math.max(most, ++steps)
    })
  } finally {
    clearInterval(timer)
  }
  return most
}

const numbers = Array.from({ length: 60 }, (_, i) => i)
const layer = new Linear(2, 2)
const x = ones([1, 2])
afterAll(() => {
  layer.dispose()
  x.dispose()
})

const loops: Record<string, (step: () => void) => Promise<void>> = {
  'a loader of tensors': async (step) => {
    using rows = zeros([60, 1])
    for await (const _ of new DataLoader(tensorDataset(rows), { batchSize: 1 })) step()
  },
  'a loader of examples': async (step) => {
    for await (const _ of new DataLoader(numbers, { batchSize: 1, prefetch: 0 })) step()
  },
  'a loader of a stream without waits': async (step) => {
    for await (const _ of new DataLoader(() => numbers, { batchSize: 1 })) step()
  },
  'the examples that fill a window': async (step) => {
    function* examples() {
      for (const i of numbers) {
        step()
        yield i
      }
    }
    for await (const _ of new DataLoader(examples, { batchSize: 60, shuffle: true }));
  },
  'values that are there': async (step) => {
    for (const _ of numbers) {
      await x.dataAsync()
      step()
    }
  },
  forwardAsync: async (step) => {
    for (const _ of numbers) {
      await scope(() => layer.forwardAsync(x))
      step()
    }
  },
  trainStepAsync: async (step) => {
    using optimizer = new SGD(layer.parameters(), { lr: 0.1 })
    for (const _ of numbers) {
      await trainStepAsync(() => {
        optimizer.zeroGrad()
        layer.forward(x).sum().backward()
        optimizer.step()
      })
      step()
    }
  },
  'generated pieces': async (step) => {
    const tokenizer = new CharacterTokenizer(['a', 'b'])
    using model = new LanguageModel({ tokenizer, context: 4, dim: 4, layers: 1, heads: 1, experts: 2 })
    for await (const _ of model.generate('a', { maxTokens: 20 })) step()
  },
}

test.each(Object.entries(loops))('%s', async (_, loop) => {
  expect(await longestWait(loop)).toBeLessThanOrEqual(5)
})

test('a fast loop takes a turn only now and then', async () => {
  let turns = 0
  const loader = new DataLoader(numbers, { batchSize: 1 })
  const original = globalThis.setImmediate
  globalThis.setImmediate = ((...args: Parameters<typeof original>) => {
    turns++
    return original(...args)
  }) as typeof original
  try {
    for await (const _ of loader);
  } finally {
    globalThis.setImmediate = original
  }
  expect(turns).toBeLessThan(numbers.length / 4)
})
