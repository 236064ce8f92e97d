/** For supervisors, Prometheus and people. */
import type { FastifyInstance } from 'fastify'
import { BobbinError } from '../../daemon/model/index.js'
import type { Context } from './context.js'

export function healthRoutes(app: FastifyInstance, { objects, sessions, ahead, streams, metrics }: Context): void {
  app.get('/livez', { schema: { summary: 'Does it answer' } }, async () => ({ ok: true }))

  app.get(
    '/readyz',
    { schema: { summary: 'Can it serve: there is a daemon, and it is not about to end' } },
    async () => {
      if (streams.isDraining) throw new BobbinError('NOT_READY', 'this sidecar is about to end')
      if (!(await objects.isReady())) throw new BobbinError('DAEMON_UNAVAILABLE', 'the daemon does not answer')
      return { ok: true }
    },
  )

  app.get('/metrics', { schema: { summary: 'For Prometheus' } }, async (_request, reply) =>
    reply.type(metrics.contentType).send(await metrics.text()),
  )

  app.get('/v1/status', { schema: { summary: 'What is going on' } }, async () => ({
    pid: process.pid,
    streams: streams.count,
    isDraining: streams.isDraining,
    leases: objects.leases,
    pathLeases: sessions.leases,
    aheadBytes: ahead.bytes,
    rssBytes: process.memoryUsage.rss(),
  }))
}
