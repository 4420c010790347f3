// Frees memory and ends. Prints how much of it is cached then.
import { memory, ones } from '../../dist/index.js'

ones([2 ** 20]).dispose()
process.on('exit', () => console.log(memory().devices.cpu.cachedBytes))
