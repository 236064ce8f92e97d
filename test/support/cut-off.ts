/**
 * The way to a server, which can be cut: then every connection is reset and new ones are refused, as when the server is started again
 * or its host is gone. Bytes pass as they are.
 */
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'

export interface CutOff {
  /** `http://127.0.0.1:PORT`, always the same. */
  readonly endpoint: string
  /** Cuts it; resolves when nobody listens any more. */
  cut(): Promise<void>
  /** Resolves when it has carried so many more bytes from the server, and was cut in that moment. */
  cutAfter(bytes: number): Promise<void>
  mend(): Promise<void>
  stop(): Promise<void>
}

export async function startCutOff(target: string): Promise<CutOff> {
  const { hostname, port } = new URL(target)
  const sockets = new Set<Socket>()
  let server: Server | undefined
  let ownPort = 0
  let bytesLeft = Infinity
  let onBytes = () => {}

  function relay(client: Socket): void {
    const upstream = connect(Number(port), hostname)
    for (const [socket, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      sockets.add(socket)
      socket.on('error', () => other.destroy())
      socket.on('close', () => {
        sockets.delete(socket)
        other.destroy()
      })
    }
    upstream.on('data', chunk => {
      bytesLeft -= chunk.length
      if (bytesLeft <= 0) onBytes()
    })
    client.pipe(upstream).pipe(client)
  }

  async function mend(): Promise<void> {
    server = createServer(relay)
    await new Promise<void>(resolve => server?.listen(ownPort, '127.0.0.1', resolve))
    ownPort = (server.address() as AddressInfo).port
  }

  async function cut(): Promise<void> {
    const closing = server
    server = undefined
    const closed = new Promise<void>(resolve => (closing ? closing.close(() => resolve()) : resolve()))
    for (const socket of sockets) socket.resetAndDestroy()
    await closed
  }

  await mend()
  return {
    endpoint: `http://127.0.0.1:${ownPort}`,
    cut,
    cutAfter: bytes =>
      new Promise((resolve, reject) => {
        bytesLeft = bytes
        onBytes = () => {
          bytesLeft = Infinity
          cut().then(resolve, reject)
        }
      }),
    mend,
    stop: cut,
  }
}
