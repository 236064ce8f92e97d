/**
 * Quilt's own login: what `quilt3 login` left in Quilt's data folder.
 *
 * A non-empty credentials.json takes the place of the AWS chain, as in quilt3. When it has expired,
 * new credentials come from the catalog's registry (config.yml: registryUrl) for the access token
 * in auth.json. They stay in memory. Only when the access token itself had to be renewed is
 * auth.json written back, as quilt3 does: the catalog may have withdrawn the refresh token that was
 * used, and quilt3's login must go on working. So a refresh token is used once: of all threads and
 * processes one at a time renews, and those after it find what it has written. quilt3 knows no lock; when it
 * was quicker, what it has written is taken.
 */
import { readFile, realpath, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { addAbortSignal, type Readable } from 'node:stream'
import { text as wholeText } from 'node:stream/consumers'
import { HttpRequest } from '@smithy/core/protocols'
import { BobbinError, hasCode, isOutOfReach, localError, systemCode, xdgFolder } from '../model/index.js'
import { withLock, writeDurably } from '../store/index.js'
import { reasonOf } from './errors.js'
import { httpStatus } from './failure-class.js'
import { areSame, type Identity } from './identity.js'
import { ServiceHandler } from './service-handler.js'

/** Quilt renews what expires within a minute. */
const RENEW_BEFORE_MS = 60_000

export interface QuiltLogin {
  readonly origin: string
  readonly provider: () => Promise<Identity>
  readonly region: string | undefined
}

export function quiltDataFolder(): string {
  return join(xdgFolder('XDG_DATA_HOME', '.local/share'), 'Quilt')
}

/**
 * `undefined` when nobody logged in. Throws ACCESS_DENIED for a login that cannot be used. `refused`: what S3 does not take any
 * more, expired or not; the catalog is asked once for other credentials.
 */
export async function quiltLogin(ioTimeoutMs: number, refused?: Identity): Promise<QuiltLogin | undefined> {
  const folder = quiltDataFolder()
  const path = join(folder, 'credentials.json')
  const stored = await readJson(path)
  if (stored === undefined || Object.keys(stored).length === 0) return undefined
  const config = await readConfig(join(folder, 'config.yml'))
  let current = storedIdentity(path, stored)
  let unwanted = refused
  return {
    origin: `Quilt's login (${path})`,
    region: config.region,
    async provider() {
      if (!isGood(current, unwanted)) {
        current = await renew(folder, path, config.registryUrl, ioTimeoutMs, unwanted)
        // A catalog that gives the same again is not asked again.
        unwanted = undefined
      }
      return current
    },
  }
}

function storedIdentity(path: string, stored: JsonObject): Identity {
  const { access_key, secret_key, token, expiry_time } = stored
  if (typeof access_key !== 'string' || typeof secret_key !== 'string') {
    throw new BobbinError('ACCESS_DENIED', `${path} has no access_key and secret_key; run "quilt3 login" again`)
  }
  return identity(access_key, secret_key, token, expiry_time)
}

function identity(accessKeyId: string, secretAccessKey: string, token: unknown, expiry: unknown): Identity {
  const expiration = typeof expiry === 'string' ? new Date(expiry) : undefined
  return {
    accessKeyId,
    secretAccessKey,
    ...(typeof token === 'string' && token !== '' ? { sessionToken: token } : {}),
    ...(expiration !== undefined && !Number.isNaN(expiration.getTime()) ? { expiration } : {}),
  }
}

function isGood(candidate: Identity, refused: Identity | undefined): boolean {
  if (refused !== undefined && areSame(candidate, refused)) return false
  return candidate.expiration === undefined || candidate.expiration.getTime() >= Date.now() + RENEW_BEFORE_MS
}

async function renew(
  folder: string,
  path: string,
  registryUrl: string | undefined,
  ioTimeoutMs: number,
  refused: Identity | undefined,
): Promise<Identity> {
  const howToHelp = 'run "quilt3 login" again, or "quilt3 logout" to use the AWS credentials of this machine'
  // quilt3 or another process of ours may have renewed them meanwhile.
  const stored = await readJson(path)
  if (stored !== undefined && Object.keys(stored).length > 0) {
    const fresh = storedIdentity(path, stored)
    if (isGood(fresh, refused)) return fresh
  }
  if (registryUrl === undefined) {
    throw new BobbinError(
      'ACCESS_DENIED',
      `Quilt's credentials in ${path} have expired, and config.yml beside them has no registryUrl; ${howToHelp}`,
    )
  }
  const url = `${registryUrl}/api/auth/get_credentials`
  const auth = join(folder, 'auth.json')
  const askWith = (token: string) => ask(url, { token }, ioTimeoutMs, howToHelp)
  const token = await accessToken(auth, registryUrl, ioTimeoutMs, howToHelp)
  let answer: JsonObject
  try {
    answer = await askWith(token)
  } catch (error) {
    if (!(error instanceof BobbinError) || httpStatus(error.cause) !== 401) throw error
    // Withdrawn before its time, such as by a login elsewhere; it can be renewed all the same.
    answer = await askWith(await accessToken(auth, registryUrl, ioTimeoutMs, howToHelp, token))
  }
  const { AccessKeyId, SecretAccessKey, SessionToken, Expiration } = answer
  if (typeof AccessKeyId !== 'string' || typeof SecretAccessKey !== 'string') {
    throw new BobbinError('ACCESS_DENIED', `${url} gave no credentials; ${howToHelp}`)
  }
  return identity(AccessKeyId, SecretAccessKey, SessionToken, Expiration)
}

/** `refused`: a token that the catalog does not take any more. */
async function accessToken(
  path: string,
  registryUrl: string,
  ioTimeoutMs: number,
  howToHelp: string,
  refused?: string,
): Promise<string> {
  const login = await readLogin(path, registryUrl, howToHelp)
  if (isUsable(login, refused)) return login.access_token
  const lock = { waitMs: 2 * ioTimeoutMs, what: "renewing Quilt's access token" }
  return withLock(`${path}.lock`, lock, () => renewAccessToken(path, registryUrl, ioTimeoutMs, howToHelp, refused))
}

async function renewAccessToken(
  path: string,
  registryUrl: string,
  ioTimeoutMs: number,
  howToHelp: string,
  refused: string | undefined,
): Promise<string> {
  const login = await readLogin(path, registryUrl, howToHelp)
  // Renewed by whoever had the lock before us.
  if (isUsable(login, refused)) return login.access_token
  const form = new URLSearchParams({ refresh_token: login.refresh_token as string }).toString()
  let renewed: JsonObject
  try {
    renewed = await ask(`${registryUrl}/api/token`, { form }, ioTimeoutMs, howToHelp)
  } catch (error) {
    if (!hasCode(error, 'ACCESS_DENIED')) throw error
    const present = await readLogin(path, registryUrl, howToHelp)
    if (present.refresh_token === login.refresh_token || !isUsable(present, refused)) throw error
    return present.access_token
  }
  if (typeof renewed.access_token !== 'string') {
    throw new BobbinError('ACCESS_DENIED', `${registryUrl}/api/token gave no access token; ${howToHelp}`)
  }
  // Read once more: quilt3 may have logged in elsewhere meanwhile.
  const logins = (await readJson(path)) ?? {}
  await replaceFile(path, JSON.stringify({ ...logins, [registryUrl]: { ...login, ...renewed } }))
  return renewed.access_token
}

type Login = JsonObject & { readonly access_token: string }

async function readLogin(path: string, registryUrl: string, howToHelp: string): Promise<Login> {
  const login = (await readJson(path))?.[registryUrl]
  if (isObject(login) && typeof login.access_token === 'string') return login as Login
  throw new BobbinError(
    'ACCESS_DENIED',
    `Quilt's credentials have expired, and ${path} has no login at ${registryUrl}; ${howToHelp}`,
  )
}

/** It is good for a while, or cannot be renewed. */
function isUsable({ access_token, expires_at, refresh_token }: Login, refused: string | undefined): boolean {
  const isFresh = typeof expires_at === 'number' && expires_at * 1000 > Date.now() + RENEW_BEFORE_MS
  return (isFresh && access_token !== refused) || typeof refresh_token !== 'string'
}

/** GETs with a token, or POSTs a form. */
async function ask(
  url: string,
  what: { readonly token: string } | { readonly form: string },
  ioTimeoutMs: number,
  howToHelp: string,
): Promise<JsonObject> {
  let status: number
  let body: string
  try {
    ;({ status, body } = await askService(url, what, ioTimeoutMs))
  } catch (error) {
    throw new BobbinError('UPSTREAM_UNAVAILABLE', `cannot renew Quilt's credentials at ${url}: ${reasonOf(error)}`, {
      cause: error,
    })
  }
  // As the SDK has it, for failure-class.ts.
  const cause = { $metadata: { httpStatusCode: status } }
  if (status >= 500 || status === 429) {
    throw new BobbinError('UPSTREAM_UNAVAILABLE', `cannot renew Quilt's credentials at ${url}: HTTP ${status}`, {
      cause,
    })
  }
  const answer = parseObject(body)
  if (status !== 200 || answer === undefined || answer.error !== undefined) {
    throw new BobbinError(
      'ACCESS_DENIED',
      `Quilt's credentials are no longer valid and cannot be renewed at ${url} (HTTP ${status}); ${howToHelp}`,
      { cause },
    )
  }
  return answer
}

async function askService(
  url: string,
  what: { readonly token: string } | { readonly form: string },
  ioTimeoutMs: number,
): Promise<{ readonly status: number; readonly body: string }> {
  const { protocol, hostname, port, pathname, host } = new URL(url)
  const isForm = 'form' in what
  const request = new HttpRequest({
    method: isForm ? 'POST' : 'GET',
    protocol,
    hostname,
    ...(port !== '' && { port: Number(port) }),
    path: pathname,
    headers: {
      host,
      ...(isForm
        ? { 'content-type': 'application/x-www-form-urlencoded', 'content-length': `${Buffer.byteLength(what.form)}` }
        : { authorization: `Bearer ${what.token}` }),
    },
    ...(isForm && { body: what.form }),
  })
  const abortSignal = AbortSignal.timeout(ioTimeoutMs)
  const { response } = await new ServiceHandler(ioTimeoutMs, undefined).handle(request, { abortSignal })
  return { status: response.statusCode, body: await wholeText(addAbortSignal(abortSignal, response.body as Readable)) }
}

type JsonObject = Readonly<Record<string, unknown>>

function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function parseObject(text: string): JsonObject | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return isObject(value) ? value : undefined
  } catch {
    return undefined
  }
}

async function readText(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if (systemCode(error) === 'ENOENT' || systemCode(error) === 'ENOTDIR' || isOutOfReach(path)) return undefined
    throw localError(`read ${path}`, error)
  }
}

async function readJson(path: string): Promise<JsonObject | undefined> {
  const text = await readText(path)
  if (text === undefined || text.trim() === '') return undefined
  const value = parseObject(text)
  if (value === undefined)
    throw new BobbinError('ACCESS_DENIED', `${path} is not a JSON object; run "quilt3 login" again`)
  return value
}

/** The two top-level scalars of config.yml that matter here; the rest of YAML is not needed for them. */
async function readConfig(path: string): Promise<{ registryUrl: string | undefined; region: string | undefined }> {
  const text = (await readText(path)) ?? ''
  const scalar = (name: string) => {
    const value = new RegExp(`^${name}:[ \\t]+(.*?)[ \\t]*(?:[ \\t]#.*)?\\r?$`, 'm').exec(text)?.[1]
    const plain = value?.replace(/^(['"])(.*)\1$/, '$2')
    return plain === undefined || plain === '' || plain === 'null' || plain === '~' ? undefined : plain
  }
  return { registryUrl: scalar('registryUrl')?.replace(/\/+$/, ''), region: scalar('region') }
}

/** Whoever may read it now may read it afterwards, and nobody else. Only with the lock. */
async function replaceFile(path: string, text: string): Promise<void> {
  let target: string
  let mode: number
  try {
    target = await realpath(path)
    mode = (await stat(target)).mode & 0o777
  } catch (error) {
    throw localError(`write ${path}`, error)
  }
  await writeDurably(target, text, { mode })
}
