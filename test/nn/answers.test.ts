import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { aboutOf, answers, dtypes, filesIn, wrongIn } from '../support/python-answers.js'

// The answers of Python that are in the repository; test/python/answers.test.ts compares with new ones.

// ST_MOE_GOLDEN: another folder with files of the form of the first row.
const other = process.env.ST_MOE_GOLDEN
const rows = other
  ? [{ ...answers[0], committed: { folder: other, count: filesIn(other).length } }]
  : answers.filter(({ committed }) => committed)

for (const row of rows)
  describe(row.name, () => {
    const { folder, count } = row.committed!
    const files = filesIn(folder)

    test('there are files', () => {
      expect(files.length).toBe(count)
      expect(count).toBeGreaterThan(0)
    })

    describe.each(files)('%s', (file) => {
      test.each(dtypes)('%s', (dtype) => {
        const path = join(folder, file)
        expect(wrongIn(row, path, dtype), aboutOf(path)).toEqual([])
      })
    })
  })
