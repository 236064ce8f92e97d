/**
 * Credentials that services give: web identity, SSO, the metadata of containers and of instances. The services are a server on
 * loopback that speaks their protocols (AWS's own cannot be had here); what they give is what a real S3 server, minio, has issued.
 */

import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { CreateBucketCommand, PutObjectCommand } from '@aws-sdk/client-s3'
import t, { type Test } from 'tap'
import { BobbinError } from '../../daemon/model/index.js'
import { parseRegistry } from '../../daemon/registry/reference.js'
import { createSource } from '../../daemon/source/index.js'
import { createRegistryWriter } from '../../daemon/writer/index.js'
import { type Issued, startAwsServices } from '../support/aws-services.js'
import { cannotMount } from '../support/can-mount.js'
import { Bobbin, runProgram } from '../support/cli.js'
import { startFaultProxy } from '../support/fault-proxy.js'
import { type S3Server, s3ClientOf, startS3 } from '../support/s3-server.js'

t.setTimeout(300_000)

const HOUR_MS = 3_600_000
const KEY = { kind: 's3', bucket: 'data', key: 'k' } as const
const SHORT_MS = 500
const EXPIRED = '<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>'

interface Kind {
  readonly name: string
  /** Writes what leads to the service into `folder`, and gives the environment. */
  readonly set: (folder: string, url: string) => Readonly<Record<string, string>>
  readonly asked: string
  readonly origin: RegExp
}

const kinds: readonly Kind[] = [
  {
    name: 'web identity of the environment',
    set: (folder, url) => {
      writeFileSync(join(folder, 'token'), 'jwt')
      return {
        AWS_ENDPOINT_URL_STS: url,
        AWS_WEB_IDENTITY_TOKEN_FILE: join(folder, 'token'),
        AWS_ROLE_ARN: 'arn:aws:iam::123456789012:role/reader',
      }
    },
    asked: 'AssumeRoleWithWebIdentity arn:aws:iam::123456789012:role/reader jwt',
    origin: /the web identity of /,
  },
  {
    name: 'SSO',
    set: (folder, url) => {
      const sso = `sso_session = ours\nsso_account_id = 123456789012\nsso_role_name = reader\n`
      const session = `[sso-session ours]\nsso_start_url = https://ours.example/start\nsso_region = eu-west-1\n`
      writeFileSync(join(folder, 'config'), `[profile sso]\n${sso}${session}`)
      writeSsoToken(folder, 'sso-token', HOUR_MS)
      return { AWS_ENDPOINT_URL_SSO: url, AWS_ENDPOINT_URL_SSO_OIDC: url, AWS_PROFILE: 'sso' }
    },
    asked: 'GetRoleCredentials 123456789012 reader sso-token',
    origin: /AWS SSO \(the profile sso\)/,
  },
  {
    name: 'metadata of a container',
    set: (folder, url) => {
      writeFileSync(join(folder, 'token'), 'of-container')
      return {
        AWS_CONTAINER_CREDENTIALS_FULL_URI: `${url}/container`,
        AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: join(folder, 'token'),
      }
    },
    asked: 'container of-container',
    origin: /the container's metadata/,
  },
  {
    name: 'metadata of an instance',
    set: (_folder, url) => ({ AWS_EC2_METADATA_SERVICE_ENDPOINT: url, AWS_EC2_METADATA_DISABLED: 'false' }),
    asked: 'instance of-instance imds-token',
    origin: /the metadata of this instance/,
  },
]

/** As `aws sso login` leaves it. */
function writeSsoToken(folder: string, accessToken: string, forMs: number): void {
  const cache = join(folder, '.aws', 'sso', 'cache')
  mkdirSync(cache, { recursive: true })
  const login = { clientId: 'client', clientSecret: 'secret', refreshToken: 'refresh' }
  const token = { accessToken, expiresAt: new Date(Date.now() + forMs).toISOString(), ...login }
  writeFileSync(join(cache, `${createHash('sha1').update('ours').digest('hex')}.json`), JSON.stringify(token))
}

/** Temporary credentials that minio takes. */
async function issuedBy(server: S3Server): Promise<Issued> {
  // The SDK's own client of STS, which is a part of its providers.
  const { STSClient, AssumeRoleCommand } = createRequire(import.meta.url)('@aws-sdk/nested-clients/sts')
  const credentials = { accessKeyId: server.accessKey, secretAccessKey: server.secretKey }
  const client = new STSClient({ endpoint: server.endpoint, region: 'us-east-1', credentials })
  const role = { RoleArn: 'arn:aws:iam::123456789012:role/reader', RoleSessionName: 'test' }
  const { Credentials: issued } = await client.send(new AssumeRoleCommand(role))
  client.destroy()
  const { AccessKeyId: accessKeyId, SecretAccessKey: secretAccessKey, SessionToken: sessionToken } = issued
  return { accessKeyId, secretAccessKey, sessionToken, expiration: new Date(Date.now() + HOUR_MS) }
}

function useEnvironment(t: Test, settings: Readonly<Record<string, string>>): void {
  const before = { ...process.env }
  for (const name of Object.keys(process.env))
    if (/^(AWS_|XDG_DATA_HOME$)|_proxy$/i.test(name)) delete process.env[name]
  Object.assign(process.env, settings)
  t.teardown(() => {
    for (const name of Object.keys(process.env)) delete process.env[name]
    Object.assign(process.env, before)
  })
}

t.test('credentials of services (S182)', async t => {
  const server = await startS3('minio')
  t.teardown(() => server.stop())
  const proxy = await startFaultProxy(server.endpoint)
  t.teardown(() => proxy.stop())
  const admin = s3ClientOf(server)
  await admin.send(new CreateBucketCommand({ Bucket: 'data' }))
  await admin.send(new PutObjectCommand({ Bucket: 'data', Key: 'k', Body: 'bytes' }))
  admin.destroy()
  const good = await issuedBy(server)
  const other = await issuedBy(server)
  const wrong = { ...good, sessionToken: other.sessionToken }
  const lasting = (identity: Issued, forMs: number) => ({ ...identity, expiration: new Date(Date.now() + forMs) })

  async function stage(t: Test, kind: Kind, { ioTimeoutMs = 10_000 } = {}) {
    const services = await startAwsServices(() => good)
    const folder = mkdtempSync(join(tmpdir(), 'bobbin-credentials-'))
    useEnvironment(t, {
      AWS_ENDPOINT_URL_S3: proxy.endpoint,
      AWS_CONFIG_FILE: join(folder, 'config'),
      AWS_SHARED_CREDENTIALS_FILE: join(folder, 'none'),
      AWS_EC2_METADATA_DISABLED: 'true',
      HOME: folder,
      XDG_DATA_HOME: folder,
      ...kind.set(folder, services.url),
    })
    proxy.clear()
    const source = createSource({ ioTimeoutMs })
    t.teardown(async () => {
      source.close()
      proxy.clear()
      await services.stop()
      rmSync(folder, { recursive: true })
    })
    const read = async () => {
      const { chunks } = await source.read(KEY)
      const parts: Uint8Array[] = []
      for await (const chunk of chunks) parts.push(chunk)
      return Buffer.concat(parts).toString()
    }
    const refusal = async (ask: Promise<unknown>) => {
      const error = await ask.then(
        () => undefined,
        (error: unknown) => error,
      )
      if (!(error instanceof BobbinError)) throw new Error(`not an error of ours: ${error}`)
      return error
    }
    return { services, folder, read, refusal }
  }

  for (const kind of kinds) {
    t.test(`${kind.name}: asked once, and again before and after the expiry`, async t => {
      const { services, read } = await stage(t, kind)
      services.issue = () => lasting(good, 120_000)
      t.same(await Promise.all(Array.from({ length: 20 }, read)), Array(20).fill('bytes'))
      t.equal(services.asked[0], kind.asked)
      // It lasts for less than five minutes, so the next reader makes that it is asked for again, and does not wait.
      services.fault = 503
      t.equal(await read(), 'bytes', 'what is there is good for two minutes more, whatever the service says')
      services.fault = undefined

      const { services: later, read: readLater } = await stage(t, kind)
      later.issue = () => lasting(good, SHORT_MS)
      t.equal(await readLater(), 'bytes')
      await sleep(SHORT_MS)
      const before = later.asked.length
      later.issue = () => good
      t.equal(await readLater(), 'bytes')
      t.ok(later.asked.length > before, 'asked again after the expiry')
      t.equal(later.asked.at(-1), kind.asked)
      const whenGood = later.asked.length
      t.equal(await readLater(), 'bytes')
      t.equal(later.asked.length, whenGood, 'what is good for an hour is kept')
    })

    t.test(`${kind.name}: a refusal by S3 is answered with what the service gives then`, async t => {
      const { services, read } = await stage(t, kind)
      services.issue = () => (services.asked.length === 1 ? good : other)
      proxy.fault({ kind: 'status', status: 400, body: EXPIRED }, { times: 1 })
      t.equal(await read(), 'bytes')
      t.same(services.asked, [kind.asked, kind.asked])
    })

    t.test(`${kind.name}: a service that is away for a moment is waited for, and a dead one not for ever`, async t => {
      const { services, read, refusal, folder } = await stage(t, kind)
      if (kind.name !== 'metadata of an instance') {
        services.fault = 503
        setTimeout(() => {
          services.fault = undefined
        }, 300)
        t.equal(await read(), 'bytes')
      }
      services.fault = 'silence'
      const startedAt = performance.now()
      const dead = createSource({ ioTimeoutMs: 1000 })
      t.teardown(() => dead.close())
      const error = await refusal(dead.read(KEY))
      t.match(error.message, kind.origin)
      const writer = createRegistryWriter(parseRegistry('s3://data'), { ioTimeoutMs: 1000, cacheDir: folder })
      t.match((await refusal(writer.find(KEY))).message, kind.origin)
      await writer.close()
      t.ok(performance.now() - startedAt < 30_000, 'neither waited without end')
    })
  }

  t.test('an SSO token that has expired is renewed, and the login stays usable for others', async t => {
    const sso = kinds[1]!
    const { services, folder, read } = await stage(t, sso)
    writeSsoToken(folder, 'old', -HOUR_MS)
    t.equal(await read(), 'bytes')
    t.same(services.asked, [
      'CreateToken refresh_token refresh',
      'GetRoleCredentials 123456789012 reader sso-token-renewed',
    ])
  })

  t.test('a web identity whose token was replaced asks with the new token, and minio refuses the first', async t => {
    const { services, folder, read } = await stage(t, kinds[0]!)
    services.issue = () => {
      if (services.asked.length > 1) return good
      writeFileSync(join(folder, 'token'), 'jwt-2')
      return wrong
    }
    t.equal(await read(), 'bytes')
    t.same(services.asked, [kinds[0]!.asked, `${kinds[0]!.asked}-2`])
  })

  t.test('a daemon asks again for all its mounts', { skip: cannotMount() }, async t => {
    const { services, folder } = await stage(t, kinds[2]!)
    const cache = join(folder, 'cache')
    const files = join(folder, 'files')
    mkdirSync(files)
    for (const name of ['a', 'b']) writeFileSync(join(files, name), name)
    const bobbin = new Bobbin(cache, { BOBBIN_FREE_FLOOR: '0' })
    t.teardown(() => bobbin.try('stop', '--force'))
    await bobbin.text('push', files, 's3://data/ns/pkg', '-m', 'two')
    const mountpoint = join(folder, 'mnt')
    await bobbin.text('mount', 's3://data/ns/pkg', mountpoint, '--mkdir')
    const read = (name: string) => runProgram('cat', [join(mountpoint, name)])
    t.match(await read('a'), { status: 0, stdout: 'a' })
    const asked = services.asked.length
    services.issue = () => other
    proxy.fault({ kind: 'status', status: 400, body: EXPIRED }, { times: 1 })
    t.match(await read('b'), { status: 0, stdout: 'b' })
    t.ok(services.asked.length > asked)
    await bobbin.text('stop', '--force')
  })

  t.test("Quilt's login, refused before its expiry, is renewed at the catalog once (S183)", async t => {
    const quilt: Kind = { name: 'Quilt', asked: '', origin: /Quilt/, set: () => ({}) }
    const { services, folder, read, refusal } = await stage(t, quilt)
    const asked: string[] = []
    let given = good
    const catalog = createServer((request, response) => {
      asked.push(`${request.url} ${request.headers.authorization}`)
      const { accessKeyId, secretAccessKey, sessionToken, expiration } = given
      const credentials = { AccessKeyId: accessKeyId, SecretAccessKey: secretAccessKey, SessionToken: sessionToken }
      response.end(JSON.stringify({ ...credentials, Expiration: expiration.toISOString() }))
    })
    await new Promise<void>(resolve => catalog.listen(0, '127.0.0.1', resolve))
    t.teardown(() => {
      catalog.closeAllConnections()
      catalog.close()
    })
    const url = `http://127.0.0.1:${(catalog.address() as AddressInfo).port}`
    const inQuilt = (name: string, text: string) => writeFileSync(join(folder, 'Quilt', name), text)
    mkdirSync(join(folder, 'Quilt'))
    const stored = { access_key: wrong.accessKeyId, secret_key: wrong.secretAccessKey, token: wrong.sessionToken }
    inQuilt('credentials.json', JSON.stringify({ ...stored, expiry_time: wrong.expiration.toISOString() }))
    inQuilt('config.yml', `registryUrl: "${url}"\n`)
    inQuilt('auth.json', JSON.stringify({ [url]: { access_token: 'token', refresh_token: 'r', expires_at: 4e9 } }))
    t.same(await Promise.all(Array.from({ length: 20 }, read)), Array(20).fill('bytes'))
    t.same(asked, ['/api/auth/get_credentials Bearer token'])
    t.same(services.asked, [], 'the AWS chain is not asked')

    // The next refusal is within the minute.
    given = wrong
    proxy.fault({ kind: 'status', status: 403, body: '<Error><Code>ExpiredToken</Code></Error>' })
    for (let i = 0; i < 2; i++) {
      await sleep(1000)
      t.match((await refusal(read())).message, /ExpiredToken.*log in again/)
    }
    t.equal(asked.length, 1, 'a server that refuses everything does not make the catalog busy')
  })
})
