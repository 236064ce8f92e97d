/**
 * A log in which nothing repeats faster than once a minute. A reader that loops over missing objects would write gigabytes a day.
 *
 * Warnings and errors are the same when their message and their fields are, but for `error`, which may hold a request's number.
 * The first is written at once. Those that follow within a minute are counted, and at its end there is one line for each: how
 * many more there were. Different ones that a minute has beyond LINES_MAX are counted together. Information passes as it is: it
 * tells of work that was done.
 */
import type { Log } from './log.js'

const MINUTE_MS = 60_000
/** Different lines per minute; also what is remembered. */
export const LINES_MAX = 256

type Level = 'warn' | 'error'

interface Said {
  readonly level: Level
  readonly fields: object
  readonly message: string
  more: number
}

export class QuietLog implements Log {
  readonly #said = new Map<string, Said>()
  #others = 0
  #timer: NodeJS.Timeout | undefined

  constructor(private readonly log: Log) {}

  info(fields: object, message: string): void {
    this.log.info(fields, message)
  }

  warn(fields: object, message: string): void {
    this.#say('warn', fields, message)
  }

  error(fields: object, message: string): void {
    this.#say('error', fields, message)
  }

  /** Writes the counts now: at the end of a minute, and of the process. */
  flush(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    for (const { level, fields, message, more } of this.#said.values())
      if (more > 0) this.log[level](fields, `${message}: ${countOf(more)} more like this in the last minute`)
    if (this.#others > 0)
      this.log.warn(
        { others: this.#others },
        `${countOf(this.#others)} other warnings and errors in the last minute were left out`,
      )
    this.#said.clear()
    this.#others = 0
  }

  #say(level: Level, fields: object, message: string): void {
    const id = identityOf(level, fields, message)
    const known = this.#said.get(id)
    if (known !== undefined) {
      known.more++
      return
    }
    if (this.#said.size >= LINES_MAX) {
      this.#others++
      return
    }
    this.#said.set(id, { level, fields, message, more: 0 })
    this.log[level](fields, message)
    this.#timer ??= setTimeout(() => this.flush(), MINUTE_MS).unref()
  }
}

function identityOf(level: Level, fields: object, message: string): string {
  const { error: _, err: __, ...rest } = fields as Readonly<Record<string, unknown>>
  return `${level} ${message} ${JSON.stringify(rest)}`
}

function countOf(number: number): string {
  return number.toLocaleString('en-US')
}
