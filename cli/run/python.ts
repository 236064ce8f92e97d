/**
 * Which Python a command on this machine runs in, and which packages that Python has. The interpreter is the command itself, the one
 * that the first line of a script names (torchrun, accelerate), or, behind a shell or a launcher, the one that is found first.
 */
import { accessSync, closeSync, constants, openSync, readSync, statSync } from 'node:fs'
import { basename, delimiter, isAbsolute, join, resolve } from 'node:path'
import { hasCode } from '../../daemon/model/index.js'
import type { RunFacts } from '../record/run-facts.js'
import { withoutCredentials } from './code.js'
import { runQuietly } from './process.js'

export type PythonFacts = NonNullable<RunFacts['python']>
type Found = Pick<PythonFacts, 'executable' | 'foundBy'>

const INTERPRETER = /^(?:python|pypy)[\d.]*$/
const ANSWER_MS = 30_000
/** More is not the answer of our script. */
const ANSWER_BYTES_MAX = 16 * 2 ** 20
const FIRST_LINES_BYTES = 512

/**
 * Isolated (-I), so that neither the folder that it starts in nor a variable brings code of others into the question. The packages of
 * the user, which -I leaves out, are looked at in their place: the command sees them, unless it is in a virtual environment.
 */
const SCRIPT = `
import importlib.metadata as metadata, json, platform, site, sys
path = list(sys.path)
if sys.prefix == sys.base_prefix and sys.argv[1] == 'user':
    path.insert(0, site.getusersitepackages())
packages, editable = {}, []
for one in metadata.distributions(path=path):
    name = one.metadata['Name']
    if not name or name in packages:
        continue
    row = {'name': name, 'version': one.version or ''}
    try:
        direct = json.loads(one.read_text('direct_url.json') or 'null')
    except ValueError:
        direct = None
    if direct:
        row['url'] = direct.get('url', '')
        commit = direct.get('vcs_info', {}).get('commit_id')
        if commit:
            row['commit'] = commit
        if direct.get('dir_info', {}).get('editable'):
            editable.append(row['url'])
    packages[name] = row
print(json.dumps({
    'version': platform.python_version(),
    'implementation': platform.python_implementation(),
    'prefix': sys.prefix,
    'packages': sorted(packages.values(), key=lambda row: row['name'].lower()),
    'editable': editable,
}))
`

type Answer = Omit<PythonFacts, keyof Found> & { readonly editable: readonly string[] }

export interface LookedAtPython {
  readonly python: PythonFacts
  /** Folders of packages that are installed as links to their sources. */
  readonly editable: readonly string[]
}

/** `undefined`: there is no Python here. Text: why an interpreter did not say what it has. Throws INTERRUPTED. */
export async function lookAtPython(
  command: readonly string[],
  { cwd, env, signal }: { readonly cwd: string; readonly env: NodeJS.ProcessEnv; readonly signal: AbortSignal },
): Promise<LookedAtPython | string | undefined> {
  const found = findInterpreter(command[0] ?? '', { cwd, env })
  if (found === undefined) return undefined
  const args = ['-I', '-c', SCRIPT, env.PYTHONNOUSERSITE ? 'none' : 'user']
  const why = `the packages of ${found.executable} are not in the record`
  try {
    const { status, stdout, stderr } = await runQuietly(found.executable, args, { env, signal, timeoutMs: ANSWER_MS })
    if (status === null) return `${why}: it did not answer within ${ANSWER_MS / 1000} s`
    if (status !== 0) return `${why}: ${stderr.toString('utf8').trim().split('\n').at(-1)!.slice(0, 300)}`
    if (stdout.length > ANSWER_BYTES_MAX) return `${why}: it said too much`
    const { editable, packages, ...facts } = JSON.parse(stdout.toString('utf8')) as Answer
    const named = packages.map(one => (one.url === undefined ? one : { ...one, url: withoutCredentials(one.url) }))
    return { python: { ...found, ...facts, packages: named }, editable: editable.flatMap(folderOf) }
  } catch (error) {
    if (hasCode(error, 'INTERRUPTED')) throw error
    return `${why}: ${error instanceof Error ? error.message : error}`
  }
}

function folderOf(url: string): string[] {
  return url.startsWith('file://') ? [decodeURIComponent(new URL(url).pathname)] : []
}

interface Place {
  readonly cwd: string
  readonly env: NodeJS.ProcessEnv
}

export function findInterpreter(program: string, place: Place): Found | undefined {
  const path = findProgram(program, place)
  if (path !== undefined && INTERPRETER.test(basename(path))) return { executable: path, foundBy: 'command' }
  const named = path && findProgram(namedBy(path) ?? '', place)
  if (named !== undefined && named !== '') return { executable: named, foundBy: 'script' }
  const first = findProgram('python', place) ?? findProgram('python3', place)
  return first === undefined ? undefined : { executable: first, foundBy: 'path' }
}

/** As execvp looks for it. */
function findProgram(program: string, { cwd, env }: Place): string | undefined {
  if (program === '') return undefined
  const candidates = program.includes('/')
    ? [resolve(cwd, program)]
    : (env.PATH ?? '').split(delimiter).map(folder => join(isAbsolute(folder) ? folder : resolve(cwd, folder), program))
  return candidates.find(isProgram)
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return statSync(path).isFile()
  } catch {
    return false
  }
}

/** The interpreter of a script of Python; undefined: it is not one. */
function namedBy(path: string): string | undefined {
  const [first = '', second = ''] = firstLines(path)
  // Where the path of an interpreter is longer than the kernel takes, pip has a shell find it.
  const long = /^'''exec' "?([^"\s]+)"?/.exec(second)?.[1]
  if (first === '#!/bin/sh' && long !== undefined) return INTERPRETER.test(basename(long)) ? long : undefined
  const words = /^#!\s*(.+)$/.exec(first)?.[1]?.trim().split(/\s+/) ?? []
  const [program = '', ...args] = words
  const named = basename(program) === 'env' ? args.find(word => !word.startsWith('-') && !word.includes('=')) : program
  return named !== undefined && INTERPRETER.test(basename(named)) ? named : undefined
}

function firstLines(path: string): string[] {
  try {
    const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
    try {
      const bytes = Buffer.alloc(FIRST_LINES_BYTES)
      return bytes.toString('latin1', 0, readSync(fd, bytes)).split('\n')
    } finally {
      closeSync(fd)
    }
  } catch {
    return []
  }
}
