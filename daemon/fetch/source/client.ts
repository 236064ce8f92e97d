/**
 * The SDK's clients, one for each way to ask: a region, signed or not, path-style or not.
 *
 * Loads the SDK on first use, reads the machine's settings once, and shares the sockets.
 * AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and the `endpoint_url` of a profile are the SDK's own
 * business; here we only need to know that there is one, because servers other than AWS rarely
 * have a host name for each bucket.
 */
import { readFileSync } from 'node:fs'
import { Agent as HttpAgent } from 'node:http'
import { Agent as HttpsAgent } from 'node:https'
import type { S3Client } from '@aws-sdk/client-s3'
import { BobbinError, localError } from '../../model/index.js'
import type { Identity } from './credentials.js'

/** Parallel connections to one server. Requests beyond it queue, and their time-out runs: bound the work, not this. */
const SOCKETS_MAX = 64

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
  #settings: Promise<{ readonly region: string; readonly isPathStyle: boolean }> | undefined
  readonly #idleMs: number | undefined
  #agents: { httpAgent: HttpAgent; httpsAgent: HttpsAgent } | undefined

  constructor(options: { readonly idleMs?: number } = {}) {
    this.#idleMs = options.idleMs
  }

  async get(choice: ClientChoice): Promise<S3Client> {
    // Both are awaited before the map is looked at, so that a burst of requests makes one client.
    const { S3Client } = await loadSdk()
    this.#settings ??= this.#readSettings()
    const settings = await this.#settings
    const region = choice.region ?? settings.region
    // A dot in a bucket's name does not fit the wildcard of AWS's certificate.
    const forcePathStyle = settings.isPathStyle || choice.bucket.includes('.')
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
      requestHandler: {
        ...this.#sharedAgents(),
        ...(this.#idleMs !== undefined && { socketTimeout: this.#idleMs }),
      },
      ...(choice.sign
        ? { credentials: choice.sign }
        : {
            credentials: { accessKeyId: 'unsigned', secretAccessKey: 'unsigned' },
            signer: { sign: async request => request },
          }),
    })
    this.#clients.set(id, { client, sign: choice.sign })
    return client
  }

  async #readSettings() {
    const { S3Client } = await loadSdk()
    const probe = new S3Client({})
    const region = await probe.config.region().catch(() => undefined)
    const endpoint = await probe.config.serviceConfiguredEndpoint?.()
    probe.destroy()
    if (endpoint !== undefined && !URL.canParse(endpoint)) {
      throw new BobbinError('INVALID_ARGUMENT', `the S3 endpoint (AWS_ENDPOINT_URL) is not a URL: ${endpoint}`)
    }
    return {
      // AWS_DEFAULT_REGION is what quilt3's boto3 reads; the SDK of JavaScript does not know it.
      region: region || process.env.AWS_DEFAULT_REGION || 'us-east-1',
      isPathStyle: endpoint !== undefined && !/\.amazonaws\.com(\.cn)?\/?$/.test(endpoint),
    }
  }

  #sharedAgents() {
    this.#agents ??= {
      httpAgent: new HttpAgent({ keepAlive: true, maxSockets: SOCKETS_MAX }),
      httpsAgent: new HttpsAgent({ keepAlive: true, maxSockets: SOCKETS_MAX, ...certificates() }),
    }
    return this.#agents
  }

  close(): void {
    this.#agents?.httpAgent.destroy()
    this.#agents?.httpsAgent.destroy()
    this.#agents = undefined
    this.#clients.clear()
  }
}

/** AWS_CA_BUNDLE works with quilt3, so it works here; the SDK of JavaScript does not know it. */
function certificates(): { ca?: Buffer } {
  const path = process.env.AWS_CA_BUNDLE
  if (!path) return {}
  try {
    return { ca: readFileSync(path) }
  } catch (error) {
    throw localError(`read the certificates that AWS_CA_BUNDLE names, ${path}`, error)
  }
}
