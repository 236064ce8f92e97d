import t from 'tap'
import { EvictionOrder } from '../../../../daemon/store/eviction-order.js'

interface Thing {
  readonly id: string
  readonly bytes: number
}

const OBJECTS = 1000
const EPOCHS = 8

t.test('EvictionOrder.take gives the least recently used first while nothing is announced', t => {
  const order = new EvictionOrder<Thing>()
  const [a, b, c] = things(3)
  for (const thing of [a!, b!, c!]) use(order, thing)
  use(order, a!)
  t.same([order.take(), order.take(), order.take(), order.take()], [b, c, a, undefined])
  t.end()
})

t.test('EvictionOrder.take gives the farthest next use first', t => {
  const order = new EvictionOrder<Thing>()
  const [a, b, c] = things(3)
  use(order, a!, 5000)
  use(order, b!, 9000)
  use(order, c!, 7000)
  t.same([order.take(), order.take(), order.take()], [b, c, a])
  t.end()
})

t.test('EvictionOrder.take gives what lies unused for long before what is needed soon', t => {
  const order = new EvictionOrder<Thing>()
  const [old, soon, far] = things(3)
  use(order, old!)
  order.advance(1000)
  use(order, soon!, 100)
  use(order, far!, 1_000_000)
  t.same([order.take(), order.take(), order.take()], [far, old, soon])
  t.end()
})

t.test('EvictionOrder.take does not trust an announced use that has passed', t => {
  const order = new EvictionOrder<Thing>()
  const [promised, fresh] = things(2)
  use(order, promised!, 100)
  order.advance(10_000)
  use(order, fresh!)
  t.equal(order.take(), promised)
  t.end()
})

t.test('EvictionOrder.take never gives what is in use, whatever was announced of it before', t => {
  const order = new EvictionOrder<Thing>()
  const [a, b] = things(2)
  use(order, a!, 9000)
  use(order, b!, 5000)
  order.delete(a!)
  t.same([order.take(), order.take()], [b, undefined])
  t.end()
})

t.test(
  'EvictionOrder with announced uses hits as often as the optimum on shuffled epochs, and far more often than without',
  t => {
    const objects = things(OBJECTS)
    const accesses = Array.from({ length: EPOCHS }, (_, epoch) => shuffled(objects, epoch + 1)).flat()
    const next = nextUses(accesses)
    const room = objects.reduce((sum, { bytes }) => sum + bytes, 0) / 2
    const mean = (2 * room) / OBJECTS

    const announced = new EvictionOrder<Thing>()
    const known = simulate(accesses, room, {
      touch: thing => announced.delete(thing),
      rest: (thing, at) => {
        announced.advance(thing.bytes)
        announced.add(thing, Number.isFinite(next[at]!) ? (next[at]! - at) * mean : undefined)
      },
      take: () => announced.take(),
    })
    const recent = new EvictionOrder<Thing>()
    const unknown = simulate(accesses, room, {
      touch: thing => recent.delete(thing),
      rest: thing => {
        recent.advance(thing.bytes)
        recent.add(thing)
      },
      take: () => recent.take(),
    })
    // Belady's: looks at every object each time.
    const resting = new Map<Thing, number>()
    const optimum = simulate(accesses, room, {
      touch: thing => resting.delete(thing),
      rest: (thing, at) => resting.set(thing, next[at]!),
      take: () => {
        let farthest: Thing | undefined
        for (const [thing, use] of resting) if (farthest === undefined || use > resting.get(farthest)!) farthest = thing
        if (farthest !== undefined) resting.delete(farthest)
        return farthest
      },
    })
    t.comment(`hit rates: announced ${known}, least recently used ${unknown}, optimum ${optimum}`)
    t.ok(known >= 0.9 * optimum, `${known} of ${optimum}`)
    t.ok(known >= 1.2 * unknown, `${known}, and ${unknown} without`)
    t.end()
  },
)

function use(order: EvictionOrder<Thing>, thing: Thing, distance?: number): void {
  order.delete(thing)
  order.advance(thing.bytes)
  order.add(thing, distance)
}

function things(count: number): Thing[] {
  return Array.from({ length: count }, (_, i) => ({ id: `${i}`, bytes: 50 + ((i * 37) % 101) }))
}

/** The share of accesses that found their object; the first epoch, which has to fetch, is not counted. */
function simulate(
  accesses: readonly Thing[],
  room: number,
  rule: { touch(thing: Thing): void; rest(thing: Thing, at: number): void; take(): Thing | undefined },
): number {
  const here = new Set<Thing>()
  let bytes = 0
  let hits = 0
  for (const [at, thing] of accesses.entries()) {
    if (here.has(thing)) {
      if (at >= OBJECTS) hits++
      rule.touch(thing)
    } else {
      while (bytes + thing.bytes > room) {
        const gone = rule.take()!
        here.delete(gone)
        bytes -= gone.bytes
      }
      here.add(thing)
      bytes += thing.bytes
    }
    rule.rest(thing, at)
  }
  return hits / (accesses.length - OBJECTS)
}

function nextUses(accesses: readonly Thing[]): number[] {
  const next: number[] = []
  const seen = new Map<Thing, number>()
  for (let at = accesses.length - 1; at >= 0; at--) {
    next[at] = seen.get(accesses[at]!) ?? Number.POSITIVE_INFINITY
    seen.set(accesses[at]!, at)
  }
  return next
}

/** Fisher and Yates, with numbers that are the same each time (mulberry32). */
function shuffled(objects: readonly Thing[], seed: number): Thing[] {
  const order = [...objects]
  let state = seed * 0x9e3779b9
  const random = () => {
    state = (state + 0x6d2b79f5) | 0
    let x = Math.imul(state ^ (state >>> 15), 1 | state)
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
  }
  for (let i = order.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1))
    ;[order[i], order[j]] = [order[j]!, order[i]!]
  }
  return order
}
