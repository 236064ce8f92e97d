/**
 * What the machine says of how S3 is to be asked: profile, region, endpoint, certificates. Environment and `~/.aws` are read
 * in the order of boto3 (test/s3/settings), because what works with quilt3 shall work here.
 *
 * Endpoints (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, `endpoint_url`, and the settings that ignore them) the SDK finds
 * itself, in that order. Here we only need to know whether there is one, because servers other than AWS rarely have a host name
 * for each bucket.
 */
import { readFile } from 'node:fs/promises'
import type { S3Client } from '@aws-sdk/client-s3'
import { loadConfig } from '@smithy/core/config'
import { BobbinError, localError } from '../model/index.js'

export interface Settings {
  readonly region: string
  readonly isPathStyle: boolean
  /** The authorities to trust instead of Node's. */
  readonly certificates: Buffer | undefined
  /** Requests to buckets whose requesters pay are to be paid for. */
  readonly isRequesterPaying: boolean
}

/** boto3 reads AWS_DEFAULT_PROFILE, first; the SDK of JavaScript knows AWS_PROFILE only, and reads it in many places. */
export function chooseProfile(): void {
  const { AWS_DEFAULT_PROFILE } = process.env
  if (AWS_DEFAULT_PROFILE) process.env.AWS_PROFILE = AWS_DEFAULT_PROFILE
}

/** Any client of the SDK can be the `probe`. Throws INVALID_ARGUMENT, and what a file fails with. */
export async function readSettings(probe: S3Client): Promise<Settings> {
  chooseProfile()
  const endpoint = await probe.config.serviceConfiguredEndpoint?.()
  if (endpoint !== undefined && !URL.canParse(endpoint)) {
    throw new BobbinError('INVALID_ARGUMENT', `the S3 endpoint (AWS_ENDPOINT_URL) is not a URL: ${endpoint}`)
  }
  return {
    region: await readRegion(),
    isPathStyle: endpoint !== undefined && !/\.amazonaws\.com(\.cn)?\/?$/.test(endpoint),
    certificates: await readCertificates(),
    isRequesterPaying: readRequestPayer(),
  }
}

export async function readRegion(): Promise<string> {
  return (await setting('region', env => env.AWS_REGION || env.AWS_DEFAULT_REGION)) ?? 'us-east-1'
}

export async function readCertificates(): Promise<Buffer | undefined> {
  const path = await setting('ca_bundle', env => env.AWS_CA_BUNDLE)
  if (path === undefined) return undefined
  try {
    return await readFile(path)
  } catch (error) {
    throw localError(`read the certificates that AWS_CA_BUNDLE or the profile's ca_bundle names, ${path}`, error)
  }
}

/** GDAL's name for it; boto3 and the AWS CLI have none but a parameter of each request. Throws INVALID_ARGUMENT. */
export function readRequestPayer(): boolean {
  const { AWS_REQUEST_PAYER: payer } = process.env
  if (!payer) return false
  if (payer.toLowerCase() === 'requester') return true
  throw new BobbinError('INVALID_ARGUMENT', `AWS_REQUEST_PAYER can only be "requester", not ${JSON.stringify(payer)}`)
}

/** The environment's, else the profile's. */
function setting(
  name: string,
  ofEnvironment: (env: NodeJS.ProcessEnv) => string | undefined,
): Promise<string | undefined> {
  return loadConfig<string | undefined>({
    environmentVariableSelector: env => ofEnvironment(env) || undefined,
    configFileSelector: profile => profile[name] || undefined,
    default: undefined,
  })()
}
