// Four threads that save to one path at once. Arguments: the file, saves of each thread. Prints the errors as JSON.
import { fileURLToPath } from 'node:url'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { full, saveSafetensors, saveSafetensorsSync, scope } from '../../dist/index.js'

if (isMainThread) {
  const [, , file, count] = process.argv
  const results = Array.from({ length: 4 }, (_, i) => {
    const worker = new Worker(fileURLToPath(import.meta.url), { workerData: { file, count: Number(count), value: i } })
    return new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
  })
  console.log(JSON.stringify((await Promise.all(results)).flat()))
} else {
  const { file, count, value } = workerData
  const errors = []
  for (let i = 0; i < count; i++) {
    const save = i % 2 === 0 ? saveSafetensors : saveSafetensorsSync
    try {
      await scope(async () => save(file, { a: full([1000], value) }))
    } catch (error) {
      errors.push(String(error))
    }
  }
  parentPort.postMessage(errors)
}
