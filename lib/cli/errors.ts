/** An invalid command line: the message is printed without a stack trace; exit code 2. */
export class UsageError extends Error {}

/** An expected failure, described by its message; exit code 1. */
export class Failure extends Error {}
