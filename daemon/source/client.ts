/**
 * The SDK's clients, one for each way to ask: a region, signed or not, path-style or not.
 *
 * Loads the SDK on first use, reads the machine's settings once (settings.ts), and shares the sockets.
 */
import { Agent as HttpAgent } from 'node:http'
import { Agent as HttpsAgent } from 'node:https'
import type { S3Client, ServiceInputTypes, ServiceOutputTypes } from '@aws-sdk/client-s3'
import type { BuildMiddleware } from '@smithy/types'
import type { Identity } from './identity.js'
import { ProxiedHandler, type ProxyAgents, proxyAgents } from './proxies.js'
import { readSettings, type Settings } from './settings.js'

/** Parallel connections to one server. Requests beyond it queue, and their time-out runs: bound the work, not this. */
const SOCKETS_MAX = 64

/** With the value `requester`: whoever asks pays, where the bucket's owner wants that. */
export const REQUEST_PAYER_HEADER = 'x-amz-request-payer'

export type Sdk = typeof import('@aws-sdk/client-s3')

let sdk: Promise<Sdk> | undefined

export function loadSdk(): Promise<Sdk> {
  // The SDK's advice to people who run Node.js 20 would land on stderr among our messages.
  process.env.AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED ??= 'true'
  sdk ??= import('@aws-sdk/client-s3')
  return sdk
}

export interface ClientChoice {
  readonly bucket: string
  readonly region: string | undefined
  /** `undefined`: unsigned. */
  readonly sign: (() => Promise<Identity>) | undefined
}

export class S3Clients {
  readonly #clients = new Map<string, { readonly client: S3Client; readonly sign: ClientChoice['sign'] }>()
  #settings: Promise<Settings> | undefined
  readonly #idleMs: number | undefined
  #agents: { direct: { httpAgent: HttpAgent; httpsAgent: HttpsAgent }; proxied: ProxyAgents | undefined } | undefined

  constructor(options: { readonly idleMs?: number } = {}) {
    this.#idleMs = options.idleMs
  }

  async get(choice: ClientChoice): Promise<S3Client> {
    // Both are awaited before the map is looked at, so that a burst of requests makes one client.
    const { S3Client } = await loadSdk()
    this.#settings ??= this.#readSettings()
    const settings = await this.#settings
    const region = choice.region ?? settings.region
    // A dot in a bucket's name does not fit the wildcard of AWS's certificate. An access point has a host of its own.
    const forcePathStyle = !choice.bucket.startsWith('arn:') && (settings.isPathStyle || choice.bucket.includes('.'))
    const id = `${region} ${choice.sign ? 'signed' : 'unsigned'} ${forcePathStyle ? 'path' : 'host'}`
    const known = this.#clients.get(id)
    // Credentials that were looked for anew take the place of those before; requests under way end with theirs.
    if (known !== undefined && known.sign === choice.sign) return known.client
    const client = new S3Client({
      region,
      forcePathStyle,
      // `retry.ts` is the only layer that retries.
      maxAttempts: 1,
      // We check every byte against the manifest; the SDK's CRC would only cost time.
      responseChecksumValidation: 'WHEN_REQUIRED',
      requestChecksumCalculation: 'WHEN_REQUIRED',
      requestHandler: this.#handler(settings),
      ...(choice.sign
        ? { credentials: choice.sign }
        : {
            credentials: { accessKeyId: 'unsigned', secretAccessKey: 'unsigned' },
            signer: { sign: async request => request },
          }),
    })
    if (settings.isRequesterPaying)
      client.middlewareStack.add(payForRequest, { step: 'build', name: 'bobbinRequestPayer' })
    this.#clients.set(id, { client, sign: choice.sign })
    return client
  }

  async #readSettings(): Promise<Settings> {
    const { S3Client } = await loadSdk()
    const probe = new S3Client({})
    try {
      return await readSettings(probe)
    } finally {
      probe.destroy()
    }
  }

  #handler({ certificates }: Settings): ProxiedHandler {
    const connections = { keepAlive: true, maxSockets: SOCKETS_MAX, ca: certificates }
    this.#agents ??= {
      direct: { httpAgent: new HttpAgent(connections), httpsAgent: new HttpsAgent(connections) },
      proxied: proxyAgents(connections),
    }
    const { direct, proxied } = this.#agents
    return new ProxiedHandler(
      { ...direct, ...(this.#idleMs !== undefined && { socketTimeout: this.#idleMs }) },
      proxied,
    )
  }

  /** Settings are read again for the next request; requests under way keep their sockets. */
  forget(): void {
    this.#settings = undefined
    this.#clients.clear()
    const { direct, proxied } = this.#agents ?? {}
    this.#agents = undefined
    for (const { httpAgent, httpsAgent } of [direct ?? {}, proxied ?? {}] as ProxyAgents[]) {
      for (const agent of [httpAgent, httpsAgent]) {
        if (agent && 'freeSockets' in agent)
          for (const sockets of Object.values(agent.freeSockets)) for (const socket of sockets ?? []) socket.destroy()
      }
    }
  }

  close(): void {
    for (const { httpAgent, httpsAgent } of [
      this.#agents?.direct ?? {},
      this.#agents?.proxied ?? {},
    ] as ProxyAgents[]) {
      for (const agent of [httpAgent, httpsAgent]) if (agent && 'destroy' in agent) agent.destroy()
    }
    this.#agents = undefined
    this.#clients.clear()
  }
}

/** Also on operations that have no parameter for it in the SDK; those that do not know the header ignore it. */
const payForRequest: BuildMiddleware<ServiceInputTypes, ServiceOutputTypes> = next => args => {
  const { headers } = args.request as { readonly headers: Record<string, string> }
  headers[REQUEST_PAYER_HEADER] = 'requester'
  return next(args)
}
