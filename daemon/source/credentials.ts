/**
 * Who we are for S3: Quilt's login when there is one, else the keys of the environment, else the rest of the AWS
 * chain (profiles, SSO, web identity, container and instance metadata), else nobody, and requests go unsigned.
 *
 * Credentials that a server refuses are looked for anew: files are read again, programs and services asked again.
 */
import { BobbinError, hasCode } from '../model/index.js'
import { type AwsPlace, findAwsPlace } from './aws-chain.js'
import { s3Code } from './failure-class.js'
import { areSame, type Identity } from './identity.js'
import { KeptIdentity } from './kept-identity.js'
import { quiltLogin } from './quilt-login.js'
import { ServiceHandler } from './service-handler.js'
import { readCertificates } from './settings.js'

export type FoundCredentials =
  | {
      readonly kind: 'found'
      readonly isQuilt: boolean
      /** For messages: which credentials these are, never what they are. */
      readonly origin: string
      readonly provider: () => Promise<Identity>
      /** Quilt's config names one; the AWS chain has its own way. */
      readonly region: string | undefined
    }
  | { readonly kind: 'none' /** Why the AWS chain found nothing. */; readonly reason: string }

/** A daemon that started before `aws sso login` shall notice it. */
const NONE_FOR_MS = 30_000

/** Between two looks because of refusals: a thousand readers that are refused do not start a thousand `credential_process`. */
const RENEW_PAUSE_MS = 1000

/**
 * So much of the I/O time-out one question for credentials may take. Less than the half that an attempt at S3 has (progress.ts), so
 * that the service that is silent is named, and there is time for another try.
 */
const ASK_PART = 0.4

/** Between two times that Quilt's catalog is asked for other credentials than those of a login that has not expired. */
const CATALOG_PAUSE_MS = 60_000

/** Looks once, again some time after nothing was found, and again when what was found is refused. */
export class CredentialFinder {
  #found: Promise<FoundCredentials> | undefined
  #lookAgainAt = Infinity
  #renewal: Promise<FoundCredentials> | undefined
  #renewAgainAt = -Infinity
  #askCatalogAt = -Infinity

  constructor(private readonly ioTimeoutMs: number) {}

  find(): Promise<FoundCredentials> {
    if (this.#found === undefined || performance.now() > this.#lookAgainAt) {
      this.#lookAgainAt = Infinity
      this.#found = this.#look().then(
        found => {
          if (found.kind === 'none') this.#lookAgainAt = performance.now() + NONE_FOR_MS
          return found
        },
        error => {
          this.#found = undefined
          throw error
        },
      )
    }
    return this.#found
  }

  /** The next one who asks looks anew. */
  forget(): void {
    this.#found = undefined
    this.#lookAgainAt = Infinity
  }

  /**
   * What to use instead of credentials that a server refused. The same object as `refused` means that looking again
   * found nothing new. Callers that are refused together share one look.
   */
  async renew(refused: FoundCredentials): Promise<FoundCredentials> {
    const present = await this.find()
    if (present !== refused) return present
    if (this.#renewal === undefined && performance.now() < this.#renewAgainAt) return refused
    this.#renewal ??= this.#renew(refused).finally(() => {
      this.#renewal = undefined
      this.#renewAgainAt = performance.now() + RENEW_PAUSE_MS
    })
    return await this.#renewal
  }

  async #renew(refused: FoundCredentials): Promise<FoundCredentials> {
    const asksCatalog = performance.now() >= this.#askCatalogAt
    const fresh = await this.#look(asksCatalog ? await identityOf(refused) : undefined)
    let isNew: boolean
    try {
      isNew = !(await isSameIdentity(fresh, refused))
    } catch (error) {
      if (!hasCode(error, 'ACCESS_DENIED')) throw error
      isNew = false
    }
    if (asksCatalog && fresh.kind === 'found' && fresh.isQuilt) {
      this.#askCatalogAt = performance.now() + CATALOG_PAUSE_MS
    }
    // The refusal says more than "nothing was found" would, and what was found before may be good elsewhere.
    if (!isNew) return refused
    this.#found = Promise.resolve(fresh)
    return fresh
  }

  /** `refused`: not to be given again as long as there are others. */
  async #look(refused?: Identity): Promise<FoundCredentials> {
    const quilt = await quiltLogin(this.ioTimeoutMs, refused)
    if (quilt !== undefined) return { kind: 'found', isQuilt: true, ...quilt }
    const keys = environmentKeys()
    if (keys !== undefined) {
      const origin = 'AWS_ACCESS_KEY_ID of the environment'
      return { kind: 'found', isQuilt: false, origin, provider: async () => keys, region: undefined }
    }
    const services = new ServiceHandler(this.ioTimeoutMs, await readCertificates())
    const place = await findAwsPlace(services)
    const kept = new KeptIdentity(place.ask, place.origin, this.ioTimeoutMs * ASK_PART)
    try {
      await kept.get()
    } catch (error) {
      return nothingFrom(place, error, services)
    }
    return { kind: 'found', isQuilt: false, origin: place.origin, provider: kept.get, region: undefined }
  }
}

/** Throws what is no reason to go on without credentials. */
function nothingFrom(place: AwsPlace, error: unknown, services: ServiceHandler): FoundCredentials {
  const { AWS_PROFILE } = process.env
  const profile = AWS_PROFILE ? `with AWS_PROFILE=${AWS_PROFILE}, ` : ''
  if (place.isGuess)
    return { kind: 'none', reason: `${profile}nothing names any, and the metadata of this instance gave none` }
  if (error instanceof BobbinError) throw error
  const cause = services.passingFailure
  const reason = reasonOf(error)
  if (cause !== undefined)
    throw new BobbinError('UPSTREAM_UNAVAILABLE', `no credentials at the moment: ${reason}`, { cause })
  // An SDK's provider that says so itself may be one that was never used here, such as an SSO login of last year.
  const { cause: original } = error as { readonly cause?: unknown }
  if (['CredentialsProviderError', 'TokenProviderError'].includes(s3Code(original))) {
    return { kind: 'none', reason: profile + reason }
  }
  throw new BobbinError('ACCESS_DENIED', `the AWS credentials cannot be used: ${reason}`, { cause: error })
}

/** Before AWS_PROFILE, as boto3 has it; the SDK of JavaScript has it the other way round, and warns. */
function environmentKeys(): Identity | undefined {
  const { AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_SECURITY_TOKEN } = process.env
  if (!AWS_ACCESS_KEY_ID || !AWS_SECRET_ACCESS_KEY) return undefined
  // boto3 reads the second name, too, which is the older one.
  const sessionToken = AWS_SESSION_TOKEN || AWS_SECURITY_TOKEN
  return {
    accessKeyId: AWS_ACCESS_KEY_ID,
    secretAccessKey: AWS_SECRET_ACCESS_KEY,
    ...(sessionToken ? { sessionToken } : {}),
  }
}

/** `undefined` also for a provider that cannot say any more who we were: it has been overtaken. */
async function identityOf(credentials: FoundCredentials): Promise<Identity | undefined> {
  return credentials.kind === 'none' ? undefined : await credentials.provider().catch(() => undefined)
}

async function isSameIdentity(fresh: FoundCredentials, refused: FoundCredentials): Promise<boolean> {
  if (fresh.kind === 'none') return true
  const after = await fresh.provider()
  const before = await identityOf(refused)
  return before !== undefined && areSame(before, after)
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
