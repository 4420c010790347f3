// Loads files whose headers are nearly as long as they may be. Argument: the file to write. Prints what came of each,
// and the largest resident size in MB, as JSON.
import { closeSync, openSync, writeSync } from 'node:fs'
import { loadSafetensors, loadSafetensorsSync, scope } from '../../dist/index.js'

const [, , file] = process.argv
const nothing = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
const kinds = {
  metadata: ['{"__metadata__":{', (i) => `"${i.toString(36)}":"",`],
  tensors: ['{', (i) => `"${i}":${nothing},`],
  string: ['{"__metadata__":{"a":"', () => 'x'.repeat(1000)],
  arrays: ['{"a":', () => '['.repeat(10)],
  objects: ['{"a":{"b":[', () => '{},'],
  shape: ['{"a":{"shape":[', () => '0,'],
}
// Written in pieces, so that what is measured is the reader.
function write(start, unit) {
  const descriptor = openSync(file, 'w')
  const length = Buffer.alloc(8)
  writeSync(descriptor, length)
  let total = writeSync(descriptor, start)
  for (let i = 0; total < 95e6; ) {
    let text = ''
    while (text.length < 1e6) text += unit(i++)
    total += writeSync(descriptor, text)
  }
  length.writeBigUInt64LE(BigInt(total))
  writeSync(descriptor, length, 0, 8, 0)
  closeSync(descriptor)
}

const codes = {}
for (const [name, [start, unit]] of Object.entries(kinds)) {
  write(start, unit)
  codes[name] = []
  const loads = [async () => loadSafetensorsSync(file), () => loadSafetensors(file)]
  // Before a release both.
  const tried = process.env.ST_MOE_TEST_LONG === '1' ? loads : [loads[Object.keys(codes).length % 2]]
  for (const load of tried) {
    await scope(load).then(
      () => codes[name].push('loaded'),
      (error) => codes[name].push(error.code),
    )
  }
}
console.log(JSON.stringify({ codes, peakMb: Math.round(process.resourceUsage().maxRSS / 1024) }))
