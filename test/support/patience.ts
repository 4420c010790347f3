/**
 * Milliseconds after which a program counts as hanging. Far above what any takes, also where others want the same
 * cores: this is no measurement.
 */
export const patience = 8 * 60_000
