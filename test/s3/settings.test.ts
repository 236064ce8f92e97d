/**
 * Who we are and where we ask, beside the real boto3: both are given the same generated environments and files, and
 * the requests that they would send are compared.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { S3Access } from '../../daemon/source/access.js'
import { DirectGets } from '../../daemon/source/direct-get.js'
import { readSettings } from '../../daemon/source/settings.js'
import { part, repository } from '../support/parts.js'

const CASES = 200
/** Python starts, and signs `CASES` requests. */
const BOTO3_MS = 300_000

interface Answer {
  readonly accessKey: string | undefined
  readonly token: string | undefined
  readonly region: string
  readonly endpoint: string
  readonly caBundle: string | undefined
}

const isSet = fc.boolean()
/** An empty value is no value, for boto3 as for us. */
const profileName = fc.constantFrom(undefined, undefined, 'default', 'one', 'two')

const profile = fc.record({
  keys: fc.constantFrom(undefined, 'config', 'credentials', 'both', 'process'),
  token: isSet,
  region: isSet,
  endpoint: isSet,
  services: isSet,
  ignore: fc.constantFrom(undefined, undefined, undefined, 'true', 'false'),
  caBundle: isSet,
})

const matrix = fc.record({
  environment: fc.record({
    keys: isSet,
    token: fc.constantFrom(undefined, 'AWS_SESSION_TOKEN', 'AWS_SECURITY_TOKEN'),
    AWS_PROFILE: profileName,
    AWS_DEFAULT_PROFILE: profileName,
    AWS_REGION: fc.constantFrom(undefined, undefined, 'eu-west-1'),
    AWS_DEFAULT_REGION: fc.constantFrom(undefined, undefined, 'eu-west-2'),
    AWS_ENDPOINT_URL: fc.constantFrom(undefined, undefined, 'http://127.0.1.1:9000'),
    AWS_ENDPOINT_URL_S3: fc.constantFrom(undefined, undefined, 'http://127.0.1.2:9000'),
    AWS_IGNORE_CONFIGURED_ENDPOINT_URLS: fc.constantFrom(undefined, undefined, undefined, 'true', 'false'),
    caBundle: fc.constantFrom(false, false, true),
  }),
  profiles: fc.tuple(profile, profile, profile),
})
type Case = typeof matrix extends fc.Arbitrary<infer Value> ? Value : never

/** Writes a case's files into its own folder, because the SDK keeps what it read of a path. */
function write({ environment, profiles }: Case, folder: string): Record<string, string> {
  mkdirSync(folder)
  const at = (name: string) => join(folder, name)
  const config: string[] = []
  const credentials: string[] = []
  for (const [index, set] of profiles.entries()) {
    const name = ['default', 'one', 'two'][index]!
    config.push(name === 'default' ? '[default]' : `[profile ${name}]`)
    credentials.push(`[${name}]`)
    const keys = (origin: string) => [
      `aws_access_key_id = ${name}-${origin}`,
      'aws_secret_access_key = secret',
      ...(set.token ? [`aws_session_token = token-${name}-${origin}`] : []),
    ]
    if (set.keys === 'config' || set.keys === 'both') config.push(...keys('config'))
    if (set.keys === 'credentials' || set.keys === 'both') credentials.push(...keys('credentials'))
    if (set.keys === 'process') {
      config.push(`credential_process = cat ${at(`process-${name}`)}`)
      const answer = { Version: 1, AccessKeyId: `${name}-process`, SecretAccessKey: 'secret' }
      writeFileSync(
        at(`process-${name}`),
        JSON.stringify(set.token ? { ...answer, SessionToken: `token-${name}-process` } : answer),
      )
    }
    if (set.region) config.push(`region = us-west-${index + 1}`)
    if (set.endpoint) config.push(`endpoint_url = http://127.0.2.${index + 1}:9000`)
    if (set.services) config.push(`services = of-${name}`)
    if (set.ignore) config.push(`ignore_configured_endpoint_urls = ${set.ignore}`)
    if (set.caBundle) config.push(`ca_bundle = ${certificates(at(`ca-${name}`))}`)
    config.push(`[services of-${name}]`, 's3 =', `  endpoint_url = http://127.0.3.${index + 1}:9000`)
  }
  writeFileSync(at('config'), `${config.join('\n')}\n`)
  writeFileSync(at('credentials'), `${credentials.join('\n')}\n`)
  const { keys, token, caBundle, ...named } = environment
  const settings = {
    ...named,
    PATH: process.env.PATH,
    HOME: folder,
    XDG_DATA_HOME: folder,
    AWS_CONFIG_FILE: at('config'),
    AWS_SHARED_CREDENTIALS_FILE: at('credentials'),
    AWS_EC2_METADATA_DISABLED: 'true',
    ...(keys && { AWS_ACCESS_KEY_ID: 'environment', AWS_SECRET_ACCESS_KEY: 'secret' }),
    ...(keys && token !== undefined && { [token]: `token-${token}` }),
    ...(caBundle && { AWS_CA_BUNDLE: certificates(at('ca-environment')) }),
  }
  return Object.fromEntries(Object.entries(settings).flatMap(([name, value]) => (value ? [[name, value]] : [])))
}

/** A file whose content is its path, so that what was read says where from. */
function certificates(path: string): string {
  writeFileSync(path, path)
  return path
}

async function ours(environment: Readonly<Record<string, string>>): Promise<Answer> {
  for (const name of Object.keys(process.env)) delete process.env[name]
  Object.assign(process.env, environment)
  const access = new S3Access(5000)
  try {
    const client = await access.client('data')
    const request = await new DirectGets().request(client, { Bucket: 'data', Key: 'k' })
    if (request === undefined) throw new Error('the SDK has no request for us')
    const { protocol, hostname, port, headers } = request
    return {
      accessKey: accessKeyOf(headers.authorization),
      token: headers['x-amz-security-token'],
      region: await client.config.region(),
      endpoint: endpointOf(`${protocol}//${hostname}${port === undefined ? '' : `:${port}`}`),
      caBundle: (await readSettings(client)).certificates?.toString(),
    }
  } finally {
    access.close()
  }
}

function boto3(environments: readonly Readonly<Record<string, string>>[]): Answer[] {
  const { status, stdout, stderr } = spawnSync(part('quilt3'), [join(repository, 'test/support/boto3_settings.py')], {
    input: JSON.stringify(environments),
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
    timeout: BOTO3_MS,
  })
  if (status !== 0) throw new Error(`boto3 failed: ${stderr}`)
  const answers: Record<'authorization' | 'token' | 'region' | 'url' | 'caBundle', string | null>[] = JSON.parse(stdout)
  return answers.map(({ authorization, token, region, url, caBundle }) => ({
    accessKey: accessKeyOf(authorization ?? undefined),
    token: token ?? undefined,
    region: region!,
    endpoint: endpointOf(url!),
    caBundle: caBundle === null ? undefined : readFileSync(caBundle, 'utf8'),
  }))
}

function accessKeyOf(authorization: string | undefined): string | undefined {
  return authorization === undefined ? undefined : /Credential=([^/]+)/.exec(authorization)![1]
}

/** AWS's own hosts differ in how they name the region, which is compared by itself. */
function endpointOf(url: string): string {
  const { origin, hostname } = new URL(url)
  return hostname.endsWith('.amazonaws.com') ? 'AWS' : origin
}

t.test('(S128) keys, profile, region, endpoint and certificates are those that boto3 takes', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-settings-'))
  const before = { ...process.env }
  t.teardown(() => {
    for (const name of Object.keys(process.env)) delete process.env[name]
    Object.assign(process.env, before)
    rmSync(folder, { recursive: true })
  })
  const cases = fc.sample(matrix, { numRuns: CASES, seed: 128 })
  const environments = cases.map((one, index) => write(one, join(folder, String(index))))
  const theirs = boto3(environments)
  for (const [index, environment] of environments.entries()) {
    // boto3 does not know AWS_REGION, which the other SDKs and the AWS CLI read first.
    const expected = { ...theirs[index]!, ...(environment.AWS_REGION && { region: environment.AWS_REGION }) }
    const found = await ours(environment)
    t.strictSame(found, expected, `case ${index}`, { case: cases[index] })
  }
  const distinct = new Set(theirs.map(({ accessKey }) => accessKey))
  t.ok(distinct.size > 10, 'the cases differ')
})
