/**
 * Sends one request to a bucket the way that works for it: in its region, signed or not.
 *
 * Both are learned from refusals and remembered for the bucket. Signed comes first when there are
 * credentials; a refusal of reading is tried once the other way round, as quilt3 does, because credentials of
 * one account are often refused where nobody would be (public buckets). Whether unsigned works is
 * remembered per bucket and operation: a bucket may allow reading and not listing.
 *
 * Credentials that the server calls expired or unknown are looked for anew, once per request.
 */
import type { S3Client } from '@aws-sdk/client-s3'
import { BobbinError, throwIfAborted } from '../model/index.js'
import { awsFilesGeneration } from './aws-files.js'
import { loadSdk, S3Clients } from './client.js'
import { CredentialFinder, type FoundCredentials } from './credentials.js'
import { isDenied, isStaleIdentity, redirectRegion } from './errors.js'
import { httpStatus, s3Code } from './failure-class.js'
import { refusalAdvice } from './refusal-advice.js'

export interface S3Request<Output> {
  readonly operation: 'GetObject' | 'ListBucket' | 'PutObject' | 'DeleteObject'
  readonly bucket: string
  /** The address, for messages. */
  readonly what: string
  send(client: S3Client, signal: AbortSignal): Promise<Output>
}

interface BucketMemory {
  region: string | undefined
  readonly isSigned: Map<S3Request<unknown>['operation'], boolean>
}

export class S3Access {
  readonly #clients: S3Clients
  readonly #credentials: CredentialFinder
  readonly #buckets = new Map<string, BucketMemory>()
  #generation: number | undefined

  /** `idleMs`: ends requests whose connection was silent for so long; by default who sends them has a clock. */
  constructor(ioTimeoutMs: number, options: { readonly idleMs?: number } = {}) {
    this.#clients = new S3Clients(options)
    this.#credentials = new CredentialFinder(ioTimeoutMs)
  }

  /** Throws ACCESS_DENIED with what was tried; every other error as it came. */
  async send<Output>(request: S3Request<Output>, signal: AbortSignal): Promise<Output> {
    await this.#takeChanges()
    const memory = this.#memoryOf(request.bucket)
    let credentials = await this.#credentials.find()
    let isSigned = credentials.kind === 'found' && (memory.isSigned.get(request.operation) ?? true)
    let isRedirected = false
    let isRenewed = false
    const refusals: Refusal[] = []
    // At most one redirect, one renewal and one change of identity, so at most four turns.
    for (;;) {
      throwIfAborted(signal)
      const client = await this.#client(request.bucket, credentials, isSigned)
      try {
        const output = await request.send(client, signal)
        if (credentials.kind === 'found') memory.isSigned.set(request.operation, isSigned)
        return output
      } catch (error) {
        const region = redirectRegion(error) ?? (await regionOf(request.bucket, client, error, signal))
        if (region !== undefined && !isRedirected && region !== (await client.config.region())) {
          isRedirected = true
          memory.region = region
          continue
        }
        if (isSigned && !isRenewed && isStaleIdentity(error)) {
          isRenewed = true
          const refused = credentials
          credentials = await this.#credentials.renew(refused)
          if (credentials !== refused) continue
        }
        if (!isDenied(error)) throw error
        refusals.push({ isSigned, error })
        const isFinal = credentials.kind === 'none' || isWriting(request) || refusals.length === 2
        if (isFinal) throw accessDenied(request, credentials, refusals)
        isSigned = !isSigned
      }
    }
  }

  /** The client that a signed request to this bucket would be sent with now, for who has to know its settings. */
  async client(bucket: string): Promise<S3Client> {
    return await this.#client(bucket, await this.#credentials.find(), true)
  }

  /** Of the machine's files: what was learned by those of before is forgotten, and requests under way end with it. */
  async #takeChanges(): Promise<void> {
    const generation = await awsFilesGeneration()
    if (generation === this.#generation) return
    const isFirst = this.#generation === undefined
    this.#generation = generation
    if (isFirst) return
    this.#clients.forget()
    this.#credentials.forget()
    this.#buckets.clear()
  }

  #client(bucket: string, credentials: FoundCredentials, isSigned: boolean): Promise<S3Client> {
    const found = credentials.kind === 'found' ? credentials : undefined
    return this.#clients.get({
      bucket,
      region: this.#memoryOf(bucket).region ?? found?.region,
      sign: isSigned ? found?.provider : undefined,
    })
  }

  #memoryOf(bucket: string): BucketMemory {
    let memory = this.#buckets.get(bucket)
    if (memory === undefined) {
      memory = { region: undefined, isSigned: new Map() }
      this.#buckets.set(bucket, memory)
    }
    return memory
  }

  close(): void {
    this.#clients.close()
  }
}

/**
 * The region that a bucket's server names when it refuses a GET. The answer to a HEAD has no body, so that of a server which
 * does not name the region in a header, as Amazon's does, is 400 and nothing else.
 */
async function regionOf(
  bucket: string,
  client: S3Client,
  refusal: unknown,
  signal: AbortSignal,
): Promise<string | undefined> {
  if (httpStatus(refusal) !== 400 || s3Code(refusal) !== 'HTTP 400') return undefined
  const { ListObjectsV2Command } = await loadSdk()
  try {
    await client.send(new ListObjectsV2Command({ Bucket: bucket, MaxKeys: 1 }), { abortSignal: signal })
    return undefined
  } catch (error) {
    throwIfAborted(signal)
    return redirectRegion(error)
  }
}

interface Refusal {
  readonly isSigned: boolean
  readonly error: unknown
}

function accessDenied(
  request: S3Request<unknown>,
  credentials: FoundCredentials,
  refusals: readonly Refusal[],
): BobbinError {
  const tried = refusals
    .map(({ isSigned, error }) => {
      const how = isSigned && credentials.kind === 'found' ? `with ${credentials.origin}` : 'unsigned'
      return `${how} (${s3Code(error)})`
    })
    .join(' and ')
  const signed = refusals.find(({ isSigned }) => isSigned) ?? refusals[0]
  const help =
    credentials.kind === 'none'
      ? `no credentials were found (${credentials.reason}): set AWS_PROFILE, or AWS_ACCESS_KEY_ID and ` +
        'AWS_SECRET_ACCESS_KEY, or log in with quilt3'
      : refusalAdvice(signed?.error, request.operation)
  const orMissing =
    request.operation === 'GetObject' ? ' (or it is not there: S3 does not say so to who may not list the bucket)' : ''
  return new BobbinError('ACCESS_DENIED', `access denied to ${request.what}${orMissing}, tried ${tried}; ${help}`, {
    cause: signed?.error,
  })
}

/** Nobody writes unsigned, so there is no second way to try. */
function isWriting({ operation }: S3Request<unknown>): boolean {
  return operation === 'PutObject' || operation === 'DeleteObject'
}
