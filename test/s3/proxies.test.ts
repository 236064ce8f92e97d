/** HTTP_PROXY, HTTPS_PROXY and NO_PROXY, with a real proxy in front of a real S3 server. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CreateBucketCommand, PutObjectCommand } from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { createSource } from '../../daemon/source/index.js'
import { quiltLogin } from '../../daemon/source/quilt-login.js'
import { startAwsServices } from '../support/aws-services.js'
import { Bobbin } from '../support/cli.js'
import { type ForwardProxyOptions, startForwardProxy } from '../support/forward-proxy.js'
import { s3ClientOf, startS3 } from '../support/s3-server.js'

t.setTimeout(200_000)

/** A real S3 server with one object, also behind TLS, and a function that reads the object with given settings. */
async function stage(t: Test) {
  const server = await startS3('versitygw')
  const writer = s3ClientOf(server)
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-proxies-'))
  const certificate = join(folder, 'certificate')
  const key = join(folder, 'key')
  const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1']
  const form = ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-keyout', key, '-out', certificate]
  execFileSync('openssl', [...form, ...subject], { stdio: 'ignore' })
  const target = new URL(server.endpoint)
  const front = createServer({ key: readFileSync(key), cert: readFileSync(certificate) }, (incoming, outgoing) => {
    const { method, url, headers } = incoming
    const upstream = request({ hostname: target.hostname, port: target.port, method, path: url, headers }, answer => {
      outgoing.writeHead(answer.statusCode ?? 502, answer.rawHeaders)
      answer.pipe(outgoing)
    })
    incoming.pipe(upstream)
  })
  await new Promise<void>(resolve => front.listen(0, '127.0.0.1', resolve))
  const secure = `https://127.0.0.1:${(front.address() as AddressInfo).port}`
  const before = { ...process.env }
  t.teardown(async () => {
    for (const name of Object.keys(process.env)) delete process.env[name]
    Object.assign(process.env, before)
    writer.destroy()
    front.closeAllConnections()
    front.close()
    await server.stop()
    rmSync(folder, { recursive: true })
  })
  await writer.send(new CreateBucketCommand({ Bucket: 'data' }))
  await writer.send(new PutObjectCommand({ Bucket: 'data', Key: 'k', Body: 'bytes' }))

  function use(settings: Readonly<Record<string, string>>): void {
    for (const name of Object.keys(process.env)) if (/^AWS_|_proxy$/i.test(name)) delete process.env[name]
    Object.assign(process.env, { ...server.env, HOME: folder, XDG_DATA_HOME: folder, ...settings })
  }

  async function read(settings: Readonly<Record<string, string>>, ioTimeoutMs = 5000): Promise<string> {
    use(settings)
    const source = createSource({ ioTimeoutMs })
    try {
      const { chunks } = await source.read({ kind: 's3', bucket: 'data', key: 'k' }, {})
      const parts: Uint8Array[] = []
      for await (const chunk of chunks) parts.push(chunk)
      return String(Buffer.concat(parts))
    } finally {
      await source.close()
    }
  }

  const tls = { AWS_ENDPOINT_URL: secure, AWS_CA_BUNDLE: certificate }
  const pem = { key: readFileSync(key), cert: readFileSync(certificate) }
  const startProxy = async (options?: ForwardProxyOptions) => {
    const proxy = await startForwardProxy(options)
    t.teardown(() => proxy.stop())
    return proxy
  }
  return { server, secure, folder, certificate, tls, pem, use, read, startProxy, host: new URL(secure).host }
}

t.test('(S129) requests go through the proxy of the environment', async t => {
  const { server, tls, host, read, startProxy } = await stage(t)
  const proxy = await startProxy()
  const seenBy = async (settings: Readonly<Record<string, string>>) => {
    const before = proxy.seen.length
    t.equal(await read(settings), 'bytes')
    return proxy.seen.slice(before)
  }
  t.same(await seenBy({}), [], 'no proxy is set')
  t.same(await seenBy({ HTTP_PROXY: proxy.url }), [`GET ${server.endpoint}/data/k`])
  t.same(await seenBy({ HTTP_PROXY: 'http://127.0.0.1:1', http_proxy: proxy.url }), [`GET ${server.endpoint}/data/k`])
  t.same(await seenBy({ HTTP_PROXY: proxy.url, NO_PROXY: 'example.org, 127.0.0.1' }), [])
  t.same(await seenBy({ HTTPS_PROXY: proxy.url }), [], 'the address is not https:')
  t.same(await seenBy(tls), [])
  t.same(await seenBy({ ...tls, HTTPS_PROXY: proxy.url }), [`CONNECT ${host}`])
  t.same(await seenBy({ ...tls, HTTPS_PROXY: proxy.url, NO_PROXY: '*' }), [])
})

const PASSWORD = 'p@ss/word%'
/** As a URL has it, and as a header has it. */
const LOGIN = `somebody:${encodeURIComponent(PASSWORD)}`
const SECRETS = [PASSWORD, encodeURIComponent(PASSWORD), Buffer.from(`somebody:${PASSWORD}`).toString('base64')]

function withLogin(url: string, login = LOGIN): string {
  return url.replace('://', `://${login}@`)
}

t.test('(S184) a proxy may want a password, and be spoken to by TLS', async t => {
  const { tls, pem, read, startProxy, certificate } = await stage(t)
  const login = `somebody:${PASSWORD}`
  for (const proxy of [await startProxy({ login }), await startProxy({ login, tls: pem })]) {
    const url = withLogin(proxy.url)
    t.equal(await read({ HTTP_PROXY: url, AWS_CA_BUNDLE: certificate }), 'bytes', `forwards, ${proxy.url}`)
    t.equal(await read({ ...tls, HTTPS_PROXY: url }), 'bytes', `tunnels, ${proxy.url}`)
    t.equal(proxy.seen.length, 2)
    for (const settings of [{ HTTP_PROXY: withLogin(proxy.url, 'a:b') }, { ...tls, HTTPS_PROXY: proxy.url }]) {
      const error = await read({ AWS_CA_BUNDLE: certificate, ...settings }).catch(error => error)
      t.match(error, { code: 'ACCESS_DENIED', message: /the proxy wants a user name and a password.*HTTP_PROXY/ })
    }
  }
  const untrusted = await startProxy({ tls: pem })
  const error = await read({ HTTP_PROXY: untrusted.url }).catch(error => error)
  t.match(error.message, /the proxy 127\.0\.0\.1:\d+.*self.signed/)
})

t.test('(S184) what a proxy does wrong is not taken for the word of S3', async t => {
  const { tls, read, startProxy } = await stage(t)
  const no = await startProxy({ refuseWith: 403 })
  const refused = await read({ ...tls, HTTPS_PROXY: no.url }).catch(error => error)
  t.match(refused, { code: 'ACCESS_DENIED', message: /the proxy 127\.0\.0\.1:\d+ does not connect us \(HTTP 403\)/ })
  const bad = await startProxy({ refuseWith: 502 })
  const away = await read({ ...tls, HTTPS_PROXY: bad.url }, 1000).catch(error => error)
  t.match(away, {
    code: 'UPSTREAM_UNAVAILABLE',
    message: /the proxy 127\.0\.0\.1:\d+ does not connect us \(HTTP 502\)/,
  })
  t.ok(bad.seen.length > 1, 'asked again meanwhile')
  const gone = await read({ HTTP_PROXY: 'http://a:b@127.0.0.1:1' }, 1000).catch(error => error)
  t.match(gone.message, /the proxy 127\.0\.0\.1:1: connect ECONNREFUSED/)
  const socks = await read({ HTTP_PROXY: `socks5://${LOGIN}@127.0.0.1:1` }).catch(error => error)
  t.match(socks, { code: 'INVALID_ARGUMENT', message: /http:\/\/ or https:\/\/, not socks5:/ })
  for (const { message } of [refused, away, gone, socks])
    for (const secret of SECRETS) t.notOk(message.includes(secret))
})

t.test('(S184) push goes through proxies, and no word of it has their password', async t => {
  const { server, folder, tls, host, startProxy } = await stage(t)
  const proxy = await startProxy({ login: `somebody:${PASSWORD}` })
  const files = join(folder, 'files')
  mkdirSync(files)
  writeFileSync(join(files, 'small'), 'small')
  // An upload in parts.
  writeFileSync(join(files, 'large'), Buffer.alloc(9 * 2 ** 20, 'large'))
  const url = withLogin(proxy.url)
  const quiet = { HOME: folder, XDG_DATA_HOME: folder, DEBUG: '*', HTTP_PROXY: undefined, HTTPS_PROXY: undefined }
  const words: string[] = []
  for (const [name, settings] of Object.entries({ http: { HTTP_PROXY: url }, https: { ...tls, HTTPS_PROXY: url } })) {
    const before = proxy.seen.length
    const bobbin = new Bobbin(join(folder, `cache-${name}`), { ...server.env, ...quiet, ...settings })
    const pushed = await bobbin.try('push', files, `s3://data/ns/${name}`, '-m', 'through a proxy')
    t.equal(pushed.status, 0, pushed.stderr)
    const read = await bobbin.try('cat', `s3://data/ns/${name}`, 'small')
    t.match(read, { status: 0, stdout: 'small' })
    const seen = proxy.seen.slice(before)
    if (name === 'http') t.ok(seen.some(line => /^PUT .*large.*partNumber=2/.test(line)))
    else t.ok(seen.length > 0 && seen.every(line => line === `CONNECT ${host}`))
    words.push(pushed.stdout, pushed.stderr, read.stderr)
  }
  const wrong = withLogin(proxy.url, `somebody:${encodeURIComponent(`${PASSWORD}!`)}`)
  const bobbin = new Bobbin(join(folder, 'cache'), { ...server.env, ...quiet, HTTP_PROXY: wrong })
  const refused = await bobbin.try('ls', 's3://data/ns/http')
  t.match(refused.stderr, /the proxy wants a user name and a password/)
  t.not(refused.status, 0)
  words.push(
    refused.stdout,
    refused.stderr,
    (await bobbin.try('status', '--json')).stdout,
    (await bobbin.try('doctor')).stdout,
  )
  const encoded = Buffer.from(`somebody:${PASSWORD}!`).toString('base64')
  for (const secret of [...SECRETS, encoded])
    t.notOk(
      words.some(text => text.includes(secret)),
      secret,
    )
  t.notOk(
    words.some(text => /proxy-agent/.test(text)),
    'DEBUG does not make the packages speak',
  )
})

t.test('(S184) STS and the catalog of Quilt are asked through the proxy, unless NO_PROXY names them', async t => {
  const { server, folder, use, read, startProxy } = await stage(t)
  const issued = { accessKeyId: server.accessKey, secretAccessKey: server.secretKey, sessionToken: '' }
  const services = await startAwsServices(() => ({ ...issued, expiration: new Date(Date.now() + 3_600_000) }))
  t.teardown(() => services.stop())
  writeFileSync(join(folder, 'token'), 'jwt')
  const proxy = await startProxy()
  const role = {
    AWS_ACCESS_KEY_ID: '',
    AWS_SECRET_ACCESS_KEY: '',
    AWS_ENDPOINT_URL_STS: services.url,
    AWS_WEB_IDENTITY_TOKEN_FILE: join(folder, 'token'),
    AWS_ROLE_ARN: 'arn:aws:iam::123456789012:role/reader',
  }
  t.equal(await read({ ...role, HTTP_PROXY: proxy.url }), 'bytes')
  t.equal(proxy.seen[0], `POST ${services.url}/`)
  const before = proxy.seen.length
  t.equal(await read({ ...role, HTTP_PROXY: proxy.url, NO_PROXY: new URL(services.url).host }), 'bytes')
  t.notOk(proxy.seen.slice(before).includes(`POST ${services.url}/`))

  mkdirSync(join(folder, 'Quilt'))
  const inQuilt = (name: string, text: string) => writeFileSync(join(folder, 'Quilt', name), text)
  inQuilt('credentials.json', JSON.stringify({ access_key: 'a', secret_key: 'b', expiry_time: '2001-01-01T00:00:00Z' }))
  inQuilt('config.yml', `registryUrl: "http://catalog.example"\n`)
  inQuilt('auth.json', JSON.stringify({ 'http://catalog.example': { access_token: 'a', expires_at: 4e9 } }))
  use({ HTTP_PROXY: proxy.url })
  // There is no such host: that the proxy was asked for it is what matters.
  await (await quiltLogin(2000))!.provider().catch(() => {})
  t.equal(proxy.seen.at(-1), 'GET http://catalog.example/api/auth/get_credentials')
})
