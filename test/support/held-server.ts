/**
 * An HTTP server that hands out objects as S3 does, to unsigned and signed requests alike, and can
 * keep its readers waiting for as long as a test likes: what no real server does on demand.
 */
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export interface HeldServer {
  /** For the daemon's environment. */
  readonly env: Readonly<Record<string, string>>
  /** `s3://BUCKET/KEY` of an object that is served from now on. */
  add(key: string, bytes: Uint8Array): string
  /** From now on requests get no answer; with a key, those for that object. */
  hold(key?: string): void
  /** Answers all who wait, and all who come. */
  release(): void
  /** How many wait. */
  readonly waiting: number
  /** Requests so far, by key. */
  readonly requests: ReadonlyMap<string, number>
  stop(): Promise<void>
}

const BUCKET = 'held'

/** `hasRanges: false`: every answer is the whole object, as some servers that are only like S3 have it. */
export async function startHeldServer({ hasRanges = true } = {}): Promise<HeldServer> {
  const objects = new Map<string, Uint8Array>()
  const requests = new Map<string, number>()
  const waiting = new Map<ServerResponse, () => void>()
  let isHeld = (_key: string): boolean => false

  const server = createServer((request, response) => {
    const path = new URL(request.url ?? '/', 'http://server').pathname
    const key = decodeURIComponent(path.slice(`/${BUCKET}/`.length))
    const bytes = objects.get(key)
    requests.set(key, (requests.get(key) ?? 0) + 1)
    const answer = () => {
      waiting.delete(response)
      if (bytes === undefined) {
        response.writeHead(404, { 'content-type': 'application/xml' })
        response.end('<Error><Code>NoSuchKey</Code></Error>')
        return
      }
      const range = hasRanges && /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '')
      const [start, end] = range ? [Number(range[1]), Math.min(Number(range[2]) + 1, bytes.length)] : [0, bytes.length]
      response.writeHead(range ? 206 : 200, {
        'content-length': end - start,
        etag: '"1"',
        ...(range && { 'content-range': `bytes ${start}-${end - 1}/${bytes.length}` }),
      })
      response.end(request.method === 'HEAD' ? undefined : bytes.subarray(start, end))
    }
    if (!isHeld(key)) return answer()
    waiting.set(response, answer)
    response.once('close', () => waiting.delete(response))
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  return {
    env: {
      AWS_ENDPOINT_URL: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      AWS_REGION: 'us-east-1',
      AWS_ACCESS_KEY_ID: 'held',
      AWS_SECRET_ACCESS_KEY: 'held',
      AWS_EC2_METADATA_DISABLED: 'true',
    },
    add(key, bytes) {
      objects.set(key, bytes)
      return `s3://${BUCKET}/${key}`
    },
    hold(only) {
      isHeld = key => only === undefined || key === only
    },
    release() {
      isHeld = () => false
      for (const answer of [...waiting.values()]) answer()
    },
    get waiting() {
      return waiting.size
    },
    requests,
    stop() {
      server.closeAllConnections()
      return new Promise(resolve => server.close(() => resolve()))
    },
  }
}
