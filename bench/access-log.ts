/**
 * What the access log costs: epochs of small files through bobbin-fuse with it and without it, in turns.
 * Nothing is fetched. An open costs least with passthrough, so the log's share is largest there.
 */
import { mkdirSync, mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { median } from './measure.js'
import { adopt, hashFiles, type WrittenPackage, writePackage } from './packages.js'
import { Reader, type ReaderFile } from './reader.js'
import { interleave, range, writeReport } from './report.js'
import { Served } from './served.js'

const FILES = 12_000
const FOLDERS = 100
const EPOCHS = 4
const ROUNDS = 12
/** The log may cost three in a hundred. */
const RATIO_MIN = 0.97

const LOGS = { 'with the log': undefined, 'without it': 'accesses' } as const
type Log = keyof typeof LOGS

export async function run(): Promise<void> {
  const { values } = parseArgs({
    args: process.argv.slice(3),
    options: { rounds: { type: 'string', default: String(ROUNDS) } },
  })
  const folder = realpathSync(mkdtempSync(join(process.env.BENCH_DIR ?? tmpdir(), 'bobbin-access-log-')))
  try {
    const reader = new Reader(folder)
    const files = Array.from({ length: FILES }, (_, i): ReaderFile => {
      return { seed: i + 1, size: 20_000 + ((i * 7919) % 176_000), path: `${i % FOLDERS}/${i}.bin` }
    })
    const list = reader.list(files)
    const source = join(folder, 'source')
    mkdirSync(source)
    await reader.write(source, list)
    const hashed = hashFiles(source, files)
    const written = writePackage(
      join(folder, 'registry'),
      'bench/small',
      hashed,
      path => `file://${join(source, path)}`,
    )
    const cacheDir = join(folder, 'cache')
    adopt(cacheDir, source, hashed)
    const rates: Record<Log, number[]> = { 'with the log': [], 'without it': [] }
    const ratios: number[] = []
    for (let round = 0; round < Number(values.rounds); round++) {
      const last: Partial<Record<Log, number>> = {}
      const contenders = (Object.keys(LOGS) as Log[]).map(log => async () => {
        last[log] = await epochs(reader, { folder, cacheDir, written, list, without: LOGS[log] })
        rates[log].push(last[log])
      })
      await interleave(1, contenders)
      ratios.push(last['with the log']! / last['without it']!)
    }
    writeReport(
      'access-log',
      [
        `load: ${FILES.toLocaleString('en')} files of 108 KB on average, opened, read and closed by 2 threads, shuffled, passthrough; epochs 2 to ${EPOCHS} of a fresh mount`,
        `rounds: ${values.rounds}, in each both, in a random order`,
      ],
      [
        {
          columns: ['bobbin-fuse', 'files/s'],
          rows: (Object.keys(LOGS) as Log[]).map(log => [log, range(rates[log])]),
        },
      ],
      [{ what: 'files/s with the log, of those without it', value: median(ratios), sense: '>=', goal: RATIO_MIN }],
      { isKept: Number(values.rounds) >= ROUNDS },
    )
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

interface Load {
  readonly folder: string
  readonly cacheDir: string
  readonly written: WrittenPackage
  readonly list: string
  readonly without: string | undefined
}

/** Files a second, over all epochs but the first. */
async function epochs(reader: Reader, { folder, cacheDir, written, list, without }: Load): Promise<number> {
  const served = await Served.start('native', cacheDir, {
    mountFolder: join(folder, 'mnt'),
    ...(without !== undefined && { env: { BOBBIN_FUSE_WITHOUT: without } }),
  })
  try {
    const mounted = await served.mount(written, 'passthrough')
    const readings = await reader.epochs(mounted.path, list, { threads: 2, epochs: EPOCHS, seed: 1 })
    const warm = readings.slice(1)
    await mounted.unmount()
    return warm.reduce((sum, { files }) => sum + files, 0) / warm.reduce((sum, { seconds }) => sum + seconds, 0)
  } finally {
    await served.stop()
  }
}
