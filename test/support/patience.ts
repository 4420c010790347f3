/**
 * Milliseconds after which a program counts as hanging. Far above what any takes, also where many others want the same
 * cores: this is no measurement.
 */
export const patience = 20 * 60_000
