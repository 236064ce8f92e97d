/** bobbin-fuse against a daemon that somebody else controls (hostile-daemon.ts). `hostile.js --seconds 3600` is for nights. */
import t from 'tap'
import { findBobbinFuse } from '../../daemon/control/bobbin-fuse.js'
import { cannotMount } from '../support/daemon.js'
import { playHostile, playHostileParent } from './hostile.js'

const SECONDS = process.env.CI ? 12 : 5

t.setTimeout(300_000)

function cannotPlay(): string | false {
  if (process.getuid?.() !== 0) return 'needs root, for a mount namespace and mounts in it'
  return cannotMount() || (findBobbinFuse().path === undefined && 'no bobbin-fuse here')
}

const plays = {
  exchange: 'a folder above a mountpoint that is exchanged with a link all the time leads nobody astray (S65)',
  all: 'a daemon under the control of somebody else mounts nowhere else, hides nothing and detaches nothing (S66)',
} as const

for (const [play, title] of Object.entries(plays)) {
  t.test(title, { skip: cannotPlay() }, async t => {
    const seed = Date.now() % 2 ** 31
    const outcome = await playHostile({
      ...{ play: play as keyof typeof plays, seed, seconds: SECONDS, program: findBobbinFuse().path! },
    })
    if (!t.equal(outcome.status, 0, `seed ${seed}`))
      return t.comment(outcome.stdout.slice(-4000), outcome.stderr.slice(-4000))
    const counts = JSON.parse(outcome.stdout) as Record<string, number>
    t.comment(`seed ${seed}: ${outcome.stdout.trim()}`)
    for (const what of ['mounted', 'refused', 'unmounted']) t.ok(counts[what]! > 0, `some were ${what}`)
  })
}

t.test(
  'what is left of a daemon is unmounted, and nothing else, while a folder above it is exchanged (S65)',
  {
    skip: cannotPlay(),
  },
  async t => {
    const outcome = await playHostileParent({ seconds: SECONDS, program: findBobbinFuse().path! })
    if (!t.equal(outcome.status, 0)) return t.comment(outcome.stdout.slice(-4000), outcome.stderr.slice(-4000))
    const { ended, counts } = JSON.parse(outcome.stdout) as { ended: object; counts: object }
    t.comment(counts)
    t.same(ended, {
      ...{ noNumber: 2, dots: 1, link: 1, notThere: 5, somethingElse: 5, notOurs: 5, covered: 5 },
      ...{ inUse: 4, lazy: 0, gone: 3 },
    })
  },
)
