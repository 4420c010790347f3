/** Branches that no test takes in the processes of vitest, by file and the text of their line, and why. */
export default []
