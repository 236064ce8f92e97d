/**
 * What a run has left becomes a revision of a package: its outputs, with its record below `.bobbin/`. The message has
 * the hashes that it was made from, the metadata has them and the provenance statement.
 */
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { pushFolder } from '../../daemon/folder/push/push-folder.js'
import type { Revision, RevisionOptions } from '../../daemon/folder/push/push-revision.js'
import { parseUserMeta } from '../../daemon/manifest/manifest-writer.js'
import { BobbinError } from '../../daemon/model/index.js'
import { formatRegistry, type PackageReference } from '../../daemon/registry/reference.js'
import { type Context, sourceConfigOf } from '../context.js'
import { compareWithFolder } from '../record/outputs.js'
import { hasRecordFile } from '../record/record-file.js'
import type { RunFacts } from '../record/run-facts.js'
import { RECORD_FOLDER, type RunFolder, readDocument } from '../record/run-folder.js'
import { diffNames } from '../record/statement.js'
import { ENVELOPES_FILE, PROVENANCE_FILE, STATEMENTS } from '../record/statements.js'
import { hashVariables } from './hashes.js'

/** In this order a reader wants them. What a run has none of is left out. */
const RECORD_FILES = [
  'run.json',
  ...STATEMENTS.map(({ name }) => name),
  ENVELOPES_FILE,
  'reads.jsonl',
  'stdout.log',
  'stderr.log',
]
/** A larger one is named by its hash: a row of a manifest may have 1,000,000 bytes. */
const STATEMENT_BYTES_MAX = 500_000

/**
 * Whatever is latest is followed: each run is a revision of its own, and several may end at any time.
 * Throws INVALID_ARGUMENT for a run without outputs, FOLDER_DIFFERS when they have changed since, and what `pushFolder` throws.
 */
export async function pushOutputs(
  { folder, facts }: { readonly folder: RunFolder; readonly facts: RunFacts },
  target: PackageReference & Pick<RevisionOptions, 'workflow'>,
  { settings, output, signal, progress }: Context,
): Promise<Revision> {
  const { outputDir, outputs = [], runId, nodes } = facts
  if (nodes !== undefined)
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `the record ${runId} has ${nodes.length} nodes: push the run of each node`,
    )
  if (outputDir === undefined) throw new BobbinError('INVALID_ARGUMENT', `the run ${runId} was given no --output`)
  const [first, ...others] = (await compareWithFolder(outputs, outputDir)).filter(({ change }) => change !== 'same')
  if (first !== undefined) {
    const more = others.length > 0 ? `, and ${others.length} more` : ''
    const what = `${join(outputDir, first.path)} is ${first.change}${more}`
    throw new BobbinError('FOLDER_DIFFERS', `the outputs have changed since the run ${runId}: ${what}`)
  }
  const record = [...RECORD_FILES, ...diffNames(facts)].filter(name => hasRecordFile(folder.file(name)))
  const files = new Map([
    ...outputs.map(({ path }) => [path, join(outputDir, path)] as const),
    ...record.map(name => [`${RECORD_FOLDER}/${name}`, folder.file(name)] as const),
  ])
  const revision = await pushFolder({
    ...target,
    message: messageOf(facts),
    userMeta: metadataOf(folder, facts),
    force: true,
    dir: outputDir,
    files,
    sourceConfig: sourceConfigOf(settings),
    cacheDir: settings.cacheDir,
    onLack: what => output.note(`bobbin: ${what}`),
    signal,
    onProgress: ({ bytes, bytesTotal }) => progress.update('push', bytes, bytesTotal),
  })
  progress.stop()
  folder.writeFile('pushed.json', `${JSON.stringify(addressOf(revision))}\n`)
  return revision
}

/** As it stands in what is printed and kept. */
export function addressOf({ registry, name, topHash }: Revision) {
  return { registry: formatRegistry(registry), package: name, topHash }
}

function messageOf(facts: RunFacts): string {
  const { BOBBIN_RUN, ...hashes } = hashVariables(facts)
  const words = Object.entries(hashes).map(([name, value]) => `${name}=${value}`)
  return `${facts.command.join(' ').slice(0, 200)}: ${words.join(' ')}`
}

function metadataOf(folder: RunFolder, facts: RunFacts): string {
  const statement = Buffer.from(readDocument(folder.file(PROVENANCE_FILE)))
  const { runId, command, exitCode, startedOn, finishedOn, mounts, loaded = [], image } = facts
  const record = {
    runId,
    command,
    exitCode,
    startedOn,
    finishedOn,
    hashes: hashVariables(facts),
    image: image?.reference,
    datasets: [...mounts, ...loaded].map(({ registry, package: name, topHash }) => `${registry}/${name}@${topHash}`),
    record: `${RECORD_FOLDER}/`,
    statementSha256: createHash('sha256').update(statement).digest('hex'),
    ...(statement.length <= STATEMENT_BYTES_MAX && { statement: JSON.parse(statement.toString()) as unknown }),
  }
  return parseUserMeta(JSON.stringify({ bobbin: record }))
}
