/**
 * Against what users have today: `quilt3.Package.browse` and `quilt3 install`; and against the least
 * that such work takes: `openssl dgst` for hashing, plain parallel GETs with hashing for installing.
 *
 * A manifest of 1,000,000 rows, and a package of 2 GiB (8 objects of 128 MiB, 4,096 of 256 KiB), in a
 * real S3 server on this machine, which shares its cores with whoever is measured.
 */
import { createReadStream, mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { CreateBucketCommand, PutObjectCommand, S3Client } from '@aws-sdk/client-s3'
import { bobbinPath, part } from '../test/support/parts.js'
import { startS3 } from '../test/support/s3-server.js'
import { writeFiles } from './many-files.js'
import { writeManyRows } from './many-rows.js'
import { type Measured, measure, median } from './measure.js'
import { interleave, type Series, secondsTable, writeReport } from './report.js'

const BROWSE = `
import sys, time
import quilt3
start = time.monotonic()
package = quilt3.Package.browse("cv/million", registry="s3://bench", top_hash=sys.argv[1])
print(time.monotonic() - start)
`
const PUSH = `
import sys, quilt3
package = quilt3.Package()
package.set_dir("/", sys.argv[1])
package.push("cv/files", "s3://bench", message="two gibibytes")
`

export async function run(): Promise<void> {
  const { values } = parseArgs({
    args: process.argv.slice(3),
    options: {
      rows: { type: 'string', default: '1000000' },
      rounds: { type: 'string', default: '3' },
      mib: { type: 'string', default: '2048' },
    },
  })
  const rounds = Number(values.rounds)
  const folder = mkdtempSync(join(process.env.BENCH_DIR ?? tmpdir(), 'bobbin-bench-'))
  const server = await startS3('versitygw')
  const client = new S3Client({
    endpoint: server.endpoint,
    region: 'us-east-1',
    forcePathStyle: true,
    credentials: { accessKeyId: server.accessKey, secretAccessKey: server.secretKey },
  })
  const series: Record<string, Measured[]> = {}
  const record = (what: string, measured: Measured) => {
    series[what] = [...(series[what] ?? []), measured]
    process.stderr.write(`${what}: ${measured.seconds.toFixed(2)} s, ${measured.peakMiB.toFixed(0)} MiB\n`)
  }
  let fresh = 0
  const freshEnv = () => {
    const home = join(folder, `home-${fresh++}`)
    const xdg = {
      HOME: home,
      XDG_DATA_HOME: join(home, 'data'),
      XDG_CACHE_HOME: join(home, 'cache'),
      BOBBIN_CACHE: join(home, 'bobbin'),
    }
    return { ...process.env, ...server.env, ...xdg, QUILT_DISABLE_USAGE_METRICS: 'true', QUILT_MINIMIZE_STDOUT: 'true' }
  }
  const bobbin = (...args: string[]) => [process.execPath, bobbinPath, ...args]
  try {
    await client.send(new CreateBucketCommand({ Bucket: 'bench' }))

    const { path, topHash } = writeManyRows(join(folder, 'manifest'), Number(values.rows))
    const manifestMiB = statSync(path).size / 2 ** 20
    await client.send(
      new PutObjectCommand({
        Bucket: 'bench',
        Key: `.quilt/packages/${topHash}`,
        Body: createReadStream(path),
        ContentLength: statSync(path).size,
      }),
    )
    for (const pointer of ['1700000000', 'latest']) {
      await client.send(
        new PutObjectCommand({ Bucket: 'bench', Key: `.quilt/named_packages/cv/million/${pointer}`, Body: topHash }),
      )
    }
    await interleave(rounds, [
      async () => {
        const measured = await measure([part('quilt3'), '-c', BROWSE, topHash], freshEnv())
        // Of quilt3 only the call counts, without Python's start and its imports; of Bobbin the whole process.
        record('quilt3.Package.browse', { ...measured, seconds: Number(measured.stdout.split('\n').at(-1)) })
      },
      async () => {
        const env = freshEnv()
        record('bobbin resolve, first time', await measure(bobbin('resolve', `s3://bench/cv/million@${topHash}`), env))
        record('bobbin resolve, second time', await measure(bobbin('resolve', `s3://bench/cv/million@${topHash}`), env))
        rmSync(env.HOME, { recursive: true, force: true })
      },
    ])

    const source = join(folder, 'source')
    const files = writeFiles(source, Number(values.mib))
    await measure([part('quilt3'), '-c', PUSH, source], freshEnv())
    const env = freshEnv()
    const installed = join(folder, 'installed')
    await measure(bobbin('install', 's3://bench/cv/files', installed), env)
    await interleave(rounds, [
      async () => record('bobbin verify', await measure(bobbin('verify', 's3://bench/cv/files', installed), env)),
      async () =>
        record(
          'openssl dgst -sha256, 2 at a time',
          await measure([
            'sh',
            '-c',
            `find ${installed} -type f -print0 | xargs -0 -P2 -n64 openssl dgst -sha256 >/dev/null`,
          ]),
        ),
    ])
    rmSync(installed, { recursive: true })
    const target = () => join(folder, `target-${fresh++}`)
    await interleave(rounds, [
      async () => {
        const to = target()
        record('bobbin install', await measure(bobbin('install', 's3://bench/cv/files', to), freshEnv()))
        rmSync(to, { recursive: true })
      },
      async () => {
        const to = target()
        record(
          'quilt3 install',
          await measure(
            [
              part('quilt3'),
              '-c',
              'import sys, quilt3; quilt3.Package.install("cv/files", registry="s3://bench", dest=sys.argv[1])',
              to,
            ],
            freshEnv(),
          ),
        )
        rmSync(to, { recursive: true })
      },
      async () => {
        const to = target()
        mkdirSync(to)
        record(
          'parallel GET with hashing',
          await measure(
            [process.execPath, new URL('./parallel-get.js', import.meta.url).pathname, to, 'bench', 'cv/files/'],
            { ...freshEnv() },
          ),
        )
        rmSync(to, { recursive: true })
      },
    ])
    const seconds = (what: string) => median(series[what]!.map(measured => measured.seconds))
    const peak = (what: string) => median(series[what]!.map(measured => measured.peakMiB))
    writeReport(
      'quilt3',
      [
        `data: a manifest of ${Number(values.rows).toLocaleString('en')} rows, ${manifestMiB.toFixed(0)} MiB; ${files} files of ${values.mib} MiB in all`,
        'server: versitygw on the same machine; rounds interleaved; of quilt3.Package.browse only the call, of the others the whole process',
      ],
      [
        secondsTable(
          Object.entries(series).map(
            ([what, measured]): Series => ({
              what,
              seconds: measured.map(m => m.seconds),
              peakMiB: measured.map(m => m.peakMiB),
            }),
          ),
        ),
      ],
      [
        {
          what: 'browse / resolve, time',
          value: seconds('quilt3.Package.browse') / seconds('bobbin resolve, first time'),
          sense: '>=',
          goal: 5,
        },
        {
          what: 'resolve / browse, memory',
          value: peak('bobbin resolve, first time') / peak('quilt3.Package.browse'),
          sense: '<=',
          goal: 0.2,
        },
        {
          what: 'resolve, second time, seconds',
          value: seconds('bobbin resolve, second time'),
          sense: '<=',
          goal: 0.2,
        },
        {
          what: 'openssl / verify',
          value: seconds('openssl dgst -sha256, 2 at a time') / seconds('bobbin verify'),
          sense: '>=',
          goal: 0.9,
        },
        {
          what: 'quilt3 install / bobbin install',
          value: seconds('quilt3 install') / seconds('bobbin install'),
          sense: '>=',
          goal: 1,
        },
        {
          what: 'parallel GET with hashing / bobbin install',
          value: seconds('parallel GET with hashing') / seconds('bobbin install'),
          sense: '>=',
          goal: 0.9,
        },
      ],
    )
  } finally {
    client.destroy()
    await server.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}
