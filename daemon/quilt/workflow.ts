/**
 * The workflow rules of a registry (`.quilt/workflows/config.yml`), which every new revision has to follow, and which
 * its header names. What is refused is what quilt3 8.0.0 refuses (its module `workflows`).
 *
 * Everything here throws INVALID_ARGUMENT, for rules that are broken, and for rules that cannot be read: a registry
 * with rules takes nothing that was not checked.
 */
import { Ajv, type ValidateFunction } from 'ajv'
import { parse } from 'yaml'
import {
  BobbinError,
  formatPhysicalKey,
  hasCode,
  type PackageName,
  type PhysicalKey,
  parsePhysicalKey,
  type Registry,
  type RegistryWriter,
  type Source,
} from '../model/index.js'
import { formatRegistry } from './reference.js'
import { type RegistryOptions, workflowConfigKey } from './registry.js'
import { WORKFLOW_CONFIG_SCHEMA, type WorkflowConfig, type WorkflowRules } from './workflow-config-schema.js'

/** quilt3's `CONFIG_DATA_VERSION`: newer ones may have rules that we would not keep. */
const VERSION_MAX: readonly number[] = [1, 1, 0]
const DRAFT_7 = 'http://json-schema.org/draft-07/schema#'
const DOCUMENT_BYTES_MAX = 16 * 2 ** 20

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
  checkEntries(entries: readonly WorkflowEntry[]): void
}

/** Checks all but the entries; `undefined`: the registry has no rules. */
export async function findWorkflow(
  source: Source,
  writer: RegistryWriter,
  words: RevisionWords,
  options: RegistryOptions = {},
): Promise<Workflow | undefined> {
  const found = await findRules(source, writer, words, options)
  if (found === undefined) return undefined
  const { checkMetadata, checkEntries } = found
  if (checkMetadata !== undefined) {
    const userMeta: unknown = JSON.parse(words.userMeta ?? 'null') ?? {}
    if (!checkMetadata(userMeta)) throw refused(words, `the metadata does not fit ${problem(checkMetadata)}`)
  }
  return {
    header: found.header,
    checksEntries: checkEntries !== undefined,
    checkEntries(entries) {
      if (checkEntries === undefined || checkEntries(entries)) return
      throw refused(words, `the entries do not fit ${problem(checkEntries)}`)
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
  readonly checkMetadata: ValidateFunction | undefined
  readonly checkEntries: ValidateFunction | undefined
}

async function findRules(
  source: Source,
  writer: RegistryWriter,
  words: RevisionWords,
  options: RegistryOptions,
): Promise<FoundRules | undefined> {
  const documents = new Documents(source, writer, options)
  const found = await documents.read(workflowConfigKey(words.registry))
  if (found === undefined) {
    if (words.workflow === undefined) return undefined
    throw refused(words, 'a workflow is named, but the registry has no .quilt/workflows/config.yml')
  }
  const config = parseConfig(found, words)
  const { id, rules } = chooseWorkflow(config, words)
  const schemas = new Schemas(documents, config, words)
  const checkMetadata = await schemas.find(rules.metadata_schema)
  const checkEntries = await schemas.find(rules.entries_schema)
  checkWords(rules, words)
  const header = {
    id,
    config: formatPhysicalKey(found.key),
    ...(schemas.used.size > 0 && { schemas: Object.fromEntries(schemas.used) }),
  }
  return { header: JSON.stringify(header), checkMetadata, checkEntries }
}

function parseConfig({ text }: Document, words: RevisionWords): WorkflowConfig {
  let config: unknown
  try {
    // PyYAML, which quilt3 reads it with, knows YAML 1.1.
    config = parse(text, { version: '1.1' })
  } catch (error) {
    throw refused(words, `config.yml is not YAML: ${reasonOf(error)}`)
  }
  const check = new Ajv({ strict: false }).compile<WorkflowConfig>(WORKFLOW_CONFIG_SCHEMA)
  if (!check(config)) throw refused(words, `config.yml is not valid: ${problem(check)}`)
  const { version } = config
  const numbers = (typeof version === 'string' ? version : version.base).split('.').map(Number)
  const isNewer = VERSION_MAX.reduce((order, max, i) => order || (numbers[i] ?? 0) - max, 0) > 0
  if (isNewer) throw refused(words, `config.yml has version ${numbers.join('.')}, which this Bobbin does not know`)
  return config
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

function checkWords({ handle_pattern, is_message_required }: WorkflowRules, words: RevisionWords): void {
  if (is_message_required && !words.message) throw refused(words, 'a message is required')
  // Python's `search`: anywhere in the name.
  if (handle_pattern && !regExp(handle_pattern).test(words.name)) {
    throw refused(words, `the package's name does not fit the pattern ${handle_pattern}`)
  }
}

/** Compiled schemas by their ids, and which of them a revision was checked with. */
class Schemas {
  /** Addresses, with versions, by id. */
  readonly used = new Map<string, string>()
  readonly #ajv = new Ajv({
    strict: false,
    // Python's validator does not look at formats either, unless it is told to.
    validateFormats: false,
    code: { regExp: Object.assign(regExp, { code: 'regExp' }) },
  })

  constructor(
    private readonly documents: Documents,
    private readonly config: WorkflowConfig,
    private readonly words: RevisionWords,
  ) {}

  async find(id: string | undefined): Promise<ValidateFunction | undefined> {
    if (!id) return undefined
    const url = this.config.schemas?.[id]?.url
    if (url === undefined) throw refused(this.words, `config.yml has no schema ${JSON.stringify(id)}`)
    const key = this.#keyOf(url)
    const found = await this.documents.read(key)
    if (found === undefined) throw refused(this.words, `the schema ${url} is not there`)
    this.used.set(id, formatPhysicalKey(found.key))
    try {
      const schema: unknown = JSON.parse(found.text, (name, value: unknown) => {
        if (name === '$ref') throw new Error('Quilt does not support $ref')
        return value
      })
      if (typeof schema !== 'boolean' && (typeof schema !== 'object' || schema === null)) {
        throw new Error('it is no schema')
      }
      const meta = typeof schema === 'object' && '$schema' in schema ? schema.$schema : DRAFT_7
      if (meta !== DRAFT_7) throw new Error(`its $schema is not ${DRAFT_7}`)
      return this.#ajv.compile(schema)
    } catch (error) {
      throw refused(this.words, `the schema ${url} cannot be used: ${reasonOf(error)}`)
    }
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
    private readonly options: RegistryOptions,
  ) {}

  async read(wanted: PhysicalKey): Promise<Document | undefined> {
    const { signal } = this.options
    const key = await this.writer.find(wanted, signal)
    if (key === undefined) return undefined
    const chunks: Uint8Array[] = []
    try {
      const range = { start: 0, length: DOCUMENT_BYTES_MAX }
      const reading = await this.source.read(key, { range, ...(signal && { signal }) })
      for await (const chunk of reading.chunks) chunks.push(chunk)
    } catch (error) {
      if (hasCode(error, 'OBJECT_GONE')) return undefined
      throw error
    }
    return { key, text: Buffer.concat(chunks).toString('utf8') }
  }
}

/** Patterns are Python's; most of them mean the same here, some only without the strictness of the `u` flag. */
function regExp(pattern: string): RegExp {
  try {
    return new RegExp(pattern, 'u')
  } catch {
    return new RegExp(pattern)
  }
}

function problem({ errors }: ValidateFunction): string {
  const [first] = errors ?? []
  return `its schema: ${first?.instancePath || 'the whole'} ${first?.message ?? 'is not valid'}`
}

function reasonOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n')[0]!
}

function refused({ registry }: RevisionWords, reason: string): BobbinError {
  return new BobbinError('INVALID_ARGUMENT', `the workflow rules of ${formatRegistry(registry)}: ${reason}`)
}
