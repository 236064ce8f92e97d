/** The daemon's HTTP API, on a unix socket. */
import { chmodSync, rmSync } from 'node:fs'
import Fastify, { type FastifyInstance, type FastifyReply } from 'fastify'
import { BobbinError, type Log } from '../model/index.js'
import { PROBLEM_TYPE, problemOf } from './errors.js'
import type { Leases } from './leases.js'
import { formatMetrics, METRICS_TYPE } from './metrics.js'
import type { Mounts } from './mounts.js'
import {
  FindAnswer,
  FindBody,
  LeaseAnswer,
  LeaseBody,
  MountBody,
  ReleaseBody,
  RenewAnswer,
  RenewBody,
  StatusFacts,
  StopBody,
  UnmountBody,
} from './schema.js'

export interface ServerOptions {
  readonly socketPath: string
  /** A socket that somebody else listens on for us, and whose file is theirs. */
  readonly listenFd?: number | undefined
  readonly mounts: Mounts
  readonly leases: Leases
  readonly log: Log
  status(): Promise<StatusFacts>
  /** Ends the daemon, after the answer has been sent. */
  stop(): void
}

/** Listens; whoever called has the cache, so a socket that lies there is nobody's. */
export async function startServer(options: ServerOptions): Promise<FastifyInstance> {
  const { mounts, leases, log, socketPath } = options
  const app = Fastify({
    forceCloseConnections: true,
    // A lease of 200,000 inodes.
    bodyLimit: 4 * 2 ** 20,
    // Fastify's own settings drop fields that a schema does not have, and turn text into numbers: a
    // misspelt option would be ignored.
    ajv: { customOptions: { removeAdditional: false, coerceTypes: false } },
  })

  app.setErrorHandler((error, request, reply) => {
    const problem = problemOf(error)
    if (!(error instanceof BobbinError)) log.error({ url: request.url, error: String(error) }, 'a request failed')
    return reply.code(problem.status).type(PROBLEM_TYPE).send(problem)
  })
  app.setNotFoundHandler((request, reply) =>
    reply
      .code(404)
      .type(PROBLEM_TYPE)
      .send({ status: 404, code: 'INVALID_ARGUMENT', detail: `no ${request.method} ${request.url} here` }),
  )

  app.get('/livez', async () => ({ ok: true }))
  app.get('/metrics', async (_request, reply) => reply.type(METRICS_TYPE).send(formatMetrics(await options.status())))
  app.get('/v1/status', { schema: { response: { 200: StatusFacts } } }, async () => options.status())
  app.post<{ Body: MountBody }>('/v1/mounts', { schema: { body: MountBody } }, async (request, reply) => {
    const facts = await mounts.add(request.body)
    return reply.code(201).send(facts)
  })
  app.delete<{ Body: UnmountBody }>('/v1/mounts', { schema: { body: UnmountBody } }, async (request, reply) => {
    await mounts.remove(request.body.mountpoint, request.body.force ?? false)
    return reply.code(204).send()
  })
  app.post<{ Body: StopBody }>('/v1/stop', { schema: { body: StopBody } }, async (request, reply) => {
    await mounts.removeAll(request.body.force ?? false)
    reply.raw.once('finish', () => setImmediate(options.stop))
    return reply.code(204).send()
  })

  app.post<{ Body: LeaseBody }>(
    '/v1/objects/lease',
    { schema: { body: LeaseBody, response: { 200: LeaseAnswer } } },
    async (request, reply) => leases.lease(request.body, whileConnected(reply)),
  )
  app.post<{ Body: ReleaseBody }>('/v1/objects/release', { schema: { body: ReleaseBody } }, async (request, reply) => {
    leases.release(request.body)
    return reply.code(204).send()
  })
  app.post<{ Body: RenewBody }>(
    '/v1/objects/renew',
    { schema: { body: RenewBody, response: { 200: RenewAnswer } } },
    async request => ({ leases: leases.renew(request.body.owner, request.body.facts) }),
  )

  app.post<{ Body: FindBody }>(
    '/v1/objects/find',
    { schema: { body: FindBody, response: { 200: FindAnswer } } },
    async (request, reply) => leases.find(request.body, whileConnected(reply)),
  )

  await app.ready()
  if (options.listenFd !== undefined) {
    await new Promise<void>((resolve, reject) => {
      app.server.once('error', reject)
      app.server.listen({ fd: options.listenFd }, resolve)
    })
    return app
  }
  rmSync(socketPath, { force: true })
  await new Promise<void>((resolve, reject) => {
    app.server.once('error', reject)
    app.server.listen(socketPath, resolve)
  })
  // The folder keeps strangers out; the socket is the group's, as the cache is.
  chmodSync(socketPath, 0o660)
  return app
}

/** Aborts when the connection closes before the answer was sent; afterwards nobody listens any more. */
function whileConnected(reply: FastifyReply): AbortSignal {
  const gone = new AbortController()
  reply.raw.once('close', () => gone.abort())
  return gone.signal
}
