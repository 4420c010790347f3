// Shows the structure of the TypeScript side and holds its walls: which room may import which. A room is a folder, or a file
// that lies loose in lib. Prints the rooms of lib by floor, the arrows between them, those that run back up, and the
// circles of files; exits with 1 for an import that the table below does not allow.
//
//   node scripts/walls.mjs [FOLDER]     FOLDER: another checkout. One that has other rooms is only counted.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

/** The rooms of lib from the roof to the ground. A room may import those below it. */
const rooms = [
  'lib/index.ts',
  'lib/doctor',
  'lib/distributed',
  'lib/summary',
  'lib/tfjs',
  'lib/io',
  'lib/data',
  'lib/optim',
  'lib/nn',
  'lib/ops',
  'lib/autograd',
  'lib/tensor',
  'lib/runtime',
]

/** Imports against that order: a new tensor enters the current scope, and a recorded one knows the op that made it. */
const backUp = [['lib/tensor', 'lib/autograd']]

/** What stands outside of lib, and the faces that it lives from. Tests may import everything, and nothing imports tests. */
const tenants = {
  'language-model': ['lib/index.ts'],
  cli: ['lib/index.ts', 'lib/doctor/index.ts', 'language-model/index.ts'],
  examples: ['lib/index.ts', 'language-model/index.ts', 'cli/index.ts'],
  bench: ['lib/index.ts', 'language-model/index.ts', 'cli/index.ts', 'test/support/python.ts'],
}

/** Whether one file of the checkout may import another. */
export function isAllowed(from, to) {
  const [room, other] = [roomOf(from), roomOf(to)]
  if (room === other) return true
  if (room in tenants) return tenants[room].includes(to)
  const down = rooms.includes(room) && rooms.indexOf(room) < rooms.indexOf(other)
  return down || backUp.some(([upper, lower]) => upper === room && lower === other)
}

/** `lib/nn`, `lib/index.ts` or a folder outside of lib. */
function roomOf(file) {
  const [top, next] = file.split('/')
  return top === 'lib' ? `${top}/${next}` : top
}

const extension = /\.m?ts$/

/** The files of some folders, relative to the checkout. */
function filesOf(root, folders) {
  const inside = (folder) =>
    existsSync(path.join(root, folder))
      ? readdirSync(path.join(root, folder), { recursive: true, encoding: 'utf8' })
      : []
  return folders
    .flatMap((folder) => inside(folder).map((name) => path.posix.join(folder, name.replaceAll(path.sep, '/'))))
    .filter((file) => extension.test(file))
    .sort()
}

/** The files that a source imports; `loads`: also when the program runs, so no types. */
export function importsOf(file, source) {
  const found = []
  const add = (specifier, loads) => {
    if (!ts.isStringLiteral(specifier))
      throw new Error(`walls: ${file} imports what only the running program knows: ${specifier.getText()}`)
    if (!specifier.text.startsWith('.')) return
    found.push({ to: path.posix.join(path.posix.dirname(file), specifier.text).replace(/\.js$/, '.ts'), loads })
  }
  const visit = (node) => {
    if (ts.isImportDeclaration(node)) add(node.moduleSpecifier, !node.importClause?.isTypeOnly)
    else if (ts.isExportDeclaration(node) && node.moduleSpecifier) add(node.moduleSpecifier, !node.isTypeOnly)
    else if (ts.isImportTypeNode(node)) add(node.argument.literal, false)
    else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword)
      add(node.arguments[0], true)
    ts.forEachChild(node, visit)
  }
  visit(ts.createSourceFile(file, source, ts.ScriptTarget.Latest, true))
  return found
}

/** Every import between files of the checkout: from, to, and whether the running program follows it. */
export function arrowsOf(root) {
  const files = filesOf(root, ['lib', ...Object.keys(tenants)])
  return files.flatMap((from) =>
    importsOf(from, readFileSync(path.join(root, from), 'utf8')).map(({ to, loads }) => ({ from, to, loads })),
  )
}

/** Groups of nodes that reach each other (Tarjan, SIAM J. Comput. 1972), each sorted. */
export function circlesOf(arrows) {
  const next = new Map()
  for (const { from, to } of arrows) next.set(from, [...(next.get(from) ?? []), to])
  const [index, low, stack, circles] = [new Map(), new Map(), [], []]
  const visit = (node) => {
    index.set(node, index.size)
    low.set(node, index.get(node))
    stack.push(node)
    for (const other of next.get(node) ?? []) {
      if (!index.has(other)) visit(other)
      if (stack.includes(other)) low.set(node, Math.min(low.get(node), low.get(other)))
    }
    if (low.get(node) !== index.get(node)) return
    const group = stack.splice(stack.indexOf(node))
    if (group.length > 1) circles.push(group.sort())
  }
  for (const node of next.keys()) if (!index.has(node)) visit(node)
  return circles
}

/** The arrows between the rooms of lib, and the floor of each room: one above the highest room that it imports. */
function storeys(arrows) {
  const names = [...new Set(arrows.flatMap(({ from, to }) => [from, to]).map(roomOf))].filter((room) =>
    room.startsWith('lib/'),
  )
  const key = (from, to) => `${from} → ${to}`
  const between = new Map()
  for (const { from, to } of arrows) {
    const [a, b] = [roomOf(from), roomOf(to)]
    if (a !== b && a.startsWith('lib/') && b.startsWith('lib/')) between.set(key(a, b), { from: a, to: b })
  }
  const all = [...between.values()]
  const up = cut(all)
  const down = all.filter((arrow) => !up.includes(arrow))
  const floors = new Map()
  const floorOf = (room) => {
    if (!floors.has(room))
      floors.set(room, 1 + Math.max(0, ...down.filter(({ from }) => from === room).map(({ to }) => floorOf(to))))
    return floors.get(room)
  }
  for (const room of names) floorOf(room)
  return { floors, arrows: all, up }
}

/** The arrows without which no room reaches itself: those of `backUp`, and then as few as a greedy search finds. */
function cut(arrows) {
  const removed = arrows.filter(({ from, to }) => backUp.some(([upper, lower]) => upper === from && lower === to))
  const left = arrows.filter((arrow) => !removed.includes(arrow))
  for (let circles = circlesOf(left); circles.length > 0; circles = circlesOf(left)) {
    const inside = left.filter(({ from, to }) => circles.some((group) => group.includes(from) && group.includes(to)))
    const remaining = (arrow) => circlesOf(left.filter((other) => other !== arrow)).flat().length
    const best = inside.reduce((a, b) => (remaining(b) < remaining(a) ? b : a))
    removed.push(...left.splice(left.indexOf(best), 1))
  }
  return removed
}

const lines = (root, files) =>
  files.reduce((sum, file) => sum + readFileSync(path.join(root, file), 'utf8').split('\n').length - 1, 0)

function main(root, own) {
  const arrows = arrowsOf(root)
  const { floors, arrows: between, up } = storeys(arrows)
  const top = Math.max(...floors.values())
  const files = filesOf(root, ['lib', ...Object.keys(tenants)])
  const sizeOf = (room) =>
    lines(
      root,
      files.filter((file) => roomOf(file) === room),
    )
  for (let floor = top; floor > 0; floor--)
    for (const room of [...floors.keys()].filter((room) => floors.get(room) === floor).sort())
      console.log(`floor ${String(floor).padStart(2)}  ${room.padEnd(24)} ${sizeOf(room)} lines`)
  for (const tenant of Object.keys(tenants))
    if (sizeOf(tenant) > 0) console.log(`outside   ${tenant.padEnd(24)} ${sizeOf(tenant)} lines`)
  const loose = [...floors.keys()].filter((room) => extension.test(room)).length
  const counted = [`${floors.size - loose} rooms`, `${loose} loose file${loose === 1 ? '' : 's'}`, `${top} floors`]
  console.log(`lib: ${counted.join(', ')}, ${between.length} arrows, ${up.length} back up`)
  for (const { from, to } of up) console.log(`  back up: ${from} → ${to}`)
  for (const circle of circlesOf(arrows)) console.log(`  circle of files, types included: ${circle.join(' ')}`)
  if (!own) return 0
  const forbidden = arrows.filter(({ from, to }) => !isAllowed(from, to))
  for (const { from, to } of forbidden) console.log(`forbidden: ${from} imports ${to}`)
  const loaded = circlesOf(arrows.filter(({ loads }) => loads))
  for (const circle of loaded) console.log(`forbidden: these files load each other: ${circle.join(' ')}`)
  return forbidden.length + loaded.length > 0 ? 1 : 0
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const root = process.argv[2] ?? fileURLToPath(new URL('..', import.meta.url))
  process.exitCode = main(
    root,
    rooms.every((room) => existsSync(path.join(root, room))),
  )
}
