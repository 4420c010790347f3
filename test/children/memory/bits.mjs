// What there is to compare of tensors, as text.
export const bits = (x) => (x ? Buffer.from(x.dataSync().buffer).toString('base64') : 'none')
export const dictBits = (dict) =>
  Object.entries(dict)
    .map(([name, x]) => `${name} ${bits(x)}`)
    .join('\n')
export const freeDict = (dict) => {
  for (const x of Object.values(dict)) x.dispose()
}
export const gradBits = (parameters) => [...parameters].map(({ grad }) => bits(grad)).join()
