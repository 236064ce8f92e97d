/**
 * An S3 server for the bytes of a folder that is as far away as a real one: every answer waits, and
 * large bodies take their time, so that whoever is killed is killed in the middle of something.
 */
import { createReadStream, statSync } from 'node:fs'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

export interface SlowS3 {
  /** For the daemon's environment. */
  readonly env: Readonly<Record<string, string>>
  /** `s3://BUCKET/PATH` */
  physicalKey(path: string): string
  readonly requests: number
  stop(): Promise<void>
}

const BUCKET = 'slow'
const LATENCY_MS_MIN = 15
const LATENCY_MS_MAX = 45
const PIECE_BYTES = 2 ** 20
/** Between pieces: 100 MiB/s a connection. */
const PIECE_MS = 10

export async function startSlowS3(folder: string): Promise<SlowS3> {
  let requests = 0
  const server = createServer((request, response) => {
    requests++
    const path = decodeURIComponent(new URL(request.url ?? '/', 'http://server').pathname).slice(`/${BUCKET}/`.length)
    void answer(join(folder, path), request.method ?? '', request.headers.range, response).catch(() =>
      response.destroy(),
    )
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  return {
    env: {
      AWS_ENDPOINT_URL: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      AWS_REGION: 'us-east-1',
      AWS_ACCESS_KEY_ID: 'slow',
      AWS_SECRET_ACCESS_KEY: 'slow',
      AWS_EC2_METADATA_DISABLED: 'true',
    },
    physicalKey: path => `s3://${BUCKET}/${path}`,
    get requests() {
      return requests
    },
    stop() {
      server.closeAllConnections()
      return new Promise(resolve => server.close(() => resolve()))
    },
  }
}

async function answer(path: string, method: string, range: string | undefined, response: ServerResponse) {
  await sleep(LATENCY_MS_MIN + Math.random() * (LATENCY_MS_MAX - LATENCY_MS_MIN))
  const size = statSync(path, { throwIfNoEntry: false })?.size
  if (size === undefined) {
    response.writeHead(404, { 'content-type': 'application/xml' }).end('<Error><Code>NoSuchKey</Code></Error>')
    return
  }
  const asked = /^bytes=(\d+)-(\d+)$/.exec(range ?? '')
  const [start, end] = asked ? [Number(asked[1]), Math.min(Number(asked[2]) + 1, size)] : [0, size]
  response.writeHead(asked ? 206 : 200, {
    'content-length': end - start,
    etag: '"1"',
    ...(asked && { 'content-range': `bytes ${start}-${end - 1}/${size}` }),
  })
  if (method === 'GET' && end > start) {
    const body = createReadStream(path, { start, end: end - 1, highWaterMark: PIECE_BYTES })
    for await (const piece of body) {
      if (response.destroyed) return
      response.write(piece)
      if (end - start > PIECE_BYTES) await sleep(PIECE_MS)
    }
  }
  response.end()
}
