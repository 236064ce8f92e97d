/**
 * Packages that the real quilt3 wrote, and that are not as they were when Bobbin reads them: on both S3
 * servers, whose refusals differ, and with and without versions, which decide what is lost.
 */
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  CreateBucketCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  ListObjectVersionsCommand,
  PutBucketPolicyCommand,
  PutBucketVersioningCommand,
  PutObjectCommand,
  type S3Client,
} from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { cannotMount } from '../support/can-mount.js'
import { Bobbin, type Outcome, runProgram } from '../support/cli.js'
import { mountsBelow } from '../support/daemon.js'
import { type Dump, Quilt3 } from '../support/quilt3.js'
import { writeRegistry } from '../support/registry.js'
import { s3ClientOf, startS3 } from '../support/s3-server.js'

/** No identity of this machine's: what is left is nobody. */
const NOBODY = {
  AWS_ACCESS_KEY_ID: undefined,
  AWS_SECRET_ACCESS_KEY: undefined,
  AWS_SESSION_TOKEN: undefined,
  AWS_PROFILE: undefined,
  AWS_CONFIG_FILE: '/dev/null',
  AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
}

for (const kind of ['versitygw', 'minio'] as const) {
  t.test(`packages that were changed on ${kind}`, { timeout: 900_000 }, async t => {
    const folder = mkdtempSync(join(tmpdir(), 'bobbin-changed-'))
    const server = await startS3(kind)
    const quilt3 = new Quilt3(server, join(folder, 'home'))
    const bobbin = new Bobbin(join(folder, 'cache'), { ...server.env, XDG_DATA_HOME: join(folder, 'no-login') })
    const nobody = new Bobbin(join(folder, 'cache-of-nobody'), {
      ...server.env,
      ...NOBODY,
      XDG_DATA_HOME: join(folder, 'no-login'),
    })
    const writer = s3ClientOf(server)
    t.teardown(async () => {
      await bobbin.try('stop', '--force')
      writer.destroy()
      await server.stop()
      rmSync(folder, { recursive: true, force: true })
    })
    await createBucket(writer, 'registry', false)

    /** Two objects in place, `one.txt` and `two.txt`, and a package over them. */
    const packaged = async (source: string, versioned: boolean): Promise<Dump> => {
      await createBucket(writer, source, versioned)
      return quilt3.call<Dump>('package_bucket', { source, registry: 's3://registry', name: `in/${source}` })
    }
    const whole = await packaged('whole', true)

    await t.test('what is not there is 10, and says what is', async t => {
      fails(t, await bobbin.try('resolve', 's3://no-such-bucket/in/whole'), 10, /no-such-bucket/)
      fails(t, await bobbin.try('resolve', 's3://registry/in/whoel'), 10, /did you mean in\/whole/)
      const absent = whole.topHash.startsWith('000000') ? '111111' : '000000'
      fails(t, await bobbin.try('resolve', `s3://registry/in/whole@${absent}`), 10, new RegExp(absent))
      fails(t, await bobbin.try('ls', `s3://registry/in/whole@${absent.padEnd(64, '0')}`), 10, new RegExp(absent))
      fails(t, await bobbin.try('resolve', 's3://registry/in/whole:12345'), 10, /it has :latest/)
      fails(t, await bobbin.try('cat', 's3://registry/in/whole', 'three.txt'), 10, /three\.txt/)
    })

    await t.test('a prefix that is too short is 2, one that is ambiguous is 10 and lists the candidates', async t => {
      fails(t, await bobbin.try('resolve', `s3://registry/in/whole@${whole.topHash.slice(0, 5)}`), 2, /too short/)
      const prefix = whole.topHash.slice(0, 6)
      const twin = prefix + (whole.topHash[6] === '0' ? '1' : '0').repeat(58)
      await put(writer, 'registry', `.quilt/packages/${twin}`, '')
      const ambiguous = await bobbin.try('resolve', `s3://registry/in/whole@${prefix}`)
      fails(t, ambiguous, 10, new RegExp(twin))
      t.match(ambiguous.stderr, whole.topHash)
      const longer = await bobbin.json<{ topHash: string }>(
        'resolve',
        `s3://registry/in/whole@${whole.topHash.slice(0, 7)}`,
      )
      t.equal(longer.topHash, whole.topHash, 'one character more decides')
    })

    await t.test('nobody is denied, 12, and reads what is public', async t => {
      const none = await nobody.try('resolve', 's3://registry/in/whole')
      fails(t, none, 12, /no credentials were found.*AWS_PROFILE/s)
      const stranger = new Bobbin(join(folder, 'cache-of-stranger'), {
        ...server.env,
        AWS_SECRET_ACCESS_KEY: 'nothing-right-about-it',
      })
      const wrong = await stranger.try('resolve', 's3://registry/in/whole')
      fails(t, wrong, 12, /SignatureDoesNotMatch/)
      t.notMatch(wrong.stderr, /nothing-right/, 'no secret in a message')
      await packaged('open', false)
      await allowEverybody(writer, 'open')
      await allowEverybody(writer, 'registry')
      t.equal(await nobody.text('cat', 's3://registry/in/open', 'one.txt'), 'one of open')
      fails(t, await nobody.try('cat', 's3://registry/in/whole', 'one.txt'), 12, /whole/)
    })

    await t.test(
      'an object that is gone is 10; an object that was overwritten is 13, without a byte of it',
      async t => {
        const gone = await packaged('gone', true)
        await deleteVersions(writer, 'gone', 'x/one.txt')
        fails(t, await bobbin.try('cat', `s3://registry/in/gone@${gone.topHash}`, 'one.txt'), 10, /x\/one\.txt/)

        await packaged('overwritten', false)
        // As long as the one before: only the hash tells.
        await put(writer, 'overwritten', 'x/one.txt', 'eno of overwritten')
        const other = await bobbin.try('cat', 's3://registry/in/overwritten', 'one.txt')
        fails(t, other, 13, /hashes to .* the manifest says/)
        await put(writer, 'overwritten', 'x/two.txt', 'longer than it was when it was packaged')
        fails(t, await bobbin.try('cat', 's3://registry/in/overwritten', 'two.txt'), 13, /the manifest says 18/)

        await packaged('replaced', true)
        await put(writer, 'replaced', 'x/one.txt', 'eno of replaced')
        t.equal(
          await bobbin.text('cat', 's3://registry/in/replaced', 'one.txt'),
          'one of replaced',
          'the version that was packaged',
        )
      },
    )

    await t.test('a mount gives EIO for these files and goes on with the others', { skip: cannotMount() }, async t => {
      for (const [name, good] of [
        ['gone', 'two.txt'],
        ['replaced', 'one.txt'],
      ] as const) {
        const mountpoint = join(folder, `mount-${name}`)
        mkdirSync(mountpoint)
        await bobbin.text('mount', `s3://registry/in/${name}`, mountpoint)
        t.equal((await runProgram('cat', [join(mountpoint, good)])).stdout, `${good.slice(0, 3)} of ${name}`)
        if (name === 'gone') await readsEio(t, join(mountpoint, 'one.txt'))
        await bobbin.text('umount', mountpoint)
      }
      const mountpoint = join(folder, 'mount-overwritten')
      mkdirSync(mountpoint)
      await bobbin.text('mount', 's3://registry/in/overwritten', mountpoint)
      for (const key of ['one.txt', 'two.txt']) await readsEio(t, join(mountpoint, key))
      await bobbin.text('umount', mountpoint)
      const log = readFileSync(join(bobbin.cacheDir, 'daemon.log'), 'utf8')
      t.match(log, /hashes to .* the manifest says/, 'both hashes are in the log')
      t.strictSame(mountsBelow(folder), [])
    })

    await t.test('a manifest that was changed by a byte is 13, and a file:// key in S3 is 15', async t => {
      const key = `.quilt/packages/${whole.topHash}`
      const manifest = await get(writer, 'registry', key)
      const forged = manifest.replace('"logical_key": "one.txt"', '"logical_key": "onf.txt"')
      t.not(forged, manifest)
      await put(writer, 'registry', key, forged)
      const fresh = new Bobbin(join(folder, 'cache-of-forged'), server.env)
      for (const verb of [['ls'], ['cat', 'one.txt'], ['install', join(folder, 'forged')]]) {
        const [name, ...rest] = verb as [string, ...string[]]
        fails(t, await fresh.try(name, `s3://registry/in/whole@${whole.topHash}`, ...rest), 13, /hashes to/)
      }
      t.strictSame(readdirSync(folder).includes('forged'), false, 'nothing was installed')
      await put(writer, 'registry', key, manifest)
      t.equal(await fresh.text('cat', `s3://registry/in/whole@${whole.topHash}`, 'one.txt'), 'one of whole')

      const hostile = await writeRegistry(join(folder, 'hostile'), 'in/hostile', {
        'a.txt': { bytes: 'good', physicalKey: 's3://whole/x/one.txt' },
        'passwd.txt': { bytes: 'secret', physicalKey: 'file:///etc/passwd' },
      })
      await put(writer, 'registry', `.quilt/packages/${hostile.topHash}`, readFileSync(hostile.manifestPath))
      const refused = await bobbin.try('cat', `s3://registry/in/hostile@${hostile.topHash}`, 'passwd.txt')
      fails(t, refused, 15, /file:\/\/ physical key in an S3 registry/)
      t.match(refused.stderr, /row 3|line 3/, 'it says which row')
    })

    await t.test('a server that does not answer is 75, what is cached is still served offline', async t => {
      const reference = `s3://registry/in/replaced@${await topHashOf(bobbin, 's3://registry/in/replaced')}`
      await bobbin.text('install', reference, join(folder, 'before'))
      await bobbin.text('cat', reference, 'one.txt')
      await server.stop()
      fails(t, await bobbin.try('resolve', 's3://registry/in/replaced', '--io-timeout', '2s'), 75, /./)
      t.equal(await bobbin.text('cat', reference, 'one.txt', '--offline'), 'one of replaced')
    })

    await t.test('nothing half and nothing wrong is left in the cache', async t => {
      t.strictSame(readdirSync(join(bobbin.cacheDir, 'tmp')), [])
      const objects = join(bobbin.cacheDir, 'objects/v1/sha2-256-chunked')
      const cached = readdirSync(objects, { recursive: true, withFileTypes: true }).filter(entry => entry.isFile())
      t.ok(cached.length > 0)
      for (const { name, parentPath } of cached) {
        // Of one chunk each: the hash of the list of one hash.
        t.equal(sha256(sha256(readFileSync(join(parentPath, name)))).toString('hex'), name)
      }
    })
  })
}

/** It ended with this code, said why in one line, and gave nothing on stdout. */
function fails(t: Test, { status, stdout, stderr }: Outcome, exitCode: number, says: RegExp): void {
  t.equal(status, exitCode, stderr)
  t.equal(stdout, '')
  t.match(stderr, says)
  t.notMatch(stderr, /\n\s+at /, 'no stack trace')
}

function sha256(bytes: Uint8Array): Buffer {
  return createHash('sha256').update(bytes).digest()
}

async function readsEio(t: Test, path: string): Promise<void> {
  const { status, stdout, stderr } = await runProgram('cat', [path], { env: { ...process.env, LC_ALL: 'C' } })
  t.equal(status, 1)
  t.equal(stdout, '')
  t.match(stderr, /Input\/output error/)
}

async function topHashOf(bobbin: Bobbin, reference: string): Promise<string> {
  return (await bobbin.json<{ topHash: string }>('resolve', reference)).topHash
}

async function createBucket(writer: S3Client, bucket: string, versioned: boolean): Promise<void> {
  await writer.send(new CreateBucketCommand({ Bucket: bucket }))
  if (!versioned) return
  const VersioningConfiguration = { Status: 'Enabled' } as const
  await writer.send(new PutBucketVersioningCommand({ Bucket: bucket, VersioningConfiguration }))
}

async function put(writer: S3Client, bucket: string, key: string, body: string | Uint8Array): Promise<void> {
  await writer.send(new PutObjectCommand({ Bucket: bucket, Key: key, Body: body }))
}

async function get(writer: S3Client, bucket: string, key: string): Promise<string> {
  const { Body } = await writer.send(new GetObjectCommand({ Bucket: bucket, Key: key }))
  return Body!.transformToString()
}

/** For good: without a delete marker, and the versions as well. */
async function deleteVersions(writer: S3Client, bucket: string, key: string): Promise<void> {
  const { Versions = [] } = await writer.send(new ListObjectVersionsCommand({ Bucket: bucket, Prefix: key }))
  for (const { VersionId } of Versions) {
    await writer.send(new DeleteObjectCommand({ Bucket: bucket, Key: key, VersionId }))
  }
}

async function allowEverybody(writer: S3Client, bucket: string): Promise<void> {
  const allow = (Action: string, Resource: string) => ({ Effect: 'Allow', Principal: '*', Action, Resource })
  const Statement = [
    allow('s3:GetObject', `arn:aws:s3:::${bucket}/*`),
    allow('s3:GetObjectVersion', `arn:aws:s3:::${bucket}/*`),
    allow('s3:ListBucket', `arn:aws:s3:::${bucket}`),
  ]
  const Policy = JSON.stringify({ Version: '2012-10-17', Statement })
  await writer.send(new PutBucketPolicyCommand({ Bucket: bucket, Policy }))
}
