/** A file that is written from its beginning to its end, in large pieces. */
import { closeSync, openSync, writeSync } from 'node:fs'
import { localError } from '../model/index.js'

export const WRITE_BYTES = 256 * 1024

export class BufferedFile {
  protected readonly fd: number
  #pending: Buffer[] = []
  #pendingBytes = 0
  /** Bytes, of what was written and of what waits for it. */
  length = 0

  /** Makes the file. `flags`: `wx`, or `wx+` where it is read, too. Throws what a local file throws. */
  constructor(
    readonly path: string,
    flags: 'wx' | 'wx+',
    mode: number,
  ) {
    try {
      this.fd = openSync(path, flags, mode)
    } catch (error) {
      throw localError(`write ${path}`, error)
    }
  }

  write(...pieces: readonly Buffer[]): void {
    for (const piece of pieces) {
      this.#pending.push(piece)
      this.#pendingBytes += piece.length
      this.length += piece.length
    }
    if (this.#pendingBytes >= WRITE_BYTES) this.flush()
  }

  flush(): void {
    const bytes = Buffer.concat(this.#pending)
    this.#pending = []
    this.#pendingBytes = 0
    try {
      for (let at = 0; at < bytes.length; ) at += writeSync(this.fd, bytes, at)
    } catch (error) {
      throw localError(`write ${this.path}`, error)
    }
  }

  close(): void {
    closeSync(this.fd)
  }
}
