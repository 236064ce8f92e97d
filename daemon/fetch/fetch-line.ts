/**
 * The line that fetches stand in: those that somebody waits for before those made ahead of their use, each in the
 * order they came. How many are under way is bounded by their number and, beyond a few, by their bytes: small objects
 * mostly wait for the network, and it takes many of them to fill a link that is far away, while a few large
 * ones fill any.
 */

export type Priority = 'demand' | 'ahead'

export interface FetchLineOptions {
  readonly objectsMin: number
  readonly objectsMax: number
  readonly bytesMax: number
}

export interface Place<T> {
  readonly result: Promise<T>
  /** Somebody waits for it now. */
  promote(): void
}

interface Turn {
  readonly bytes: number
  start(): void
}

export class FetchLine {
  readonly #waiting = { demand: new Set<Turn>(), ahead: new Set<Turn>() }
  #active = 0
  #activeBytes = 0

  constructor(private readonly options: FetchLineOptions) {}

  get active(): number {
    return this.#active
  }

  get waiting(): number {
    return this.#waiting.demand.size + this.#waiting.ahead.size
  }

  run<T>(bytes: number, priority: Priority, work: () => Promise<T>): Place<T> {
    const { promise, turn } = this.#turn(bytes, work)
    this.#waiting[priority].add(turn)
    this.#startSome()
    return {
      result: promise,
      promote: () => {
        if (this.#waiting.ahead.delete(turn)) this.#waiting.demand.add(turn)
      },
    }
  }

  #turn<T>(bytes: number, work: () => Promise<T>): { promise: Promise<T>; turn: Turn } {
    let start!: () => void
    const promise = new Promise<void>(resolve => {
      start = resolve
    }).then(async () => {
      try {
        return await work()
      } finally {
        this.#active--
        this.#activeBytes -= bytes
        this.#startSome()
      }
    })
    return { promise, turn: { bytes, start } }
  }

  #startSome(): void {
    for (;;) {
      const line = this.#waiting.demand.size > 0 ? this.#waiting.demand : this.#waiting.ahead
      const [turn] = line
      if (turn === undefined || !this.#hasRoomFor(turn)) return
      line.delete(turn)
      this.#active++
      this.#activeBytes += turn.bytes
      turn.start()
    }
  }

  #hasRoomFor({ bytes }: Turn): boolean {
    const { objectsMin, objectsMax, bytesMax } = this.options
    if (this.#active < objectsMin) return true
    return this.#active < objectsMax && this.#activeBytes + bytes <= bytesMax
  }
}
