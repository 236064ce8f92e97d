/**
 * What `reproduce` takes from a record, and nothing else of a record reaches an argument, a path, the environment or a URL. A
 * record may be a stranger's, so each word is checked against what `bobbin run` writes there, and what would give its command
 * more than a container of its own on its own data is told (rights.ts). Nothing here starts or asks anything.
 */
import { isAbsolute, resolve } from 'node:path'
import { BobbinError } from '../../daemon/model/index.js'
import type { RunFacts } from '../record/run-facts.js'
import type { CodePlace } from './code.js'
import { type EngineOption, parseEngineOptions, rightsOfOptions } from './engine-options.js'
import type { Asked } from './rights.js'
import { isContainerTarget, type MountWish } from './run-mounts.js'
import { commandLine } from './running.js'

export interface Replay {
  readonly isContainer: boolean
  readonly command: readonly string[]
  readonly env: Readonly<Record<string, string>>
  /** Variables whose values come from whoever reproduces the run. */
  readonly passed: readonly string[]
  readonly options: readonly EngineOption[]
  /** `repo@sha256:…`, or an id. */
  readonly image: string | undefined
  readonly mounts: readonly MountWish[]
  /** Below the code's folder, or absolute. */
  readonly cwd: string | undefined
}

/** What environmentOf takes from a command line, too. */
const VARIABLE = /^[A-Za-z_][A-Za-z0-9_]*$/
/** Pinned: a tag would be another image tomorrow. */
const PINNED_IMAGE = /^(?:[a-zA-Z0-9][\w./:-]*@)?sha256:[0-9a-f]{64}$/

/** Throws INVALID_ARGUMENT for a word that `bobbin run` does not write. */
export function replayOf(facts: RunFacts): Replay {
  const { command, env, passed = [], options, image, mounts, cwd, engine } = facts
  const isContainer = engine.name !== 'host'
  if (isContainer !== (image !== undefined))
    throw foreign('engine', `${engine.name} ${image === undefined ? 'without' : 'with'} an image`)
  if (!isContainer && (command[0] ?? '') === '') throw foreign('command', JSON.stringify(command))
  for (const word of [...command, ...Object.values(env)])
    if (word.includes('\0')) throw foreign('command or environment', JSON.stringify(word))
  for (const name of [...Object.keys(env), ...passed])
    if (!VARIABLE.test(name)) throw foreign('variable', JSON.stringify(name))
  if (image !== undefined && !PINNED_IMAGE.test(image.reference))
    throw foreign('image', JSON.stringify(image.reference))
  if (cwd !== undefined && !isPlace(cwd)) throw foreign('folder', JSON.stringify(cwd))
  if (!isContainer && options.length > 0) throw foreign('options', `${options.join(' ')} without a container`)
  return {
    isContainer,
    command,
    env,
    passed,
    options: parseEngineOptions(options),
    image: image?.reference,
    mounts: mounts.map(mount => wishOf(mount, isContainer)),
    cwd,
  }
}

function wishOf({ registry, package: name, topHash, target }: RunFacts['mounts'][number], isContainer: boolean) {
  if (!/^(?:s3|file):\/\//.test(registry)) throw foreign('registry', JSON.stringify(registry))
  const isTarget = isContainer ? isContainerTarget(target) : isAbsolute(target) && isPlace(target)
  if (!isTarget) throw foreign('mountpoint', JSON.stringify(target))
  const source = `${registry}/${name}@${topHash}`
  return { asked: `${source}:${target}`, source, target }
}

/** Where one thing lies, and not above where it begins. */
function isPlace(path: string): boolean {
  return !path.includes('\0') && !path.split('/').includes('..')
}

function foreign(what: string, found: string): BobbinError {
  return new BobbinError(
    'INVALID_ARGUMENT',
    `the record's ${what} is not one that bobbin run writes, so nothing was started: ${found}`,
  )
}

/** All that the record asks for beyond a container of its own. */
export function askedBy(replay: Replay, code: CodePlace | undefined): Asked[] {
  const { isContainer, command, env, passed, options, mounts, cwd } = replay
  const ofCode: Asked[] = code?.asks === undefined ? [] : [{ right: 'code', what: code.asks }]
  if (!isContainer) {
    const where = cwd !== undefined && isAbsolute(cwd) ? ` in ${cwd}` : ''
    const variables = [...Object.entries(env).map(([name, value]) => `${name}=${value}`), ...passed]
    return [
      { right: 'host', what: `${commandLine([...variables, ...command])}${where}` },
      ...mounts.map(
        ({ source, target }): Asked => ({ right: 'host', what: `${source} mounted at ${resolve(target)}` }),
      ),
      ...ofCode,
    ]
  }
  return [
    ...rightsOfOptions(options),
    ...Object.entries(env).map(([name, value]): Asked => ({ right: 'variables', what: `${name}=${value}` })),
    ...passed.map((name): Asked => ({ right: 'variables', what: `${name}, with the value that it has here` })),
    ...ofCode,
  ]
}
