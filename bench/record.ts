/**
 * What recording costs: the same readers below `bobbin run --host`, with its access log and its loader's deliveries, and
 * without any of it, on a plain mount whose log is off and a loader that writes nothing down. Everything is in the page
 * cache, so that recording has the largest share that it can have. Rounds are interleaved, a ratio is made within a
 * round, and the median of the ratios is told.
 */
import { mkdirSync, mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { RunningLoader } from '../test/support/loader.js'
import { bobbinPath, part, repository } from '../test/support/parts.js'
import { median } from './measure.js'
import { adopt, hashFiles, type WrittenPackage, writePackage } from './packages.js'
import { Reader, type ReaderFile, type Reading } from './reader.js'
import { type Goal, interleave, number, range, type Table, writeReport } from './report.js'
import { runToEnd } from './run.js'
import { Served } from './served.js'

const FULL = { files: 4000, rounds: 9, readerEpochs: 12, torchEpochs: 3 }
const QUICK = { files: 400, rounds: 1, readerEpochs: 3, torchEpochs: 1 }
type Sizes = typeof FULL

/** Recording may cost three in a hundred. */
const RATIO_MIN = 0.97
/** Others use the machine, too: a round begins when they are quiet, or have had their time. */
const QUIET_LOAD = 0.7
const QUIET_WAIT_MS = 60_000

type Kind = 'recorded' | 'not recorded'
const KINDS: readonly Kind[] = ['recorded', 'not recorded']

/** Files a second. */
type Measure = (kind: Kind) => Promise<number>

export async function run(): Promise<void> {
  const { values } = parseArgs({
    args: process.argv.slice(3),
    options: { rounds: { type: 'string' }, quick: { type: 'boolean', default: false }, wait: { type: 'boolean' } },
  })
  const sizes = values.quick ? QUICK : FULL
  const rounds = Number(values.rounds ?? sizes.rounds)
  const folder = realpathSync(mkdtempSync(join(process.env.BENCH_DIR ?? tmpdir(), 'bobbin-record-')))
  const bench = new RecordBench(folder, sizes)
  try {
    await bench.prepare()
    await bench.measure(rounds, values.wait ?? false)
    bench.report(!values.quick && rounds >= FULL.rounds)
  } finally {
    await bench.end()
    rmSync(folder, { recursive: true, force: true })
  }
}

class RecordBench {
  readonly #reader: Reader
  readonly #rates = new Map<string, Record<Kind, number[]>>()
  readonly #finishing: number[] = []
  readonly #loads: number[] = []
  #written!: WrittenPackage
  #list = ''
  #bytes = 0
  /** Two daemons, two caches, the same objects: neither is ever cold, and neither ends between rounds. */
  #served!: Record<Kind, Served>

  constructor(
    private readonly folder: string,
    private readonly sizes: Sizes,
  ) {
    this.#reader = new Reader(folder)
  }

  async prepare(): Promise<void> {
    const { folder } = this
    // 56 to 156 KB, 106 on average, as photographs for training are.
    const files = Array.from({ length: this.sizes.files }, (_, i): ReaderFile => {
      return { seed: i + 1, size: 56_000 + ((i * 104_729) % 100_001), path: `${String(i).padStart(6, '0')}.jpg` }
    })
    this.#bytes = files.reduce((sum, { size }) => sum + size, 0)
    this.#list = this.#reader.list(files)
    const source = join(folder, 'source')
    mkdirSync(source)
    await this.#reader.write(source, this.#list)
    const hashed = hashFiles(source, files)
    this.#written = writePackage(
      join(folder, 'registry'),
      'bench/images',
      hashed,
      path => `file://${join(source, path)}`,
    )
    const start = async (kind: Kind, env: NodeJS.ProcessEnv) => {
      adopt(this.#cacheOf(kind), source, hashed)
      return Served.start('native', this.#cacheOf(kind), { mountFolder: join(folder, 'mnt'), env })
    }
    this.#served = {
      recorded: await start('recorded', {}),
      'not recorded': await start('not recorded', { BOBBIN_FUSE_WITHOUT: 'accesses' }),
    }
  }

  async measure(rounds: number, isWaiting: boolean): Promise<void> {
    const torch = (contender: string, source: string) => JSON.stringify(this.#torch(contender, source))
    const script = join(repository, 'bench/loader_epoch.py')
    const python = (contender: string, source: string) => [part('loader'), '-B', script, torch(contender, source)]
    const measures: Readonly<Record<string, Measure>> = {
      'mount, a C program that does nothing else, 2 threads': kind =>
        this.#onMount(
          kind,
          path => this.#reader.command('epochs', path, this.#list, this.#readerOptions),
          rateOfReader,
        ),
      "mount, torch's DataLoader, 2 workers": kind => this.#onMount(kind, path => python('raw', path), rateOfTorch),
      "loader, paths, torch's DataLoader, 2 workers": kind => this.#withLoader(kind, python('paths', ''), rateOfTorch),
    }
    for (const name of Object.keys(measures)) this.#rates.set(name, { recorded: [], 'not recorded': [] })
    for (let round = 0; round < rounds; round++) {
      if (isWaiting) await quiet()
      this.#loads.push(loadavg()[0]!)
      await interleave(
        1,
        Object.entries(measures).map(([name, measure]) => async () => {
          // In turns within a round: what slows the machine down for a while slows both.
          await interleave(
            1,
            KINDS.map(kind => async () => {
              const rate = await measure(kind)
              this.#rates.get(name)![kind].push(rate)
              process.stderr.write(`${name}, ${kind}: ${number(rate)} files/s\n`)
            }),
          )
        }),
      )
    }
  }

  report(isKept: boolean): void {
    const goals: Goal[] = []
    const rows = [...this.#rates].map(([name, rates]) => {
      const ratios = rates.recorded.map((rate, i) => rate / rates['not recorded'][i]!)
      goals.push({
        what: `files/s recorded, of not recorded: ${name}`,
        value: median(ratios),
        sense: '>=',
        goal: RATIO_MIN,
      })
      return [name, range(rates.recorded), range(rates['not recorded']), range(ratios)]
    })
    const { files, readerEpochs, torchEpochs } = this.sizes
    const opens = (files * (readerEpochs + 1)).toLocaleString('en')
    const tables: Table[] = [
      { columns: ['files/s, median (range)', 'recorded', 'not recorded', 'ratio in a round'], rows },
      {
        columns: ['after the command', 'seconds, median (range)'],
        rows: [[`end of the loader and the mount, ledger of ${opens} opens, statements`, range(this.#finishing)]],
      },
    ]
    const notes = [
      `load: ${files.toLocaleString('en')} files of ${(this.#bytes / files / 1000).toFixed(0)} KB on average, in the page cache, each opened, read and closed, shuffled; epochs after the first (${readerEpochs} and ${torchEpochs} of them) of a fresh mount or loader`,
      'recorded: bobbin run --host, with mount, loader, access log and deliveries; not recorded: the same readers on a mount with the access log off (BOBBIN_FUSE_WITHOUT=accesses), and on bobbin loader --no-deliveries',
      `rounds: ${this.#loads.length}, in each every reader both ways, in a random order; load average before a round: ${range(this.#loads)}`,
    ]
    writeReport('record', notes, tables, goals, { isKept })
  }

  async end(): Promise<void> {
    for (const served of Object.values(this.#served ?? {})) await served.stop()
  }

  /** Below a fresh mount of either kind. */
  async #onMount(kind: Kind, command: (path: string) => string[], rateOf: (stdout: string) => number): Promise<number> {
    if (kind === 'recorded') {
      const path = join(this.folder, 'mnt', 'run')
      return rateOf(await this.#run(['--mount', `${reference(this.#written)}:${path}`], command(path)))
    }
    const mounted = await this.#served[kind].mount(this.#written)
    try {
      const [program, ...args] = command(mounted.path)
      return rateOf((await runToEnd(program!, args)).stdout)
    } finally {
      await mounted.unmount()
    }
  }

  async #withLoader(kind: Kind, command: string[], rateOf: (stdout: string) => number): Promise<number> {
    const env = { PYTHONPATH: join(repository, 'loader/python/src') }
    if (kind === 'recorded') return rateOf(await this.#run([], command, env))
    const loader = new RunningLoader({ folder: join(this.folder, 'not recorded') })
    await loader.start('--no-deliveries')
    try {
      const [program, ...args] = command
      const found = { ...env, BOBBIN_SIDECAR: `unix:${loader.socket}`, BOBBIN_OBJECTS: loader.objects }
      return rateOf((await runToEnd(program!, args, { env: found })).stdout)
    } finally {
      await loader.end()
    }
  }

  /** Below `bobbin run --host`; gives what the command said. */
  async #run(
    options: readonly string[],
    command: readonly string[],
    env: Record<string, string> = {},
  ): Promise<string> {
    const line = [
      bobbinPath,
      'run',
      '--host',
      '--no-code',
      '--quiet',
      ...options,
      '--',
      'sh',
      '-c',
      TIMED,
      'sh',
      ...command,
    ]
    const own = { ...env, BOBBIN_CACHE: this.#cacheOf('recorded'), BOBBIN_STATE: join(this.folder, 'state') }
    const { stdout } = await runToEnd(process.execPath, line, { env: own })
    const lines = stdout.trimEnd().split('\n')
    // Whoever reads most has the largest ledger to be made.
    if (command.includes('epochs')) this.#finishing.push(Date.now() / 1000 - Number(lines.at(-1)))
    return lines.slice(0, -1).join('\n')
  }

  get #readerOptions() {
    return { threads: 2, epochs: this.sizes.readerEpochs + 1, seed: 1 }
  }

  #torch(contender: string, files: string) {
    return { contender, workers: 2, epochs: this.sizes.torchEpochs, files, reference: reference(this.#written) }
  }

  #cacheOf(kind: Kind): string {
    // Where a RunningLoader looks for it.
    return join(this.folder, kind, 'cache')
  }
}

/** Runs its arguments, then says when they have ended. */
const TIMED = '"$@" && date +%s.%N'

/** Of all epochs but the first. */
function rateOfReader(stdout: string): number {
  const warm = stdout
    .trim()
    .split('\n')
    .slice(1)
    .map(line => JSON.parse(line) as Reading)
  return warm.reduce((sum, { files }) => sum + files, 0) / warm.reduce((sum, { seconds }) => sum + seconds, 0)
}

function rateOfTorch(stdout: string): number {
  const { seconds, samples } = JSON.parse(stdout.trimEnd().split('\n').at(-1)!) as {
    seconds: number[]
    samples: number
  }
  return (samples * seconds.length) / seconds.reduce((sum, value) => sum + value, 0)
}

async function quiet(): Promise<void> {
  for (const deadline = Date.now() + QUIET_WAIT_MS; Date.now() < deadline; await sleep(1000))
    if (loadavg()[0]! < QUIET_LOAD) return
}

function reference({ registry, name, topHash }: WrittenPackage): string {
  return `${registry}/${name}@${topHash}`
}
