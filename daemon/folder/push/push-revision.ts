/**
 * A new revision, whatever its entries come from. In this order, so that whatever fails leaves the registry as it was,
 * but for objects that the next try finds and does not upload again:
 *
 *   names and sizes → rules → conflict → objects → manifest → conflict again → pointers
 *
 * What may be checked before a byte is uploaded is checked before.
 */
import { randomBytes } from 'node:crypto'
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { type ManifestHeader, ManifestWriter, type WrittenManifest } from '../../manifest/manifest-writer.js'
import {
  BobbinError,
  hasCode,
  localError,
  type PackageName,
  type Registry,
  type RegistryWriter,
  type Source,
  type TopHash,
} from '../../model/index.js'
import { publishRevision, type RevisionTarget, requireParent } from '../../registry/publish.js'
import { readLatest } from '../../registry/registry.js'
import { createSource, type SourceConfig } from '../../source/index.js'
import { Workers } from '../../work/workers.js'
import { findWorkflow, type WorkflowEntry } from '../../workflow/workflow.js'
import { createRegistryWriter } from '../../writer/index.js'
import { LocalFile } from './local-file.js'

export interface RevisionOptions {
  readonly registry: Registry
  readonly name: PackageName
  readonly message: string | null
  /** JSON text of an object, as `parseUserMeta` gives it. */
  readonly userMeta?: string | undefined
  /** A workflow's id; `null`: none; `undefined`: the registry's default. */
  readonly workflow?: string | null | undefined
  /** The revision that the new one was made from: a top hash, or its first characters. */
  readonly parent?: string | undefined
  /** Push over whatever is latest. */
  readonly force?: boolean | undefined
  /** Of the revision that this one is made from: what nothing here names comes along. */
  readonly baseHeader?: Buffer | undefined
  /** The header as it is. The registry's rules are asked, but not named: the top hash is another registry's. */
  readonly header?: Buffer | undefined
  /** Nothing else is published. */
  readonly expectedTopHash?: TopHash | undefined
  readonly sourceConfig: SourceConfig
  readonly cacheDir: string
  /** What the server turned out to lack, in words. */
  readonly onLack?: ((what: string) => void) | undefined
  readonly signal?: AbortSignal | undefined
}

/** What the entries of a revision come from. */
export interface Entries {
  /** Sees all names before anybody is asked or told anything. */
  look(): Promise<void>
  /** All at once, for rules about entries. */
  list(): Promise<WorkflowEntry[]>
  /** The rows as they would be, with nothing written to the registry: for the top hash. */
  describe(manifest: ManifestWriter): Promise<void>
  /** Writes the rows, and before each what it points to. */
  write(manifest: ManifestWriter): Promise<void>
}

export interface Tools {
  readonly source: Source
  readonly writer: RegistryWriter
  readonly workers: Workers
}

export interface Revision extends WrittenManifest, Pick<RevisionOptions, 'registry' | 'name' | 'message'> {
  /** Of the package; JSON text. */
  readonly metadata: string
  /** False: this was the latest revision already. */
  readonly isNew: boolean
}

/**
 * Throws INVALID_ARGUMENT (names that no package may have, rules of the registry), REVISION_CONFLICT, TOO_LARGE, and
 * what `Entries` and `RegistryWriter` throw.
 */
export async function pushRevision(
  options: RevisionOptions,
  entriesWith: (tools: Tools) => Entries,
): Promise<Revision> {
  const { sourceConfig, cacheDir, onLack } = options
  const source = createSource(sourceConfig)
  const workers = new Workers(sourceConfig)
  try {
    const writer = createRegistryWriter(options.registry, { ...sourceConfig, cacheDir, onLack })
    try {
      const tools = { source, writer, workers }
      return await push(options, tools, entriesWith(tools))
    } finally {
      await writer.close()
    }
  } finally {
    await workers.close()
    source.close()
  }
}

async function push(options: RevisionOptions, { source, writer, workers }: Tools, entries: Entries): Promise<Revision> {
  const { registry, name, parent, force, message, userMeta, cacheDir, signal } = options
  const target: RevisionTarget = { registry, name, parent, isForced: force }
  await entries.look()
  const workflow = await findWorkflow(source, writer, options, { signal })
  if (workflow?.checksEntries) await workflow.checkEntries(await entries.list())
  const words = { registry, name, message, metadata: userMeta ?? '{}' }
  const header: ManifestHeader | Buffer = options.header ?? {
    message,
    userMeta,
    workflow: workflow?.header,
    base: options.baseHeader,
  }
  const conflict = await conflictOf(source, target, signal)
  return await withManifestFile(cacheDir, async path => {
    if (conflict !== undefined) {
      // Whoever runs the same command again, perhaps because the answer of the last step was lost, has what they want.
      const same = await writeManifest(path, header, manifest => entries.describe(manifest))
      if ((await readLatest(source, registry, name, { signal })) !== same.topHash) throw conflict
      return { ...words, ...same, isNew: false }
    }
    const written = await writeManifest(path, header, manifest => entries.write(manifest))
    if (options.expectedTopHash !== undefined && written.topHash !== options.expectedTopHash) {
      throw new BobbinError('INTERNAL', `the copy of ${options.expectedTopHash} hashes to ${written.topHash}`)
    }
    const file = await LocalFile.open(path, workers)
    try {
      const { isNew } = await publishRevision(source, writer, target, { topHash: written.topHash, file }, { signal })
      return { ...words, ...written, isNew }
    } finally {
      await file.close()
    }
  })
}

async function conflictOf(
  source: Source,
  target: RevisionTarget,
  signal: AbortSignal | undefined,
): Promise<BobbinError | undefined> {
  try {
    await requireParent(source, target, { signal })
    return undefined
  } catch (error) {
    if (hasCode(error, 'REVISION_CONFLICT')) return error
    throw error
  }
}

async function writeManifest(
  path: string,
  header: ManifestHeader | Buffer,
  fill: (manifest: ManifestWriter) => Promise<void>,
): Promise<WrittenManifest> {
  const manifest = new ManifestWriter(path, header)
  try {
    await fill(manifest)
    return manifest.finish()
  } finally {
    manifest.close()
  }
}

/** A path for a manifest under way, below the cache as all of them. */
async function withManifestFile<T>(cacheDir: string, use: (path: string) => Promise<T>): Promise<T> {
  const folder = join(cacheDir, 'tmp')
  await mkdir(folder, { recursive: true, mode: 0o750 }).catch(error =>
    Promise.reject(localError(`make the folder ${folder}`, error)),
  )
  const path = join(folder, `${process.pid}-${randomBytes(6).toString('hex')}.manifest`)
  try {
    return await use(path)
  } finally {
    await rm(path, { force: true })
  }
}
