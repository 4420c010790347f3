/**
 * Building blocks for libraries and programs on top of this package: options that are declared once, checks with the
 * error texts of this package, and files that survive a crash. The examples use them as `utils.reader` and so on.
 */

export { checkInteger, checkPath, copyArray, fail, nearest, showShape } from '../runtime/check.js'
export { allocated } from '../runtime/dtype.js'
export { show, within } from '../runtime/errors.js'
export {
  boolean,
  type DeclaredOptions,
  defaultOf,
  type IntegerOption,
  type IntegerRange,
  integer,
  type Needed,
  type NumberRange,
  number,
  type Option,
  type OptionsOf,
  type OtherOptions,
  oneOf,
  optional,
  pick,
  reader,
  unchecked,
  type ValuesOf,
  type WordOption,
} from '../runtime/options.js'
export { abortSignal } from '../runtime/signal.js'
export { checkTensor, type TensorMeta } from '../tensor/tensor.js'
export { type FileLock, lockFile } from './lock.js'
export { makeFolder } from './make-folder.js'
export { readFilePartSync, readFileSync, writeFiles, writeFilesSync } from './plain-files.js'
export { rankIndexIn, removeRankFiles } from './rank-folder.js'
