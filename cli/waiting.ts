/** Tells a person that a command waits for a server that does not answer: again and again at a terminal, once elsewhere. */
import { escapeControls, formatDuration } from '../daemon/model/index.js'
import { onWaiting, type Waiting } from '../daemon/source/waiting.js'
import type { Progress } from './progress.js'
import type { CommonFlags } from './settings.js'

/** Many readers may wait at once. */
const LINE_MS = 5000

/** Until the returned function is called. */
export function tellOfWaiting(flags: CommonFlags, progress: Progress): () => void {
  if (flags.quiet) return () => {}
  let nextMs = Number.NEGATIVE_INFINITY
  return onWaiting(news => {
    if (performance.now() < nextMs) return
    nextMs = process.stderr.isTTY ? performance.now() + LINE_MS : Infinity
    progress.note(escapeControls(waitingText(news)))
  })
}

function waitingText({ what, reason, untilMs }: Waiting): string {
  const until = new Date(untilMs).toTimeString().slice(0, 8)
  const left = formatDuration(Math.max(0, untilMs - Date.now()))
  return `bobbin: waiting for ${what} (${reason}), trying again until ${until} (${left}; --io-timeout)`
}
