/**
 * Reads YAML as PyYAML's `safe_load` does, which quilt3 reads `config.yml` with: YAML 1.1 with that library's own idea of
 * which plain words are numbers, booleans and dates. The last of two equal keys counts.
 *
 * What PyYAML refuses is refused (unknown tags, tabs between tokens, control characters, `=` as a value). What it
 * takes and this cannot give as it does is refused, too, with words: keys that are not text, tags but `!!str`, `!!map`
 * and `!!seq`, two `<<` in one mapping, line ends of Unicode, `%YAML` of another version.
 */
import { CST, isMap, isNode, isScalar, Lexer, parseDocument, type ScalarTag, type Tags, visit } from 'yaml'

/** Of values that aliases stand for, so that ten lines cannot mean a thousand million. */
const ALIASES_MAX = 100
const TAG = 'tag:yaml.org,2002:'
const TAGS_TAKEN: readonly string[] = ['str', 'map', 'seq'].map(name => TAG + name)
const COLLECTIONS: readonly string[] = ['str', 'map', 'seq', 'null', 'merge'].map(name => TAG + name)
const NOT_PRINTABLE = /[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/u
const UNICODE_LINE_ENDS = /[\x85\u2028\u2029]/

/** PyYAML's expressions for plain words (its module `resolver`). */
const BOOLEAN = /^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$/
const INTEGER =
  /^(?:[-+]?0b[01_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+)$/
const FLOAT =
  /^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$/
const TIMESTAMP =
  /^(\d{4})-(\d\d?)-(\d\d?)(?:(?:[Tt]|[ \t]+)(\d\d?):(\d\d):(\d\d)(?:\.\d*)?(?:[ \t]*(?:Z|[-+]\d\d?(?::\d\d)?))?)?$/
const SHORT_DATE = /^\d{4}-\d\d?-\d\d?$/
const DATE = /^\d{4}-\d\d-\d\d$/

const SCALARS: readonly ScalarTag[] = [
  scalar('bool', BOOLEAN, text => /^(?:yes|true|on)$/i.test(text)),
  scalar('float', FLOAT, readFloat),
  scalar('int', INTEGER, readInteger),
  scalar('timestamp', TIMESTAMP, readDate),
]

/** Throws an Error that says why the text is refused. */
export function parsePyYaml(text: string): unknown {
  if (NOT_PRINTABLE.test(text)) throw new Error('it has control characters')
  if (UNICODE_LINE_ENDS.test(text)) throw new Error('it has line ends of Unicode (U+0085, U+2028, U+2029)')
  const lines = text.replaceAll(/\r\n?/g, '\n')
  refuseTabs(lines)
  const document = parseDocument(lines, {
    version: '1.1',
    schema: 'yaml-1.1',
    uniqueKeys: false,
    customTags: (tags: Tags) => [
      ...tags.filter(tag => typeof tag === 'object' && COLLECTIONS.includes(tag.tag)),
      ...SCALARS,
    ],
  })
  const { yaml } = document.directives ?? {}
  if (yaml?.explicit && yaml.version !== '1.1') throw new Error(`it asks for YAML ${yaml.version}, and is read as 1.1`)
  for (const problem of [...document.errors, ...document.warnings]) throw problem
  refuseOthers(document)
  return document.toJS({ maxAliasCount: ALIASES_MAX })
}

function refuseOthers(document: ReturnType<typeof parseDocument>): void {
  visit(document, (_, node) => {
    if (isNode(node) && 'tag' in node && node.tag !== undefined && !TAGS_TAKEN.includes(node.tag))
      throw new Error(`it has the tag ${node.tag}`)
  })
  visit(document, {
    Scalar(place, { type, source }) {
      if (place !== 'key' && type === 'PLAIN' && (source === '=' || source === '<<'))
        throw new Error(`it has ${source} as a value`)
    },
    Map(_, { items }) {
      const isMerge = (key: unknown) => isScalar(key) && key.type === 'PLAIN' && key.source === '<<'
      if (items.filter(({ key }) => isMerge(key)).length > 1) throw new Error('it has << twice in a mapping')
      for (const { key } of items) {
        if (!isMerge(key) && !(isScalar(key) && typeof key.value === 'string'))
          throw new Error(`it has a key that is not text: ${String(key)}`)
      }
    },
    Seq(_, { items }) {
      // A pair without braces in a flow sequence is a mapping of its own; the visitor comes to it as one.
      if (items.some(item => item !== null && typeof item === 'object' && 'key' in item && !isMap(item)))
        throw new Error('it has a pair in a sequence')
    },
  })
}

/** PyYAML has tabs in comments, in quotes and in block scalars alone. */
function refuseTabs(text: string): void {
  let header = false
  let previous = ''
  for (const token of new Lexer().lex(text)) {
    // The lexer puts a mark before what a plain or block scalar has, which may look like any other token.
    const isContent = previous === CST.SCALAR
    const type = isContent ? 'scalar' : CST.tokenType(token)
    const mayHaveTabs = (isContent && header) || type === 'comment' || type?.endsWith('quoted-scalar')
    if (token.includes('\t') && !mayHaveTabs) throw new Error('it has a tab between words')
    if (type === 'block-scalar-header') header = true
    else if (isContent) header = false
    previous = token
  }
}

function scalar(name: string, test: RegExp, resolve: (text: string) => unknown): ScalarTag {
  return { tag: TAG + name, default: true, test, resolve }
}

function readInteger(text: string): number {
  const [, sign, digits] = /^([-+]?)(.*)$/.exec(text.replaceAll('_', ''))!
  let value: number
  if (digits!.startsWith('0b') || digits!.startsWith('0x')) value = Number(digits)
  else if (digits!.startsWith('0')) value = Number.parseInt(digits!, 8)
  else value = sexagesimal(digits!)
  if (Number.isNaN(value) || /^0[bx]$/.test(digits!)) throw new Error(`it has ${text}, which is not a number`)
  return sign === '-' ? -value : value
}

function readFloat(text: string): number {
  const [, sign, digits] = /^([-+]?)(.*)$/.exec(text.replaceAll('_', '').toLowerCase())!
  const value = digits === '.inf' ? Number.POSITIVE_INFINITY : digits === '.nan' ? Number.NaN : sexagesimal(digits!)
  return sign === '-' ? -value : value
}

function sexagesimal(digits: string): number {
  return digits.split(':').reduce((sum, part) => sum * 60 + Number(part), 0)
}

/** A Date, or the text itself where PyYAML's expression asks for two digits. */
function readDate(text: string): Date | string {
  if (SHORT_DATE.test(text) && !DATE.test(text)) return text
  const [year, month, day, hour, minute, second] = TIMESTAMP.exec(text)!
    .slice(1)
    .map(part => Number(part ?? 0))
  const date = new Date(Date.UTC(year!, month! - 1, day!, hour!, minute!, second!))
  const isReal = date.getUTCMonth() === month! - 1 && date.getUTCDate() === day! && date.getUTCMinutes() === minute!
  if (year === 0 || !isReal || hour! > 23 || second! > 59) throw new Error(`it has ${text}, which is not a date`)
  return date
}
