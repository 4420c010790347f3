// Branches of native/ that no test of scripts/coverage-native.mjs can take: a line, or a whole file; one `side` or both.
// `lacks`: the entry is for processors without that instruction set. `sometimes`: a run may take it.
export default []
