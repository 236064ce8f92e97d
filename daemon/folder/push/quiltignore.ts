/**
 * `.quiltignore` as quilt3 reads it: not git's syntax, but one pattern of Python's `fnmatch` a line, put behind a star and a slash
 * and matched with whole absolute paths, so that `*` crosses slashes and may stand for folders above the one that is
 * pushed. A directory that matches, with or without a final slash, is left out with everything below it.
 *
 * The folder may be a stranger's, so the patterns become one expression of RE2, which does not backtrack.
 */
import { RE2JS } from 're2js'
import { BobbinError } from '../../model/index.js'

/** True: the path, which is absolute and has no links before its last name, is left out. */
export type IgnoreRule = (path: string, isFolder: boolean) => boolean

/** Of all its lines; a path is compared with each character at most once per character of its own. */
const CHARACTERS_MAX = 65_536

/** Python reads text with these line ends alone. */
const PYTHON_LINE_END = /\r\n|\r|\n/

/** Throws INVALID_ARGUMENT for a file that is too long. */
export function parseQuiltignore(text: string): IgnoreRule {
  if (text.length > CHARACTERS_MAX)
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `.quiltignore has ${text.length} characters, at most ${CHARACTERS_MAX}: name folders instead of files`,
    )
  const patterns = text
    .split(PYTHON_LINE_END)
    .filter(rule => rule !== '')
    .map(rule => fnmatch(`*/${rule}`))
  if (patterns.length === 0) return () => false
  const expression = RE2JS.compile(`^(?:${patterns.join('|')})$`, RE2JS.DOTALL)
  return (path, isFolder) => expression.test(path) || (isFolder && expression.test(`${path}/`))
}

/** Python's `fnmatch.translate`. */
function fnmatch(pattern: string): string {
  let source = ''
  for (let i = 0; i < pattern.length; i++) {
    const c = pattern[i]!
    if (c === '*') source += '.*'
    else if (c === '?') source += '.'
    else if (c === '[') {
      const isNegated = pattern[i + 1] === '!'
      const from = isNegated ? i + 2 : i + 1
      // A "]" right at the start belongs to the set.
      const end = pattern.indexOf(']', from + 1)
      if (end < 0) source += '\\['
      else {
        source += setOf([...pattern.slice(from, end)], isNegated)
        i = end
      }
    } else source += c.replace(/[\\^$.|+(){}\]]/, '\\$&')
  }
  return source
}

/** A range from z to a holds nothing in Python, and is an error in a pattern here. */
function setOf(chars: readonly string[], isNegated: boolean): string {
  const code = (char: string) => `\\x{${char.codePointAt(0)!.toString(16)}}`
  let members = ''
  for (let i = 0; i < chars.length; i++) {
    const [low, dash, high] = chars.slice(i, i + 3)
    if (dash === '-' && high !== undefined) {
      if (low!.codePointAt(0)! <= high.codePointAt(0)!) members += `${code(low!)}-${code(high)}`
      i += 2
    } else members += code(low!)
  }
  // Negated, an empty set matches anything.
  if (members === '') return isNegated ? '.' : NOTHING
  return `[${isNegated ? '^' : ''}${members}]`
}

const NOTHING = '[^\\x00-\\x{10ffff}]'
