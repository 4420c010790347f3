/** How to get a package of st-moe: until a release none is on npm, and its name there is not ours. */
export const notPublished = (name: string): string =>
  `${name} is not on npm yet: README.md, Install, says how to make it`
