import { type Device, MoeError, type MoeErrorCode, setDefaultDevice } from '../lib/index.js'

/** An invalid command line: the message is printed without a stack trace; exit code 2. */
export class UsageError extends Error {}

/** An expected failure, described by its message; exit code 1. */
export class Failure extends Error {}

/** Of files and what is in them. */
const ofFiles: readonly MoeErrorCode[] = ['FILE_SYSTEM', 'FILE_FORMAT', 'STATE_DICT']

/** An error of the library about files as a failure of the command. */
export const asFailure = (error: unknown): unknown =>
  error instanceof MoeError && ofFiles.includes(error.code)
    ? new Failure(error.message.slice(`[${error.op}] `.length), { cause: error })
    : error

/** Makes the device of `--device` the default; an error names the flag. */
export function useDevice(device: string): void {
  try {
    setDefaultDevice(device as Device)
  } catch (error) {
    if (!(error instanceof MoeError)) throw error
    throw new MoeError(error.code, '--device', error.message.slice(`[${error.op}] `.length))
  }
}
