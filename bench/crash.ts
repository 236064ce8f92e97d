/**
 * What readers see while the daemon is killed, and while bobbin-fuse is replaced in place: nothing but a
 * wait. Every reader is a process of its own that compares every byte it reads.
 *
 * Cold readers open files that nobody has read, from a server as far away as S3; warm ones go over files
 * that are in the cache, again and again, or have large ones open all the while. Both read through a mount
 * of the default mode and through one without opens. All of it is played twice: with what the kernel can
 * do, and with RESEND and passthrough switched off, as on an older one.
 */
import { mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { adopt, type HashedFile, hashFiles, type WrittenPackage, writePackage } from './packages.js'
import { Reader, type ReaderFile, type ReaderOptions, type Reading } from './reader.js'
import { type Goal, number, range, writeReport } from './report.js'
import { Served } from './served.js'
import { type SlowS3, startSlowS3 } from './slow-s3.js'

const KERNELS = [
  { name: 'this kernel', env: {} },
  { name: 'without RESEND and passthrough', env: { BOBBIN_FUSE_WITHOUT: 'resend,passthrough' } },
] as const

/** Between two kills: some hit a daemon that has not said its hello yet, most one that works. */
const PAUSE_MS = [50, 3000] as const
const REPLACED = 'bobbin-fuse was replaced in place'
const REPLACE_MS = 20_000
/** Of a kill or a replacement with its pause, on a busy machine. */
const STEP_MS_MAX = 15_000

const COLD_SMALL = 36_000
const COLD_LARGE = 240
const WARM_SMALL = 400
const WARM_LARGE = 2

interface Load {
  readonly name: string
  readonly mount: 'default' | 'none'
  readonly files: 'cold' | 'warm' | 'large'
  readonly options: ReaderOptions
}

const LOADS: readonly Load[] = [
  { name: 'cold', mount: 'default', files: 'cold', options: { threads: 4, once: true } },
  { name: 'cold, no opens', mount: 'none', files: 'cold', options: { threads: 2, once: true } },
  { name: 'warm', mount: 'default', files: 'warm', options: { threads: 2, 'pause-us': 1000 } },
  { name: 'warm, no opens', mount: 'none', files: 'warm', options: { threads: 2, 'pause-us': 1000 } },
  { name: 'warm, held open', mount: 'default', files: 'large', options: { threads: 2, 'pause-us': 1000, held: true } },
]

interface Outcome {
  readonly kernel: string
  readonly act: string
  readonly readings: readonly { readonly load: Load; readonly reading: Reading | undefined }[]
  /** Until the next daemon answers, or bobbin-fuse says that it was replaced. */
  readonly backMs: readonly number[]
}

export async function run(): Promise<void> {
  const { values } = parseArgs({
    args: process.argv.slice(3),
    options: {
      kills: { type: 'string', default: '100' },
      upgrades: { type: 'string', default: '20' },
      quick: { type: 'boolean', default: false },
    },
  })
  const [kills, upgrades] = values.quick ? [8, 3] : [Number(values.kills), Number(values.upgrades)]
  const folder = realpathSync(mkdtempSync(join(process.env.BENCH_DIR ?? tmpdir(), 'bobbin-crash-')))
  const files = join(folder, 'files')
  const server = await startSlowS3(files)
  try {
    const bench = new CrashBench(folder, files, server)
    await bench.prepare((kills + upgrades) / 120)
    const outcomes: Outcome[] = []
    for (const kernel of KERNELS) {
      await bench.serve(kernel.env, async served => {
        outcomes.push(await bench.play(served, kernel.name, `${kills} kills`, kills, killer(served)))
        outcomes.push(await bench.play(served, kernel.name, `${upgrades} upgrades`, upgrades, () => replaced(served)))
        complain(kernel.name, served.log())
        if (outcomes.some(hasFailed)) {
          const path = join(tmpdir(), 'bobbin-crash.log')
          writeFileSync(path, served.log())
          process.stderr.write(`reads have failed: the log is ${path}\n`)
        }
      })
    }
    report(outcomes, server.requests, !values.quick)
  } finally {
    await server.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}

class CrashBench {
  readonly #reader: Reader
  readonly #cache: string
  #package: WrittenPackage | undefined
  #cold: HashedFile[] = []
  #warm: HashedFile[] = []
  #large: HashedFile[] = []

  constructor(
    private readonly folder: string,
    private readonly files: string,
    private readonly server: SlowS3,
  ) {
    this.#reader = new Reader(folder)
    this.#cache = join(folder, 'cache')
  }

  async prepare(share: number): Promise<void> {
    const make = (group: string, count: number, sizeOf: (i: number) => number) =>
      Array.from({ length: Math.ceil(count) }, (_, i): ReaderFile => {
        const seed = Number.parseInt(group, 36) + i
        return { seed, size: sizeOf(i), path: `${group}/${i % 100}/${String(i).padStart(6, '0')}.bin` }
      })
    const smallSize = (i: number) => 4_000 + ((i * 104_729) % 72_001)
    const cold = [
      ...make('cold', COLD_SMALL * share, smallSize),
      // More than an open waits for.
      ...make('slow', COLD_LARGE * share, i => 9_000_000 + i * 10_000),
    ]
    const warm = make('warm', WARM_SMALL, i => 20_000 + ((i * 104_729) % 176_001))
    const large = make('held', WARM_LARGE, () => 64 * 2 ** 20)
    mkdirSync(this.files)
    const hash = async (files: readonly ReaderFile[]) => {
      await this.#reader.write(this.files, this.#reader.list(files))
      return hashFiles(this.files, files)
    }
    ;[this.#cold, this.#warm, this.#large] = [await hash(cold), await hash(warm), await hash(large)]
    const all = [...this.#cold, ...this.#warm, ...this.#large]
    const registry = join(this.folder, 'registry')
    this.#package = writePackage(registry, 'bench/crash', all, path => this.server.physicalKey(path))
  }

  /** On a cache that holds what is warm. */
  async serve(env: NodeJS.ProcessEnv, use: (served: Served) => Promise<void>): Promise<void> {
    adopt(this.#cache, this.files, [...this.#warm, ...this.#large])
    const served = await Served.start('native', this.#cache, {
      mountFolder: join(this.folder, 'mnt'),
      env: { ...env, ...this.server.env },
    })
    try {
      await use(served)
    } finally {
      await served.stop()
      rmSync(this.#cache, { recursive: true, force: true })
    }
  }

  /** One act under the whole load, `times` over. Each cold file is read in one act, through one mount. */
  async play(
    served: Served,
    kernel: string,
    act: string,
    times: number,
    once: () => Promise<() => Promise<number | undefined>>,
  ): Promise<Outcome> {
    const mounts = {
      default: await served.mount(this.#package!),
      none: await served.mount(this.#package!, 'none'),
    }
    process.stderr.write(`${kernel}, ${act}: ${mounts.default.facts.openMode} and ${mounts.none.facts.openMode}\n`)
    const isKill = act.endsWith('kills')
    const coldFor = (mount: Load['mount']) =>
      this.#cold.filter((_, i) => i % 6 < 4 === (mount === 'default') && i % 5 < 4 === isKill)
    const lists = { warm: this.#reader.list(this.#warm), large: this.#reader.list(this.#large) }
    const warmUp = this.#reader.list([...this.#warm, ...this.#large])
    for (const { path } of Object.values(mounts)) await this.#reader.check(path, warmUp, { threads: 4 })

    let isHung = false
    const watchdog = setTimeout(
      () => {
        isHung = true
        process.stderr.write('the watchdog ended a hang\n')
        served.giveUp()
      },
      times * STEP_MS_MAX + 60_000,
    )
    const loops = []
    for (const load of LOADS) {
      const list = load.files === 'cold' ? this.#reader.list(coldFor(load.mount)) : lists[load.files]
      const loop = await this.#reader.loop(mounts[load.mount].path, list, { ...load.options, seed: loops.length + 1 })
      loops.push({ load, loop })
    }
    const backMs: number[] = []
    const waits: Promise<unknown>[] = []
    for (let i = 0; i < times && !isHung; i++) {
      await pause()
      const back = await once()
      waits.push(back().then(ms => ms !== undefined && backMs.push(ms)))
    }
    await Promise.all(waits)
    // What was parked last gets its answer, too.
    await sleep(1000)
    const readings = await Promise.all(
      loops.map(async ({ load, loop }) => ({ load, reading: await loop.stop(() => served.giveUp()) })),
    )
    clearTimeout(watchdog)
    for (const mounted of Object.values(mounts)) await mounted.unmount()
    return { kernel, act, readings, backMs }
  }
}

function pause(): Promise<void> {
  return sleep(PAUSE_MS[0] + Math.random() * (PAUSE_MS[1] - PAUSE_MS[0]))
}

/** What it gives waits for the next daemon; one that is killed before it answers has no such time. */
function killer(served: Served): () => Promise<() => Promise<number | undefined>> {
  let last: number | undefined
  return async () => {
    let pid = served.daemonPid()
    // Not the moment there is one: bobbin-fuse waits between daemons that end young, and each would be killed at its birth.
    for (; pid === undefined || pid === last; pid = served.daemonPid()) await pause()
    process.kill(pid, 'SIGKILL')
    last = pid
    const start = performance.now()
    // The socket stays where it is, and keeps who asks until somebody answers.
    const answered = served.client.status().then(
      () => performance.now() - start,
      () => undefined,
    )
    return () => answered
  }
}

async function replaced(served: Served): Promise<() => Promise<number | undefined>> {
  const count = () => served.log().split(REPLACED).length
  const before = count()
  const start = performance.now()
  served.process.kill('SIGUSR2')
  while (count() === before) {
    if (performance.now() - start > REPLACE_MS) throw new Error(`bobbin-fuse was not replaced: ${served.log()}`)
    await sleep(2)
  }
  const ms = performance.now() - start
  return async () => ms
}

/** What the servers said that is no part of the play. */
function complain(kernel: string, log: string): void {
  const counts = new Map<string, number>()
  for (const line of log.split('\n')) {
    try {
      const { level, msg } = JSON.parse(line) as { level: number | string; msg: string }
      if (level === 'error' || level === 'warn' || Number(level) >= 40) counts.set(msg, (counts.get(msg) ?? 0) + 1)
    } catch {
      if (line !== '') counts.set(line, (counts.get(line) ?? 0) + 1)
    }
  }
  for (const [message, count] of counts) process.stderr.write(`${kernel}: ${count} x ${message}\n`)
}

function hasFailed({ readings }: Outcome): boolean {
  return readings.some(({ reading }) => reading === undefined || reading.failed + reading.wrong + reading.hung > 0)
}

function report(outcomes: readonly Outcome[], requests: number, isKept: boolean): void {
  const goals = outcomes.flatMap(({ kernel, act, readings }): Goal[] => {
    const sum = (of: (reading: Reading) => number, missing: number) =>
      readings.reduce((total, { reading }) => total + (reading === undefined ? missing : of(reading)), 0)
    const goal = { sense: '<=', goal: 0 } as const
    return [
      { what: `failed or wrong reads, ${act}, ${kernel}`, value: sum(r => r.failed + r.wrong, 0), ...goal },
      { what: `hung readers, ${act}, ${kernel}`, value: sum(r => r.hung, 1), ...goal },
    ]
  })
  const [latency, pause] = ['15 to 45 ms', PAUSE_MS.join(' to ')]
  writeReport(
    'crash',
    [
      `load: ${LOADS.map(({ name, options }) => `${name} (${options.threads} threads)`).join(', ')}, a process each, every byte compared`,
      `server: on the same machine, every answer after ${latency}; ${requests.toLocaleString('en')} requests; ${pause} ms between two acts`,
    ],
    [
      {
        columns: ['act', 'reader', 'reads', 'failed', 'wrong', 'hung', 'longest stall, ms', 'over 100 ms', 'ran dry'],
        rows: outcomes.flatMap(({ kernel, act, readings }) =>
          readings.map(({ load, reading }) => [
            `${act}, ${kernel}`,
            load.name,
            ...(reading === undefined
              ? ['?', '?', '?', 'all', '?', '?', '?']
              : [
                  reading.files.toLocaleString('en'),
                  ...[reading.failed, reading.wrong, reading.hung].map(String),
                  number(reading.longestMs),
                  String(reading.slow),
                  reading.exhausted ? '**yes**' : 'no',
                ]),
          ]),
        ),
      },
      {
        columns: ['act', 'times', 'until it answered again, ms: median (range)'],
        rows: outcomes.map(({ kernel, act, backMs }) => [
          `${act}, ${kernel}`,
          String(backMs.length),
          backMs.length > 0 ? range(backMs) : '',
        ]),
      },
    ],
    goals,
    { isKept },
  )
}
