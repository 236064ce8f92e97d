/** Room in the store for one object, and the temporary file that its bytes are written to. */
import { closeSync, constants, fstatSync, openSync, rmSync } from 'node:fs'
import { localError } from '../model/index.js'

export class Reservation {
  /** Open for reading and writing until the reservation ends; threads share it. */
  readonly fd: number
  #isOver = false

  /** `onEnd` gives the room back. Throws STORE_FULL or LOCAL_IO when the file cannot be made. */
  constructor(
    readonly path: string,
    readonly bytes: number,
    private readonly onEnd: (reservation: Reservation) => void,
  ) {
    try {
      this.fd = openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o440)
    } catch (error) {
      throw localError(`write ${path}`, error)
    }
  }

  /** What the file system has still to find for this object. Bytes. */
  get unwrittenBytes(): number {
    return Math.max(0, this.bytes - fstatSync(this.fd).blocks * 512)
  }

  get isOver(): boolean {
    return this.#isOver
  }

  /** For the store: the file is elsewhere now, or nowhere. */
  end(): void {
    if (this.#isOver) return
    this.#isOver = true
    closeSync(this.fd)
    this.onEnd(this)
  }

  /** Deletes the file and gives the room back. Does nothing after the object was admitted. */
  discard(): void {
    if (this.#isOver) return
    rmSync(this.path, { force: true })
    this.end()
  }
}
