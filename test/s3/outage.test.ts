/**
 * A server that is away for a while, with readers of all kinds at work: read, mmap, the loader, `install`, `push` and `mount`. All of them,
 * and all outages, at the same time, so that the whole takes as long as the longest outage.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { CreateBucketCommand, PutObjectCommand } from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { cannotMount } from '../support/can-mount.js'
import { Bobbin, type Outcome, runProgram } from '../support/cli.js'
import { startCutOff } from '../support/cut-off.js'
import { startLoader } from '../support/loader.js'
import { noise } from '../support/objects.js'
import { type WrittenPackage, writeRegistry } from '../support/registry.js'
import { type S3Server, s3ClientOf, startS3 } from '../support/s3-server.js'

const MIB = 2 ** 20
/** Seconds. The default I/O time-out is 30. */
const OUTAGES = [1, 5, 20]
/** Until the first bytes of the many that are asked for have come: the server goes in the middle of them. */
const CUT_AFTER_BYTES = 12 * MIB
const BUCKET = 'away'

/** Over 8 MiB: passthrough opens it before it is here. */
const FILES: Readonly<Record<string, Buffer>> = {
  'large/read': noise(17 * MIB, 1),
  'large/map': noise(17 * MIB, 2),
  ...Object.fromEntries(Array.from({ length: 16 }, (_, i) => [`small/${i}`, noise(100_000 + i, 100 + i)])),
  ...Object.fromEntries(Array.from({ length: 4 }, (_, i) => [`samples/${i}.bin`, noise(MIB + i, 200 + i)])),
}

const isSame = (path: string, from: string) => runProgram('cmp', [path, from])

/** Maps a file and takes every byte of it; a fetch that fails is a SIGBUS. */
const MAP = `
import mmap, sys
with open(sys.argv[1], 'rb') as file, open(sys.argv[2], 'rb') as right:
    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        sys.exit(0 if mapped[:] == right.read() else 9)
`

t.test(
  'a server that is away for 1, 5 and 20 s costs readers of all kinds time, and nothing else (S105)',
  { skip: cannotMount(), timeout: 300_000 },
  async t => {
    const server = await startS3('versitygw')
    t.teardown(() => server.stop())
    const folder = mkdtempSync(join(tmpdir(), 'bobbin-outage-'))
    t.teardown(() => rmSync(folder, { recursive: true, force: true }))
    const registry = join(folder, 'registry')
    const written = await publish(server, registry)
    const outcomes = await Promise.all(
      OUTAGES.map(seconds => outage(t, server, { folder, registry, written, seconds })),
    )
    for (const found of outcomes.flat()) {
      t.equal(found.outcome.status, 0, `${found.what}: ${found.outcome.stdout}${found.outcome.stderr}`)
    }
  },
)

async function publish(server: S3Server, registry: string): Promise<WrittenPackage> {
  const client = s3ClientOf(server)
  const name = 'out/age'
  const files = Object.fromEntries(
    Object.entries(FILES).map(([key, bytes]) => [key, { bytes, physicalKey: `s3://${BUCKET}/${name}/${key}` }]),
  )
  const written = await writeRegistry(registry, name, files)
  await client.send(new CreateBucketCommand({ Bucket: BUCKET }))
  for (const entry of readdirSync(registry, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name)
    const Key = path.slice(registry.length + 1)
    if (entry.isFile()) await client.send(new PutObjectCommand({ Bucket: BUCKET, Key, Body: readFileSync(path) }))
  }
  client.destroy()
  return written
}

interface Found {
  readonly what: string
  readonly outcome: Outcome
}

interface Stage {
  readonly folder: string
  readonly registry: string
  readonly written: WrittenPackage
  readonly seconds: number
}

async function outage(t: Test, server: S3Server, stage: Stage): Promise<Found[]> {
  const { registry, written, seconds } = stage
  const folder = join(stage.folder, String(seconds))
  const mountpoint = join(folder, 'mount')
  for (const name of ['mount', 'second', 'target', 'push']) mkdirSync(join(folder, name), { recursive: true })
  const way = await startCutOff(server.endpoint)
  t.teardown(() => way.stop())
  const home = { HOME: folder, XDG_DATA_HOME: folder, XDG_CONFIG_HOME: folder }
  const env = { ...server.env, ...home, AWS_ENDPOINT_URL: way.endpoint }
  const loader = await startLoader(t, { folder, env })
  const reference = `s3://${BUCKET}/${written.name}@${written.topHash}`
  await loader.cli.text('mount', reference, mountpoint)
  t.teardown(() => loader.cli.try('umount', mountpoint, '--force'))
  const plan = await loader.plan({ package: reference, select: ['samples/*'], batch: { global: 4 } })
  writeFileSync(join(folder, 'push', 'file'), noise(9 * MIB, seconds))

  const here = (key: string) => join(mountpoint, key)
  const source = (key: string) => join(registry, written.name, key)
  const other = (name: string) => new Bobbin(join(folder, name), env)
  const isCut = way.cutAfter(CUT_AFTER_BYTES)
  const work: Readonly<Record<string, () => Promise<Outcome>>> = {
    read: () => isSame(here('large/read'), source('large/read')),
    mmap: () => runProgram('python3', ['-c', MAP, here('large/map'), source('large/map')]),
    'many small files': () => runProgram('diff', ['-r', here('small'), source('small')]),
    loader: async () => {
      const { status, body } = await loader.ask(`/v1/plans/${plan.planId}/batches`)
      return { status: status === 200 ? 0 : status, stdout: status === 200 ? '' : String(body), stderr: '' }
    },
    install: () => other('cache-install').try('install', reference, join(folder, 'target')),
    push: () => other('cache-push').try('push', join(folder, 'push'), `s3://${BUCKET}/out/push-${seconds}`, '-m', 'm'),
  }
  const doing = Object.entries(work).map(async ([what, run]) => ({
    what: `${what}, ${seconds} s`,
    outcome: await run(),
  }))
  await isCut
  // A package that nobody has looked at yet, of a server that is not there.
  doing.push(mountAnew(t, other('cache-mount'), reference, join(folder, 'second'), seconds))
  await sleep(seconds * 1000)
  await way.mend()
  return Promise.all(doing)
}

async function mountAnew(t: Test, bobbin: Bobbin, reference: string, at: string, seconds: number): Promise<Found> {
  const outcome = await bobbin.try('mount', reference, at)
  t.teardown(() => bobbin.try('stop', '--force'))
  return { what: `mount, ${seconds} s`, outcome }
}
