/** A wrong command line: its message goes to the user, without a stack trace, and the exit code is 2. */
export class UsageError extends Error {}

/** What a command could not do, said in its message; exit code 1. */
export class Failure extends Error {}
