/**
 * Where runs are kept: `<state>/runs/<run id>/`, ids being UUIDs of version 7, so that names sort by time.
 *
 *   run.json         what was asked for, resolved, and how far it came (run-facts.ts; written anew at each step)
 *   reads.jsonl      the ledger (ledger.ts)
 *   statement.json   in-toto Statement with SLSA provenance (statement.ts)
 *   trace.json       in-toto Statement with the reads as a runtime trace
 *   run.intoto.jsonl both in signed envelopes, when there is a key
 *   source.diff      what the code differs in from its commit
 *   pushed.json      the revision that the outputs became
 *   scratch/         what the command wrote above its data, by the number of the mount (--scratch)
 *   stdout.log, stderr.log, outputs/, mnt/, loader/, deliveries.ndjson
 */
import { closeSync, fstatSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { v7 } from 'uuid'
import { BobbinError, isInHome, isOutOfReach, localError, systemCode, xdgFolder } from '../../daemon/model/index.js'
import { makeFolderDurablySync, writeDurablySync } from '../../daemon/store/index.js'
import { openRecordFileSync } from './record-file.js'
import { formatFacts, isRunId, parseFacts, type RunFacts } from './run-facts.js'

/** Where the record lies in a package of outputs. */
export const RECORD_FOLDER = '.bobbin'

/** BOBBIN_STATE, systemd's, XDG's, or `~/.local/state/bobbin`. */
export function stateDir(environment: NodeJS.ProcessEnv = process.env): string {
  if (environment.BOBBIN_STATE) return resolve(environment.BOBBIN_STATE)
  const fromSystemd = environment.STATE_DIRECTORY?.split(':')[0]
  if (fromSystemd) return fromSystemd
  return join(xdgFolder('XDG_STATE_HOME', '.local/state', environment), 'bobbin')
}

/** It is parsed as a whole: a million outputs make half of this. */
const DOCUMENT_BYTES_MAX = 256 * 2 ** 20

export class RunFolder {
  private constructor(
    readonly path: string,
    readonly runId: string,
  ) {}

  /** A new one. Throws LOCAL_IO. */
  static create(state: string): RunFolder {
    const runId = v7()
    const path = join(state, 'runs', runId)
    if (!isInHome(path))
      throw new BobbinError(
        'INVALID_ARGUMENT',
        'this user has no home folder for records of runs: say with BOBBIN_STATE where they belong',
      )
    try {
      // What was fetched with one person's credentials is not for others: mounts and the loader's socket lie below.
      makeFolderDurablySync(path, { mode: 0o700 })
    } catch (error) {
      throw localError(`make the run's folder ${path} (BOBBIN_STATE says where)`, error)
    }
    return new RunFolder(path, runId)
  }

  /**
   * A folder (a package of outputs, too), a file in one, or an id (or the start of one) of a run in `state`. Throws
   * ENTRY_NOT_FOUND, FOLDER_DIFFERS for a record that is damaged.
   */
  static find(text: string, state: string): RunFolder {
    const named = resolve(text)
    const isFile = statSync(named, { throwIfNoEntry: false })?.isFile() ?? false
    const candidates = isFile ? [dirname(named)] : [named, join(named, RECORD_FOLDER)]
    for (const candidate of candidates) {
      if (statSync(join(candidate, 'run.json'), { throwIfNoEntry: false }) === undefined) continue
      const facts = readFacts(candidate)
      if (facts === undefined)
        throw new BobbinError(
          'FOLDER_DIFFERS',
          `${join(candidate, 'run.json')} is not a record of a run, or is damaged`,
        )
      return new RunFolder(candidate, facts.runId)
    }
    const found = /^[0-9a-f-]{4,36}$/.test(text)
      ? idsIn(state).filter(id => id.startsWith(text) || id.endsWith(text))
      : []
    if (found.length === 1) return new RunFolder(join(state, 'runs', found[0]!), found[0]!)
    const why =
      found.length > 1
        ? `${found.length} runs are called that: give more of the id, or its end`
        : 'no run is called that'
    throw new BobbinError('ENTRY_NOT_FOUND', `${text}: ${why} (bobbin runs lists those in ${state})`)
  }

  static all(state: string): RunFolder[] {
    return idsIn(state).map(id => new RunFolder(join(state, 'runs', id), id))
  }

  file(name: string): string {
    return join(this.path, name)
  }

  /** Made here, by whoever owns this state; others come from anywhere, and nothing is done because they say so. */
  isIn(state: string): boolean {
    return this.path === join(resolve(state), 'runs', this.runId)
  }

  /** Where the outputs that the record names lie beside it: in a package of outputs. */
  outputsBeside(): string | undefined {
    return basename(this.path) === RECORD_FOLDER ? dirname(this.path) : undefined
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

  /** Whole, or not at all; once this returns, also after a power cut. */
  writeFile(name: string, content: string | Uint8Array): void {
    writeDurablySync(this.file(name), content)
  }
}

/**
 * A document of a record, which anybody may have made. Throws LOCAL_IO, ACCESS_DENIED, INVALID_ARGUMENT for one that is too long,
 * FOLDER_DIFFERS for what is no file.
 */
export function readDocument(path: string): string {
  const fd = openRecordFileSync(path)
  try {
    const { size } = fstatSync(fd)
    if (size > DOCUMENT_BYTES_MAX)
      throw new BobbinError(
        'INVALID_ARGUMENT',
        `${path}: it has ${size} bytes, a document of a record has at most ${DOCUMENT_BYTES_MAX}`,
      )
    return readFileSync(fd, 'utf8')
  } catch (error) {
    throw localError(`read ${path}`, error)
  } finally {
    closeSync(fd)
  }
}

function idsIn(state: string): string[] {
  try {
    return readdirSync(join(state, 'runs')).filter(isRunId).sort()
  } catch (error) {
    if (systemCode(error) === 'ENOENT' || isOutOfReach(join(state, 'runs'))) return []
    throw localError(`list the runs in ${state}`, error)
  }
}

function readFacts(folder: string): RunFacts | undefined {
  try {
    return parseFacts(readDocument(join(folder, 'run.json')))
  } catch {
    return undefined
  }
}
