/** Renewing Quilt's access token: a refresh token is good once, whoever needs it at the same time. */
import {
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { quiltLogin } from '../../../../daemon/source/quilt-login.js'
import { run } from '../../../support/daemon.js'

const PROCESSES = 5
const EACH = 4

interface Catalog {
  readonly url: string
  /** Refresh tokens that were taken, and those that came a second time. */
  readonly used: string[]
  readonly refused: string[]
  /** Access tokens that it does not take. */
  readonly withdrawn: string[]
  /** Before an answer. */
  onToken: () => void
}

/** A catalog that withdraws a refresh token when it is used. */
async function startCatalog(t: Test): Promise<Catalog> {
  const catalog = {
    url: '',
    used: [] as string[],
    refused: [] as string[],
    withdrawn: [] as string[],
    onToken: () => {},
  }
  const server = createServer((request, response) => {
    let body = ''
    request.on('data', chunk => {
      body += chunk
    })
    request.on('end', async () => {
      if (request.url !== '/api/token') {
        const token = request.headers.authorization?.replace('Bearer ', '') ?? ''
        if (catalog.withdrawn.includes(token)) response.statusCode = 401
        response.end(JSON.stringify({ AccessKeyId: `key-of-${token}`, SecretAccessKey: 'secret' }))
        return
      }
      const token = new URLSearchParams(body).get('refresh_token')!
      const isLast = token === (catalog.used.length === 0 ? 'first' : `next-${catalog.used.length}`)
      ;(isLast ? catalog.used : catalog.refused).push(token)
      // Long enough for all the others to come.
      await sleep(200)
      catalog.onToken()
      response.statusCode = isLast ? 200 : 401
      const n = catalog.used.length
      const renewed = { access_token: `access-${n}`, refresh_token: `next-${n}`, expires_at: 4e9 }
      response.end(JSON.stringify(isLast ? renewed : { error: 'revoked' }))
    })
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  catalog.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return catalog
}

const OTHER = { access_token: 'of another catalog', refresh_token: 'x', expires_at: 1, more: { a: [1, null] } }

/** What `quilt3 login` leaves: credentials and an access token that have expired. */
function loggedIn(t: Test, url: string): { readonly home: string; readonly auth: string } {
  const home = t.testdir({
    Quilt: {
      'credentials.json': JSON.stringify({ access_key: 'old', secret_key: 's', expiry_time: '2001-01-01T00:00:00Z' }),
      'config.yml': `registryUrl: "${url}"\n`,
      'auth.json': JSON.stringify({
        'https://other.example': OTHER,
        [url]: { access_token: 'stale', refresh_token: 'first', expires_at: 1, team: 'kept' },
      }),
    },
  })
  const auth = join(home, 'Quilt', 'auth.json')
  chmodSync(auth, 0o600)
  const { XDG_DATA_HOME } = process.env
  process.env.XDG_DATA_HOME = home
  t.teardown(() => {
    if (XDG_DATA_HOME === undefined) delete process.env.XDG_DATA_HOME
    else process.env.XDG_DATA_HOME = XDG_DATA_HOME
  })
  return { home, auth }
}

t.test('many processes and threads renew an access token once, and lose nothing of auth.json (S19)', async t => {
  const catalog = await startCatalog(t)
  const { home, auth } = loggedIn(t, catalog.url)
  const renewer = fileURLToPath(new URL('../../../support/quilt-renewer.js', import.meta.url))
  const processes = Array.from({ length: PROCESSES }, () => run(process.execPath, [renewer, String(EACH)]))
  for (const { stdout, stderr } of await Promise.all(processes)) {
    t.equal(stdout.toString().trim(), JSON.stringify(Array.from({ length: EACH }, () => 'key-of-access-1')), stderr)
  }
  t.same(catalog.used, ['first'])
  t.same(catalog.refused, [])
  t.same(JSON.parse(readFileSync(auth, 'utf8')), {
    'https://other.example': OTHER,
    [catalog.url]: { access_token: 'access-1', refresh_token: 'next-1', expires_at: 4e9, team: 'kept' },
  })
  t.equal(statSync(auth).mode & 0o777, 0o600)
  t.same(readdirSync(join(home, 'Quilt')).sort(), ['auth.json', 'auth.json.lock', 'config.yml', 'credentials.json'])
})

t.test('what quilt3 has renewed meanwhile is taken', async t => {
  const catalog = await startCatalog(t)
  const { auth } = loggedIn(t, catalog.url)
  // It was quicker: the token that is sent is withdrawn by the time it arrives.
  catalog.used.push('first')
  catalog.onToken = () => {
    const login = { access_token: "quilt3's", refresh_token: 'next-1', expires_at: 4e9 }
    writeFileSync(auth, JSON.stringify({ [catalog.url]: login }))
  }
  const login = await quiltLogin(10_000)
  t.equal((await login!.provider()).accessKeyId, "key-of-quilt3's")
  t.same(catalog.refused, ['first'])
})

t.test('an auth.json that is a link stays one', async t => {
  const catalog = await startCatalog(t)
  const { home, auth } = loggedIn(t, catalog.url)
  mkdirSync(join(home, 'elsewhere'))
  const target = join(home, 'elsewhere', 'auth.json')
  renameSync(auth, target)
  symlinkSync(target, auth)
  await (await quiltLogin(10_000))!.provider()
  t.match(JSON.parse(readFileSync(target, 'utf8')), { [catalog.url]: { refresh_token: 'next-1' } })
  t.equal(statSync(target).mode & 0o777, 0o600)
})

t.test('an access token that the catalog refuses before its expiry is renewed once (S183)', async t => {
  const catalog = await startCatalog(t)
  const { auth } = loggedIn(t, catalog.url)
  const login = { access_token: 'withdrawn', refresh_token: 'first', expires_at: 4e9 }
  writeFileSync(auth, JSON.stringify({ [catalog.url]: login }))
  catalog.withdrawn.push('withdrawn')
  t.equal((await (await quiltLogin(10_000))!.provider()).accessKeyId, 'key-of-access-1')
  t.match(JSON.parse(readFileSync(auth, 'utf8')), {
    [catalog.url]: { access_token: 'access-1', refresh_token: 'next-1' },
  })

  catalog.withdrawn.push('access-1', 'access-2')
  const error = await (await quiltLogin(10_000))!.provider().catch(error => error)
  t.equal(error.code, 'ACCESS_DENIED')
  t.match(error.message, /no longer valid and cannot be renewed at .*HTTP 401.*run "quilt3 login" again/)
  t.same(catalog.used, ['first', 'next-1'], 'once for each time that it was needed')
})
