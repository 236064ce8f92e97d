/** What the service does at its limits: tokens, too many and stuck clients, slow sources, small stores, its end. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { type IncomingMessage, request } from 'node:http'
import { type AddressInfo, createServer } from 'node:net'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { AS_USERS_DO, Bobbin, runProgram } from '../support/cli.js'
import { cannotMount, testFolder, until } from '../support/daemon.js'
import { startHeldServer } from '../support/held-server.js'
import { type RunningLoader, startLoader } from '../support/loader.js'
import { noise } from '../support/objects.js'
import { bobbinPath } from '../support/parts.js'
import { type FileContent, type WrittenPackage, writeRegistry } from '../support/registry.js'
import { started } from '../support/runs.js'

t.setTimeout(600_000)

const MIB = 2 ** 20
const PATHS = 'application/vnd.bobbin.paths+ndjson'
const PROBLEM = /^application\/problem\+json/
const ORDERED = { order: { algo: 'sequential' } }

function writeFiles(t: Test, count: number, bytes: number): Promise<WrittenPackage> {
  const name = (i: number) => `f${String(i).padStart(4, '0')}.bin`
  const files = Object.fromEntries(Array.from({ length: count }, (_, i) => [name(i), noise(bytes, i)]))
  return writeRegistry(join(testFolder(t), 'registry'), 'test/files', files)
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  return port
}

/** An answer whose client takes its first bytes, and then none until `whole` is called. */
async function openStuck(
  loader: RunningLoader,
  path: string,
): Promise<{ readonly response: IncomingMessage; whole(): Promise<number> }> {
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    const call = request({ socketPath: loader.socket, path, agent: false }, resolve)
    call.once('error', reject)
    call.end()
  })
  response.pause()
  response.on('error', () => {})
  return {
    response,
    whole: () =>
      new Promise((resolve, reject) => {
        let bytes = 0
        response.on('data', chunk => {
          bytes += chunk.length
        })
        response.once('close', () => (response.complete ? resolve(bytes) : reject(new Error(`cut after ${bytes}`))))
        response.resume()
      }),
  }
}

t.test('over TCP nobody gets anything without the token (S34)', async t => {
  const folder = testFolder(t)
  const written = await writeFiles(t, 4, 1000)
  const cli = new Bobbin(join(folder, 'none'))
  for (const [args, words] of [
    [['--listen', '127.0.0.1:0'], /token/],
    [['--listen', '127.0.0.1:0', '--token-file', '/nowhere'], /nowhere/],
    [['--listen', '8080', '--token-file', '/nowhere'], /HOST:PORT/],
  ] as const) {
    const { status, stderr } = await cli.try('loader', ...args)
    t.ok(status === 1 || status === 2, stderr)
    t.match(stderr, words)
  }
  const token = 'correct-horse-battery'
  const tokenFile = join(folder, 'token')
  writeFileSync(tokenFile, `${token}\n`)
  const named = ['--serve', written.reference]
  const loader = await startLoader(t, { args: ['--listen', '127.0.0.1:0', '--token-file', tokenFile, ...named] })
  const [base] = loader.addresses
  t.match(base, /^http:\/\/127\.0\.0\.1:[1-9]\d*$/)
  t.notOk(existsSync(loader.socket), 'the unix socket is opened when it is asked for')
  const asks = { base: base!, body: { package: written.reference } }
  const basic = (text: string) => `Basic ${Buffer.from(text).toString('base64')}`
  const wrong = ['', 'Bearer', 'Bearer wrong', basic(`bobbin:${token}x`), basic(token), `Digest ${token}`, token]
  for (const authorization of wrong) {
    const answer = await loader.ask('/v1/plans', { ...asks, headers: { authorization } })
    t.equal(answer.status, 401, authorization)
    t.match(answer.headers['content-type'], PROBLEM)
    t.match(answer.headers['www-authenticate'], /Basic/)
    t.match(answer.json(), { code: 'UNAUTHENTICATED' })
  }
  for (const path of ['/v1/status', '/openapi.json', '/nonsense', '/livez/../v1/status', '//livez'])
    t.equal((await loader.ask(path, { base: base! })).status, 401, path)
  for (const authorization of [`Bearer ${token}`, `bearer ${token}`, basic(`bobbin:${token}`), basic(`:${token}`)])
    t.ok((await loader.ask('/v1/plans', { ...asks, headers: { authorization } })).status < 300, authorization)
  for (const path of ['/livez', '/readyz', '/metrics'])
    t.equal((await loader.ask(path, { base: base! })).status, 200, path)
  const curl = await runProgram('curl', ['-sSf', `${base!.replace('//', `//bobbin:${token}@`)}/v1/status`])
  t.equal(curl.status, 0, curl.stderr)
  t.notMatch(loader.log, token)
})

t.test('one answer too many is told to come back, and a client that takes nothing is dropped', async t => {
  const written = await writeFiles(t, 16, 4 * MIB)
  const loader = await startLoader(t, { args: ['--streams-max', '1', '--stuck-timeout', '2s'] })
  const plan = await loader.plan({ package: written.reference, ...ORDERED, batch: { global: 16 } })
  const path = `/v1/plans/${plan.planId}/batches`
  const stuck = await openStuck(loader, path)
  const began = Date.now()
  const busy = await loader.ask(path)
  t.equal(busy.status, 429)
  t.match(busy.json(), { code: 'BUSY', detail: /--streams-max/ })
  t.ok(Number(busy.headers['retry-after']) >= 1)
  t.equal((await loader.ask('/v1/status')).json().streams, 1, 'documents are answered meanwhile')
  // Within twice the time, as Node.js looks at sockets, and later on a busy machine.
  await until('it is dropped', async () => (await loader.ask('/v1/status')).json().streams === 0, 60_000)
  t.ok(Date.now() - began > 1900, 'not before its time')
  await t.rejects(stuck.whole(), /cut/)
  t.equal((await loader.ask(path)).status, 200)
})

t.test('a source that is slow is 503 with Retry-After, then there, and asked once', async t => {
  const source = await startHeldServer()
  t.teardown(() => source.stop())
  const files: Record<string, FileContent> = {}
  for (let i = 0; i < 4; i++)
    files[`f${i}.bin`] = { bytes: noise(1000, i), physicalKey: source.add(`f${i}.bin`, noise(1000, i)) }
  const written = await writeRegistry(join(testFolder(t), 'registry'), 'test/held', files)
  const loader = await startLoader(t, { args: ['--step-timeout', '500ms'], env: source.env })
  const plan = await loader.plan({ package: written.reference, ...ORDERED, batch: { global: 4 } })
  const path = `/v1/plans/${plan.planId}/batches`
  source.hold()
  for (const headers of [{}, { accept: PATHS }, {}]) {
    const late = await loader.ask(path, { headers })
    t.equal(late.status, 503)
    t.match(late.headers['content-type'], PROBLEM)
    t.match(late.json(), { code: 'NOT_READY', detail: /0\.5 s/ })
    t.ok(Number(late.headers['retry-after']) >= 1)
  }
  source.release()
  await until('it is here', async () => (await loader.ask(path)).status === 200)
  for (let i = 0; i < 4; i++) t.equal(source.requests.get(`f${i}.bin`), 1)
})

t.test('SIGTERM finishes what is under way, within its time', async t => {
  const written = await writeFiles(t, 16, 2 * MIB)
  const loader = await startLoader(t)
  const plan = await loader.plan({ package: written.reference, ...ORDERED, batch: { global: 16 } })
  const path = `/v1/plans/${plan.planId}/batches`
  const first = await openStuck(loader, path)
  const ended = loader.end('SIGTERM')
  await until('it takes no new ones', () => loader.ask('/livez').then(no, yes))
  t.equal(await first.whole(), Number(first.response.headers['content-length']))
  t.equal(await ended, 0)
  t.notOk(existsSync(loader.socket))

  await loader.start()
  const slow = await openStuck(loader, path)
  const old = loader.end('SIGTERM')
  await until('the name is free', () => !existsSync(loader.socket))
  const next = await startLoader(t, { args: ['--socket', loader.socket] })
  t.equal(await slow.whole(), Number(slow.response.headers['content-length']))
  t.equal(await old, 0)
  t.equal((await loader.ask('/livez')).status, 200, 'the one that ends leaves the socket of the next one alone')
  await next.end('SIGTERM')

  await loader.start('--drain-timeout', '300ms')
  const second = await openStuck(loader, path)
  t.equal(await loader.end('SIGINT'), 0)
  await t.rejects(second.whole(), /cut/, 'never a short answer that looks whole')
})

const yes = () => true
const no = () => false

t.test('a store that is small', async t => {
  const written = await writeFiles(t, 24, MIB)
  const loader = await startLoader(t, { env: { BOBBIN_CACHE_LIMIT: '8MiB', BOBBIN_FREE_FLOOR: '0' } })
  const refused = await loader.ask('/v1/plans', { body: { package: written.reference, batch: { global: 16 } } })
  t.equal(refused.status, 507, 'a batch that is larger than the store')
  t.match(refused.json(), { code: 'STORE_FULL', detail: /16\.0 MiB.*8\.00 MiB.*--cache-limit/ })

  const plan = await loader.plan({ package: written.reference, ...ORDERED, batch: { global: 2 } })
  const path = `/v1/plans/${plan.planId}/batches`
  const { body } = await loader.ask(`${path}?step=0`, { headers: { accept: PATHS } })
  const { lease, samples } = JSON.parse(body.toString().split('\n')[0]!)
  const held: string[] = samples.map((sample: { files: { bin: { path: string } } }) =>
    join(plan.objects, sample.files.bin.path),
  )
  const readAll = async () => {
    for (let step = 1; step < 12; step++) t.equal((await loader.ask(`${path}?step=${step}`)).status, 200)
  }
  await readAll()
  for (const [i, file] of held.entries()) t.ok(readFileSync(file).equals(noise(MIB, i)), 'what is leased stays')
  const { cache } = await loader.cli.json<{ cache: { bytes: number } }>('status')
  t.ok(cache.bytes <= 8 * MIB)

  // Clients that hold all there is to hold are told, and nobody waits for ever.
  const sessions: string[] = [lease]
  let full = await loader.ask(`${path}?step=1`, { headers: { accept: PATHS } })
  for (let step = 2; full.status === 200 && step < 12; step++) {
    sessions.push(JSON.parse(full.body.toString().split('\n')[0]!).lease)
    full = await loader.ask(`${path}?step=${step}`, { headers: { accept: PATHS } })
  }
  t.match(full.json(), { code: /STORE_FULL|NOT_READY/ })
  for (const held of sessions) await loader.ask('/v1/release', { body: { lease: held } })
  await readAll()
})

t.test('nonsense is refused, never answered with 500, and ends nobody', async t => {
  const written = await writeFiles(t, 3, 1000)
  const loader = await startLoader(t)
  const plan = await loader.plan({ package: written.reference })
  const refused = async (path: string, options: Parameters<RunningLoader['ask']>[1] = {}) => {
    const { status, headers, body } = await loader.ask(path, options)
    t.ok(status >= 400 && status < 500, `${status} ${path}`, { body: body.toString() })
    if (status !== 431) t.match(headers['content-type'], PROBLEM)
  }
  const top = plan.topHash
  for (const path of [
    '/wds/..%2f..%2fetc%2fpasswd',
    '/wds/%00',
    `/v1/p/${top}/..%2f..%2f..%2fetc%2fpasswd`,
    `/v1/p/${top}/../../../../etc/passwd`,
    `/v1/p/${top}/f0000.bin%00`,
    `/v1/p/${top}/${'a/'.repeat(2000)}`,
    `/v1/p/${top}/%ff%fe`,
    '/v1/p/%',
    '/v1/o/zz',
    `/v1/plans/${plan.planId}/batches?cursor=${'A'.repeat(5000)}`,
    `/v1/plans/${plan.planId}/batches?step=9007199254740993`,
    `/v1/plans/${plan.planId}/batches?session=../../x`,
    `/v1/plans/${plan.planId}/batches?release=-`,
    `/v1/plans/${plan.planId}/batches?rank=1e3`,
    `/v1/plans/${plan.planId}/batches?__proto__=1`,
    '/__proto__',
  ])
    await refused(path)
  await refused('/livez', { headers: { 'x-bomb': 'x'.repeat(100_000) } })
  await refused('/v1/plans', { method: 'DELETE' })
  await refused('/v1/plans', { body: { package: written.reference, where: `${'('.repeat(5000)}a${')'.repeat(5000)}` } })
  await refused('/v1/plans', { body: { package: written.reference, select: ['{a,b}'.repeat(200)] } })
  await refused('/v1/plans', { body: `{${'['.repeat(10_000)}` })
  // The answer comes before the whole body was taken, and closes the connection.
  await loader.ask('/v1/plans', { body: 'x'.repeat(9 * MIB) }).then(
    answer => t.match(answer.json(), { status: 413, code: 'TOO_LARGE' }),
    error => t.match(error.code, /EPIPE|ECONNRESET/),
  )
  await refused('/v1/plans', {
    body: { package: written.reference, order: { algo: 'qperm-1', seed: 'x'.repeat(1e6) } },
  })
  await refused('/v1/get', { body: { package: written.reference, entries: [{ key: '__proto__' }] } })
  await refused('/v1/get', { body: { package: written.reference, entries: Array(10_001).fill({ key: 'a' }) } })

  const word = fc.oneof(
    fc.string({ unit: 'binary' }),
    fc.constantFrom('0', '-1', '1e9', 'NaN', '99999999999'),
    fc.nat(),
  )
  const name = fc.constantFrom('cursor', 'epoch', 'step', 'rank', 'world', 'n', 'stride', 'session', 'release', 'x')
  const route = fc.constantFrom(`/v1/plans/${plan.planId}/batches`, `/v1/plans/${plan.planId}`, '/wds/x', '/v1/status')
  await fc.assert(
    fc.asyncProperty(route, fc.array(fc.tuple(name, word), { maxLength: 4 }), async (path, query) => {
      const text = query.map(([key, value]) => `${key}=${encodeURIComponent(wellFormed(String(value)))}`).join('&')
      const { status } = await loader.ask(`${path}?${text}`)
      return status < 500
    }),
    { numRuns: 300 },
  )
  const json = fc.jsonValue({ maxDepth: 3 })
  const field = fc.constantFrom('package', 'select', 'where', 'group', 'order', 'batch', 'meta', 'entries', 'positions')
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom('/v1/plans', '/v1/get', `/v1/plans/${plan.planId}/samples`, '/v1/cursor/check', '/v1/release'),
      fc.dictionary(field, json),
      async (path, body) => (await loader.ask(path, { body: { package: written.reference, ...body } })).status < 500,
    ),
    { numRuns: 300 },
  )
  t.equal((await loader.ask(`/v1/plans/${plan.planId}/batches`)).status, 200)
})

function wellFormed(text: string): string {
  return text.toWellFormed()
}

t.test('memory is bounded: 4 MiB an answer over what it has at rest (S35)', { timeout: 550_000 }, async t => {
  const [clients, files] = [8, 192]
  const written = await writeFiles(t, files, 4 * MIB)
  const loader = await startLoader(t)
  const plan = await loader.plan({ package: written.reference, batch: { global: 16 } })
  const path = (rank: number) => `/v1/plans/${plan.planId}/batches?n=1000&world=${clients}&rank=${rank}`
  const drain = async (rank: number) => {
    const url = `http://loader${path(rank)}`
    const got = await runProgram('curl', ['-sSf', '--unix-socket', loader.socket, '-o', '/dev/null', url])
    if (got.status !== 0) throw new Error(got.stderr)
  }
  const memory = () => {
    const status = readFileSync(`/proc/${loader.process.pid}/status`, 'utf8')
    return Number(/VmRSS:\s+(\d+)/.exec(status)![1]) / 1024
  }
  // One first, so that what Node.js compiles and allocates once is not counted.
  await drain(0)
  const before = memory()
  let most = before
  const watch = setInterval(() => {
    most = Math.max(most, memory())
  }, 20)
  await Promise.all(Array.from({ length: clients }, (_, rank) => drain(rank)))
  clearInterval(watch)
  t.comment(`at rest ${before.toFixed(0)} MiB, with ${clients} answers of 96 MiB each at most ${most.toFixed(0)} MiB`)
  t.ok(most - before <= 4 * clients + 64, 'and 64 MiB for garbage', { before, most })
})

t.test('lists that nobody reads do not add up, and let batches through (S35)', async t => {
  const written = await writeFiles(t, 100, 1000)
  const loader = await startLoader(t, { args: ['--streams-max', '64'] })
  const plan = await loader.plan({ package: written.reference, ...ORDERED, batch: { global: 100 } })
  const memory = () => {
    const status = readFileSync(`/proc/${loader.process.pid}/status`, 'utf8')
    return Number(/VmRSS:\s+(\d+)/.exec(status)![1]) / 1024
  }
  const entries = Array.from({ length: 10_000 }, (_, i) => ({ key: `f${String(i % 100).padStart(4, '0')}.bin` }))
  const body = JSON.stringify({ package: written.reference, entries })
  const list = () =>
    new Promise<IncomingMessage>((resolve, reject) => {
      const headers = { 'content-type': 'application/json', 'content-length': body.length }
      const to = { socketPath: loader.socket, path: '/v1/get', method: 'POST', agent: false, headers }
      const call = request(to, resolve)
      call.once('error', reject)
      call.end(body)
    })
  const whole = await loader.ask('/v1/get', { body: { package: written.reference, entries } })
  t.equal(whole.status, 200)
  const before = memory()
  let most = before
  const watch = setInterval(() => {
    most = Math.max(most, memory())
  }, 20)
  const answers = await Promise.all(Array.from({ length: 24 }, list))
  for (const answer of answers) answer.on('error', () => {}).pause()
  const taken = answers.filter(({ statusCode }) => statusCode === 200)
  const busy = answers.filter(({ statusCode }) => statusCode === 429)
  t.equal(taken.length + busy.length, 24)
  t.equal(taken.length, 6, 'six times 10,000 entries, and a body of 280 kB each')
  t.ok(busy.every(({ headers }) => Number(headers['retry-after']) >= 1))
  t.equal((await loader.ask(`/v1/plans/${plan.planId}/batches`)).status, 200, 'batches are sent meanwhile')
  clearInterval(watch)
  t.comment(`at rest ${before.toFixed(0)} MiB, with 24 lists of 10,000 entries at most ${most.toFixed(0)} MiB`)
  // 5 KB for each of 65,536 entries, 4 MiB for each answer, and what Node.js has not collected yet.
  t.ok(most - before <= 320 + 4 * 6 + 64, 'within the bound', { before, most })
  for (const answer of answers) answer.destroy()
  await until('they are gone', async () => (await loader.ask('/v1/status')).json().streams === 0)
  t.equal((await loader.ask('/v1/get', { body: { package: written.reference, entries } })).status, 200)
})

t.test('bodies that wait to be whole are bounded, and small ones are taken meanwhile (S35)', async t => {
  const written = await writeFiles(t, 2, 1000)
  const loader = await startLoader(t)
  const half = (headers: Record<string, string | number>) => {
    const to = { socketPath: loader.socket, path: '/v1/get', method: 'POST', agent: false }
    const call = request({ ...to, headers: { 'content-type': 'application/json', ...headers } })
    call.on('error', () => {})
    call.write(' '.repeat(100_000))
    return call
  }
  const held = Array.from({ length: 8 }, () => half({ 'content-length': 8 * MIB }))
  await until('there is no room for another one', async () => {
    const another = half({ 'content-length': 8 * MIB })
    const answer = await Promise.race([
      once(another, 'response').then(([response]) => (response as IncomingMessage).resume().statusCode),
      new Promise(resolve => setTimeout(resolve, 500)),
    ])
    another.destroy()
    return answer === 429
  })
  const [unsaid] = await once(half({ 'transfer-encoding': 'chunked' }), 'response')
  t.equal((unsaid as IncomingMessage).resume().statusCode, 429, 'a body without a length counts as the longest')
  t.equal((await loader.plan({ package: written.reference })).samples, 2)
  for (const call of held) call.destroy()
  const body = { package: written.reference, entries: [{ key: 'f0000.bin', opaque: 'x'.repeat(MIB) }] }
  await until('there is room again', async () => (await loader.ask('/v1/get', { body })).status === 200)
})

t.test('with --rehash, bytes that changed under a lease are noticed and made new before they are sent', async t => {
  // Whole in one chunk of an answer, and over several.
  for (const bytes of [1000, 5 * MIB]) {
    const written = await writeFiles(t, 2, bytes)
    for (const args of [[], ['--rehash']]) {
      const loader = await startLoader(t, { args })
      const plan = await loader.plan({ package: written.reference, ...ORDERED, batch: { global: 2 } })
      const path = `/v1/plans/${plan.planId}/batches`
      const { body } = await loader.ask(path)
      const { stdout } = await runProgram('find', [loader.objects, '-type', 'f', '-size', `${bytes}c`])
      for (const file of stdout.trim().split('\n')) {
        const found = readFileSync(file)
        found[bytes - 1]! ^= 1
        chmodSync(file, 0o600)
        writeFileSync(file, found)
      }
      const again = await loader.ask(path)
      t.equal(again.status, 200)
      t.equal(again.body.equals(body), args.length > 0, 'otherwise the client would have to notice')
      await loader.stop()
    }
  }
})

t.test('a killed daemon costs an answer, not the service', async t => {
  const written = await writeFiles(t, 8, MIB)
  const loader = await startLoader(t)
  const plan = await loader.plan({ package: written.reference, ...ORDERED, batch: { global: 4 } })
  const path = `/v1/plans/${plan.planId}/batches`
  t.equal((await loader.ask(path)).status, 200)
  const { daemon } = await loader.cli.json<{ daemon: { pid: number } }>('status')
  process.kill(daemon.pid, 'SIGKILL')
  const after = await loader.ask(`${path}?step=1`)
  t.equal(after.status, 200)
  t.equal(after.body.length, Number(after.headers['content-length']))
  await until('it is ready again', async () => (await loader.ask('/readyz')).status === 200)
})

t.test(
  'it takes sockets that systemd listens on',
  { skip: !existsSync('/usr/bin/systemd-socket-activate') },
  async t => {
    const folder = testFolder(t)
    const written = await writeFiles(t, 3, 1000)
    const socket = join(folder, 'activated.sock')
    const cacheDir = join(folder, 'cache')
    const [command, ...before] = AS_USERS_DO
    const child = spawn(
      command!,
      [
        ...before,
        'systemd-socket-activate',
        '--setenv=BOBBIN_CACHE',
        `--listen=${socket}`,
        process.execPath,
        bobbinPath,
        'loader',
        '--allow',
        written.registry,
      ],
      { stdio: 'ignore', env: { ...process.env, BOBBIN_CACHE: cacheDir } },
    )
    t.teardown(async () => {
      child.kill('SIGKILL')
      await new Bobbin(cacheDir).try('stop', '--force')
    })
    await until('it listens', () => existsSync(socket))
    const curl = (...args: string[]) => runProgram('curl', ['-sSf', '--unix-socket', socket, ...args])
    const plan = await curl(
      '-d',
      JSON.stringify({ package: written.reference }),
      '-H',
      'content-type: application/json',
      'http://loader/v1/plans',
    )
    t.equal(plan.status, 0, `the first one waits until it is up: ${plan.stderr}`)
    t.match(JSON.parse(plan.stdout), { samples: 3 })
    t.notOk(existsSync(join(cacheDir, 'loader', 'loader.sock')), 'and makes none of its own')
    const ended = new Promise(resolve => child.once('exit', resolve))
    child.kill('SIGTERM')
    t.equal(await ended, 0)
    t.ok(statSync(socket).isSocket(), "the socket is systemd's and stays")
  },
)

t.test(
  'a TCP socket that systemd holds needs the token, too (S34)',
  { skip: !existsSync('/usr/bin/systemd-socket-activate') && 'there is no systemd-socket-activate here' },
  async t => {
    const folder = testFolder(t)
    const cacheDir = join(folder, 'cache')
    t.teardown(() => new Bobbin(cacheDir).try('stop', '--force'))
    const token = 'correct-horse-battery'
    for (const given of [undefined, token]) {
      const port = await freePort()
      const [command, ...before] = AS_USERS_DO
      const names = ['BOBBIN_CACHE', 'BOBBIN_ALLOW', ...(given === undefined ? [] : ['BOBBIN_LOADER_TOKEN'])]
      const words = [...names.map(name => `--setenv=${name}`), `--listen=127.0.0.1:${port}`]
      const loader = [process.execPath, bobbinPath, 'loader']
      const child = started(
        spawn(command!, [...before, 'systemd-socket-activate', ...words, ...loader], {
          stdio: ['ignore', 'pipe', 'pipe'],
          env: { ...process.env, BOBBIN_CACHE: cacheDir, BOBBIN_LOADER_TOKEN: token, BOBBIN_ALLOW: 's3://any-bucket' },
        }),
      )
      t.teardown(() => child.process.kill('SIGKILL'))
      await until('it listens', () => child.stderr().includes('Listening'))
      const status = (...args: string[]) =>
        runProgram('curl', ['-sS', '-w', '%{http_code}', '-o', '/dev/null', ...args])
      const url = `http://127.0.0.1:${port}/v1/status`
      if (given === undefined) {
        t.not((await status(url)).stdout, '200')
        t.equal(await child.ended, 2, child.stderr())
        t.match(child.stderr(), /needs a token/)
        continue
      }
      t.equal((await status(url)).stdout, '401')
      t.equal((await status('-H', `Authorization: Bearer ${token}`, url)).stdout, '200')
      child.process.kill('SIGTERM')
      t.equal(await child.ended, 0)
    }
  },
)

t.test('ranks and a mount share one fetch of each object (S37)', { skip: cannotMount() }, async t => {
  const source = await startHeldServer()
  t.teardown(() => source.stop())
  const folder = testFolder(t)
  const keys = Array.from({ length: 16 }, (_, i) => `f${String(i).padStart(2, '0')}.bin`)
  const files = Object.fromEntries(
    keys.map((key, i) => [key, { bytes: noise(50_000, i), physicalKey: source.add(key, noise(50_000, i)) }]),
  )
  const written = await writeRegistry(join(folder, 'registry'), 'test/shared', files)
  const loader = await startLoader(t, { env: source.env })
  const plan = await loader.plan({ package: written.reference, batch: { global: 4 } })
  const mountpoint = join(folder, 'mnt')
  await loader.cli.text('mount', written.reference, mountpoint, '--mkdir')
  const batch = (rank: number, step: number, headers = {}) =>
    loader.ask(`/v1/plans/${plan.planId}/batches?world=2&rank=${rank}&step=${step}`, { headers })
  const steps = [0, 1, 2, 3]
  source.hold()
  const readers = [
    ...steps.flatMap(step => [batch(0, step), batch(1, step), batch(1, step, { accept: PATHS })]),
    runProgram('sh', ['-c', `cat ${mountpoint}/*.bin | sha256sum`]),
  ]
  await until('the source is asked', () => source.waiting > 4)
  source.release()
  for (const answer of await Promise.all(readers)) t.equal(answer.status, 'stdout' in answer ? 0 : 200)
  for (const key of keys) t.equal(source.requests.get(key), 1, key)
  await loader.cli.text('umount', mountpoint)
})
