// On a GPU with 16 MB besides the workspace of cuBLAS (SIMT_MEMORY_MB): memory from before a capture that is freed during it. Prints
// what could not be created afterwards.
import { captureStep, ones, zeros } from '../../dist/index.js'

const failed = []
const large = () => zeros([9 << 18], { device: 'cuda' }) // 9 MB: there is room for one
const attempts = {
  'after the step': (old) =>
    captureStep(
      () => {
        old.dispose()
        return ones([2], { device: 'cuda' })
      },
      { device: 'cuda' },
    ),
  'after a step that was given up': (old) => {
    try {
      captureStep(
        () => {
          old.dispose()
          throw new Error('given up')
        },
        { device: 'cuda' },
      )
    } catch {}
  },
}
for (const [name, attempt] of Object.entries(attempts)) {
  const old = large()
  const step = attempt(old)
  try {
    large().dispose()
  } catch (error) {
    failed.push(`${name}: ${error.message}`)
  }
  if (step && step.replay().dataSync().join() !== '1,1') failed.push(`${name}: a wrong replay`)
  step?.dispose()
}
console.log(JSON.stringify({ failed }))
