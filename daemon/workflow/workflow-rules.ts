/**
 * What a registry's documents say and ask, worked out in a process of its own (confined.ts): YAML whose aliases multiply,
 * regular expressions that backtrack and schemas that compare everything with everything are a stranger's programs.
 *
 * Patterns are Python's (python-regex.ts), and may backtrack. ajv says whether a schema is one, and draft7.ts what it asks.
 * Everything throws INVALID_ARGUMENT, with the reason alone.
 */
import { Ajv } from 'ajv'
import { parseExactJson, parsePythonJson } from '../json/python-json.js'
import { BobbinError } from '../model/index.js'
import { type Check, compileDraft7 } from './draft7.js'
import { pythonRegExp } from './python-regex.js'
import { parsePyYaml } from './pyyaml.js'
import { WORKFLOW_CONFIG_SCHEMA, type WorkflowConfig } from './workflow-config-schema.js'

export interface SchemaText {
  readonly url: string
  readonly text: string
}

export type RulesTask =
  | { readonly kind: 'config'; readonly text: string }
  | {
      readonly kind: 'check'
      readonly name: string
      /** Python's `search`: anywhere in the name. */
      readonly handlePattern?: string | undefined
      readonly metadata?: SchemaText | undefined
      readonly entries?: SchemaText | undefined
      /** JSON text; `undefined`: the schemas are looked at, and nothing is checked with them. */
      readonly userMeta?: string | undefined
    }
  | { readonly kind: 'entries'; readonly entries: SchemaText; readonly values: readonly unknown[] }

/** quilt3's `CONFIG_DATA_VERSION`: newer ones may have rules that we would not keep. */
const VERSION_MAX: readonly number[] = [1, 1, 0]
const DRAFT_7 = 'http://json-schema.org/draft-07/schema#'

// A default export is what runConfined asks for.
export default function work(task: RulesTask): WorkflowConfig | null {
  if (task.kind === 'config') return parseConfig(task.text)
  if (task.kind === 'entries') {
    apply('entries', compile(task.entries), task.values)
    return null
  }
  const { name, handlePattern, metadata, entries, userMeta } = task
  const check = metadata && compile(metadata)
  if (entries !== undefined) compile(entries)
  if (handlePattern && !pythonRegExp(handlePattern).test(name))
    refuse(`the package's name does not fit the pattern ${handlePattern}`)
  if (check !== undefined && userMeta !== undefined) apply('metadata', check, parseExactJson(userMeta))
  return null
}

function parseConfig(text: string): WorkflowConfig {
  let config: unknown
  try {
    config = parsePyYaml(text)
  } catch (error) {
    return refuse(`config.yml is not YAML: ${reasonOf(error)}`)
  }
  const problem = compileDraft7(WORKFLOW_CONFIG_SCHEMA, pythonRegExp)(config)
  if (problem !== undefined) return refuse(`config.yml is not valid: its schema: ${problem}`)
  const { version } = config as WorkflowConfig
  const numbers = (typeof version === 'string' ? version : version.base).split('.').map(Number)
  const isNewer = VERSION_MAX.reduce((order, max, i) => order || (numbers[i] ?? 0) - max, 0) > 0
  if (isNewer) refuse(`config.yml has version ${numbers.join('.')}, which this Bobbin does not know`)
  return config as WorkflowConfig
}

function compile({ url, text }: SchemaText): Check {
  try {
    const schema = parsePythonJson(text)
    refuseReferences(schema)
    if (typeof schema !== 'boolean' && (typeof schema !== 'object' || schema === null)) {
      throw new Error('it is not a schema')
    }
    const meta = typeof schema === 'object' && Object.hasOwn(schema, '$schema') ? own(schema).$schema : DRAFT_7
    if (meta !== DRAFT_7) throw new Error(`its $schema is not ${DRAFT_7}`)
    // To Python, NaN and infinite numbers are numbers.
    const ajv = new Ajv({ strict: false, strictNumbers: false, validateFormats: false })
    if (ajv.validateSchema(schema) !== true) throw new Error(ajv.errorsText(ajv.errors, { dataVar: 'schema' }))
    return compileDraft7(parseExactJson(text), pythonRegExp)
  } catch (error) {
    return refuse(`the schema ${url} cannot be used: ${reasonOf(error)}`)
  }
}

function refuseReferences(value: unknown): void {
  if (typeof value !== 'object' || value === null) return
  if (!Array.isArray(value) && Object.hasOwn(value, '$ref')) throw new Error('Quilt does not support $ref')
  for (const inner of Object.values(value)) refuseReferences(inner)
}

function own(schema: object): Readonly<Record<string, unknown>> {
  return schema as Record<string, unknown>
}

function apply(what: string, check: Check, value: unknown): void {
  let problem: string | undefined
  try {
    problem = check(value)
  } catch (error) {
    refuse(`the ${what} cannot be held against their schema: ${reasonOf(error)}`)
  }
  if (problem !== undefined) refuse(`the ${what} ${what === 'entries' ? 'do' : 'does'} not fit its schema: ${problem}`)
}

function reasonOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n')[0]!
}

function refuse(reason: string): never {
  throw new BobbinError('INVALID_ARGUMENT', reason)
}
