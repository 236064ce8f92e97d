/**
 * An S3 server for the bytes of a folder that is as far away as a real one: every answer waits, and
 * large bodies take their time, so that whoever is killed is killed in the middle of something.
 */
import { createReadStream, statSync } from 'node:fs'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
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
const LINK_PIECE_BYTES = 2 ** 16
/** Between pieces: 100 MiB/s a connection. */
const PIECE_MS = 10

export interface SlowS3Options {
  /** Before every answer; default: 15 to 45, by chance. */
  readonly latencyMs?: number
  /** Of all connections together; default: 100 MiB/s for each one that is large. */
  readonly bytesPerSecond?: number
}

export async function startSlowS3(folder: string, options: SlowS3Options = {}): Promise<SlowS3> {
  let requests = 0
  const pace = options.bytesPerSecond === undefined ? undefined : new Link(options.bytesPerSecond)
  const server = createServer((request, response) => {
    requests++
    const path = decodeURIComponent(new URL(request.url ?? '/', 'http://server').pathname).slice(`/${BUCKET}/`.length)
    void answer(join(folder, path), request, response, options.latencyMs, pace).catch(() => response.destroy())
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

/** One link that everybody shares: each piece takes its turn. */
class Link {
  #freeMs = 0

  constructor(private readonly bytesPerSecond: number) {}

  async pass(bytes: number): Promise<void> {
    const now = performance.now()
    this.#freeMs = Math.max(this.#freeMs, now) + (bytes / this.bytesPerSecond) * 1000
    // Timers are a millisecond late; what is behind is made up for by the next pieces.
    if (this.#freeMs - now > 1) await sleep(this.#freeMs - now)
  }
}

async function answer(
  path: string,
  { method, headers }: IncomingMessage,
  response: ServerResponse,
  latencyMs = LATENCY_MS_MIN + Math.random() * (LATENCY_MS_MAX - LATENCY_MS_MIN),
  link?: Link,
) {
  await sleep(latencyMs)
  const { range } = headers
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
    const body = createReadStream(path, {
      start,
      end: end - 1,
      highWaterMark: link === undefined ? PIECE_BYTES : LINK_PIECE_BYTES,
    })
    for await (const piece of body) {
      if (response.destroyed) return
      response.write(piece)
      if (link !== undefined) await link.pass(piece.length)
      else if (end - start > PIECE_BYTES) await sleep(PIECE_MS)
    }
  }
  response.end()
}
