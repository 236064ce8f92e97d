/**
 * Against what users have today: `quilt3.Package.browse` and `quilt3 install`; and against the least
 * that such work takes: `openssl dgst` for hashing, plain parallel GETs with hashing for installing.
 *
 * A manifest of 1,000,000 rows, and a package of 2 GiB (8 objects of 128 MiB, 4,096 of 256 KiB), in a
 * real S3 server on this machine, which shares its cores with whoever is measured.
 */
import { createReadStream, mkdirSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { PutObjectCommand } from '@aws-sdk/client-s3'
import { part } from '../test/support/parts.js'
import { writeFiles } from './many-files.js'
import { writeManyRows } from './many-rows.js'
import { measure } from './measure.js'
import { interleave, writeReport } from './report.js'
import { S3Stage } from './s3-stage.js'

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
  let targets = 0
  await S3Stage.with(async stage => {
    const { path, topHash } = writeManyRows(join(stage.folder, 'manifest'), Number(values.rows))
    const manifestMiB = statSync(path).size / 2 ** 20
    await stage.client.send(
      new PutObjectCommand({
        Bucket: 'bench',
        Key: `.quilt/packages/${topHash}`,
        Body: createReadStream(path),
        ContentLength: statSync(path).size,
      }),
    )
    for (const pointer of ['1700000000', 'latest']) {
      await stage.client.send(
        new PutObjectCommand({ Bucket: 'bench', Key: `.quilt/named_packages/cv/million/${pointer}`, Body: topHash }),
      )
    }
    await interleave(rounds, [
      async () => {
        const measured = await measure([part('quilt3'), '-c', BROWSE, topHash], stage.freshEnv())
        // Of quilt3 only the call counts, without Python's start and its imports; of Bobbin the whole process.
        stage.record('quilt3.Package.browse', { ...measured, seconds: Number(measured.stdout.split('\n').at(-1)) })
      },
      async () => {
        const env = stage.freshEnv()
        stage.record(
          'bobbin resolve, first time',
          await measure(stage.bobbin('resolve', `s3://bench/cv/million@${topHash}`), env),
        )
        stage.record(
          'bobbin resolve, second time',
          await measure(stage.bobbin('resolve', `s3://bench/cv/million@${topHash}`), env),
        )
        rmSync(env.HOME, { recursive: true, force: true })
      },
    ])

    const source = join(stage.folder, 'source')
    const files = writeFiles(source, Number(values.mib))
    await measure([part('quilt3'), '-c', PUSH, source], stage.freshEnv())
    const env = stage.freshEnv()
    const installed = join(stage.folder, 'installed')
    await measure(stage.bobbin('install', 's3://bench/cv/files', installed), env)
    await interleave(rounds, [
      async () =>
        stage.record('bobbin verify', await measure(stage.bobbin('verify', 's3://bench/cv/files', installed), env)),
      async () =>
        stage.record(
          'openssl dgst -sha256, 2 at a time',
          await measure([
            'sh',
            '-c',
            `find ${installed} -type f -print0 | xargs -0 -P2 -n64 openssl dgst -sha256 >/dev/null`,
          ]),
        ),
    ])
    rmSync(installed, { recursive: true })
    const target = () => join(stage.folder, `target-${targets++}`)
    await interleave(rounds, [
      async () => {
        const to = target()
        stage.record(
          'bobbin install',
          await measure(stage.bobbin('install', 's3://bench/cv/files', to), stage.freshEnv()),
        )
        rmSync(to, { recursive: true })
      },
      async () => {
        const to = target()
        stage.record(
          'quilt3 install',
          await measure(
            [
              part('quilt3'),
              '-c',
              'import sys, quilt3; quilt3.Package.install("cv/files", registry="s3://bench", dest=sys.argv[1])',
              to,
            ],
            stage.freshEnv(),
          ),
        )
        rmSync(to, { recursive: true })
      },
      async () => {
        const to = target()
        mkdirSync(to)
        stage.record(
          'parallel GET with hashing',
          await measure(
            [process.execPath, new URL('./parallel-get.js', import.meta.url).pathname, to, 'bench', 'cv/files/'],
            stage.freshEnv(),
          ),
        )
        rmSync(to, { recursive: true })
      },
    ])
    writeReport(
      'quilt3',
      [
        `data: a manifest of ${Number(values.rows).toLocaleString('en')} rows, ${manifestMiB.toFixed(0)} MiB; ${files} files of ${values.mib} MiB in all`,
        'server: versitygw on the same machine; rounds interleaved; of quilt3.Package.browse only the call, of the others the whole process',
      ],
      [stage.table()],
      [
        {
          what: 'browse / resolve, time',
          value: stage.seconds('quilt3.Package.browse') / stage.seconds('bobbin resolve, first time'),
          sense: '>=',
          goal: 5,
        },
        {
          what: 'resolve / browse, memory',
          value: stage.peakMiB('bobbin resolve, first time') / stage.peakMiB('quilt3.Package.browse'),
          sense: '<=',
          goal: 0.2,
        },
        {
          what: 'resolve, second time, seconds',
          value: stage.seconds('bobbin resolve, second time'),
          sense: '<=',
          goal: 0.2,
        },
        {
          what: 'openssl / verify',
          value: stage.seconds('openssl dgst -sha256, 2 at a time') / stage.seconds('bobbin verify'),
          sense: '>=',
          goal: 0.9,
        },
        {
          what: 'quilt3 install / bobbin install',
          value: stage.seconds('quilt3 install') / stage.seconds('bobbin install'),
          sense: '>=',
          goal: 1,
        },
        {
          what: 'parallel GET with hashing / bobbin install',
          value: stage.seconds('parallel GET with hashing') / stage.seconds('bobbin install'),
          sense: '>=',
          goal: 0.9,
        },
      ],
    )
  })
}
