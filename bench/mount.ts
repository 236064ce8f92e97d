/**
 * Mounts against the same files on ext4: what the kernel and the server between a reader and its bytes
 * cost. Nothing is fetched; every object is in the cache and in the page cache.
 *
 * Four packages: one file of 2 GiB, 20,000 files of 20 to 196 KB in 100 folders, 100,000 names in one
 * folder, 1,000,000 names. The files on ext4 and the objects of both caches are the same inodes
 * (packages.ts). A round takes the workloads in turn, and for each of them every configuration once, in
 * random order and on a mount of its own, so the kernel's FUSE caches are cold; ratios are made within a
 * round, and the median of them is told.
 */
import { mkdirSync, mkdtempSync, realpathSync, renameSync, rmSync, statSync } from 'node:fs'
import { loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { bobbinPath } from '../test/support/parts.js'
import { type FioJob, fio } from './fio.js'
import { writeManyRows } from './many-rows.js'
import { median } from './measure.js'
import { adopt, hashFiles, unhashed, type WrittenPackage, writePackage, writeRevision } from './packages.js'
import { Reader, type ReaderFile } from './reader.js'
import { type Goal, number, range, shuffled, type Table, writeReport } from './report.js'
import { runToEnd } from './run.js'
import { Served, type ServerProcess, type Usages } from './served.js'

/** tmpfs only says what a page cache of 4 KiB pages can give: FUSE's has such, ext4's has larger ones. */
const LOCAL = ['ext4', 'tmpfs'] as const
const SERVED = ['fuse-native', 'cached', 'passthrough', 'none'] as const
type LocalConfiguration = (typeof LOCAL)[number]
type ServedConfiguration = (typeof SERVED)[number]
type Configuration = LocalConfiguration | ServedConfiguration

type PackageName = 'big' | 'small' | 'flat' | 'million'
type Unit = 'MiB/s' | 'IOPS' | 'files/s' | 's'

/** Notes one value, and what the server has used for it. `work` gives the value. */
type Probe = (what: string, unit: Unit, work: () => Promise<number>) => Promise<void>

interface Workload {
  readonly package: PackageName
  /** So often a round: what takes a tenth of a second is at the mercy of whatever else the machine does. */
  readonly repeats?: number
  /** Also on a copy in tmpfs. */
  readonly isOnTmpfs?: boolean
  /** Reads below a folder: the mount, or its ext4 twin. */
  run(folder: string, probe: Probe): Promise<void>
}

/** One configuration in one round. */
interface Sample {
  readonly value: number
  /** Of ext4 in the same round; `undefined` where there is nothing to compare with. */
  ratio: number | undefined
  readonly used: Partial<Record<ServerProcess, { readonly cpuSeconds: number; readonly peakMiB: number }>>
  /** Of bobbin-fuse, without the package indexes that it maps. */
  readonly ownPeakMiB: number
}

interface Result {
  readonly unit: Unit
  readonly samples: Map<Configuration, Sample[]>
}

const FULL = { bigMiB: 2048, smallFiles: 20_000, smallRead: 12_000, flat: 100_000, rows: 1_000_000, rounds: 5 }
const QUICK = { bigMiB: 256, smallFiles: 2_000, smallRead: 1_200, flat: 10_000, rows: 50_000, rounds: 1 }
type Sizes = typeof FULL

const BIG_FILE = 'data.bin'
const SMALL_FOLDERS = 100
const EPOCHS = 3

export async function run(): Promise<void> {
  const { values } = parseArgs({
    args: process.argv.slice(3),
    options: {
      rounds: { type: 'string' },
      quick: { type: 'boolean', default: false },
      /** A pattern of the workloads' names. */
      only: { type: 'string', default: '' },
    },
  })
  const sizes = values.quick ? QUICK : FULL
  const rounds = Number(values.rounds ?? sizes.rounds)
  const folder = realpathSync(mkdtempSync(join(process.env.BENCH_DIR ?? tmpdir(), 'bobbin-bench-')))
  const bench = new MountBench(folder, sizes)
  try {
    const [load] = loadavg()
    await bench.prepare()
    for (let round = 0; round < rounds; round++) {
      process.stderr.write(`round ${round + 1} of ${rounds}\n`)
      for (const [name, workload] of Object.entries(bench.workloads())) {
        if (!new RegExp(values.only).test(name)) continue
        for (let i = 0; i < (workload.repeats ?? 1); i++) await bench.compare(workload)
      }
    }
    bench.report(`rounds: ${rounds}; load average before: ${load!.toFixed(1)}`, !values.quick && values.only === '')
  } finally {
    await bench.end()
    rmSync(folder, { recursive: true, force: true })
  }
}

class MountBench {
  readonly #results = new Map<string, Result>()
  readonly #notes: string[] = []
  readonly #packages = new Map<PackageName, WrittenPackage>()
  readonly #servers = new Map<'native' | 'fuse-native', Served>()
  readonly #reader: Reader
  #configurations: readonly Configuration[] = [...LOCAL, ...SERVED]
  readonly #tmpfs = mkdtempSync('/dev/shm/bobbin-bench-')
  #readList = ''

  constructor(
    private readonly folder: string,
    private readonly sizes: Sizes,
  ) {
    this.#reader = new Reader(folder)
  }

  async prepare(): Promise<void> {
    const { bigMiB, smallFiles, smallRead, flat, rows } = this.sizes
    const big: ReaderFile[] = [{ seed: 1, size: bigMiB * 2 ** 20, path: BIG_FILE }]
    const small = Array.from({ length: smallFiles }, (_, i): ReaderFile => {
      const name = String(i).padStart(6, '0')
      // 20 to 196 KB, 108 on average, spread evenly by a step that shares no factor with the range.
      const size = 20_000 + ((i * 104_729) % 176_001)
      return { seed: 1000 + i, size, path: `part-${String(i % SMALL_FOLDERS).padStart(2, '0')}/${name}.bin` }
    })
    const names = Array.from({ length: flat }, (_, i): ReaderFile => {
      return { seed: i, size: 0, path: `all/${String(i).padStart(8, '0')}.jpg` }
    })
    const lists = { big, small, flat: names }
    const registry = join(this.folder, 'registry')
    for (const [name, files] of Object.entries(lists)) {
      const own = this.#ext4(name as PackageName)
      mkdirSync(own, { recursive: true })
      const list = this.#reader.list(files)
      await this.#reader.write(own, list)
      const hashed = name === 'flat' ? unhashed(files) : hashFiles(own, files)
      if (name === 'big') await this.#reader.write(this.#tmpfs, list)
      const written = writePackage(registry, `bench/${name}`, hashed, path => `file://${own}/${path}`)
      this.#packages.set(name as PackageName, written)
      if (name !== 'flat') for (const transport of TRANSPORTS) adopt(this.#cache(transport), own, hashed)
    }
    const { path, topHash } = writeManyRows(join(this.folder, 'manifest'), rows)
    const manifestMiB = statSync(path).size / 2 ** 20
    writeRevision(registry, 'bench/million', topHash, manifestPath => renameSync(path, manifestPath))
    // The registry is a folder, and such may name S3 objects.
    this.#packages.set('million', { name: 'bench/million', registry: `file://${registry}`, topHash })
    await runToEnd('sync', [])

    // Epochs are over the first files of the list: in all folders, and with all sizes.
    this.#readList = this.#reader.list(small.slice(0, smallRead))
    for (const transport of TRANSPORTS) {
      const server = await Served.start(transport, this.#cache(transport), { mountFolder: join(this.folder, 'mnt') })
      this.#servers.set(transport, server)
      for (const [name, files] of [['big', big] as const, ['small', small] as const]) {
        const mounted = await server.mount(this.#packages.get(name)!)
        const { seconds } = await this.#reader.check(mounted.path, this.#reader.list(files), { threads: 4 })
        process.stderr.write(`${transport}: all bytes of ${name} compared in ${seconds.toFixed(1)} s\n`)
        await mounted.unmount()
      }
      // Compiles its index.
      const start = performance.now()
      const mounted = await server.mount(this.#packages.get('million')!)
      const seconds = (performance.now() - start) / 1000
      this.#notes.push(`first mount of ${rows.toLocaleString('en')} rows through ${transport}: ${seconds.toFixed(2)} s`)
      await mounted.unmount()
    }
    await this.#leaveOutImpossible()
    const mean = small.reduce((sum, { size }) => sum + size, 0) / small.length / 1000
    this.#notes.unshift(
      `data: one file of ${bigMiB} MiB; ${smallFiles.toLocaleString('en')} files of ${mean.toFixed(0)} KB on average in ${SMALL_FOLDERS} folders, ${smallRead.toLocaleString('en')} of them read; ${flat.toLocaleString('en')} names in one folder; a manifest of ${rows.toLocaleString('en')} rows, ${manifestMiB.toFixed(0)} MiB`,
      'objects and ext4 files are the same inodes, in the page cache; a fresh mount for each value but second passes and later epochs; ratios within a round, their median in bold',
      "tmpfs: what a page cache of 4 KiB pages gives, as FUSE's has them; ext4's are larger. Second passes are the kernel's alone (no CPU of a server)",
    )
  }

  /** Where the kernel has no passthrough, or we no privilege. */
  async #leaveOutImpossible(): Promise<void> {
    const possible: Configuration[] = [...LOCAL]
    for (const configuration of SERVED) {
      const mounted = await this.#mount(configuration, 'flat')
      const { openMode, openModeReason } = mounted.facts
      await mounted.unmount()
      if (configuration === 'fuse-native' || openMode === configuration) possible.push(configuration)
      else this.#notes.push(`left out: ${configuration} (${openModeReason ?? `the mount became ${openMode}`})`)
    }
    this.#configurations = possible
  }

  workloads(): Record<string, Workload> {
    const { flat, rows } = this.sizes
    const sequential = (blockSize: string, name: string): Workload => ({
      package: 'big',
      isOnTmpfs: true,
      repeats: 3,
      run: async (folder, probe) => {
        const job: FioJob = { engine: 'psync', pattern: 'read', blockSize }
        for (const pass of ['first', 'second']) {
          const work = async () => (await fio(join(folder, BIG_FILE), job)).mibPerSecond
          await probe(`sequential ${name}, ${pass} pass`, 'MiB/s', work)
        }
      },
    })
    const random = (engine: 'psync' | 'mmap', blockSize: string, name: string): Workload => ({
      package: 'big',
      repeats: 2,
      run: (folder, probe) =>
        probe(
          name,
          'IOPS',
          async () => (await fio(join(folder, BIG_FILE), { engine, pattern: 'randread', blockSize })).iops,
        ),
    })
    const epochs = (threads: number): Workload => ({
      package: 'small',
      run: async (folder, probe) => {
        for (let epoch = 1; epoch <= EPOCHS; epoch++) {
          await probe(smallName(threads, epoch), 'files/s', async () => {
            const seed = 100 * threads + epoch
            const [reading] = await this.#reader.epochs(folder, this.#readList, { threads, seed })
            return reading!.files / reading!.seconds
          })
        }
      },
    })
    const walk = (name: string, of: PackageName, passes: readonly string[]): Workload => ({
      package: of,
      run: async (folder, probe) => {
        for (const pass of passes) {
          const find = ['find', folder, '-type', 'f', '-printf', '%s\\n']
          await probe(`${name}, ${pass}`, 's', () => timed(find))
        }
      },
    })
    const list = (flags: string): Workload => ({
      package: 'flat',
      run: (folder, probe) =>
        probe(`ls ${flags}of ${flat.toLocaleString('en')} names`, 's', () =>
          timed(['ls', ...flags.split(' ').filter(Boolean), join(folder, 'all')]),
        ),
    })
    return {
      'sequential 1m': sequential('1m', '1 MiB'),
      'sequential 128k': sequential('128k', '128 KiB'),
      'random 4k': random('psync', '4k', 'random 4 KiB'),
      'random 128k': random('psync', '128k', 'random 128 KiB'),
      'mmap 4k': random('mmap', '4k', 'mmap random 4 KiB'),
      ...Object.fromEntries([1, 2, 8].map(threads => [`small ${threads}`, epochs(threads)])),
      walk: walk(`walk and stat of ${this.sizes.smallFiles.toLocaleString('en')} files`, 'small', ['fresh', 'warm']),
      'walk flat': walk(`walk and stat of ${flat.toLocaleString('en')} names`, 'flat', ['fresh']),
      'ls -U': list('-U '),
      ls: list(''),
      million: {
        package: 'million',
        // Its mount is a part of what is measured (`compare`).
        run: async (folder, probe) => {
          await probe(MILLION(rows), 's', () => timed(['ls', folder]))
        },
      },
    }
  }

  /** Every configuration once, in random order. */
  async compare(workload: Workload): Promise<void> {
    const round = new Map<string, Map<Configuration, Sample>>()
    for (const configuration of shuffled(this.#configurations)) {
      const probe: Probe = async (what, unit, work) => {
        const server = isLocal(configuration) ? undefined : this.#server(configuration)
        const before = server?.usages()
        const value = await work()
        const after = server?.usages()
        const sample = { value, ratio: undefined, ...difference(before, after) }
        process.stderr.write(`  ${what}, ${configuration}: ${number(value)} ${unit}\n`)
        round.set(what, (round.get(what) ?? new Map()).set(configuration, sample))
        if (!this.#results.has(what)) this.#results.set(what, { unit, samples: new Map() })
      }
      if (configuration === 'tmpfs') {
        if (workload.isOnTmpfs) await workload.run(this.#tmpfs, probe)
      } else if (configuration === 'ext4') {
        if (workload.package !== 'million') await workload.run(this.#ext4(workload.package), probe)
      } else if (workload.package === 'million') {
        await this.#mountMillion(configuration, workload, probe)
      } else {
        const mounted = await this.#mount(configuration, workload.package)
        await workload.run(mounted.path, probe)
        await mounted.unmount()
      }
    }
    for (const [what, samples] of round) {
      const plain = samples.get('ext4')?.value
      for (const [configuration, sample] of samples) {
        if (plain !== undefined && configuration !== 'ext4') sample.ratio = sample.value / plain
        const kept = this.#results.get(what)!.samples
        kept.set(configuration, [...(kept.get(configuration) ?? []), sample])
      }
    }
  }

  /** From the request to the running daemon to the end of `ls`; then the same by the command line. */
  async #mountMillion(configuration: ServedConfiguration, workload: Workload, probe: Probe): Promise<void> {
    let unmount = async () => {}
    await workload.run('', async (what, unit, _work) =>
      probe(what, unit, async () => {
        const start = performance.now()
        const mounted = await this.#mount(configuration, 'million')
        await timed(['ls', mounted.path])
        unmount = () => mounted.unmount()
        return (performance.now() - start) / 1000
      }),
    )
    await unmount()
    if (configuration === 'none') return
    const { registry, name, topHash } = this.#packages.get('million')!
    const mountpoint = join(this.folder, 'mnt/by-cli')
    const env = { BOBBIN_CACHE: this.#cache(configuration === 'fuse-native' ? 'fuse-native' : 'native') }
    const mode = configuration === 'fuse-native' ? [] : ['--open-mode', configuration]
    await probe(`bobbin mount of ${this.sizes.rows.toLocaleString('en')} rows, then ls`, 's', async () => {
      const start = performance.now()
      const mount = ['mount', '--mkdir', ...mode, `${registry}/${name}@${topHash}`, mountpoint]
      await runToEnd(process.execPath, [bobbinPath, ...mount], { env })
      await timed(['ls', mountpoint])
      return (performance.now() - start) / 1000
    })
    await runToEnd(process.execPath, [bobbinPath, 'umount', mountpoint], { env })
  }

  report(note: string, isKept: boolean): void {
    const shown = this.#configurations
    const results = [...this.#results]
    const values: Table = {
      columns: ['workload', 'unit', ...shown],
      rows: results.map(([what, { unit, samples }]) => [
        what,
        unit,
        ...shown.map(configuration => {
          const found = samples.get(configuration)
          if (found === undefined) return ''
          const ratios = found.flatMap(({ ratio }) => ratio ?? [])
          const times = ratios.length > 0 ? ` **${number(median(ratios))}**` : ''
          return `${range(found.map(({ value }) => value))}${times}`
        }),
      ]),
    }
    const served = shown.filter(configuration => !isLocal(configuration))
    const usage: Table = {
      columns: ['CPU seconds and peak MiB of bobbin-fuse + daemon', ...served],
      rows: results.map(([what, { samples }]) => [
        what,
        ...served.map(configuration => {
          const found = samples.get(configuration)
          if (found === undefined) return ''
          const of = (process: ServerProcess, key: 'cpuSeconds' | 'peakMiB') =>
            found.flatMap(({ used }) => used[process]?.[key] ?? [])
          const both = (key: 'cpuSeconds' | 'peakMiB', digits: number) =>
            (['bobbin-fuse', 'daemon'] as const)
              .flatMap(process => (of(process, key).length > 0 ? median(of(process, key)).toFixed(digits) : []))
              .join(' + ')
          return `${both('cpuSeconds', 2)} s, ${both('peakMiB', 0)} MiB`
        }),
      ]),
    }
    writeReport('mount', [...this.#notes, note], [values, usage], this.#goals(), { isKept })
  }

  #goals(): Goal[] {
    const { flat, rows, smallFiles } = this.sizes
    const goals: Goal[] = []
    const goal = (what: string, value: number | undefined, sense: Goal['sense'], goal: number) => {
      if (value !== undefined) goals.push({ what, value, sense, goal })
    }
    const ratio = (what: string, configuration: Configuration) => {
      const ratios =
        this.#results
          .get(what)
          ?.samples.get(configuration)
          ?.flatMap(sample => sample.ratio ?? []) ?? []
      return ratios.length > 0 ? median(ratios) : undefined
    }
    const value = (what: string, configuration: Configuration) => {
      const found = this.#results.get(what)?.samples.get(configuration)
      return found && median(found.map(sample => sample.value))
    }
    const atLeast = (what: string, configuration: Configuration, wanted: number) =>
      goal(`${what}, ${configuration}, of ext4`, ratio(what, configuration), '>=', wanted)
    const within = (what: string, configuration: Configuration, seconds: number) =>
      goal(`${what}, ${configuration}, seconds`, value(what, configuration), '<=', seconds)
    for (const block of ['1 MiB', '128 KiB']) {
      atLeast(`sequential ${block}, first pass`, 'passthrough', 0.95)
      atLeast(`sequential ${block}, first pass`, 'cached', 0.2)
      atLeast(`sequential ${block}, second pass`, 'cached', 0.95)
    }
    for (const what of ['random 4 KiB', 'random 128 KiB', 'mmap random 4 KiB']) atLeast(what, 'passthrough', 0.9)
    atLeast(smallName(2, 1), 'passthrough', 0.14)
    atLeast(smallName(2, 1), 'cached', 0.06)
    atLeast(smallName(2, 3), 'passthrough', 0.25)
    atLeast(smallName(2, 3), 'cached', 0.25)
    atLeast(smallName(2, 3), 'none', 0.7)
    for (const configuration of ['cached', 'passthrough', 'none'] as const) {
      within(`walk and stat of ${smallFiles.toLocaleString('en')} files, fresh`, configuration, 0.15)
      within(`ls of ${flat.toLocaleString('en')} names`, configuration, 0.7)
      within(MILLION(rows), configuration, 0.2)
    }
    const own = [...this.#results.values()].flatMap(({ samples }) =>
      [...samples.values()].flat().map(({ ownPeakMiB }) => ownPeakMiB),
    )
    goal('peak MiB of bobbin-fuse, without mapped indexes', Math.max(0, ...own), '<=', 64)
    return goals
  }

  async end(): Promise<void> {
    rmSync(this.#tmpfs, { recursive: true, force: true })
    for (const server of this.#servers.values()) await server.stop()
  }

  #mount(configuration: ServedConfiguration, name: PackageName) {
    const written = this.#packages.get(name)!
    const server = this.#server(configuration)
    return configuration === 'fuse-native' ? server.mount(written) : server.mount(written, configuration)
  }

  #server(configuration: ServedConfiguration): Served {
    return this.#servers.get(configuration === 'fuse-native' ? 'fuse-native' : 'native')!
  }

  #ext4(name: PackageName): string {
    return join(this.folder, 'ext4', name)
  }

  #cache(transport: string): string {
    return join(this.folder, `cache-${transport}`)
  }
}

function isLocal(configuration: Configuration): configuration is LocalConfiguration {
  return (LOCAL as readonly string[]).includes(configuration)
}

const TRANSPORTS = ['fuse-native', 'native'] as const
const MILLION = (rows: number) => `mount of a known package of ${rows.toLocaleString('en')} rows, until ls answers`

function smallName(threads: number, epoch: number): string {
  return `small files, ${threads} thread${threads === 1 ? '' : 's'}, epoch ${epoch}`
}

async function timed([command, ...args]: readonly string[]): Promise<number> {
  return (await runToEnd(command!, args, { discard: true })).seconds
}

function difference(before: Usages | undefined, after: Usages | undefined): Pick<Sample, 'used' | 'ownPeakMiB'> {
  const used: Partial<Record<ServerProcess, { cpuSeconds: number; peakMiB: number }>> = {}
  for (const process of ['bobbin-fuse', 'daemon'] as const) {
    const [first, last] = [before?.[process], after?.[process]]
    if (first === undefined || last === undefined) continue
    used[process] = { cpuSeconds: last.cpuSeconds - first.cpuSeconds, peakMiB: last.peakMiB }
  }
  const fuse = after?.['bobbin-fuse']
  return { used, ownPeakMiB: fuse === undefined ? 0 : fuse.peakMiB - fuse.indexMiB }
}
