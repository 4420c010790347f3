// What a run of vitest counted, for .ci/run: `node scripts/vitest-counts.mjs REPORT LANE` prints passed, failed and skipped
// tests of the JSON report. REPORT.status holds vitest's exit code: a file that cannot be loaded, or a leak found at exit,
// fails the lane although no test did.
import { existsSync, readFileSync } from 'node:fs'

const [file, lane] = process.argv.slice(2)
const status = readFileSync(`${file}.status`, 'utf8').trim()
const nothing = { numPassedTests: 0, numFailedTests: 0, numPendingTests: 0, numTodoTests: 0 }
const report = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : nothing
const failed = report.numFailedTests || (status === '0' && report.numPassedTests > 0 ? 0 : 1)
console.log(report.numPassedTests, failed, report.numPendingTests + report.numTodoTests)

// What failed is told by failures-reporter.mjs, unless it had no time to.
if (failed && !existsSync(`${file}.failures`)) console.error(`failed in ${lane}: vitest, which exits with ${status}`)
