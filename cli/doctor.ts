import { type DeviceInfo, MoeError, type ProcessBackendInfo } from '../lib/index.js'
import { command } from './command.js'
import type { PackageFacts } from './doctor/package.js'
import { type SystemFacts, systemFacts } from './doctor/system.js'
import { toggle } from './flags.js'
import { jsonLine, line, table } from './output.js'

/** `st-moe doctor`: also reports if the addon cannot be loaded, hence imports it dynamically. */
export const doctor = command({
  program: 'st-moe doctor',
  summary: 'Reports what works on this machine, what does not, and why.',
  flags: {
    json: toggle('print the report as one line of JSON'),
    'self-test': toggle('compute on every GPU, too, not on the CPU alone'),
  },
  examples: [
    ['st-moe doctor', 'print a report, for example for a bug report'],
    ['st-moe doctor --self-test', 'after the installation of a GPU or its plugin'],
    ['st-moe doctor --json', 'for programs'],
  ],
  notes: `The CPU, with --self-test every usable device, runs a small layer forward and backward, compared with float64 and finite
differences. GPUs are listed without being opened, so that a report takes no memory of theirs.
Exit code 0: what was tested passes; 1: a check failed.`,
  async run({ values }) {
    const system = systemFacts()
    const found = await load(values['self-test'])
    const healthy = 'facts' in found && found.facts.devices.every(({ selfTest }) => selfTest?.passed !== false)
    if (values.json) jsonLine({ healthy, ...system, ...('facts' in found ? found.facts : { error: found.error }) })
    else line(reportOf(system, found, healthy))
    return healthy ? 0 : 1
  },
})

type Found = { facts: PackageFacts } | { error: string }

async function load(everyDevice: boolean): Promise<Found> {
  try {
    const { packageFacts } = await import('./doctor/package.js')
    return { facts: packageFacts(everyDevice) }
  } catch (error) {
    if (error instanceof MoeError) return { error: error.message }
    throw error
  }
}

function reportOf(system: SystemFacts, found: Found, healthy: boolean): string {
  const { version, runtime, platform, libc, cpu, places } = system
  const apis = [runtime.nodeApi && `Node-API ${runtime.nodeApi}`, runtime.modules && `modules ${runtime.modules}`]
  const facts = 'facts' in found ? found.facts : null
  const searched = places.map(({ folder, addons }) => `${folder}: ${addons.join(', ') || 'no addon'}`)
  const rows = [
    ['st-moe', version],
    ['runtime', `${runtime.name} ${runtime.version} (${apis.filter(Boolean).join(', ')})${tooOld(runtime)}`],
    ['system', [platform, libc].filter(Boolean).join(', ')],
    ['processor', `${cpu.model}, ${cpu.cores} cores, ${(cpu.memory / 1e9).toFixed(1)} GB of memory`],
    ['features', cpu.features?.join(' ') ?? 'not listed by this system'],
    ['addon', facts?.addon ?? 'not loaded'],
    ...searched.map((place, i) => [i === 0 ? 'searched' : '', place]),
    ...(facts ? deviceRows(facts) : []),
  ]
  const end = healthy ? 'All checks passed.' : 'error' in found ? found.error : 'A self-test failed.'
  return `${table(rows)}\n\n${end}`
}

const tooOld = ({ supported }: SystemFacts['runtime']): string =>
  supported ? '' : ': Node.js 20.19 or newer is required'

function deviceRows({ threads, plugin, cublas, bf16DotSpeed, devices, processBackends }: PackageFacts): string[][] {
  return [
    ['threads', String(threads)],
    ['CUDA plugin', plugin ?? 'not installed'],
    ...(cublas ? [['cuBLAS', cublas]] : []),
    ...devices.flatMap(({ selfTest, ...info }) => [
      [info.device, deviceLine(info)],
      ...(bf16DotSpeed > 0 && /^(avx512|avx2|baseline)$/.test(`${info.variant}`)
        ? [['', float32Line(bf16DotSpeed)]]
        : []),
      ...(selfTest ? [['', selfTestLine(selfTest)]] : []),
    ]),
    ...processBackends.map((info) => [info.backend.toUpperCase(), backendLine(info)]),
  ]
}

const backendLine = ({ available, version, library, install }: ProcessBackendInfo): string =>
  available ? `${version?.replace(/\s+/g, ' ')} (${library})` : `no library, for several processes: ${install}`

function deviceLine({ available, variant, totalBytes, driver, stage, reason }: DeviceInfo): string {
  const memory = totalBytes === undefined ? null : `${(totalBytes / 1e9).toFixed(1)} GB of memory`
  const facts = [variant, memory, driver === undefined ? null : `driver ${driver}`].filter(Boolean).join(', ')
  if (available) return facts
  return `${facts && `${facts}: `}cannot be used (stage ${stage}): ${reason}`
}

/** Why bf16 GEMMs are in float32, or what it costs if ST_MOE_ISA selects that. */
const float32Line = (dotSpeed: number): string =>
  `bf16: rounded operands in float32; dot products would do ${dotSpeed.toFixed(2)} times as many multiply-adds here`

function selfTestLine({
  passed,
  outputError,
  gradientError,
  error,
}: NonNullable<PackageFacts['devices'][0]['selfTest']>) {
  if (error) return `self-test failed: ${error}`
  const errors = `outputs within ${outputError.toExponential(1)}, gradients within ${gradientError.toExponential(1)}`
  return `self-test ${passed ? 'passed' : 'failed'}: ${errors}`
}
