/**
 * Passes a log on and remembers its last errors, for people who ask what went wrong and do not have the log at hand. It stands
 * behind QuietLog, so one fault that repeats does not push the others out: it has one line per minute.
 */
import type { Log } from './log.js'

const REMEMBERED_MAX = 10
/** Of a reason, in characters: some hold the answer of a server. */
const TEXT_MAX = 1000

export interface LoggedError {
  /** ISO 8601. */
  readonly at: string
  readonly program: 'daemon' | 'bobbin-fuse'
  readonly level: 'warn' | 'error'
  readonly message: string
  /** Why, where that is known. */
  readonly reason?: string
  /** What it was about: a key, a mountpoint. */
  readonly about: Readonly<Record<string, string>>
}

export class LastErrors implements Log {
  readonly #remembered: LoggedError[] = []

  constructor(private readonly log: Log) {}

  /** The latest comes last. */
  list(): readonly LoggedError[] {
    return this.#remembered
  }

  info(fields: object, message: string): void {
    this.log.info(fields, message)
  }

  warn(fields: object, message: string): void {
    this.log.warn(fields, message)
  }

  error(fields: object, message: string): void {
    this.#remembered.push(loggedLine({ at: new Date(), program: 'daemon', level: 'error', message }, fields))
    if (this.#remembered.length > REMEMBERED_MAX) this.#remembered.shift()
    this.log.error(fields, message)
  }
}

/** A line of a log, in the words that people are shown. */
export function loggedLine(
  { at, program, level, message }: Pick<LoggedError, 'program' | 'level' | 'message'> & { readonly at: Date },
  fields: object,
): LoggedError {
  const { error, err, reason: because, ...rest } = fields as Readonly<Record<string, unknown>>
  const about = Object.entries(rest).map(([name, value]) => [name, textOf(value)] as const)
  const reason = error ?? err ?? because
  return {
    ...{ at: at.toISOString(), program, level, message: textOf(message) },
    ...(reason !== undefined && { reason: textOf(reason) }),
    about: Object.fromEntries(about),
  }
}

function textOf(value: unknown): string {
  const text = typeof value === 'string' ? value : value instanceof Error ? String(value) : JSON.stringify(value)
  return (text ?? '').slice(0, TEXT_MAX)
}
