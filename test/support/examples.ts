import ts from 'typescript'
import { type Block, blocksOf } from './blocks.js'

export interface Example extends Block {
  /** File and line of the fence. */
  name: string
}

const lineAt = (text: string, index: number): number => text.slice(0, index).split('\n').length

/** The blocks of code of every `@example` in the doc comments of a source. */
export function examplesIn(source: string, path: string): Example[] {
  return [...source.matchAll(/\/\*\*.*?\*\//gs)].flatMap(({ 0: comment, index: start }) => {
    const text = comment.replace(/^\/\*\* */, '').replace(/\s*\*\/$/, '')
    const plain = text.replaceAll(/^ *\* ?/gm, '')
    return [...plain.matchAll(/^@example\b.*?(?=^@\w|(?![\s\S]))/gms)].flatMap(({ 0: example, index }) => {
      const line = lineAt(source, start) + lineAt(plain, index) - 1
      const blocks = blocksOf(example)
      if (blocks.length === 0) throw new Error(`${path}:${line}: an example is a block of code`)
      return blocks.map((block) => ({ ...block, name: `${path}:${line + block.line - 1}` }))
    })
  })
}

export interface Exported {
  /** `ops.route` for an export of a namespace. */
  name: string
  kind: 'class' | 'function' | 'value' | 'type'
  comment: string
  hasExample: boolean
}

/** What a module exports, its namespaces entered, each with its doc comment. */
export function exportsOf(file: string, options: ts.CompilerOptions): Exported[] {
  const program = ts.createProgram([file], options)
  const checker = program.getTypeChecker()
  const kindOf = (symbol: ts.Symbol): Exported['kind'] => {
    if (symbol.flags & ts.SymbolFlags.Class) return 'class'
    if (!(symbol.flags & ts.SymbolFlags.Value)) return 'type'
    return checker.getTypeOfSymbol(symbol).getCallSignatures().length > 0 ? 'function' : 'value'
  }
  const walk = (module: ts.Symbol, prefix: string): Exported[] =>
    checker.getExportsOfModule(module).flatMap((entry) => {
      const symbol = entry.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(entry) : entry
      if (symbol.flags & ts.SymbolFlags.Module) return walk(symbol, `${prefix}${entry.name}.`)
      return [
        {
          name: prefix + entry.name,
          kind: kindOf(symbol),
          comment: ts.displayPartsToString(symbol.getDocumentationComment(checker)),
          hasExample: symbol.getJsDocTags(checker).some(({ name }) => name === 'example'),
        },
      ]
    })
  return walk(checker.getSymbolAtLocation(program.getSourceFile(file)!)!, '')
}
