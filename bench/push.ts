/**
 * `bobbin push` against quilt3's: a folder (half of it objects of 128 MiB, half of 256 KiB) as a new package, and the
 * same folder once more with one file changed. Into a real S3 server on this machine, which shares its cores with
 * whoever is measured. And `bobbin filter` of half of 1,000,000 entries, beside the opening of that package.
 */
import { appendFileSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { PutBucketVersioningCommand } from '@aws-sdk/client-s3'
import { part } from '../test/support/parts.js'
import { writeFiles } from './many-files.js'
import { writeManyRows } from './many-rows.js'
import { measure } from './measure.js'
import { interleave, writeReport } from './report.js'
import { S3Stage } from './s3-stage.js'

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
  await S3Stage.with(async stage => {
    const env = stage.freshEnv()
    const bobbin = (...args: string[]) => measure(stage.bobbin(...args), env)
    const quilt3 = (...args: string[]) => measure([part('quilt3'), '-c', PUSH, ...args], env)
    let round = 0
    await stage.client.send(
      new PutBucketVersioningCommand({ Bucket: 'bench', VersioningConfiguration: { Status: 'Enabled' } }),
    )
    const [ours, theirs] = [join(stage.folder, 'ours'), join(stage.folder, 'theirs')]
    const files = writeFiles(ours, Number(values.mib))
    writeFiles(theirs, Number(values.mib))
    await interleave(Number(values.rounds), [
      async () => {
        const name = `ours/round-${round++}`
        const target = `s3://bench/${name}`
        const { stdout } = stage.record('bobbin push', await bobbin('push', ours, target, '-m', 'm'))
        appendFileSync(join(ours, 'small/0.bin'), 'more')
        stage.record(
          'bobbin push, one file changed',
          await bobbin('push', ours, target, '-m', 'm', '--parent', stdout.trim()),
        )
      },
      async () => {
        const name = `theirs/round-${round++}`
        stage.record('quilt3 push', await quilt3(name, theirs, 'new'))
        appendFileSync(join(theirs, 'small/0.bin'), 'more')
        stage.record('quilt3 push, one file changed', await quilt3(name, theirs, 'again'))
      },
    ])

    const registry = join(stage.folder, 'registry')
    mkdirSync(join(registry, '.quilt/packages'), { recursive: true })
    mkdirSync(join(registry, '.quilt/named_packages/cv/million'), { recursive: true })
    const { path, topHash } = writeManyRows(join(stage.folder, 'manifest'), Number(values.rows))
    renameSync(path, join(registry, '.quilt/packages', topHash))
    writeFileSync(join(registry, '.quilt/named_packages/cv/million/latest'), topHash)
    await interleave(Number(values.rounds), [
      async () => {
        rmSync(env.BOBBIN_CACHE, { recursive: true, force: true })
        const from = `${registry}/cv/million@${topHash}`
        stage.record(`open ${values.rows} entries`, await bobbin('resolve', from))
        const where = 'meta.label < `500`'
        const target = `${registry}/cv/half-${round++}`
        stage.record('and filter them', await bobbin('filter', from, '--where', where, '--push', target, '-m', 'm'))
      },
    ])

    writeReport(
      'push',
      [
        `data: ${files} files of ${values.mib} MiB in all; a manifest of ${Number(values.rows).toLocaleString('en')} rows`,
        'server: versitygw on the same machine, versioned bucket; rounds interleaved; whole processes, quilt3 with its imports',
      ],
      [stage.table()],
      [
        {
          what: 'quilt3 push / bobbin push',
          value: stage.seconds('quilt3 push') / stage.seconds('bobbin push'),
          sense: '>=',
          goal: 1,
        },
        {
          what: 'the same, one file changed',
          value: stage.seconds('quilt3 push, one file changed') / stage.seconds('bobbin push, one file changed'),
          sense: '>=',
          goal: 1,
        },
      ],
    )
  })
}
