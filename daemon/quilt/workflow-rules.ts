/**
 * What a registry's documents say and ask, worked out in a process of its own (confined.ts): YAML whose aliases multiply,
 * regular expressions that backtrack and schemas that compare everything with everything are a stranger's programs.
 *
 * Patterns are Python's (python-regex.ts), and may backtrack; ajv makes code of a schema, and that code runs here, too. Everything throws INVALID_ARGUMENT, with the reason alone.
 */
import { Ajv, type ValidateFunction } from 'ajv'
import { parse } from 'yaml'
import { BobbinError } from '../model/index.js'
import { parsePythonJson } from './python-json.js'
import { pythonRegExp } from './python-regex.js'
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
/** Of values that aliases stand for, so that ten lines cannot mean a thousand million. */
const ALIASES_MAX = 100

// A default export is what runConfined asks for.
export default function work(task: RulesTask): WorkflowConfig | null {
  if (task.kind === 'config') return parseConfig(task.text)
  if (task.kind === 'entries') {
    const check = compile(task.entries)
    if (!check(task.values)) refuse(`the entries do not fit ${problem(check)}`)
    return null
  }
  const { name, handlePattern, metadata, entries, userMeta } = task
  const check = metadata && compile(metadata)
  if (entries !== undefined) compile(entries)
  if (handlePattern && !pythonRegExp(handlePattern).test(name))
    refuse(`the package's name does not fit the pattern ${handlePattern}`)
  if (check !== undefined && userMeta !== undefined && !check(parsePythonJson(userMeta)))
    refuse(`the metadata does not fit ${problem(check)}`)
  return null
}

function parseConfig(text: string): WorkflowConfig {
  let config: unknown
  try {
    // PyYAML, which quilt3 reads it with, knows YAML 1.1.
    config = parse(text, { version: '1.1', maxAliasCount: ALIASES_MAX })
  } catch (error) {
    return refuse(`config.yml is not YAML: ${reasonOf(error)}`)
  }
  const check = new Ajv({ strict: false }).compile<WorkflowConfig>(WORKFLOW_CONFIG_SCHEMA)
  if (!check(config)) return refuse(`config.yml is not valid: ${problem(check)}`)
  const { version } = config
  const numbers = (typeof version === 'string' ? version : version.base).split('.').map(Number)
  const isNewer = VERSION_MAX.reduce((order, max, i) => order || (numbers[i] ?? 0) - max, 0) > 0
  if (isNewer) refuse(`config.yml has version ${numbers.join('.')}, which this Bobbin does not know`)
  return config
}

function compile({ url, text }: SchemaText): ValidateFunction {
  try {
    const schema: unknown = JSON.parse(text, (name, value: unknown) => {
      if (name === '$ref') throw new Error('Quilt does not support $ref')
      return value
    })
    if (typeof schema !== 'boolean' && (typeof schema !== 'object' || schema === null)) {
      throw new Error('it is no schema')
    }
    const meta = typeof schema === 'object' && '$schema' in schema ? schema.$schema : DRAFT_7
    if (meta !== DRAFT_7) throw new Error(`its $schema is not ${DRAFT_7}`)
    const ajv = new Ajv({
      strict: false,
      // To Python, NaN and infinite numbers are numbers.
      strictNumbers: false,
      // Python's validator does not look at formats either, unless it is told to.
      validateFormats: false,
      code: { regExp: Object.assign((pattern: string) => pythonRegExp(pattern), { code: 'regExp' }) },
    })
    return ajv.compile(schema)
  } catch (error) {
    return refuse(`the schema ${url} cannot be used: ${reasonOf(error)}`)
  }
}

function problem({ errors }: ValidateFunction): string {
  const [first] = errors ?? []
  return `its schema: ${first?.instancePath || 'the whole'} ${first?.message ?? 'is not valid'}`
}

function reasonOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split('\n')[0]!
}

function refuse(reason: string): never {
  throw new BobbinError('INVALID_ARGUMENT', reason)
}
