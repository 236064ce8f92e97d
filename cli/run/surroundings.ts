/** What a run depends on beside its code, image and data: hardware, Python and its packages, and code that Python finds elsewhere. */

import { resolve } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import type { RunFacts } from '../record/run-facts.js'
import type { RunFolder } from '../record/run-folder.js'
import { lookAtMachine } from './machine.js'
import { lookAtPython } from './python.js'
import { lookAtSourceTrees } from './source-trees.js'
import type { RunWish } from './start.js'

type Surroundings = Pick<RunFacts, 'machine' | 'python' | 'sourceTrees'>

/** A container has its own Python, which its image names. Throws INTERRUPTED. */
export async function lookAround(
  { container, command, cwd, env, code, mounts }: RunWish,
  folder: RunFolder,
  signal: AbortSignal,
): Promise<Surroundings & { readonly problems: readonly string[] }> {
  const machine = await lookAtMachine(signal)
  if (container !== undefined) return { machine, problems: [] }
  const own = { ...process.env, ...env }
  const python = await lookAtPython(command, { cwd, env: own, signal })
  const isKnown = python !== undefined && typeof python !== 'string'
  const { trees, diffs } = await lookAtSourceTrees({
    pythonPath: own.PYTHONPATH,
    editable: isKnown ? python.editable : [],
    cwd,
    repository: code?.identity.folder,
    mounts: mounts.map(({ target }) => resolve(target)),
    signal,
  })
  for (const [name, diff] of diffs) folder.writeFile(name, diff)
  const unhashed = trees.flatMap(({ path, from, unhashed }) =>
    unhashed === undefined ? [] : [`${path} (${from}) has no hash in the record: ${unhashed}`],
  )
  return {
    machine,
    ...(isKnown && { python: python.python }),
    ...(trees.length > 0 && { sourceTrees: [...trees] }),
    problems: [...(typeof python === 'string' ? [python] : []), ...unhashed],
  }
}

/** In words: why a run may have come out differently. What either record does not know is no difference. */
export function surroundingDifferences(before: Surroundings, now: Surroundings): string[] {
  const [was, is] = [before, now].map(factsOf)
  return Object.keys(was!).flatMap(name => {
    const [then, today] = [was![name], is![name]]
    if (then === undefined || today === undefined || isDeepStrictEqual(then, today)) return []
    return [`${name}: ${textOf(today)}, the record has ${textOf(then)}`]
  })
}

function factsOf({ machine, python, sourceTrees }: Surroundings): Record<string, unknown> {
  const packages = (python?.packages ?? []).map(({ name, version }) => [`package ${name}`, version] as const)
  const trees = (sourceTrees ?? []).map(({ path, code, sha256 }) => [`code in ${path}`, code?.tree ?? sha256] as const)
  return {
    ...(machine !== undefined && {
      processor: `${machine.cpu} (${machine.architecture})`,
      GPUs: machine.gpus.map(({ name }) => name).join(', ') || 'none',
      'GPU driver': machine.driver ?? 'none',
    }),
    ...(python !== undefined && { Python: `${python.implementation} ${python.version}` }),
    ...Object.fromEntries(packages),
    ...Object.fromEntries(trees),
  }
}

function textOf(value: unknown): string {
  return String(value)
}
