// Node 20 and 22 give `Symbol.dispose` to their main context alone, not to those of test runners such as Jest. There it
// becomes what esbuild and Babel fall back to, so that `using` works however a program was compiled.
if (!Symbol.dispose)
  Object.defineProperty(Symbol, 'dispose', { value: Symbol.for('Symbol.dispose'), configurable: true, writable: true })

export {}
