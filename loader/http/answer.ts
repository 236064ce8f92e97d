/**
 * Sends a layout, chunk by chunk: while one is written, the next one is filled. Nothing is sent before the objects of
 * the first chunk are here; a failure later destroys the connection, since there is no other way left to tell.
 */
import type { IncomingMessage, ServerResponse } from 'node:http'
import rangeParser from 'range-parser'
import { BobbinError, hasCode, throwIfAborted } from '../../daemon/model/index.js'
import { CHUNK_BYTES, ObjectVanished, type PackedObject, type Packing } from '../batch/packing.js'
import type { Layout } from '../format/layout.js'
import { BLOCK_BYTES } from '../format/tar.js'
import { sendRangeProblem } from './problem.js'

/** Numbers of objects: first ≤ number ≤ last. */
export interface ObjectSpan {
  readonly first: number
  readonly last: number
}

/** Where an answer's objects come from. */
export interface AnswerObjects {
  /** Waits until these are here. Throws what is the matter with the first one that cannot be had. */
  prepare(objects: ObjectSpan): Promise<void>
  /** Of one that was prepared. */
  get(object: number): PackedObject
  /** The file of one vanished although it was leased: has it made new, once. */
  renew(objects: ObjectSpan): Promise<void>
  /** Everything before this offset was sent. */
  sent(offset: number): void
}

export interface AnswerHead {
  readonly contentType: string
  /** Strong, with its quotes; null: the answer may be another one next time. */
  readonly etag: string | null
  readonly headers?: Readonly<Record<string, string>>
}

/** Filled while the one before is written. */
const CHUNKS_IN_FLIGHT = 2
/** Whoever asks waits for the first one; to fill a whole one takes longer than all else that comes before the first byte. */
const FIRST_CHUNK_BYTES = 2 ** 18

export interface ByteSpan {
  readonly from: number
  readonly to: number
  readonly status: 200 | 206
}

/** What of an answer is asked for; 304 and 416 are told to the client here, and give `undefined`. */
export function negotiate(
  request: IncomingMessage,
  response: ServerResponse,
  bytes: number,
  { etag, contentType, headers }: AnswerHead,
): ByteSpan | undefined {
  const common = {
    ...headers,
    ...(etag === null
      ? { 'cache-control': 'no-store' }
      : { etag, 'cache-control': 'private, max-age=31536000, immutable', 'accept-ranges': 'bytes' }),
  }
  if (etag !== null && matches(request.headers['if-none-match'], etag)) {
    response.writeHead(304, common).end()
    return undefined
  }
  const { range, 'if-range': ifRange } = request.headers
  let span: ByteSpan = { from: 0, to: bytes, status: 200 }
  if (range !== undefined && etag !== null && (ifRange === undefined || ifRange === etag)) {
    const ranges = rangeParser(bytes, range)
    if (ranges === -1) {
      sendRangeProblem(response, bytes)
      return undefined
    }
    // Several ranges, or other units: the whole is always a right answer.
    if (ranges !== -2 && ranges.type === 'bytes' && ranges.length === 1)
      span = { from: ranges[0]!.start, to: ranges[0]!.end + 1, status: 206 }
  }
  for (const [name, value] of Object.entries(common)) response.setHeader(name, value)
  response.setHeader('content-type', contentType)
  response.setHeader('content-length', span.to - span.from)
  if (span.status === 206) response.setHeader('content-range', `bytes ${span.from}-${span.to - 1}/${bytes}`)
  return span
}

function matches(header: string | undefined, etag: string): boolean {
  if (header === undefined) return false
  return header.split(',').some(one => ['*', etag, `W/${etag}`].includes(one.trim()))
}

/** Throws before anything was sent, or destroys the response and throws. */
export async function sendLayout(options: {
  readonly response: ServerResponse
  readonly layout: Layout
  readonly span: ByteSpan
  readonly objects: AnswerObjects
  readonly packing: Packing
  readonly signal: AbortSignal
}): Promise<void> {
  const { response, layout, span, objects, packing, signal } = options
  const rehashed = new Set<number>()
  const fill = async (from: number, to: number): Promise<Uint8Array> => {
    // A header must not be sent before its object is known to come.
    const needed = layout.objectsWithin(from, to + BLOCK_BYTES)
    if (needed !== undefined) await objects.prepare(needed)
    throwIfAborted(signal)
    const get = (object: number) => objects.get(object)
    try {
      return await packing.fill(layout, from, to, get, rehashed)
    } catch (error) {
      const isLost = error instanceof ObjectVanished || hasCode(error, 'OBJECT_CORRUPT')
      if (!isLost || needed === undefined) throw error
      await objects.renew(needed)
      for (let object = needed.first; object <= needed.last; object++) rehashed.delete(object)
      return packing.fill(layout, from, to, get, rehashed)
    }
  }
  let asked = span.from
  const chunks: { readonly to: number; readonly bytes: Promise<Uint8Array> }[] = []
  const ask = () => {
    if (asked >= span.to) return
    const bytesMax = asked === span.from ? FIRST_CHUNK_BYTES : CHUNK_BYTES
    const [from, to] = [asked, Math.min(asked + bytesMax, span.to)]
    const bytes = fill(from, to)
    // Whoever takes it sees the error; until then it is nobody's.
    bytes.catch(() => {})
    chunks.push({ to, bytes })
    asked = to
  }
  try {
    ask()
    await chunks[0]?.bytes
    throwIfAborted(signal)
    response.writeHead(span.status)
    for (let chunk = chunks.shift(); chunk !== undefined; chunk = chunks.shift()) {
      while (chunks.length + 1 < CHUNKS_IN_FLIGHT && asked < span.to) ask()
      const bytes = await chunk.bytes
      throwIfAborted(signal)
      await write(response, bytes)
      packing.recycle(bytes)
      objects.sent(chunk.to)
      if (chunks.length === 0) ask()
    }
    await finish(response)
  } catch (error) {
    for (const { bytes } of chunks) void bytes.then(left => packing.recycle(left)).catch(() => {})
    if (response.headersSent) response.destroy()
    throw error
  }
}

/** Resolves when the kernel has it all. */
function write(response: ServerResponse, bytes: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    const onClose = () => reject(new BobbinError('INTERRUPTED', 'the client has gone'))
    response.once('close', onClose)
    response.write(bytes, error => {
      response.off('close', onClose)
      if (error) reject(new BobbinError('INTERRUPTED', 'the client has gone', { cause: error }))
      else resolve()
    })
  })
}

function finish(response: ServerResponse): Promise<void> {
  return new Promise((resolve, reject) => {
    response.once('close', () =>
      response.writableFinished ? resolve() : reject(new BobbinError('INTERRUPTED', 'the client has gone')),
    )
    response.end(resolve)
  })
}
