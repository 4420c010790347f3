import { writeFileSync } from 'node:fs'
import { concat, manualSeed, ones, ops, randn, scope, tensor } from '../lib/index.js'

/**
 * Draws docs/images/capacity.svg: the slots of eight experts after one routing, by a balanced router and by one that
 * overloads the first expert. Usage: npx tsx examples/draw-capacity.ts [file]
 */

const [N, E, K, D] = [64, 8, 2, 16]
const cell = 18
const left = 90
const top = 64
const panel = 460
const height = top + E * (cell + 4) + 24

interface Load {
  /** [expert][slot]: the rank of the assignment in it, 0 for a top-1 expert. */
  slots: (number | undefined)[][]
  /** [expert]: dropped assignments. */
  dropped: number[]
  fullyDroppedTokens: number
}

/** Routes N random tokens by a random router that adds `bias` to the logit of the first expert. */
function load(bias: number): Load {
  return scope(() => {
    manualSeed(3)
    const f64 = { dtype: 'f64' } as const
    const x = concat([randn([1, N, D - 1], f64), ones([1, N, 1], f64)], 2)
    const biases = tensor(
      Float64Array.from({ length: E }, (_, e) => (e === 0 ? bias : 0)),
      [E, 1],
    )
    const router = concat([randn([E, D - 1], f64).mul(0.4), biases], 1)
    const { expertIndex, kept, position, capacity } = ops.route(x, router, { topN: K, threshold: 0 })
    const [index, dispatched, slot] = [expertIndex, kept, position].map((t) => t.dataSync())
    const slots = Array.from({ length: E }, () => Array<number | undefined>(capacity).fill(undefined))
    const dropped = Array<number>(E).fill(0)
    for (let i = 0; i < N * K; i++) {
      if (dispatched[i]) slots[index[i]][slot[i]] = i % K
      else dropped[index[i]]++
    }
    const fullyDroppedTokens = Array.from({ length: N }, (_, n) => dispatched.subarray(n * K, (n + 1) * K)).filter(
      (t) => !t.includes(1),
    ).length
    return { slots, dropped, fullyDroppedTokens }
  })
}

function draw(title: string, { slots, dropped, fullyDroppedTokens }: Load, x0: number): string[] {
  const C = slots[0].length
  const rows = slots.flatMap((row, e) => {
    const y = top + e * (cell + 4)
    const x = (slot: number) => x0 + left + slot * (cell + 2)
    return [
      `<text class="end" x="${x(0) - 8}" y="${y + 13}">expert ${e}</text>`,
      ...row.map(
        (rank, c) =>
          `<rect class="${rank === undefined ? 'empty' : `k${rank}`}" x="${x(c)}" y="${y}" width="${cell}" height="${cell}" rx="3"/>`,
      ),
      ...(dropped[e] > 0 ? [`<text class="dropped" x="${x(C) + 4}" y="${y + 13}">${dropped[e]} dropped</text>`] : []),
    ]
  })
  const total = dropped.reduce((a, b) => a + b, 0)
  return [
    `<text class="title" x="${x0 + left}" y="${top - 14}">${title}: ${N * K - total}/${N * K} dispatched, ${fullyDroppedTokens} tokens fully dropped</text>`,
    ...rows,
  ]
}

const style = `text { font: 12px system-ui, sans-serif; fill: #6b7280 } .title { font-weight: 600; font-size: 13px } .end { text-anchor: end }
.k0 { fill: #1b6f8f } .k1 { fill: #86b1c3 } .empty { fill: none; stroke: #b8b4ab } .dropped { fill: #b4541f; font-weight: 600 }`

const legend = [
  ['k0', 'top-1 expert'],
  ['k1', 'second expert'],
  ['empty', 'empty slot'],
].flatMap(([kind, name], i) => [
  `<rect class="${kind}" x="${left + i * 130}" y="10" width="14" height="14" rx="3"/>`,
  `<text x="${left + 20 + i * 130}" y="22">${name}</text>`,
])

const body = [...legend, ...draw('Balanced', load(0), 0), ...draw('Overloaded', load(3), panel)]
writeFileSync(
  process.argv[2] ?? 'docs/images/capacity.svg',
  `<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 ${2 * panel} ${height}">
<title>Slots of eight experts after one routing</title>
<style>${style}</style>
${body.join('\n')}
</svg>
`,
)
