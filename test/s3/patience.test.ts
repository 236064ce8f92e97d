/** What a person is told while a server does not answer; servers that do not list; files of AWS that change. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { CreateBucketCommand } from '@aws-sdk/client-s3'
import t from 'tap'
import { parsePhysicalKey } from '../../daemon/model/index.js'
import { createSource } from '../../daemon/source/index.js'
import { Bobbin } from '../support/cli.js'
import { type Fault, startFaultProxy } from '../support/fault-proxy.js'
import { bobbinPath } from '../support/parts.js'
import { onTerminal } from '../support/pty.js'
import { s3ClientOf, startS3 } from '../support/s3-server.js'

t.setTimeout(240_000)

const REGISTRY = 's3://patience'
const answer = (status: number, code: string): Fault => ({
  kind: 'status',
  status,
  body: `<Error><Code>${code}</Code><Message>no</Message></Error>`,
})
const isList = ({ url }: { readonly url: string }) => url.includes('list-type=2')

t.test('servers that need patience', async t => {
  const server = await startS3('versitygw')
  t.teardown(() => server.stop())
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-patience-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const client = s3ClientOf(server)
  await client.send(new CreateBucketCommand({ Bucket: 'patience' }))
  client.destroy()
  const data = join(folder, 'data')
  mkdirSync(data)
  writeFileSync(join(data, 'file'), 'x'.repeat(20_000))
  const proxy = await startFaultProxy(server.endpoint)
  t.teardown(() => proxy.stop())
  const home = { HOME: folder, XDG_DATA_HOME: folder, XDG_CONFIG_HOME: folder }
  const env = { ...server.env, ...home, AWS_ENDPOINT_URL: proxy.endpoint }
  const bobbin = new Bobbin(join(folder, 'cache'), env)
  const other = (name: string) => new Bobbin(join(folder, name), env)
  const reference = `${REGISTRY}/ns/pkg`
  await bobbin.text('push', data, reference, '-m', 'first')
  const topHash = (await bobbin.text('resolve', reference)).trim().split('@').at(-1)!.slice(-64)
  t.match(topHash, /^[0-9a-f]{64}$/)
  t.beforeEach(() => proxy.clear())

  const SAID = /^bobbin: waiting for (s3:\S+) \((.*)\), trying again until \d\d:\d\d:\d\d \(\d/gm

  t.test('a command that waits for a server says so, once without a terminal (S178)', async t => {
    await bobbin.text('ls', reference)
    proxy.fault(answer(503, 'SlowDown'))
    const waits: readonly (readonly [Bobbin, readonly string[]])[] = [
      [other('a'), ['resolve', reference]],
      [other('b'), ['ls', reference]],
      // The manifest is here: a worker thread waits.
      [bobbin, ['cat', `${reference}@${topHash}`, 'file']],
      [bobbin, ['install', `${reference}@${topHash}`, join(folder, 'installed')]],
      [other('m'), ['mount', reference, join(folder, 'mounted'), '--mkdir']],
      [other('c'), ['push', data, `${REGISTRY}/ns/other`, '-m', 'm']],
    ]
    const tried = await Promise.all(waits.map(([command, line]) => command.try(...line, '--io-timeout', '8s')))
    for (const [i, { status, stderr }] of tried.entries()) {
      const [verb] = waits[i]![1]
      const said = [...stderr.matchAll(SAID)]
      t.equal(status, 75, `${verb}: ${stderr}`)
      t.equal(said.length, 1, `${verb}: ${stderr}`)
      t.match(said[0]?.[2], /HTTP 503/)
    }
    const quiet = await other('d').try('resolve', reference, '--quiet', '--io-timeout', '5s')
    t.notMatch(quiet.stderr, /waiting for/)
  })

  t.test('at a terminal it is said again; a body that stops is a wait, too (S178)', async t => {
    proxy.fault({ kind: 'stall', afterBytes: 500 })
    const line = [process.execPath, bobbinPath, 'ls', reference, '--cache', join(folder, 'e'), '--io-timeout', '20s']
    const shown = await onTerminal(line, { ...process.env, ...env, TERM: 'dumb' })
    t.ok([...shown.matchAll(SAID)].length >= 2, shown)
  })

  for (const [what, fault, status] of [
    ['cannot list (501)', answer(501, 'NotImplemented'), 1],
    ['refuses to list (403)', answer(403, 'AccessDenied'), 12],
  ] as const) {
    t.test(`a server that ${what} serves what needs no list (S180)`, async t => {
      proxy.fault(fault, { match: isList })
      const fresh = other(`list-${status}`)
      await fresh.text('ls', `${reference}@${topHash}`)
      t.match(await fresh.text('ls', reference), /file/)
      await fresh.text('install', reference, join(folder, `installed-${status}`))
      t.equal(readFileSync(join(folder, `installed-${status}`, 'file'), 'utf8').length, 20_000)
      const missing = await fresh.try('ls', `${REGISTRY}/ns/none`)
      t.equal(missing.status, 10, missing.stderr)
      t.match(
        missing.stderr,
        /no package ns\/none in s3:\/\/patience, or no access to it: (the server cannot list|listing is refused)/,
      )
      const listed = await fresh.try('packages', REGISTRY)
      t.equal(listed.status, status, listed.stderr)
      t.match(listed.stderr, status === 1 ? /the server does not list \(NotImplemented, HTTP 501\)/ : /s3:ListBucket/)
      const pushed = await fresh.try('push', data, `${REGISTRY}/ns/unlisted${status}`, '-m', 'm')
      t.equal(pushed.status, 0, pushed.stderr)
    })
  }

  t.test('a change of the files of AWS is seen (S177)', async t => {
    const { AWS_ACCESS_KEY_ID: id, AWS_SECRET_ACCESS_KEY: secret } = server.env
    const before = { ...process.env }
    t.teardown(() => {
      process.env = before
    })
    for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name]
    const config = join(folder, 'aws-config')
    const credentials = join(folder, 'aws-credentials')
    Object.assign(process.env, home, { AWS_CONFIG_FILE: config, AWS_SHARED_CREDENTIALS_FILE: credentials })
    const write = (endpoint: string, key: string) => {
      writeFileSync(config, `[default]\nregion = us-east-1\nendpoint_url = ${endpoint}\n`)
      writeFileSync(credentials, `[default]\naws_access_key_id = ${id}\naws_secret_access_key = ${key}\n`)
    }
    // A server that refuses everything with a code of its own.
    const elsewhere = await startFaultProxy(server.endpoint)
    t.teardown(() => elsewhere.stop())
    elsewhere.fault(answer(404, 'NoSuchKey'))
    write(elsewhere.endpoint, secret!)
    const source = createSource({ ioTimeoutMs: 20_000, offline: false })
    t.teardown(() => source.close())
    const read = async () => {
      const { chunks } = await source.read(parsePhysicalKey(`${REGISTRY}/.quilt/named_packages/ns/pkg/latest`))
      let text = ''
      for await (const chunk of chunks) text += Buffer.from(chunk).toString()
      return text.trim()
    }
    const outcome = () => read().catch((error: { readonly code: string }) => error.code)
    /** What is found once the change was seen, for which 5 seconds are promised. */
    const afterwards = async () => {
      await sleep(5500)
      return await outcome()
    }
    t.equal(await outcome(), 'OBJECT_GONE')
    write(server.endpoint, secret!)
    t.equal(await afterwards(), topHash, 'the other endpoint')
    write(server.endpoint, 'not-the-secret')
    t.equal(await afterwards(), 'ACCESS_DENIED', 'other credentials')
  })
})
