/**
 * Who we are for S3: Quilt's login when there is one, else the keys of the environment, else the rest of the AWS
 * chain (profiles, SSO, web identity, container and instance metadata), else nobody, and requests go unsigned.
 *
 * Credentials that a server refuses are looked for anew: files are read again, programs and services asked again.
 */
import { BobbinError } from '../model/index.js'
import { quiltLogin } from './quilt-login.js'
import { chooseProfile } from './settings.js'

export interface Identity {
  readonly accessKeyId: string
  readonly secretAccessKey: string
  readonly sessionToken?: string
  readonly expiration?: Date
}

export type FoundCredentials =
  | {
      readonly kind: 'found'
      /** For messages: which credentials these are, never what they are. */
      readonly origin: string
      readonly provider: () => Promise<Identity>
      /** Quilt's config names one; the AWS chain has its own way. */
      readonly region: string | undefined
    }
  | { readonly kind: 'none' /** Why the AWS chain found nothing. */; readonly reason: string }

/**
 * Instance metadata answers in milliseconds where it exists. Elsewhere its address may swallow
 * packets, and it is asked twice: two of these bound the wait on a machine without credentials.
 */
const METADATA_TIMEOUT_MS = 500

/** A daemon that started before `aws sso login` shall notice it. */
const NONE_FOR_MS = 30_000

/** Between two looks because of refusals: a thousand readers that are refused do not start a thousand `credential_process`. */
const RENEW_PAUSE_MS = 1000

/** Looks once, again some time after nothing was found, and again when what was found is refused. */
export class CredentialFinder {
  #found: Promise<FoundCredentials> | undefined
  #lookAgainAt = Infinity
  #renewal: Promise<FoundCredentials> | undefined
  #renewAgainAt = -Infinity

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
    const fresh = await this.#look()
    // The refusal says more than "nothing was found" would, and what was found before may be good elsewhere.
    if (fresh.kind === 'none' || (await isSameIdentity(fresh, refused))) return refused
    this.#found = Promise.resolve(fresh)
    return fresh
  }

  async #look(): Promise<FoundCredentials> {
    const quilt = await quiltLogin(this.ioTimeoutMs)
    if (quilt !== undefined) return { kind: 'found', ...quilt }
    const keys = environmentKeys()
    if (keys !== undefined) {
      return {
        kind: 'found',
        origin: 'AWS_ACCESS_KEY_ID of the environment',
        provider: async () => keys,
        region: undefined,
      }
    }
    chooseProfile()
    const { defaultProvider } = await import('@aws-sdk/credential-provider-node')
    // The SDK would keep what it has once read of ~/.aws until the process ends.
    const provider = defaultProvider({ timeout: METADATA_TIMEOUT_MS, maxRetries: 0, ignoreCache: true })
    try {
      await provider()
    } catch (error) {
      if (!(error instanceof Error) || error.name !== 'CredentialsProviderError') {
        throw new BobbinError('ACCESS_DENIED', `the AWS credentials cannot be used: ${reasonOf(error)}`, {
          cause: error,
        })
      }
      const { AWS_PROFILE } = process.env
      return { kind: 'none', reason: (AWS_PROFILE ? `with AWS_PROFILE=${AWS_PROFILE}, ` : '') + reasonOf(error) }
    }
    return { kind: 'found', origin: 'the AWS credential chain', provider, region: undefined }
  }
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

async function isSameIdentity(fresh: FoundCredentials, refused: FoundCredentials): Promise<boolean> {
  if (fresh.kind === 'none' || refused.kind === 'none') return false
  const after = await fresh.provider()
  // A provider that cannot say any more who we were has been overtaken.
  const before = await refused.provider().catch(() => undefined)
  return (
    before?.accessKeyId === after.accessKeyId &&
    before.secretAccessKey === after.secretAccessKey &&
    before.sessionToken === after.sessionToken
  )
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
