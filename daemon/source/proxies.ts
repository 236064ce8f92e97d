/**
 * HTTPS_PROXY, HTTP_PROXY and NO_PROXY, as boto3 reads them: names in lower case win, and a name in NO_PROXY stands
 * for its subdomains, too. (The packages that read these have exact names there, or ALL_PROXY, which boto3 does not read.)
 */
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
    const isProxied = proxyFor(protocol === 'https:' ? 'https' : 'http', host) !== undefined
    return this.#proxied !== undefined && isProxied
      ? this.#proxied.handle(request, options)
      : super.handle(request, options)
  }
}

/** The package uses the certificates of its options for the proxy only; the server behind it is to be checked by the same. */
class Tunnels extends HttpsProxyAgent<string> {
  readonly #ca: Buffer | undefined

  constructor(proxy: URL, connections: Connections) {
    super(proxy, connections)
    this.#ca = connections.ca
  }

  override connect(...[request, options]: Parameters<HttpsProxyAgent<string>['connect']>) {
    return super.connect(request, this.#ca === undefined ? options : Object.assign({}, options, { ca: this.#ca }))
  }
}

export type ProxyAgents = Pick<NodeHttpHandlerOptions, 'httpAgent' | 'httpsAgent'>

/** `undefined`: no proxy is set. */
export function proxyAgents(connections: Connections): ProxyAgents | undefined {
  // A name that no exception can have.
  const http = proxyFor('http', '')
  const https = proxyFor('https', '')
  if (http === undefined && https === undefined) return undefined
  return {
    ...(http !== undefined && { httpAgent: new HttpProxyAgent(urlOf(http), connections) }),
    ...(https !== undefined && { httpsAgent: new Tunnels(urlOf(https), connections) }),
  }
}

function urlOf(proxy: string): URL {
  // The text may hold a password, so it is not shown.
  if (!URL.canParse(proxy))
    throw new BobbinError('INVALID_ARGUMENT', 'the proxy (HTTP_PROXY or HTTPS_PROXY) is not a URL')
  return new URL(proxy)
}

function variable(name: string): string | undefined {
  return process.env[name] ?? process.env[name.toUpperCase()]
}
