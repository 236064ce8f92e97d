/** Which entries a plan takes: globs on their keys, and a JMESPath expression over what the manifest says of them. */
import { compile, type JSONObject, type JSONValue, TreeInterpreter } from '@jmespath-community/jmespath'
import { BobbinError, type ObjectHash } from '../../daemon/model/index.js'
import { compileGlobs } from '../../daemon/quilt/globs.js'
import { formatManifestHash } from '../../daemon/quilt/object-hash.js'

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
        meta: text === undefined ? null : (JSON.parse(text) as JSONValue),
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

function compiled(where: string): ReturnType<typeof compile> {
  try {
    return compile(where)
  } catch (error) {
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `"where" is no JMESPath expression: ${error instanceof Error ? error.message : error} in ${where}`,
    )
  }
}

function isTrue(value: JSONValue): boolean {
  if (value === null || value === false || value === '' || value === undefined) return false
  if (Array.isArray(value)) return value.length > 0
  return typeof value === 'object' ? Object.keys(value).length > 0 : true
}
