/** The records of the nodes of one job become one: the same hashes, one ledger. */
import type { KeyObject } from 'node:crypto'
import { isDeepStrictEqual } from 'node:util'
import { BobbinError } from '../../daemon/model/index.js'
import { fileSha256, readLedger, textSha256, writeLedger } from './ledger.js'
import { mergedRows } from './merge-rows.js'
import { formatFacts, type RunFacts } from './run-facts.js'
import { RunFolder } from './run-folder.js'
import { PROVENANCE_FILE } from './statements.js'
import { isCompleteIn, statementOf } from './verify.js'
import { writeStatements } from './write-statements.js'

/** Throws INVALID_ARGUMENT when they are not of one job: other code, image, data or command. */
export async function mergeRecords(
  runs: readonly RunFolder[],
  state: string,
  key: KeyObject | undefined,
): Promise<{ folder: RunFolder; facts: RunFacts }> {
  const all = runs.map(run => ({ run, facts: run.read() }))
  const first = all[0]!.facts
  if (new Set(all.map(({ facts: { runId } }) => runId)).size < all.length)
    throw new BobbinError('INVALID_ARGUMENT', 'a record is named twice')
  for (const { run, facts } of all) {
    const difference = differenceOf(first, facts)
    if (difference !== undefined)
      throw new BobbinError(
        'INVALID_ARGUMENT',
        `${run.path} belongs to another job than ${all[0]!.run.path}: ${difference} differs`,
      )
    if (facts.finishedOn === undefined) throw new BobbinError('INVALID_ARGUMENT', `${run.path} is not over yet`)
  }
  const statements = new Map<string, string>()
  for (const { run, facts } of all) statements.set(facts.runId, await statementSha256(run))
  const folder = RunFolder.create(state)
  const common = Object.fromEntries(
    Object.entries(first.env).filter(([name, value]) => all.every(({ facts: { env } }) => env[name] === value)),
  )
  const isComplete = all.every(({ run }) => isCompleteIn(statementOf(run)))
  const areEqual = all.every(({ facts: { options } }) => isDeepStrictEqual(options, first.options))
  const {
    outputDir: _,
    outputsBefore: __,
    endedOn: ___,
    madeFolders: ____,
    hidden: _____,
    written: ______,
    ...rest
  } = first
  const facts: RunFacts = {
    ...rest,
    runId: folder.runId,
    pid: process.pid,
    startedOn: all.map(one => one.facts.startedOn).sort()[0]!,
    finishedOn: all
      .map(one => one.facts.finishedOn!)
      .sort()
      .at(-1)!,
    exitCode: Math.max(...all.map(one => one.facts.exitCode ?? 1)),
    ...(all.some(one => one.facts.wasAbandoned) && { wasAbandoned: true }),
    env: common,
    areLogsWhole: isComplete,
    options: areEqual ? first.options : [],
    problems: all.flatMap(({ facts: { problems = [], host } }) => problems.map(problem => `${host}: ${problem}`)),
    // Several nodes of a job may be on one host.
    outputs: all.flatMap(({ facts: { outputs = [], host, runId } }) =>
      outputs.map(output => ({ ...output, path: `${host}-${runId}/${output.path}` })),
    ),
    ...(all.some(one => one.facts.written !== undefined) && {
      written: all.flatMap(({ facts: { written = [], host, runId } }) =>
        written.map(one => ({ ...one, target: `${host}-${runId}:${one.target}` })),
      ),
    }),
    loaded: all.flatMap(one => one.facts.loaded ?? []),
    nodes: all.map(({ facts: { runId, host, exitCode, env, options } }) => {
      const own = Object.fromEntries(Object.entries(env).filter(([name]) => !Object.hasOwn(common, name)))
      return {
        runId,
        host,
        exitCode: exitCode ?? null,
        statementSha256: statements.get(runId)!,
        env: own,
        options: areEqual ? [] : options,
      }
    }),
  }
  const ledgers = runs.map(run => readLedger(run.file('reads.jsonl')))
  const ledger = await writeLedger(folder.file('reads.jsonl'), mergedRows(ledgers))
  const evidence = { isComplete, files: new Map([['run.json', textSha256(formatFacts(facts))]]) }
  writeStatements(folder, facts, ledger, evidence, key)
  folder.write(facts)
  return { folder, facts }
}

function differenceOf(a: RunFacts, b: RunFacts): string | undefined {
  const parts = (facts: RunFacts) => ({
    'the code': facts.code?.tree,
    'the image': facts.image?.digest,
    'the data': facts.mounts.map(({ package: name, topHash, target }) => `${name}@${topHash} ${target}`).join(),
    'the command': JSON.stringify(facts.command),
  })
  const [ours, theirs] = [Object.entries(parts(a)), Object.values(parts(b))]
  return ours.find(([, value], i) => value !== theirs[i])?.[0]
}

async function statementSha256(run: RunFolder): Promise<string> {
  const sha256 = await fileSha256(run.file(PROVENANCE_FILE))
  if (sha256 === undefined) throw new BobbinError('LOCAL_IO', `${run.file(PROVENANCE_FILE)} is missing`)
  return sha256
}
