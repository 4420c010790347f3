// A worker that never ends a captured step.
import { workerData as device, parentPort } from 'node:worker_threads'
import { captureStep, Linear, ones } from '../../dist/index.js'

const layer = new Linear(4, 4, { device, computeDtype: 'bf16' })
const x = ones([2, 4], { device })
captureStep(
  () => {
    const y = layer.forward(x)
    parentPort.postMessage('inside')
    for (;;) y.add(1).dispose()
  },
  { device },
)
