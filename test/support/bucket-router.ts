/** One address for several S3 servers, by bucket: as a service has it whose regions know nothing of each other's buckets. */
import { createServer, request } from 'node:http'
import type { AddressInfo } from 'node:net'

/** `serverOf`: the address of the server that has a bucket. Requests pass unchanged, so that their signatures stay valid. */
export async function startBucketRouter(
  serverOf: (bucket: string) => string,
): Promise<{ readonly endpoint: string; stop(): Promise<void> }> {
  const server = createServer((from, to) => {
    const { hostname, port } = new URL(serverOf(from.url!.split(/[/?]/)[1]!))
    const { method, headers, url: path } = from
    const passed = request({ hostname, port, method, path, headers }, answer => {
      to.writeHead(answer.statusCode!, answer.headers)
      answer.pipe(to)
    })
    passed.once('error', () => to.destroy())
    from.pipe(passed)
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const stop = () =>
    new Promise<void>(resolve => {
      server.close(() => resolve())
      server.closeAllConnections()
    })
  return { endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, stop }
}
