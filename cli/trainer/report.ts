import { html, Markup } from '../markup.js'
import { duration, mean } from '../numbers.js'
import { binned, lineChart } from './chart.js'
import type { Evaluation } from './evaluation.js'
import { expertLoadChart } from './expert-chart.js'
import type { History } from './history.js'
import { ngramNames } from './ngram.js'
import { reportStyle } from './report-style.js'

/** The content of the report. */
export interface RunSummary {
  textName: string
  steps: number
  charactersPerStep: number
  parameters: number
  history: History
  /** Held-out losses of the n-gram baselines, unigram first. */
  ngrams: readonly number[]
  prompt: string
  /** [layer][expert]: tokens that the router prefers to send to it. */
  preferred: readonly string[][][]
  /** Names and values of the configuration table. */
  configuration: readonly (readonly [string, string])[]
}

const charts: Record<string, (run: RunSummary) => Markup> = {
  'loss.svg': lossChart,
  'expert-load.svg': expertLoadChart,
  'dropped.svg': droppedChart,
}

const pageName = 'report.html'

/** The names of the files of a report. */
export const reportFiles = [pageName, ...Object.keys(charts)]

/** The files of a report, by name. */
export function makeReport(run: RunSummary): Record<string, string> {
  const drawn = Object.fromEntries(Object.entries(charts).map(([name, draw]) => [name, draw(run)]))
  const texts = Object.entries({ [pageName]: page(run, drawn), ...drawn }).map(([name, text]) => [name, String(text)])
  return Object.fromEntries(texts)
}

function lossChart({ history, ngrams, steps }: RunSummary): Markup {
  const evaluations = history.evaluations.map(({ step, loss }) => [step, loss] as const)
  const training = binned(history.loss, 250, history.stride)
  const losses = [...ngrams, ...[...evaluations, ...training].map(([, loss]) => loss)]
  const last = history.evaluations.at(-1)
  return lineChart({
    title: 'Loss',
    height: 430,
    x: { label: 'training steps', max: steps },
    y: {
      label: 'nats per character',
      min: Math.floor((Math.min(...losses) - 0.1) * 5) / 5,
      max: Math.ceil((Math.max(...losses) + 0.15) * 5) / 5,
      format: (value) => value.toFixed(2),
    },
    levels: ngrams.map((value, i) => ({ name: ngramNames[i], value })),
    lines: [
      { name: 'training', kind: 'training', points: training },
      { name: `held out ${last ? last.loss.toFixed(2) : ''}`, kind: 'heldOut', points: evaluations },
    ],
  })
}

function droppedChart({ history, steps }: RunSummary): Markup {
  const points = binned(history.dropped, 250, history.stride)
  const highest = Math.max(0.01, ...points.map(([, share]) => share))
  return lineChart({
    title: 'Dropped tokens',
    height: 200,
    x: { label: 'training steps', max: steps },
    y: {
      label: 'share dropped',
      min: 0,
      max: Math.ceil(highest * 20) / 20,
      format: (value) => `${(value * 100).toFixed(0)} %`,
    },
    lines: [{ name: 'dropped', kind: 'training', points }],
  })
}

function page(run: RunSummary, charts: Record<string, Markup>): Markup {
  const { history, steps, textName } = run
  const done = history.steps
  const refresh = done < steps ? html`<meta http-equiv="refresh" content="10">` : ''
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
${refresh}<title>${textName} · st-moe</title>
<style>${new Markup(reportStyle)}</style>
</head>
<body>
<header>
<p class="eyebrow">st-moe language model</p>
<h1>A language model of ${textName}</h1>
<p>${lead(run)}</p>
</header>
${cards(run)}
${figure('Loss', charts['loss.svg'], lossCaption)}
${figure('Expert load', charts['expert-load.svg'], loadCaption)}
${figure('Dropped tokens', charts['dropped.svg'], droppedCaption)}
<section><h2>Samples</h2>
<p class="caption">Continuations of the beginning of a held-out paragraph at several steps of training. Each token is sampled at
temperature 0.7.</p>
${shown(history.evaluations).map((evaluation) => sample(evaluation, run.prompt))}
</section>
<section><h2>Configuration</h2>
<table>${run.configuration.map(([name, value]) => html`<tr><th>${name}</th><td>${value}</td></tr>`)}</table>
</section>
</body>
</html>
`
}

const lossCaption = `Lower is better. The dashed lines are n-gram baselines with Witten-Bell interpolation, trained on the same text (its
first four million characters if it is longer) and measured on the same held-out text: the last tenth, which the model is not trained on. The points
before the last use a quarter of it.`
const loadCaption = `Every layer has its own experts and router. The color compares an expert's share of the top-1 assignments with an even
split. On the right: its last share, and the tokens that the router prefers to send to it (␣ space, ↵ newline).`
const droppedCaption = `Unless the run is dropless, an expert has a fixed capacity per sequence. A fully dropped token passes the layer unchanged. Mean over the
layers, in training; held-out text is evaluated without drops.`

function lead({ history, steps }: RunSummary): string {
  const done = history.steps
  return done < steps
    ? `${done.toLocaleString('en')} of ${steps.toLocaleString('en')} steps so far.`
    : 'A small transformer with sparse mixture-of-experts layers, trained from scratch.'
}

function cards({ history, ngrams, charactersPerStep, parameters }: RunSummary): Markup {
  const { steps } = history
  const best = ngrams.at(-1)!
  const loss = history.evaluations.at(-1)?.loss
  const recent = history.dropped.slice(-100)
  const entries = [
    [
      'held-out loss',
      loss === undefined ? '–' : loss.toFixed(3),
      `nats per character; ${ngramNames[ngrams.length - 1]} ${best.toFixed(3)}`,
    ],
    ['training time', duration(history.seconds), `${steps.toLocaleString('en')} steps`],
    [
      'speed',
      history.seconds > 0 ? Math.round((steps * charactersPerStep) / history.seconds).toLocaleString('en') : '–',
      'characters per second',
    ],
    ['parameters', `${(parameters / 1e6).toFixed(2)} M`, 'each token uses a part of them'],
    ['dropped', recent.length > 0 ? `${(mean(recent) * 100).toFixed(1)} %` : '–', 'of the tokens, recently'],
  ]
  const card = ([name, value, note]: string[]): Markup =>
    html`<div class="card"><span>${name}</span><strong>${value}</strong><small>${note}</small></div>`
  return html`<section class="cards">${entries.map(card)}</section>`
}

const figure = (title: string, chart: Markup, caption: string): Markup =>
  html`<section><h2>${title}</h2><figure>${chart}<figcaption>${caption}</figcaption></figure></section>`

/** The first, a few in between, and the last. */
function shown(evaluations: readonly Evaluation[]): Evaluation[] {
  const last = evaluations.length - 1
  const wanted = new Set([0, 1, 2, Math.round(last / 2), last])
  return evaluations.filter((_, i) => wanted.has(i))
}

const sample = ({ step, loss, sample: text }: Evaluation, prompt: string): Markup =>
  html`<article><h3>step ${step.toLocaleString('en')}<span>${loss.toFixed(2)}</span></h3>
<blockquote><b>${prompt}</b>${text}</blockquote></article>`
