/** Sentences of a small grammar: structure that a model can learn in a few hundred steps. */
export function sentences(count: number): string {
  let state = 1
  const pick = (words: string): string => {
    const all = words.split(' ')
    state = (state * 48271) % 2147483647
    return all[state % all.length]
  }
  return Array.from(
    { length: count },
    () => `The ${pick('old young tired grey')} ${pick('whale sailor ship')} ${pick('sees hears follows')} the sea.\n`,
  ).join('')
}
