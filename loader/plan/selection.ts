/** Which entries a plan takes: globs on their keys, and a JMESPath expression over what the manifest says of them. */
import { compile, type JSONObject, type JSONValue, TreeInterpreter } from '@jmespath-community/jmespath'
import { parsePythonJson } from '../../daemon/json/python-json.js'
import { compileGlobs } from '../../daemon/model/globs.js'
import { BobbinError, type ObjectHash } from '../../daemon/model/index.js'
import { formatManifestHash } from '../../daemon/model/object-hash.js'

export interface Wanted {
  readonly select: readonly string[]
  readonly exclude: readonly string[]
  /** JMESPath over {key, size, hash: {type, value}, meta}, the hash's value as the manifest spells it. */
  readonly where: string | null
}

export interface Candidate {
  readonly key: string
  readonly size: number
  readonly hash: ObjectHash
  /** JSON text; `undefined`: it has none. */
  readonly meta: () => string | undefined
}

export class Selector {
  readonly #isSelected: (key: string) => boolean
  readonly #isExcluded: (key: string) => boolean
  readonly #expression: ReturnType<typeof compile> | undefined
  /** Of the first entry that the expression could not be applied to. */
  #firstError: string | undefined

  /** Throws INVALID_ARGUMENT: a glob or an expression that cannot be read. */
  constructor({ select, exclude, where }: Wanted) {
    this.#isSelected = compileGlobs(select)
    this.#isExcluded = exclude.length === 0 ? () => false : compileGlobs(exclude)
    this.#expression = where === null ? undefined : compiled(where)
  }

  /** What JMESPath holds for true: not null, false, '', [] or {}. An expression that does not fit the entry (a function of null) is not true. */
  matches({ key, size, hash, meta }: Candidate): boolean {
    if (!this.#isSelected(key) || this.#isExcluded(key)) return false
    if (this.#expression === undefined) return true
    try {
      const text = meta()
      const document: JSONObject = {
        key,
        size,
        hash: { type: hash.type, value: formatManifestHash(hash) },
        meta: text === undefined ? null : (parsePythonJson(text) as JSONValue),
      }
      return isTrue(TreeInterpreter.search(this.#expression, document))
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error)
      this.#firstError ??= `${JSON.stringify(key)}: ${why.replace(/\.$/, '')}`
      return false
    }
  }

  /** For who has selected nothing: why, where the expression has to do with it. */
  get firstError(): string | undefined {
    return this.#firstError
  }
}

/** Functions that make text of any length out of a number. */
const REFUSED_FUNCTIONS = ['pad_left', 'pad_right', 'replace']
const WHERE_CHARACTERS_MAX = 65_536
/** A thousand alternatives (`a || b || …`) lie in each other. */
const NESTING_MAX = 1000

/** Throws INVALID_ARGUMENT. What it costs to apply is bounded by where it is applied (daemon/confined/confined.ts). */
function compiled(where: string): ReturnType<typeof compile> {
  if (where.length > WHERE_CHARACTERS_MAX)
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `"where" has ${where.length} characters, at most ${WHERE_CHARACTERS_MAX}: name entries by globs ("select")`,
    )
  let expression: ReturnType<typeof compile>
  try {
    expression = compile(where)
  } catch (error) {
    const shown = where.length > 1000 ? `${where.slice(0, 1000)}…` : where
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `"where" is not a JMESPath expression: ${error instanceof Error ? error.message : error} in ${shown}`,
    )
  }
  refuseParts(expression, 0)
  return expression
}

function refuseParts(node: unknown, depth: number): void {
  if (typeof node !== 'object' || node === null) return
  if (depth > NESTING_MAX)
    throw new BobbinError('INVALID_ARGUMENT', `"where" has more than ${NESTING_MAX} nested expressions`)
  const { type, name } = node as { readonly type?: unknown; readonly name?: unknown }
  if (type === 'Literal') return
  if (type === 'Function' && REFUSED_FUNCTIONS.includes(String(name)))
    throw new BobbinError('INVALID_ARGUMENT', `"where" must not call ${name}(), which makes text of any length`)
  // A list of children is no level of its own.
  for (const part of Object.values(node)) refuseParts(part, Array.isArray(node) ? depth : depth + 1)
}

function isTrue(value: JSONValue): boolean {
  if (value === null || value === false || value === '' || value === undefined) return false
  if (Array.isArray(value)) return value.length > 0
  return typeof value === 'object' ? Object.keys(value).length > 0 : true
}
