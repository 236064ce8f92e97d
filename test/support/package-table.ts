/** What quilt3 8.0.0 makes of unusual metadata and keys: test/unit has it fixed, test/s3 asks quilt3 itself. JSON text throughout. */

/** `meta` of an entry before and after, and whether `Package.diff` has the entry as modified. */
export const DIFF_TABLE: readonly (readonly [before: string, after: string, differs: boolean])[] = [
  ['{}', '{}', false],
  ['{}', 'null', false],
  ['[]', '{}', false],
  ['{}', '{"user_meta":null}', true],
  ['{"user_meta":{}}', '{}', true],
  ['{"user_meta":{"a":1}}', '{"user_meta":{"a":2}}', true],
  ['{"user_meta":{"a":1},"target":"x"}', '{"user_meta":{"a":1}}', true],
  ['{"format":{"name":"json"}}', '{"format":{"name":"csv"}}', true],
  ['{"a":1,"b":2}', '{"b":2,"a":1}', false],
  ['{"a":1,"a":2}', '{"a":2}', false],
  ['{"a":[1,2]}', '{"a":[2,1]}', true],
  // Python's ==, which is not the equality of the top hash.
  ['{"user_meta":{"a":1}}', '{"user_meta":{"a":1.0}}', false],
  ['{"user_meta":{"a":1}}', '{"user_meta":{"a":true}}', false],
  ['{"a":[1,{"b":true}]}', '{"a":[1.0,{"b":1}]}', false],
  ['{"a":"1"}', '{"a":1}', true],
  ['{"a":0}', '{"a":null}', true],
  ['{"a":-0.0}', '{"a":0}', false],
  ['{"a":NaN}', '{"a":NaN}', false],
  ['{"a":NaN}', '{"a":"NaN"}', true],
  ['{"a":1e999}', '{"a":Infinity}', false],
  ['{"a":9007199254740993}', '{"a":9007199254740992.0}', true],
  ['{"a":9007199254740993}', '{"a":9007199254740993}', false],
  ['{"a":"\\u00e9"}', '{"a":"é"}', false],
  ['{"__proto__":1}', '{}', true],
]

/** A member of the header, and the package's metadata. */
export const PACKAGE_META_TABLE: readonly (readonly [member: string, meta: string])[] = [
  ['', '{}'],
  ['"user_meta":null', 'null'],
  ['"user_meta":{}', '{}'],
  ['"user_meta":{"a":1}', '{"a":1}'],
]

/** `meta` of a directory's row, and whether quilt3 writes it again. It is the directory's metadata as it stands. */
export const DIRECTORY_META_TABLE: readonly (readonly [meta: string, isWritten: boolean])[] = [
  ['{"a":1}', true],
  ['{}', false],
  ['[1]', true],
  ['[]', false],
  ['"text"', true],
  ['""', false],
  ['7', true],
  ['0', false],
  ['null', false],
  ['true', true],
]

/** `meta` of an entry, and the metadata of its user. */
export const ENTRY_META_TABLE: readonly (readonly [meta: string, userMeta: string])[] = [
  ['{}', '{}'],
  ['{"user_meta":null}', 'null'],
  ['{"user_meta":{}}', '{}'],
  ['{"user_meta":[1]}', '[1]'],
  ['{"target":"x"}', '{}'],
]

/** Keys in the order of the top hash, which is that of code points. */
export const LONE_SURROGATES = [
  '"\\ud800"',
  '"\\ud800\\uffff"',
  '"\\ud801"',
  '"\\udc00x"',
  '"\\udfff"',
  '"\\ue000"',
  '"\\uffff"',
  '"\\ud800\\udc00"',
  '"\\ud801\\udc00"',
] as const
/** Of a package with these keys, each an entry whose metadata has all of them as members. */
export const LONE_SURROGATES_TOP_HASH = '710eaa37c9df46f75b2b3915565d3b0199e9940acfb28e3ebe2c39855cec453c'

export const HEADER = (member = '') => `{"version":"v0","message":null${member === '' ? '' : `,${member}`}}`

/** `key`: JSON text. */
export const entryRow = (key: string, meta: string) =>
  `{"logical_key":${key},"physical_keys":["s3://bucket/x"],"size":1,"hash":{"type":"SHA256","value":"${'0'.repeat(64)}"},"meta":${meta}}`

export const directoryRow = (key: string, meta: string) => `{"logical_key":${key},"meta":${meta}}`

export function manifestOf(rows: readonly string[], member?: string): string {
  return [HEADER(member), ...rows].map(row => `${row}\n`).join('')
}

/** In an order that is not theirs. */
export function loneSurrogateRows(): string[] {
  const meta = `{"user_meta":{${[...LONE_SURROGATES].reverse().map(key => `${key}:1`)}}}`
  return [...LONE_SURROGATES].sort().map(key => entryRow(key, meta))
}
