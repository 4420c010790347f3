import { describe, expect, test } from 'vitest'
import { html, Markup } from '../../cli/markup.js'
import { emptyHistory, type History } from '../../cli/trainer/history.js'
import { makeReport, type RunSummary } from '../../cli/trainer/report.js'

// The report of a run: nothing that comes from a text or a file becomes markup.

describe('a template', () => {
  test('escapes what is put in, whatever its type says, in content and attributes', () => {
    const number = '</b><script>' as unknown as number
    expect(String(html`<b title="${`"'&`}">${number}, ${7}, ${null}</b>`)).toBe(
      '<b title="&#34;&#39;&#38;">&#60;/b&#62;&#60;script&#62;, 7, null</b>',
    )
  })

  test('leaves markup and lists of it as they are, and escapes the rest of a list', () => {
    const item = html`<i>${'<'}</i>`
    expect(item).toBeInstanceOf(Markup)
    expect(String(html`${item}${[item, '<', [item]]}`)).toBe('<i>&#60;</i><i>&#60;</i>\n&#60;\n<i>&#60;</i>')
  })

  test('shows control characters, which a file of SVG must not hold', () => {
    expect(String(html`<b>${'a\x00\x1b[1m\ufffe\ud800\n\t漢😀'}</b>`)).toBe(
      '<b>a\\x00\\x1b[1m\\ufffe\\ud800\n\t漢😀</b>',
    )
  })
})

const summary: RunSummary = {
  textName: 'book',
  steps: 5,
  charactersPerStep: 32,
  parameters: 100,
  history: emptyHistory(),
  ngrams: [3, 2.5],
  prompt: 'The ',
  preferred: [[['a'], ['b']]],
  configuration: [['seed', '1']],
}

test('a loss above the unigram stands at its place on the axis', () => {
  const history: History = {
    steps: 4,
    stride: 1,
    loss: [8, 6, 4, 2],
    dropped: [0, 0, 0, 0],
    load: Array(4).fill([[0.5, 0.5]]),
    evaluations: [
      { step: 0, loss: 9, sample: 'a' },
      { step: 4, loss: 2, sample: 'b' },
    ],
    seconds: 3,
  }
  const chart = makeReport({ ...summary, history })['loss.svg']
  const ticks = Array.from(chart.matchAll(/<text class="end" x="[\d.]+" y="([\d.]+)">([\d.]+)</g), ([, y, value]) => [
    Number(y) - 4,
    Number(value),
  ])
  const [[y0, v0], [y1, v1]] = [ticks[0], ticks.at(-1)!]
  const valueAt = (y: number) => v0 + ((y - y0) / (y1 - y0)) * (v1 - v0)
  for (const [y, value] of ticks) expect(valueAt(y)).toBeCloseTo(value, 1)
  const circles = Array.from(chart.matchAll(/cy="([\d.]+)"/g), ([, y]) => valueAt(Number(y)))
  expect(circles[0]).toBeCloseTo(9, 1)
  expect(circles[1]).toBeCloseTo(2, 1)
})

test('a chart keeps its size on a narrow screen, and scrolls', () => {
  expect(makeReport(summary)['report.html']).toMatch(/@media \(max-width: 720px\) \{\s+figure \{ overflow-x: auto \}/)
})

const evil = `"'><script>alert(1)</script><img src=x onerror=alert(1)>&\x1b]0;x\x07`

/** Every text and number of a run, one after another, replaced by `evil`. */
function* hostileRuns(value: unknown, put: (changed: unknown) => unknown): Generator<unknown> {
  if (typeof value !== 'object' || value === null) {
    yield put(evil)
    return
  }
  for (const key of Object.keys(value)) {
    const copy = (changed: unknown) => {
      const all = (Array.isArray(value) ? [...value] : { ...value }) as Record<string, unknown>
      all[key] = changed
      return put(all)
    }
    yield* hostileRuns((value as Record<string, unknown>)[key], copy)
  }
}

test('no text and no number of a run becomes markup in the report or its charts', () => {
  const history: History = {
    steps: 4,
    stride: 2,
    loss: [3, 2],
    dropped: [0, 0.1],
    load: [[[0.5, 0.5]], [[0.4, 0.6]]],
    evaluations: [
      { step: 0, loss: 3, sample: 'a' },
      { step: 4, loss: 2, sample: 'b' },
    ],
    seconds: 3,
  }
  const run: RunSummary = { ...summary, history }
  const tags = (text: string) => text.match(/<[a-z!/][^\s>]*/g)!.sort()
  const harmless = new Set(Object.values(makeReport(run)).flatMap(tags))
  let made = 0
  let shown = 0
  for (const hostile of hostileRuns(run, (all) => all)) {
    let texts: string[]
    try {
      texts = Object.values(makeReport(hostile as RunSummary))
    } catch {
      continue // such as toFixed of a text: a file with that is refused before
    }
    made++
    for (const text of texts) {
      for (const tag of tags(text)) expect(harmless).toContain(tag)
      expect(text).not.toMatch(/onerror=alert\(1\)>/)
      expect(text).not.toContain('\x1b')
      if (text.includes('&#60;script&#62;')) shown++
    }
  }
  expect(made).toBeGreaterThan(15)
  expect(shown).toBeGreaterThan(8)
})
