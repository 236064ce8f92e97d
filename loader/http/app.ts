/** The service's HTTP: its routes, who may use them, and what becomes of errors. */
import { createHash, timingSafeEqual } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import swagger from '@fastify/swagger'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import { BODY_BYTES_MAX, boundBodies, REQUEST_MS } from '../../daemon/control/bodies.js'
import { BobbinError } from '../../daemon/model/index.js'
import { batchRoutes } from './batch-routes.js'
import type { Context } from './context.js'
import { entryRoutes } from './entry-routes.js'
import { healthRoutes } from './health-routes.js'
import { planRoutes } from './plan-routes.js'
import { problemAnswer } from './problem.js'

/** A connection that nobody uses. */
const IDLE_MS = 30_000
const OPEN_TO_ALL = ['/livez', '/readyz', '/metrics']

/** `token`: what is asked of everybody, `undefined` lets nobody in; false: whoever reaches the socket may come in. */
export async function createApp(context: Context, token: () => string | undefined | false): Promise<FastifyInstance> {
  const app = Fastify({
    bodyLimit: BODY_BYTES_MAX,
    keepAliveTimeout: IDLE_MS,
    requestTimeout: REQUEST_MS,
    // A misspelt option is an error, not ignored; numbers are no text.
    ajv: { customOptions: { removeAdditional: false, coerceTypes: false } },
    routerOptions: { maxParamLength: 4096 },
    // A path that cannot be decoded finds no route, and so no error handler either.
    frameworkErrors: (error, _request, reply) => answerProblem(reply, context.door.shown(error)),
  })
  dropStuckClients(app, context.options.stuckTimeoutMs)

  app.setErrorHandler((error, request, reply) => {
    const status = answerProblem(reply, context.door.shown(error)).statusCode
    if (!(error instanceof BobbinError) && status >= 500)
      context.log.error(
        { url: request.url, error: error instanceof Error ? error.stack : String(error) },
        'a request failed',
      )
    return reply
  })
  app.setNotFoundHandler(({ method, url }, reply) =>
    answerProblem(
      reply,
      new BobbinError('ENTRY_NOT_FOUND', `no ${method} ${url.slice(0, 200)} here; /openapi.json lists the requests`),
    ),
  )
  app.addHook('onRequest', async request => {
    const wanted = token()
    if (wanted === false || OPEN_TO_ALL.includes(request.url)) return
    if (wanted === undefined || !hasToken(request, wanted))
      throw new BobbinError(
        'UNAUTHENTICATED',
        'this address asks for a token: Authorization: Bearer TOKEN, or http://bobbin:TOKEN@HOST',
      )
  })
  // Behind the token: nobody is counted who may not come in.
  boundBodies(app)

  await app.register(swagger, {
    openapi: {
      info: { title: 'bobbin loader', version: '1', description: 'Batches of a Quilt package; loader/protocol.md' },
    },
  })
  healthRoutes(app, context)
  planRoutes(app, context)
  batchRoutes(app, context)
  entryRoutes(app, context)
  app.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger())
  await app.ready()
  return app
}

function answerProblem(reply: FastifyReply, error: unknown): FastifyReply {
  const { status, headers, body } = problemAnswer(error)
  return reply.code(status).headers(headers).send(body)
}

/**
 * A client that stopped reading would hold its leases and buffers for ever. Node.js fires this only when not a byte
 * of what is written has moved; a request that waits for its objects has nothing to write, and is left alone.
 */
function dropStuckClients(app: FastifyInstance, timeoutMs: number): void {
  const answering = new WeakSet<Socket>()
  app.server.on('request', ({ socket }: IncomingMessage, response: ServerResponse) => {
    answering.add(socket)
    response.once('close', () => answering.delete(socket))
  })
  app.server.setTimeout(timeoutMs)
  app.server.on('timeout', (socket: Socket) => {
    if (answering.has(socket) && socket.writableLength === 0) socket.setTimeout(timeoutMs)
    else socket.destroy()
  })
}

function hasToken(request: FastifyRequest, token: string): boolean {
  const [scheme = '', value = ''] = (request.headers.authorization ?? '').split(' ')
  const given = /^bearer$/i.test(scheme)
    ? value
    : /^basic$/i.test(scheme)
      ? Buffer.from(value, 'base64').toString('utf8').split(':').slice(1).join(':')
      : ''
  // Of one length, so that the comparison takes the same time whatever is given.
  const digest = (text: string) => createHash('sha256').update(text).digest()
  return timingSafeEqual(digest(given), digest(token))
}
