/**
 * An HTTP proxy in front of a real server that misbehaves on demand, and counts.
 *
 * Requests pass unchanged, Host header included, so their signatures stay valid. A fault applies to
 * the requests that `match` takes (all by default), `times` of them (without end by default); the
 * first fault that applies wins.
 */
import { createServer, type IncomingMessage, request, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export type Fault =
  /** No answer, or a body that stops after some bytes; the connection stays open. */
  | { readonly kind: 'stall'; readonly afterBytes?: number }
  /** A TCP reset, before the answer or after some bytes of its body. */
  | { readonly kind: 'reset'; readonly afterBytes?: number }
  /** The server does what it is asked to, and its answer never arrives: a TCP reset. */
  | { readonly kind: 'lost' }
  /** The body ends early: the connection is closed properly, but Content-Length promised more. */
  | { readonly kind: 'cut'; readonly afterBytes: number }
  /** One bit of the body is wrong. Content-Length and all else are right. */
  | { readonly kind: 'flip'; readonly atByte: number }
  /** An answer of the proxy's own, such as 503. */
  | {
      readonly kind: 'status'
      readonly status: number
      readonly headers?: Readonly<Record<string, string>>
      readonly body?: string
    }
  | { readonly kind: 'latency'; readonly ms: number }

export interface ProxiedRequest {
  readonly method: string
  /** Path and query, as on the wire. */
  readonly url: string
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>
}

export interface FaultProxy {
  /** `http://127.0.0.1:PORT` */
  readonly endpoint: string
  /** Every request since the start or the last `clear`, in order. */
  readonly requests: readonly ProxiedRequest[]
  fault(fault: Fault, options?: { times?: number; match?: (request: ProxiedRequest) => boolean }): void
  /** Forgets faults and requests. */
  clear(): void
  /** Connections that clients hold open now. */
  connections(): Promise<number>
  stop(): Promise<void>
}

interface Rule {
  readonly fault: Fault
  readonly match: (request: ProxiedRequest) => boolean
  timesLeft: number
}

export async function startFaultProxy(target: string): Promise<FaultProxy> {
  const { hostname, port } = new URL(target)
  let rules: Rule[] = []
  let requests: ProxiedRequest[] = []

  const server = createServer((incoming, outgoing) => {
    const seen = { method: incoming.method ?? '', url: incoming.url ?? '', headers: incoming.headers }
    requests.push(seen)
    const rule = rules.find(candidate => candidate.timesLeft > 0 && candidate.match(seen))
    if (rule) rule.timesLeft--
    const fault = rule?.fault
    if (fault?.kind === 'stall' && fault.afterBytes === undefined) return
    if (fault?.kind === 'reset' && fault.afterBytes === undefined) {
      incoming.socket.resetAndDestroy()
      return
    }
    if (fault?.kind === 'status') {
      incoming.resume()
      outgoing.writeHead(fault.status, fault.headers ?? {}).end(fault.body ?? '')
      return
    }
    if (fault?.kind === 'latency') setTimeout(() => forward(incoming, outgoing, undefined), fault.ms)
    else forward(incoming, outgoing, fault)
  })
  // Stalled requests shall end when the client or `stop` says so, not when Node does.
  server.requestTimeout = 0

  function forward(incoming: IncomingMessage, outgoing: ServerResponse, fault: Fault | undefined): void {
    const upstream = request(
      // No keep-alive to the real server: its state must not mix with the faults'.
      { hostname, port, method: incoming.method, path: incoming.url, headers: incoming.headers, agent: false },
      answer => {
        if (fault?.kind === 'lost') {
          answer.resume()
          incoming.socket.resetAndDestroy()
          return
        }
        outgoing.writeHead(answer.statusCode ?? 502, answer.rawHeaders)
        relay(answer, outgoing, fault)
      },
    )
    upstream.on('error', () => outgoing.destroy())
    outgoing.on('close', () => upstream.destroy())
    incoming.pipe(upstream)
  }

  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  return {
    endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    get requests() {
      return requests
    },
    fault(fault, { times = Infinity, match = () => true } = {}) {
      rules.push({ fault, match, timesLeft: times })
    },
    clear() {
      rules = []
      requests = []
    },
    connections: () => new Promise((resolve, reject) => server.getConnections((e, n) => (e ? reject(e) : resolve(n)))),
    stop() {
      server.closeAllConnections()
      return new Promise(resolve => server.close(() => resolve()))
    },
  }
}

/** Copies a body, up to the fault. Errors end both sides: a test sees them at the client. */
function relay(answer: IncomingMessage, outgoing: ServerResponse, fault: Fault | undefined): void {
  const endsAfter =
    fault?.kind === 'stall' || fault?.kind === 'reset' || fault?.kind === 'cut' ? fault.afterBytes : undefined
  let at = 0
  answer.on('error', () => outgoing.destroy())
  answer.on('data', (chunk: Buffer) => {
    let bytes = chunk
    if (fault?.kind === 'flip' && fault.atByte >= at && fault.atByte < at + chunk.length) {
      bytes = Buffer.from(chunk)
      bytes[fault.atByte - at]! ^= 1
    }
    if (endsAfter !== undefined && at + bytes.length >= endsAfter) {
      answer.removeAllListeners('data').pause()
      outgoing.write(bytes.subarray(0, endsAfter - at), () => {
        if (fault?.kind === 'cut') outgoing.socket?.end()
        // A reset discards what is still on its way, so the bytes get a moment to arrive.
        if (fault?.kind === 'reset') setTimeout(() => outgoing.socket?.resetAndDestroy(), 50)
      })
      return
    }
    at += chunk.length
    if (!outgoing.write(bytes)) {
      answer.pause()
      outgoing.once('drain', () => answer.resume())
    }
  })
  answer.on('end', () => outgoing.end())
}
