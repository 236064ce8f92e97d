/**
 * Reads the JSON that Python's `json` writes, and gives it on as JSON that everybody reads.
 *
 * quilt3 up to 5.4.0 wrote `NaN`, `Infinity` and `-Infinity` into metadata, and Python reads a number that is too large
 * for a double (`1e999`) as infinite, too. For JSON these are no values. What compares them (`where`, schemas of workflows) gets
 * the numbers themselves; what prints or sends them gets the strings "NaN", "Infinity" and "-Infinity", since a null
 * would also stand for a value that is missing.
 */
import { canonicalJson } from './canonical-json.js'

/** What may be a number beyond the largest double; text that only looks like one is read the slow way, and right. */
const MAYBE_HUGE = /[eE]\+?\d{3}|\d{309}/
/** A string, or a number that is not finite, in canonical JSON. */
const STRING_OR_WORD = /"(?:[^"\\]|\\.)*"|NaN|-?Infinity/g

const MAYBE_UNSAFE = /\d{16}/
/** A string, or a number. */
const STRING_OR_NUMBER = /"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g

/** The value of JSON text, with numbers that are not finite as such. Throws JsonSyntaxError. */
export function parsePythonJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    // The text is of Python's kind, or broken: canonicalText says so.
    const canonical = canonicalText(text)
    let mark = 'NaN'
    while (canonical.includes(`"${mark}"`)) mark += '?'
    const json = replaceWords(canonical, word => (word === 'NaN' ? `"${mark}"` : word.replace('Infinity', '1e999')))
    return JSON.parse(json, (_, value: unknown) => (value === mark ? Number.NaN : value))
  }
}

/** As parsePythonJson, with integers that a double cannot hold as `bigint`. Throws JsonSyntaxError. */
export function parseExactJson(text: string): unknown {
  if (!MAYBE_UNSAFE.test(text)) return parsePythonJson(text)
  const canonical = canonicalText(text)
  let mark = 'n'
  while (canonical.includes(`"${mark}`)) mark += '?'
  // Canonical text has a point or an exponent in every number that is not an integer.
  const marked = canonical.replace(STRING_OR_NUMBER, found =>
    /^-?\d+$/.test(found) && !Number.isSafeInteger(Number(found)) ? `"${mark}${found}"` : found,
  )
  const revive = (value: unknown): unknown => {
    if (typeof value === 'string' && value.startsWith(mark)) return BigInt(value.slice(mark.length))
    if (typeof value === 'object' && value !== null)
      for (const name of Object.keys(value)) define(value, name, revive((value as Record<string, unknown>)[name]))
    return value
  }
  return revive(parsePythonJson(marked))
}

function define(object: object, name: string, value: unknown): void {
  Object.defineProperty(object, name, { value, enumerable: true, configurable: true, writable: true })
}

/** JSON text without words that are not JSON; the text as it stands where it has none. Throws JsonSyntaxError. */
export function standardJson(text: string): string {
  if (!MAYBE_HUGE.test(text)) {
    try {
      JSON.parse(text)
      return text
    } catch {
      // It is read again below.
    }
  }
  return replaceWords(canonicalText(text), word => `"${word}"`)
}

/** The canonical form of the whole text, without words that are not JSON. Throws JsonSyntaxError. */
export function standardCanonicalJson(text: string): string {
  return replaceWords(canonicalText(text), word => `"${word}"`)
}

/** The canonical form of the whole text. Throws JsonSyntaxError. */
export function canonicalText(text: string): string {
  const bytes = Buffer.from(text)
  return canonicalJson(bytes, 0, bytes.length)
}

function replaceWords(canonical: string, replace: (word: string) => string): string {
  if (!canonical.includes('NaN') && !canonical.includes('Infinity')) return canonical
  return canonical.replace(STRING_OR_WORD, found => (found.startsWith('"') ? found : replace(found)))
}
