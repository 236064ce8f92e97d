/**
 * `.quiltignore` as quilt3 reads it: not git's syntax, but one pattern of Python's `fnmatch` a line, put behind a star and a slash
 * and matched with whole paths, so that `*` crosses slashes. A directory that matches, with or without a final
 * slash, is left out with everything below it.
 */

/** True: the path is left out. A path starts with a slash, which is the folder itself. */
export type IgnoreRule = (path: string, isFolder: boolean) => boolean

export function parseQuiltignore(text: string): IgnoreRule {
  const patterns = text
    .split('\n')
    .filter(rule => rule !== '')
    .map(rule => fnmatch(`*/${rule}`))
  return (path, isFolder) => patterns.some(pattern => pattern.test(path) || (isFolder && pattern.test(`${path}/`)))
}

/** Python's `fnmatch.translate`. */
function fnmatch(pattern: string): RegExp {
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
    } else source += c.replace(/[\\^$.|+(){}\]/]/, '\\$&')
  }
  return new RegExp(`^${source}$`, 'su')
}

/** A range from z to a holds nothing in Python, and is an error in a pattern here. */
function setOf(chars: readonly string[], isNegated: boolean): string {
  const code = (char: string) => `\\u{${char.codePointAt(0)!.toString(16)}}`
  let members = ''
  for (let i = 0; i < chars.length; i++) {
    const [low, dash, high] = chars.slice(i, i + 3)
    if (dash === '-' && high !== undefined) {
      if (low!.codePointAt(0)! <= high.codePointAt(0)!) members += `${code(low!)}-${code(high)}`
      i += 2
    } else members += code(low!)
  }
  // An empty set matches nothing here too; negated, anything.
  return `[${isNegated ? '^' : ''}${members}]`
}
