// Imported before a program: Ctrl-C at the moment at which the program prints INTERRUPT_AT, so that it is never too late.
const { INTERRUPT_AT } = process.env
const { write } = process.stdout
let printed = ''
process.stdout.write = function (text, ...rest) {
  const before = printed.includes(INTERRUPT_AT)
  printed += text
  if (!before && printed.includes(INTERRUPT_AT)) process.kill(process.pid, 'SIGINT')
  return write.call(this, text, ...rest)
}
