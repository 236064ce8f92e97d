/**
 * What recording costs: the same readers below `bobbin run --host`, with its access log and its loader's deliveries, and
 * without any of it, on a plain mount whose log is off and a loader that writes nothing down. Everything is in the page
 * cache, so that recording has the largest share that it can have. Rounds are interleaved, a ratio is made within a
 * round, and the median of the ratios is told.
 *
 * Others may use the machine meanwhile, and then the clock tells little. So the CPU time that recording takes is told,
 * too: of bobbin-fuse, daemon and loader, a file, and which share of all cores that is at the rate without recording.
 * Where all cores are busy with reading, that share is what recording costs.
 */
import { mkdirSync, mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { cpus, loadavg, tmpdir } from 'node:os'
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

const FULL = { files: 4000, rounds: 9, readerEpochs: 24, torchEpochs: 4 }
const QUICK = { files: 400, rounds: 1, readerEpochs: 3, torchEpochs: 1 }
type Sizes = typeof FULL

/** Recording may cost three in a hundred. */
const RATIO_MIN = 0.97
/** Others use the machine, too: a round begins when they are quiet, or have had their time. */
const QUIET_LOAD = 0.7
const QUIET_WAIT_MS = 60_000

type Kind = 'recorded' | 'not recorded'
const KINDS: readonly Kind[] = ['recorded', 'not recorded']

interface Measured {
  /** Files a second, of all epochs but the first. */
  readonly rate: number
  /** Of bobbin-fuse, daemon and loader, a file. */
  readonly serversCpuMicros: number
  /** Of the reader, a file, its start included. */
  readonly readerCpuMicros: number
}

type Measure = (kind: Kind) => Promise<Measured>

/** What a reader's output says. */
interface Read {
  readonly rate: number
  /** Of all epochs. */
  readonly files: number
}

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
  readonly #measured = new Map<string, Record<Kind, Measured[]>>()
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
          readByReader,
        ),
      "mount, torch's DataLoader, 2 workers": kind => this.#onMount(kind, path => python('raw', path), readByTorch),
      "loader, paths, torch's DataLoader, 2 workers": kind => this.#withLoader(kind, python('paths', ''), readByTorch),
    }
    for (const name of Object.keys(measures)) this.#measured.set(name, { recorded: [], 'not recorded': [] })
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
              const measured = await measure(kind)
              this.#measured.get(name)![kind].push(measured)
              const { rate, serversCpuMicros } = measured
              process.stderr.write(`${name}, ${kind}: ${number(rate)} files/s, ${number(serversCpuMicros)} µs\n`)
            }),
          )
        }),
      )
    }
  }

  report(isKept: boolean): void {
    const goals: Goal[] = []
    const rates: string[][] = []
    const cpu: string[][] = []
    for (const [name, { recorded, 'not recorded': not }] of this.#measured) {
      const of = (list: readonly Measured[], what: keyof Measured) => list.map(one => one[what])
      const ratios = recorded.map(({ rate }, i) => rate / not[i]!.rate)
      rates.push([name, range(of(recorded, 'rate')), range(of(not, 'rate')), range(ratios)])
      const added = recorded.map(({ serversCpuMicros }, i) => serversCpuMicros - not[i]!.serversCpuMicros)
      // At the best rate that was seen: others had the least of the machine then.
      const share = (median(added) * Math.max(...of(not, 'rate'))) / 1e6 / cpus().length
      const all = [recorded, not].map(list => range(of(list, 'serversCpuMicros')))
      cpu.push([name, ...all, range(added), `${(share * 100).toFixed(2)} %`, range(of(not, 'readerCpuMicros'))])
      goals.push(
        { what: `files/s recorded, of not recorded: ${name}`, value: median(ratios), sense: '>=', goal: RATIO_MIN },
        { what: `CPU that recording takes, of all there is: ${name}`, value: share, sense: '<=', goal: 1 - RATIO_MIN },
      )
    }
    const { files, readerEpochs, torchEpochs } = this.sizes
    const opens = (files * (readerEpochs + 1)).toLocaleString('en')
    const tables: Table[] = [
      { columns: ['files/s, median (range)', 'recorded', 'not recorded', 'ratio in a round'], rows: rates },
      {
        columns: [
          'CPU of bobbin-fuse, daemon and loader, µs a file',
          'recorded',
          'not recorded',
          'difference in a round',
          'of all cores, at the best rate',
          "the reader's own, with its start",
        ],
        rows: cpu,
      },
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
  async #onMount(kind: Kind, command: (path: string) => string[], readBy: (stdout: string) => Read): Promise<Measured> {
    if (kind === 'recorded') {
      const path = join(this.folder, 'mnt', 'run')
      const wish = ['--mount', `${reference(this.#written)}:${path}`]
      return this.#timed(kind, readBy, () => this.#run(wish, timed(command(path))))
    }
    return this.#timed(kind, readBy, async () => {
      // Within what is measured, as a run's own mount is.
      const mounted = await this.#served[kind].mount(this.#written)
      try {
        return await this.#plain(timed(command(mounted.path)))
      } finally {
        await mounted.unmount()
      }
    })
  }

  async #withLoader(kind: Kind, command: string[], readBy: (stdout: string) => Read): Promise<Measured> {
    const env = { PYTHONPATH: join(repository, 'loader/python/src') }
    if (kind === 'recorded') return this.#timed(kind, readBy, () => this.#run([], timed(command), env))
    const loader = new RunningLoader({ folder: join(this.folder, kind) })
    await loader.start('--no-deliveries')
    try {
      const found = { ...env, BOBBIN_SIDECAR: `unix:${loader.socket}`, BOBBIN_OBJECTS: loader.objects }
      return await this.#timed(kind, readBy, () => this.#plain(timed(command), found))
    } finally {
      await loader.end()
    }
  }

  async #timed(kind: Kind, readBy: (stdout: string) => Read, run: () => Promise<string>): Promise<Measured> {
    const cpu = () => Object.values(this.#served[kind].usages()).reduce((sum, { cpuSeconds }) => sum + cpuSeconds, 0)
    const before = cpu()
    const lines = (await run()).trimEnd().split('\n')
    const after = cpu()
    const { ended, readerCpu, loaderCpu } = JSON.parse(lines.pop()!) as Record<
      'ended' | 'readerCpu' | 'loaderCpu',
      number
    >
    // Whoever reads most has the largest ledger to be made.
    if (kind === 'recorded' && readBy === readByReader) this.#finishing.push(Date.now() / 1000 - ended)
    const { rate, files } = readBy(lines.join('\n'))
    return {
      rate,
      serversCpuMicros: ((after - before + loaderCpu) * 1e6) / files,
      readerCpuMicros: (readerCpu * 1e6) / files,
    }
  }

  async #plain([program, ...args]: readonly string[], env: Record<string, string> = {}): Promise<string> {
    return (await runToEnd(program!, args, { env })).stdout
  }

  /** Below `bobbin run --host`; gives what the command said. */
  async #run(
    options: readonly string[],
    command: readonly string[],
    env: Record<string, string> = {},
  ): Promise<string> {
    const line = [bobbinPath, 'run', '--host', '--no-code', '--quiet', ...options, '--', ...command]
    const own = { ...env, BOBBIN_CACHE: this.#cacheOf('recorded'), BOBBIN_STATE: join(this.folder, 'state') }
    return (await runToEnd(process.execPath, line, { env: own })).stdout
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

/** Runs its arguments, then says when they ended, and what CPU time they and the loader have taken meanwhile. */
const TIMED = `
import json, os, resource, socket, struct, subprocess, sys, time
def loader_cpu():
    address = os.environ.get('BOBBIN_SIDECAR')
    if address is None:
        return 0
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(address[5:])
        pid = struct.unpack('iii', one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    fields = open('/proc/%d/stat' % pid).read().rsplit(') ', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
before = loader_cpu()
said = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, check=True).stdout
ended = time.time()
use = resource.getrusage(resource.RUSAGE_CHILDREN)
print(said.decode().rstrip())
print(json.dumps({'ended': ended, 'readerCpu': use.ru_utime + use.ru_stime, 'loaderCpu': loader_cpu() - before}))
`

function timed(command: readonly string[]): string[] {
  return ['python3', '-c', TIMED, ...command]
}

function readByReader(stdout: string): Read {
  const epochs = stdout
    .trim()
    .split('\n')
    .map(line => JSON.parse(line) as Reading)
  const sum = (list: readonly Reading[], what: 'files' | 'seconds') => list.reduce((all, one) => all + one[what], 0)
  const warm = epochs.slice(1)
  return { rate: sum(warm, 'files') / sum(warm, 'seconds'), files: sum(epochs, 'files') }
}

function readByTorch(stdout: string): Read {
  const { seconds, samples } = JSON.parse(stdout.trimEnd().split('\n').at(-1)!) as {
    seconds: number[]
    samples: number
  }
  const rate = (samples * seconds.length) / seconds.reduce((sum, value) => sum + value, 0)
  return { rate, files: samples * (seconds.length + 1) }
}

async function quiet(): Promise<void> {
  for (const deadline = Date.now() + QUIET_WAIT_MS; Date.now() < deadline; await sleep(1000))
    if (loadavg()[0]! < QUIET_LOAD) return
}

function reference({ registry, name, topHash }: WrittenPackage): string {
  return `${registry}/${name}@${topHash}`
}
