/**
 * Notices a cache that was taken away under a living daemon: its folder, the owner file in it, or the socket that clients reach the daemon by.
 * Then nobody can unmount, stop or ask it any more, and another daemon can own a new cache of the same name.
 */
import { existsSync } from 'node:fs'
import type { Ownership } from '../store/owner.js'

const LOOK_MS = 2_000
/** In a row: whoever exchanges a file may have it gone for a moment. */
const LOSSES_MIN = 2

/** Calls `onLost` once, with what is gone; the answer ends the watch. */
export function watchCache(ownership: Ownership, socketPath: string, onLost: (what: string) => void): () => void {
  let losses = 0
  const look = () => {
    const isLost = ownership.isLost()
    losses = isLost || !existsSync(socketPath) ? losses + 1 : 0
    if (losses < LOSSES_MIN) return
    clearInterval(timer)
    onLost(isLost ? `the cache ${ownership.cacheDir}` : `the socket ${socketPath}`)
  }
  const timer = setInterval(look, LOOK_MS)
  timer.unref()
  return () => clearInterval(timer)
}
