// What a run of vitest counted, for .ci/run: `node scripts/vitest-counts.mjs REPORT LANE` prints passed, failed and skipped
// tests of the JSON report; what failed goes to stderr. REPORT.status holds vitest's exit code: a file that cannot be
// loaded, or a leak found at exit, fails the lane although no test did.
import { existsSync, readFileSync } from 'node:fs'

const [file, lane] = process.argv.slice(2)
const status = readFileSync(`${file}.status`, 'utf8').trim()
const nothing = { numPassedTests: 0, numFailedTests: 0, numPendingTests: 0, numTodoTests: 0, testResults: [] }
const report = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : nothing
const failed = report.numFailedTests || (status === '0' && report.numPassedTests > 0 ? 0 : 1)
console.log(report.numPassedTests, failed, report.numPendingTests + report.numTodoTests)

const say = (...what) => console.error(`failed in ${lane}:`, ...what)
if (failed && !report.numFailedTests) say(`vitest, which exits with ${status}`)
for (const { name, status, message, assertionResults } of report.testResults) {
  const tests = assertionResults.filter((test) => test.status === 'failed')
  for (const { fullName, failureMessages } of tests) say(`${name}: ${fullName}: ${failureMessages[0]?.slice(0, 500)}`)
  if (status === 'failed' && tests.length === 0) say(`${name}: ${message.slice(0, 500)}`)
}
