/**
 * The clock of one reading: how long ago the last byte came, or the consumer asked for more.
 *
 * One clock spans all tries and all connections of a reading, so that "no progress for the I/O
 * time-out" means just that, however many fresh connections were tried in between.
 */
export class Progress {
  #since = performance.now()

  constructor(readonly ioTimeoutMs: number) {}

  touch(): void {
    this.#since = performance.now()
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
