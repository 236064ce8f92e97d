/** Errors on their way to clients: the daemon's table of statuses, as whole RFC 9457 problems. */
import { type ServerResponse, STATUS_CODES } from 'node:http'
import type { FastifyError } from 'fastify'
import { PROBLEM_TYPE, problemOf } from '../../daemon/control/errors.js'

/** Whoever is told to come back is told when. */
const RETRY_AFTER_S = 1

export function problemAnswer(error: unknown): {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
} {
  const { status, code, detail } = problemOf(error)
  const help = helpFor(error, status)
  const isTemporary = status === 503 || status === 429
  return {
    status,
    headers: {
      'content-type': PROBLEM_TYPE,
      'cache-control': 'no-store',
      ...(isTemporary && { 'retry-after': String(RETRY_AFTER_S) }),
      ...(status === 401 && { 'www-authenticate': 'Basic realm="bobbin"' }),
    },
    body: JSON.stringify({
      title: STATUS_CODES[status] ?? 'Error',
      status,
      code,
      detail: help ? `${detail}: ${help}` : detail,
    }),
  }
}

/** What Fastify's own words leave out. */
function helpFor(error: unknown, status: number): string | undefined {
  if (status === 415) return 'send application/json'
  const failures = (error as Partial<FastifyError> | undefined)?.validation ?? []
  const unknown = failures.map(({ params }) => params.additionalProperty).filter(name => name !== undefined)
  return unknown.length > 0 ? unknown.map(name => JSON.stringify(name)).join(', ') : undefined
}

/** RFC 9110, 15.5.17: the range begins behind the end. */
export function sendRangeProblem(response: ServerResponse, bytes: number): void {
  const detail = `the range begins behind the end: there are ${bytes} bytes`
  const body = JSON.stringify({ title: STATUS_CODES[416], status: 416, code: 'INVALID_ARGUMENT', detail })
  const headers = { 'content-type': PROBLEM_TYPE, 'content-range': `bytes */${bytes}`, 'cache-control': 'no-store' }
  response.writeHead(416, { ...headers, 'content-length': Buffer.byteLength(body) }).end(body)
}

export function sendProblem(response: ServerResponse, error: unknown): void {
  if (response.headersSent || response.destroyed) {
    response.destroy()
    return
  }
  const { status, headers, body } = problemAnswer(error)
  // What was set for the answer that does not come.
  for (const name of response.getHeaderNames()) response.removeHeader(name)
  response.writeHead(status, { ...headers, 'content-length': Buffer.byteLength(body) }).end(body)
}
