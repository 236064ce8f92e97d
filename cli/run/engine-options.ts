/**
 * The options of docker's kind that `bobbin run` passes on: a closed table. A record keeps them as text, and the record may be a
 * stranger's. So text becomes an option only by `parseEngineOptions`, which knows no other names, and an option becomes an
 * argument only by `formatEngineOption`, behind its own `--name=`: none can stand for another option, for the image or for a command.
 */
import { BobbinError } from '../../daemon/model/index.js'
import type { Asked, Right } from './rights.js'

/** As `bobbin run` is given them. */
export interface EngineFlags {
  readonly gpus?: string
  readonly shmSize?: string
  readonly ulimit?: readonly string[]
  readonly ipc?: string
  readonly user?: string
  readonly workdir?: string
  readonly network?: string
  readonly cpus?: string
  readonly memory?: string
  readonly entrypoint?: string
  readonly volume?: readonly string[]
}

export type EngineOptionName = keyof EngineFlags

export interface EngineOption {
  readonly name: EngineOptionName
  readonly value: string
}

interface OptionKind {
  readonly flag: `--${string}`
  /** What a value in a record looks like; an engine takes no other. */
  readonly value: RegExp
  /** It may be given several times. */
  readonly isList?: boolean
  /** What a value allows the container to do beyond its own; undefined: nothing. */
  readonly right?: (value: string) => Right | undefined
}

/** Something on one line that does not begin like an option. */
const WORD = /^[^\p{Cc}-][^\p{Cc}]*$/u
const SIZE = /^-?[\d.]+ ?[A-Za-z]{0,3}$/
/** Networks and segments of the container's own; whatever else an engine may know is asked about. */
const OWN_NETWORKS = ['none', 'bridge', 'default', 'private']
const OWN_SEGMENTS = ['none', 'private', 'shareable']

/** In the order in which they are passed on. */
const OPTIONS = {
  gpus: { flag: '--gpus', value: WORD, right: () => 'devices' },
  shmSize: { flag: '--shm-size', value: SIZE },
  ulimit: { flag: '--ulimit', value: /^\w+=-?\d+(?::-?\d+)?$/, isList: true },
  ipc: { flag: '--ipc', value: WORD, right: value => (OWN_SEGMENTS.includes(value) ? undefined : 'ipc') },
  user: { flag: '--user', value: WORD },
  workdir: { flag: '--workdir', value: WORD },
  network: { flag: '--network', value: WORD, right: value => (OWN_NETWORKS.includes(value) ? undefined : 'network') },
  cpus: { flag: '--cpus', value: /^[\d./]+$/ },
  memory: { flag: '--memory', value: SIZE },
  // Empty: that of the image is reset.
  entrypoint: { flag: '--entrypoint', value: /^[^\p{Cc}]*$/u },
  volume: { flag: '--volume', value: WORD, isList: true, right: () => 'volumes' },
} as const satisfies Record<EngineOptionName, OptionKind>

const NAMES = Object.keys(OPTIONS) as EngineOptionName[]

function kindOf(name: EngineOptionName): OptionKind {
  return OPTIONS[name]
}

export function formatEngineOption({ name, value }: EngineOption): string {
  return `${kindOf(name).flag}=${value}`
}

/** NVIDIA's for its framework images: the default 64 MB of /dev/shm end DataLoader's workers with a bus error. */
const GPU_DEFAULTS = { shmSize: '8g', ulimit: ['memlock=-1', 'stack=67108864'] }

/** Values are the engine's business: whoever typed one is told by the engine what is wrong with it. */
export function engineOptions(flags: EngineFlags): EngineOption[] {
  const defaults: EngineFlags =
    flags.gpus === undefined
      ? {}
      : { ...(flags.ipc === undefined && { shmSize: GPU_DEFAULTS.shmSize }), ulimit: GPU_DEFAULTS.ulimit }
  const given: EngineFlags = { ...defaults, ...definedOf(flags) }
  return NAMES.flatMap(name => {
    const values = given[name] ?? []
    return (typeof values === 'string' ? [values] : values).map(value => ({ name, value }))
  })
}

function definedOf(flags: EngineFlags): EngineFlags {
  return Object.fromEntries(NAMES.filter(name => flags[name] !== undefined).map(name => [name, flags[name]]))
}

/** Throws INVALID_ARGUMENT for what a run without an engine would not heed: a limit, say, that somebody relies on. */
export function refuseEngineFlags(flags: EngineFlags & { readonly engine?: string }): void {
  const given = [
    ...(flags.engine === undefined ? [] : ['--engine']),
    ...NAMES.filter(name => flags[name] !== undefined).map(name => kindOf(name).flag),
  ]
  if (given.length === 0) return
  throw new BobbinError('INVALID_ARGUMENT', `${given.join(', ')}: only for containers, and --host starts no container`)
}

/** The options of a record. Throws INVALID_ARGUMENT for one that `bobbin run` does not write. */
export function parseEngineOptions(texts: readonly string[]): EngineOption[] {
  const found: EngineOption[] = []
  for (const text of texts) {
    const at = text.indexOf('=')
    const name = NAMES.find(one => kindOf(one).flag === text.slice(0, at))
    const value = text.slice(at + 1)
    const isRepeated = name !== undefined && !kindOf(name).isList && found.some(one => one.name === name)
    if (at < 0 || name === undefined || isRepeated || !kindOf(name).value.test(value))
      throw new BobbinError(
        'INVALID_ARGUMENT',
        `the record's option ${JSON.stringify(text)} is ${isRepeated ? 'there twice' : 'not one that bobbin run writes'}, so nothing was started: somebody made it by hand`,
      )
    found.push({ name, value })
  }
  return found
}

export function rightsOfOptions(options: readonly EngineOption[]): Asked[] {
  return options.flatMap(option => {
    const right = kindOf(option.name).right?.(option.value)
    return right === undefined ? [] : [{ right, what: formatEngineOption(option) }]
  })
}
