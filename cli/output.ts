/**
 * stdout carries results, stderr everything else. With `--json` a result is one JSON document, and a
 * list is one JSON line per row. Names and messages in them may be a stranger's, so what a terminal would obey is escaped
 * here (daemon/model/terminal.ts): on stderr always, on stdout when it is a terminal, and in JSON always.
 */
import { once } from 'node:events'
import type { Writable } from 'node:stream'
import { escapeControls, escapeJson, localError } from '../daemon/model/index.js'
import type { CommonFlags } from './settings.js'

/** Whose readers have gone. */
const unread = new Set<Writable>()
let outlivesReaders = false

/** From now on a command runs, or has run: whoever does not want to see it any more ends neither it nor its record. */
export function outliveReaders(): void {
  outlivesReaders = true
}

/** At the pace of the reader; nothing is written for one that has gone. */
export async function show(stream: Writable, bytes: string | Uint8Array): Promise<void> {
  if (unread.has(stream) || stream.write(bytes)) return
  // What goes wrong is handled where errors are listened to.
  await once(stream, 'drain').catch(() => {})
}

export class Output {
  readonly isJson: boolean
  readonly isQuiet: boolean
  #pending = ''

  constructor(flags: CommonFlags) {
    this.isJson = flags.json ?? false
    this.isQuiet = flags.quiet ?? false
    // `bobbin ls | head` closes the pipe: that is the reader's business, not a failure.
    process.stdout.on('error', (error: NodeJS.ErrnoException) => {
      unread.add(process.stdout)
      // A disk that is full is one: what reads the file later would take half a list for a whole one.
      if (error.code !== 'EPIPE') process.stderr.write(`bobbin: ${localError('write the output', error).message}\n`)
      if (!outlivesReaders) process.exit(error.code === 'EPIPE' ? 0 : 1)
    })
    // Remarks are nobody's result: what is done goes on without them.
    process.stderr.on('error', () => unread.add(process.stderr))
  }

  /** One result, or one row of a list: the document (a string is JSON text) with `--json`, else a line or several. */
  async row(document: unknown, text: string | readonly string[]): Promise<void> {
    if (!this.isJson) await this.line(...(typeof text === 'string' ? [text] : text))
    else await this.line(typeof document === 'string' ? document : JSON.stringify(document))
  }

  /** Lines are gathered, and written at the pace of the reader. On a terminal each stays one line, whatever is in it. */
  async line(...lines: readonly string[]): Promise<void> {
    for (const line of lines) this.#pending += `${this.#shown(line)}\n`
    if (this.#pending.length > 64 * 1024) await this.flush()
  }

  /** Scripts get the bytes of a name as they are; JSON is the same document for them either way. */
  #shown(line: string): string {
    if (this.isJson) return escapeJson(line)
    return process.stdout.isTTY ? escapeControls(line) : line
  }

  async flush(): Promise<void> {
    const text = this.#pending
    this.#pending = ''
    if (text !== '') await show(process.stdout, text)
  }

  /** A remark for a person. */
  note(text: string): void {
    if (!this.isQuiet && !unread.has(process.stderr)) process.stderr.write(`${escapeControls(text)}\n`)
  }
}

/** Lines of columns of text, the last column ragged; numbers to the right. */
export function table(rows: readonly (readonly string[])[], rightAligned: readonly number[] = []): string[] {
  const widths = rows.reduce<number[]>((found, row) => row.map((cell, i) => Math.max(found[i] ?? 0, cell.length)), [])
  return rows.map(row =>
    row
      .map((cell, i) =>
        rightAligned.includes(i) ? cell.padStart(widths[i]!) : i === row.length - 1 ? cell : cell.padEnd(widths[i]!),
      )
      .join('  ')
      .trimEnd(),
  )
}
