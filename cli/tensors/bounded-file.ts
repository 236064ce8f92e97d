/** An open file of which nothing outside is read. Synchronous: its reader is a process of its own. */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { refused } from './tensor-file.js'

/** What is read at once. A multiple of the length of every element. */
export const PIECE_BYTES = 1 << 20

export class BoundedFile {
  private constructor(
    private readonly fd: number,
    readonly size: number,
  ) {}

  /** Throws INVALID_ARGUMENT for what is not a regular file, and what opening throws. */
  static open(path: string): BoundedFile {
    const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    const stats = fstatSync(fd)
    if (stats.isFile()) return new BoundedFile(fd, stats.size)
    closeSync(fd)
    throw refused('it is not a file')
  }

  /** Exactly these bytes. Throws INVALID_ARGUMENT. */
  read(at: number, length: number): Buffer {
    if (!(at >= 0 && length >= 0 && at + length <= this.size))
      throw refused('it is cut short, or says that it is longer')
    const bytes = Buffer.alloc(length)
    for (let done = 0; done < length; ) {
      const count = readSync(this.fd, bytes, done, length - done, at + done)
      if (count === 0) throw refused('it became shorter while it was read')
      done += count
    }
    return bytes
  }

  /** In pieces. */
  *bytes(at: number, length: number): Generator<Buffer> {
    for (let done = 0; done < length; done += PIECE_BYTES)
      yield this.read(at + done, Math.min(PIECE_BYTES, length - done))
  }

  close(): void {
    closeSync(this.fd)
  }
}
