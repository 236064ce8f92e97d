/**
 * GETs objects with the SDK's own signer and connections, but not through its stack of middleware,
 * which costs ten times what the rest of a small GET does (docs/decisions/fetching.md).
 *
 * What a request to a bucket looks like (host, path, signing region) we do not work out ourselves:
 * the SDK is asked once for a request that is never sent, and ours differ from it in the key. An
 * answer that is not the object goes back into the SDK, as if it had sent the request itself, so
 * its errors are the ones that `errors.ts` knows. Whatever we have not seen before is its job whole.
 */
import type { GetObjectCommandInput, S3Client } from '@aws-sdk/client-s3'
import { loadSdk, REQUEST_PAYER_HEADER } from './client.js'

export interface ObjectAnswer {
  /** A `Readable`. */
  readonly Body?: unknown
  readonly ETag?: string | undefined
  readonly LastModified?: Date | undefined
  readonly ContentRange?: string | undefined
  readonly ContentLength?: number | undefined
}

export type GetInput = Pick<GetObjectCommandInput, 'VersionId' | 'Range' | 'IfMatch'> & {
  readonly Bucket: string
  readonly Key: string
}

type SignerOf = S3Client['config']['signer']
type Signer = Awaited<ReturnType<SignerOf>>
type HttpRequest = Parameters<Signer['sign']>[0]

/** What the SDK's connections answer. */
interface HttpResponse {
  readonly statusCode: number
  /** By their names in lower case. */
  readonly headers: Readonly<Record<string, string>>
  readonly body: unknown
}

/** How to reach the objects of one bucket. */
interface Route {
  /** What all requests have in common. */
  readonly common: Pick<HttpRequest, 'method' | 'protocol' | 'hostname' | 'port'> & {
    readonly headers: Readonly<Record<string, string>>
  }
  /** Ends in a slash; the key follows. */
  readonly pathPrefix: string
  readonly signer: Signer
  readonly signingRegion: string
}

/** Other headers mean something that we would have to understand. */
const HEADERS_SENT = ['host', 'user-agent', REQUEST_PAYER_HEADER]
/** Says the same as `user-agent`. */
const HEADER_DROPPED = 'x-amz-user-agent'
/** Requests to S3 Express are signed for a session, which the SDK opens and renews. */
const EXPRESS_BUCKET = /--x(a?)-s3$/

export class DirectGets {
  /** A client signs for one identity in one region. One route a bucket, as the clients' own settings. */
  readonly #routes = new WeakMap<S3Client, Map<string, Promise<Route | undefined>>>()

  /** Throws what `client.send(new GetObjectCommand(input))` would. */
  async send(client: S3Client, input: GetInput, abortSignal: AbortSignal): Promise<ObjectAnswer> {
    const request = await this.request(client, input)
    if (request === undefined) return await sendWithSdk(client, input, abortSignal)
    const answer = await client.config.requestHandler.handle(request, { abortSignal })
    const response: HttpResponse = answer.response
    if (response.statusCode !== 200 && response.statusCode !== 206) {
      return await sendWithSdk(client, input, abortSignal, response)
    }
    const { headers } = response
    return {
      Body: response.body,
      ETag: headers.etag,
      LastModified: dateOf(headers['last-modified']),
      ContentRange: headers['content-range'],
      ContentLength: lengthOf(headers['content-length']),
    }
  }

  /** Signed, unless the client signs nothing. `undefined`: the SDK has to do it. */
  async request(
    client: S3Client,
    { Bucket, Key, VersionId, Range, IfMatch }: GetInput,
  ): Promise<HttpRequest | undefined> {
    const route = await this.#routeTo(client, Bucket)
    if (route === undefined) return undefined
    const request: HttpRequest = {
      ...route.common,
      path: route.pathPrefix + Key.split('/').map(encodeUri).join('/'),
      query: VersionId === undefined ? {} : { versionId: VersionId },
      headers: {
        ...route.common.headers,
        ...(Range === undefined ? {} : { range: Range }),
        ...(IfMatch === undefined ? {} : { 'if-match': IfMatch }),
      },
    }
    // The SDK learns how wrong our clock is from answers that say so.
    const signingDate = new Date(Date.now() + client.config.systemClockOffset)
    const { signer, signingRegion } = route
    return await signer.sign(request, { signingDate, signingRegion, signingService: 's3' })
  }

  async #routeTo(client: S3Client, bucket: string): Promise<Route | undefined> {
    let routes = this.#routes.get(client)
    if (routes === undefined) {
      routes = new Map()
      this.#routes.set(client, routes)
    }
    let route = routes.get(bucket)
    if (route === undefined) {
      route = findRoute(client, bucket).catch(() => {
        // Such as credentials that have expired: next time may be better, and now the SDK says what is wrong.
        routes.delete(bucket)
        return undefined
      })
      routes.set(bucket, route)
    }
    return await route
  }
}

/** Asks the SDK for a request that is stopped before it is signed and sent. */
async function findRoute(client: S3Client, bucket: string): Promise<Route | undefined> {
  if (EXPRESS_BUCKET.test(bucket)) return undefined
  const { GetObjectCommand } = await loadSdk()
  const command = new GetObjectCommand({ Bucket: bucket, Key: 'k' })
  let request: HttpRequest | undefined
  let scheme: Parameters<SignerOf>[0]
  command.middlewareStack.add(
    (_next, context) => async args => {
      request = args.request as HttpRequest
      scheme = context.endpointV2?.properties?.authSchemes?.[0]
      return { response: undefined, output: { $metadata: {} } }
    },
    { step: 'build', priority: 'low', name: 'bobbinRoute' },
  )
  await client.send(command)
  if (request === undefined || scheme?.name !== 'sigv4' || scheme.signingName !== 's3') return undefined
  const { method, protocol, hostname, port, path, username } = request
  if (method !== 'GET' || !path.endsWith('/k') || username !== undefined || scheme.signingRegion === undefined) {
    return undefined
  }
  const { [HEADER_DROPPED]: _dropped, ...headers } = request.headers
  if (!Object.keys(headers).every(name => HEADERS_SENT.includes(name))) return undefined
  return {
    common: { method, protocol, hostname, ...(port === undefined ? {} : { port }), headers },
    pathPrefix: path.slice(0, -1),
    signer: await client.config.signer(scheme),
    signingRegion: scheme.signingRegion,
  }
}

/** With an answer that has come already, the SDK only reads it. */
async function sendWithSdk(
  client: S3Client,
  input: GetInput,
  abortSignal: AbortSignal,
  response?: HttpResponse,
): Promise<ObjectAnswer> {
  const { GetObjectCommand } = await loadSdk()
  const command = new GetObjectCommand(input)
  if (response !== undefined) {
    command.middlewareStack.add(() => async () => ({ response }) as never, {
      step: 'deserialize',
      priority: 'low',
      name: 'bobbinAnswer',
    })
  }
  return await client.send(command, { abortSignal })
}

/** As S3 signs it: all but letters, digits and `-_.~`. */
function encodeUri(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, c => `%${c.charCodeAt(0).toString(16).toUpperCase()}`)
}

function dateOf(header: string | undefined): Date | undefined {
  const date = new Date(header ?? Number.NaN)
  return Number.isNaN(date.getTime()) ? undefined : date
}

function lengthOf(header: string | undefined): number | undefined {
  return header !== undefined && /^\d+$/.test(header) ? Number(header) : undefined
}
