import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { ops, randn, scope, tensor } from '../../lib/index.js'
import { lossOptions, topkOptions } from '../../lib/ops/route-options.js'
import { root } from '../support/blocks.js'

// docs/adding-an-op.md counts the places of a change; that its excerpts are in the source is checked in docs.test.ts.

const page = readFileSync(`${root}docs/adding-an-op.md`, 'utf8')
const words = ['zero', 'one', 'two', 'three', 'four', 'five', 'six']

test.each([
  ['a unary function', 4],
  ['a number of the router', 3],
  ['an activation of the experts', 3],
  ['an optimizer', 6],
])('adding %s takes at most %d places, in files that exist', (what, limit) => {
  const section = page.split(/^# /m).find((text) => text.startsWith(`Adding ${what}\n`)) ?? ''
  const places = section.match(/^\d\. .*/gm) ?? []
  expect(places.length).toBeGreaterThan(1)
  expect(places.length).toBeLessThanOrEqual(limit)
  expect(section.toLowerCase()).toContain(`\n\n${words[places.length]} places; `)
  for (const [, file] of section.matchAll(/`((?:lib|native|test)\/[^`]+)`/g)) readFileSync(root + file)
})

test('a number of the router changes what it computes', () => {
  const options = { ...lossOptions, ...topkOptions }
  const numbers = Object.entries(options).filter(([, option]) => typeof option.default === 'number')
  expect(numbers.length).toBeGreaterThan(3)
  scope(() => {
    const [x, w] = [randn([2, 16, 8]), randn([4, 8])]
    const spread = Float32Array.from({ length: 128 }, (_, i) => ((i * 37) % 101) / 101)
    const gumbelUniforms = tensor(spread, [2, 16, 4])
    const uniforms = tensor(new Float32Array(64).fill(0.05), [2, 2, 16])
    const routed = (options: object) => {
      const { gate, weight, totalAuxLoss } = ops.route(x, w, { noiseGates: true, gumbelUniforms, uniforms, ...options })
      return [gate, weight, totalAuxLoss].map((value) => Array.from(value.dataSync()))
    }
    const sampled = { noiseGates: false, sampleExperts: true }
    const some: Record<string, object> = {
      routerTemperature: { ...sampled, routerTemperature: 0 },
      secondPlaceProb: { secondPlaceProb: 1 },
      routingGroups: { routingGroups: 2 },
      topGroups: { routingGroups: 2, topGroups: 1 },
    }
    const without: Record<string, object> = {
      routerTemperature: sampled,
      topGroups: { routingGroups: 2, topGroups: 2 },
    }
    for (const [name, option] of numbers) {
      const other = some[name] ?? { [name]: 2 * Number(option.default) + 3 }
      expect(routed(other), name).not.toEqual(routed(without[name] ?? {}))
    }
  })
})
