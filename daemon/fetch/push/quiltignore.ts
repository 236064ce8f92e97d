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
      // A "]" right at the start belongs to the set.
      const from = pattern[i + 1] === '!' ? i + 2 : i + 1
      const end = pattern.indexOf(']', from + 1)
      if (end < 0) source += '\\['
      else {
        const set = pattern.slice(from, end).replace(/[\\\][^]/g, '\\$&')
        source += isEmptyRange(set) ? (from === i + 2 ? '.' : '(?!)') : `[${from === i + 2 ? '^' : ''}${set}]`
        i = end
      }
    } else source += c.replace(/[\\^$.|+(){}\]/-]/, '\\$&')
  }
  return new RegExp(`^${source}$`, 'su')
}

/** `z-a` holds nothing in Python, and is an error here. */
function isEmptyRange(set: string): boolean {
  const range = /^(.)-(.)$/su.exec(set)
  return range !== null && range[1]!.codePointAt(0)! > range[2]!.codePointAt(0)!
}
