/**
 * The sidecar beside what people use today, on the same images in the page cache: torch on raw files,
 * webdataset on a tar (local, from nginx), mosaicml-streaming, litData; then a cold epoch over a link
 * with latency. Rounds are interleaved, ratios are made within a round, and their median is told.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, realpathSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { type PlanAnswer, RunningLoader } from '../test/support/loader.js'
import { part, repository } from '../test/support/parts.js'
import { machineUse, type Use } from './machine-use.js'
import { median } from './measure.js'
import { adopt, hashFiles, type WrittenPackage, writePackage } from './packages.js'
import { Reader, type ReaderFile } from './reader.js'
import { type Goal, interleave, number, range, type Table, writeReport } from './report.js'
import { runToEnd } from './run.js'
import { startSlowS3 } from './slow-s3.js'

const FULL = { images: 4000, tiny: 4000, rounds: 5, epochs: 3, cold: 4000 }
const QUICK = { images: 400, tiny: 400, rounds: 1, epochs: 1, cold: 400 }
type Sizes = typeof FULL

const BATCH = 64
const LATENCY_MS = 50
const LINKS_MBPS = [500, 1000]
const NGINX_PORT = 18_765
const TOKEN = 'bench-token-0123456789'
const PYTHON_MS = 120_000
const SETTLE_MS = 3000
const WARM_UP_STEPS = 20

interface EpochRun {
  readonly seconds: number[]
  readonly samples: number
  readonly bytes: number
}

export async function run(): Promise<void> {
  const { values } = parseArgs({
    args: process.argv.slice(3),
    options: { rounds: { type: 'string' }, quick: { type: 'boolean', default: false }, only: { type: 'string' } },
  })
  const sizes = values.quick ? QUICK : FULL
  const folder = realpathSync(mkdtempSync(join(process.env.BENCH_DIR ?? tmpdir(), 'bobbin-bench-')))
  const bench = new LoaderBench(folder, sizes, Number(values.rounds ?? sizes.rounds))
  const parts = { epochs: () => bench.epochs(), serving: () => bench.serving(), cold: () => bench.cold() }
  try {
    const [load] = loadavg()
    await bench.prepare()
    for (const [name, work] of Object.entries(parts)) if (name.includes(values.only ?? '')) await work()
    bench.report(load!, !values.quick && values.only === undefined)
  } finally {
    await bench.end()
    rmSync(folder, { recursive: true, force: true })
  }
}

class LoaderBench {
  readonly #images: string
  readonly #values = new Map<string, number[]>()
  readonly #uses = new Map<string, Use[]>()
  readonly #notes: string[] = []
  readonly #goals: Goal[] = []
  readonly #tables: Table[] = []
  #loader!: RunningLoader
  #image!: WrittenPackage
  #tiny!: WrittenPackage
  #tcp = ''
  #listening: readonly string[] = []
  /** Of sidecar and daemon. */
  #pids: readonly number[] = []
  #drain = ''

  constructor(
    private readonly folder: string,
    private readonly sizes: Sizes,
    private readonly rounds: number,
  ) {
    this.#images = join(folder, 'images')
  }

  async prepare(): Promise<void> {
    const { folder } = this
    const reader = new Reader(folder)
    this.#drain = join(folder, 'drain')
    execFileSync('gcc', ['-D_GNU_SOURCE', '-O2', '-o', this.#drain, join(repository, 'bench/drain.c')])
    const registry = join(folder, 'registry')
    const loader = new RunningLoader({ folder })
    const write = async (name: string, count: number, size: (i: number) => number) => {
      const files = Array.from({ length: count }, (_, i): ReaderFile => {
        return { seed: i + size(0), size: size(i), path: `${String(i).padStart(6, '0')}.jpg` }
      })
      const own = join(folder, name)
      mkdirSync(own)
      await reader.write(own, reader.list(files))
      const hashed = hashFiles(own, files)
      adopt(loader.cacheDir, own, hashed)
      return writePackage(registry, `bench/${name}`, hashed, path => `file://${own}/${path}`)
    }
    // 56 to 156 KB, 106 on average.
    this.#image = await write('images', this.sizes.images, i => 56_000 + ((i * 104_729) % 100_001))
    this.#tiny = await write('tiny', this.sizes.tiny, () => 10_000)
    const tokenFile = join(folder, 'token')
    writeFileSync(tokenFile, TOKEN)
    this.#loader = loader
    // The registry, and the folders beside it where its objects are.
    const allowed = [registry, folder].map(path => `file://${path}`)
    this.#listening = [
      '--listen',
      '127.0.0.1:0',
      '--token-file',
      tokenFile,
      ...allowed.flatMap(place => ['--allow', place]),
    ]
    await loader.start('--socket', loader.socket, ...this.#listening)
    this.#tcp = loader.addresses.find(address => address.startsWith('http:'))!
    const { daemon } = await loader.cli.json<{ daemon: { pid: number } }>('status')
    this.#pids = [loader.process.pid!, daemon.pid]
    await this.#python('prepare', {
      files: this.#images,
      mosaic: join(folder, 'mosaic'),
      litdata: join(folder, 'litdata'),
    })
    this.#startNginx()
    const bytes = readdirSync(this.#images).reduce((sum, name) => sum + statSync(join(this.#images, name)).size, 0)
    this.#notes.push(
      `data: ${this.sizes.images.toLocaleString('en')} files of ${(bytes / this.sizes.images / 1000).toFixed(0)} KB on average, in the page cache, and ${this.sizes.tiny.toLocaleString('en')} of 10 KB; batches of ${BATCH}; the sidecar's objects are the same inodes as the raw files`,
      `versions: ${this.#versions()}`,
    )
  }

  /** Whole epochs of Python programs. */
  async epochs(): Promise<void> {
    const plan = await this.#plan(this.#image)
    await this.#writeTars(plan)
    const shards = this.#shardNames(plan)
    const local = shards.map(name => join(this.folder, 'wds', name))
    const nginx = shards.map(name => `http://127.0.0.1:${NGINX_PORT}/wds/${name}`)
    const served = shards.map(name => `${this.#tcp.replace('://', `://bobbin:${TOKEN}@`)}/wds/${name}`)
    const contenders: { name: string; options: object }[] = []
    for (const workers of [0, 2]) {
      const add = (name: string, options: object) =>
        contenders.push({ name: `${name}, ${workers} workers`, options: { workers, ...options } })
      add('torch, raw files', { contender: 'raw' })
      add('bobbin, paths', { contender: 'paths' })
      add('bobbin, tar', { contender: 'tar' })
      add('webdataset, local tar', { contender: 'webdataset', urls: local })
      add('webdataset, nginx', { contender: 'webdataset', urls: nginx })
      add('webdataset, bobbin', { contender: 'webdataset', urls: served })
      add('mosaicml-streaming', { contender: 'mosaic' })
      add('litData', { contender: 'litdata' })
    }
    await interleave(
      this.rounds,
      contenders.map(({ name, options }) => async () => {
        const before = machineUse(this.#pids)
        const { seconds, samples, bytes } = await this.#epochs(options)
        const per = median(seconds)
        this.#add(name, samples / per)
        this.#uses.set(name, [...(this.#uses.get(name) ?? []), before.since(seconds.length + 1, bytes)])
        process.stderr.write(`${name}: ${number(samples / per)} samples/s\n`)
      }),
    )
    this.#tables.push({
      columns: ['warm epochs', 'samples/s, median (range)', 'CPU of daemon and sidecar, s/GB'],
      rows: contenders.map(({ name }) => [
        name,
        range(this.#get(name)),
        name.includes('bobbin') ? number(median(this.#uses.get(name)!.map(use => use.cpuSecondsPerGb))) : '',
      ]),
    })
    for (const workers of [0, 2]) {
      const at = (name: string) => `${name}, ${workers} workers`
      this.#ratio(`paths, of torch on raw files, ${workers} workers`, at('bobbin, paths'), at('torch, raw files'), 0.95)
      this.#ratio(
        `tar into webdataset, of nginx, ${workers} workers`,
        at('webdataset, bobbin'),
        at('webdataset, nginx'),
        0.93,
      )
    }
  }

  /** The sidecar alone, drained by a program that does nothing else; and how long one batch takes. */
  async serving(): Promise<void> {
    const plan = await this.#plan(this.#image)
    const shards = this.#shardNames(plan).map(name => `/wds/${name}`)
    await this.#writeTars(plan)
    const rehash = new RunningLoader({ folder: this.folder })
    const rehashSocket = join(this.folder, 'rehash.sock')
    await rehash.start('--rehash', '--socket', rehashSocket, ...this.#listening)
    const rehashTcp = new URL(rehash.addresses.find(address => address.startsWith('http:'))!).port
    const drained = (name: string, address: string) => async () => {
      const { stdout } = await runToEnd(this.#drain, [address, '2', ...shards], { env: { TOKEN } })
      const [bytes, seconds] = stdout.split(' ').map(Number)
      this.#add(name, bytes! / seconds! / 1e6)
    }
    const names = {
      nginx: 'nginx, sendfile of the same tars, unix socket',
      sidecar: 'sidecar, unix socket',
      rehash: 'sidecar --rehash, unix socket',
      nginxTcp: 'nginx, TCP',
      sidecarTcp: 'sidecar, TCP',
      rehashTcp: 'sidecar --rehash, TCP',
    }
    await interleave(this.rounds, [
      drained(names.nginx, join(this.folder, 'nginx.sock')),
      drained(names.sidecar, this.#loader.socket),
      drained(names.rehash, rehashSocket),
      drained(names.nginxTcp, String(NGINX_PORT)),
      drained(names.sidecarTcp, new URL(this.#tcp).port),
      drained(names.rehashTcp, rehashTcp),
    ])
    await rehash.end()
    this.#tables.push({
      columns: ['one connection, drained', 'MB/s, median (range)'],
      rows: Object.values(names).map(name => [name, range(this.#get(name))]),
    })
    this.#ratio("sidecar, of nginx's sendfile, unix socket", names.sidecar, names.nginx, 0.8)
    this.#ratio("sidecar, of nginx's sendfile, TCP", names.sidecarTcp, names.nginxTcp, 0.8)
    this.#ratio("sidecar --rehash, of nginx's sendfile, unix socket", names.rehash, names.nginx, 0.45)
    this.#ratio("sidecar --rehash, of nginx's sendfile, TCP", names.rehashTcp, names.nginxTcp, 0.45)

    const steps = Math.floor(this.sizes.images / BATCH)
    const { taken, first } = await this.#python<Record<'taken' | 'first', Record<'paths' | 'tar', number[]>>>(
      'latency',
      {
        reference: reference(this.#image),
        epochs: this.sizes.epochs * 2,
        steps: Math.min(steps, WARM_UP_STEPS * 3),
      },
    )
    this.#tables.push({
      columns: [`a batch of ${BATCH}, asked for and read`, 'ms, median (range)'],
      rows: [
        ['paths', range(taken.paths)],
        ['tar', range(taken.tar)],
        ['first of an epoch, paths', range(first.paths)],
        ['first of an epoch, tar', range(first.tar)],
      ],
    })
    this.#goals.push(
      { what: 'p50 of a batch, paths, ms', value: median(taken.paths), sense: '<=', goal: 3 },
      { what: 'p50 of a batch, tar, ms', value: median(taken.tar), sense: '<=', goal: 10 },
      { what: 'first batch of an epoch, ms', value: median([...first.paths, ...first.tar]), sense: '<=', goal: 20 },
    )

    for (let round = 0; round < this.rounds; round++) {
      const { alone, paths, tar } = await this.#python<Record<'alone' | 'paths' | 'tar', number>>('per_object', {
        reference: reference(this.#tiny),
      })
      this.#add('10 KB, a GET each', this.sizes.tiny / alone)
      this.#add('10 KB, batches by paths', this.sizes.tiny / paths)
      this.#add('10 KB, batches as tar', this.sizes.tiny / tar)
    }
    const tiny = ['10 KB, a GET each', '10 KB, batches by paths', '10 KB, batches as tar']
    this.#tables.push({
      columns: ['one Python client', 'objects/s, median (range)'],
      rows: tiny.map(name => [name, range(this.#get(name))]),
    })
    this.#ratio('batches by paths, of a GET each, 10 KB', tiny[1]!, tiny[0]!, 10)
    this.#ratio('batches as tar, of a GET each, 10 KB', tiny[2]!, tiny[0]!, 10)
  }

  /** An empty store, and links with latency. The server that plays the far end has its share of this machine's cores. */
  async cold(): Promise<void> {
    const rows: string[][] = []
    for (const mbps of LINKS_MBPS) {
      const bytesPerSecond = mbps * 125_000
      const s3 = await startSlowS3(this.folder, { latencyMs: LATENCY_MS, bytesPerSecond })
      try {
        const { written, bytes } = this.#coldPackage(path => s3.physicalKey(`images/${path}`))
        const limit = bytes / bytesPerSecond + LATENCY_MS / 1000
        rows.push([`${mbps} Mb/s, the link alone`, number(limit)])
        for (let round = 0; round < this.rounds; round++)
          for (const transport of ['paths', 'tar'])
            this.#add(`${mbps} Mb/s, ${transport}`, await this.#coldEpoch(written, transport, s3.env))
        for (const transport of ['paths', 'tar']) {
          const name = `${mbps} Mb/s, ${transport}`
          rows.push([name, range(this.#get(name))])
          const value = median(this.#get(name)) / limit
          this.#goals.push({ what: `cold epoch, of the link's limit, ${name}`, value, sense: '<=', goal: 1.2 })
        }
      } finally {
        await s3.stop()
      }
    }
    const objects = this.sizes.cold.toLocaleString('en')
    this.#tables.push({ columns: [`cold: ${objects} objects, ${LATENCY_MS} ms away`, 'seconds, median (range)'], rows })
  }

  #coldPackage(physicalKey: (path: string) => string): { readonly written: WrittenPackage; readonly bytes: number } {
    const files = readdirSync(this.#images)
      .slice(0, this.sizes.cold)
      .map((path, i): ReaderFile => ({ seed: i, path, size: statSync(join(this.#images, path)).size }))
    const registry = join(this.folder, 'registry')
    const written = writePackage(registry, 'bench/cold', hashFiles(this.#images, files), physicalKey)
    return { written, bytes: files.reduce((sum, { size }) => sum + size, 0) }
  }

  /** Seconds. */
  async #coldEpoch(written: WrittenPackage, transport: string, env: Readonly<Record<string, string>>): Promise<number> {
    const own = mkdtempSync(join(this.folder, 'cold-'))
    const loader = new RunningLoader({ folder: own, env })
    try {
      await loader.start()
      // Sidecars start before what reads from them.
      await sleep(SETTLE_MS)
      const options = { reference: reference(written), transport }
      const { epoch } = await this.#python<{ epoch: number }>('cold', options, loader)
      return epoch
    } finally {
      await loader.stop()
      rmSync(own, { recursive: true, force: true })
    }
  }

  report(load: number, isKept: boolean): void {
    this.#notes.push(`rounds: ${this.rounds}; load average before: ${load.toFixed(1)}`)
    writeReport('loader', this.#notes, this.#tables, this.#goals, { isKept })
  }

  async end(): Promise<void> {
    spawnSync('nginx', ['-c', join(this.folder, 'nginx.conf'), '-s', 'stop'], { stdio: 'ignore' })
    await this.#loader?.stop()
  }

  #add(name: string, value: number): void {
    const values = this.#values.get(name)
    if (values === undefined) this.#values.set(name, [value])
    else values.push(value)
  }

  #get(name: string): number[] {
    return this.#values.get(name)!
  }

  /** Round by round. */
  #ratio(what: string, name: string, base: string, goal: number): void {
    const bases = this.#get(base)
    const value = median(this.#get(name).map((own, i) => own / bases[i]!))
    this.#goals.push({ what, value, sense: '>=', goal })
  }

  #plan({ registry, name, topHash }: WrittenPackage): Promise<PlanAnswer> {
    const batch = { global: BATCH, tail: 'uneven' }
    return this.#loader.plan({ package: `${registry}/${name}@${topHash}`, batch, meta: null })
  }

  #shardNames({ shards, shardsPerEpoch }: PlanAnswer): string[] {
    const base = shards.replace('{epoch}', '0').replace('{world}', '1').replace('{rank}', '0')
    return Array.from({ length: shardsPerEpoch }, (_, i) => base.replace('{shard}', String(i).padStart(6, '0')))
  }

  /** What the sidecar serves, as files. */
  async #writeTars(plan: PlanAnswer): Promise<void> {
    const own = join(this.folder, 'wds')
    mkdirSync(own, { recursive: true })
    for (const name of this.#shardNames(plan)) {
      const { body } = await this.#loader.ask(`/wds/${name}`)
      writeFileSync(join(own, name), body)
    }
  }

  async #epochs(options: object): Promise<EpochRun> {
    return this.#python<EpochRun>('epochs', {
      epochs: this.sizes.epochs,
      files: this.#images,
      mosaic: join(this.folder, 'mosaic'),
      litdata: join(this.folder, 'litdata'),
      reference: reference(this.#image),
      ...options,
    })
  }

  async #python<T>(work: string, options: object, loader = this.#loader): Promise<T> {
    const script = join(repository, 'bench/loader_epoch.py')
    const { stdout } = await runToEnd(part('loader'), ['-B', script, JSON.stringify({ work, ...options })], {
      env: { PYTHONPATH: join(repository, 'loader/python/src'), BOBBIN_SIDECAR: `unix:${loader.socket}` },
      timeoutMs: PYTHON_MS,
    })
    return JSON.parse(stdout.trimEnd().split('\n').at(-1)!) as T
  }

  #startNginx(): void {
    const { folder } = this
    const config = `
      user root; worker_processes 1; pid ${folder}/nginx.pid; error_log ${folder}/nginx.err;
      events { worker_connections 64; }
      http {
        access_log off; sendfile on; tcp_nopush on; default_type application/x-tar;
        server { listen unix:${folder}/nginx.sock; listen 127.0.0.1:${NGINX_PORT}; root ${folder}; }
      }`
    writeFileSync(join(folder, 'nginx.conf'), config)
    execFileSync('nginx', ['-c', join(folder, 'nginx.conf')], { stdio: ['ignore', 'ignore', 'ignore'] })
  }

  #versions(): string {
    const names = ['torch', 'webdataset', 'mosaicml-streaming', 'litdata']
    const script = `import importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in ${JSON.stringify(names)}))`
    const nginx = spawnSync('nginx', ['-v'], { encoding: 'utf8' }).stderr.trim().split('/')[1]
    return `${execFileSync(part('loader'), ['-c', script], { encoding: 'utf8' }).trim()}, nginx ${nginx}`
  }
}

function reference({ registry, name, topHash }: WrittenPackage): string {
  return `${registry}/${name}@${topHash}`
}
