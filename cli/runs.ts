import { hostname } from 'node:os'
import { formatDuration, hasCode } from '../daemon/model/index.js'
import { withContext } from './context.js'
import { table } from './output.js'
import type { RunFacts } from './record/run-facts.js'
import { RunFolder, stateDir } from './record/run-folder.js'
import { commandLine } from './run/running.js'
import { upToDate } from './run/up-to-date.js'
import type { CommonFlags } from './settings.js'

interface Found {
  readonly folder: RunFolder
  readonly facts: RunFacts
}

/** A run whose `run.json` cannot be read, or whose record cannot be made up for. */
interface Broken {
  readonly folder: RunFolder
  readonly facts: RunFacts | undefined
  readonly why: string
}

/** What ran, on which hashes; a run whose process was killed gets its record first. A broken one is no reason to show no other. */
export async function runs(id: string | undefined, flags: CommonFlags): Promise<void> {
  await withContext(flags, async context => {
    const { output } = context
    const state = stateDir()
    const folders = id === undefined ? RunFolder.all(state) : [RunFolder.find(id, state)]
    const found: (Found | Broken)[] = []
    for (const folder of folders) {
      try {
        found.push({ folder, facts: await upToDate(folder, context) })
      } catch (error) {
        if (hasCode(error, 'INTERRUPTED')) throw error
        const why = error instanceof Error ? error.message : String(error)
        output.note(`bobbin: ${folder.path}: ${why}`)
        found.push({ folder, facts: folder.tryRead(), why })
      }
    }
    if (output.isJson) {
      for (const run of found) {
        const { folder, facts } = run
        const { runId } = folder
        const state = isBroken(run) ? { state: 'broken', why: run.why } : { state: stateOf(run.facts) }
        await output.row({ runId, ...facts, ...state, record: folder.path }, '')
      }
      return
    }
    if (id !== undefined) {
      for (const { folder, facts } of found) if (facts !== undefined) await output.line(...described(folder, facts))
      return
    }
    if (found.length === 0) return output.note(`bobbin: no runs in ${state}`)
    const rows = found.map(run => {
      const { folder, facts } = run
      if (facts === undefined) return [folder.runId, '-', 'broken !', '-', '-', '-']
      return [
        facts.runId,
        facts.startedOn.slice(0, 19),
        isBroken(run) ? 'broken !' : `${stateOf(facts)}${markOf(facts)}`,
        dataOf(facts)
          .map(one => `${one.package}@${one.topHash.slice(0, 12)}`)
          .join(' ') || '-',
        facts.code === undefined ? '-' : `${facts.code.commit.slice(0, 12)}${facts.code.isDirty ? '+' : ''}`,
        commandLine(facts.command).slice(0, 60),
      ]
    })
    await output.line(...table([['run', 'started', 'state', 'data', 'code', 'command'], ...rows]))
  })
}

function isBroken(run: Found | Broken): run is Broken {
  return 'why' in run
}

function stateOf({ finishedOn, wasAbandoned, exitCode, host }: RunFacts): string {
  if (finishedOn === undefined) return host === hostname() ? 'running' : `running on ${host}`
  return wasAbandoned ? 'killed' : `exit ${exitCode}`
}

/** Look closer: something went wrong around it, or reads may be missing. */
function markOf({ finishedOn, areLogsWhole, problems = [] }: RunFacts): string {
  return finishedOn !== undefined && (problems.length > 0 || areLogsWhole !== true) ? ' !' : ''
}

/** Mounted, or read through the loader alone. */
function dataOf({ mounts, loaded = [] }: RunFacts) {
  return [...mounts, ...loaded]
}

function described(folder: RunFolder, facts: RunFacts): string[] {
  const { runId, startedOn, finishedOn, command, env, code, image, mounts, loaded = [], outputs, nodes } = facts
  const took = finishedOn === undefined ? '' : `, for ${formatDuration(Date.parse(finishedOn) - Date.parse(startedOn))}`
  return [
    `run      ${runId}`,
    `state    ${stateOf(facts)}; started ${startedOn}${took}`,
    ...(nodes === undefined ? [] : nodes.map(node => `node     ${node.host}, run ${node.runId}`)),
    `command  ${commandLine(command)}`,
    ...Object.entries(env).map(([name, value]) => `env      ${name}=${value}`),
    ...(code === undefined ? [] : [`code     ${code.commit}${code.isDirty ? `, changed: tree ${code.tree}` : ''}`]),
    ...(image === undefined
      ? []
      : [`image    ${image.asked} ${image.digest}${image.localOnly ? ' (only on its machine)' : ''}`]),
    ...machineLines(facts),
    ...mounts.map(mount => `data     ${mount.registry}/${mount.package}@${mount.topHash} at ${mount.target}`),
    ...loaded.map(one => `data     ${one.registry}/${one.package}@${one.topHash} by the loader`),
    ...(outputs === undefined
      ? []
      : [`outputs  ${outputs.length} in ${facts.outputDir ?? 'the folders of the nodes'}`]),
    ...(facts.written ?? []).map(
      ({ target, folder, files, filesMore, hidden = [], hiddenMore = 0 }) =>
        `written  ${files.length + filesMore} files above ${target}, ${hidden.length + hiddenMore} of the package hidden: ${folder}`,
    ),
    ...(facts.outputGlobs === undefined ? [] : [`result   ${facts.outputGlobs.join(' ')}`]),
    ...(facts.problems ?? []).map(problem => `problem  ${problem}`),
    ...(finishedOn !== undefined && facts.areLogsWhole !== true
      ? ['reads    some may be missing from the ledger']
      : []),
    `record   ${folder.path}`,
  ]
}

function machineLines({ machine, python, sourceTrees = [] }: RunFacts): string[] {
  const gpus = machine?.gpus.map(({ name }) => name).join(', ') || 'no GPU'
  const driver = machine?.driver == null ? '' : `, driver ${machine.driver}`
  return [
    ...(machine === undefined ? [] : [`machine  ${machine.cpus} x ${machine.cpu}; ${gpus}${driver}`]),
    ...(python === undefined
      ? []
      : [`python   ${python.version}, ${python.packages.length} packages: ${python.executable}`]),
    ...sourceTrees.map(({ path, code, sha256 }) => {
      const identity = code === undefined ? (sha256 ?? '(no hash)') : `${code.commit}${code.isDirty ? '+' : ''}`
      return `imports  ${path} ${identity}`
    }),
  ]
}
