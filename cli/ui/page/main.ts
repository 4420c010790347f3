import { type Part, Received, type RunsMessage, type Status } from '../messages.js'
import { element, integer } from './dom.js'
import { View } from './view.js'

// The page of one or more runs: follows the server's events and draws at most once per frame.

const at = (id: string): HTMLElement => document.getElementById(id)!
const received = new Received()
const source = new EventSource('events')
let view: View | null = null
let connection: 'open' | 'lost' | 'refused' = 'open'
let known = ''
let drawing = false

source.addEventListener('runs', ({ data }: MessageEvent<string>) => {
  received.setRuns(JSON.parse(data) as RunsMessage)
  // The same runs after a lost connection keep their view.
  if (data !== known || !view) view = received.runs.length > 0 ? new View(at('view'), received.runs) : null
  known = data
  draw()
})
source.addEventListener('part', ({ data }: MessageEvent<string>) => {
  received.addPart(JSON.parse(data) as Part)
  if (received.runs.every(({ part }) => part && part.status.state !== 'running')) source.close()
  draw()
})
source.addEventListener('open', () => {
  connection = 'open'
  draw()
})
source.addEventListener('error', () => {
  connection = source.readyState === EventSource.CLOSED ? 'refused' : 'lost'
  draw()
})

function draw(): void {
  if (drawing) return
  drawing = true
  requestAnimationFrame(() => {
    drawing = false
    view?.update(received.runs)
    head()
  })
}

const words: Record<Status['state'], string> = {
  running: 'training',
  finished: 'finished',
  stopped: 'stopped',
  failed: 'failed',
}

/** What the page as a whole says. */
function head(): void {
  const [first, ...others] = received.runs
  const status = first?.part?.status ?? { state: 'running' }
  const state = others.length > 0 ? 'finished' : status.state
  const text = { lost: 'connection lost, trying again', refused: 'connection refused', open: null }[connection]
  at('state').className = state === 'running' && connection !== 'open' ? 'lost' : state
  at('state').textContent =
    others.length > 0
      ? `${received.runs.length} runs`
      : (state === 'running' && text) || (first ? words[state] : 'preparing the run')
  if (!first) return
  at('title').textContent = others.length > 0 ? 'Comparison of runs' : first.about.name
  if (others.length > 0) {
    at('lead').textContent = received.runs.map(({ about }) => about.name).join(', ')
    document.title = `${received.runs.length} runs · st-moe`
    return
  }
  const { about, part } = first
  const steps = part?.steps ?? 0
  const parameters = part?.parameters === undefined ? '' : `, ${integer(part.parameters)} parameters`
  const progress = element('progress')
  progress.max = about.steps
  progress.value = steps
  const reason = status.reason ? [element('span', 'reason', status.reason)] : []
  at('lead').replaceChildren(
    `A language model of ${about.text}${parameters}. Step ${integer(steps)} of ${integer(about.steps)}.`,
    progress,
    ...reason,
  )
  document.title = `${Math.floor((100 * steps) / about.steps)} % ${about.name} · st-moe`
}
