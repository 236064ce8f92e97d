/**
 * Says that something waits for a server. The reader that waits is often in a worker thread, and the command that tells a person of
 * it is in the main thread, so the news goes through a channel that all threads of this process share.
 */
import { BroadcastChannel } from 'node:worker_threads'
import { reasonOf } from './errors.js'
import type { Progress } from './progress.js'

const CHANNEL = 'bobbin-waiting'
/** A shorter wait is nobody's concern. */
const TELL_AFTER_MS = 3000
const TELL_EVERY_MS = 5000

export interface Waiting {
  /** The address. */
  readonly what: string
  readonly reason: string
  /** When it is given up. Unix milliseconds. */
  readonly untilMs: number
}

let sending: BroadcastChannel | undefined

/** One wait, from its beginning until `end`. */
export class WaitNotice {
  #reason = 'no answer'
  #timer: NodeJS.Timeout

  constructor(
    private readonly what: string,
    private readonly progress: Progress,
  ) {
    this.#timer = setTimeout(() => this.#tell(), TELL_AFTER_MS)
    this.#timer.unref()
  }

  /** A try failed. */
  failed(error: unknown): void {
    this.#reason = reasonOf(error)
  }

  end(): void {
    clearTimeout(this.#timer)
  }

  #tell(): void {
    sending ??= unreffed()
    const news: Waiting = {
      what: this.what,
      reason: this.#reason,
      untilMs: Date.now() + Math.max(0, this.progress.remainingMs()),
    }
    sending.postMessage(news)
    this.#timer = setTimeout(() => this.#tell(), TELL_EVERY_MS)
    this.#timer.unref()
  }
}

/** Calls `tell` for each wait that lasts, in any thread of this process, until the returned function is called. */
export function onWaiting(tell: (news: Waiting) => void): () => void {
  const channel = unreffed()
  channel.onmessage = event => tell((event as { readonly data: Waiting }).data)
  // Listening has made it hold the process again.
  channel.unref()
  return () => channel.close()
}

function unreffed(): BroadcastChannel {
  const channel = new BroadcastChannel(CHANNEL)
  channel.unref()
  return channel
}
