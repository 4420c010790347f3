// Mistakes of what a release is made with: line endings, the tables of tools, publishing.
export default [
  {
    name: 'crlf-unread',
    file: 'scripts/native-ops.mjs',
    from: "'utf8').replaceAll('\\r\\n', '\\n')",
    to: "'utf8')",
    breaks: 'no op is declared in a checkout with CRLF',
    tests: ['test/build/line-endings.test.ts'],
  },
  {
    name: 'line-endings-of-git',
    file: '.gitattributes',
    from: '* text=auto eol=lf',
    to: '* text=auto',
    breaks: 'Git for Windows checks out with CRLF',
    tests: ['test/build/line-endings.test.ts'],
  },
]
