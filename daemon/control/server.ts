/** The daemon's HTTP API, on one unix socket per right (doors.ts). */
import { createHash } from 'node:crypto'
import { chmodSync, lstatSync, rmSync } from 'node:fs'
import Fastify, { type FastifyInstance, type FastifyReply } from 'fastify'
import { BobbinError, type Log } from '../model/index.js'
import { Served } from '../registry/served.js'
import { boundBodies, REQUEST_MS } from './bodies.js'
import { Concealer } from './conceal.js'
import { DOORS, type Door, doorMode, doorPath, ownerAt, type Right, refusalOf } from './doors.js'
import { PROBLEM_TYPE, problemOf } from './errors.js'
import type { Leases } from './leases.js'
import { formatMetrics, METRICS_TYPE } from './metrics.js'
import type { Mounts } from './mounts.js'
import type { RoomHolds } from './room-holds.js'
import {
  FindAnswer,
  FindBody,
  LeaseAnswer,
  LeaseBody,
  MountBody,
  ReleaseBody,
  ReloadBody,
  RenewAnswer,
  RenewBody,
  RoomBody,
  StatusFacts,
  StopBody,
  SurroundingsFacts,
  UnmountBody,
} from './schema.js'
import type { ServedMounts } from './served-mounts.js'

export interface ServerOptions {
  /** Of the door `control`; the others lie beside it. */
  readonly socketPath: string
  /** Sockets that somebody else listens on for us, and whose files are theirs. */
  readonly listenFds?: Readonly<Record<Door, number>> | undefined
  readonly mounts: Mounts
  readonly leases: Leases
  readonly roomHolds: RoomHolds
  /** What is leased at the door of the group. */
  readonly servedMounts: ServedMounts
  readonly log: Log
  status(): Promise<StatusFacts>
  surroundings(): SurroundingsFacts
  /** Takes credentials and settings anew. */
  reload(body: ReloadBody): Promise<void>
  /** Ends the daemon, after the answer has been sent. */
  stop(): void
}

export interface Server {
  close(): Promise<void>
}

type Routes = (app: FastifyInstance, options: ServerOptions, door: Door) => void

/** Listens at every door; whoever called has the cache, so sockets that lie there are nobody's. */
export async function startServer(options: ServerOptions): Promise<Server> {
  const apps: FastifyInstance[] = []
  const close = async () => {
    for (const app of apps) await app.close()
  }
  try {
    for (const door of DOORS) {
      const app = await createApp(options, door)
      apps.push(app)
      await listen(app, options, door)
    }
  } catch (error) {
    await close()
    throw error
  }
  return { close }
}

async function createApp(options: ServerOptions, door: Door): Promise<FastifyInstance> {
  const { log, socketPath } = options
  const app = Fastify({
    forceCloseConnections: true,
    requestTimeout: REQUEST_MS,
    // A lease of 200,000 inodes.
    bodyLimit: 4 * 2 ** 20,
    // Fastify's own settings drop fields that a schema does not have, and turn text into numbers: a
    // misspelt option would be ignored.
    ajv: { customOptions: { removeAdditional: false, coerceTypes: false } },
  })

  const concealer = new Concealer('the daemon', log)
  app.setErrorHandler((error, request, reply) => {
    // What Fastify says is about the caller's own request.
    const isTold =
      door === 'control' || (error instanceof Error && 'statusCode' in error && Number(error.statusCode) < 500)
    const problem = problemOf(isTold ? error : concealer.conceal(error))
    if (!(error instanceof BobbinError)) log.error({ url: request.url, error: String(error) }, 'a request failed')
    return reply.code(problem.status).type(PROBLEM_TYPE).send(problem)
  })
  app.setNotFoundHandler((request, reply) =>
    reply
      .code(404)
      .type(PROBLEM_TYPE)
      .send({ status: 404, code: 'INVALID_ARGUMENT', detail: `no ${request.method} ${request.url} here` }),
  )
  // The owner may ask for what they like.
  if (door !== 'control') boundBodies(app)
  for (const [right, addRoutes] of Object.entries(routesOf) as [Right, Routes][]) {
    await app.register(async scope => {
      // Before a body is read. A right that this door does not give is refused with the name of the door that does.
      scope.addHook('onRequest', async (_request, reply) => {
        const refused = refusalOf(right, door, socketPath)
        if (refused === undefined) return
        const problem = problemOf(refused)
        return reply.code(problem.status).type(PROBLEM_TYPE).send(problem)
      })
      addRoutes(scope, options, door)
    })
  }
  await app.ready()
  return app
}

async function listen(app: FastifyInstance, { socketPath, listenFds }: ServerOptions, door: Door): Promise<void> {
  const path = doorPath(socketPath, door)
  const listening = new Promise<void>((resolve, reject) => {
    app.server.once('error', reject)
    app.server.once('listening', resolve)
  })
  if (listenFds !== undefined) {
    app.server.listen({ fd: listenFds[door] })
    return listening
  }
  removeSocket(path)
  // The file is made in this very call, and must never be wider than it will be.
  const umask = process.umask(0o177)
  try {
    app.server.listen(path)
  } finally {
    process.umask(umask)
  }
  await listening
  chmodSync(path, doorMode[door])
}

/** Whatever else lies there is somebody's file: then listening fails. */
export function removeSocket(path: string): void {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket()) rmSync(path, { force: true })
}

const routesOf: Readonly<Record<Right, Routes>> = {
  status(app, options, door) {
    app.get('/livez', async () => ({ ok: true }))
    app.get('/metrics', async (_request, reply) => reply.type(METRICS_TYPE).send(formatMetrics(await options.status())))
    app.get('/v1/status', { schema: { response: { 200: StatusFacts } } }, async () => {
      const facts = await options.status()
      return door === 'control' ? facts : withoutSecrets(facts)
    })
  },

  control(app, { mounts, stop, surroundings, reload }) {
    app.get('/v1/surroundings', { schema: { response: { 200: SurroundingsFacts } } }, async () => surroundings())
    app.post<{ Body: ReloadBody }>('/v1/reload', { schema: { body: ReloadBody } }, async ({ body }, reply) => {
      await reload(body)
      return reply.code(204).send()
    })
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
      reply.raw.once('finish', () => setImmediate(stop))
      return reply.code(204).send()
    })
  },

  leases(app, { leases, roomHolds, servedMounts }, door) {
    const served = () => (door === 'control' ? Served.everything : servedMounts.now)
    app.post<{ Body: LeaseBody }>(
      '/v1/objects/lease',
      { schema: { body: LeaseBody, response: { 200: LeaseAnswer } } },
      async ({ body }, reply) =>
        leases.lease({ ...body, owner: ownerAt(door, body.owner) }, whileConnected(reply), served()),
    )
    app.post<{ Body: ReleaseBody }>(
      '/v1/objects/release',
      { schema: { body: ReleaseBody } },
      async ({ body }, reply) => {
        leases.release({ ...body, owner: ownerAt(door, body.owner) })
        return reply.code(204).send()
      },
    )
    app.post<{ Body: RenewBody }>(
      '/v1/objects/renew',
      { schema: { body: RenewBody, response: { 200: RenewAnswer } } },
      async ({ body }) => ({ leases: leases.renew(ownerAt(door, body.owner), body.facts) }),
    )
    app.post<{ Body: FindBody }>(
      '/v1/objects/find',
      { schema: { body: FindBody, response: { 200: FindAnswer } } },
      async ({ body }, reply) =>
        leases.find({ ...body, owner: ownerAt(door, body.owner) }, whileConnected(reply), served()),
    )
    app.post<{ Body: RoomBody }>('/v1/room', { schema: { body: RoomBody } }, async ({ body }, reply) => {
      await roomHolds.ask({ ...body, hold: ownerAt(door, body.hold) })
      return reply.code(204).send()
    })
  },
}

/**
 * The word of an owner of leases is all that it takes to let them go, so others see a digest. Errors name what the owner reads, and
 * what is not served to others.
 */
function withoutSecrets(facts: StatusFacts): StatusFacts {
  const owners = (facts.loader?.owners ?? []).map(({ surroundings: _, ...owner }) => ({
    ...owner,
    owner: createHash('sha256').update(owner.owner).digest('hex').slice(0, 12),
  }))
  const daemon = { ...facts.daemon, notReplaced: null }
  return { ...facts, daemon, lastErrors: [], loader: facts.loader && { ...facts.loader, owners } }
}

/** Aborts when the connection closes before the answer was sent; afterwards nobody listens any more. */
function whileConnected(reply: FastifyReply): AbortSignal {
  const gone = new AbortController()
  reply.raw.once('close', () => gone.abort())
  return gone.signal
}
