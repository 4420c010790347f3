/** The name of a kernel as c++filt or the emulator demangles it, without namespaces, result and parameters. */
export const plainName = (demangled) =>
  demangled
    .replace(/^void /, '')
    .replaceAll(/st_moe::(cuda::)?|\((\w|::)+\)(?=\d)/g, '')
    .replaceAll(/(?<=<|, )\(anonymous namespace\)::|^\(anonymous namespace\)::/g, '')
    .replace(/ ?\(.*/s, '')
    .replaceAll(' >', '>')
