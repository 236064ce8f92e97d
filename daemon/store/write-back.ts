/**
 * Asks whether what was written has reached the disk (syncfs(2)).
 *
 * A write ends in the page cache, and is told as done. Whether the disk took it is known later, and is
 * told once: to the next sync through a descriptor that was open when it went wrong. The kernel then
 * counts the pages as clean, so they may leave the cache, and the file reads as zeros or as what was on
 * the disk before, with the same size and the same times.
 *
 * Hence a descriptor that is held from before the first write, and a sync through that very
 * descriptor: one that is opened later is told only of errors that nobody else was told of before. (So is ours
 * about what went wrong while no daemon was there.) Node.js has no
 * syncfs, so bobbin-fuse makes the call (`--syncfs`) on the descriptor that it inherits. Without bobbin-fuse,
 * sync(1) opens the folder anew: an error escapes it when another program's syncfs came first.
 *
 * Errors of a whole file system are told by Linux 5.8 and newer; network file systems and overlays may tell none.
 */
import { spawn } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { localError } from '../model/index.js'

/** `lost`: something that was written to this disk did not get there. `unknown`: it cannot be told. */
export type SyncOutcome = 'synced' | 'lost' | 'unknown'

export class WriteBack {
  readonly #fd: number
  #last: Promise<SyncOutcome> = Promise.resolve('unknown')

  /** Before anything is written to the folder. `syncProgram`: bobbin-fuse; default: sync(1). */
  constructor(
    private readonly folder: string,
    private readonly syncProgram?: string | undefined,
  ) {
    try {
      this.#fd = openSync(folder, 'r')
    } catch (error) {
      throw localError(`open the folder ${folder}`, error)
    }
  }

  /** Resolves when the file system has written everything that it had by now: that may take minutes. Never throws. */
  sync(): Promise<SyncOutcome> {
    // One at a time: each is told of all errors since the one before.
    this.#last = this.#last.then(() => this.#sync())
    return this.#last
  }

  close(): void {
    closeSync(this.#fd)
  }

  #sync(): Promise<SyncOutcome> {
    const [program, args] =
      this.syncProgram === undefined ? ['sync', ['-f', this.folder]] : [this.syncProgram, ['--syncfs']]
    return new Promise(resolve => {
      const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'ignore', this.#fd] })
      child.once('error', () => resolve('unknown'))
      child.once('exit', code => {
        if (code === 0) resolve('synced')
        // Both programs end with 1 when the sync has failed; bobbin-fuse of another version ends with 2.
        else resolve(code === 1 ? 'lost' : 'unknown')
      })
      // Whoever ends does not wait for a disk that hangs.
      child.unref()
    })
  }
}
