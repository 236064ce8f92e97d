/**
 * `bobbin push` against quilt3's: a folder (half of it objects of 128 MiB, half of 256 KiB) as a new package, and the
 * same folder once more with one file changed. Into a real S3 server on this machine, which shares its cores with
 * whoever is measured. And `bobbin filter` of half of 1,000,000 entries, beside the opening of that package.
 */
import { appendFileSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { CreateBucketCommand, PutBucketVersioningCommand, S3Client } from '@aws-sdk/client-s3'
import { bobbinPath, part } from '../test/support/parts.js'
import { startS3 } from '../test/support/s3-server.js'
import { writeFiles } from './many-files.js'
import { writeManyRows } from './many-rows.js'
import { type Measured, measure, median } from './measure.js'
import { interleave, secondsTable, writeReport } from './report.js'

const PUSH = `
import sys, quilt3
name, folder, browse = sys.argv[1:]
package = quilt3.Package.browse(name, registry="s3://bench") if browse == "again" else quilt3.Package()
package.set_dir("/", folder)
package.push(name, "s3://bench", message="m")
`

export async function run(): Promise<void> {
  const { values } = parseArgs({
    args: process.argv.slice(3),
    options: {
      rows: { type: 'string', default: '1000000' },
      rounds: { type: 'string', default: '3' },
      mib: { type: 'string', default: '1024' },
    },
  })
  const folder = mkdtempSync(join(process.env.BENCH_DIR ?? tmpdir(), 'bobbin-bench-'))
  const server = await startS3('versitygw')
  const client = new S3Client({
    endpoint: server.endpoint,
    region: 'us-east-1',
    forcePathStyle: true,
    credentials: { accessKeyId: server.accessKey, secretAccessKey: server.secretKey },
  })
  const env = {
    ...process.env,
    ...server.env,
    HOME: folder,
    XDG_DATA_HOME: join(folder, 'data'),
    XDG_CACHE_HOME: join(folder, 'cache'),
    BOBBIN_CACHE: join(folder, 'bobbin'),
    QUILT_DISABLE_USAGE_METRICS: 'true',
    QUILT_MINIMIZE_STDOUT: 'true',
  }
  const series: Record<string, Measured[]> = {}
  const record = (what: string, measured: Measured) => {
    series[what] = [...(series[what] ?? []), measured]
    process.stderr.write(`${what}: ${measured.seconds.toFixed(2)} s, ${measured.peakMiB.toFixed(0)} MiB\n`)
    return measured
  }
  const bobbin = (...args: string[]) => measure([process.execPath, bobbinPath, ...args], env)
  const quilt3 = (...args: string[]) => measure([part('quilt3'), '-c', PUSH, ...args], env)
  let round = 0
  try {
    await client.send(new CreateBucketCommand({ Bucket: 'bench' }))
    await client.send(
      new PutBucketVersioningCommand({ Bucket: 'bench', VersioningConfiguration: { Status: 'Enabled' } }),
    )
    const [ours, theirs] = [join(folder, 'ours'), join(folder, 'theirs')]
    const files = writeFiles(ours, Number(values.mib))
    writeFiles(theirs, Number(values.mib))
    await interleave(Number(values.rounds), [
      async () => {
        const name = `ours/round-${round++}`
        const target = `s3://bench/${name}`
        const { stdout } = record('bobbin push', await bobbin('push', ours, target, '-m', 'm'))
        appendFileSync(join(ours, 'small/0.bin'), 'more')
        record(
          'bobbin push, one file changed',
          await bobbin('push', ours, target, '-m', 'm', '--parent', stdout.trim()),
        )
      },
      async () => {
        const name = `theirs/round-${round++}`
        record('quilt3 push', await quilt3(name, theirs, 'new'))
        appendFileSync(join(theirs, 'small/0.bin'), 'more')
        record('quilt3 push, one file changed', await quilt3(name, theirs, 'again'))
      },
    ])

    const registry = join(folder, 'registry')
    mkdirSync(join(registry, '.quilt/packages'), { recursive: true })
    mkdirSync(join(registry, '.quilt/named_packages/cv/million'), { recursive: true })
    const { path, topHash } = writeManyRows(join(folder, 'manifest'), Number(values.rows))
    renameSync(path, join(registry, '.quilt/packages', topHash))
    writeFileSync(join(registry, '.quilt/named_packages/cv/million/latest'), topHash)
    await interleave(Number(values.rounds), [
      async () => {
        rmSync(env.BOBBIN_CACHE, { recursive: true, force: true })
        const from = `${registry}/cv/million@${topHash}`
        record(`open ${values.rows} entries`, await bobbin('resolve', from))
        const where = 'meta.label < `500`'
        const target = `${registry}/cv/half-${round++}`
        record('and filter them', await bobbin('filter', from, '--where', where, '--push', target, '-m', 'm'))
      },
    ])

    const seconds = (what: string) => median(series[what]!.map(measured => measured.seconds))
    writeReport(
      'push',
      [
        `data: ${files} files of ${values.mib} MiB in all; a manifest of ${Number(values.rows).toLocaleString('en')} rows`,
        'server: versitygw on the same machine, versioned bucket; rounds interleaved; whole processes, quilt3 with its imports',
      ],
      [
        secondsTable(
          Object.entries(series).map(([what, measured]) => {
            return { what, seconds: measured.map(m => m.seconds), peakMiB: measured.map(m => m.peakMiB) }
          }),
        ),
      ],
      [
        {
          what: 'quilt3 push / bobbin push',
          value: seconds('quilt3 push') / seconds('bobbin push'),
          sense: '>=',
          goal: 1,
        },
        {
          what: 'the same, one file changed',
          value: seconds('quilt3 push, one file changed') / seconds('bobbin push, one file changed'),
          sense: '>=',
          goal: 1,
        },
      ],
    )
  } finally {
    client.destroy()
    await server.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}
