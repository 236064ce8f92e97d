/**
 * Who we are and where we ask, beside the real boto3: both are given the same generated environments and files, and
 * the requests that they would send are compared.
 */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import fc from 'fast-check'
import t from 'tap'
import { S3Access } from '../../daemon/source/access.js'
import { DirectGets } from '../../daemon/source/direct-get.js'
import { proxyFor } from '../../daemon/source/proxies.js'
import { readSettings } from '../../daemon/source/settings.js'
import { startAwsServices } from '../support/aws-services.js'
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
  /** The region in the signature, which for an access point is its own. */
  readonly signedFor: string | undefined
  readonly proxy: string | undefined
}

const ACCESS_POINT = 'arn:aws:s3:ap-south-1:123456789012:accesspoint:shared'

const isSet = fc.boolean()
/** An empty value is no value, for boto3 as for us. */
const profileName = fc.constantFrom(undefined, undefined, 'default', 'one', 'two')

const profile = fc.record({
  // Parts are joined by a plus.
  keys: fc.constantFrom(
    ...[undefined, 'config', 'credentials', 'config+credentials', 'process', 'process+config', 'process+credentials'],
    ...['sso', 'sso+credentials', 'web', 'web+config', 'role', 'role+credentials'],
  ),
  token: isSet,
  region: isSet,
  endpoint: isSet,
  services: isSet,
  ignore: fc.constantFrom(undefined, undefined, undefined, 'true', 'false'),
  caBundle: isSet,
})

const matrix = fc.record({
  environment: fc.record({
    keys: fc.constantFrom(false, false, true),
    token: fc.constantFrom(undefined, 'AWS_SESSION_TOKEN', 'AWS_SECURITY_TOKEN'),
    AWS_PROFILE: profileName,
    AWS_DEFAULT_PROFILE: profileName,
    AWS_REGION: fc.constantFrom(undefined, undefined, 'eu-west-1'),
    AWS_DEFAULT_REGION: fc.constantFrom(undefined, undefined, 'eu-west-2'),
    AWS_ENDPOINT_URL: fc.constantFrom(undefined, undefined, 'http://127.0.1.1:9000'),
    AWS_ENDPOINT_URL_S3: fc.constantFrom(undefined, undefined, 'http://127.0.1.2:9000'),
    AWS_IGNORE_CONFIGURED_ENDPOINT_URLS: fc.constantFrom(undefined, undefined, undefined, 'true', 'false'),
    caBundle: fc.constantFrom(false, false, true),
    webIdentity: fc.constantFrom(false, false, false, true),
    metadata: fc.constantFrom(undefined, undefined, 'container', 'instance', 'both'),
    HTTP_PROXY: fc.constantFrom(undefined, undefined, 'http://127.0.4.1:3128', '127.0.4.2:3128'),
    https_proxy: fc.constantFrom(undefined, undefined, 'http://127.0.4.3:3128'),
    HTTPS_PROXY: fc.constantFrom(undefined, undefined, 'https://127.0.4.4:3128'),
    NO_PROXY: fc.constantFrom(
      ...[undefined, undefined, '*', 'amazonaws.com', '.amazonaws.com', '127.0.1.1', '127.0.1.1:9000, 127.0.2.1'],
      ...['zonaws.com', '127.0.2.1,*', 's3.us-west-1.amazonaws.com, example.org'],
    ),
  }),
  bucket: fc.constantFrom('data', 'data', 'data', ACCESS_POINT),
  profiles: fc.tuple(profile, profile, profile),
})
type Case = typeof matrix extends fc.Arbitrary<infer Value> ? Value : never

/** Writes a case's files into its own folder, because the SDK keeps what it read of a path. */
function write({ environment, profiles, bucket }: Case, folder: string, services: string): Record<string, string> {
  mkdirSync(folder)
  const at = (name: string) => join(folder, name)
  const { keys, token, caBundle, webIdentity, metadata, ...named } = environment
  // STS and SSO would be asked at AWS then.
  const isAlone = [environment.AWS_IGNORE_CONFIGURED_ENDPOINT_URLS, ...profiles.map(({ ignore }) => ignore)].includes(
    'true',
  )
  const isOf = (kind: string, set: Case['profiles'][number]) =>
    (set.keys?.split('+') ?? []).includes(kind) && !(isAlone && ['sso', 'web', 'role'].includes(kind))
  // An access point is a name below that of the endpoint, which an IP address does not have.
  const isAtAws = bucket === ACCESS_POINT
  if (isAtAws) for (const name of ['AWS_ENDPOINT_URL', 'AWS_ENDPOINT_URL_S3'] as const) named[name] = undefined
  const config = ['[sso-session ours]', 'sso_start_url = https://ours.example/start', 'sso_region = eu-west-1']
  const credentials = ['[base]', 'aws_access_key_id = base', 'aws_secret_access_key = secret']
  for (const [index, set] of profiles.entries()) {
    const name = ['default', 'one', 'two'][index]!
    config.push(name === 'default' ? '[default]' : `[profile ${name}]`)
    credentials.push(`[${name}]`)
    const staticKeys = (origin: string) => [
      `aws_access_key_id = ${name}-${origin}`,
      'aws_secret_access_key = secret',
      ...(set.token ? [`aws_session_token = token-${name}-${origin}`] : []),
    ]
    if (isOf('config', set)) config.push(...staticKeys('config'))
    if (isOf('credentials', set)) credentials.push(...staticKeys('credentials'))
    if (isOf('process', set)) {
      config.push(`credential_process = cat ${at(`process-${name}`)}`)
      const answer = { Version: 1, AccessKeyId: `${name}-process`, SecretAccessKey: 'secret' }
      writeFileSync(
        at(`process-${name}`),
        JSON.stringify(set.token ? { ...answer, SessionToken: `token-${name}-process` } : answer),
      )
    }
    if (isOf('sso', set)) config.push('sso_session = ours', 'sso_account_id = 123456789012', `sso_role_name = ${name}`)
    if (isOf('web', set)) config.push(`web_identity_token_file = ${tokenFile(at(`web-${name}`), `token-of-${name}`)}`)
    if (isOf('web', set) || isOf('role', set)) config.push(`role_arn = arn:aws:iam::123456789012:role/${name}`)
    if (isOf('role', set)) config.push('source_profile = base')
    if (set.region) config.push(`region = us-west-${index + 1}`)
    if (set.endpoint && !isAtAws) config.push(`endpoint_url = http://127.0.2.${index + 1}:9000`)
    if (set.services && !isAtAws) config.push(`services = of-${name}`)
    if (set.ignore) config.push(`ignore_configured_endpoint_urls = ${set.ignore}`)
    if (set.caBundle) config.push(`ca_bundle = ${certificates(at(`ca-${name}`))}`)
    config.push(`[services of-${name}]`, 's3 =', `  endpoint_url = http://127.0.3.${index + 1}:9000`)
  }
  writeFileSync(at('config'), `${config.join('\n')}\n`)
  writeFileSync(at('credentials'), `${credentials.join('\n')}\n`)
  writeSsoLogin(folder)
  // Services must not be looked for behind a proxy that is not there.
  if (!keys)
    for (const name of ['HTTP_PROXY', 'HTTPS_PROXY', 'https_proxy', 'NO_PROXY'] as const) named[name] = undefined
  const settings = {
    ...named,
    PATH: process.env.PATH,
    HOME: folder,
    XDG_DATA_HOME: folder,
    AWS_CONFIG_FILE: at('config'),
    AWS_SHARED_CREDENTIALS_FILE: at('credentials'),
    AWS_ENDPOINT_URL_STS: services,
    AWS_ENDPOINT_URL_SSO: services,
    ...(metadata === 'instance' || metadata === 'both'
      ? { AWS_EC2_METADATA_SERVICE_ENDPOINT: services }
      : { AWS_EC2_METADATA_DISABLED: 'true' }),
    ...((metadata === 'container' || metadata === 'both') && {
      AWS_CONTAINER_CREDENTIALS_FULL_URI: `${services}/container`,
      AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: tokenFile(at('container'), 'of-container'),
    }),
    ...(webIdentity &&
      !isAlone && {
        AWS_WEB_IDENTITY_TOKEN_FILE: tokenFile(at('web'), 'environment'),
        AWS_ROLE_ARN: 'arn:aws:iam::123456789012:role/environment',
      }),
    ...(keys && { AWS_ACCESS_KEY_ID: 'environment', AWS_SECRET_ACCESS_KEY: 'secret' }),
    ...(keys && token !== undefined && { [token]: `token-${token}` }),
    ...(caBundle && { AWS_CA_BUNDLE: certificates(at('ca-environment')) }),
  }
  return Object.fromEntries(Object.entries(settings).flatMap(([name, value]) => (value ? [[name, value]] : [])))
}

function tokenFile(path: string, token: string): string {
  writeFileSync(path, token)
  return path
}

/** As `aws sso login` leaves it in a home. */
function writeSsoLogin(home: string): void {
  const cache = join(home, '.aws', 'sso', 'cache')
  mkdirSync(cache, { recursive: true })
  const token = { accessToken: 'sso-token', expiresAt: '2099-01-01T00:00:00Z' }
  writeFileSync(join(cache, `${createHash('sha1').update('ours').digest('hex')}.json`), JSON.stringify(token))
}

/** A file whose content is its path, so that what was read says where from. */
function certificates(path: string): string {
  writeFileSync(path, path)
  return path
}

async function ours({ environment, bucket }: Asked): Promise<Answer> {
  for (const name of Object.keys(process.env)) delete process.env[name]
  Object.assign(process.env, environment)
  const access = new S3Access(5000)
  try {
    const client = await access.client(bucket)
    const request = await new DirectGets().request(client, { Bucket: bucket, Key: 'k' })
    if (request === undefined) throw new Error('the SDK has no request for us')
    const { protocol, hostname, port, headers } = request
    const url = `${protocol}//${hostname}${port === undefined ? '' : `:${port}`}`
    // boto3 makes up its mind for a client, ours for a request, whose host may begin with the bucket.
    const host = new URL(url.replace('//data.', '//').replace('//shared-123456789012.', '//')).host
    return {
      ...signer(headers.authorization),
      token: headers['x-amz-security-token'],
      region: await client.config.region(),
      endpoint: endpointOf(url),
      caBundle: (await readSettings(client)).certificates?.toString(),
      proxy: proxyFor(protocol === 'https:' ? 'https' : 'http', host),
    }
  } finally {
    access.close()
  }
}

interface Asked {
  readonly environment: Readonly<Record<string, string>>
  readonly bucket: string
}

/** `home`: boto3 takes the logins of SSO from the home that its process begins with. */
async function boto3(cases: readonly Asked[], home: string): Promise<(Answer | undefined)[]> {
  const child = spawn(part('quilt3'), [join(repository, 'test/support/boto3_settings.py')], {
    env: { ...process.env, HOME: home },
    timeout: BOTO3_MS,
  })
  child.stdin.end(JSON.stringify(cases))
  const [stdout, stderr, [status]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'exit')])
  if (status !== 0) throw new Error(`boto3 failed: ${stderr}`)
  type Told = Record<'authorization' | 'token' | 'region' | 'url' | 'caBundle' | 'proxy', string | null>
  const answers: (Told | null)[] = JSON.parse(stdout)
  return answers.map(told => {
    if (told === null) return undefined
    const { authorization, token, region, url, caBundle, proxy } = told
    return {
      ...signer(authorization ?? undefined),
      token: token ?? undefined,
      region: region!,
      endpoint: endpointOf(url!),
      caBundle: caBundle === null ? undefined : readFileSync(caBundle, 'utf8'),
      proxy: proxy === null ? undefined : proxy.includes('://') ? proxy : `http://${proxy}`,
    }
  })
}

function signer(authorization: string | undefined): Pick<Answer, 'accessKey' | 'signedFor'> {
  const [, accessKey, , signedFor] = /Credential=([^/]+)\/(\d+)\/([^/]+)/.exec(authorization ?? '') ?? []
  return { accessKey, signedFor }
}

/** AWS's own hosts of buckets differ in how they name the region, which is compared by itself. */
function endpointOf(url: string): string {
  const [origin] = /^https?:\/\/[^/]+/.exec(url)!
  return origin.endsWith('.amazonaws.com') && !origin.includes('accesspoint') ? 'AWS' : origin
}

t.test('(S128) keys, profile, region, endpoint, certificates and proxy are those that boto3 takes', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'bobbin-settings-'))
  // Whoever asks with the same words gets the same key.
  const services = await startAwsServices(() => ({
    accessKeyId: services.asked.at(-1)!.replace(/[^A-Za-z0-9]+/g, '-'),
    secretAccessKey: 'secret',
    sessionToken: 'of-a-service',
    expiration: new Date('2099-01-01'),
  }))
  const before = { ...process.env }
  t.teardown(async () => {
    for (const name of Object.keys(process.env)) delete process.env[name]
    Object.assign(process.env, before)
    await services.stop()
    rmSync(folder, { recursive: true })
  })
  writeSsoLogin(folder)
  const cases = fc.sample(matrix, { numRuns: CASES, seed: 128 })
  const asked = cases.map((one, index) => {
    return { environment: write(one, join(folder, String(index)), services.url), bucket: one.bucket }
  })
  const theirs = await boto3(asked, folder)
  let withoutRegion = 0
  for (const [index, one] of asked.entries()) {
    const told = theirs[index]
    if (told === undefined) {
      withoutRegion++
      continue
    }
    // boto3 does not know AWS_REGION, which the other SDKs and the AWS CLI read first.
    const { AWS_REGION: region } = one.environment
    const { signedFor } = told
    const isOwn = one.bucket === ACCESS_POINT || signedFor === undefined
    const expected = { ...told, ...(region && { region, signedFor: isOwn ? signedFor : region }) }
    const found = await ours(one)
    t.strictSame(found, expected, `case ${index}`, { case: cases[index] })
  }
  t.ok(withoutRegion < CASES / 10, `boto3 does not assume a role without a region, in ${withoutRegion} cases`)
  const distinct = new Set(theirs.map(told => told?.accessKey))
  t.ok(distinct.size > 20, `the cases differ: ${distinct.size} access keys`)
  for (const what of ['AssumeRoleWithWebIdentity', 'AssumeRole-', 'GetRoleCredentials', 'container', 'instance'])
    t.ok(
      [...distinct].some(key => key?.startsWith(what)),
      `${what} is among them`,
    )
  t.ok(new Set(theirs.map(told => told?.proxy)).size > 4, 'each proxy is among them')
})
