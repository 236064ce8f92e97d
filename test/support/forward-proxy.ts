/** A real HTTP proxy on loopback that counts: forwards requests for `http:` addresses, and tunnels CONNECT. */
import { createServer, type IncomingMessage, request, type ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import { type AddressInfo, connect } from 'node:net'

export interface ForwardProxy {
  /** `http://127.0.0.1:PORT`, or `https:` where it is spoken to by TLS. Without a user name. */
  readonly url: string
  /** Requests that were forwarded, as `GET http://…`, and tunnels, as `CONNECT host:port`. */
  readonly seen: readonly string[]
  stop(): Promise<void>
}

export interface ForwardProxyOptions {
  /** `user:password` that it wants; others get 407. */
  readonly login?: string
  /** PEM: it is spoken to by TLS. */
  readonly tls?: { readonly key: Buffer; readonly cert: Buffer }
  /** Answers to CONNECT with this status. */
  readonly refuseWith?: number
}

export async function startForwardProxy({ login, tls, refuseWith }: ForwardProxyOptions = {}): Promise<ForwardProxy> {
  const seen: string[] = []
  const wanted = login === undefined ? undefined : `Basic ${Buffer.from(login).toString('base64')}`
  const isKnown = ({ headers }: IncomingMessage) => wanted === undefined || headers['proxy-authorization'] === wanted
  const forward = (incoming: IncomingMessage, outgoing: ServerResponse) => {
    if (!isKnown(incoming)) {
      seen.push('407')
      incoming.resume()
      outgoing.writeHead(407, { 'proxy-authenticate': 'Basic' }).end()
      return
    }
    seen.push(`${incoming.method} ${incoming.url}`)
    const { method, headers } = incoming
    const upstream = request(incoming.url!, { method, headers, agent: false }, answer => {
      outgoing.writeHead(answer.statusCode ?? 502, answer.rawHeaders)
      answer.pipe(outgoing)
    })
    upstream.on('error', () => outgoing.destroy())
    incoming.pipe(upstream)
  }
  const server = tls === undefined ? createServer(forward) : createTlsServer(tls, forward)
  server.on('connect', (incoming, client) => {
    const refusal = isKnown(incoming) ? refuseWith : 407
    if (refusal !== undefined) {
      seen.push(`${refusal}`)
      client.end(`HTTP/1.1 ${refusal} No\r\nContent-Length: 0\r\n\r\n`)
      return
    }
    seen.push(`CONNECT ${incoming.url}`)
    const { hostname, port } = new URL(`tcp://${incoming.url}`)
    const target = connect(Number(port), hostname, () => {
      client.write('HTTP/1.1 200 Connection Established\r\n\r\n')
      target.pipe(client)
      client.pipe(target)
    })
    target.on('error', () => client.destroy())
    client.on('error', () => target.destroy())
    client.on('close', () => target.destroy())
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `${tls === undefined ? 'http' : 'https'}://127.0.0.1:${(server.address() as AddressInfo).port}`,
    seen,
    stop() {
      server.closeAllConnections()
      return new Promise(resolve => server.close(() => resolve()))
    },
  }
}
