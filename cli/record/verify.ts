/**
 * Is a record sound? Its statements follow from its facts and its ledger, the files are those that they name, a
 * signature is that of the key given, and the ledger is a subset of the packages: every row is checked.
 */
import type { KeyObject } from 'node:crypto'
import { existsSync } from 'node:fs'
import { isDeepStrictEqual } from 'node:util'
import { type Static, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { throwIfAborted } from '../../daemon/model/index.js'
import type { OpenedPackage, OpenOptions } from '../../daemon/package/package-cache.js'
import { type Envelope, openEnvelope } from './dsse.js'
import { countLedger, fileSha256, type Ledger } from './ledger.js'
import type { LedgerRow } from './ledger-row.js'
import { openRecorded } from './open-recorded.js'
import { compareWithFolder } from './outputs.js'
import type { RunFacts } from './run-facts.js'
import { type RunFolder, readDocument } from './run-folder.js'
import { ENVELOPES_FILE, PROVENANCE_FILE, STATEMENTS } from './statements.js'

/** What is read of a statement, which may be a stranger's; all else of it is compared with what it should be. */
const ReadableSchema = Type.Object({
  predicate: Type.Object({
    buildDefinition: Type.Optional(
      Type.Object({
        resolvedDependencies: Type.Optional(
          Type.Array(
            Type.Object({
              name: Type.Optional(Type.String()),
              annotations: Type.Optional(Type.Object({ complete: Type.Optional(Type.Unknown()) })),
            }),
          ),
        ),
      }),
    ),
    runDetails: Type.Optional(
      Type.Object({
        byproducts: Type.Optional(
          Type.Array(
            Type.Object({
              uri: Type.Optional(Type.String()),
              digest: Type.Optional(Type.Object({ sha256: Type.Optional(Type.String()) })),
            }),
          ),
        ),
      }),
    ),
  }),
})
type Readable = Static<typeof ReadableSchema>

/** Rows of a ledger that are named one by one when they are wrong. */
const WRONG_ROWS_MAX = 1000

export interface Verdict {
  readonly problems: readonly string[]
  /** What was not checked, or what the record itself says is not whole. */
  readonly remarks: readonly string[]
  /** Rows of the ledger. */
  readonly reads: number
  readonly outputs: number
  /** false: there was no key to check with. */
  readonly isSignatureChecked: boolean
}

/** Throws what opening a package throws, ENTRY_NOT_FOUND for no record, INVALID_ARGUMENT for a ledger that is none. */
export async function verifyRecord(
  run: RunFolder,
  options: { readonly publicKey: KeyObject | undefined; readonly packages: OpenOptions },
): Promise<Verdict> {
  const facts = run.read()
  const problems: string[] = []
  const statement = statementOf(run)
  const { ledger, wrong } = await checkedLedger(run, facts, options.packages)
  const files = namedFiles(statement)
  for (const { name, make } of STATEMENTS) {
    const expected = make(facts, ledger, { isComplete: isCompleteIn(statement), files })
    if (!isSame(documentOf(run, name), expected)) problems.push(`${name} does not follow from run.json and reads.jsonl`)
  }
  for (const [name, sha256] of files) {
    if ((await fileSha256(run.file(name))) !== sha256)
      problems.push(`${name} is missing or is not what the statement says`)
  }
  const compared = await comparedOutputs(run, facts, options.packages.signal)
  const changed = compared.filter(({ change }) => change === 'changed')
  problems.push(...changed.map(({ path }) => `outputs/${path} has changed since`))
  const written = await comparedWritten(facts, options.packages.signal)
  problems.push(
    ...written
      .filter(({ change }) => change === 'changed')
      .map(({ target, path }) => `what was written to ${path} above ${target} has changed since`),
  )
  const { publicKey } = options
  if (publicKey !== undefined) problems.push(...signatureProblems(run, publicKey))
  problems.push(...wrong)
  const missing = compared.filter(({ change }) => change === 'missing').length
  const writtenMissing = written.filter(({ change }) => change === 'missing').length
  const remarks = [
    ...(writtenMissing > 0
      ? [`${writtenMissing} of the files that it wrote above its data are not where they were, and were not checked`]
      : []),
    ...(missing > 0 ? [`${missing} of its outputs are not where they were, and were not checked`] : []),
    ...(publicKey !== undefined ? [] : [unchecked(run)]),
    ...(isCompleteIn(statement) ? [] : ['it says itself that reads may be missing from its ledger']),
    ...(facts.problems ?? []).map(problem => `it says itself: ${problem}`),
  ]
  return {
    problems,
    remarks,
    reads: ledger.facts.rows,
    outputs: facts.outputs?.length ?? 0,
    isSignatureChecked: publicKey !== undefined,
  }
}

/** Those that are not here any more are no problem: they may have been moved. */
async function comparedOutputs(run: RunFolder, { outputs = [], outputDir }: RunFacts, signal: AbortSignal | undefined) {
  const folder = run.outputsBeside() ?? outputDir
  return folder === undefined ? [] : compareWithFolder(outputs, folder, signal)
}

async function comparedWritten({ written = [] }: RunFacts, signal: AbortSignal | undefined) {
  const compared = []
  for (const { target, folder, files } of written)
    for (const file of await compareWithFolder(files, folder, signal)) compared.push({ target, ...file })
  return compared
}

function unchecked(run: RunFolder): string {
  return existsSync(run.file(ENVELOPES_FILE))
    ? 'its signature was not checked (--public-key)'
    : 'it is not signed (bobbin run --key)'
}

function signatureProblems(run: RunFolder, key: KeyObject): string[] {
  let lines: string[]
  try {
    lines = readDocument(run.file(ENVELOPES_FILE)).trimEnd().split('\n')
  } catch {
    return [`the record is not signed: there is no ${ENVELOPES_FILE}`]
  }
  if (lines.length !== STATEMENTS.length)
    return [`${ENVELOPES_FILE} has ${lines.length} envelopes, not ${STATEMENTS.length}`]
  return STATEMENTS.flatMap(({ name }, i) => {
    try {
      const payload = openEnvelope(JSON.parse(lines[i]!) as Envelope, key)
      if (payload === undefined) return `${name} was not signed by this key`
      return isSame(JSON.parse(payload), documentOf(run, name)) ? [] : `${name} is not what was signed`
    } catch {
      return `envelope ${i + 1} of ${ENVELOPES_FILE} is damaged`
    }
  })
}

function namedFiles({ predicate }: Readable): Map<string, string> {
  const files = new Map<string, string>()
  for (const { uri, digest } of predicate.runDetails?.byproducts ?? []) {
    const name = /^file:(\w[\w.-]*)$/.exec(uri ?? '')?.[1]
    if (name !== undefined && digest?.sha256 !== undefined) files.set(name, digest.sha256)
  }
  return files
}

export function isCompleteIn({ predicate }: Readable): boolean {
  const reads = predicate.buildDefinition?.resolvedDependencies?.find(({ name }) => name === 'reads')
  return reads?.annotations?.complete === true
}

function isSame(a: unknown, b: unknown): boolean {
  // A damaged document is null, which none of ours is.
  const plain = (value: unknown) => JSON.parse(JSON.stringify(value ?? null))
  try {
    return isDeepStrictEqual(plain(a), plain(b))
  } catch {
    // One of them is nested deeper than the stack, which none of ours is.
    return false
  }
}

/** Says nothing when it is damaged: then it follows from nothing. */
export function statementOf(run: RunFolder): Readable {
  const found = documentOf(run, PROVENANCE_FILE)
  return Value.Check(ReadableSchema, found) ? found : { predicate: {} }
}

function documentOf(run: RunFolder, name: string): unknown {
  const text = readDocument(run.file(name))
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** The ledger, read once, and what it says that its packages do not; nothing: it is a subset of them. */
async function checkedLedger(
  run: RunFolder,
  { mounts, loaded = [] }: RunFacts,
  options: OpenOptions,
): Promise<{ readonly ledger: Ledger; readonly wrong: readonly string[] }> {
  const registries = new Map([...mounts, ...loaded].map(one => [`${one.package}@${one.topHash}`, one.registry]))
  // One at a time: in a ledger, the rows of a package are neighbours.
  let opened: { readonly of: string; readonly it: OpenedPackage } | undefined
  const wrong: string[] = []
  let more = 0
  try {
    const ledger = await countLedger(run.file('reads.jsonl'), async row => {
      throwIfAborted(options.signal)
      const registry = registries.get(`${row.package}@${row.topHash}`)
      let why: string | undefined = 'the statement names no such package'
      if (registry !== undefined) {
        const of = `${row.package}@${row.topHash}`
        if (opened?.of !== of) {
          opened?.it.close()
          opened = undefined
          opened = { of, it: await openRecorded({ ...row, registry }, options) }
        }
        why = differenceFrom(opened.it, row)
      }
      if (why === undefined) return
      if (wrong.length < WRONG_ROWS_MAX)
        wrong.push(`${row.package}@${row.topHash.slice(0, 12)} ${JSON.stringify(row.key)}: ${why}`)
      else more++
    })
    if (more > 0) wrong.push(`reads.jsonl has ${more} more rows that its packages do not have`)
    return { ledger, wrong }
  } finally {
    opened?.it.close()
  }
}

function differenceFrom({ index }: OpenedPackage, row: LedgerRow): string | undefined {
  const node = index.find(row.key)
  if (node?.kind !== 'file') return 'the package has no such entry'
  const { hash, size } = index.entry(node.ino, row.key)
  if (hash.type === row.hashType && hash.hex === row.hash && size === row.size) return undefined
  return `the package says ${hash.type}:${hash.hex} of ${size} bytes`
}
