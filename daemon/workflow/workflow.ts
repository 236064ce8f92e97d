/**
 * The workflow rules of a registry (`.quilt/workflows/config.yml`), which every new revision has to follow, and which
 * its header names. What is refused is what quilt3 8.0.0 refuses (its module `workflows`).
 *
 * Everything here throws INVALID_ARGUMENT, for rules that are broken, and for rules that cannot be read: a registry
 * with rules takes nothing that was not checked.
 */

import { runConfined } from '../confined/confined.js'
import {
  BobbinError,
  formatBytes,
  formatPhysicalKey,
  hasCode,
  type PackageName,
  type PhysicalKey,
  parsePhysicalKey,
  type Registry,
  type RegistryWriter,
  type Source,
} from '../model/index.js'
import { formatRegistry } from '../registry/reference.js'
import { type RegistryOptions, workflowConfigKey } from '../registry/registry.js'
import type { WorkflowConfig, WorkflowRules } from './workflow-config-schema.js'
import type { RulesTask, SchemaText } from './workflow-rules.js'

/** Of `config.yml`, and of a schema; those of Quilt's catalog have a few kilobytes. */
const DOCUMENT_BYTES_MAX = 2 ** 20
/** Starting, and a schema that is large. */
const CHECK_MS = 30_000
/** Per entry, which is compared with the schema in some microseconds. */
const ENTRY_MS = 0.1
const HEAP_MIB = 512
/** An entry and its metadata, which are all in memory for their schema. */
const ENTRY_MIB = 4 / 1024

/** What a revision is said to be, before its entries are known. */
export interface RevisionWords {
  readonly registry: Registry
  readonly name: PackageName
  readonly message: string | null
  /** JSON text. */
  readonly userMeta?: string | undefined
  /** A workflow's id; `null`: none is wanted; `undefined`: the registry's default. */
  readonly workflow?: string | null | undefined
}

/** An entry as the schema of entries sees it. */
export interface WorkflowEntry {
  readonly logical_key: string
  readonly size: number
  /** The user's. */
  readonly meta: unknown
}

export interface Workflow {
  /** JSON text for the manifest's header. */
  readonly header: string
  /** There is a schema for entries; all of them have to be in memory for it. */
  readonly checksEntries: boolean
  checkEntries(entries: readonly WorkflowEntry[]): Promise<void>
}

/** Checks all but the entries; `undefined`: the registry has no rules. */
export async function findWorkflow(
  source: Source,
  writer: RegistryWriter,
  words: RevisionWords,
  options: RegistryOptions = {},
): Promise<Workflow | undefined> {
  const found = await findRules(source, writer, words, options, words.userMeta ?? '{}')
  if (found === undefined) return undefined
  const { header, entries: schema } = found
  return {
    header,
    checksEntries: schema !== undefined,
    async checkEntries(values) {
      if (schema !== undefined) await work(words, { kind: 'entries', entries: schema, values }, options, values.length)
    },
  }
}

/** For who has nothing to push yet: throws what `findWorkflow` would throw whatever the metadata are. */
export async function checkWorkflow(
  source: Source,
  writer: RegistryWriter,
  words: Omit<RevisionWords, 'userMeta'>,
  options: RegistryOptions = {},
): Promise<void> {
  await findRules(source, writer, words, options)
}

interface FoundRules extends Pick<Workflow, 'header'> {
  readonly entries: SchemaText | undefined
}

/** `userMeta`: JSON text; `undefined`: it is not known yet. */
async function findRules(
  source: Source,
  writer: RegistryWriter,
  words: RevisionWords,
  options: RegistryOptions,
  userMeta?: string,
): Promise<FoundRules | undefined> {
  const documents = new Documents(source, writer, words, options)
  const found = await documents.read(workflowConfigKey(words.registry))
  if (found === undefined) {
    if (words.workflow === undefined) return undefined
    throw refused(words, 'a workflow is named, but the registry has no .quilt/workflows/config.yml')
  }
  const config = await work<WorkflowConfig>(words, { kind: 'config', text: found.text }, options)
  const { id, rules } = chooseWorkflow(config, words)
  if (rules.is_message_required && !words.message) throw refused(words, 'a message is required')
  const schemas = new Schemas(documents, config, words)
  const metadata = await schemas.find(rules.metadata_schema)
  const entries = await schemas.find(rules.entries_schema)
  const { name } = words
  const handlePattern = rules.handle_pattern
  await work(words, { kind: 'check', name, handlePattern, metadata, entries, userMeta }, options)
  const header = {
    id,
    config: formatPhysicalKey(found.key),
    ...(schemas.used.size > 0 && { schemas: Object.fromEntries(schemas.used) }),
  }
  return { header: JSON.stringify(header), entries }
}

/** Throws INVALID_ARGUMENT with what is wrong, also when that cannot be found out in time. */
async function work<Result = null>(
  words: RevisionWords,
  task: RulesTask,
  { signal }: RegistryOptions,
  entries = 0,
): Promise<Result> {
  const limits = {
    deadlineMs: CHECK_MS + Math.ceil(entries * ENTRY_MS),
    heapMib: HEAP_MIB + Math.ceil(entries * ENTRY_MIB),
  }
  try {
    const module = new URL('workflow-rules.js', import.meta.url)
    return await runConfined<Result>(module, task, { what: 'apply them', signal, ...limits })
  } catch (error) {
    if (hasCode(error, 'INVALID_ARGUMENT')) throw refused(words, error.message)
    throw error
  }
}

function chooseWorkflow(
  config: WorkflowConfig,
  words: RevisionWords,
): { readonly id: string | null; readonly rules: WorkflowRules } {
  const id = words.workflow === undefined ? (config.default_workflow ?? null) : words.workflow
  const ids = Object.keys(config.workflows)
  if (id === null) {
    if (config.is_workflow_required ?? true) {
      throw refused(words, `a workflow has to be named with --workflow: ${ids.join(', ')}`)
    }
    return { id, rules: {} }
  }
  if (!Object.hasOwn(config.workflows, id)) {
    throw refused(words, `there is no workflow ${JSON.stringify(id)}, but ${ids.join(', ')}`)
  }
  return { id, rules: config.workflows[id]! }
}

/** Schemas by their ids, and which of them a revision was checked with. */
class Schemas {
  /** Addresses, with versions, by id. */
  readonly used = new Map<string, string>()

  constructor(
    private readonly documents: Documents,
    private readonly config: WorkflowConfig,
    private readonly words: RevisionWords,
  ) {}

  async find(id: string | undefined): Promise<SchemaText | undefined> {
    if (!id) return undefined
    const url = this.config.schemas?.[id]?.url
    if (url === undefined) throw refused(this.words, `config.yml has no schema ${JSON.stringify(id)}`)
    const key = this.#keyOf(url)
    const found = await this.documents.read(key)
    if (found === undefined) throw refused(this.words, `the schema ${url} is not there`)
    this.used.set(id, formatPhysicalKey(found.key))
    return { url, text: found.text }
  }

  #keyOf(url: string): PhysicalKey {
    const key = parsePhysicalKey(url)
    if (key.kind === 'file' && this.words.registry.kind !== 'file') {
      throw refused(this.words, `the schema ${url} is a file of some machine`)
    }
    return key
  }
}

interface Document {
  /** With its version, where there is one. */
  readonly key: PhysicalKey
  readonly text: string
}

class Documents {
  constructor(
    private readonly source: Source,
    private readonly writer: RegistryWriter,
    private readonly words: RevisionWords,
    private readonly options: RegistryOptions,
  ) {}

  async read(wanted: PhysicalKey): Promise<Document | undefined> {
    const { signal } = this.options
    const key = await this.writer.find(wanted, signal)
    if (key === undefined) return undefined
    const chunks: Uint8Array[] = []
    try {
      const range = { start: 0, length: DOCUMENT_BYTES_MAX + 1 }
      const reading = await this.source.read(key, { range, ...(signal && { signal }) })
      for await (const chunk of reading.chunks) chunks.push(chunk)
    } catch (error) {
      if (hasCode(error, 'OBJECT_GONE')) return undefined
      throw error
    }
    const bytes = Buffer.concat(chunks)
    if (bytes.length > DOCUMENT_BYTES_MAX)
      throw refused(this.words, `${formatPhysicalKey(wanted)} has more than ${formatBytes(DOCUMENT_BYTES_MAX)}`)
    try {
      // A byte order mark stays: it is for the reader of YAML to skip, and for the reader of JSON to refuse.
      return { key, text: new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes) }
    } catch {
      throw refused(this.words, `${formatPhysicalKey(wanted)} is not UTF-8`)
    }
  }
}

function refused({ registry }: RevisionWords, reason: string): BobbinError {
  return new BobbinError('INVALID_ARGUMENT', `the workflow rules of ${formatRegistry(registry)}: ${reason}`)
}
