// A reporter of vitest for .ci/run: writes each failed test, its message and its place to the file ST_MOE_FAILURES.
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { stripVTControlCharacters } from 'node:util'

const mostLines = 20
const shown = (file) => path.relative(process.cwd(), file)

/** The lines of an error: what it says and how values differ, then where it was thrown, nearest first. */
function linesOf({ name = 'Error', message = '', diff, stacks = [] }) {
  const texts = [name === 'AssertionError' ? message : `${name}: ${message}`, diff ?? ''].map((text) =>
    stripVTControlCharacters(text).split('\n'),
  )
  const places = stacks.slice(0, 4).map(({ file, line, column }) => `at ${shown(file)}:${line}:${column}`)
  return [
    ...texts
      .flat()
      .filter((line) => line.trim() !== '')
      .slice(0, mostLines - places.length - 1),
    ...places,
  ]
}

export default class FailuresReporter {
  onTestRunEnd(modules, unhandled) {
    const failures = modules.flatMap((module) => [
      ...module.errors().map((error) => [shown(module.moduleId), error]),
      ...[...module.children.allSuites()].flatMap((suite) =>
        suite.errors().map((error) => [nameOf(module, suite), error]),
      ),
      ...[...module.children.allTests('failed')].flatMap((test) =>
        test.result().errors.map((error) => [nameOf(module, test), error]),
      ),
    ])
    failures.push(...unhandled.map((error) => ['outside of every test', error]))
    const text = failures.map(([name, error]) =>
      [`failed: ${name}`, ...linesOf(error).map((line) => `    ${line}`)].join('\n'),
    )
    if (process.env.ST_MOE_FAILURES && text.length > 0)
      writeFileSync(process.env.ST_MOE_FAILURES, `${text.join('\n')}\n`)
  }
}

const nameOf = (module, { fullName }) => `${shown(module.moduleId)}: ${fullName}`
