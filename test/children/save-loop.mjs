// Saves a file whose numbers are all equal, 1, 2, 3 …, by turns with both functions, until it is killed.
// Arguments: the file. Prints a line after each save.
import { full, saveSafetensors, saveSafetensorsSync, scope } from '../../dist/index.js'

const [, , file] = process.argv
const stateOf = (version) => ({ a: full([300, 300], version), b: full([70000], version), c: full([], version) })

for (let version = 1; ; version++) {
  if (version % 2 === 0) await scope(() => saveSafetensors(file, stateOf(version)))
  else scope(() => saveSafetensorsSync(file, stateOf(version)))
  console.log(version)
}
