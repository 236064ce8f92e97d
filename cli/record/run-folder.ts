/**
 * Where runs are kept: `<state>/runs/<run id>/`, ids being UUIDs of version 7, so that names sort by time.
 *
 *   run.json         what was asked for, resolved, and how far it came (written anew at each step)
 *   reads.jsonl      the ledger (ledger.ts)
 *   statement.json   in-toto Statement with SLSA provenance (statement.ts)
 *   trace.json       in-toto Statement with the reads as a runtime trace
 *   run.intoto.jsonl both in signed envelopes, when there is a key
 *   source.diff      what the code differs in from its commit
 *   pushed.json      the revision that the outputs became
 *   stdout.log, stderr.log, outputs/, mnt/, loader.sock, deliveries.ndjson
 */
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { join, resolve } from 'node:path'
import { v7 } from 'uuid'
import { BobbinError, localError, systemCode } from '../../daemon/model/index.js'
import type { PackageAddress } from '../../loader/http/objects.js'
import type { CodeIdentity } from '../run/code.js'
import type { ImageIdentity } from '../run/image.js'
import type { FilesBefore, OutputFile } from '../run/outputs.js'

export interface RunMount {
  /** As it was typed. */
  readonly asked: string
  readonly registry: string
  readonly package: string
  readonly topHash: string
  readonly manifestSha256: string
  readonly entries: number
  readonly bytes: number
  /** Here. */
  readonly mountpoint: string
  /** Where the command sees it; the same as `mountpoint` without a container. */
  readonly target: string
  /** Which access log is this mount's. */
  readonly mountedAt: string
  readonly cacheDir: string
}

/** What is known of a run, as far as it came. */
export interface RunFacts {
  readonly version: 1
  readonly runId: string
  readonly bobbin: string
  /** Of the process that looks after it. */
  readonly pid: number
  readonly host: string
  readonly engine: {
    readonly name: 'host' | 'docker' | 'podman'
    readonly version: string
    readonly imageStore?: string
  }
  readonly command: readonly string[]
  /** What the user set, not what the environment held. */
  readonly env: Readonly<Record<string, string>>
  /** Names of variables whose values it got and the record has not. */
  readonly passed?: readonly string[]
  /** Docker's own, as given. */
  readonly options: readonly string[]
  readonly image?: ImageIdentity
  readonly code?: CodeIdentity
  readonly mounts: readonly RunMount[]
  /** Whose loader was it; null: there was none. */
  readonly loaderSocket: string | null
  /** Where the command ran, below the code's folder; absolute where there is no code. In containers: the engine's business. */
  readonly cwd?: string
  /** Where the command wrote its outputs, here. */
  readonly outputDir?: string
  /** What lay there already; what of it is still the same is no output. */
  readonly outputsBefore?: FilesBefore
  readonly startedOn: string
  /** The command's end. */
  readonly endedOn?: string
  /** The same, once the record is whole. */
  readonly finishedOn?: string
  /** 128 + n: ended by a signal. */
  readonly exitCode?: number
  /** Nothing that was opened or delivered is missing from the logs, as far as we can know. */
  readonly areLogsWhole?: boolean
  /** The process that looked after the run was gone before it was over. */
  readonly wasAbandoned?: boolean
  readonly outputs?: readonly OutputFile[]
  /** What went wrong around the command, in words: a mount that ended, a full disk. What it did itself, its exit code says. */
  readonly problems?: readonly string[]
  /** Packages that were read through the loader alone. */
  readonly loaded?: readonly PackageAddress[]
  /** Of a merged record. */
  readonly nodes?: readonly {
    readonly runId: string
    readonly host: string
    readonly exitCode: number | null
    readonly statementSha256: string
  }[]
}

/** Where the record lies in a package of outputs. */
export const RECORD_FOLDER = '.bobbin'
const RUN_ID = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/

/** BOBBIN_STATE, systemd's, XDG's, or `~/.local/state/bobbin`. */
export function stateDir(environment: NodeJS.ProcessEnv = process.env): string {
  if (environment.BOBBIN_STATE) return resolve(environment.BOBBIN_STATE)
  const fromSystemd = environment.STATE_DIRECTORY?.split(':')[0]
  if (fromSystemd) return fromSystemd
  return join(environment.XDG_STATE_HOME || join(homedir(), '.local', 'state'), 'bobbin')
}

export class RunFolder {
  private constructor(
    readonly path: string,
    readonly runId: string,
  ) {}

  /** A new one. Throws LOCAL_IO. */
  static create(state: string): RunFolder {
    const runId = v7()
    const path = join(state, 'runs', runId)
    try {
      // What was fetched with one person's credentials is not for others: mounts and the loader's socket lie below.
      mkdirSync(path, { recursive: true, mode: 0o700 })
    } catch (error) {
      throw localError(`make the run's folder ${path} (BOBBIN_STATE says where)`, error)
    }
    return new RunFolder(path, runId)
  }

  /** A folder (a package of outputs, too), or an id (or the start of one) of a run in `state`. Throws ENTRY_NOT_FOUND. */
  static find(text: string, state: string): RunFolder {
    const folder = resolve(text)
    for (const candidate of [folder, join(folder, RECORD_FOLDER), resolve(folder, '..')]) {
      const facts = readFacts(candidate)
      if (facts !== undefined) return new RunFolder(candidate, facts.runId)
    }
    const found = /^[0-9a-f-]{4,36}$/.test(text)
      ? idsIn(state).filter(id => id.startsWith(text) || id.endsWith(text))
      : []
    if (found.length === 1) return new RunFolder(join(state, 'runs', found[0]!), found[0]!)
    const why = found.length > 1 ? `${found.length} runs are called that` : 'no run is called that'
    throw new BobbinError('ENTRY_NOT_FOUND', `${text}: ${why} (bobbin runs lists those in ${state})`)
  }

  static all(state: string): RunFolder[] {
    return idsIn(state).map(id => new RunFolder(join(state, 'runs', id), id))
  }

  file(name: string): string {
    return join(this.path, name)
  }

  /** Undefined: there is nothing yet, or it is damaged. */
  tryRead(): RunFacts | undefined {
    return readFacts(this.path)
  }

  read(): RunFacts {
    const facts = this.tryRead()
    if (facts !== undefined) return facts
    throw new BobbinError('LOCAL_IO', `${this.file('run.json')} is missing or damaged`)
  }

  write(facts: RunFacts): void {
    this.writeFile('run.json', formatFacts(facts))
  }

  /** Whole, or not at all. */
  writeFile(name: string, content: string | Uint8Array): void {
    const path = this.file(name)
    try {
      writeFileSync(`${path}.new`, content, { mode: 0o644 })
      renameSync(`${path}.new`, path)
    } catch (error) {
      // On a full disk half of it would be in the way.
      rmSync(`${path}.new`, { force: true })
      throw localError(`write ${path}`, error)
    }
  }
}

export function formatFacts(facts: RunFacts): string {
  return `${JSON.stringify(facts, undefined, 2)}\n`
}

function idsIn(state: string): string[] {
  try {
    return readdirSync(join(state, 'runs'))
      .filter(name => RUN_ID.test(name))
      .sort()
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return []
    throw localError(`list the runs in ${state}`, error)
  }
}

function readFacts(folder: string): RunFacts | undefined {
  try {
    const facts = JSON.parse(readFileSync(join(folder, 'run.json'), 'utf8')) as RunFacts
    return facts.version === 1 && RUN_ID.test(facts.runId) ? facts : undefined
  } catch {
    return undefined
  }
}
