/** Progress on stderr: bars on a terminal that can draw them, elsewhere a line now and then. */
import { MultiBar, Presets, type SingleBar } from 'cli-progress'
import { formatBytes } from '../daemon/model/index.js'
import type { CommonFlags } from './settings.js'

export interface Progress {
  /** `total` 0: not known yet. */
  update(what: string, done: number, total: number): void
  /** A line above the bars. */
  note(line: string): void
  stop(): void
}

/** Work that is over sooner is not announced. */
const QUIET_MS = 400
/** Between two lines where there are no bars; logs of jobs should not fill with them. */
const LINE_MS = 10_000

export function startProgress(flags: CommonFlags): Progress {
  if (flags.quiet) return { update() {}, note() {}, stop() {} }
  if (!process.stderr.isTTY || process.env.TERM === 'dumb') return progressLines()
  const startedAt = performance.now()
  const bars = new Map<string, SingleBar>()
  let multi: MultiBar | undefined
  return {
    update(what, done, total) {
      if (multi === undefined && performance.now() - startedAt < QUIET_MS) return
      multi ??= new MultiBar(
        {
          stream: process.stderr,
          format: '{what} {bar} {doneText} of {totalText}  {eta_formatted}',
          hideCursor: true,
          clearOnComplete: true,
        },
        Presets.shades_classic,
      )
      let bar = bars.get(what)
      if (bar === undefined) {
        bar = multi.create(total, 0, {})
        bars.set(what, bar)
      }
      bar.setTotal(Math.max(total, done))
      bar.update(done, {
        what: what.padEnd(10),
        doneText: formatBytes(done),
        totalText: total > 0 ? formatBytes(total) : '?',
      })
    },
    note(line) {
      if (multi === undefined) process.stderr.write(`${line}\n`)
      else multi.log(`${line}\n`)
    },
    stop() {
      multi?.stop()
    },
  }
}

/** `write` and `lineMs`: for tests. */
export function progressLines(
  write: (line: string) => unknown = line => process.stderr.write(line),
  lineMs = LINE_MS,
): Progress {
  let nextMs = performance.now() + lineMs
  return {
    update(what, done, total) {
      if (performance.now() < nextMs) return
      nextMs = performance.now() + lineMs
      write(`bobbin: ${what}: ${formatBytes(done)} of ${total > 0 ? formatBytes(total) : '?'}\n`)
    },
    note(line) {
      write(`${line}\n`)
    },
    stop() {},
  }
}
