/** Progress on stderr: bars on a terminal, nothing elsewhere. */
import { MultiBar, Presets, type SingleBar } from 'cli-progress'
import { formatBytes } from '../daemon/model/index.js'
import type { CommonFlags } from './settings.js'

export interface Progress {
  /** `total` 0: not known yet. */
  update(what: string, done: number, total: number): void
  stop(): void
}

/** Work that is over sooner is not announced. */
const QUIET_MS = 400

export function startProgress(flags: CommonFlags): Progress {
  if (flags.quiet || !process.stderr.isTTY) return { update() {}, stop() {} }
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
    stop() {
      multi?.stop()
    },
  }
}
