/**
 * Where settings come from. The first place that has one wins: flag, environment, config file,
 * systemd's directories, XDG, default.
 */
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { parse } from 'smol-toml'
import {
  BobbinError,
  isOutOfReach,
  localError,
  parseBytes,
  parseDurationMs,
  systemCode,
  xdgFolder,
} from '../daemon/model/index.js'
import { OPEN_MODE_WISHES, type OpenModeWish, TRANSPORTS, type TransportName } from '../daemon/mount/transport.js'
import { formatRegistry, parseRegistry } from '../daemon/registry/reference.js'

/** The flags that every verb takes. */
export interface CommonFlags {
  readonly json?: boolean
  readonly quiet?: boolean
  readonly cache?: string
  readonly config?: string
  readonly ioTimeout?: string
  readonly offline?: boolean
  /** Of `mount` and `daemon`. */
  readonly openMode?: string
  /** Of the verbs that start a daemon. */
  readonly cacheLimit?: string
  readonly freeFloor?: string
  /** Of `loader`. */
  readonly serve?: readonly string[]
  /** Of `loader` and `daemon`. */
  readonly allow?: readonly string[]
}

export interface Settings {
  readonly cacheDir: string
  readonly registry: string | undefined
  readonly ioTimeoutMs: number
  readonly offline: boolean
  /** Quota of the object store; `undefined`: what the daemon takes by itself. */
  readonly cacheBytesMax: number | undefined
  readonly freeBytesMin: number | undefined
  /** `undefined`: the best one here. */
  readonly transport: TransportName | undefined
  /** `undefined`: the fastest that is possible here. */
  readonly openMode: OpenModeWish | undefined
  /** Packages that a loader serves; empty with `allow` empty: its user has everything. */
  readonly serve: readonly string[]
  /** Registries that are for others than the owner, as `formatRegistry` writes them. */
  readonly allow: readonly string[]
}

/** What a config file may say, and the variable that says it instead. */
const KEYS = {
  cache: 'BOBBIN_CACHE',
  registry: 'BOBBIN_REGISTRY',
  'io-timeout': 'BOBBIN_IO_TIMEOUT',
  offline: 'BOBBIN_OFFLINE',
  'cache-limit': 'BOBBIN_CACHE_LIMIT',
  'free-floor': 'BOBBIN_FREE_FLOOR',
  transport: 'BOBBIN_TRANSPORT',
  'open-mode': 'BOBBIN_OPEN_MODE',
  serve: 'BOBBIN_SERVE',
  allow: 'BOBBIN_ALLOW',
} as const
type Key = keyof typeof KEYS

const IO_TIMEOUT_DEFAULT = '30s'

/** Throws INVALID_ARGUMENT, naming the place of a setting that does not parse. */
export function readSettings(flags: CommonFlags, environment: NodeJS.ProcessEnv = process.env): Settings {
  const file = readConfig(flags.config ?? environment.BOBBIN_CONFIG, environment)
  const value = (key: Key, flag?: string) => flag ?? (environment[KEYS[key]] || undefined) ?? file[key]
  const parsed = <T>(key: Key, parser: (text: string) => T, flag?: string): T | undefined => {
    const text = value(key, flag)
    if (text === undefined) return undefined
    try {
      return parser(text)
    } catch (error) {
      throw new BobbinError('INVALID_ARGUMENT', `${key}: ${error instanceof Error ? error.message : error}`)
    }
  }
  // One setting in two words: who says one of them on the command line has said what is served.
  const isServedByFlags = flags.serve !== undefined || flags.allow !== undefined
  const words = (key: 'serve' | 'allow') =>
    isServedByFlags ? (flags[key] ?? []) : (value(key) ?? '').split(/\s+/).filter(word => word !== '')
  return {
    cacheDir: resolve(value('cache', flags.cache) ?? defaultCacheDir(environment)),
    registry: value('registry'),
    ioTimeoutMs: parsed('io-timeout', parseDurationMs, flags.ioTimeout) ?? parseDurationMs(IO_TIMEOUT_DEFAULT),
    offline: flags.offline ?? ['1', 'true', 'yes'].includes(value('offline') ?? ''),
    cacheBytesMax: parsed('cache-limit', parseBytes, flags.cacheLimit),
    freeBytesMin: parsed('free-floor', parseBytes, flags.freeFloor),
    transport: parsed('transport', oneOf(TRANSPORTS)),
    openMode: parsed('open-mode', oneOf(OPEN_MODE_WISHES), flags.openMode),
    serve: words('serve'),
    allow: words('allow').map(word => registryNamed(word)),
  }
}

function registryNamed(text: string): string {
  try {
    return formatRegistry(parseRegistry(text))
  } catch (error) {
    throw new BobbinError('INVALID_ARGUMENT', `allow: ${error instanceof Error ? error.message : error}`)
  }
}

function oneOf<T extends string>(values: readonly T[]): (text: string) => T {
  return text => {
    const value = values.find(candidate => candidate === text)
    if (value !== undefined) return value
    throw new BobbinError('INVALID_ARGUMENT', `${JSON.stringify(text)} is not one of ${values.join(', ')}`)
  }
}

function defaultCacheDir(environment: NodeJS.ProcessEnv): string {
  // systemd gives a unit with CacheDirectory= one or more folders, separated by colons.
  const fromSystemd = environment.CACHE_DIRECTORY?.split(':')[0]
  if (fromSystemd) return fromSystemd
  return join(xdgFolder('XDG_CACHE_HOME', '.cache', environment), 'bobbin')
}

function readConfig(named: string | undefined, environment: NodeJS.ProcessEnv): Partial<Record<Key, string>> {
  const path = named ?? join(xdgFolder('XDG_CONFIG_HOME', '.config', environment), 'bobbin', 'config.toml')
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    // Only a file that was asked for has to be there.
    if (named === undefined && (systemCode(error) === 'ENOENT' || isOutOfReach(path))) return {}
    throw localError(`read the config file ${path}`, error)
  }
  let table: Record<string, unknown>
  try {
    table = parse(text)
  } catch (error) {
    throw new BobbinError('INVALID_ARGUMENT', `the config file ${path} is not TOML: ${firstLine(error)}`)
  }
  const found: Partial<Record<Key, string>> = {}
  for (const [key, value] of Object.entries(table)) {
    if (!(key in KEYS)) {
      throw new BobbinError(
        'INVALID_ARGUMENT',
        `the config file ${path} has an unknown key ${key} (known: ${Object.keys(KEYS).join(', ')})`,
      )
    }
    // A list, too, for what can be several.
    found[key as Key] = Array.isArray(value) ? value.join(' ') : String(value)
  }
  return found
}

function firstLine(error: unknown): string {
  return String(error instanceof Error ? error.message : error).split('\n')[0]!
}
