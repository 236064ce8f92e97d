/**
 * What a record asks for beyond a container of its own on its own data. A record may be a stranger's, so `reproduce` shows each
 * of these and starts nothing before the person who typed it has confirmed the kind by its flag.
 */
import { BobbinError, escapeControls } from '../../daemon/model/index.js'

/** Each kind with what it means, for `--help`. */
export const RIGHTS = {
  host: 'run the command without a container, with all that you may do',
  code: 'take the code from a repository on this machine, or with your keys',
  volumes: 'bind folders of this machine',
  devices: 'use devices (--gpus)',
  network: "use the host's network, another container's network, or a named network",
  ipc: "share the host's memory segments, or another container's",
  variables: 'set variables, and pass on values of your own',
} as const
export type Right = keyof typeof RIGHTS

export const RIGHT_NAMES = Object.keys(RIGHTS) as readonly Right[]

export interface Asked {
  readonly right: Right
  /** What exactly, in words of the record. */
  readonly what: string
}

/** `--allow-host` and so on, as the command line has them. */
export type AllowFlags = { readonly [R in Right as `allow${Capitalize<R>}`]?: boolean }

export function allowFlag(right: Right): string {
  return `--allow-${right}`
}

export function rightsOf(flags: AllowFlags): ReadonlySet<Right> {
  const isSet = (right: Right) => flags[`allow${right[0]!.toUpperCase()}${right.slice(1)}` as keyof AllowFlags] === true
  return new Set(RIGHT_NAMES.filter(isSet))
}

/** Throws INVALID_ARGUMENT with all that is asked for and not allowed, and the flags that would allow it. */
export function refuseUnlessAllowed(asked: readonly Asked[], allowed: ReadonlySet<Right>): void {
  const missing = asked.filter(({ right }) => !allowed.has(right))
  if (missing.length === 0) return
  const flags = RIGHT_NAMES.filter(right => asked.some(one => one.right === right)).map(allowFlag)
  throw new BobbinError(
    'INVALID_ARGUMENT',
    `nothing was started, since the record asks for rights that you have not allowed:${missing.map(lineOf).join('')}` +
      `\n  if you trust the maker of the record, pass ${flags.join(' ')}`,
  )
}

function lineOf({ right, what }: Asked): string {
  return `\n  - ${right}: ${escapeControls(what)}`
}
