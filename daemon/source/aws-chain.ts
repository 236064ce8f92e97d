/**
 * Where AWS credentials come from when the environment has no keys: the first place that is set, in the order of boto3
 * (test/s3/settings), which the SDK's own chain does not have. What asks each place is the SDK's.
 */
import { loadSharedConfigFiles } from '@smithy/core/config'
import type { Identity } from './identity.js'
import type { ServiceHandler } from './service-handler.js'
import { chooseProfile, readRegion } from './settings.js'

/**
 * Instance metadata answers in milliseconds where it exists. Elsewhere its address may swallow
 * packets, and it is asked twice: two of these bound the wait on a machine without credentials.
 */
const INSTANCE_TIMEOUT_MS = 500
/** A container's service is there, because a variable names it; so it may take its time, and is asked again. */
const CONTAINER_TIMEOUT_MS = 1000
const CONTAINER_RETRIES = 2

export interface AwsPlace {
  /** For messages: which credentials these are, never what they are. */
  readonly origin: string
  /** Every machine could be one of EC2's: its metadata is asked for want of anything that was set. */
  readonly isGuess: boolean
  readonly ask: () => Promise<Identity>
}

/** Files are read anew; the SDK would keep what it has once read of ~/.aws until the process ends. */
export async function findAwsPlace(services: ServiceHandler): Promise<AwsPlace> {
  chooseProfile()
  const { AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN, AWS_ROLE_SESSION_NAME } = process.env
  const { AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, AWS_CONTAINER_CREDENTIALS_FULL_URI } = process.env
  const name = process.env.AWS_PROFILE || 'default'
  const { configFile, credentialsFile } = await loadSharedConfigFiles({ ignoreCache: true })
  const inCredentials = credentialsFile[name] ?? {}
  const profile = { ...configFile[name], ...inCredentials }
  const init = {
    ignoreCache: true,
    logger: SILENT,
    clientConfig: { requestHandler: services, logger: SILENT },
    // Without a region the SDK asks STS in us-east-1, and warns. Of SSO a profile names the region.
    parentClientConfig: { region: await readRegion(), requestHandler: services, logger: SILENT },
  }

  if (profile.role_arn && !profile.web_identity_token_file && (profile.source_profile || profile.credential_source)) {
    return found(`the role of the profile ${name}`, await fromProfile())
  }
  const webIdentityTokenFile = AWS_WEB_IDENTITY_TOKEN_FILE || profile.web_identity_token_file
  if (webIdentityTokenFile) {
    const { fromTokenFile } = await import('@aws-sdk/credential-provider-web-identity')
    const roleArn = AWS_ROLE_ARN || profile.role_arn
    const roleSessionName = AWS_ROLE_SESSION_NAME || profile.role_session_name
    const role = { webIdentityTokenFile, ...(roleArn && { roleArn }), ...(roleSessionName && { roleSessionName }) }
    return found(`the web identity of ${webIdentityTokenFile}`, fromTokenFile({ ...init, ...role }))
  }
  if (profile.sso_account_id || profile.sso_role_name) {
    const { fromSSO } = await import('@aws-sdk/credential-provider-sso')
    return found(`AWS SSO (the profile ${name})`, fromSSO({ ...init, profile: name }))
  }
  if (profile.credential_process && !inCredentials.aws_access_key_id) {
    const { fromProcess } = await import('@aws-sdk/credential-provider-process')
    return found(`the credential_process of the profile ${name}`, fromProcess({ ...init, profile: name }))
  }
  if (profile.aws_access_key_id || profile.login_session) {
    return found(`the profile ${name}`, await fromProfile())
  }
  if (AWS_CONTAINER_CREDENTIALS_RELATIVE_URI || AWS_CONTAINER_CREDENTIALS_FULL_URI) {
    const { fromHttp } = await import('@aws-sdk/credential-provider-http')
    const times = { timeout: CONTAINER_TIMEOUT_MS, maxRetries: CONTAINER_RETRIES }
    return found("the container's metadata", fromHttp({ logger: SILENT, ...times }))
  }
  const { fromInstanceMetadata } = await import('@smithy/credential-provider-imds')
  const ask = fromInstanceMetadata({ timeout: INSTANCE_TIMEOUT_MS, maxRetries: 0, logger: SILENT })
  return { origin: "the instance's metadata", isGuess: true, ask: isInstanceDisabled() ? refuse : ask }

  async function fromProfile(): Promise<() => Promise<Identity>> {
    const { fromIni } = await import('@aws-sdk/credential-provider-ini')
    return fromIni({ ...init, profile: name })
  }
}

function found(origin: string, ask: () => Promise<Identity>): AwsPlace {
  return { origin, isGuess: false, ask }
}

function isInstanceDisabled(): boolean {
  return (process.env.AWS_EC2_METADATA_DISABLED ?? 'false').toLowerCase() !== 'false'
}

async function refuse(): Promise<never> {
  throw new Error('AWS_EC2_METADATA_DISABLED is set')
}

/** Without a logger of its own the SDK writes to the console. */
const SILENT = { trace() {}, debug() {}, info() {}, warn() {}, error() {} }
