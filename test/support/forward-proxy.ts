/** A real HTTP proxy on loopback that counts: forwards requests for `http:` addresses, and tunnels CONNECT. */
import { createServer, request } from 'node:http'
import { type AddressInfo, connect } from 'node:net'

export interface ForwardProxy {
  /** `http://127.0.0.1:PORT` */
  readonly url: string
  /** Requests that were forwarded, as `GET http://…`, and tunnels, as `CONNECT host:port`. */
  readonly seen: readonly string[]
  stop(): Promise<void>
}

export async function startForwardProxy(): Promise<ForwardProxy> {
  const seen: string[] = []
  const server = createServer((incoming, outgoing) => {
    seen.push(`${incoming.method} ${incoming.url}`)
    const { method, headers } = incoming
    const upstream = request(incoming.url!, { method, headers, agent: false }, answer => {
      outgoing.writeHead(answer.statusCode ?? 502, answer.rawHeaders)
      answer.pipe(outgoing)
    })
    upstream.on('error', () => outgoing.destroy())
    incoming.pipe(upstream)
  })
  server.on('connect', (incoming, client) => {
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
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    seen,
    stop() {
      server.closeAllConnections()
      return new Promise(resolve => server.close(() => resolve()))
    },
  }
}
