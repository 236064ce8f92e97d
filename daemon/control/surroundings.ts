/**
 * What a daemon has from whoever started it, and what another command of the same user may have otherwise: the environment that
 * says who asks S3, and where, and the settings.
 *
 * The daemon tells its owner digests, with a salt of its own, so that no secret leaves it and a command can still say which of
 * them differ. `bobbin reload` sends the values.
 */
import { createHmac, randomBytes } from 'node:crypto'
import type { DaemonOptions } from './daemon.js'
import type { ReloadBody, SurroundingsFacts } from './schema.js'

/** Of credentials and endpoints, and of what a `credential_process` needs; HOME and XDG_DATA_HOME lead to ~/.aws and to Quilt's login. */
const NAMES = /^(AWS_\w+|(HTTPS?|ALL|NO)_PROXY|(https?|all|no)_proxy|HOME|XDG_DATA_HOME)$/
/** Of other programs, or our own (source/client.ts). */
const OTHERS = /^AWS_(SDK_JS_\w+|CLI_\w+|PAGER)$/
/** Node.js reads it when it starts. */
const AT_START = ['NODE_EXTRA_CA_CERTS']

/** How bobbin-fuse hands on what the last reload gave (`keep` of native/link/frames.md). */
export const KEPT = 'BOBBIN_RELOADED'

/** What differs stays as it is until the daemon starts again. */
const NEED_START: readonly string[] = ['transport', ...AT_START]

export type SettingsThatMatter = Pick<
  DaemonOptions,
  'ioTimeoutMs' | 'offline' | 'cacheBytesMax' | 'freeBytesMin' | 'transport'
>

function isTaken(name: string): boolean {
  return NAMES.test(name) && !OTHERS.test(name)
}

/** Of an environment, what a reload hands over. An empty variable counts as none, as it does where they are read. */
export function environmentThatMatters(environment: NodeJS.ProcessEnv = process.env): Record<string, string> {
  const found: Record<string, string> = {}
  for (const [name, value] of Object.entries(environment)) if (value && isTaken(name)) found[name] = value
  return found
}

/** Takes the place of what this process has of these names; other names are not touched, whoever sends them. */
export function takeEnvironment(sent: ReloadBody['environment']): void {
  for (const name of Object.keys(process.env)) if (isTaken(name)) delete process.env[name]
  for (const [name, value] of Object.entries(sent)) if (isTaken(name)) process.env[name] = value
}

/** What the last reload gave, when bobbin-fuse has started this daemon anew since; a daemon's own children do not get it. */
export function takeKept(): ReloadBody | undefined {
  const text = process.env[KEPT]
  delete process.env[KEPT]
  return text ? (JSON.parse(text) as ReloadBody) : undefined
}

function valuesOf(settings: SettingsThatMatter): Record<string, string> {
  const { ioTimeoutMs, offline, cacheBytesMax, freeBytesMin, transport } = settings
  const values: Record<string, string> = { ...environmentThatMatters() }
  for (const name of AT_START) if (process.env[name]) values[name] = process.env[name]
  values['io-timeout'] = String(ioTimeoutMs)
  values.offline = String(offline)
  // Without them the daemon's own stay: nothing was wished for.
  if (cacheBytesMax !== undefined) values['cache-limit'] = String(cacheBytesMax)
  if (freeBytesMin !== undefined) values['free-floor'] = String(freeBytesMin)
  if (transport !== undefined) values.transport = transport
  return values
}

const SETTINGS_WITHOUT_DEFAULT = ['cache-limit', 'free-floor', 'transport']

function digestsOf(settings: SettingsThatMatter, salt: string): Record<string, string> {
  return Object.fromEntries(
    Object.entries(valuesOf(settings)).map(([name, value]) => [
      name,
      createHmac('sha256', salt).update(`${name}=${value}`).digest('hex'),
    ]),
  )
}

const ownSalt = randomBytes(32).toString('hex')

/** For the owner of the daemon; a loader's, for the owner of its daemon. */
export function ownSurroundings(settings: SettingsThatMatter): SurroundingsFacts {
  return { salt: ownSalt, digests: digestsOf(settings, ownSalt) }
}

export interface Differences {
  /** Names that a reload makes equal. */
  readonly reload: readonly string[]
  /** Names for which the daemon has to start again. */
  readonly start: readonly string[]
}

/** Of a loader, which reads manifests with what it has from its start: its daemon's limits are not its own. */
export function differencesFromLoader(facts: SurroundingsFacts, settings: SettingsThatMatter): readonly string[] {
  const { reload, start } = differencesFrom(facts, settings)
  return [...reload, ...start].filter(name => !SETTINGS_WITHOUT_DEFAULT.includes(name)).sort()
}

/** In what this process differs from a daemon. */
export function differencesFrom({ salt, digests }: SurroundingsFacts, settings: SettingsThatMatter): Differences {
  const own = digestsOf(settings, salt)
  const names = [...new Set([...Object.keys(own), ...Object.keys(digests)])]
    .filter(name => own[name] !== digests[name])
    .filter(name => own[name] !== undefined || !SETTINGS_WITHOUT_DEFAULT.includes(name))
    .sort()
  return {
    reload: names.filter(name => !NEED_START.includes(name)),
    start: names.filter(name => NEED_START.includes(name)),
  }
}
