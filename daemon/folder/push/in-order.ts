/** Passes on, in order, what comes in any order. */
export class InOrder<T> {
  readonly #waiting = new Map<number, T>()
  #next = 0
  #onRoom = () => {}
  #isStopped = false

  constructor(
    private readonly pass: (item: T) => void,
    private readonly waitingMax: number,
  ) {}

  add(index: number, item: T): void {
    this.#waiting.set(index, item)
    for (let found = this.#waiting.get(this.#next); found !== undefined; found = this.#waiting.get(this.#next)) {
      this.#waiting.delete(this.#next++)
      this.pass(found)
    }
    if (this.#waiting.size <= this.waitingMax) this.#onRoom()
  }

  /** The one that others wait for will not come. */
  stop(): void {
    this.#isStopped = true
    this.#onRoom()
  }

  /** Returns when few enough wait for a slow one. */
  async hasRoom(): Promise<void> {
    if (this.#isStopped || this.#waiting.size <= this.waitingMax) return
    await new Promise<void>(resolve => {
      this.#onRoom = resolve
    })
  }
}
