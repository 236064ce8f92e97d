/**
 * For servers that strangers may ask (the loader, and the daemon's doors for the group): requests in memory before anything is known of them: so many connections, and so many bytes of bodies.
 *
 * A connection has up to 16 KiB of headers and 64 KiB of a body that is not counted: 80 MiB of all together. Larger
 * bodies are counted from their first byte to the end of the answer, at most 64 MiB; parsed, they take up to four times as much.
 */
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { BobbinError, formatBytes } from '../model/index.js'

/** A list of 10,000 entries with long keys fits. */
export const BODY_BYTES_MAX = 8 * 2 ** 20
/** For the whole of a request to arrive: on a slow network, 8 MiB take a few seconds. */
export const REQUEST_MS = 60_000
/** Of one listener. For a loader: a rank with sixteen workers has seventeen. */
const CONNECTIONS_MAX = 1024
/** Plans, samples by position and most lists have less. */
const UNCOUNTED_BYTES = 65_536
const COUNTED_BYTES_MAX = 64 * 2 ** 20

export function boundBodies(app: FastifyInstance): void {
  app.server.maxConnections = CONNECTIONS_MAX
  let counted = 0
  app.addHook('onRequest', async (request, reply) => {
    const bytes = bodyBytesOf(request)
    if (bytes <= UNCOUNTED_BYTES) return
    if (counted + bytes > COUNTED_BYTES_MAX)
      throw new BobbinError('BUSY', `bodies of ${formatBytes(counted)} are being worked on: ask again`)
    counted += bytes
    reply.raw.once('close', () => {
      counted -= bytes
    })
  })
}

/** At most what is taken: a body that does not say how long it is counts as the longest. */
export function bodyBytesOf({ headers }: FastifyRequest): number {
  const said = headers['content-length']
  if (said === undefined) return headers['transfer-encoding'] === undefined ? 0 : BODY_BYTES_MAX
  return Math.min(Number(said), BODY_BYTES_MAX)
}
