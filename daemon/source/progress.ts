/**
 * The clock of one reading: how long ago bytes came, or the consumer asked for more.
 *
 * A server that sends a byte now and then would keep its readers, and a turn in the line of fetches, for ever. So it takes
 * some bytes to count as progress; the waits of the consumer are not counted.
 *
 * One clock spans all tries and all connections of a reading, so that "no progress for the I/O
 * time-out" means just that, however many fresh connections were tried in between.
 */
/** Fewer within the I/O time-out are none: 137 bytes per second, of the default one. The end of an object counts as it is. */
const PROGRESS_BYTES = 4096

export class Progress {
  #since = performance.now()
  /** Since then. */
  #bytes = 0

  constructor(readonly ioTimeoutMs: number) {}

  touch(): void {
    this.#since = performance.now()
    this.#bytes = 0
  }

  /** So many bytes came, and their consumer had them for so long. Milliseconds. */
  took(bytes: number, consumerMs: number): void {
    this.#since += consumerMs
    this.#bytes += bytes
    if (this.#bytes >= PROGRESS_BYTES) this.touch()
  }

  /** Until the reading has failed; zero or less: it has. Milliseconds. */
  remainingMs(): number {
    return this.#since + this.ioTimeoutMs - performance.now()
  }

  /**
   * How long one connection may be silent: half of the I/O time-out, so that there is time for a
   * fresh one when it was only that connection that died. Milliseconds.
   */
  connectionMs(): number {
    return Math.max(0, Math.min(this.ioTimeoutMs / 2, this.remainingMs()))
  }
}
