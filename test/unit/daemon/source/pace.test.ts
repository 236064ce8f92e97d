/** A server that answers a byte at a time, which no real one does on demand. */
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import type { PhysicalKey } from '../../../../daemon/model/index.js'
import { createSource } from '../../../../daemon/source/index.js'

const SIZE = 40_000
const IO_TIMEOUT_MS = 4000

/** Where each answer is sent in pieces of so many bytes. */
async function slowly(t: Test, pieceBytes: number, everyMs: number): Promise<{ requests(): number }> {
  let requests = 0
  const server = createServer((request, response) => {
    requests++
    const range = /^bytes=(\d+)-/.exec(request.headers.range ?? '')
    const start = Number(range?.[1] ?? 0)
    response.writeHead(range === null ? 200 : 206, {
      'content-length': SIZE - start,
      etag: '"1"',
      ...(range && { 'content-range': `bytes ${start}-${SIZE - 1}/${SIZE}` }),
    })
    let left = SIZE - start
    const timer = setInterval(() => {
      response.write(Buffer.alloc(Math.min(pieceBytes, left)))
      left -= pieceBytes
      if (left > 0) return
      clearInterval(timer)
      response.end()
    }, everyMs)
    response.once('close', () => clearInterval(timer))
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const before = { ...process.env }
  Object.assign(process.env, {
    AWS_ENDPOINT_URL: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    AWS_REGION: 'us-east-1',
    AWS_ACCESS_KEY_ID: 'x',
    AWS_SECRET_ACCESS_KEY: 'y',
    AWS_EC2_METADATA_DISABLED: 'true',
  })
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
    for (const name of Object.keys(process.env)) delete process.env[name]
    Object.assign(process.env, before)
  })
  return { requests: () => requests }
}

async function read(t: Test): Promise<number> {
  const source = createSource({ ioTimeoutMs: IO_TIMEOUT_MS, offline: false })
  t.teardown(() => source.close())
  const key: PhysicalKey = { kind: 's3', bucket: 'slow', key: 'k' }
  let bytes = 0
  for await (const chunk of (await source.read(key)).chunks) bytes += chunk.length
  return bytes
}

t.test('a server that sends a byte now and then does not keep its reader for ever (S10)', async t => {
  const server = await slowly(t, 1, 400)
  await t.rejects(read(t), { code: 'UPSTREAM_UNAVAILABLE', message: /at byte \d{1,2}: no bytes came, or too few/ })
  t.ok(server.requests() <= 3, 'nor does it by a fresh connection each time')
})

t.test('a slow link is waited for, however long the whole takes', async t => {
  await slowly(t, 4000, 500)
  t.equal(await read(t), SIZE, 'longer than the time-out')
})
