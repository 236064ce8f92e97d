/** HTTP_PROXY, HTTPS_PROXY and NO_PROXY, with a real proxy in front of a real S3 server. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { request } from 'node:http'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CreateBucketCommand, PutObjectCommand } from '@aws-sdk/client-s3'
import t from 'tap'
import { createSource } from '../../daemon/source/index.js'
import { startForwardProxy } from '../support/forward-proxy.js'
import { s3ClientOf, startS3 } from '../support/s3-server.js'

t.test('(S129) requests go through the proxy of the environment', async t => {
  const server = await startS3('versitygw')
  const writer = s3ClientOf(server)
  const proxy = await startForwardProxy()
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
    await proxy.stop()
    await server.stop()
    rmSync(folder, { recursive: true })
  })
  await writer.send(new CreateBucketCommand({ Bucket: 'data' }))
  await writer.send(new PutObjectCommand({ Bucket: 'data', Key: 'k', Body: 'bytes' }))

  /** Reads `k`, and gives what the proxy saw meanwhile. */
  async function read(settings: Readonly<Record<string, string>>): Promise<string[]> {
    for (const name of Object.keys(process.env)) if (/^AWS_|_proxy$/i.test(name)) delete process.env[name]
    Object.assign(process.env, { ...server.env, HOME: folder, XDG_DATA_HOME: folder, ...settings })
    const source = createSource({ ioTimeoutMs: 5000 })
    const seenBefore = proxy.seen.length
    try {
      const { chunks } = await source.read({ kind: 's3', bucket: 'data', key: 'k' }, {})
      const parts: Uint8Array[] = []
      for await (const chunk of chunks) parts.push(chunk)
      t.equal(String(Buffer.concat(parts)), 'bytes')
    } finally {
      await source.close()
    }
    return proxy.seen.slice(seenBefore)
  }

  t.same(await read({}), [], 'no proxy is set')
  t.same(await read({ HTTP_PROXY: proxy.url }), [`GET ${server.endpoint}/data/k`])
  t.same(await read({ HTTP_PROXY: 'http://127.0.0.1:1', http_proxy: proxy.url }), [`GET ${server.endpoint}/data/k`])
  t.same(await read({ HTTP_PROXY: proxy.url, NO_PROXY: 'example.org, 127.0.0.1' }), [])
  t.same(await read({ HTTPS_PROXY: proxy.url }), [], 'the address is not https:')
  const tls = { AWS_ENDPOINT_URL: secure, AWS_CA_BUNDLE: certificate }
  t.same(await read(tls), [])
  t.same(await read({ ...tls, HTTPS_PROXY: proxy.url }), [`CONNECT ${new URL(secure).host}`])
  t.same(await read({ ...tls, HTTPS_PROXY: proxy.url, NO_PROXY: '*' }), [])
})
