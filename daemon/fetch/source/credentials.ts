/**
 * Who we are for S3: Quilt's login when there is one, else the AWS chain (environment, profiles,
 * SSO, web identity, container and instance metadata), else nobody, and requests go unsigned.
 */
import { BobbinError } from '../../model/index.js'
import { quiltLogin } from './quilt-login.js'

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

/** Looks once, and again some time after nothing was found. */
export class CredentialFinder {
  #found: Promise<FoundCredentials> | undefined
  #lookAgainAt = Infinity

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

  async #look(): Promise<FoundCredentials> {
    const quilt = await quiltLogin(this.ioTimeoutMs)
    if (quilt !== undefined) return { kind: 'found', ...quilt }
    const { defaultProvider } = await import('@aws-sdk/credential-provider-node')
    const provider = defaultProvider({ timeout: METADATA_TIMEOUT_MS, maxRetries: 0 })
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

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
