/**
 * HTTPS_PROXY, HTTP_PROXY and NO_PROXY, as boto3 reads them: names in lower case win, and a name in NO_PROXY stands
 * for its subdomains, too. (The packages that read these have exact names there, or ALL_PROXY, which boto3 does not read.)
 */
import { once } from 'node:events'
import { NodeHttpHandler, type NodeHttpHandlerOptions } from '@smithy/node-http-handler'
import { HttpProxyAgent } from 'http-proxy-agent'
import { HttpsProxyAgent } from 'https-proxy-agent'
import { BobbinError } from '../model/index.js'

interface Connections {
  readonly keepAlive: boolean
  readonly maxSockets: number
  readonly ca: Buffer | undefined
}

/** The proxy to ask for an address, `undefined` for none. `host` has a port only where the address has one. */
export function proxyFor(scheme: 'http' | 'https', host: string): string | undefined {
  const proxy = variable(`${scheme}_proxy`)
  if (!proxy) return undefined
  const name = host.toLowerCase()
  const nameOnly = name.replace(/:\d+$/, '')
  const exceptions = (variable('no_proxy') ?? '').split(',').map(text => text.trim().toLowerCase())
  const isException = exceptions.some(exception => {
    if (exception === '*') return exceptions.length === 1
    const bare = exception.replace(/^\.+/, '')
    return bare !== '' && [name, nameOnly].some(candidate => candidate === bare || candidate.endsWith(`.${bare}`))
  })
  if (isException) return undefined
  return proxy.includes('://') ? proxy : `http://${proxy}`
}

/** Sends through a proxy what is to go there, and the rest as `direct` does. */
export class ProxiedHandler extends NodeHttpHandler {
  readonly #proxied: NodeHttpHandler | undefined

  /** `agents`: `undefined` where no proxy is set. */
  constructor(direct: NodeHttpHandlerOptions, agents: ProxyAgents | undefined) {
    super(direct)
    if (agents !== undefined) this.#proxied = new NodeHttpHandler({ ...direct, ...agents })
  }

  override handle(...[request, options]: Parameters<NodeHttpHandler['handle']>): ReturnType<NodeHttpHandler['handle']> {
    const { protocol, hostname, port } = request
    const host = port === undefined ? hostname : `${hostname}:${port}`
    const scheme = protocol === 'https:' ? 'https' : 'http'
    if (this.#proxied === undefined || proxyFor(scheme, host) === undefined) return super.handle(request, options)
    // The package for http: would send what waits for "100 Continue" on a connection that is used again as if there were no proxy.
    if (scheme === 'http') for (const name of ['expect', 'Expect']) delete request.headers[name]
    return this.#proxied.handle(request, options)
  }
}

/** What goes wrong at a proxy is said to be the proxy's, which the packages do not do. */
class Forwards extends HttpProxyAgent<string> {
  override async connect(...[request, options]: Parameters<HttpProxyAgent<string>['connect']>) {
    try {
      const socket = await super.connect(request, options)
      if (this.proxy.protocol === 'https:') await once(socket, 'secureConnect')
      return socket
    } catch (error) {
      throw ofProxy(this.proxy, error)
    }
  }
}

class Tunnels extends HttpsProxyAgent<string> {
  readonly #ca: Buffer | undefined

  constructor(proxy: URL, connections: ProxyConnections) {
    super(proxy, connections)
    this.#ca = connections.ca
  }

  override async connect(...[request, options]: Parameters<HttpsProxyAgent<string>['connect']>) {
    let status = 200
    request.once('proxyConnect', ({ statusCode }: { readonly statusCode: number }) => {
      status = statusCode
    })
    // The package uses the certificates of its options for the proxy only; the server behind it is to be checked by the same.
    const checked = this.#ca === undefined ? options : Object.assign({}, options, { ca: this.#ca })
    const socket = await super.connect(request, checked).catch(error => {
      throw ofProxy(this.proxy, error)
    })
    if (status === 200) return socket
    // Else it would be taken for the answer of S3.
    socket.destroy()
    throw proxyRefusal(this.proxy, status)
  }
}

function ofProxy({ host }: URL, error: unknown): unknown {
  if (error instanceof Error) error.message = `the proxy ${host}: ${error.message}`
  return error
}

/** Of a CONNECT that was not done. */
function proxyRefusal({ host }: URL, status: number): BobbinError {
  if (status === 407) return new BobbinError('ACCESS_DENIED', PROXY_AUTHENTICATION)
  const message = `the proxy ${host} does not connect us (HTTP ${status})`
  // As the SDK has it, for failure-class.ts: a proxy that cannot reach the server now is asked again.
  if (status >= 500)
    return new BobbinError('UPSTREAM_UNAVAILABLE', message, { cause: { $metadata: { httpStatusCode: status } } })
  return new BobbinError('ACCESS_DENIED', `${message}: allow it there, or except the host with NO_PROXY`)
}

/** What to do about HTTP 407. */
export const PROXY_AUTHENTICATION =
  'the proxy wants a user name and a password, or others (HTTP 407): set HTTPS_PROXY or HTTP_PROXY to http://USER:PASSWORD@HOST:PORT'

export type ProxyAgents = Pick<NodeHttpHandlerOptions, 'httpAgent' | 'httpsAgent'>

/** `undefined`: no proxy is set. */
export function proxyAgents(connections: Connections): ProxyAgents | undefined {
  // A name that no exception can have.
  const http = proxyFor('http', '')
  const https = proxyFor('https', '')
  if (http === undefined && https === undefined) return undefined
  return {
    ...(http !== undefined && { httpAgent: new Forwards(...proxyOf(http, connections)) }),
    ...(https !== undefined && { httpsAgent: new Tunnels(...proxyOf(https, connections)) }),
  }
}

interface ProxyConnections extends Connections {
  readonly headers: Readonly<Record<string, string>>
}

/** The password goes into the header here: the packages would show the URL that they are given, and errors may hold it. */
function proxyOf(proxy: string, connections: Connections): [URL, ProxyConnections] {
  // The text may hold a password, so it is not shown.
  if (!URL.canParse(proxy))
    throw new BobbinError('INVALID_ARGUMENT', 'the proxy (HTTP_PROXY or HTTPS_PROXY) is not a URL')
  const url = new URL(proxy)
  if (url.protocol !== 'http:' && url.protocol !== 'https:') {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `a proxy (HTTP_PROXY or HTTPS_PROXY) is http:// or https://, not ${url.protocol}//`,
    )
  }
  const { username, password } = url
  url.username = ''
  url.password = ''
  if (username === '' && password === '') return [url, { ...connections, headers: {} }]
  const login = Buffer.from(`${decodePercent(username)}:${decodePercent(password)}`).toString('base64')
  return [url, { ...connections, headers: { 'Proxy-Authorization': `Basic ${login}` } }]
}

function decodePercent(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

function variable(name: string): string | undefined {
  return process.env[name] ?? process.env[name.toUpperCase()]
}
